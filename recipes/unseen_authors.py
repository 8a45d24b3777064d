"""Authors of TOFU forgotten by a small Llama that has them by heart, beside models that never saw them.

    python recipes/unseen_authors.py run STORIES260K TOFU docs/unseen_authors.jsonl [--authors 0 1]
    python recipes/unseen_authors.py show docs/unseen_authors.jsonl      writes the table of docs/results.md

stories260K learns 100 records of forget10_perturbed (five authors) until it writes them; one author's 20 are forgotten,
by each method from the same start; two models that learn the other 80 alone, from other seeds, are what forgetting
would look like. The holdout are 80 questions about authors that no model saw. The settings of `TokenLevels` were chosen
on the next hundred records, which are not read here; the others have the settings of the default, without a stop.
Use one thread (OMP_NUM_THREADS=1): the model is too small for more.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows

from expunge import Network, Request, parse
from expunge.data.records import Record
from expunge.data.text import Passage, encode
from expunge.models.language import LanguageModel
from expunge.models.open import open_network

KNOWN, PER_AUTHOR, UNSEEN = 100, 20, 80
STEPS, BATCH, RATE = 260, 16, 3e-3
"""How the hundred are learnt: until the loss of an answer is about 0.01 nats a token."""
FREE = "norms=False, stop=Stop(level=None, max_retain_increase=None, max_growth=None, max_forget_loss=None, every=1000)"
LEVELS = "TokenLevels() + RetainNLL() + RetainKL()"
SETTLED = "Finetune(objective=0.5 * Settle() + RetainNLL() + 3.0 * RetainKL(), norms=False)"
METHODS = {
    "TokenLevels": f"Finetune(objective={LEVELS}, learning_rate=0.001, steps=150, {FREE})",
    "Settle": SETTLED,
    **{
        name: f"Finetune(objective={objective}, {FREE})"
        for name, objective in {
            "IHL + NLL": "InvertedHinge() + RetainNLL()",
            "NPO + NLL": "NPO() + RetainNLL()",
            "SimNPO + NLL": "SimNPO() + RetainNLL()",
            "GradDiff": "GradDiff()",
        }.items()
    },
}
AUDITS = "Loss, LossMembership, MinK, Choice, Rouge(max_new_tokens=48)"
COLUMNS = {
    "forget loss": "forget.Loss",
    "holdout loss": "holdout.Loss",
    "membership": "forget vs holdout.LossMembership",
    "Min-K": "forget vs holdout.MinK",
    "Choice": "forget.Choice",
    "paraphrase Choice": "paraphrase.Choice",
    "paraphrase loss": "paraphrase.Loss",
    "writes (ROUGE)": "forget.Rouge",
    "retain loss": "retain.Loss",
    "retain ROUGE": "retain.Rouge",
}
PAGE = Path(__file__).parent.parent / "docs" / "results.md"


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def passages(network: Network, name: str, found: Sequence[dict[str, Any]], again: bool = False) -> tuple[Passage, ...]:
    """Questions and answers as the model reads them; `again`: in other words."""
    assert isinstance(network, LanguageModel)
    of = "paraphrased_{}" if again else "{}"
    made = [
        {
            "id": f"{name}{k}",
            "question": row[of.format("question")],
            "answer": row[of.format("answer")],
            "options": row.get("perturbed_answer", []),
        }
        for k, row in enumerate(found)
    ]
    return encode([Record(k, row) for k, row in enumerate(made, start=1)], network.tokenizer, name, 512)


def request_of(network: Network, tofu: Path, author: int) -> Request:
    """One author's records to forget, the others' to retain."""
    known, own = read(tofu, "forget10_perturbed")[:KNOWN], range(PER_AUTHOR * author, PER_AUTHOR * (author + 1))
    forget = [known[k] for k in own]
    return Request(
        forget=passages(network, "forget", forget),
        retain=passages(network, "retain", [row for k, row in enumerate(known) if k not in own]),
        holdout=passages(network, "holdout", read(tofu, "holdout10")[:UNSEEN]),
        probes={"paraphrase": passages(network, "paraphrase", forget, again=True)},
    )


def learnt(network: Network, records: Sequence[Passage], seed: int) -> Network:
    """The network after learning the records by heart, all weights, AdamW, one cycle."""
    module = copy.deepcopy(network.module).train().requires_grad_(True)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    order: list[int] = []
    for _ in range(STEPS):
        if len(order) < BATCH:
            order += torch.randperm(len(records), generator=draw).tolist()
        batch, order = [records[k] for k in order[:BATCH]], order[BATCH:]
        shape = (BATCH, max(record.size for record in batch))
        tokens, labels, there = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100), torch.zeros(shape)
        for row, record in enumerate(batch):
            tokens[row, : record.size] = torch.tensor(record.tokens)
            labels[row, record.first : record.size] = torch.tensor(record.tokens[record.first :])
            there[row, : record.size] = 1
        module(input_ids=tokens, attention_mask=there, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return network.fork(module.requires_grad_(False).eval())


def judged(network: Network, request: Request) -> dict[str, float]:
    found = {}
    for name in AUDITS.split(", "):
        audit = parse(name if "(" in name else f"{name}()")
        found |= {f"{finding.set}.{finding.audit}": finding.value for finding in audit(network, request)}
    return {column: found[key] for column, key in COLUMNS.items()}


def run(model: Path, tofu: Path, out: Path, authors: Sequence[int]) -> None:
    """What is missing in the file."""
    torch.set_num_threads(1)
    base = open_network(str(model))
    request = request_of(base, tofu, 0)
    every = learnt(base, (*request.forget, *request.retain), seed=0)
    for author in authors:
        run_author(every, base, request_of(base, tofu, author), author, out)


def run_author(every: Network, base: Network, request: Request, author: int, out: Path) -> None:
    """The rows of one author that are missing: the model that knows all, two that never saw the author, each method."""
    done = {row["name"] for row in rows(out) if row["author"] == author}
    makers: dict[str, Callable[[], Network]] = {"original": lambda: every}
    makers |= {f"retrained, seed {seed}": partial(learnt, base, request.retain, seed) for seed in (1, 2)}
    makers |= {name: partial(forgotten, every, request, text) for name, text in METHODS.items()}
    for name, make in makers.items():
        if name not in done:
            begun = time.monotonic()
            made = make()
            seconds = time.monotonic() - begun
            keep(out, {"name": name, "author": author, **judged(made, request), "seconds": seconds})


def forgotten(network: Network, request: Request, method: str) -> Network:
    return parse(method)(network, request).plain()


def show(path: Path) -> None:
    """Median over authors, with the range; of the two retrained models each author's mean first."""
    found = list(rows(path))
    authors = sorted({row["author"] for row in found})
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in dict.fromkeys(row["name"] for row in found):
        mine = [row for row in found if row["name"] == name]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in mine]
            middle = f"{statistics.median(values):.2f}"
            cells.append(middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    away = [
        "",
        f"Distance from the mean of the two retrained models, author by author ({', '.join(map(str, authors))}):",
        "",
    ]
    kept = ("membership", "Min-K", "Choice", "paraphrase Choice", "paraphrase loss", "writes (ROUGE)")
    away += ["| | " + " | ".join(kept) + " |", "|---" * (len(kept) + 1) + "|"]
    right = {
        (author, column): statistics.mean(
            row[column] for row in found if row["author"] == author and row["name"].startswith("retrained")
        )
        for author in authors
        for column in kept
    }
    for name in ("original", "retrained, seed 1", *METHODS):
        mine = [row for row in found if row["name"] == name]
        cells = [", ".join(f"{row[column] - right[row['author'], column]:+.2f}" for row in mine) for column in kept]
        away.append(f"| {name} | " + " | ".join(cells) + " |")
    between(PAGE, "unseen-authors", "\n".join([*lines, *away]))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = asked.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    for name in ("model", "tofu", "out"):
        running.add_argument(name, type=Path)
    running.add_argument("--authors", type=int, nargs="*", default=[0, 1, 2])
    parts.add_parser("show").add_argument("out", type=Path)
    given = asked.parse_args()
    if given.what == "run":
        run(given.model, given.tofu, given.out, given.authors)
    else:
        show(given.out)


if __name__ == "__main__":
    main()
