"""What a set function learns from choices (INSET, arXiv 2402.03139), beside one that does not see what was left out.

    OMP_NUM_THREADS=1 python recipes/subsets.py run docs/subsets.jsonl [--parts proof hardest] [--seeds 0 1 2]
    python recipes/subsets.py show docs/subsets.jsonl          writes the tables of docs/subsets.md

proof     in sets whose choice only the whole set decides, how well is it learnt? `digits`: 17 pictures of one class and
          3 of another, which are chosen; learning, checking and trying read different pictures. `moons`: 90 points of
          one half-moon and 10 of the other, which are chosen. Beside the complement: the whole set as background (the
          paper's equation), no background (EquiVSet), no background at as many parameters, and chance. Then sets twice
          as large as those that were learnt from, asked about at once and dealt into the size learnt.
hardest   a small vision transformer learns scikit-learn's digits (`recipes/digits.py`). `Subset` learns from 50 small
          pools what `Hardest` chooses there and chooses 140 of all; UA is 100 less the accuracy on these 140 of a
          network retrained without them, as in docs/worst-case.md.

Seeds draw the sets, the start and the samples. Use one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import Digits, trained
from keeping import between, keep, rows, table
from mnist import accuracy
from sklearn.datasets import load_digits, make_moons

from expunge.select._kinds import Selection, losses_by_record
from expunge.select._set_function import Choice, Learning, SetFunction, chance, draw_from
from expunge.select._small_pools import SmallPools
from expunge.select.hardest import Hardest
from expunge.select.subset import Subset

PAGE = Path(__file__).parent.parent / "docs" / "subsets.md"
Row = dict[str, Any]


# Choices that are known


def digit_pools(count: int, seed: int, part: int, times: int = 1) -> list[Choice]:
    """Of one class 17, of another 3, which are chosen; `times` as many of both."""
    data = load_digits()
    own = np.array_split(np.random.default_rng(0).permutation(len(data.target)), 3)[part]
    x, y = data.data[own] / 16 - (data.data / 16).mean(0), data.target[own]
    draw, made = np.random.default_rng([seed, part]), []
    for _ in range(count):
        many, few = draw.choice(10, 2, replace=False)
        places = [
            draw.choice(np.flatnonzero(y == kind), n, replace=False)
            for kind, n in ((few, 3 * times), (many, 17 * times))
        ]
        made.append(shuffled(x[np.concatenate(places)], 3 * times, draw))
    return made


def moon_sets(count: int, seed: int, part: int, times: int = 1) -> list[Choice]:
    """Of one half-moon 90 points, of the other 10, which are chosen; `times` as many of both."""
    draw, made = np.random.default_rng([seed, part]), []
    for _ in range(count):
        x, y = make_moons(200 * times, noise=0.1, random_state=int(draw.integers(2**31)))
        few = int(draw.integers(2))
        points = np.concatenate([x[y == few][: 10 * times], x[y != few][: 90 * times]])
        made.append(shuffled(2 * points - (1, 0.2), 10 * times, draw))
    return made


def shuffled(x: np.ndarray, chosen: int, draw: np.random.Generator) -> Choice:
    """The first rows are the chosen ones; then all are shuffled."""
    order = draw.permutation(len(x))
    return Choice(torch.tensor(x[order], dtype=torch.float32), torch.tensor(order < chosen))


@dataclass(frozen=True)
class Task:
    """Sets with known choices, and how they are learnt."""

    draw: Callable[..., list[Choice]]
    counts: tuple[int, int, int]
    """To learn from, to check the epoch on, and to try."""
    size: int
    chosen: int
    learning: Learning


TASKS = {
    "digits": Task(digit_pools, (1500, 200, 300), 20, 3, Learning(epochs=6, learning_rate=1e-3, batch=32)),
    "moons": Task(moon_sets, (300, 50, 200), 100, 10, Learning(epochs=8, learning_rate=1e-3, batch=16)),
}
KINDS: dict[str, Row] = {
    "complement": {},
    "none, as many parameters": {"background": "none"},
    "none": {"background": "none"},
    "whole": {"background": "whole"},
}


def parameters(how: Learning, columns: int) -> int:
    """Of F."""
    return sum(p.numel() for p in SetFunction(columns, how).value.parameters())


def widened(how: Learning, columns: int, least: int) -> Learning:
    """The same at the least width that has so many parameters."""
    each = (replace(how, width=width, hidden=width) for width in range(how.width, 1000))
    return next(wide for wide in each if parameters(wide, columns) >= least)


def proofs(name: str, seed: int, kinds: Sequence[str]) -> Iterator[Row]:
    """A row for each kind of background, and one for chance."""
    task = TASKS[name]
    learn, check, apart = (task.draw(count, 100 + seed, part) for part, count in enumerate(task.counts))
    larger = task.draw(50, 200 + seed, 2, 2)
    columns = learn[0].records.shape[1]
    for kind in kinds:
        if kind == "random":
            yield {"kind": kind, "jaccard": chance(task.size, task.chosen)}
            continue
        how = replace(task.learning, seed=100 + seed, **KINDS[kind])
        if kind == "none, as many parameters":
            how = widened(how, columns, parameters(task.learning, columns))
        begun = time.process_time()
        function = how(learn, check)
        spent = time.process_time() - begun
        with draw_from(seed):
            yield {
                "kind": kind,
                "parameters": parameters(how, columns),
                "jaccard": statistics.mean(function.agreements(apart)),
                "untold": untold(function, apart),
                "larger": statistics.mean(function.agreements(larger)),
                "larger, dealt": dealt(function, larger, task.size),
                "cpu": spent,
            }


def untold(function: SetFunction, choices: Sequence[Choice]) -> float:
    """The mean Jaccard index of what is likelier than not, where nobody says how many are to be chosen."""
    return statistics.mean(jaccard(function.choose(choice.records), choice) for choice in choices)


def dealt(function: SetFunction, choices: Sequence[Choice], size: int) -> float:
    """The same of as many as were chosen, of sets that are dealt into smaller ones."""
    likely = [SmallPools(choice.records, size, lambda places: ()).judge(function) for choice in choices]
    return statistics.mean(
        jaccard(each.topk(int(choice.chosen.sum())).indices.tolist(), choice)
        for each, choice in zip(likely, choices, strict=True)
    )


def jaccard(found: Sequence[int], choice: Choice) -> float:
    own = set(choice.chosen.nonzero().flatten().tolist())
    return len(own & set(found)) / len(own | set(found))


# Choices of a costly selector


COUNT = 140
SETS = ("Hardest", "Subset", "Subset, no background", "lowest loss", "random")


def hardest(seed: int, sets: Sequence[str]) -> Iterator[Row]:
    """A row for each forget set."""
    data = Digits.load()
    original = trained(data.train, seed=seed, epochs=8)
    pool = [[picture] for picture in data.train]
    order = losses_by_record(original, pool).argsort().tolist()
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    small = Subset(count=COUNT, teacher=Hardest(count=2, rounds=5, seed=seed), pools=50, seed=seed)
    made: dict[str, Callable[[], Selection]] = {
        "Hardest": lambda: Hardest(count=COUNT, rounds=5, seed=seed)(original, (), pool),
        "Subset": lambda: small(original, (), pool),
        "Subset, no background": lambda: replace(small, background="none")(original, (), pool),
        "lowest loss": lambda: Selection(tuple(order[:COUNT])),
        "random": lambda: Selection(tuple(drawn[:COUNT])),
    }
    for name in sets:
        begun = time.process_time()
        chosen = made[name]()
        spent = time.process_time() - begun
        gone = set(chosen.indices)
        retrained = trained(tuple(p for k, p in enumerate(data.train) if k not in gone), seed=seed + 100, epochs=8)
        yield {
            "set": name,
            "chosen": sorted(gone),
            "UA": 100 - 100 * accuracy(retrained, [data.train[k] for k in gone]),
            "TA": 100 * accuracy(retrained, data.test),
            "note": chosen.note,
            "cpu": spent,
        }


# Running and showing


def run(given: argparse.Namespace) -> None:
    """Make the rows that the file lacks."""
    for seed in given.seeds:
        had = [row for row in rows(given.out) if row["seed"] == seed]
        for name in TASKS if "proof" in given.parts else ():
            done = {row["kind"] for row in had if row.get("task") == name}
            for row in proofs(name, seed, [kind for kind in ("random", *KINDS) if kind not in done]):
                keep(given.out, {"task": name, "seed": seed, **row})
        if "hardest" in given.parts:
            done = {row["set"] for row in had if "set" in row}
            for row in hardest(seed, [name for name in SETS if name not in done]):
                keep(given.out, {"seed": seed, **row})


def show(path: Path) -> None:
    """Write the tables between the marks of docs/subsets.md."""
    found = sorted(rows(path), key=lambda row: row["seed"])
    proof, use = ([row for row in found if key in row] for key in ("task", "set"))
    parts = [proof_table(proof), *([hardest_table(use)] if use else [])]
    between(PAGE, "subsets", "\n\n".join(parts))


def cells(mine: Sequence[Row], *names: str, digits: int = 2) -> list[str]:
    """Of each column the numbers of all seeds."""
    return [", ".join(f"{row[name]:.{digits}f}" for row in mine if name in row) for name in names]


def proof_table(found: Sequence[Row]) -> str:
    """A line for each task and kind."""
    heads = ["sets", "background", "parameters", "agreement", "not told how many", "twice as large", "these, dealt"]
    lines = []
    for task, kind in dict.fromkeys((row["task"], row["kind"]) for row in found):
        mine = [row for row in found if (row["task"], row["kind"]) == (task, kind)]
        size = f"{mine[0]['parameters']:,}" if "parameters" in mine[0] else ""
        lines.append([task, kind, size, *cells(mine, "jaccard", "untold", "larger", "larger, dealt")])
    return table(heads, lines)


def hardest_table(found: Sequence[Row]) -> str:
    """A line for each forget set."""
    heads = ["forget set", "UA retrained", "test accuracy retrained", "of these Hardest's", "CPU seconds to choose"]
    best = {row["seed"]: set(row["chosen"]) for row in found if row["set"] == "Hardest"}
    lines = []
    for name in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == name]
        shares = [f"{len(best[row['seed']] & set(row['chosen'])) / COUNT:.2f}" for row in mine]
        lines.append([name, *cells(mine, "UA", "TA", digits=1), ", ".join(shares), *cells(mine, "cpu", digits=0)])
    return table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("out", type=Path)
    runs.add_argument("--parts", nargs="+", default=["proof", "hardest"], choices=["proof", "hardest"])
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
