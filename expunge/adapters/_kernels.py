"""The bounded adapter on a GPU: two Triton kernels that never write the phase, its map or its slope to memory.

    fold:             W + scale * map(omega * B A), in one pass over W
    factor_gradients: D = scale * omega * slope(omega * B A) .* (dY^T X);  dB = D A^T,  dA = B^T D

D has W's shape and is never written out: each tile of it is summed over the tokens in float32, multiplied by the slope
recomputed from A and B, and multiplied with A and B at once. The tiles write partial sums that torch adds up, so that
the same input gives the same bits, which atomics would not. The torch code in `_fold` is the reference for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from expunge.adapters._maps import MAPS, Form

if TYPE_CHECKING:
    from jaxtyping import Float

PARTIAL = 1 << 26
"""Most bytes of partial sums (64 MiB); a larger layer is computed in blocks of rows."""

SIDE = 64
"""Rows and columns of W that one program folds."""

RANKS = 16
"""Ranks in one product: the least that a tensor core supports."""


def fold(
    weight: Float[Tensor, "out in"], a: Float[Tensor, "r in"], b: Float[Tensor, "out r"], form: Form
) -> Float[Tensor, "out in"]:
    """`W + update`, in W's precision and memory layout."""
    out, width = weight.shape
    result = torch.empty_like(weight)
    with torch.cuda.device_of(weight):
        _fold_kernel[(triton.cdiv(out, SIDE) * triton.cdiv(width, SIDE),)](
            *(weight, a.contiguous(), b.contiguous(), result, out, width),
            *(*weight.stride(), *result.stride(), form.omega, form.scale),
            rank=len(a),
            map=form.map,
            ranks=RANKS,
            side=SIDE,
            small=_precision(weight.dtype)[1],
            num_warps=4,
            enable_fp_fusion=True,
        )
    return result


