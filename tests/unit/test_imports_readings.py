"""What columns are taken for, and how `--map` corrects it."""

import math
from typing import Any

import pytest

from muon_core.imports.log import Log, UnreadableLog
from muon_core.imports.mapping import parse_map
from muon_core.imports.readings import Reading, read_columns


def log(*rows: dict[str, Any], one_run: bool = False) -> Log:
    return Log("t.csv", "table", list(rows), "t", is_one_run=one_run)


def texts(readings: list[Reading]) -> list[str]:
    return sorted(map(str, readings))


@pytest.mark.parametrize(
    ("column", "value", "text", "converted"),
    [
        ("Val/Loss", 3.25, "val_loss: nats per token", 3.25),
        ("eval_loss", "3.25", "val_loss: nats per token", 3.25),
        ("loss/val", 3.25, "val_loss: nats per token", 3.25),
        ("valid_ppl", 20.0, "val_loss: perplexity, its logarithm", math.log(20.0)),
        ("loss", 3.25, "train_loss: nats per token", 3.25),
        ("train/perplexity", 20.0, "train_loss: perplexity, its logarithm", math.log(20.0)),
    ],
)
def test_losses_by_their_names(column: str, value: Any, text: str, converted: float) -> None:
    row = {"step": 1, column: value}
    readings = read_columns(log(row), parse_map(()))
    assert f"{column} -> {text}" in texts(readings)
    (loss,) = [reading for reading in readings if reading.meaning in ("val_loss", "train_loss")]
    assert loss.value(row) == converted


@pytest.mark.parametrize(
    ("column", "value", "text", "converted"),
    [
        ("acc_val", 0.5, "val_accuracy: share", 0.5),
        ("val_acc", 50.0, "val_accuracy: percent, divided by 100", 0.5),
        ("val_acc (%)", 0.5, "val_accuracy: percent, divided by 100", 0.005),
        ("val_acc_pct", 0.5, "val_accuracy: percent, divided by 100", 0.005),
        ("time (min)", 2.0, "elapsed_s: minutes, times 60", 120.0),
        ("wall_time_hours", 2.0, "elapsed_s: hours, times 3600", 7200.0),
        ("train_time_ms", 1500, "elapsed_s: milliseconds, divided by 1000", 1.5),
        ("_runtime", 1.5, "elapsed_s: seconds", 1.5),
        ("minutes", 2, "elapsed_s: minutes, times 60", 120.0),
        ("tokens_seen", 4096, "tokens: tokens", 4096),
        ("tok_per_sec", 10.5, "tokens_per_s", 10.5),
    ],
)
def test_units_by_names_and_values(column: str, value: Any, text: str, converted: float) -> None:
    row = {"step": 1, "val_loss": 3.0, column: value}
    readings = read_columns(log(row), parse_map(()))
    assert f"{column} -> {text}" in texts(readings)
    assert next(reading for reading in readings if reading.column == column).value(row) == converted


def test_a_minimum_is_no_loss_in_minutes() -> None:
    readings = read_columns(log({"step": 1, "val_loss": 3.0, "val_loss_min": 2.0}), parse_map(()))
    assert [reading.column for reading in readings] == ["step", "val_loss"]


def test_a_logged_step_beats_the_count_of_calls() -> None:
    readings = read_columns(log({"_step": 7, "global_step": 100, "val_loss": 3.0}), parse_map(()))
    assert readings[0].column == "global_step"


def test_a_duration_without_a_unit_is_left_out_with_the_remedy() -> None:
    found = log({"step": 1, "val_loss": 3.0, "elapsed": 1.5})
    assert [reading.column for reading in read_columns(found, parse_map(()))] == ["step", "val_loss"]
    assert found.notes == ["elapsed is left out, as it does not say its unit: --map elapsed_s=elapsed:minutes"]
    mapped = read_columns(log({"step": 1, "val_loss": 3.0, "elapsed": 1.5}), parse_map(["elapsed_s=elapsed:hours"]))
    assert "elapsed -> elapsed_s: hours, times 3600" in texts(mapped)


def test_columns_of_one_meaning_must_agree() -> None:
    alike = {"step": 1, "val_loss": 3.0, "eval_loss": 3.0}
    assert [reading.column for reading in read_columns(log(alike), parse_map(()))] == ["step", "val_loss"]
    unlike = {"step": 1, "val_loss": 3.0, "eval_loss": 2.0}
    with pytest.raises(
        UnreadableLog, match=r"val_loss and eval_loss may each be the val_loss; .*--map val_loss=val_loss"
    ):
        read_columns(log(unlike), parse_map(()))
    assert read_columns(log(unlike), parse_map(["val_loss=eval_loss"]))[0].column == "eval_loss"


def test_map_names_what_no_name_tells() -> None:
    row = {"it": 4, "metric_a": 2.0, "acc": 50, "wd": 0.1}
    asked = parse_map(["step=it,val_loss=metric_a:bits", "val_accuracy=acc:percent,config.weight_decay=wd"])
    assert texts(read_columns(log(row), asked)) == [
        "acc -> val_accuracy: percent, divided by 100",
        "it -> step",
        "metric_a -> val_loss: bits, times ln 2",
        "wd -> config.weight_decay",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_loss", "is no MEANING=COLUMN"),
        ("vall_loss=a", r"knows no 'vall_loss' \(did you mean 'val_loss'\?\)"),
        ("step=a,step=b", "gives step twice"),
        ("bytes_per_token=x", "no number above 0"),
        ("config.=x", "knows no 'config.'"),
    ],
)
def test_what_is_no_map(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_map([text])


@pytest.mark.parametrize(
    ("row", "asked", "message"),
    [
        (
            {"epoch": 1, "val_loss": 3.0},
            "",
            r"no column that counts steps among epoch, val_loss; name it with --map step=",
        ),
        ({"step": 1, "metric_a": 3.0}, "", r"no loss among step, metric_a; name it with --map val_loss=COLUMN"),
        ({"step": 1, "val_loss": 3.0}, "val_loss=vall_loss", r"no column 'vall_loss' \(did you mean 'val_loss'\?\)"),
        (
            {"step": 1, "val_loss": 3.0, "t": 1},
            "elapsed_s=t",
            r"t does not say its unit; give it as in --map elapsed_s=t:",
        ),
    ],
)
def test_what_is_refused_says_what_to_do(row: dict[str, Any], asked: str, message: str) -> None:
    with pytest.raises(UnreadableLog, match=message):
        read_columns(log(row), parse_map([asked]))
