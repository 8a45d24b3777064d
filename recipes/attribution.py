"""How well TRAK foretells what a network would be without some of its pictures: small perceptrons that read digits.

    OMP_NUM_THREADS=1 python recipes/attribution.py run docs/attribution.jsonl
    python recipes/attribution.py show docs/attribution.jsonl          writes the tables of docs/oracles.md

The networks, sets and retrained models are those of `recipes/oracles.py`. Three questions, three seeds each.

foretold   the class scores of the forgotten 60: correlation of the change that `DatamodelDirect` makes (the mean over
           ten checkpoints) with the change that leaving them out made (50 retrained networks); and the error that is
           left, over that of doing nothing, at the multiplier that is best for another 60, drawn at random
lds        the linear datamodelling score: 50 networks learn half of the pictures each; Spearman's correlation, over the
           networks, of an unseen picture's margin with the sum of the attributions to it of what was learnt
klom       50 networks trained towards what `DatamodelDirect` says (datamodel matching), beside the retrained ones
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows, run_or_show
from oracles import MODELS, TRAINED, Parts, ensemble, margins_of, measured, scores, tuned
from scipy.stats import spearmanr
from torch import Tensor

from expunge import Network, Request
from expunge.core.model import network_of
from expunge.core.question import LogProbabilities
from expunge.data.images import Picture
from expunge.edit.datamodel_direct import DatamodelDirect
from expunge.internals.sketches import Sketcher, damp
from expunge.methods.datamodel_matching import DatamodelMatching
from expunge.models.vision import ImageClassifier
from expunge.primitives.statistics import mean_interval

PAGE = Path(__file__).parent.parent / "docs" / "oracles.md"
CHECKPOINTS, SIDE, DAMPING = 10, 16, 0.01
MULTIPLIERS = tuple(2**k for k in range(9))
TINY = 1e-2
"""A step so short that scores move along their slopes."""


def steps(models: Sequence[ImageClassifier], request: Request) -> list[tuple[ImageClassifier, Network]]:
    """Each model, and where the datamodel's step takes it."""
    edit = DatamodelDirect(side=SIDE, damping=DAMPING)
    return [(model, network_of(edit(model, request).plain(), "steps")) for model in models]


def shift(ends: Sequence[tuple[ImageClassifier, Network]], asked: Sequence[Picture], multiplier: float) -> Tensor:
    """The mean change of the class scores by the step, times `multiplier`."""
    made = []
    for model, end in ends:
        module = copy.deepcopy(model.module)
        with torch.no_grad():
            for weight, there in zip(module.parameters(), end.module.parameters(), strict=True):
                weight.lerp_(there, multiplier)
        made.append(centred(scores(model.fork(module), asked) - scores(model, asked)))
    return torch.stack(made).mean(0)


def centred(logits: Tensor) -> Tensor:
    """A number added to all class scores changes no answer."""
    return logits - logits.mean(1, keepdim=True)


def true_change(before: Sequence[ImageClassifier], parts: Parts, seed: int) -> Tensor:
    """The mean change of the forgotten pictures' class scores by training without them."""
    after = ensemble(parts.retain, seed)
    one, other = (torch.stack([scores(m, parts.forget) for m in models]).mean(0) for models in (after, before))
    return centred(one - other)


def foretold(kind: str, seed: int) -> Iterator[dict[str, Any]]:
    parts = Parts.drawn(kind, seed)
    before = ensemble((*parts.forget, *parts.retain), 1000 + seed)
    change = true_change(before, parts, 2000 + 10 * seed)
    ends = steps(before[:CHECKPOINTS], parts.request)
    slope = shift(ends, parts.forget, TINY) / TINY
    other = Parts(parts.retain[:60], (*parts.forget, *parts.retain[60:]), parts.unseen)
    known = true_change(before, other, 2005 + 10 * seed)
    others = steps(before[:CHECKPOINTS], other.request)
    tried = {m: shift(others, other.forget, m) for m in MULTIPLIERS}
    best = min(tried, key=lambda m: float((tried[m] - known).square().mean()))
    left = shift(ends, parts.forget, best) - change
    yield {
        "correlation": float(torch.corrcoef(torch.stack([slope.flatten(), change.flatten()]))[0, 1]),
        "multiplier": best,
        "left": float((left.square().mean() / change.square().mean()).sqrt()),
    }


