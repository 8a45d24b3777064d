"""One MLP layer of Llama-3-8B on a GPU, forward and backward: the kernels against torch's path and peft's LoRA.

python benchmarks_speed/bounded_kernels.py

bfloat16 weight and input, float32 factors, rank 8, 4,096 tokens. Each round times every form once, in turn, so that a
clock that drifts drifts for all; a ratio is taken within its round. Says so and ends with 0 where there is no GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import peft
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from expunge.adapters import _fold as fold
from expunge.adapters._maps import Form

SHAPES = {"up, gate": (14336, 4096), "down": (4096, 14336)}
LORA, TORCH = "LoRA (peft, bfloat16 factors)", "sine, torch's path"
"""What the ratios are taken over: the fastest LoRA, and the same layer without kernels."""
TOKENS, RANK, WARM, ROUNDS = 4096, 8, 10, 50


@dataclass(frozen=True)
class Case:
    """A form of the layer, with what it trains."""

    run: Callable[[Tensor], Tensor]
    trained: tuple[Tensor, ...]
    kernels: bool = False
    """Whether the GPU's own kernels may be used."""


def cases(out: int, width: int) -> dict[str, Case]:
    """The forms to be timed; all of them share one frozen weight."""
    base = nn.Linear(width, out, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    a = torch.randn(RANK, width, device="cuda").mul_(width**-0.5).requires_grad_()
    b = torch.randn(out, RANK, device="cuda").mul_(0.01).requires_grad_()
    form = Form.of("sine", RANK, 2.0 * RANK, 100.0, None, width)

    def lora(wide: bool) -> Case:
        config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"])
        layer = peft.get_peft_model(nn.Sequential(base), config, autocast_adapter_dtype=wide)
        return Case(layer, tuple(p for p in layer.parameters() if p.requires_grad))

    def sine(x: Tensor) -> Tensor:
        return fold.bounded_linear(x, base.weight, None, a, b, form)

    return {
        "frozen": Case(base, ()),
        "LoRA (peft's default: float32 factors)": lora(wide=True),
        LORA: lora(wide=False),
        "sine, plainly written": Case(
            lambda x: linear(x, base.weight + (form.scale * torch.sin(form.omega * (b @ a))).to(x.dtype)), (a, b)
        ),
        TORCH: Case(sine, (a, b)),
        "sine, kernels": Case(sine, (a, b), kernels=True),
    }


def once(case: Case, x: Tensor, dy: Tensor) -> float:
    """Milliseconds of one forward and backward pass."""
    fold.KERNELS = case.kernels
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.autograd.grad(case.run(x), (x, *case.trained), dy)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak(case: Case, x: Tensor, dy: Tensor) -> float:
    """MiB that one pass needs at its highest, beyond what was there before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    once(case, x, dy)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def spread(values: list[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def table(out: int, width: int) -> None:
    """Time every form of one layer and print it."""
    x = torch.randn(TOKENS, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(TOKENS, out, device="cuda", dtype=torch.bfloat16)
    forms = cases(out, width)
    for case in forms.values():
        for _ in range(WARM):
            once(case, x, dy)
    memory = {name: peak(case, x, dy) for name, case in forms.items()}
    rounds = [{name: once(case, x, dy) for name, case in forms.items()} for _ in range(ROUNDS)]
    print("| form | ms | time over bfloat16 LoRA's | time over torch's path | peak MiB |\n|---|---|---|---|---|")
    for name in forms:
        lora, torchs = ([r[name] / r[other] for r in rounds] for other in (LORA, TORCH))
        line = (name, spread([r[name] for r in rounds]), spread(lora), spread(torchs), f"{memory[name]:.0f}")
        print(f"| {' | '.join(line)} |")


def main() -> None:
    """Print a table for each shape."""
    if not torch.cuda.is_available():
        print("There is no GPU here, and nothing was measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peft {peft.__version__}")
    print(f"{TOKENS} tokens, rank {RANK}, bfloat16; median of {ROUNDS} rounds (middle half)")
    for name, (out, width) in SHAPES.items():
        form = Form.of("sine", RANK, 2.0 * RANK, 100.0, None, width)
        weight, x = (torch.empty(rows, width, device="cuda", dtype=torch.bfloat16) for rows in (out, TOKENS))
        a, b = torch.empty(RANK, width, device="cuda"), torch.empty(out, RANK, device="cuda")
        used = fold.kernels(x, weight, a, b, form) is not None
        print(
            f"\n{name}: {out} x {width}{'' if used else '; the kernels are not to be had, so both paths are torch'}\n"
        )
        del weight, x, a, b
        table(out, width)


if __name__ == "__main__":
    main()
