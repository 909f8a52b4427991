"""What machines cost: a dated table, ours or the user's (MUON_PRICES), and a run's share of it."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from muon_core.config.base import Config
from muon_core.store.ledger import Rate
from search_spaces.errors import SpecError
from search_spaces.explain import explain
from search_spaces.spec import Resources
from search_spaces.yaml_file import read_file

OURS = Path(__file__).with_name("prices.yaml")
LOCAL = "local"  # the type of a machine that says nothing else
_FIELDS = "a price table has date, source and nodes: `nodes: {g5.xlarge: {usd_per_hour: 1.006, gpus: 1}}`"


class NodePrice(Config):
    """A type of machine."""

    usd_per_hour: float = Field(ge=0)
    """On demand."""
    spot_usd_per_hour: float | None = Field(None, ge=0)
    """As spot; what it costs on demand, where it is not given."""
    gpus: int = Field(0, ge=0)
    """GPUs it has."""
    cpus: int | None = Field(None, gt=0)
    """CPUs it has; those of this machine, where it is not given."""
    date: str | None = None
    """When its price was looked up, where that is another day than the table's."""
    source: str | None = None
    """Where, if not where the table's were."""


class Prices(Config):
    """A price table."""

    date: str
    """When the prices were looked up."""
    source: str
    """Where."""
    nodes: dict[str, NodePrice]
    """By type of machine."""

    def rate(self, resources: Resources, node: str = LOCAL, *, spot: bool = False) -> Rate:
        """What a run that takes `resources` costs on machines of type `node`: its share of their GPUs, or CPUs.

        A local machine that the table does not list costs nothing; what another costs is unknown.
        """
        gpus = resources.workers * resources.gpus_per_worker
        if node not in self.nodes:
            if node == LOCAL:
                return Rate(gpus=gpus, workers=resources.workers)
            source = f"no price for {node!r}; add it to the table in MUON_PRICES"
            return Rate(node, None, source, self.date, spot, gpus, resources.workers)
        price = self.nodes[node]
        date = price.date or self.date
        if gpus and price.usd_per_hour and not price.gpus:
            source = f"{node!r} has no GPUs in the price table; add `gpus:` to it, or price another machine"
            return Rate(node, None, source, date, spot, gpus, resources.workers)
        asked, has = (gpus, price.gpus) if gpus else (resources.workers * resources.cpus_per_worker, price.cpus)
        share = asked / (has or os.cpu_count() or 1)
        usd = price.spot_usd_per_hour if spot and price.spot_usd_per_hour is not None else price.usd_per_hour
        source = (price.source or self.source) if usd or node != LOCAL else "local machines cost nothing"
        return Rate(node, usd * share, source, date, spot, gpus, resources.workers)

    def rate_here(self, resources: Resources) -> Rate:
        """What a run costs on machines like this one: MUON_NODE_TYPE is its type, MUON_NODE_SPOT=1 says it is spot."""
        spot = os.environ.get("MUON_NODE_SPOT", "") not in ("", "0")
        return self.rate(resources, os.environ.get("MUON_NODE_TYPE") or LOCAL, spot=spot)


def load_prices(path: str | None = None) -> Prices:
    """The table at `path`, by default that of MUON_PRICES, else ours. Raises SpecError for a bad one."""
    path = path or os.environ.get("MUON_PRICES") or str(OURS)
    source = read_file(path, fields=_FIELDS, missing="no such file; MUON_PRICES names a price table")
    try:
        return Prices.model_validate(_with_dates_as_text(source.data), strict=True)
    except ValidationError as error:
        lines = []
        for detail in error.errors(include_url=False):
            at = detail["loc"]
            lines.append(f"{path}:{source.line(at)}: {'.'.join(map(str, at))} {explain([detail])}; {_FIELDS}")
        raise SpecError(*lines) from error


def _with_dates_as_text(data: Any) -> Any:
    """YAML takes a plain 2026-01-31 for a date."""
    if isinstance(data, dict):
        return {name: _with_dates_as_text(value) for name, value in data.items()}
    return data.isoformat() if isinstance(data, datetime.date) else data
