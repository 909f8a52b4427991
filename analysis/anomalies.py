"""What stands out in the runs of a sweep: regions of layers and steps, with what is normal there, ranked in one list.

`analysis.departures` says what each kind of anomaly is and how it is scored, `analysis.regions` how cells become
regions. A region is a reason to look, no verdict: a warm restart is a sudden shift, and a first layer may well be
unlike the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from analysis import departures
from analysis.departures import MATES, METRICS, MIN_LAYERS, PEAKS, SEEDS, SIBLINGS, SIDE, series
from analysis.regions import regions
from analysis.store import Store
from analysis.summary import members_of

PERSISTS = 3
"""Tracked steps in a row that a level must stand out, all but spikes and shifts: one alone is noise, or a spike."""
_MOMENTARY = ("sudden shift", "spike", "not finite", "runaway momentum")
_NORMS = tuple(dict.fromkeys(column for norm in PEAKS for column in (norm, f"{norm}_peak")))
_LAYERS = tuple(dict.fromkeys((*METRICS, *_NORMS)))
_HEALTH = ("cos_previous_update", "gradient_agreement", "sigma_max", "num_divergent", "num_nonfinite")
_NAMED = 3  # runs in a note


@dataclass(frozen=True, slots=True)
class Anomalies:
    """What stands out in a sweep."""

    regions: pl.DataFrame
    """As `find` gives them."""
    notes: tuple[str, ...]
    """What was not looked at, or not looked for, and why: a sentence each."""
    runs: int
    """Of those that were looked at."""
    matrices: int
    """Hidden matrices of all of them together."""
    steps: int
    """Tracked steps, of the run that has most."""


def anomalies(view: Store) -> Anomalies:
    """What stands out in a sweep's view, `open_store(path).sweep(name)`. Raises ValueError for a view of no sweep."""
    members = members_of(view).unique("run_id", maintain_order=True)
    who = members.select("run_id", "block", "arm", "seed")
    once = who.lazy().select("run_id", "block")  # a run in two blocks has its rows in each
    layers, health = (table.join(once, on=["run_id", "block"]) for table in (view.layers, view.table("health")))
    sizes = layers.group_by("run_id").agg(
        steps=pl.col("step").n_unique(),
        layers=pl.col("layer").n_unique(),
        matrices=pl.struct("layer", "projection").n_unique(),
    )
    with_health = health.select("run_id").unique().collect()["run_id"]
    seen = members.select("run_id", "arm", "status").join(
        sizes.collect(), on="run_id", how="left", maintain_order="left"
    )
    seen = seen.with_columns(health=pl.col("run_id").is_in(with_health.implode()))
    looked = seen.drop_nulls("steps")
    return Anomalies(
        regions=find(layers, health, who.lazy()),
        notes=tuple(_notes(seen, looked)),
        runs=looked.height,
        matrices=int(looked["matrices"].sum()),
        steps=looked["steps"].max() or 0,  # type: ignore[arg-type]
    )


def find(layers: pl.LazyFrame, health: pl.LazyFrame, who: pl.LazyFrame) -> pl.DataFrame:
    """One row a region that stands out, the largest score first.

    Args:
        layers, health: rows of these tables, each once.
        who: `run_id`, `arm`, `seed` of the runs to look at.
    Returns: `score`, `kind`, `run_id`, `arm`, `seed`, `metric`, `projection`, `layer_from`, `layer_to`, `step_from`,
        `step_to`, `matrices` (layers of the projection) and `cells` (a layer at a tracked step) of the region, and of
        its worst cell `layer`, `step`, `value` and what is `normal` there.
    """
    runs = who.select("run_id", "arm", "seed").collect().with_row_index("run")
    hits, seeds = [pl.DataFrame(schema=departures.HIT)], _Seeds()
    # Nothing but what is usual between seeds is compared across projections, and one at a time takes less memory.
    for states in _by_projection(health, _HEALTH, runs):
        hits += [departures.frozen(states), departures.runaways(states)]
    for cells in _by_projection(layers, (*_LAYERS, "ill_posed"), runs):
        hits += _hits(cells, seeds)
    hits += seeds.hits()
    least = pl.when(pl.col("kind").is_in(_MOMENTARY)).then(1).otherwise(PERSISTS)
    found = regions(pl.concat(hits), least).join(runs, on="run", how="left", maintain_order="left")
    first = ["score", "kind", "run_id", "arm", "seed", "metric", "projection"]
    return found.select(*first, pl.exclude(*first, "run"))


