"""Cheaper training by pruners (SeTa, InfoBatch), beside as many records drawn at random: is it still the same model?

    OMP_NUM_THREADS=1 python recipes/pruning.py run docs/pruning.jsonl [--parts accuracy oracles] [--seeds 0 1 2]
    python recipes/pruning.py show docs/pruning.jsonl          writes the tables of docs/pruning.md

accuracy  a small CNN learns 4,000 handwritten digits (`recipes/mnist.py`) in 20 passes. Static random: a share that is
          drawn once for all passes.
oracles   50 multilayer perceptrons are trained without 60 of 1,200 digits (`recipes/oracles.py`), pruned, and held
          against 50 that read everything: their KLoM, beside that of 50 others that read everything (the floor), and
          of 50 that read everything in fewer passes.

Seeds draw the pictures that are left out, the starts and the passes. Use one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows, table
from mnist import Mnist, accuracy, cnn
from oracles import BATCH, EPOCHS, MODELS, RATE, Parts, ensemble, logits_of, margins_of, measured, networks, starts
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge import Request, parse
from expunge.data.images import Picture
from expunge.events import Event, Step
from expunge.models.vision import ImageClassifier
from expunge.prune._kinds import UNREAD, Pruner
from expunge.prune.dynamic_random import DynamicRandom

PAGE = Path(__file__).parent.parent / "docs" / "pruning.md"
Row = dict[str, Any]
SETTINGS = (
    "SeTa(window=0.9)",
    "SeTa(window=0.6)",
    "SeTa(window=0.4)",
    "InfoBatch()",
    "DynamicRandom(share=0.7)",
    "DynamicRandom(share=0.5)",
)
EPOCHS_CNN, FEW = 20, 20
FEWER = f"everything, {FEW} passes for {EPOCHS}"
WHOLE, STATIC, FLOOR = "everything", "static random, 0.5", "everything, other seeds (the floor)"


# Accuracy


def accuracies(seed: int, names: Sequence[str]) -> Iterator[Row]:
    """A row for each way to train."""
    digits = Mnist.load()
    for name in names:
        pictures, pruned = digits.train, f", prune={name}" if name in SETTINGS else ""
        if name == STATIC:
            some = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[: len(pictures) // 2]
            pictures = tuple(pictures[k] for k in some.tolist())
        method = f"Train(learning_rate=1e-3, epochs={EPOCHS_CNN}.0, batch=64, schedule='constant', seed={seed}{pruned})"
        events: list[Event] = []
        begun = time.process_time()
        network = parse(method)(cnn(seed), Request(forget=pictures), events.append)
        spent = time.process_time() - begun
        read = sum(event.size for event in events if isinstance(event, Step))
        saved = 100 - 100 * read / (EPOCHS_CNN * len(digits.train))
        yield {"trained": name, "saved": saved, "accuracy": 100 * accuracy(network, digits.test), "cpu": spent}


# Oracles


def pruned_ensemble(
    pictures: Sequence[Picture], pruner: Pruner, seed: int, epochs: int = EPOCHS
) -> tuple[list[ImageClassifier], float]:
    """As `ensemble`, where each network is pruned by its own losses; and the percentage of records not read."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.stack([p.pixels.flatten() for p in pictures])
    y = torch.tensor([p.label for p in pictures])
    weights, read = starts(draw), 0
    optimizer = torch.optim.Adam(weights, lr=RATE)
    losses = torch.full((MODELS, len(y)), UNREAD, dtype=torch.float64)
    for epoch in range(epochs):
        steps = list(cut([pruner.keep(each, epoch, epochs, draw) for each in losses]))
        for number, (places, counts) in enumerate(steps):
            logits = logits_of(weights, x[places])
            each = cross_entropy(logits.flatten(0, 1), y[places].flatten(), reduction="none").view_as(places)
            optimizer.param_groups[0]["lr"] = RATE * (1 - (epoch + number / len(steps)) / epochs)
            optimizer.zero_grad()
            (each * counts / counts.sum(1, keepdim=True)).sum().backward()
            optimizer.step()
            there = counts > 0
            owner = torch.arange(MODELS)[:, None].expand_as(places)
            losses[owner[there], places[there]] = each.detach().double()[there]
            read += int(there.sum())
    return networks(weights), 100 - 100 * read / (MODELS * EPOCHS * len(y))


