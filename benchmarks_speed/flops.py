"""Matmul FLOPs of one adapted layer, forward and backward, over those of the frozen layer; counted, not timed.

python benchmarks_speed/flops.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

from expunge.adapters._fold import bounded_linear
from expunge.adapters._maps import Form

OUT, WIDTH, TOKENS, RANK = 1024, 3584, 4096, 8


def flops(run: Callable[[], Tensor]) -> int:
    """Matmul FLOPs of `run` and of its backward pass."""
    with FlopCounterMode(display=False) as counter:
        run().sum().backward()
    return counter.get_total_flops()


def kept(run: Callable[[], Tensor], given: list[Tensor]) -> int:
    """Bytes that autograd keeps for backward, beyond the tensors given."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run()
    # A view of a parameter (its transpose) is the parameter; nothing new is kept for it.
    known = {id(t) for t in given}
    new = [t for t in saved if id(t) not in known and id(t._base) not in known]
    return sum(t.numel() * t.element_size() for t in new)


def main() -> None:
    """Print the table."""
    # Tensors without data: the counter reads shapes alone.
    x = torch.empty(TOKENS, WIDTH, device="meta", requires_grad=True)
    weight = torch.empty(OUT, WIDTH, device="meta")
    full = torch.empty(OUT, WIDTH, device="meta", requires_grad=True)
    a = torch.empty(RANK, WIDTH, device="meta", requires_grad=True)
    b = torch.empty(OUT, RANK, device="meta", requires_grad=True)
    form = Form.of("sine", RANK, 16.0, 100.0, None, WIDTH)
    forms: dict[str, Callable[[], Tensor]] = {
        "frozen": lambda: linear(x, weight),
        "LoRA": lambda: linear(x, weight) + linear(linear(x, a), b),
        "full fine-tuning": lambda: linear(x, full),
        "sine, plainly written": lambda: linear(x, weight) + linear(x, torch.sin(100 * (b @ a))),
        "sine, folded (expunge)": lambda: bounded_linear(x, weight, None, a, b, form),
    }
    base = flops(forms["frozen"])
    print(f"layer {OUT} x {WIDTH}, rank {RANK}, {TOKENS} tokens; frozen: {base / 1e9:.2f} GFLOP")
    print("| form | FLOPs over the frozen layer's | kept for backward beyond inputs and parameters |\n|---|---|---|")
    for name, run in forms.items():
        bytes_kept = kept(run, [x, weight, full, a, b])
        print(f"| {name} | {flops(run) / base:.4f} | {bytes_kept / 2**20:.1f} MiB |")


if __name__ == "__main__":
    main()
