"""docs/python.md is one script that runs, and does what it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_script_of_the_text_runs(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`books`, the text's corpus, is the session's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").symlink_to(corpus)
    script = "".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(script, "docs/python.md", "exec"), names)
    assert names["losses"][-1] < 0.5 * names["losses"][0]
    for param, saved in zip(names["matrices"], names["theirs"].state.values(), strict=True):
        assert torch.equal(names["optimizers"][0].state[param]["momentum_buffer"], saved["momentum_buffer"])
    assert names["outcome"].status == "done"
    assert names["runs"].rows() == [(names["config"].run_id, "muon", "done", names["outcome"].final.val_loss)]
    assert names["curve"]["step"].to_list() == [0, 4, 8]
