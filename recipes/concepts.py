"""A class unlearnt by poisoned stand-ins, and the concepts that it rested on: the proof of both on 5,000 digits.

    OMP_NUM_THREADS=1 python recipes/concepts.py run docs/concepts.jsonl     runs the seeds that are missing there
    python recipes/concepts.py show docs/concepts.jsonl                      writes the tables of docs/results.md

Poisoning: class 8 is learnt as class 3 by a small CNN, the last layer alone moving, with and without a patch of the
donor and with its own label as a control; beside it the network that never saw the class. Concepts: eleven attributes
that are computed from a picture (holes, strokes, symmetry, ...), each shown by the pictures of other classes that have
most of it; the three that a class is said to rest on are taken out of its test pictures' states, and so are others.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import add, between, rows
from mnist import DEVIATION, MEAN, Mnist, cnn, features, trained
from scipy import ndimage
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge import Network, Request, parse
from expunge.attack.relearn import Relearn
from expunge.audits._concept_vectors import remaining
from expunge.audits.accuracy import Accuracy
from expunge.audits.concept_inference import ConceptInference
from expunge.audits.tcav import TCAV
from expunge.core.model import Batch
from expunge.data.images import Picture
from expunge.internals.states import Inside
from expunge.methods.poison import Poison
from expunge.models.vision import ImageClassifier

Row = dict[str, Any]
SEEDS = (31, 32, 33)
"""Never used while the methods were written; seed 91 was, for the default of `Poison.learn`."""
FORGOTTEN, DONOR = 8, 3
PAGE = Path(__file__).parent.parent / "docs" / "results.md"

METHODS = {
    "original picture, donor's label": "Poison(donor=3, patch=0.0)",
    "original picture, random label": "Poison(donor=3, patch=0.0, label='random')",
    "original picture, own label": "Poison(donor=3, patch=0.0, label='own')",
    "centre patch, donor's label": "Poison(donor=3)",
    "centre patch, random label": "Poison(donor=3, label='random')",
    "centre patch, own label": "Poison(donor=3, label='own')",
    "located patch, donor's label": "Poison(donor=3, patch=0.2857142857142857, place='located')",
    "whole donor picture, donor's label": "Poison(donor=3, patch=1.0)",
    "whole donor picture, random label": "Poison(donor=3, patch=1.0, label='random')",
    "whole donor picture, own label": "Poison(donor=3, patch=1.0, label='own')",
    "original picture, donor's label, all weights": "Poison(donor=3, patch=0.0, learn=Finetune("
    "objective=0.1 * IdkNLL() + 0.9 * RetainNLL(), adapter=Full(), learning_rate=1e-3, steps=600, batch=8, "
    "retain_batch=56, stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False))",
}
TARGETED, OWN = "original picture, donor's label", "original picture, own label"
ATTACKED = (TARGETED, "original picture, donor's label, all weights")
"""What is relearnt, beside the networks that never saw the class."""
RELEARN = Relearn(steps=7, items=100)
"""One pass over a quarter of the class's training pictures, in batches of 16."""

CLASSES = (0, 1, 8)
LAYERS = ("body", "body.4")
"""What the last layer reads (64 numbers), and what the layer below reads (1,568 numbers)."""
TOP = 3
TRIPLES = 100


# Poisoning


def poisoning(digits: Mnist, original: ImageClassifier, retrained: ImageClassifier, seed: int) -> Iterator[Row]:
    """A row for each method, and one for each network that was only trained."""
    request = asked(digits)
    kept = 0.0
    for name, network in {"original": original, "retrained": retrained, "untrained": cnn(seed)}.items():
        row: Row = {"name": name, **judged(network, request, digits, relearn=name != "original")}
        kept = row["A_retain"] if name == "original" else kept
        yield row
    for name, text in METHODS.items():
        begun = time.process_time()
        method = parse(text)
        assert isinstance(method, Poison)
        after = replace(method, seed=seed, learn=method.learn.with_seed(seed))(original, request)
        assert isinstance(after, ImageClassifier)
        cpu = time.process_time() - begun
        row = {"name": name, **judged(after, request, digits, relearn=name in ATTACKED), "cpu": round(cpu, 2)}
        # Evidence for Poison alone: a text that names what it is made of would be taken for evidence of that.
        told = method.label != "own" and "learn" not in text
        yield row | ({"method": text, "family": "CNN", "met": met(row, kept)} if told else {})


