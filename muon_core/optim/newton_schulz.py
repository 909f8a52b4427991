"""Newton-Schulz: orthogonalize matrices with products only; and the polar factor it aims at.

An odd polynomial of a matrix acts on its singular values alone: aX + b(XX')X + c(XX')^2 X maps each s to a s + b s^3 +
c s^5 and keeps both sides' singular vectors. Divided by its Frobenius norm a matrix has them all in [0, 1], and most of
them near 0, so the slope at zero decides how many steps it takes: QUINTIC is as steep as it can be without leaving the
range where it may be applied again, and pays with singular values that end between 0.7 and 1.2 and not at 1. Muon does
not mind, for what counts is that no direction stays small. Polar Express takes another polynomial at each step, the
best for the range that the ones before leave, and comes closer in as many; SIMPLE12 converges, in twelve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Chosen for a steep slope at zero, not for convergence. Source: https://kellerjordan.github.io/posts/muon/"""

_OPTIMAL = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
POLAR_EXPRESS_1: Coefficients = tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _OPTIMAL)
"""The paper's: for singular values from 0.001 on, each polynomial of s / 1.01, so that rounding beyond the range that
it is for does not explode. Source: Algorithm 1 and Appendix G of Amsel et al. 2025, arXiv 2505.16932"""

POLAR_EXPRESS_2: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""modded-nanogpt's, by the same method: of s / 1.02, each made for what that leaves, the last for s itself. Source: its
record of 2025-09-29"""

SIMPLE12: Coefficients = ((2.0, -1.5, 0.5),) * 12
"""1 is a fixed point with slope zero: converges to the polar factor. Source: modded-nanogpt, track 3"""

COEFFICIENTS: dict[str, Coefficients] = {
    "quintic": QUINTIC,
    "polar_express_1": POLAR_EXPRESS_1,
    "polar_express_2": POLAR_EXPRESS_2,
    "simple12": SIMPLE12,
}


def clamped(norm: Tensor) -> Tensor:
    """A zero matrix stays zero. Source: torch.optim.Muon"""
    return norm.clamp(min=1e-7)


def added(norm: Tensor) -> Tensor:
    """Source: github.com/KellerJordan/Muon"""
    return norm + 1e-7


def margin_1(norm: Tensor) -> Tensor:
    """Polar Express explodes beyond 1, where bf16 may round to. Source: arXiv 2505.16932"""
    return norm * 1.01 + 1e-7


def margin_2(norm: Tensor) -> Tensor:
    """The same with twice the margin. Source: modded-nanogpt since its record of 2025-09-29"""
    return norm * 1.02 + 1e-6


DIVISORS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamped": clamped, "added": added, "margin_1": margin_1, "margin_2": margin_2
}  # fmt: skip
"""What the Frobenius norm becomes before a matrix is divided by it."""


STRIP = 32
"""Columns of a strip: of 512 bf16 rows they fit the first cache."""
SLOW_BF16 = not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether PyTorch multiplies bf16 matrices number by number on this CPU, which has no AVX512, let alone bf16 units.

PyTorch asks oneDNN the same before every product, so that an instruction set below the machine's (`ONEDNN_MAX_CPU_ISA`)
counts here as it does there. Where oneDNN is turned off later (`torch.backends.mkldnn.enabled`), time is lost, no bit.
"""
ONE_BY_ONE = {torch.bfloat16}
"""What CPUs multiply matrix by matrix. A product of two matrices and one of two stacks are different kernels of oneDNN,
with other roundings, and the second is the slower one. The first is what torch.optim.Muon calls: its bits, in its time.
In fp32 BLAS gains from stacks, and has the same bits."""


