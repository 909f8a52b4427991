"""Published Muons by name: one row of conventions each. Plain data, so that planning a sweep loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Profile = Literal[
    "torch", "keller", "moonlight", "polar_express", "exact", "simple12", "modded_nanogpt", "muon_llm_research",
    "as_seed",
]  # fmt: skip
MomentumKind = Literal["ema", "sum"]
Normalization = Literal["clamped", "added", "margin_1", "margin_2"]
Products = Literal["fused", "plain", "squared"]
Orthogonalizer = Literal["quintic", "polar_express_1", "polar_express_2", "simple12", "svd"]
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


# profile           momentum Nesterov normalization orthogonalizer  products adjust          scale_on decay     dtype
_TABLE = """
torch             ema      yes      clamped       quintic         fused    original        lr       decoupled bf16
keller            ema      yes      added         quintic         plain    original        update   decoupled bf16
moonlight         sum      yes      added         quintic         plain    match_rms_adamw lr       decoupled bf16
polar_express     ema      yes      margin_1      polar_express_1 plain    original        lr       none      bf16
exact             ema      yes      clamped       svd             fused    original        lr       decoupled fp32
simple12          ema      yes      added         simple12        plain    original        update   decoupled bf16
modded_nanogpt    ema      yes      margin_2      polar_express_2 fused    original        lr       decoupled bf16
muon_llm_research ema      yes      margin_1      polar_express_2 squared  original        lr       none      bf16
as_seed           sum      no       clamped       svd             fused    none            lr       decoupled fp32
"""
PROFILES: dict[str, Conventions] = {}
"""Profile to its conventions."""
for _name, _kind, _nesterov, *_others in map(str.split, _TABLE.strip().splitlines()):
    PROFILES[_name] = Conventions(_kind, _nesterov == "yes", *_others)  # type: ignore[arg-type]  # checked by MuonConfig
REVISIONS: dict[str, str] = {
    "torch": "PyTorch 2.13.0 (cf30153c), `torch/optim/_muon.py`",
    "keller": "github.com/KellerJordan/Muon at 857d1adc, `muon.py`",
    "moonlight": "github.com/MoonshotAI/Moonlight at c2ad5b20, `examples/toy_train.py`",
    "polar_express": "arXiv 2505.16932 (29 September 2025), Algorithm 1; github.com/NoahAmsel/PolarExpress at 7f0fb573",
    "exact": "the polar factor itself",
    "simple12": "github.com/KellerJordan/modded-nanogpt at f411b3d3, `track_3_optimization`",
    "modded_nanogpt": "github.com/KellerJordan/modded-nanogpt at f411b3d3, `2025-09-29_PolarExpress`",
    "muon_llm_research": "github.com/vukrosic/muon-llm-research at 8bcc1aef, `optimizers/muon.py`",
    "as_seed": "the noise arms as first written, whose plain baseline it is",
}
"""Where each profile was read, and in which revision."""


def fill(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` of a Muon config with the conventions that are not given taken from its profile.

    An unknown profile fills in nothing: the config's own validation names the known ones.
    """
    profile = fields.get("profile", "as_seed" if fields.get("mode") == "as_seed" else "torch")
    known = asdict(PROFILES[profile]) if isinstance(profile, str) and profile in PROFILES else {}
    if fields.get("orthogonalizer") == "svd":
        known["ns_dtype"] = "fp32"  # it has no other, and one science must not have two names
    return {"profile": profile} | known | fields
