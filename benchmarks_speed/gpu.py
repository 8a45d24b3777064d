"""A training step of a model of Llama-3-8B's shape on one GPU: the bounded adapter against peft's LoRA.

    python benchmarks_speed/gpu.py [--tokens 2048 4096 8192] [--blocks 32] [--repeats 7]

Random weights in bfloat16, records of TOFU's lengths, adapters of rank 8 on every MLP layer; a step is forward,
backward and AdamW. Contenders take turns on one model each, and each round also times plain bfloat16 products of
8,192-squares, from which the share of the GPU's own rate is taken. Memory is torch's own count of what was allocated at
most, weights included. Then the same records are forgotten and audited from beginning to end (--whole). Says so and
ends with 0 where there is no GPU.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from side_by_side import counting, random_records, ratio, settings, spread, table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.adapters import _fold as fold
from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.core.adapter import Adapter
from expunge.core.model import Model, Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse, parse_list
from expunge.train.activations import Activations, manage_activations

CONTENDERS: dict[str, tuple[Adapter, Activations, bool]] = {
    "LoRA": (LoRA(), "kept", False),
    "bounded": (Bounded(), "kept", True),
    "bounded without kernels": (Bounded(), "kept", False),
    "LoRA, checkpointed": (LoRA(), "recomputed", False),
    "bounded, checkpointed": (Bounded(), "recomputed", True),
}
PRODUCTS = 20


def network(blocks: int, hidden: int = 4096, inner: int = 14336, heads: int = 32, groups: int = 8) -> LanguageModel:
    """A model of Llama 3's shape on the GPU, with random weights."""
    shape = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=16384,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        module = LlamaForCausalLM(shape).eval()
    torch.set_default_dtype(torch.float32)
    return LanguageModel.of(module, None)


def step_of(model: Network, name: str, records: list[Passage], counted: bool = False) -> Callable[[], None]:
    """One step of a contender; for counting, by the same products without kernels, which torch's counter can see."""
    _, activations, kernels = CONTENDERS[name]
    kernels = kernels and not counted
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-4)

    def step() -> None:
        fold.KERNELS = kernels
        with manage_activations(model.module, activations):
            optimizer.zero_grad(set_to_none=True)
            model.ask(Scores(), records).nll().backward()
            optimizer.step()

    return step


def timed(run: Callable[[], object]) -> float:
    """Seconds until the GPU has done what `run` asks of it."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def products() -> Callable[[], None]:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def run() -> None:
        for _ in range(PRODUCTS):
            a @ b

    return run


def steps(blocks: int, sizes: list[int], repeats: int) -> None:
    """Print a table of steps."""
    vocabulary = 128000
    adapted = {type(adapter): adapter.insert(network(blocks), None) for adapter in (LoRA(), Bounded())}
    held = torch.cuda.memory_allocated() / 2
    plain = products()
    rows = []
    for tokens in sizes:
        records = random_records(tokens // 50 + 1, vocabulary)
        while sum(r.size for r in records[:-1]) >= tokens:
            records.pop()
        runs: dict[str, Callable[[], None]] = {}
        peaks, flops = {}, {}
        for name, (adapter, *_) in CONTENDERS.items():
            run = step_of(adapted[type(adapter)], name, records)
            try:
                run()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                run()
            except torch.cuda.OutOfMemoryError:
                print(f"{tokens} tokens, {name}: out of memory", flush=True)
                gc.collect()
                torch.cuda.empty_cache()
                continue
            peaks[name] = (torch.cuda.max_memory_allocated() - before + held) / 2**30
            with counting() as counter:
                step_of(adapted[type(adapter)], name, records, counted=True)()
            flops[name] = counter.get_total_flops() / 1e12
            runs[name] = run
        seconds: dict[str, list[float]] = {name: [] for name in (*runs, "plain")}
        for _ in range(repeats):
            for name, run in (runs | {"plain": plain}).items():
                seconds[name].append(timed(run))
        rates = [PRODUCTS * 2e-12 * 8192**3 / took for took in seconds["plain"]]
        for name in runs:
            over = "LoRA, checkpointed" if "checkpointed" in name else "LoRA"
            reached = [flops[name] / took for took in seconds[name]]
            shares = [got / rate for got, rate in zip(reached, rates, strict=True)]
            share = f"{statistics.median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})"
            number = sum(r.size for r in records)
            rows.append(
                [
                    f"{number:,}",
                    name,
                    spread(seconds[name]),
                    ratio(seconds[name], seconds[over]) if over in seconds else "",
                    f"{number / statistics.median(seconds[name]):,.0f}",
                    f"{statistics.median(reached):.0f} = {share}",
                    f"{peaks[name]:.1f}",
                ]
            )
            print(rows[-1], flush=True)
    head = ["tokens", "step", "seconds", "over LoRA's", "tokens/s", "TFLOP/s reached, of plain bf16", "peak GiB"]
    print(table(head, rows))


def whole(records: int) -> None:
    """Forget and audit `records` records with a model of 1.2 B, from beginning to end."""
    model = network(16, 2048, 8192, 32, 8)
    made = random_records(3 * records, 128000)
    made = [
        replace(each, prompt_tokens=each.tokens[: each.first], alternatives=_others(each, k))
        for k, each in enumerate(made)
    ]
    request = Request(forget=made[:records], retain=made[records : 2 * records], holdout=made[2 * records :])
    method = parse("Finetune(stop=Stop(level=None))")
    audits = parse_list("Loss, Choice, LossMembership, MinK")
    size = sum(each.size for each in made)
    print(f"1.2 B, 3 x {records} records ({size:,} tokens), 5 options each", flush=True)
    after: list[Model] = []
    for audit in audits:
        print(f"{audit.name} before: {timed(partial(audit, model, request)):.1f} s", flush=True)
    print(f"60 steps of 8 + 16: {timed(lambda: after.append(method(model, request))):.1f} s", flush=True)
    for audit in audits:
        print(f"{audit.name} after: {timed(partial(audit, after[0], request)):.1f} s", flush=True)
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def _others(record: Passage, number: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(number)
    made = []
    for k in range(5):
        said: Tensor = torch.randint(10, 128000, (record.rows,), generator=draw)
        tokens = (*record.tokens[: record.first], *said.tolist())
        made.append(Passage(f"{record.id}-{k}", tokens, record.first, "", answer=f"{record.id}-{k}"))
    return tuple(made)


def main() -> None:
    asked = settings(
        __doc__,
        ("--tokens", {"type": int, "nargs": "*", "default": [2048, 4096, 8192]}),
        ("--blocks", {"type": int, "default": 32}),
        ("--whole", {"type": int, "default": 0, "metavar": "RECORDS"}),
    )
    if not torch.cuda.is_available():
        print("There is no GPU here, and nothing was measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if asked.whole:
        whole(asked.whole)
        return
    steps(asked.blocks, asked.tokens, asked.repeats)


if __name__ == "__main__":
    main()
