"""`x (W + scale * map(omega * B A))^T` as one product with the input; nothing of W's size is saved for backward.

The update is computed by blocks of rows, added to W ("folded" into it), used and freed; backward recomputes it.
With T rows of input the matmul FLOPs of forward and backward are 6 T out in against the frozen layer's 4: a factor 1.5
(method of Stable Forgetting, arXiv 2509.24166; the cost is our own count). On a GPU `_kernels` does the same if Triton
is installed; this file is the reference implementation that it is tested against.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.nn.functional import linear

from expunge.adapters._maps import MAPS, Form, width

if TYPE_CHECKING:
    from jaxtyping import Float

Start = tuple[Tensor, Tensor]
"""The initial A and B, where their update is subtracted so that it starts at 0."""

BLOCK = 1 << 20
"""Entries of a block of the update on a CPU (4 MB in float32); on other devices a block is the whole matrix."""

KERNELS = True
"""Whether the Triton kernels are used where they can be."""

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Types of weight and input that the kernels support; the factors are float32."""


def bounded_linear(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    form: Form,
    start: Start | None = None,
) -> Float[Tensor, "*rows out"]:
    """The adapted layer's output. Gradients reach x, a and b; the weight, the bias and the start are frozen.

    The update of `start`, the initial factors, is subtracted: with `a` and `b` equal to them the output is that of W,
    to the bit. Under autocast the product has its type, as that of a plain linear layer; W + update is rounded to it
    once, after the sum.
    """
    output: Tensor = _Folded.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, a, b, form, *(start or (None, None))
    )
    return output


def autocast_type(weight: Tensor) -> torch.dtype | None:
    """The type that autocast computes the product with a weight in; None where it is off or leaves the weight alone."""
    device = weight.device.type
    applies = weight.dtype != torch.float64 and torch.amp.is_autocast_available(device)
    return torch.get_autocast_dtype(device) if applies and torch.is_autocast_enabled(device) else None


def literally(device: str) -> AbstractContextManager[None]:
    """Every product in the types that it is given, also where `backward` is called under autocast."""
    in_force = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if in_force else nullcontext()


def fold(
    weight: Tensor, a: Tensor, b: Tensor, form: Form, start: Start | None = None, into: torch.dtype | None = None
) -> Tensor:
    """`W + update`, in W's precision or that of `into`."""
    delta = form.delta(a, b)
    if start is not None:
        delta.sub_(form.delta(*start))
    return delta.add_(weight).to(into or weight.dtype)


def kernels(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, form: Form) -> ModuleType | None:
    """The Triton kernels where they support these tensors; else None."""
    # torch.compile fuses this file's code by itself; under autocast output and input have different types.
    if not (KERNELS and weight.is_cuda) or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
        return None
    # Sharded, traced and wrapped tensors answer to `is_cuda` too.
    plain = all(type(t) in (Tensor, Parameter) and t.device == weight.device for t in (x, weight, a, b))
    types = weight.dtype in DTYPES and x.dtype == weight.dtype and a.dtype == b.dtype == torch.float32
    return _try_kernels(weight.device, weight.dtype, form.map, len(a)) if plain and types else None


@cache
def _try_kernels(device: torch.device, dtype: torch.dtype, map: str, rank: int) -> ModuleType | None:
    """The kernels, if they are installed and agree with the formula on this device."""
    if find_spec("triton") is None:
        return None
    try:
        # Imported here, so that a run without a GPU does not need Triton.
        from expunge.adapters import _kernels as found

        fault = found.fault(device, dtype, map, rank)
    except Exception as failure:  # compiler, driver and toolchain can fail in any way
        fault = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    if not fault:
        return found
    warnings.warn(
        f"The bounded adapter does not use its Triton kernels on {device} and is slower there: {fault}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _by(kernels: ModuleType, weight: Tensor, a: Tensor, b: Tensor, form: Form, start: Start | None) -> Tensor:
    """`W + update` by the kernels; without them where there is a start, which they do not support."""
    return fold(weight, a, b, form, start) if start else kernels.fold(weight, a, b, form)


def _blocks(weight: Tensor) -> Iterator[slice]:
    out, width = weight.shape
    step = out if weight.device.type != "cpu" else max(1, BLOCK // width)
    for start in range(0, out, step):
        yield slice(start, min(out, start + step))


def _rows(start: Start | None, rows: slice) -> Start | None:
    return None if start is None else (start[0], start[1][rows])


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        form: Form,
        start_a: Tensor | None,
        start_b: Tensor | None,
    ) -> Tensor:
        start = None if start_a is None or start_b is None else (start_a, start_b)
        ctx.save_for_backward(x, weight, a, b, *(start or ()))
        cast = autocast_type(weight)
        ctx.form, ctx.kernels, ctx.precision = form, kernels(x, weight, a, b, form), cast or weight.dtype
        if ctx.kernels is not None:
            return linear(x, _by(ctx.kernels, weight, a, b, form, start), bias)
        if cast is not None:
            x, bias = x.to(cast), None if bias is None else bias.to(cast)
        with literally(weight.device.type):
            parts = [
                linear(x, _fold_rows(ctx, weight, a, b, start, rows), None if bias is None else bias[rows])
                for rows in _blocks(weight)
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, *began = ctx.saved_tensors
        start = tuple(began) or None
        form: Form = ctx.form
        # Under autocast all three types may differ; otherwise nothing is converted.
        flat_x, flat_dy = (t.reshape(-1, t.shape[-1]).to(ctx.precision) for t in (x, dy))
        dx: Tensor | None = None
        if ctx.kernels is not None:
            if ctx.needs_input_grad[0]:
                dx = (flat_dy @ _by(ctx.kernels, weight, a, b, form, start)).view_as(x)
            da, db = ctx.kernels.factor_gradients(flat_dy, flat_x, a, b, form)
            return dx, None, None, da, db, None, None, None
        wide = width(b)
        da, db = torch.zeros_like(a, dtype=wide), torch.empty_like(b, dtype=wide)
        with literally(weight.device.type):
            for rows in _blocks(weight):
                if ctx.needs_input_grad[0]:
                    part = flat_dy[:, rows] @ _fold_rows(ctx, weight, a, b, start, rows)
                    dx = part if dx is None else dx.to(wide).add_(part)  # a sum of many loses digits in bfloat16
                slope = MAPS[form.map].slope(form.phase(a, b[rows])).mul_(form.scale * form.omega)
                # d loss / d (B A) = scale * omega * slope(phase) * (dY^T X), entry by entry
                slope.mul_(flat_dy[:, rows].T @ flat_x)
                torch.mm(slope, a.to(wide).T, out=db[rows])
                torch.addmm(da, b[rows].to(wide).T, slope, out=da)
        dx = dx if dx is None else dx.to(x.dtype).view_as(x)
        return dx, None, None, da.to(a.dtype), db.to(b.dtype), None, None, None


def _fold_rows(ctx: Any, weight: Tensor, a: Tensor, b: Tensor, start: Start | None, rows: slice) -> Tensor:
    """Some rows of `W + update`, in the product's precision."""
    return fold(weight[rows], a, b[rows], ctx.form, _rows(start, rows), ctx.precision)
