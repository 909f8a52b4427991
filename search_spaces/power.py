"""Which differences to the baseline a sweep's seeds can resolve, for each kind of arm apart.

What two runs of one seed differ by depends on what differs between them: noise in Muon's momentum moves a small model's
loss by 0.0002 to 0.0038 nats, another optimizer by ten to a hundred times that. So the standard deviation is that of
pairs of such arms in the results store, of runs like those planned, and where there are none it is assumed, and said
to be. A kind is an optimizer.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, Protocol

from muon_core.config.base import canonical_json
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import RunConfig
from search_spaces.expand import PlannedRun
from search_spaces.spec import SweepSpec
from search_spaces.student_t import detectable_shift, t_quantile

# Standard deviation between seeds of a paired difference in final val_loss, nats per token, where none was measured.
_NOISE_SD = (0.0038, "assumed: the largest of noise arms against muon, tiny preset, which had 0.0002 to 0.0038")
_TINY_SD = (0.029, "assumed: that of muon against adamw, tiny preset on English prose, 200 steps, 8 seeds")
_LARGE_SD = (0.0131, "assumed: that of muon against adamw, 88 M parameters, 1.7 B tokens, 3 seeds")
_LIKE = ("model", "data", "steps", "batch_size", "schedule", "precision")
"""What runs of one setting share."""
_ALIKE = ("model", "data", "batch_size")
"""The same of those that are taken where there are none."""


@dataclass(frozen=True, slots=True)
class Power:
    """Which paired difference to the baseline the seeds can resolve, in units of the primary metric.

    Verdicts are adjusted for the number of arms compared, m (Holm), which asks an arm for p < 0.05 / m at worst.
    `resolvable` is t(1 - 0.025 / m, n - 1) sd / sqrt(n): the smallest measured difference that is then resolved
    whatever the other arms show. `detectable` is the true difference for which that happens 4 times in 5. Both are
    None for one seed, where nothing is compared, and where no sd is known.
    """

    kind: str
    """Optimizer of the arms; empty for all arms together."""
    arms: int
    """Of this kind."""
    seeds: int
    comparisons: int
    """Arms compared with the baseline, of all kinds; one that two blocks contain is one."""
    sd: float | None
    """Standard deviation, between seeds, of an arm's difference to the baseline at the same seed."""
    sd_source: str
    resolvable: float | None
    detectable: float | None


class Past(Protocol):
    """How a run ended, and what it was."""

    @property
    def status(self) -> str: ...
    @property
    def config_json(self) -> str | None: ...
    @property
    def final_val_loss(self) -> float | None: ...
    @property
    def final_val_accuracy(self) -> float | None: ...


class Result(NamedTuple):
    """A run that is done, for pairs: what it shares with others, and its values."""

    config: dict[str, Any]
    optimizer: str
    """Its optimizer with all parameters, as one text."""
    seed: int
    values: dict[str, float | None]
    """By primary metric."""


def results(ends: Iterable[Past]) -> list[Result]:
    """Those of `ends` that are done and tell their config."""
    found = []
    for end in ends:
        config = json.loads(end.config_json) if end.status == "done" and end.config_json else {}
        if isinstance(config.get("seed"), int) and "name" in config.get("optimizer", {}):
            values = {"val_loss": end.final_val_loss, "val_accuracy": end.final_val_accuracy}
            found.append(Result(config, canonical_json(config["optimizer"]), config["seed"], values))
    return found


def powers(
    spec: SweepSpec, arms: Sequence[PlannedRun], past: Sequence[Result] = (), sd: float | None = None
) -> tuple[Power, ...]:
    """What the seeds of `spec` can resolve: one for each kind of arm, or one for all where `sd` is given.

    Args:
        arms: a run of each arm, that of the baseline among them.
    Raises: ValueError for an `sd` that is not positive and finite.
    """
    if sd is not None and not 0 < sd < math.inf:
        raise ValueError(f"the standard deviation between seeds must be positive and finite, got {sd}")
    seeds, comparisons = len(spec.seeds), len(arms) - 1
    if sd is not None or not comparisons:
        return (power(seeds, comparisons, sd, "given"),)
    base = next(run for run in arms if "baseline" in dict(run.members).values())
    kinds = Counter(run.config.optimizer.name for run in arms if run is not base)
    found = []
    for kind, count in kinds.items():
        known = _measured(spec, kind, base.config, past) or _assumed(spec, kind, base.config.optimizer.name)
        found.append(power(seeds, comparisons, *known, kind=kind, arms=count))
    return tuple(found)


