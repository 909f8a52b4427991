"""Which cell of a search to try next, asked of Optuna.

Nothing is remembered between two questions: the study is built anew from the results each time, and the numbers at
random follow from the sample's seed and how many cells there are. So the same results give the same cell, whoever asks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from search_spaces.blocks import Block
from search_spaces.cells import random_rows
from search_spaces.sampling import Row, Sample, read_distribution, rounded

AT_RANDOM = 5  # results before Optuna is asked: of 3 to 10 the best for 16 cells of one and two parameters
TRIES = 20  # suggestions that may be cells there are already, before one is drawn at random


class Told(NamedTuple):
    """A cell of a search and what is known of it."""

    row: Row
    value: float | None
    """Of the primary metric, infinite for a run that diverged; None while its run has not ended."""


def suggestions(block: Block, told: Sequence[Told], goal: Literal["min", "max"], number: int) -> Iterator[Row]:
    """Cells to try next, the most promising first, and in the end as many drawn at random as the search has cells.

    Optuna's TPE looks at the order of values alone, so an infinite one keeps it from where runs diverge. What has not
    ended counts as no good (its constant liar), which keeps runs that train at once apart.

    Args:
        told: without the runs that failed, of which nothing is known.
        number: how many cells were chosen before.
    """
    sample = block.sample
    assert sample
    if sum(each.value is not None for each in told) >= AT_RANDOM:
        yield from _suggested(sample, told, goal, number)
    yield from random_rows(block)


def _suggested(sample: Sample, told: Sequence[Told], goal: Literal["min", "max"], number: int) -> Iterator[Row]:
    import optuna  # which is not installed unless somebody searches
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: _Parameter(text) for name, text in sample.distributions.items()}
    distributions = {name: parameter.distribution for name, parameter in space.items()}
    seed = int.from_bytes(hashlib.sha256(f"{sample.seed} {number}".encode()).digest()[:4])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="minimize" if goal == "min" else "maximize", sampler=sampler)
    for row, value in told:
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
                value=value,
                params={name: parameter.told(row[name]) for name, parameter in space.items()},
                distributions=distributions,
            )
        )
    for _ in range(TRIES):
        params = study.ask(distributions).params
        yield {name: parameter.asked(params[name]) for name, parameter in space.items()}


class _Parameter:
    """One parameter as Optuna has it: of several values it knows their numbers, for they may be lists."""

    def __init__(self, text: str) -> None:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        self._kind, self._values = read_distribution(text)
        if self._kind == "choice":
            self.distribution: Any = CategoricalDistribution(range(len(self._values)))
        elif self._kind == "randint":
            self.distribution = IntDistribution(*self._values)
        else:
            low, high = self._values
            self.distribution = FloatDistribution(low, high, log=self._kind == "loguniform")

    def told(self, value: Any) -> Any:
        """What Optuna calls `value`."""
        return self._values.index(value) if self._kind == "choice" else value

    def asked(self, value: Any) -> Any:
        """What a cell has for what Optuna calls `value`."""
        if self._kind == "choice":
            return self._values[value]
        return value if self._kind == "randint" else rounded(value, *self._values)


def worst(goal: Literal["min", "max"]) -> float:
    """Worse than every value that a run can end with."""
    return math.inf if goal == "min" else -math.inf
