"""Both ways in which PyTorch multiplies bf16 matrices on CPUs, on whichever one the tests run.

Without oneDNN's products it goes number by number, and `newton_schulz` hands it strips of columns; with them, whole
matrices. A flag chooses between those, and oneDNN can be turned off, so that any machine walks both ways. What one
cannot have elsewhere is oneDNN's own roundings: `whole` means those where the machine has them.
"""

import pytest
import torch

from muon_core.optim import newton_schulz

SLOW_HERE = newton_schulz.SLOW_BF16
"""The kind of this machine."""
IDS = {True: "strips", False: "whole"}

both_kinds = pytest.mark.parametrize("slow_bf16", IDS, ids=IDS.values())
kind_of_this_machine = pytest.mark.parametrize("slow_bf16", [SLOW_HERE], ids=[IDS[SLOW_HERE]])


def set_kind(monkeypatch: pytest.MonkeyPatch, slow_bf16: bool, strip: int = newton_schulz.STRIP) -> None:
    """Let bf16 be multiplied as on a CPU of this kind, in strips of so many columns: in small ones, small matrices."""
    monkeypatch.setattr(newton_schulz, "SLOW_BF16", slow_bf16)
    monkeypatch.setattr(newton_schulz, "STRIP", strip)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", not slow_bf16)