def factor_gradients(
    dy: Float[Tensor, "rows out"],
    x: Float[Tensor, "rows in"],
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    form: Form,
) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    """Gradients of A and B, from that of the layer's output."""
    (tokens, width), (out, rank) = x.shape, b.shape
    a, b = a.contiguous(), b.contiguous()
    precision, small = _precision(x.dtype)
    tile = _tile(x.dtype, precision, _shared_memory(x.device))
    across = triton.cdiv(width, tile.width)
    step = tile.out * max(1, PARTIAL // (4 * rank * (width + across * tile.out)))
    da, db = torch.zeros_like(a), torch.empty_like(b)
    for start in range(0, out, step):
        rows = slice(start, min(out, start + step))
        high = rows.stop - start
        down = triton.cdiv(high, tile.out)
        a_parts, b_parts = a.new_empty(down, rank, width), b.new_empty(across, high, rank)
        with torch.cuda.device_of(x):
            _gradient_kernel[(down * across,)](
                *(dy[:, rows], x, a, b[rows], a_parts, b_parts, high, width, tokens),
                *(*dy.stride(), *x.stride(), form.omega, form.scale * form.omega),
                rank=rank,
                map=form.map,
                ranks=RANKS,
                precision=precision,
                small=small,
                group=8,
                tile_out=tile.out,
                tile_in=tile.width,
                tile_tokens=tile.tokens,
                widen=INTERPRETED,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,
            )
        da += a_parts.sum(0)
        torch.sum(b_parts, 0, out=db[rows])
    return da, db


def fault(device: torch.device, dtype: torch.dtype, map: str, rank: int) -> str:
    """Why the kernels are not to be used on this device; empty where they may be."""
    if INTERPRETED:
        return "TRITON_INTERPRET is set, which runs them in Python"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "they need compute capability 8.0 or higher"
    error = disagreement(device, dtype, map, rank)
    # Rounding alone leaves up to 0.004, in bfloat16. Above 0.02, and for NaN, the answer is wrong.
    return "" if error < 0.02 else f"they are off by {error:.2g} for {map}, rank {rank}, {dtype}"


def disagreement(device: torch.device, dtype: torch.dtype, map: str, rank: int) -> float:
    """How far both kernels are from the formula in float64, on a small ragged layer: the largest relative error."""
    tokens, out, width = 80, 208, 176  # no multiples of a tile; multiples of 16, as a model's widths are
    form = Form(map, omega=50.0, scale=0.5)

    def noise(rows: int, cols: int, pace: float) -> Tensor:
        # Without a generator: this test must not change the run's random numbers.
        n = torch.arange(rows * cols, device=device, dtype=torch.float64)
        return (pace * n * n).sin().view(rows, cols)

    x, dy = noise(tokens, width, 0.7).to(dtype), noise(tokens, out, 1.3).to(dtype)
    weight = (noise(out, width, 1.7) / 10).to(dtype)
    # Phases of about 1, where maps and slopes differ clearly.
    a, b = noise(rank, width, 2.1).float(), (noise(out, rank, 0.9) * (2 / rank**0.5 / form.omega)).float()
    wide_a, wide_b = a.double(), b.double()
    product = dy.double().T @ x.double() * MAPS[map].slope(form.phase(wide_a, wide_b)) * (form.scale * form.omega)
    right = (weight + form.delta(wide_a, wide_b), wide_b.T @ product, product @ wide_a.T)
    got = (fold(weight, a, b, form), *factor_gradients(dy, x, a, b, form))
    return max(float((g.double() - r).norm() / r.norm()) for g, r in zip(got, right, strict=True))


def _precision(dtype: torch.dtype) -> tuple[str, str]:
    """How dY^T X is multiplied, and how the products with the factors are.

    float32 is multiplied in full precision unless torch's own setting allows TF32. With 16-bit inputs the products with
    the factors are three TF32 products each, which together have float32's precision and use the tensor cores.
    """
    if dtype != torch.float32:
        return "ieee", "tf32x3"  # the first is not used here: 16-bit numbers are multiplied exactly
    return ("tf32", "tf32x3") if torch.backends.cuda.matmul.fp32_precision == "tf32" else ("ieee", "ieee")


@dataclass(frozen=True)
class _Tile:
    """The part of D that one program computes."""

    out: int
    width: int
    tokens: int
    """Rows of dY and X that are read at a time."""
    warps: int
    stages: int
    """Pipeline stages of these reads."""


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory: 227 KiB on an H100, 163 on an A100, 99 on a desktop's card."""
    if device.type != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def _tile(dtype: torch.dtype, precision: str, memory: int) -> _Tile:
    """The largest tile that fits shared memory and the registers; the loop over the tokens must not spill."""
    if dtype == torch.float32 and precision == "ieee":
        return _Tile(64, 64, 32, warps=4, stages=2)
    tokens = 128 // dtype.itemsize
    return _Tile(128, 128, tokens, warps=8, stages=3) if memory >= 160 << 10 else _Tile(128, 64, tokens, 8, 2)


@triton.jit
def _tanh(u):
    size = tl.abs(u)
    e = tl.exp(-2 * size)
    far = (1 - e) / (1 + e)
    # Near 0 the quotient loses digits; up to 1/4 the series to u^9 has float32's precision.
    v = u * u
    near = size * (1 + v * (-1 / 3 + v * (2 / 15 + v * (-17 / 315 + v * (62 / 2835)))))
    up = tl.where(size < 0.25, near, far)
    return tl.where(u < 0, -up, up)


@triton.jit
def _value(u, map: tl.constexpr):
    if map == "sine":
        v = tl.sin(u)
    elif map == "tanh":
        v = _tanh(u)
    elif map == "sigmoid":
        v = 2 * tl.sigmoid(u) - 1
    elif map == "hardtanh" or map == "clip":
        v = tl.where(u > 1, 1.0, tl.where(u < -1, -1.0, u))  # NaN stays NaN
    else:
        v = u
    return v


@triton.jit
def _slope(u, map: tl.constexpr):
    if map == "sine":
        v = tl.cos(u)
    elif map == "tanh":
        t = _tanh(u)
        v = 1 - t * t
    elif map == "sigmoid":
        p = tl.sigmoid(u)
        v = 2 * p * (1 - p)
    elif map == "hardtanh" or map == "clip":
        v = tl.where(tl.abs(u) <= 1, 1.0, 0.0)
    else:
        v = tl.full(u.shape, 1.0, tl.float32)
    return v


@triton.jit
def _phase(a, b, rows, cols, out, width, omega, rank: tl.constexpr, ranks: tl.constexpr, small: tl.constexpr):
    """`omega * B A` at these rows and columns; both factors are contiguous."""
    phase = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in tl.range(0, rank, ranks, num_stages=1):
        r = start + tl.arange(0, ranks)
        b_here, a_here = (rows < out)[:, None] & (r < rank)[None, :], (r < rank)[:, None] & (cols < width)[None, :]
        left = tl.load(b + rows[:, None] * rank + r[None, :], mask=b_here, other=0.0)
        right = tl.load(a + r[:, None] * width + cols[None, :], mask=a_here, other=0.0)
        phase = tl.dot(left, right, phase, input_precision=small)
    return phase * omega


@triton.jit
def _fold_kernel(
    weight,
    a,
    b,
    result,
    out,
    width,
    weight_out,
    weight_in,
    result_out,
    result_in,
    omega,
    scale,
    rank: tl.constexpr,
    map: tl.constexpr,
    ranks: tl.constexpr,
    side: tl.constexpr,
    small: tl.constexpr,
):
    tile, across = tl.program_id(0), tl.cdiv(width, side)
    rows, cols = (tile // across) * side + tl.arange(0, side), (tile % across) * side + tl.arange(0, side)
    here = (rows < out)[:, None] & (cols < width)[None, :]
    new = _value(_phase(a, b, rows, cols, out, width, omega, rank, ranks, small), map) * scale
    down, right = rows.to(tl.int64)[:, None], cols.to(tl.int64)[None, :]  # a matrix may have over 2^31 entries
    new += tl.load(weight + down * weight_out + right * weight_in, mask=here, other=0.0).to(tl.float32)
    tl.store(result + down * result_out + right * result_in, new.to(result.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["tokens"])
def _gradient_kernel(
    dy,
    x,
    a,
    b,
    a_parts,
    b_parts,
    out,
    width,
    tokens,
    dy_token,
    dy_out,
    x_token,
    x_in,
    omega,
    steep,
    rank: tl.constexpr,
    map: tl.constexpr,
    ranks: tl.constexpr,
    precision: tl.constexpr,
    small: tl.constexpr,
    group: tl.constexpr,
    tile_out: tl.constexpr,
    tile_in: tl.constexpr,
    tile_tokens: tl.constexpr,
    widen: tl.constexpr,
):
    # Programs that run together share rows of dY and X: `group` tiles down, then the next column of tiles.
    down, across = tl.cdiv(out, tile_out), tl.cdiv(width, tile_in)
    block, place = tl.program_id(0) // (group * across), tl.program_id(0) % (group * across)
    high = min(group, down - block * group)
    i, j = block * group + place % high, place // high
    rows, cols = i * tile_out + tl.arange(0, tile_out), j * tile_in + tl.arange(0, tile_in)
    in_rows, in_cols = rows < out, cols < width

    t = tl.arange(0, tile_tokens)
    dy_at = dy + t.to(tl.int64)[None, :] * dy_token + rows.to(tl.int64)[:, None] * dy_out
    x_at = x + t.to(tl.int64)[:, None] * x_token + cols.to(tl.int64)[None, :] * x_in
    product = tl.zeros((tile_out, tile_in), tl.float32)
    for start in range(0, tokens, tile_tokens):
        left = tl.load(dy_at, mask=in_rows[:, None] & (t < tokens - start)[None, :], other=0.0)
        right = tl.load(x_at, mask=(t < tokens - start)[:, None] & in_cols[None, :], other=0.0)
        if widen:
            left, right = left.to(tl.float32), right.to(tl.float32)
        product = tl.dot(left, right, product, input_precision=precision)
        dy_at += tile_tokens * dy_token
        x_at += tile_tokens * x_token

    product *= _slope(_phase(a, b, rows, cols, out, width, omega, rank, ranks, small), map) * steep
    a_parts += i.to(tl.int64) * rank * width
    b_parts += j.to(tl.int64) * out * rank
    for start in tl.range(0, rank, ranks, num_stages=1):
        r = start + tl.arange(0, ranks)
        a_here, b_here = in_cols[:, None] & (r < rank)[None, :], in_rows[:, None] & (r < rank)[None, :]
        a_tile = tl.load(a + r[None, :] * width + cols[:, None], mask=a_here, other=0.0)
        b_tile = tl.load(b + rows[:, None] * rank + r[None, :], mask=b_here, other=0.0)
        b_part = tl.dot(product, a_tile, input_precision=small)
        a_part = tl.dot(tl.trans(product), b_tile, input_precision=small)
        tl.store(b_parts + rows[:, None] * rank + r[None, :], b_part, mask=b_here)
        tl.store(a_parts + r[None, :] * width + cols[:, None], a_part, mask=a_here)


INTERPRETED = not isinstance(_gradient_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels. It multiplies the bit patterns of bfloat16, so `widen` is for it."""