def lds(kind: str, seed: int) -> Iterator[dict[str, Any]]:
    parts = Parts.drawn(kind, seed)
    learnt = (*parts.forget, *parts.retain)
    asked = parts.unseen[:200]
    draw = torch.Generator().manual_seed(seed)
    halves = torch.stack([torch.randperm(TRAINED, generator=draw)[: TRAINED // 2] for _ in range(MODELS)])
    said = margins_of(ensemble(learnt, 3000 + seed, halves), Parts(asked[:1], asked, asked))["unseen"]
    tau = torch.stack([attributions(m, learnt, asked) for m in ensemble(learnt, 1000 + seed)[:CHECKPOINTS]]).mean(0)
    inside = torch.zeros(MODELS, TRAINED, dtype=torch.float64).scatter_(1, halves, 1.0)
    sums = inside @ tau
    found = [float(spearmanr(said[:, k], sums[:, k]).statistic) for k in range(len(asked))]
    low, high = mean_interval(found)
    yield {"lds": statistics.mean(found), "low": low, "high": high, "n": len(found)}


def attributions(model: ImageClassifier, learnt: Sequence[Picture], asked: Sequence[Picture]) -> Tensor:
    """[learnt, asked]: how much each picture that was learnt speaks for the right class of each that is asked."""
    sketcher = Sketcher(model, SIDE, 0)
    ours, theirs = sketcher.sketch(learnt), sketcher.sketch(asked)
    doubt = 1 - model.ask(LogProbabilities(), learnt).log_probs.double().exp()
    solved: Tensor = torch.linalg.solve(damp(ours.T @ ours, DAMPING), theirs.T)
    return doubt[:, None] * ours @ solved


def matched(kind: str, seed: int, multiplier: float) -> Iterator[dict[str, Any]]:
    parts = Parts.drawn(kind, seed)
    before = ensemble((*parts.forget, *parts.retain), 1000 + seed)
    oracles = margins_of(ensemble(parts.retain, 2000 + 10 * seed), parts)
    oracle = DatamodelDirect(multiplier=multiplier, side=SIDE, damping=DAMPING)
    method = DatamodelMatching(oracle=oracle, learn=tuned(None, 1e-3, 30.0, "forget"))
    results = [method(model, parts.request).plain() for model in before]
    yield {"multiplier": multiplier, **measured(results, oracles, parts)}


def run(out: Path) -> None:
    """The rows that the file lacks."""
    for seed in range(3):
        for kind in ("random", "alike"):
            made = [row for row in rows(out) if (row["set"], row["seed"]) == (kind, seed)]
            common = {"set": kind, "seed": seed}
            for study, make in (("foretold", foretold), ("lds", lds)):
                if not any(row["study"] == study for row in made) and (study, kind) != ("lds", "alike"):
                    for row in make(kind, seed):
                        keep(out, {"study": study, **common, **row})
            [told] = [r for r in rows(out) if (r["study"], r["set"], r["seed"]) == ("foretold", kind, seed)]
            if not any(row["study"] == "klom" for row in made):
                for row in matched(kind, seed, told["multiplier"]):
                    keep(out, {"study": "klom", **common, **row})


def show(out: Path) -> None:
    """A line for each set, in which seeds stand one after the other."""
    found = list(rows(out))
    lines = [
        "| set | correlation with the true change | multiplier | error left, over doing nothing's | LDS (95 %) "
        "| KLoM of datamodel matching: forget | retain | unseen |",
        "|---" * 8 + "|",
    ]
    for kind in ("random", "alike"):
        mine = {s: [r for r in found if (r["study"], r["set"]) == (s, kind)] for s in ("foretold", "lds", "klom")}
        cells = [
            ", ".join(f"{r[name]:.2f}" for r in mine["foretold"]) for name in ("correlation", "multiplier", "left")
        ]
        cells += [", ".join(f"{r['lds']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in mine["lds"])]
        for part in ("forget", "retain", "unseen"):
            cells.append(", ".join(f"{r[f'{part} p95']:.2f} ({r[f'{part} mean']:.2f})" for r in mine["klom"]))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    between(PAGE, "attribution", "\n".join(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_or_show(__doc__, run, show)
