"""The price table: ours, the user's, what a run's share of it is, and what is said about a bad one."""

from pathlib import Path

import pytest

from ray_jobs.prices import OURS, load_prices
from search_spaces.errors import SpecError
from search_spaces.spec import Resources

TABLE = """
date: 2026-01-31
source: a quote
nodes:
  big: {usd_per_hour: 8, spot_usd_per_hour: 2, gpus: 4}
  small: {usd_per_hour: 1, cpus: 10}
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "prices.yaml"
    path.write_text(TABLE)
    return str(path)


def test_a_run_is_charged_its_share_of_the_gpus_or_of_the_cpus(table: str) -> None:
    prices = load_prices(table)
    rate = prices.rate(Resources(workers=2, gpus_per_worker=1), "big")
    assert (rate.usd_per_hour, rate.gpus, rate.workers) == (4.0, 2.0, 2)
    assert (rate.source, rate.date, rate.spot) == ("a quote", "2026-01-31", False)
    assert prices.rate(Resources(workers=8, gpus_per_worker=1), "big").usd_per_hour == 16.0  # on two nodes
    assert prices.rate(Resources(gpus_per_worker=0.5), "big", spot=True).usd_per_hour == 0.25
    assert prices.rate(Resources(cpus_per_worker=2), "small").usd_per_hour == pytest.approx(0.2)


def test_a_local_machine_costs_nothing_and_says_so_unless_the_table_prices_it(table: str, tmp_path: Path) -> None:
    for prices in (load_prices(table), load_prices(str(OURS))):
        rate = prices.rate(Resources())
        assert (rate.usd_per_hour, rate.source) == (0.0, "local machines cost nothing")
    own = tmp_path / "own.yaml"
    own.write_text(TABLE + "  local: {usd_per_hour: 3, cpus: 3}\n")
    rate = load_prices(str(own)).rate(Resources())
    assert (rate.usd_per_hour, rate.source) == (1.0, "a quote")


def test_a_machine_without_gpus_has_no_price_for_a_run_that_takes_some(table: str) -> None:
    """Not its price by a number of CPUs."""
    rate = load_prices(table).rate(Resources(gpus_per_worker=1), "small")
    assert rate.usd_per_hour is None
    assert rate.source == "'small' has no GPUs in the price table; add `gpus:` to it, or price another machine"


def test_a_machine_may_have_a_date_and_a_source_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(TABLE + "  new: {usd_per_hour: 3, gpus: 1, date: 2026-03-01, source: a bill}\n")
    rate = load_prices(str(path)).rate(Resources(gpus_per_worker=1), "new")
    assert (rate.usd_per_hour, rate.source, rate.date) == (3.0, "a bill", "2026-03-01")
    ours = load_prices(str(OURS)).rate(Resources(gpus_per_worker=1), "p5.48xlarge")
    assert (ours.usd_per_hour, ours.date) == (6.88, "2025-11-30")


def test_a_machine_that_is_not_in_the_table_has_no_price_and_not_the_price_zero(table: str) -> None:
    rate = load_prices(table).rate(Resources(gpus_per_worker=1), "huge")
    assert rate.usd_per_hour is None
    assert "no price for 'huge'" in rate.source


def test_the_environment_names_the_table_and_the_type_of_machine(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUON_PRICES", table)
    monkeypatch.setenv("MUON_NODE_TYPE", "big")
    monkeypatch.setenv("MUON_NODE_SPOT", "1")
    rate = load_prices().rate_here(Resources(gpus_per_worker=1))
    assert (rate.node, rate.usd_per_hour, rate.spot) == ("big", 0.5, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: {a: {usd_per_hour: 1}}\n", "date"),
        ("date: 2026-01-01\nsource: x\nnodes: {a: {usd_per_hour: -1}}\n", r":3: nodes\.a\.usd_per_hour"),
        ("date: 2026-01-01\nsource: x\nnodes: {a: {price: 1}}\n", r":3: nodes\.a\.price"),
        ("date: 2026-01-01\nsource: x\nnodes: {a: 1}\n", r":3: nodes\.a "),
    ],
)
def test_a_bad_table_is_answered_with_line_and_form(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=said) as refused:
        load_prices(str(path))
    assert all("a price table has" in line for line in refused.value.lines)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="MUON_PRICES names a price table"):
        load_prices(str(tmp_path / "none.yaml"))