def met(row: Row, kept: float) -> dict[str, bool]:
    """The two targets, stated beforehand."""
    return {
        "A_test below 2 %": row["A_test"] < 0.02,
        "A_retain falls by less than 1 point": kept - row["A_retain"] < 0.01,
    }


def asked(digits: Mnist) -> Request:
    """Class 8 is to go; both parts' test pictures are asked about."""
    cut = [
        tuple(p for p in part if (p.label == FORGOTTEN) == gone)
        for part in (digits.train, digits.test)
        for gone in (1, 0)
    ]
    return Request(cut[0], cut[1], probes={"forget_test": cut[2], "retain_test": cut[3]})


def judged(network: ImageClassifier, request: Request, digits: Mnist, relearn: bool) -> dict[str, float]:
    """Accuracies, what a probe of the 64 numbers tells, and what comes back."""
    found = {f.set: f.value for f in Accuracy()(network, request)}
    row = {"A_train": found["forget"], "A_test": found["forget_test"], "A_retain": found["retain_test"]}
    row["probe"] = probed(network, digits)
    if relearn:
        back = {f.set: f.value for f in Accuracy()(RELEARN(network, request), request)}
        row |= {"relearnt": back["forget_test"], "relearnt_retain": back["retain_test"]}
    return {name: round(value, 4) for name, value in row.items()}


def probed(network: ImageClassifier, digits: Mnist) -> float:
    """Share of the class's test pictures that a logistic probe, shown the true labels, calls the class."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    probe.fit(features(network, digits.train).numpy(), [p.label for p in digits.train])
    gone = [p for p in digits.test if p.label == FORGOTTEN]
    return float(np.mean(probe.predict(features(network, gone).numpy()) == FORGOTTEN))


# Concepts


def grey(picture: Picture) -> np.ndarray:
    """The picture from 0 to 1."""
    return (picture.pixels[0] * DEVIATION + MEAN).clamp(0, 1).double().numpy()


def attributes(picture: Picture) -> dict[str, float]:
    """What can be said of a picture without knowing its class."""
    image = grey(picture)
    ink = image > 0.4
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    high, wide = (len(range(at[0], at[-1] + 1)) for at in (rows, columns))
    y, x = np.nonzero(ink)
    return {
        "holes": float(ndimage.label(~ink)[1] - 1),
        "thick stroke": float(ndimage.distance_transform_edt(ink)[ink].mean()),
        "narrow": high / wide,
        "upright stroke": float(image.sum(0).max() / image.sum()),
        "level stroke": float(image.sum(1).max() / image.sum()),
        "slanted": float(-np.cov(y, x)[0, 1] / np.var(y)),
        "mirrored left and right": likeness(image, image[:, ::-1]),
        "mirrored up and down": likeness(image, image[::-1]),
        "top-heavy": float(-(y.mean() - rows.mean()) / high),
        "right-heavy": float((x.mean() - columns.mean()) / wide),
        "ink in the middle": float(image[11:17, 11:17].mean()),
    }


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Largest correlation of two pictures over shifts of up to four columns or rows."""
    shifted = (np.roll(other, shift, axis) for axis in (0, 1) for shift in range(-4, 5))
    return max(float(np.corrcoef(one.ravel(), each.ravel())[0, 1]) for each in shifted)


@cache
def measured(digits: Mnist) -> dict[str, dict[str, float]]:
    """The attributes of every training picture, by id."""
    return {picture.id: attributes(picture) for picture in digits.train}


def shown(digits: Mnist, kind: int) -> Request:
    """A class, all others, and as probes the 100 pictures of other classes that have most of each attribute."""
    others = tuple(p for p in digits.train if p.label != kind)
    told = measured(digits)
    names = list(next(iter(told.values())))
    return Request(
        forget=tuple(p for p in digits.train if p.label == kind)[:100],
        retain=others,
        probes={name: tuple(sorted(others, key=lambda p: -told[p.id][name])[:100]) for name in names},
    )


