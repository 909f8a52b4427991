"""A sweep with prices and a budget: it ends before it exceeds that, and goes on when it is raised."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.sweeps import sweep_file

from analysis.store import open_store
from ray_jobs.cli.main import main

pytestmark = pytest.mark.slow

BLOCKS = [{"name": "base", "role": "baseline", "optimizer": "muon"}]
PRICES = "date: 2026-01-31\nsource: a quote\nnodes: {local: {usd_per_hour: 3600, cpus: 1}}\n"  # a dollar a second


class Answer(NamedTuple):
    """What a call of the command said."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def muon(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Answer]:
    monkeypatch.setenv("MUON_STORE", str(tmp_path / "store"))

    def call(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        return Answer(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def spec(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "prices.yaml").write_text(PRICES)
    monkeypatch.setenv("MUON_PRICES", str(tmp_path / "prices.yaml"))
    return str(sweep_file(tmp_path, small | {"steps": 20}, BLOCKS, seeds=[1, 2, 3, 4]))


def test_a_budget_ends_a_sweep_before_it_exceeds_it_and_a_greater_one_continues_it(
    spec: str, tmp_path: Path, muon: Callable[..., Answer]
) -> None:
    store = tmp_path / "store"
    one = muon("sweep", "run", spec, "--in-process", "--limit", "1")
    assert one.code == 0, one.stderr
    (first,) = open_store(store).attempts.collect().iter_rows(named=True)
    assert first["usd"] == pytest.approx(first["seconds"])
    assert (first["usd_per_hour"], first["price_source"], first["price_date"]) == (3600.0, "a quote", "2026-01-31")

    plan = muon("sweep", "plan", spec, "--json")
    told = json.loads(plan.stdout)
    assert told["estimate"]["measured"] is True
    assert told["cost_usd"] == pytest.approx(3 * told["estimate"]["hours"] * 1200)

    limit = 2.5 * first["usd"]  # for the first, one more, and no third
    short = muon("sweep", "run", spec, "--in-process", "--max-usd", f"{limit}")
    assert short.code == 6, short.stderr
    assert f"budget.usd, {limit:g}" in short.stderr or f"budget.usd is {limit:g}" in short.stderr
    assert "next: raise budget.usd, or muon sweep run" in short.stderr
    runs = open_store(store).runs.collect()
    assert runs["status"].to_list().count("done") < 4

    refused = muon("sweep", "run", spec, "--in-process", "--max-usd", "0.01")
    assert refused.code == 6
    assert "training" not in refused.stderr
    assert open_store(store).attempts.collect().height == runs.height  # nothing was begun

    whole = muon("sweep", "run", spec, "--in-process", "--max-usd", "1000")
    assert whole.code == 0, whole.stderr
    assert "4/4" in whole.stdout
    cost = json.loads(muon("cost", "test", "--json").stdout)
    own = open_store(store).runs.collect()["wall_s"].sum()
    assert cost["total"]["usd"] == pytest.approx(cost["total"]["hours"] * 3600)
    assert cost["total"]["usd"] >= own
