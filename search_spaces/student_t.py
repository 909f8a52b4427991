"""Student's t for whole degrees of freedom, from sums in closed form: scipy takes longer to load than a plan to make.

Source: Abramowitz & Stegun 1964, 26.4.4-5 (chi-square), 26.7.3-4 (t); the noncentral t is a normal variable over a chi.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_REACH = 9.0  # standard deviations of a normal variable that are counted


def t_quantile(upper: float, degrees: int) -> float:
    """The value that t exceeds with probability `upper`, below 0.5."""
    return _root(lambda t: _t_upper(t, degrees) - upper)


def detectable_shift(critical: float, degrees: int, power: float) -> float:
    """The noncentrality with which t exceeds `critical` with probability `power`."""
    return _root(lambda shift: _below(critical, degrees, shift) - (1 - power))


def _root(falling: Callable[[float], float]) -> float:
    """Where a function of positive numbers that starts above 0 and falls passes it."""
    low, high = 0.0, 1.0
    while falling(high) > 0:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-10 * high:
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return high


def _t_upper(t: float, degrees: int) -> float:
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 - within) / 2


def _below(t: float, degrees: int, shift: float) -> float:
    """P((Z + shift) / sqrt(V / degrees) <= t) for normal Z and chi-square V: over Z, the share of V large enough."""
    start = max(-shift, -_REACH)
    steps = 120 + 4 * degrees  # of Simpson's rule: the share of V is the steeper, the more degrees there are
    width = (_REACH - start) / steps
    total = 0.0
    for step in range(steps + 1):
        z = start + step * width
        weight = 1 if step in (0, steps) else 4 if step % 2 else 2
        total += weight * math.exp(-z * z / 2) * _chi2_upper(degrees * ((z + shift) / t) ** 2, degrees)
    return math.erfc(-start / math.sqrt(2)) / 2 + total * width / 3 / math.sqrt(2 * math.pi)


def _chi2_upper(x: float, degrees: int) -> float:
    odd = degrees % 2
    term = math.exp(-x / 2) * (math.sqrt(2 * x / math.pi) if odd else 1.0)
    total = math.erfc(math.sqrt(x / 2)) if odd else 0.0
    for power in range(2 + odd, degrees + 2, 2):
        total += term
        term *= x / power
    return total