def inference(digits: Mnist, network: Network, seed: int) -> Iterator[Row]:
    """Which concepts each class rests on, and what taking them out costs beside random ones."""
    for kind, layer in itertools.product(CLASSES, LAYERS):
        begun = time.process_time()
        request = shown(digits, kind)
        names = tuple(request.probes)
        audit = ConceptInference(concepts=names, layer=layer, draws=15, seed=seed)
        nats = {f.set.removeprefix("concept "): round(f.value, 3) for f in audit(network, request)}
        ranked = sorted(names, key=lambda name: -nats[name])
        known, random = audit.directions(network, request), audit.random_directions(network, request)
        weighed = bottleneck(network, layer, digits, kind, known)
        curve = Curve(network, layer, request.retain, tuple(p for p in digits.test if p.label == kind))
        draw = np.random.default_rng(seed)
        chance = [curve.area([random[k] for k in draw.permutation(len(random))[:TOP]]) for _ in range(TRIPLES)]
        triples = [
            curve.area([known[name] for name in ranked if name in triple])
            for triple in itertools.combinations(names, TOP)
        ]
        area = curve.area([known[name] for name in ranked[:TOP]])
        yield {
            "class": kind,
            "layer": layer,
            "top": ranked[:TOP],
            "nats": nats,
            "weighed": weighed,
            "start": round(curve.odds([]), 3),
            "area": round(area, 3),
            "area_weighed": round(curve.area([known[name] for name in weighed]), 3),
            "area_random": round(statistics.mean(chance), 3),
            "area_triples": round(statistics.mean(triples), 3),
            "below_random": round(float(np.mean([area < other for other in chance])), 4),
            "place": 1 + sum(other < area for other in triples),
            "accuracy_left": round(curve.accuracy([known[name] for name in ranked[:TOP]]), 4),
            "cpu": round(time.process_time() - begun, 1),
        }


def bottleneck(network: Network, layer: str, digits: Mnist, kind: int, known: dict[str, np.ndarray]) -> list[str]:
    """The published concept search: the largest weights of a sparse linear classifier of the projections."""
    states = Inside.of(network, layer).states(digits.train).double().numpy()
    projected = StandardScaler().fit_transform(states @ np.stack(list(known.values()), axis=1))
    sparse = SGDClassifier(loss="log_loss", penalty="elasticnet", l1_ratio=0.99, alpha=1e-3, random_state=0)
    weights = sparse.fit(projected, [p.label == kind for p in digits.train]).coef_[0]
    return [name for _, name in sorted(zip(-weights, known, strict=True))][:TOP]


class Curve:
    """What is left of a class's log-odds as directions are taken out of its pictures' states, one after another."""

    def __init__(self, network: Network, layer: str, others: Batch, pictures: tuple[Picture, ...]) -> None:
        self.inside = Inside.of(network, layer)
        self.pictures = pictures
        self.states = self.inside.states(pictures).double().numpy()
        self.middle = self.inside.states(others).double().mean(0).numpy()
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def left(self, directions: Sequence[np.ndarray]) -> np.ndarray:
        """Each picture's log-odds without the directions."""
        key = tuple(sorted(id(direction) for direction in directions))
        if key not in self.known:
            states = torch.from_numpy(remaining(self.states, self.middle, directions)).float()
            self.known[key] = self.inside.odds(self.pictures, states).double().numpy()
        return self.known[key]

    def odds(self, directions: Sequence[np.ndarray]) -> float:
        """Their mean, in nats."""
        return float(self.left(directions).mean())

    def accuracy(self, directions: Sequence[np.ndarray]) -> float:
        """Share of the pictures whose class is likelier than all others together."""
        return float((self.left(directions) > 0).mean())

    def area(self, directions: Sequence[np.ndarray]) -> float:
        """Mean height of the curve over none, one, two, ... directions taken out (trapezoids), in nats."""
        heights = [self.odds(directions[:k]) for k in range(len(directions) + 1)]
        return float(np.trapezoid(heights) / len(directions))


def significance(digits: Mnist, network: Network, seed: int) -> Iterator[Row]:
    """TCAV of every concept, against ten random sets."""
    for kind in CLASSES:
        request = shown(digits, kind)
        names = tuple(request.probes)
        found = {f.set: f.value for f in TCAV(concepts=names, layer="body.4", draws=10, seed=seed)(network, request)}
        yield {
            "tcav": kind,
            "random": round(found["random"], 3),
            "shares": {name: round(found[f"concept {name}"], 3) for name in names},
            "significant": [name for name in names if found[f"concept {name}, p"] < 0.05 / len(names)],
        }


# Running and showing


def run(path: Path) -> None:
    """Make the rows of every seed that the file lacks."""
    torch.set_num_threads(1)
    done = {row["seed"] for row in rows(path)}
    digits = Mnist.load()
    for seed in (seed for seed in SEEDS if seed not in done):
        begun = time.process_time()
        original = trained(cnn(seed), digits.train, seed)
        retrained = trained(cnn(seed), [p for p in digits.train if p.label != FORGOTTEN], seed)
        made = [*poisoning(digits, original, retrained, seed), *inference(digits, original, seed)]
        made += significance(digits, original, seed) if seed == SEEDS[0] else ()
        add(path, ({"seed": seed, **row} for row in made))
        print(f"seed {seed}: {len(made)} rows, {time.process_time() - begun:.0f} CPU seconds", flush=True)


