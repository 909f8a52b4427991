"""docs/figures.md is one script that runs, and names every builder."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.analysis_fixtures import demo_runs, write_store

import analysis.figures

TEXT = (Path(__file__).parents[2] / "docs" / "figures.md").read_text(encoding="utf-8")


def test_the_script_of_the_text_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "results", demo_runs())
    monkeypatch.chdir(tmp_path)
    script = "".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(script, "docs/figures.md", "exec"), names)
    assert names["forest"]._repr_html_().count("<svg ") == 1
    assert names["curves"]._repr_html_().count("<svg ") == 3
    assert [figure.name for figure in names["others"]] == ["runs_train_loss"]
    assert (tmp_path / "forest.svg").read_text() == names["figure"].svg
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")
    assert names["effects"]["arm"].to_list() == ["adamw", "orthonoise", "isotropic"]


def test_the_text_names_every_builder_and_each_can_be_had() -> None:
    rows = re.findall(r"^\| (`.*_figures`) \|", TEXT, re.MULTILINE)
    assert sorted(re.findall(r"\w+_figures", " ".join(rows))) == sorted(analysis.figures.BUILDERS)
    for name in analysis.figures.BUILDERS:
        assert getattr(analysis.figures, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'pie_figures'"):
        _ = analysis.figures.pie_figures