def cut(kept: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Steps of all networks together: each one's records in as many nearly equal parts, filled up with weight 0."""
    count = -(-max(len(each.places) for each in kept) // BATCH)
    parts = [(each.places.tensor_split(count), each.weights.float().tensor_split(count)) for each in kept]
    for k in range(count):
        pad = torch.nn.utils.rnn.pad_sequence
        yield tuple(pad([part[which][k] for part in parts], batch_first=True) for which in (0, 1))  # type: ignore[misc]


def oracles(seed: int, names: Sequence[str]) -> Iterator[Row]:
    """KLoM of ensembles that were trained without the same pictures."""
    parts = Parts.drawn("random", seed)
    wanted = margins_of(ensemble(parts.retain, 3000 + 10 * seed), parts)
    for name in names:
        begun = time.process_time()
        if name == FLOOR:
            made, saved = ensemble(parts.retain, 3001 + 10 * seed), 0.0
        elif name == STATIC:
            some = torch.randperm(len(parts.retain), generator=torch.Generator().manual_seed(seed)).tolist()
            made, saved = ensemble([parts.retain[k] for k in some[: len(some) // 2]], 3001 + 10 * seed), 50.0
        else:
            pruner, epochs = (DynamicRandom(share=1.0), FEW) if name == FEWER else (parse(name), EPOCHS)
            made, saved = pruned_ensemble(parts.retain, pruner, 3001 + 10 * seed, epochs)
        yield {"oracles": name, "saved": saved, "cpu": time.process_time() - begun, **measured(made, wanted, parts)}


# Running and showing


PARTS = {
    "accuracy": ("trained", (WHOLE, *SETTINGS, STATIC), accuracies),
    "oracles": ("oracles", (FLOOR, *SETTINGS, FEWER, STATIC), oracles),
}


def run(given: argparse.Namespace) -> None:
    """Make the rows that the file lacks."""
    for seed in given.seeds:
        for part in given.parts:
            key, names, make = PARTS[part]
            done = {row[key] for row in rows(given.out) if row["seed"] == seed and key in row}
            for row in make(seed, [name for name in names if name not in done]):
                keep(given.out, {"seed": seed, **row})


def show(path: Path) -> None:
    """Write the tables between the marks of docs/pruning.md."""
    found = sorted(rows(path), key=lambda row: row["seed"])
    one = table(["trained on", "not read, %", "test accuracy, %"], by_name(found, "trained", ("saved", "accuracy")))
    names = ("saved", *(f"{part} {what}" for part in ("forget", "retain", "unseen") for what in ("p95", "mean")))
    heads = ["oracles trained on", "not read, %", *(f"KLoM, {name}" for name in names[1:])]
    between(PAGE, "pruning", f"{one}\n\n{table(heads, by_name(found, 'oracles', names))}")


def by_name(found: Sequence[Row], key: str, names: Sequence[str]) -> list[list[str]]:
    """A line for each way to train: the numbers of all seeds."""
    lines = []
    for name in dict.fromkeys(row[key] for row in found if key in row):
        mine = [row for row in found if row.get(key) == name]
        cells = [", ".join(f"{row[each]:.{0 if each == 'saved' else 2}f}" for row in mine) for each in names]
        lines.append([f"`{name}`" if name in SETTINGS else name, *cells])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("out", type=Path)
    runs.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    verbs.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.verb == "run":
        run(given)
    else:
        show(given.out)


if __name__ == "__main__":
    main()
