"""`x (W + scale * map(omega * B A))^T`, folded: one product with the input, and nothing of W's size kept for backward.

The update is made block of rows by block of rows, used, and dropped; backward makes it again. With T rows of input the
matmul FLOPs of forward and backward are 6 T out in against the frozen layer's 4: a factor 1.5 (method of Stable
Forgetting, arXiv 2509.24166; the cost is our own account).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from expunge.adapters.maps import MAPS, Form, width

if TYPE_CHECKING:
    from jaxtyping import Float

BLOCK = 1 << 20
"""Entries of the update that exist at one time on a CPU (4 MB in float32); elsewhere the whole matrix does."""


def bounded_linear(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    form: Form,
) -> Float[Tensor, "*rows out"]:
    """The adapted layer's output. Gradients reach x, a and b; the weight and the bias are frozen."""
    return _Folded.apply(x, weight, bias, a, b, form)


def folded(weight: Tensor, a: Tensor, b: Tensor, form: Form) -> Tensor:
    """`W + update`, in W's precision."""
    return form.delta(a, b).add_(weight).to(weight.dtype)


def _blocks(weight: Tensor) -> Iterator[slice]:
    out, width = weight.shape
    step = out if weight.device.type != "cpu" else max(1, BLOCK // width)
    for start in range(0, out, step):
        yield slice(start, min(out, start + step))


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, form: Form) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.form = form
        parts = [
            linear(x, folded(weight[rows], a, b[rows], form), None if bias is None else bias[rows])
            for rows in _blocks(weight)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, weight, a, b = ctx.saved_tensors
        form: Form = ctx.form
        flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        dx = torch.zeros_like(flat_x) if ctx.needs_input_grad[0] else None
        wide = width(b)
        da, db = torch.zeros_like(a, dtype=wide), torch.empty_like(b, dtype=wide)
        for rows in _blocks(weight):
            if dx is not None:
                torch.addmm(dx, flat_dy[:, rows], folded(weight[rows], a, b[rows], form), out=dx)
            slope = MAPS[form.map].slope(form.phase(a, b[rows])).mul_(form.scale * form.omega)
            # d loss / d (B A) = scale * omega * slope(phase) * (dY^T X), entry by entry
            slope.mul_(flat_dy[:, rows].T @ flat_x)
            torch.mm(slope, a.to(wide).T, out=db[rows])
            torch.addmm(da, b[rows].to(wide).T, slope, out=da)
        return dx if dx is None else dx.view_as(x), None, None, da.to(a.dtype), db.to(b.dtype), None
