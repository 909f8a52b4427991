"""The terms on which runs are trained, on Ray and without: what whoever asks for them says beside their configs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from muon_core.config.run import DataConfig, RunConfig
from ray_jobs.admission import Admission
from ray_jobs.prices import Prices, load_prices
from ray_jobs.searching import Search
from search_spaces.early_stopping import EarlyStopping
from search_spaces.limits import Retries


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which runs are compared before their end, and how."""

    rule: EarlyStopping
    runs: Collection[str]
    """Their ids; the other runs of a sweep go to their end."""
    metric: str = "val_loss"
    """What they are compared by, and which way is better."""
    goal: Literal["min", "max"] = "min"


@dataclass(frozen=True, slots=True)
class Terms:
    """How runs are carried out; the default is to train what is not finished, whatever it costs."""

    sweep: str = ""
    """Its name, for who looks at the cluster."""
    again: Collection[str] = ()
    """Ids of runs to train from the first step although they are finished."""
    retries: Retries = field(default_factory=Retries)
    """How often a run is tried again, by what ended it."""
    prices: Prices = field(default_factory=load_prices)
    """What machines cost, for the ledger; by default the table of MUON_PRICES or ours."""
    admission: Admission = field(default_factory=Admission)
    """Which runs may start, and go on."""
    comparison: Comparison | None = None
    """Which runs end early for doing worse than others; None: none. Takes Ray."""
    tokens: Mapping[tuple[DataConfig, int], str] = field(default_factory=dict)
    """`data_hash` of what the store has for the nodes to train on, by data and vocabulary; they prepare the others."""
    search: Search | None = None
    """Chooses further runs when there is a place for them; None: there are no others."""

    def tokens_of(self, run: RunConfig) -> str | None:
        """`data_hash` of what the store has for `run`."""
        return self.tokens.get((run.data, run.model.vocab_size))

    @property
    def to_choose(self) -> int:
        """How many runs may still come, beside those that are given."""
        return self.search.left if self.search else 0
