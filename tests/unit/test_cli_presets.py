"""`muon presets`: facts of the presets, as a table and as JSON."""

import json

import pytest

from muon_core.config.memory import memory
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.gpus import GPUS
from ray_jobs.cli.main import main
from ray_jobs.cli.presets import hours_text, usd_text
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
    assert rows["fits one h100"] == ["yes", "yes", "no", "no"]
    assert rows["it does with"] == ["4", "micro-batches", "16", "micro-batches"]
    assert rows["time of 1.7e+09 tokens"][2:] == ["1.17", "h", "3.83", "h", "9.62", "h"]
    assert err.splitlines()[0] == (
        "peak: H100 data sheet, bf16 halved: it is printed with sparsity, looked up 2026-11-29; price of p5.48xlarge: "
        "AWS list prices on demand, us-east-1 and us-west-2, Linux, not looked up since 2025-11-30"
    )


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


def test_what_fits_nowhere_has_no_hours_and_what_is_not_rented_no_dollars(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "1b", "--gpu", "t4", "--seq-len", "16384", "--json")
    (one,) = json.loads(out)
    assert (code, one["fits"], one["to_fit"], one["hours"], one["usd"]) == (0, False, None, None, None)
    _, out, _ = call(capsys, "1b", "--gpu", "t4", "--seq-len", "16384")
    assert [line.split()[-1] for line in out.splitlines()[-4:]] == ["no", "nothing", "-", "unknown"]
    (own,) = json.loads(call(capsys, "88m", "--gpu", "rtx4090", "--json")[1])
    err = call(capsys, "88m", "--gpu", "rtx4090")[2]
    assert (own["fits"], own["usd"]) == (True, None)
    assert own["to_fit"] == {"micro_batches": 1, "activation_checkpointing": False}
    assert "prices: none, for rtx4090 is in no machine of AWS; give its hours your own" in err


def test_times_and_dollars_read_well() -> None:
    assert [hours_text(hours) for hours in (53.4, 4.4, 1.0, 0.99, 0.00068)] == [
        "53.4 h", "4.4 h", "1 h", "59 min", "2.4 s"
    ]  # fmt: skip
    assert [usd_text(usd) for usd in (1367.589, 0.62, 0.0047)] == ["1,367.59", "0.62", "under 0.01"]


def test_what_does_not_divide_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "88m", "--sequences", "3")
    assert (code, err) == (2, "muon: --sequences 3 does not divide batch_size 8; choose a divisor\n")


def test_every_gpu_has_a_price() -> None:
    """Whose machines AWS has."""
    assert {gpu.node for gpu in GPUS.values()} - {None} <= load_prices().nodes.keys()