def over_columns(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """`product(right)` of `(..., rows, cols)`, whose columns depend on that column of `right` alone.

    Number by number, PyTorch walks down the columns of a row-major matrix, and so through all of its memory: in strips
    that stay in the cache it is five times as fast at 512 x 2048. Every entry is the same sum in the same order; not so
    in oneDNN, whose kernels depend on the shape, and which needs no strips.
    """
    walks = SLOW_BF16 and right.dtype == torch.bfloat16 and right.device.type == "cpu" and right.is_contiguous()
    if not walks or right.size(-2) < 2 * STRIP:  # small ones fit, and may have another kernel
        return product(right)
    return torch.cat([product(strip.contiguous()) for strip in torch.split(right, STRIP, dim=-1)], dim=-1)


def fused_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """aX + b(XX')X + c(XX')^2 X of a matrix or a stack in multiply-adds, as torch.optim.Muon rounds it."""
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    gram = x @ x.mT
    polynomial = over_columns(lambda part: multiply_add(part, gram, part, beta=b, alpha=c), gram)
    return over_columns(lambda part: multiply_add(part, polynomial, part, beta=a), x)


def plain_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """The same in products and sums, as github.com/KellerJordan/Muon rounds it."""
    gram = x @ x.mT
    scaled = c * gram
    polynomial = b * gram + over_columns(lambda part: scaled @ part, gram)
    return a * x + over_columns(lambda part: polynomial @ part, x)


def squared_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """The same with c times a rounded (XX')^2, as github.com/vukrosic/muon-llm-research rounds it."""
    gram = x @ x.mT
    square = over_columns(lambda part: gram @ part, gram)
    polynomial = b * gram + c * square
    return a * x + over_columns(lambda part: polynomial @ part, x)


ITERATIONS: dict[str, Callable[[Tensor, float, float, float], Tensor]] = {
    "fused": fused_step, "plain": plain_step, "squared": squared_step
}  # fmt: skip


def iterations(
    x: Tensor,
    coefficients: Coefficients,
    dtype: torch.dtype,
    divisor: Callable[[Tensor], Tensor],
    iteration: Callable[[Tensor, float, float, float], Tensor],
) -> Tensor:
    """Newton-Schulz of a matrix or a stack that is not tall."""
    x = x.to(dtype, copy=True)
    x.div_(divisor(x.norm() if x.ndim == 2 else x.norm(dim=(-2, -1), keepdim=True)))
    for a, b, c in coefficients:
        x = iteration(x, a, b, c)
    return x


def newton_schulz(
    matrix: Tensor,
    coefficients: Coefficients = QUINTIC,
    *,
    dtype: torch.dtype = torch.bfloat16,
    divisor: Callable[[Tensor], Tensor] = clamped,
    iteration: Callable[[Tensor, float, float, float], Tensor] = fused_step,
    iterate: Callable[..., Tensor] = iterations,
) -> Tensor:
    """Push the singular values of `matrix` towards 1, keeping its singular vectors.

    Args:
        matrix: `(..., rows, cols)`, any float dtype. Never modified.
        coefficients: one `(a, b, c)` per iteration of `aX + b(XX')X + c(XX')^2 X`.
        dtype: of the arithmetic. bfloat16 gives the bits of `torch.optim.Muon`.
        divisor: from the Frobenius norm, what the matrix is divided by, so that no singular value exceeds 1.
        iterate: what computes; `Compiled(iterations)` is the same within rounding.
    Returns: same shape, in `dtype`. Singular values above 0.003 of the norm end in [0.68, 1.21] under QUINTIC, in
        [0.8702, 1.1236] under POLAR_EXPRESS_1, in [0.8588, 1.1412] under POLAR_EXPRESS_2 and at 1 under SIMPLE12. On a
        CPU a stack gives the bits of its matrices one by one: in bf16 because that is how they are multiplied, in fp32,
        which BLAS multiplies together, where rows and columns are multiples of 16. On CUDA, and in fp32 of other sizes,
        it is off by rounding.
    Raises: ValueError if `matrix` has fewer than 2 dimensions.
    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/
    """
    if matrix.ndim < 2:
        raise ValueError(f"newton_schulz needs a matrix, got shape {tuple(matrix.shape)}; use AdamW for vectors")
    stack = matrix.reshape(-1, *matrix.shape[-2:])
    tall = stack.size(-2) > stack.size(-1)
    stack = stack.mT if tall else stack  # iterate on the smaller Gram matrix
    compute = partial(iterate, coefficients=coefficients, dtype=dtype, divisor=divisor, iteration=iteration)
    alone = dtype in ONE_BY_ONE and stack.device.type == "cpu"
    x = _one_by_one(compute, stack) if alone else compute(stack)
    return (x.mT if tall else x).reshape(matrix.shape)


def _one_by_one(function: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
    """`function` of each matrix of `(k, rows, cols)`."""
    if len(stack) == 1:
        return function(stack[0]).unsqueeze(0)  # not copied
    return torch.stack([function(matrix) for matrix in stack]) if len(stack) else function(stack)


def polar_factor(matrix: Tensor) -> Tensor:
    """U V' of the singular value decomposition of `(..., rows, cols)`: what Newton-Schulz approximates.

    Decomposed in float64. Directions whose singular value is below float32's rounding of s_1, 1.2e-7 s_1, come from
    the rounding of the matrix itself and map to zero, as a zero matrix does; all others count in full. A matrix with a
    value that is not finite becomes NaN, where LAPACK would raise.

    Returns: same shape, float32, or float64 for a float64 matrix, of which s_1 eps max(rows, cols) is the rounding.
    """
    x = matrix.double()
    finite = x.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    wide = x.size(-2) < x.size(-1)
    x = (x.mT if wide else x).where(finite, 0)  # LAPACK is two to three times slower on row-major wide matrices
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    own = torch.finfo(x.dtype).eps * x.size(-2)
    rounding = s[..., :1] * (own if matrix.dtype == x.dtype else torch.finfo(torch.float32).eps)
    polar: Tensor = ((u * (s > rounding).to(s.dtype).unsqueeze(-2)) @ vh).where(finite, torch.nan)
    return (polar.mT if wide else polar).to(torch.promote_types(matrix.dtype, torch.float32))