def show(path: Path) -> None:
    """Write the tables between the marks of docs/results.md."""
    found = list(rows(path))
    parts = [
        poison_table([row for row in found if "name" in row]),
        concept_table([row for row in found if "class" in row]),
        share_table([row for row in found if "tcav" in row]),
        "\n".join(["| asked | found | |", "|---|---|---|", *bounds(found)]),
    ]
    between(PAGE, "concepts", "\n\n".join(parts))
    print("\n\n".join(parts))


def poison_table(found: list[Row]) -> str:
    """A line for each method: medians over the seeds and their range, in percent."""
    columns = ("A_train", "A_test", "A_retain", "probe", "relearnt", "relearnt_retain")
    lines = [
        "| class 8 as class 3 | A_train | A_test | A_retain | probe tells | A_test relearnt | A_retain then |",
        "|---" * 7 + "|",
    ]
    for name in dict.fromkeys(row["name"] for row in found):
        mine = [row for row in found if row["name"] == name]
        cells = [percent([row[column] for row in mine if column in row]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(values: list[float]) -> str:
    """Median and range."""
    if not values:
        return ""
    middle, low, high = (f"{100 * of(values):.1f}" for of in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low}-{high})"


def concept_table(found: list[Row]) -> str:
    """A line for each class, layer and seed."""
    lines = [
        "| class | layer | seed | top 3, nats of the whole | log-odds before | area, top 3 | random directions | below "
        "random | all triples of attributes | place of 165 | area, sparse weights |",
        "|---" * 11 + "|",
    ]
    for row in sorted(found, key=lambda row: (row["class"], row["layer"], row["seed"])):
        top = ", ".join(f"{name} {row['nats'][name]:.1f}" for name in row["top"])
        lines.append(
            f"| {row['class']} | {row['layer']} | {row['seed']} | {top} of {row['nats']['whole']:.1f} | "
            f"{row['start']:.1f} | {row['area']:.1f} | {row['area_random']:.1f} | {row['below_random']:.0%} | "
            f"{row['area_triples']:.1f} | {row['place']} | {row['area_weighed']:.1f} |"
        )
    return "\n".join(lines)


def share_table(found: list[Row]) -> str:
    """TCAV's shares, those that differ from random in bold."""
    lines = [
        "| class | random | " + " | ".join(found[0]["shares"]) + " |",
        "|---" * (2 + len(found[0]["shares"])) + "|",
    ]
    for row in found:
        cells = [f"**{v:.2f}**" if name in row["significant"] else f"{v:.2f}" for name, v in row["shares"].items()]
        lines.append(f"| {row['tcav']} | {row['random']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bounds(found: list[Row]) -> Iterator[str]:
    """What was asked, what every seed gave, and whether all of them met it."""
    told = {(row["name"], row["seed"]): row for row in found if "name" in row}
    seeds = sorted({seed for _, seed in told})
    pairs = [(told[TARGETED, s], told["original", s], told[OWN, s]) for s in seeds]
    yield bound("donor's label: A_test below 2 %", [100 * one["A_test"] for one, _, _ in pairs], lambda v: v < 2)
    drops = [100 * (was["A_retain"] - one["A_retain"]) for one, was, _ in pairs]
    yield bound("donor's label: A_retain falls by less than 1 point", drops, lambda v: v < 1)
    near = [100 * abs(own["A_test"] - was["A_test"]) for _, was, own in pairs]
    yield bound("own label: A_test within 5 points of the original's", near, lambda v: v <= 5)
    for kind in CLASSES:
        for layer in LAYERS:
            mine = [r for r in found if r.get("class") == kind and r["layer"] == layer]
            below = [100 * r["below_random"] for r in sorted(mine, key=lambda r: r["seed"])]
            text = f"class {kind}, {layer}: area below that of 95 % of random triples"
            yield bound(text, below, lambda v: v >= 95)


def bound(text: str, values: list[float], good: Callable[[float], bool]) -> str:
    """A line of the table of bounds."""
    met = sum(map(good, values))
    verdict = "met" if met == len(values) else f"**not met** ({met} of {len(values)} seeds)"
    return f"| {text} | {', '.join(f'{value:.1f}' for value in values)} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("path", type=Path)
    asked_for = parser.parse_args()
    (run if asked_for.what == "run" else show)(asked_for.path)


if __name__ == "__main__":
    main()
