"""Published Muons by name: one row of conventions each. Plain data, so that planning a sweep loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Profile = Literal["torch", "keller", "moonlight", "polar_express", "exact", "simple12", "as_seed"]
MomentumKind = Literal["ema", "sum"]
Normalization = Literal["clamped", "added", "margin_1", "margin_2"]
Products = Literal["fused", "plain"]
Orthogonalizer = Literal["quintic", "polar_express", "simple12", "svd"]
Adjust = Literal["original", "match_rms_adamw", "none"]
ScaleOn = Literal["lr", "update"]
Decay = Literal["decoupled", "none"]
Dtype = Literal["bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class Conventions:
    """The choices that published Muons differ in; each is also a field of MuonConfig, which documents it."""

    momentum_kind: MomentumKind
    nesterov: bool
    normalization: Normalization
    orthogonalizer: Orthogonalizer
    products: Products
    adjust: Adjust
    scale_on: ScaleOn
    decay: Decay
    ns_dtype: Dtype


# fmt: off
_ROWS: dict[str, tuple[Any, ...]] = {
    # momentum, Nesterov, normalization, orthogonalizer, products, adjust, scale on, decay, dtype
    "torch":         ("ema", True,  "clamped",  "quintic",       "fused", "original",        "lr", "decoupled", "bf16"),
    "keller":        ("ema", True,  "added",    "quintic",       "plain", "original",    "update", "decoupled", "bf16"),
    "moonlight":     ("sum", True,  "added",    "quintic",       "plain", "match_rms_adamw", "lr", "decoupled", "bf16"),
    "polar_express": ("ema", True,  "margin_1", "polar_express", "fused", "original",        "lr", "none", "bf16"),
    "exact":         ("ema", True,  "clamped",  "svd",           "fused", "original",        "lr", "decoupled", "fp32"),
    "simple12":      ("ema", True,  "added",    "simple12",      "plain", "original",        "lr", "decoupled", "bf16"),
    "as_seed":       ("sum", False, "clamped",  "svd",           "fused", "none",            "lr", "decoupled", "fp32"),
}
# fmt: on
PROFILES: dict[str, Conventions] = {name: Conventions(*row) for name, row in _ROWS.items()}
"""Sources, in this order: torch.optim.Muon of PyTorch 2.13; github.com/KellerJordan/Muon; arXiv 2502.16982; arXiv
2505.16932 with the safety margin of modded-nanogpt (`margin_2` is its later, wider one); the polar factor itself;
modded-nanogpt track 3; the noise arms as first written, whose plain baseline it is."""


def fill(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` of a Muon config with the conventions that are not given taken from its profile.

    An unknown profile fills in nothing: the config's own validation names the known ones.
    """
    profile = fields.get("profile", "as_seed" if fields.get("mode") == "as_seed" else "torch")
    known = asdict(PROFILES[profile]) if isinstance(profile, str) and profile in PROFILES else {}
    if fields.get("orthogonalizer") == "svd":
        known["ns_dtype"] = "fp32"  # it has no other, and one science must not have two names
    return {"profile": profile} | known | fields
