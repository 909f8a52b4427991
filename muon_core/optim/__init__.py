"""`Muon`, for training scripts of one's own; who does not ask for it does not pay for torch's import."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muon_core.optim.muon import Muon as Muon


def __getattr__(name: str) -> Any:
    if name != "Muon":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from muon_core.optim.muon import Muon

    return Muon