class _Seeds:
    """How far seeds of an arm are apart: what is usual is known when all cells were seen, and few may be hits then."""

    def __init__(self) -> None:
        self._farthest: dict[str, list[pl.Series]] = {metric: [] for metric in METRICS}
        self._far: dict[str, list[pl.DataFrame]] = {metric: [] for metric in METRICS}

    def see(self, metric: str, rows: pl.DataFrame) -> None:
        """Note the cells of one projection."""
        rows = departures.apart(rows)
        self._farthest[metric].append(rows["farthest"])
        self._far[metric].append(rows.filter(pl.col("off") >= SEEDS * (1 - 1e-12)))

    def hits(self) -> Iterator[pl.DataFrame]:
        """Of all that was seen."""
        for metric, far in self._far.items():
            if far:
                usual = pl.concat(self._farthest[metric]).median()
                yield departures.disagreements(pl.concat(far), usual)  # type: ignore[arg-type]


def _hits(cells: pl.DataFrame, seeds: _Seeds) -> Iterator[pl.DataFrame]:
    """What stands out in the layers of one projection, but for disagreements, whose cells `seeds` is shown."""
    yield departures.not_finite(cells, _LAYERS)
    for norm in PEAKS:
        yield departures.spikes(cells, norm)
    yield departures.collapses(series(cells, "effective_rank"))
    for metric in METRICS:
        yield departures.shifts(series(cells, metric))
    ordered = cells.sort(MATES, maintain_order=True)
    for metric in METRICS:
        seeds.see(metric, series(ordered, metric))
    ordered = cells.sort(SIBLINGS, maintain_order=True)
    for metric in METRICS:
        yield departures.outlying_layers(series(ordered, metric))


def _by_projection(table: pl.LazyFrame, columns: Sequence[str], runs: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """`_cells` of each projection, with `columns`."""
    number = pl.col("run_id").cast(pl.Enum(runs["run_id"]), strict=False).to_physical().cast(pl.UInt64)
    rows = table.select(pl.col("projection").cast(pl.Categorical), "layer", "step", *columns, run=number)
    # As a stream: read whole, what is dropped or replaced would take as much memory again.
    read = rows.filter(pl.col("run").is_not_null()).collect(engine="streaming")
    for name in read["projection"].unique().cast(pl.String).sort():
        yield _cells(read.filter(pl.col("projection") == name), runs)


def _cells(rows: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """`rows` of one projection sorted by matrix and step, with arms, tracked steps and `departures.GROUPS` as numbers.

    All by arithmetic on numbers, for joins on names would take longer than all that is found by them.
    """
    num_layers, num_steps = (int(rows[name].max() or 0) + 1 for name in ("layer", "step"))  # type: ignore[arg-type]
    layer, step = pl.col("layer").cast(pl.UInt64), pl.col("step").cast(pl.UInt64)
    arms = runs.select("run", arm=pl.col("arm").rank("dense").cast(pl.UInt64))
    rows = rows.with_columns(matrix=pl.col("run") * num_layers + layer, arm=arms["arm"].gather(rows["run"]))
    rows = rows.with_columns(
        mates=(pl.col("arm") * num_layers + layer) * num_steps + step, siblings=pl.col("run") * num_steps + step
    )
    tracked = rows.select("run", "siblings").unique().sort("siblings")
    tracked = tracked.select("siblings", t=pl.int_range(pl.len(), dtype=pl.UInt32).over("run"))
    return rows.join(tracked, on="siblings").sort("matrix", "t")


def _notes(seen: pl.DataFrame, looked: pl.DataFrame) -> list[str]:
    """What could not be looked at or for."""
    is_planned, steps = pl.col("status") == "planned", pl.col("steps")
    told = {
        "not started": seen.filter(is_planned),
        "without rows in the layers table": seen.filter(~is_planned, steps.is_null()),
        f"with at most {2 * SIDE} tracked steps, too few for shifts": looked.filter(steps <= 2 * SIDE),
        f"with fewer than {MIN_LAYERS} layers, which were not compared": looked.filter(pl.col("layers") < MIN_LAYERS),
        "without rows in the health table, where frozen momenta show": looked.filter(~pl.col("health")),
    }
    notes = [_note(runs["run_id"].to_list(), what) for what, runs in told.items() if runs.height]
    if looked.height and looked["arm"].is_unique().all():
        notes.append("no arm has two tracked seeds, so none were compared")
    return notes


def _note(runs: list[str], what: str) -> str:
    more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''} {what}: {', '.join(runs[:_NAMED])}{more}"
