"""Which records to train on: what selectors choose, held against uniform samples of the same size.

    python recipes/selecting.py run DATA docs/selecting.jsonl [--parts coreset retain] [--worlds people] [--seeds 0 1 2]
    python recipes/selecting.py show docs/selecting.jsonl           writes the tables of docs/selecting.md

coreset     AutoCoreset on logistic regression (breast_cancer and digits of scikit-learn), beside one uniform sample and
            the best of as many as the search fitted models
influence   records that a model learnt are ranked for a question in other words: where is the one it came from?
retain      a model forgets by the default method, with a small retain set chosen from a pool; asked are other records,
            which neither training nor selector saw, near the forgotten ones and far from them (`recipes/worlds.py`)

DATA is a folder with tofu and stories260k. Seeds of `coreset` are its own; those of worlds are theirs. Use one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from keeping import between, keep, rows
from people import World
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from worlds import Places, Trial, authors, people

from expunge import Model, Network, Request, parse
from expunge.core.audit import Audit
from expunge.core.request import Example
from expunge.notation.parse import parse_list
from expunge.primitives.statistics import mean_interval
from expunge.run.choose import choose_method, default_method
from expunge.select._kinds import Selector
from expunge.select.auto_coreset import AutoCoreset

PAGE = Path(__file__).parent.parent / "docs" / "selecting.md"
Row = dict[str, Any]


# Logistic regression


@dataclass(frozen=True)
class Logistic:
    """The cost of a logistic regression: cross-entropy, and each record's share of the penalty."""

    x: np.ndarray
    y: np.ndarray
    c: float

    def fit(self, places: np.ndarray, weights: np.ndarray) -> LogisticRegression:
        """A model of some weighted records, whose penalty is that of the whole set."""
        scaled = weights * len(self.y) / weights.sum()
        return LogisticRegression(C=self.c, max_iter=500).fit(self.x[places], self.y[places], sample_weight=scaled)

    def costs(self, model: LogisticRegression) -> np.ndarray:
        """Of every record; a class that the model never saw has the probability 1e-300."""
        penalty: float = 0.5 * (model.coef_**2).sum() / self.c / len(self.y)
        known = {kind: place for place, kind in enumerate(model.classes_)}
        said = model.predict_proba(self.x)
        right = [said[k, known[y]] if y in known else 0.0 for k, y in enumerate(self.y)]
        return -np.log(np.maximum(right, 1e-300)) + penalty

    def __call__(self, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return self.costs(self.fit(places, weights))


SUMMARIES: tuple[tuple[int, Literal["importance", "caratheodory"]], ...] = (
    (50, "importance"),
    (100, "importance"),
    (200, "importance"),
    (200, "caratheodory"),
)


def coresets(seed: int) -> Iterator[Row]:
    """A row for each data set and size."""
    for load, c in ((load_breast_cancer, 1.0), (load_digits, 0.1)):
        x, y = load(return_X_y=True)
        x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
        scaler = StandardScaler().fit(x)
        cost = Logistic(scaler.transform(x), y, c)
        best = float(cost(np.arange(len(y)), np.ones(len(y))).sum())
        for size, summary in SUMMARIES:
            begun = time.process_time()
            found = AutoCoreset(size=size, seed=seed, summary=summary).search(cost, len(y), y)
            spent = time.process_time() - begun
            draw = np.random.default_rng(1000 + seed)
            samples = [draw.choice(len(y), size, replace=False) for _ in range(found.fits)]
            models = [cost.fit(sample, np.ones(size)) for sample in samples]
            costs = [float(cost.costs(model).sum()) for model in models]
            accuracies = [float(model.score(scaler.transform(x_test), y_test)) for model in models]
            own = cost.fit(found.places, found.weights)
            yield {
                "data": load.__name__.removeprefix("load_"),
                "size": size,
                "summary": summary,
                "chosen": len(found.places),
                "fits": found.fits,
                "eps": found.cost / best - 1,
                "eps_one": statistics.mean(costs) / best - 1,
                "eps_best": min(costs) / best - 1,
                "accuracy": float(own.score(scaler.transform(x_test), y_test)),
                "accuracy_one": statistics.mean(accuracies),
                "accuracy_best": accuracies[costs.index(min(costs))],
                "cpu": spent,
            }


# Worlds


WORLDS: dict[str, Callable[[int, Places], Trial]] = {"people": people, "authors": authors}
ASKERS = {
    "trak": "Influential()",
    "gradient cosine": "Influential(score='cosine')",
    "hidden states": "Nearest()",
}


def influence(trial: Trial) -> Iterator[Row]:
    """How high the record that an answer came from is ranked, for each question in other words."""
    learnt, asked = [*trial.request.forget, *trial.request.retain], trial.request.probes["paraphrase"]
    records = [[e] for e in learnt]
    found = {
        name: torch.cat(list(parse(text).likeness(trial.original, asked, records))).numpy()
        for name, text in ASKERS.items()
    }
    for name, alike in {**found, "words alone": similar(asked, learnt)}.items():
        places = [int((row > row[k]).sum()) for k, row in enumerate(alike)]
        yield {
            "asker": name,
            "n": len(places),
            "pool": len(learnt),
            "first": statistics.mean(place == 0 for place in places),
            "reciprocal": statistics.mean(1 / (1 + place) for place in places),
        }


def similar(some: Sequence[Any], others: Sequence[Any]) -> np.ndarray:
    """Cosines of weighted counts of words, which know nothing of the model."""
    said = [f"{e.question} {e.answer}" for e in (*some, *others)]
    counts = TfidfVectorizer().fit_transform(said)
    cosines: np.ndarray = (counts[: len(some)] @ counts[len(some) :].T).toarray()
    return cosines


@dataclass(frozen=True)
class Split:
    """A world's retained records: some to choose from, the others only asked."""

    pool: tuple[Example, ...]
    neighbours: tuple[Example, ...]
    """Asked: they share a first name with somebody forgotten, or most words with a forgotten record."""
    rest: tuple[Example, ...]
    size: int
    """How many are chosen."""


def split(name: str, seed: int, trial: Trial) -> Split:
    """To choose from: three of each person's five facts, not the same of all; every second record of an author."""
    retain = trial.request.retain
    if name == "people":
        world = World.drawn(seed + 1)
        first = {world.names[person].split()[0] for person in world.groups.forget}
        asked = [e for place, e in enumerate(retain) if (place + place // 5) % 5 < 2]
        near = [world.names[int(e.id.split("-")[0])].split()[0] in first for e in asked]
        size = 24
    else:
        asked = list(retain[1::2])
        alike = similar(asked, trial.request.forget).max(1)
        near, size = (alike >= np.median(alike)).tolist(), 12
    ids = {e.id for e in asked}
    return Split(
        tuple(e for e in retain if e.id not in ids),
        tuple(e for e, is_near in zip(asked, near, strict=True) if is_near),
        tuple(e for e, is_near in zip(asked, near, strict=True) if not is_near),
        size,
    )


CHOICES = {
    "all of the pool": "",
    "random 0": "",
    "Nearest": "Nearest(count={size})",
    "AutoCoreset": "AutoCoreset(size={size}, seed={seed})",
    "random 1": "",
    "best of as many uniform": "AutoCoreset(size={size}, seed={seed}, summary='uniform', draws=1)",
}


def retained(name: str, seed: int, trial: Trial, wanted: Sequence[str]) -> Iterator[Row]:
    """A row for each way to choose a retain set, and one for the model before."""
    parts, whole = split(name, seed, trial), trial.request
    probes = {"neighbours": parts.neighbours, "rest": parts.rest, "paraphrase": whole.probes["paraphrase"]}
    request = Request(whole.forget, parts.pool, whole.holdout, probes=probes)
    if "before" in wanted:
        yield {"choice": "before", **asked_of(trial.original, request)}
    for choice, text in ((choice, text) for choice, text in CHOICES.items() if choice in wanted):
        begun = time.process_time()
        own = replace(request, retain=chosen(choice, text, trial.original, request, parts.size, seed))
        spent = time.process_time() - begun
        method = choose_method(default_method("language", True), "language").method.with_seed(seed)
        after = method.fit(trial.original, own)(trial.original, own)
        near = len({e.id for e in own.retain} & {e.id for e in namesakes(name, seed, parts)})
        yield {"choice": choice, "count": len(own.retain), "near": near, "cpu": spent, **asked_of(after, request)}


def namesakes(name: str, seed: int, parts: Split) -> list[Example]:
    """Records of the pool about people who share a first name with somebody forgotten."""
    about = {e.id.split("-")[0] for e in parts.neighbours} if name == "people" else set()
    return [e for e in parts.pool if e.id.split("-")[0] in about]


def chosen(choice: str, text: str, network: Network, request: Request, size: int, seed: int) -> tuple[Example, ...]:
    """The retain set."""
    if text:
        selector = parse(text.format(size=size, seed=seed))
        assert isinstance(selector, Selector)
        return selector.narrow(network, request).retain
    if choice == "all of the pool":
        return request.retain
    draw = np.random.default_rng([seed, int(choice.split()[-1])])
    return tuple(request.retain[k] for k in draw.choice(len(request.retain), size, replace=False))


def asked_of(model: Model, request: Request) -> Row:
    """Every record's answer: whether the right option is the likeliest, and the loss in nats."""
    made: Row = {}
    for audit in parse_list("Choice, Loss"):
        assert isinstance(audit, Audit)
        for finding in audit(model, request):
            if finding.set in ("forget", "paraphrase", "neighbours", "rest"):
                made[f"{finding.set}.{audit.name}"] = [round(score, 3) for score in finding.scores]
    return made


# Running and showing


def run(given: argparse.Namespace) -> None:
    """Make the rows that the file lacks."""
    warnings.simplefilter("ignore")
    out, parts, places = given.out, given.parts, Places(given.data, given.models)
    for seed in given.seeds:
        if "coreset" in parts and not any("data" in row and row["seed"] == seed for row in rows(out)):
            for row in coresets(100 + seed):
                keep(out, {"seed": seed, **row})
        for name in given.worlds:
            had = [row for row in rows(out) if row.get("world") == name and row["seed"] == seed]
            trial = WORLDS[name](seed, places)
            if "influence" in parts and not any("asker" in row for row in had):
                for row in influence(trial):
                    keep(out, {"world": name, "seed": seed, **row})
            if "retain" in parts:
                done = {row["choice"] for row in had if "choice" in row}
                for row in retained(name, seed, trial, [choice for choice in given.choices if choice not in done]):
                    keep(out, {"world": name, "seed": seed, **row})


def show(path: Path) -> None:
    """Write the tables between the marks of docs/selecting.md."""
    found = list(rows(path))
    parts = [
        kept_table([row for row in found if "choice" in row]),
        coreset_table([row for row in found if "data" in row]),
        source_table([row for row in found if "asker" in row]),
    ]
    between(PAGE, "selecting", "\n\n".join(parts))


ASKED = ("forget.Choice", "neighbours.Choice", "rest.Choice", "neighbours.Loss", "rest.Loss")


def kept_table(found: Sequence[Row]) -> str:
    """A line for each way to choose: means over the records of all seeds, and their 95 % intervals."""
    lines = [
        "| world | retain set | of them near | " + " | ".join(f"{name}" for name in ASKED) + " |",
        "|---" * 8 + "|",
    ]
    for world in dict.fromkeys(row["world"] for row in found):
        kinds: dict[str, list[Row]] = {}
        for row in (row for row in found if row["world"] == world):
            kinds.setdefault("random" if "random" in row["choice"] else row["choice"], []).append(row)
        for kind, mine in kinds.items():
            near = f"{statistics.mean(r['near'] for r in mine):.0f} of {mine[0]['count']}" if "near" in mine[0] else ""
            lines.append(f"| {world} | {kind} | {near} | {' | '.join(spread(mine, name) for name in ASKED)} |")
    return "\n".join(lines)


def spread(mine: Sequence[Row], name: str) -> str:
    """The mean and the interval of a number over the records of several rows.

    Records of several draws of one seed are the same records, so each counts by the mean over its draws.
    """
    by_seed = [[row[name] for row in mine if row["seed"] == seed] for seed in sorted({row["seed"] for row in mine})]
    scores = [float(np.mean(each)) for draws in by_seed for each in zip(*draws, strict=True)]
    low, high = mean_interval(scores)
    return f"{statistics.mean(scores):.2f} ({low:.2f}-{high:.2f})"


def coreset_table(found: Sequence[Row]) -> str:
    """A line for each data set and size: means over the seeds."""
    lines = [
        "| data | size | summary | models fitted | eps | best of as many uniform | one uniform | accuracy | theirs |",
        "|---" * 9 + "|",
    ]
    for key in dict.fromkeys((row["data"], row["size"], row["summary"]) for row in found):
        mine = [row for row in found if (row["data"], row["size"], row["summary"]) == key]
        mean = {name: statistics.mean(row[name] for row in mine) for name in mine[0] if name not in ("data", "summary")}
        numbers = [f"{mean[name]:.3f}" for name in ("eps", "eps_best", "eps_one", "accuracy")]
        both = f"{mean['accuracy_best']:.3f}, {mean['accuracy_one']:.3f}"
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {mean['fits']:.0f} | {' | '.join(numbers)} | {both} |")
    return "\n".join(lines)


def source_table(found: Sequence[Row]) -> str:
    """A line for each way to rank, a column for each world: share ranked first, and the mean reciprocal rank."""
    worlds = list(dict.fromkeys(row["world"] for row in found))
    lines = [f"| ranked by | {' | '.join(worlds)} |", "|---" * (1 + len(worlds)) + "|"]
    for asker in dict.fromkeys(row["asker"] for row in found):
        cells = []
        for world in worlds:
            mine = [row for row in found if (row["asker"], row["world"]) == (asker, world)]
            first, reciprocal = (statistics.mean(row[name] for row in mine) for name in ("first", "reciprocal"))
            cells.append(f"{first:.2f}, {reciprocal:.2f} (1 of {mine[0]['pool']}, {len(mine)} seeds)")
        lines.append(f"| {asker} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("data", type=Path)
    runs.add_argument("out", type=Path)
    runs.add_argument("--models", type=Path, default=Path("models"))
    runs.add_argument("--parts", nargs="+", default=["coreset", "influence", "retain"])
    runs.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=WORLDS)
    runs.add_argument("--choices", nargs="+", default=["before", *CHOICES])
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    verbs.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        run(given)
    else:
        show(given.out)


if __name__ == "__main__":
    main()
