"""Unlearning epochs on TOFU's records against a loop written plainly: padded, with a second copy as the reference.

    python benchmarks_speed/epoch.py MODEL_FOLDER TOFU_FOLDER --write

Both train the same peft LoRA from the same start on the same batches with NPO + NLL on retained records, by AdamW. The
plain loop does what most scripts do: it pads a batch to its longest record, runs forget and retain batches apart, asks
a second copy of the model for the reference each time, and makes float32 scores of every token. Losses are compared
step by step. What is timed are the steps; the product's check of the losses before and after them, which the plain
loop does not have, is left out.
"""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path

import torch
from side_by_side import machine, ratio, settings, show, spread, table, tofu
from torch.nn.functional import cross_entropy, softplus

from expunge.adapters.lora import LoRA
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.events import Step
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.objectives.npo import NPO
from expunge.objectives.retain_nll import RetainNLL
from expunge.train.batches import Batches

RATE, BETA = 1e-4, 0.1


def plainly(network: LanguageModel, request: Request, steps: int, batch: int) -> tuple[list[float], float]:
    """The loop that one would write in an afternoon; its losses, and the seconds of its steps."""
    torch.manual_seed(0)
    reference = copy.deepcopy(network.module)
    model = LoRA().insert(network, request).module
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=RATE, weight_decay=0.0)
    draw, losses = Batches(request, batch, batch, 0), []
    start = time.perf_counter()
    for _ in range(steps):
        sets = draw.sets()
        forget, retain = padded(sets["forget"]), padded(sets["retain"])
        with torch.no_grad():
            before = summed(reference, forget)
        drift = summed(model, forget) - before
        loss = 2 / BETA * softplus(BETA * drift).mean() / 24
        logits = model(input_ids=retain[0], attention_mask=retain[1]).logits
        loss = loss + cross_entropy(logits[:, :-1].float().flatten(0, 1), retain[2][:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start


def padded(batch: list[Passage]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask and labels of a batch, as long as its longest record."""
    width = max(p.size for p in batch)
    tokens, labels = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -100)
    mask = torch.zeros_like(tokens)
    for row, p in enumerate(batch):
        tokens[row, : p.size] = torch.tensor(p.tokens)
        labels[row, p.first : p.size] = tokens[row, p.first : p.size]
        mask[row, : p.size] = 1
    return tokens, mask, labels


def summed(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Log-probability of each record's answer."""
    tokens, mask, labels = batch
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
    losses = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return -losses.view(len(tokens), -1).sum(-1)


def ours(network: LanguageModel, request: Request, steps: int, batch: int) -> tuple[list[float], float]:
    """The product's loop, told nothing else; its losses, and the seconds of its steps."""
    made: list[Step] = []
    method = Finetune(
        objective=(1 / 24) * NPO(beta=BETA) + RetainNLL(),
        adapter=LoRA(),
        learning_rate=RATE,
        steps=steps,
        batch=batch,
        retain_batch=batch,
        stop=Stop(level=None, max_retain_increase=None, every=10**6),
        norms=False,
    )
    method(network, request, lambda event: made.append(event) if isinstance(event, Step) else None)
    return [event.loss for event in made], sum(event.seconds for event in made)


def main() -> None:
    asked = settings(
        __doc__,
        ("model", {}),
        ("tofu", {"type": Path}),
        ("--records", {"type": int, "default": 40}),
        ("--epochs", {"type": int, "default": 5}),
        ("--batches", {"type": int, "nargs": "*", "default": [8, 16]}),
    )
    network = open_network(asked.model, "cpu")
    assert isinstance(network, LanguageModel)
    forget = tofu(asked.tofu, network.tokenizer, asked.records)
    retain = tofu(asked.tofu, network.tokenizer, asked.records, "retain_perturbed.jsonl")
    request = Request(forget=tuple(forget), retain=tuple(retain))
    both = {"plain": plainly, "expunge": ours}
    for run in both.values():
        run(network, request, 1, min(asked.batches))
    rows, apart = [], 0.0
    for batch in asked.batches:
        steps = asked.epochs * asked.records // batch
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(asked.repeats):
            losses = {}
            for name, run in both.items():
                losses[name], spent = run(network, request, steps, batch)
                seconds[name].append(spent)
                print(f"{batch} {name} {seconds[name][-1]:.1f} s", flush=True)
            apart = max(apart, *(abs(a - b) / abs(a) for a, b in zip(losses["plain"], losses["expunge"], strict=True)))
        read = 2 * batch * steps
        for name, spent in seconds.items():
            rate = f"{read / statistics.median(spent):.1f}"
            rows.append([f"{batch} + {batch}", name, spread(spent), rate, ratio(seconds["plain"], spent)])
    head = ["examples a step", "loop", "seconds", "records/s", "plain takes times as long"]
    told = (
        f"{machine()}. {asked.records} + {asked.records} records, {asked.epochs} epochs, {asked.repeats} rounds.\n\n"
        f"{table(head, rows)}\n\nLargest difference of a step's loss, relative: {apart:.1e}."
    )
    show("epoch", told, asked.write)


if __name__ == "__main__":
    main()
