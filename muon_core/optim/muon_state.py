"""States of Muon as torch keeps them: what may be loaded into which optimizer, and what is refused before it is.

Torch's own loader matches parameters by their place, takes over whatever a group holds, and casts buffers to the dtype
of their parameter. So a state of another optimizer loads in silence, to fail or to go astray a step later, and a
momentum that is always fp32 comes back in bf16. Here all is looked at first, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Group = dict[str, Any]
TORCH_ONLY = ("ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
"""What groups of torch.optim.Muon hold and ours do not: here functions say it."""
_SHARED = ("lr", "weight_decay", "momentum", "nesterov")
BUFFER = "momentum_buffer"
_SAME_MODEL = "load it into an optimizer of the parameters it was saved from, in the same order"


def readable(saved: dict[str, Any], groups: Sequence[Group], torch_settings: Group, *, adapts: bool) -> dict[str, Any]:
    """`saved` as a Muon with these `groups` can take it up: a copy, without what only torch.optim.Muon has.

    Args:
        torch_settings: what torch.optim.Muon would hold of TORCH_ONLY if it stepped as this one; empty: it cannot.
        adapts: whether this one keeps more than a momentum.
    Raises: ValueError, in one line, for a state of another optimizer, of one that steps otherwise, or of another model.
    """
    if not {"state", "param_groups"} <= saved.keys():
        raise ValueError("state has no state and param_groups; load what state_dict() of an optimizer gave")
    theirs = saved["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in each] for each in (groups, theirs))
    if sizes != saved_sizes:
        raise ValueError(f"state has groups of {saved_sizes} parameters, this Muon of {sizes}; {_SAME_MODEL}")
    for group, their in zip(groups, theirs, strict=True):
        _check_group(their, torch_settings)
        names = their.get("param_names", group["param_names"])
        for name, saved_name in zip(group["param_names"], names, strict=True):
            if name != saved_name:
                raise ValueError(f"state has {saved_name} in the place of {name}; {_SAME_MODEL}")
    known = {key: name for key, name, _ in _keyed(theirs, groups)}
    if unknown := [key for key in saved["state"] if key not in known]:
        raise ValueError(f"state has a parameter {unknown[0]} that none of its groups lists; save it again")
    for key, name, param in _keyed(theirs, groups):
        _check_state(name, param, saved["state"].get(key, {}), adapts=adapts)
    taken = [
        {key: value for key, value in their.items() if key not in TORCH_ONLY}
        | {"step": their.get("step", group["step"]), "param_names": list(group["param_names"])}
        for group, their in zip(groups, theirs, strict=True)
    ]
    return {"state": saved["state"], "param_groups": taken}


def saved_state(saved: dict[str, Any], groups: Sequence[Group]) -> dict[nn.Parameter, dict[str, Tensor]]:
    """Copies of the state of each parameter in a readable state, fp32 as ours is, on the parameters' devices."""
    return {
        param: {name: value.to(param.device, torch.float32, copy=True) for name, value in saved["state"][key].items()}
        for key, _, param in _keyed(saved["param_groups"], groups)
        if saved["state"].get(key)
    }


def _keyed(saved: Sequence[Group], groups: Sequence[Group]) -> Iterator[tuple[Any, str, nn.Parameter]]:
    """(key in the saved state, name, parameter) by place, as torch matches them."""
    for their, group in zip(saved, groups, strict=True):
        yield from zip(their["params"], group["param_names"], group["params"], strict=True)


def _check_group(saved: Group, torch_settings: Group) -> None:
    from_torch = [key for key in TORCH_ONLY if key in saved]
    if not ("step" in saved or len(from_torch) == len(TORCH_ONLY)) or any(key not in saved for key in _SHARED):
        raise ValueError("state is neither of this Muon nor of torch.optim.Muon; load it into what saved it")
    if from_torch and not torch_settings:
        raise ValueError(
            "state is of a Muon that steps as torch.optim.Muon, and this one has other functions; build it without them"
        )
    for key in from_torch:
        value, own = saved[key], torch_settings[key]
        if (tuple(value) if isinstance(value, list) else value) not in (own, None if own == "original" else own):
            raise ValueError(
                f"state is of a torch.optim.Muon with {key}={value!r}, and this one steps with {own!r}; build it alike "
                "(adjust_lr_fn is its scale, the others its orthogonalize)"
            )


def _check_state(name: str, param: Tensor, saved: Any, *, adapts: bool) -> None:
    """A state is one momentum, and more where updates are adapted, or nothing before the first step."""
    if not saved:
        return
    if BUFFER not in saved or (len(saved) > 1) != adapts:
        kept = f"{BUFFER} and what updates are adapted by" if adapts else BUFFER
        raise ValueError(
            f"state of {name} is {', '.join(map(str, saved))}, and not {kept}; load a state of such a Muon"
        )
    if saved[BUFFER].shape != param.shape:
        raise ValueError(
            f"state of {name} has shape {tuple(saved[BUFFER].shape)}, its parameter {tuple(param.shape)}; {_SAME_MODEL}"
        )