def power(
    seeds: int, comparisons: int, sd: float | None, source: str, *, kind: str = "", arms: int | None = None
) -> Power:
    """What so many seeds can resolve when so many arms are compared with the baseline; `arms` of them of this kind."""
    own = comparisons if arms is None else arms
    if sd is None or seeds == 1 or not comparisons:
        return Power(kind, own, seeds, comparisons, sd, source, None, None)
    critical, scale = t_quantile(0.025 / comparisons, seeds - 1), sd / seeds**0.5
    detectable = detectable_shift(critical, seeds - 1, 0.8) * scale
    return Power(kind, own, seeds, comparisons, sd, source, critical * scale, detectable)


def _measured(spec: SweepSpec, kind: str, base: RunConfig, past: Sequence[Result]) -> tuple[float, str] | None:
    """Pooled over the pairs of arms of `kind` and of the baseline's optimizer, in runs like it; None without any."""
    config = base.model_dump(mode="json")
    for shared, which in ((_LIKE, "of this setting"), (_ALIKE, "of this model")):
        like = [result for result in past if _setting(result.config, shared) == _setting(config, shared)]
        spread = _spread(spec.metrics.primary, kind, base.optimizer.name, like)
        if spread and spread[0]:
            sd, pairs = spread
            return sd, f"measured: {pairs} pairs of {kind} and {base.optimizer.name} {which} in the store"
    return None


def _spread(primary: str, kind: str, baseline: str, past: Sequence[Result]) -> tuple[float, int] | None:
    """Standard deviation of paired differences about the mean of their two arms, and how many pairs there are."""
    arms: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in past:
        value = result.values[primary]
        if value is not None and math.isfinite(value):
            setting = _setting(result.config, _LIKE)
            arms[setting][result.optimizer][result.seed] = value
    squares, degrees, pairs = 0.0, 0, 0
    for together in arms.values():
        for own, base in _couples(together, kind, baseline):
            differences = [own[seed] - base[seed] for seed in own.keys() & base.keys()]
            if len(differences) > 1:
                mean = fmean(differences)
                squares += sum((difference - mean) ** 2 for difference in differences)
                degrees += len(differences) - 1
                pairs += len(differences)
    return (math.sqrt(squares / degrees), pairs) if degrees else None


def _couples(
    arms: Mapping[str, Mapping[int, float]], kind: str, baseline: str
) -> Iterator[tuple[Mapping[int, float], Mapping[int, float]]]:
    """Arms of `kind` beside those of the baseline's optimizer; two of one optimizer once."""
    names = {text: json.loads(text)["name"] for text in arms}
    for text, own in arms.items():
        for other, base in arms.items():
            if names[text] == kind and names[other] == baseline and (kind != baseline or text < other):
                yield own, base


def _setting(config: Mapping[str, Any], fields: Sequence[str]) -> str:
    data = {name: value for name, value in config.get("data", {}).items() if name != "corpus" or value == "stdlib"}
    return canonical_json({name: data if name == "data" else config.get(name) for name in fields})


def _assumed(spec: SweepSpec, kind: str, baseline: str) -> tuple[float | None, str]:
    if spec.metrics.primary != "val_loss":
        return None, f"none known for {spec.metrics.primary}; give one with --sd"
    if _is_near_muon(kind) and _is_near_muon(baseline) and kind != baseline:
        return _NOISE_SD
    return _TINY_SD if spec.preset == "tiny" else _LARGE_SD


def _is_near_muon(optimizer: str) -> bool:
    """Whether it is Muon, or Muon with noise."""
    config = OPTIMIZERS.get(optimizer)
    return optimizer == "muon" or (config is not None and "alpha" in config.model_fields)
