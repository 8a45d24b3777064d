"""One training step: the bounded adapter against peft's LoRA and against full fine-tuning, all on every MLP layer.

    python benchmarks_speed/step.py --write

A model of SmolLM2-135M's shape with random weights, float32; records of TOFU's lengths, packed as the product packs
them; a step is forward, backward and AdamW. Time and matmul FLOPs (torch's counter; attention included, with what its
backward makes again) give the rate that a step reaches, beside that of plain 1,024-squares in the same round.
Memory is measured in processes of their own (--memory), one for each contender.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from side_by_side import (
    counting,
    machine,
    peak_memory,
    race,
    random_records,
    ratio,
    settings,
    show,
    spread,
    table,
)
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.core.adapter import Adapter
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.models.language import LanguageModel
from expunge.train.activations import manage_activations

SHAPE = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
CONTENDERS: dict[str, tuple[Adapter, str]] = {
    "bounded": (Bounded(), "kept"),
    "LoRA": (LoRA(), "kept"),
    "full": (Full(), "kept"),
    "bounded, checkpointed": (Bounded(), "recomputed"),
    "LoRA, checkpointed": (LoRA(), "recomputed"),
}


PRODUCTS = 500
"""Products of 1,024-squares in each round: about six seconds, beside steps of as many."""


def plain_products() -> None:
    """What the machine's own rate is taken from, in each round, for it changes with what else the machine does."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    for _ in range(PRODUCTS):
        a @ b


def step_of(name: str, tokens: int) -> Callable[[], None]:
    """A step of the contender on about `tokens` tokens."""
    torch.manual_seed(0)
    network = LanguageModel.of(LlamaForCausalLM(SHAPE).eval(), None)
    records = random_records(tokens // 54 + 1, SHAPE.vocab_size)
    while sum(r.size for r in records[:-1]) >= tokens:
        records.pop()
    adapter, activations = CONTENDERS[name]
    adapted = adapter.insert(network, Request(forget=tuple(records)))
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=1e-4)

    def step() -> None:
        with manage_activations(adapted.module, activations):
            optimizer.zero_grad(set_to_none=True)
            adapted.ask(Scores(), records).nll().backward()
            optimizer.step()

    return step


def memory_of(name: str, tokens: int, threads: int) -> dict[str, float]:
    """Peak memory of a process that takes two steps, above that of one that only holds the model."""
    command = [sys.executable, __file__, "--memory", name, "--tokens", str(tokens), "--threads", str(threads)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    asked = settings(
        __doc__,
        ("--tokens", {"type": int, "nargs": "*", "default": [512, 2048, 8192]}),
        ("--memory", {"help": "measure one contender's memory in this process"}),
    )
    if asked.memory:
        step = step_of(asked.memory, asked.tokens[0])
        base = peak_memory()
        step()
        step()
        print(json.dumps({"base": base, "peak": peak_memory()}))
        return
    rows = []
    for tokens in asked.tokens:
        names = [name for name in CONTENDERS if tokens <= 2048 or name != "full"]
        if tokens > 4096:  # what is kept of 8,192 tokens does not fit beside another contender
            names = [name for name in names if "checkpointed" in name]
        steps = {name: step_of(name, tokens) for name in names}
        repeats = asked.repeats if tokens <= 2048 else max(3, asked.repeats // 2)
        seconds = race(steps | {"plain": plain_products}, repeats)
        rates = [PRODUCTS * 2e-9 * 1024**3 / took for took in seconds["plain"]]
        for name in names:
            with counting() as counter:
                steps[name]()
            flops = counter.get_total_flops() / 1e9
            plain = "LoRA, checkpointed" if "checkpointed" in name else "LoRA"
            reached = [flops / took for took in seconds[name]]
            shares = [r / rate for r, rate in zip(reached, rates, strict=True)]
            share = f"{statistics.median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})"
            rows.append(
                [
                    f"{tokens:,}",
                    name,
                    spread(seconds[name]),
                    ratio(seconds[name], seconds[plain]),
                    f"{flops:,.0f}",
                    f"{statistics.median(reached):.0f} = {share}",
                    f"{memory_of(name, tokens, asked.threads)['peak']:,.0f}",
                ]
            )
            print(rows[-1], flush=True)
        steps.clear()
    head = ["tokens", "step", "seconds", "over LoRA's", "GFLOP", "GFLOP/s reached, of plain matmul", "peak MiB"]
    show("step", f"{machine()}\n\n{table(head, rows)}", asked.write)


if __name__ == "__main__":
    main()
