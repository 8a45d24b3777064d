"""RWKU, RESTOR and LUME on invented stand-ins of their schemas, by small models that learnt them.

    OMP_NUM_THREADS=1 python recipes/bench_worlds.py run docs/bench_worlds.jsonl
    python recipes/bench_worlds.py show docs/bench_worlds.jsonl          writes the tables of docs/benchmarks.md

A benchmark can be trusted where the model that learnt everything and the one that never saw the forget set lie
where they must, and methods between them; the lines of the tables say so. Three seeds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_standins import KINDS, LONGEST, STANDINS, Lessons, Rows
from keeping import between, keep, mean_and_range, rows
from people import taught, untaught

from expunge import Network, parse
from expunge.models.language import LanguageModel

SEEDS = (0, 1, 2)
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
STEPS = "adapter=Full(), learning_rate=3e-4, batch=24, retain_batch=24, clip=1.0, stop=None, norms=False"
METHODS = {
    "GA": f"Finetune(objective=Ascent(), steps=20, {STEPS})",
    "GradDiff": f"Finetune(objective=0.2 * Ascent() + RetainNLL(), steps=40, {STEPS})",
    "NPO + NLL": f"Finetune(objective=0.05 * NPO() + RetainNLL(), steps=40, {STEPS})",
    "refusals": f"Finetune(objective=IdkNLL() + RetainNLL(), steps=40, {STEPS})",
    "task vector": f"Negate(scale=2.0, learn=Finetune(objective=-1.0 * Ascent(), steps=20, {STEPS}))",
}
TRIED = {
    "RWKU": ("GradDiff", "NPO + NLL", "refusals"),
    "RESTOR": ("GA", "NPO + NLL", "task vector"),
    "LUME": ("GradDiff", "NPO + NLL"),
}
LEARNING = {"RWKU": 700, "RESTOR": 700, "LUME": 300}
"""Steps of 32 records."""


def run(out: Path, only: Sequence[str], seeds: Sequence[int]) -> None:
    """What is missing in the file."""
    for name in only:
        for seed in seeds:
            if not any(row["benchmark"] == name and row["seed"] == seed for row in rows(out)):
                with TemporaryDirectory() as folder:
                    for model, numbers in compare(name, STANDINS[name](Path(folder), seed), seed):
                        keep(out, {"benchmark": name, "seed": seed, "model": model, **numbers})


def compare(name: str, lessons: Lessons, seed: int) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Each model and its numbers: those that learnt, and those that were made to forget."""
    first = taught(untaught(lessons.tokenizer, seed, LONGEST), lessons.first, seed, LEARNING[name], 32)
    if lessons.then:  # what was right is the reference, and what came after is to be forgotten
        original = taught(copy_of(first), lessons.then, seed + 1, 150, 24, rate=5e-4)
        made: dict[str, Network] = {"clean": first, "corrupted": original}
    else:
        retrained = taught(
            untaught(lessons.tokenizer, seed + 1000, LONGEST), lessons.without, seed + 1000, LEARNING[name], 48
        )
        original, made = first, {"original": first, "retrained": retrained}
    references = {each: lessons.measure(made[each]) for each in made if lessons.then}
    for method in TRIED[name]:
        plan = parse(METHODS[method])
        plan = plan.with_seed(seed) if method != "task vector" else plan
        made[method] = plan(original, lessons.request).plain()
    for each, network in made.items():
        values = references.get(each) or lessons.measure(network)
        yield (
            each,
            {f"{n.name}, {n.set}": n.value for n in lessons.benchmark.numbers(values, references) if not n.against},
        )


def copy_of(network: LanguageModel) -> LanguageModel:
    return replace(network, module=copy.deepcopy(network.module))


# What is shown

ATTACKS = [kind if "(" not in kind else kind.partition(" (")[0] for kind in KINDS]
COLUMNS = {
    "RWKU": {
        "level 1": "recall, forget level 1",
        "level 2": "recall, forget level 2",
        "level 3": "recall, forget level 3",
        "neighbours": "recall, neighbour",
        **{
            f"{m}, {w}": f"{n}, {w}"
            for w in ("FM", "RM")
            for m, n in (("loss x 100", "loss x 100"), ("Min-K++", "Min-K++ 20 %"))
        },
    },
    "RESTOR": {
        "accuracy": "accuracy, facts",
        "recovery rate": "recovery rate, facts",
        "preference": "preference, facts",
        "log p, correct": "log-probability, correct, facts",
        "log p, corrupted": "log-probability, corrupted, facts",
    },
    "LUME": {
        "completions, forget": "regurgitation, forget Task{}",
        "answers, forget": "knowledge, forget Task{}",
        "completions, retain": "regurgitation, retain Task{}",
        "answers, retain": "knowledge, retain Task{}",
        "task aggregate": "task aggregate, all",
        "membership": "membership by loss, forget vs holdout",
        "membership score": "membership score, all",
    },
}


def show(path: Path) -> None:
    """The tables: mean and range over the seeds."""
    for name, columns in COLUMNS.items():
        found: dict[str, Rows] = {}
        for row in rows(path):
            if row["benchmark"] == name:
                found.setdefault(row["model"], []).append(row)
        between(PAGE, f"standin-{name.lower()}", table(found, columns))
    attacks = {kind: f"recall, forget level 3: {kind}" for kind in ATTACKS}
    found = {"original": [row for row in rows(path) if row["benchmark"] == "RWKU" and row["model"] == "original"]}
    between(PAGE, "standin-attacks", table(found, attacks))


def table(found: dict[str, Rows], columns: dict[str, str]) -> str:
    lines = [f"| model | seeds | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for model, of in found.items():
        cells = [mean_and_range([look_up(row, key) for row in of]) for key in columns.values()]
        lines.append(f"| {model} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def look_up(row: dict[str, Any], key: str) -> float | None:
    """A number of a row; of one for each task the mean."""
    return statistics.mean(row[key.format(k)] for k in (1, 2, 3)) if "{}" in key else row.get(key)


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("what", choices=("run", "show"))
    read.add_argument("rows", type=Path)
    read.add_argument("--only", nargs="+", choices=[*STANDINS], default=[*STANDINS])
    read.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    given = read.parse_args()
    torch.set_num_threads(1)
    run(given.rows, given.only, given.seeds) if given.what == "run" else show(given.rows)


if __name__ == "__main__":
    main()
