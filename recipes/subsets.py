"""What a set function learns from choices (INSET, arXiv 2402.03139), beside one that does not see what was left out.

    OMP_NUM_THREADS=1 python recipes/subsets.py run docs/subsets.jsonl [--parts proof hardest] [--seeds 0 1 2]
    python recipes/subsets.py show docs/subsets.jsonl          writes the tables of docs/subsets.md

proof     in sets whose choice only the whole set decides, how well is it learnt? `digits`: 17 pictures of one class and
          3 of another, which are chosen; learning, checking and trying read different pictures. `moons`: 90 points of
          one half-moon and 10 of the other, which are chosen. Beside the complement: the whole set as background (the
          paper's equation), no background (EquiVSet), no background at as many parameters, and chance. Then sets twice
          and four times as large as those that were learnt from, asked about at once and dealt into the size learnt.
hardest   a small vision transformer learns scikit-learn's digits (`recipes/digits.py`). `Subset` learns from 100 small
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
from keeping import between, keep, rows
from mnist import accuracy
from sklearn.datasets import load_digits, make_moons

from expunge.select._kinds import losses_by_record
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
    few: int
    """A small number to learn from."""


TASKS = {
    "digits": Task(
        digit_pools,
        (1500, 200, 300),
        20,
        3,
        Learning(width=64, hidden=64, epochs=15, learning_rate=1e-3, batch=32),
        100,
    ),
    "moons": Task(
        moon_sets, (400, 100, 200), 100, 10, Learning(width=64, hidden=64, epochs=15, learning_rate=1e-3, batch=16), 50
    ),
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
    return next(
        made for w in range(how.width, 1000) if parameters(made := replace(how, width=w, hidden=w), columns) >= least
    )


def proofs(name: str, seed: int) -> Iterator[Row]:
    """A row for each kind of background, from all choices and from few; one for chance."""
    task = TASKS[name]
    learn, check, apart = (task.draw(count, 100 + seed, part) for part, count in enumerate(task.counts))
    yield {"kind": "random", "jaccard": chance(task.size, task.chosen)}
    larger = {times: task.draw(50, 200 + seed, 2, times) for times in (2, 4) if (name, times) != ("digits", 4)}
    columns = learn[0].records.shape[1]
    for kind, settings in KINDS.items():
        how = replace(task.learning, seed=100 + seed, **settings)
        if kind == "none, as many parameters":
            how = widened(how, columns, parameters(task.learning, columns))
        for count in (len(learn), task.few):
            begun = time.process_time()
            function = replace(how, epochs=how.epochs if count == len(learn) else 100)(learn[:count], check)
            spent = time.process_time() - begun
            row = {"kind": kind, "learnt": count, "parameters": parameters(how, columns), "cpu": spent}
            with draw_from(seed):
                row |= {"jaccard": statistics.mean(function.agreements(apart)), "untold": untold(function, apart)}
                if count == len(learn):
                    row |= {f"times {t}": statistics.mean(function.agreements(sets)) for t, sets in larger.items()}
                    row |= {f"times {t}, dealt": dealt(function, sets, task.size) for t, sets in larger.items()}
            yield row


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


def hardest(seed: int) -> Iterator[Row]:
    """A row for each forget set."""
    data = Digits.load()
    pictures = data.train
    original = trained(pictures, seed=seed, epochs=8)
    pool = [[picture] for picture in pictures]
    order = losses_by_record(original, pool).argsort().tolist()
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    teacher = Hardest(count=2, seed=seed)
    made: dict[str, Callable[[], Any]] = {
        "Hardest": lambda: Hardest(count=COUNT, seed=seed)(original, (), pool),
        "Subset": lambda: Subset(count=COUNT, teacher=teacher, seed=seed)(original, (), pool),
        "Subset, no background": lambda: Subset(count=COUNT, teacher=teacher, background="none", seed=seed)(
            original, (), pool
        ),
        "lowest loss": lambda: order[:COUNT],
        "random": lambda: drawn[:COUNT],
    }
    found: dict[str, set[int]] = {}
    for name, choose in made.items():
        begun = time.process_time()
        chosen = choose()
        spent = time.process_time() - begun
        found[name] = set(getattr(chosen, "indices", chosen))
        forget = [p for k, p in enumerate(pictures) if k in found[name]]
        retrained = trained(tuple(p for k, p in enumerate(pictures) if k not in found[name]), seed=seed + 100, epochs=8)
        yield {
            "set": name,
            "as Hardest": len(found[name] & found["Hardest"]) / COUNT,
            "UA": 100 - 100 * accuracy(retrained, forget),
            "TA": 100 * accuracy(retrained, data.test),
            "note": getattr(chosen, "note", ""),
            "cpu": spent,
        }


# Running and showing


def run(given: argparse.Namespace) -> None:
    """Make the rows that the file lacks."""
    for seed in given.seeds:
        for name in TASKS if "proof" in given.parts else ():
            if not any(row.get("task") == name and row["seed"] == seed for row in rows(given.out)):
                for row in list(proofs(name, seed)):
                    keep(given.out, {"task": name, "seed": seed, **row})
        if "hardest" in given.parts and not any("set" in row and row["seed"] == seed for row in rows(given.out)):
            for row in list(hardest(seed)):
                keep(given.out, {"seed": seed, **row})


def show(path: Path) -> None:
    """Write the tables between the marks of docs/subsets.md."""
    found = list(rows(path))
    parts = [
        proof_table([row for row in found if "task" in row]),
        hardest_table([row for row in found if "set" in row]),
    ]
    between(PAGE, "subsets", "\n\n".join(parts))


def cells(mine: Sequence[Row], *names: str, digits: int = 2) -> list[str]:
    """Of each column the numbers of all seeds."""
    return [", ".join(f"{row[name]:.{digits}f}" for row in mine if name in row) for name in names]


def proof_table(found: Sequence[Row]) -> str:
    """A line for each task, number of choices and kind."""
    names = ["jaccard", "untold", "times 2", "times 2, dealt", "times 4", "times 4, dealt"]
    heads = ["task", "choices", "background", "parameters", "agreement", "untold how many", *names[2:]]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    keys = dict.fromkeys((row["task"], row.get("learnt", 0), row["kind"]) for row in found)
    for task, learnt, kind in sorted(keys, key=lambda key: (key[0], -key[1])):
        mine = [r for r in found if (r["task"], r.get("learnt", 0), r["kind"]) == (task, learnt, kind)]
        size = f"{mine[0]['parameters']:,}" if "parameters" in mine[0] else ""
        lines.append("| " + " | ".join([task, str(learnt or ""), kind, size, *cells(mine, *names)]) + " |")
    return "\n".join(lines)


def hardest_table(found: Sequence[Row]) -> str:
    """A line for each forget set."""
    heads = [
        "forget set",
        "UA retrained",
        "test accuracy retrained",
        "share that Hardest chose",
        "CPU seconds to choose",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == name]
        both = [*cells(mine, "UA", "TA", digits=1), *cells(mine, "as Hardest"), *cells(mine, "cpu", digits=0)]
        lines.append("| " + " | ".join([name, *both]) + " |")
    return "\n".join(lines)


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
