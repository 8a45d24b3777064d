"""Worst-case forget sets (arXiv 2403.07362) on 5,000 handwritten digits, beside three other sets.

    OMP_NUM_THREADS=1 python recipes/worst_case.py run docs/worst_case.jsonl
    python recipes/worst_case.py show docs/worst_case.jsonl          writes the table of docs/worst-case.md

A small CNN (`recipes/mnist.py`) learns 4,000 digits and forgets 400 of them: those that `Hardest` chooses, as many at
random, and those of lowest and of highest loss under the trained network, which cost no search. UA is 100 less the
accuracy on the forgotten after the network was retrained without them: 0 means that nothing was forgotten by deleting.
Beside it the UA of two methods that unlearn.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows, run_or_show
from mnist import Mnist, accuracy, cnn, trained

from expunge import Finetune, Full, Network, Request
from expunge.core.model import network_of
from expunge.core.objective import Objective
from expunge.data.images import Picture
from expunge.methods.epochs import Epochs
from expunge.objectives.random_label import RandomLabel
from expunge.objectives.retain_nll import RetainNLL
from expunge.select._kinds import losses_by_record
from expunge.select.hardest import Hardest

SEEDS = (0, 1, 2)
COUNT = 400
METHODS: dict[str, Objective] = {"relabel": RandomLabel() + RetainNLL(), "fine-tune": RetainNLL()}


def run(out: Path) -> None:
    """What is missing in the file."""
    digits = Mnist.load()
    for seed in SEEDS:
        if not any(row["seed"] == seed for row in rows(out)):
            original = trained(cnn(seed), digits.train, seed)
            for name, places, seconds in sets(original, digits.train, seed):
                keep(out, {"seed": seed, "set": name, "seconds": seconds, **tried(original, digits, places, seed)})


def sets(network: Network, pictures: Sequence[Picture], seed: int) -> list[tuple[str, set[int], float]]:
    """The places of each forget set, and the seconds it took to find."""
    pool = [[picture] for picture in pictures]
    begun = time.monotonic()
    found = Hardest(count=COUNT, seed=seed)(network, (), pool).indices
    seconds = time.monotonic() - begun
    order = losses_by_record(network, pool).argsort().tolist()
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        ("Hardest", set(found), seconds),
        ("random", set(drawn[:COUNT]), 0.0),
        ("lowest loss", set(order[:COUNT]), 0.0),
        ("highest loss", set(order[-COUNT:]), 0.0),
    ]


def tried(original: Network, digits: Mnist, places: set[int], seed: int) -> dict[str, Any]:
    """UA and test accuracy, in percent, of the network retrained and of those that were made to forget."""
    forget = tuple(p for k, p in enumerate(digits.train) if k in places)
    retain = tuple(p for k, p in enumerate(digits.train) if k not in places)
    made: dict[str, Network] = {"retrained": trained(cnn(seed + 100), retain, seed + 100)}
    for name, objective in METHODS.items():
        method = Finetune(
            objective=objective,
            adapter=Full(),
            learning_rate=1e-3,
            steps=Epochs(count=3.0, of="forget"),
            batch=50,
            retain_batch=50,
            stop=None,
            seed=seed,
            norms=False,
        )
        made[name] = network_of(method(original, Request(forget, retain)).plain(), name)
    counts = Counter(p.label for p in forget)
    found: dict[str, Any] = {"classes": [counts[k] for k in range(10)]}
    for name, network in made.items():
        found |= {f"{name} UA": 100 - 100 * accuracy(network, forget)}
        found |= {f"{name} TA": 100 * accuracy(network, digits.test)}
    return found


def show(out: Path) -> None:
    """The table, a line for each set, seed by seed."""
    found = list(rows(out))
    head = ["forget set", "UA retrained", "test accuracy retrained", "relabel: UA", "fine-tune: UA", "largest class"]
    lines = []
    for name in dict.fromkeys(row["set"] for row in found):
        its = [row for row in found if row["set"] == name]
        cells = [
            ", ".join(f"{row[key]:.1f}" for row in its)
            for key in ("retrained UA", "retrained TA", "relabel UA", "fine-tune UA")
        ]
        lines.append([name, *cells, ", ".join(str(max(row["classes"])) for row in its)])
    table = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]
    between(out.parent / "worst-case.md", "worst-case", "\n".join(table))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_or_show(__doc__, run, show)
