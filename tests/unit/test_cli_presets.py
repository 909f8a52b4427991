"""`muon presets`: facts of the presets, as a table and as JSON."""

import json

import pytest

from muon_core.config.memory import memory
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.gpus import GPUS
from ray_jobs.cli.main import main
from ray_jobs.prices import load_prices


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["presets", *arguments])
    assert isinstance(stop.value.code, int)
    return (stop.value.code, *capsys.readouterr())


def test_the_table_has_a_column_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    rows = {line[:24].strip(): line[24:].split() for line in out.splitlines()}
    assert code == 0
    assert rows["preset"] == list(PRESETS)
    assert rows["parameters"][2:4] == ["88.63", "M"]
    assert rows["muon's share of FLOPs"][1] == "5.3%"
    assert len(rows["USD"]) == len(PRESETS)
    assert all(len(line) <= 120 for line in out.splitlines())
    assert "(2026-" in err


def test_json_has_bytes_hours_and_dollars(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "88m", "--gpu", "a10g", "--tokens", "1e9", "--mfu", "0.5", "--json")
    (one,) = json.loads(out)
    run = RunConfig.model_validate(PRESETS["88m"])
    assert code == 0
    assert one["memory_bytes"]["peak"] == memory(run).peak
    assert one["memory_bytes"]["tracking"] == memory(run).tracking
    flops = 1e9 * one["flops_per_token"] / (1 - one["orthogonalizer_share"])
    assert one["hours"] == pytest.approx(flops / 70e12 / 0.5 / 3600)
    assert one["usd"] == pytest.approx(one["hours"] * 1.006)


def test_a_forward_pass_may_be_smaller_than_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """FLOPs and hours are those of the whole step then, too."""
    whole, small = (
        json.loads(call(capsys, "88m", "--json", *arguments)[1])[0] for arguments in ((), ("--sequences", "2"))
    )
    assert small["sequences"] == 2
    assert small["memory_bytes"]["activations"] == whole["memory_bytes"]["activations"] / 4
    assert small["hours"] == whole["hours"]
    less = json.loads(call(capsys, "88m", "--json", "--activation-checkpointing")[1])[0]
    assert less["memory_bytes"]["activations"] < whole["memory_bytes"]["activations"]


def test_what_does_not_divide_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "88m", "--sequences", "3")
    assert (code, err) == (2, "muon: --sequences 3 does not divide batch_size 8; choose a divisor\n")


def test_every_gpu_has_a_price() -> None:
    assert {gpu.node for gpu in GPUS.values()} <= load_prices().nodes.keys()
