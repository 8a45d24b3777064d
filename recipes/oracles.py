"""Datamodel matching and KLoM (arXiv 2410.23232) on scikit-learn's digits, beside models really retrained.

    OMP_NUM_THREADS=1 python recipes/oracles.py run docs/oracles.jsonl
    python recipes/oracles.py show docs/oracles.jsonl          writes the tables of docs/oracles.md

Two forget sets of 60 of 1,200 pictures: at random, and 60 eights that are alike. Two questions.

convex   a linear classifier with an l2 penalty: how far are the class scores of the forgotten from those of one trained
         without them (RMSE)? Nothing done; ascent, at the best of 40 rates tuned on the answer; Newton's step; a
         network trained towards Newton's scores. Three seeds, which draw the pictures.
klom     50 originals and 50 retrained multilayer perceptrons (64-64-10), which differ in their start and order: KLoM of
         nothing, of ascent and plain fine-tuning at the best rate tried, of oracle matching, of datamodel matching, and
         of one half of the retrained models against the other (the floor). Beside it U-LiRA.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from keeping import between, keep, rows, run_or_show, table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig, PreTrainedModel

from expunge import Finetune, Full, LogProbabilities, Request, Stop
from expunge.core.method import Method
from expunge.core.model import Model
from expunge.core.objective import Objective
from expunge.core.question import Scores
from expunge.data.images import Picture
from expunge.events import OnEvent, ignore_event
from expunge.methods.datamodel_matching import DatamodelMatching
from expunge.methods.epochs import Epochs
from expunge.methods.newton import Newton
from expunge.models.vision import ImageClassifier
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from expunge.primitives.klom import klom, margins
from expunge.primitives.statistics import auc
from expunge.primitives.ulira import ulira

TRAINED, FORGOTTEN, CLASS, CLASSES, PIXELS, WIDTH = 1200, 60, 8, 10, 64, 64
SHAPE: dict[str, Any] = {"num_channels": 1, "num_labels": CLASSES}
"""What the configuration says; transformers takes both and declares neither."""
PENALTY = 1.0
"""Of the squared weights, half of it, beside the sum of the losses: scikit-learn's default, C = 1."""
MODELS, EPOCHS, BATCH, RATE = 50, 30, 60, 3e-3
NEVER = Stop(level=None, max_retain_increase=None, max_growth=None, max_forget_loss=None, every=100_000)


@dataclass(frozen=True)
class Parts:
    """Pictures to forget, to retain, and of no training."""

    forget: tuple[Picture, ...]
    retain: tuple[Picture, ...]
    unseen: tuple[Picture, ...]

    @staticmethod
    def drawn(kind: str, seed: int) -> Parts:
        """`random`, or `alike`: the eights nearest to one of them."""
        data = load_digits()
        x, y = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16, data.target
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).tolist()
        train, unseen = order[:TRAINED], order[TRAINED:]
        gone = train[:FORGOTTEN]
        if kind == "alike":
            eights = [k for k in train if y[k] == CLASS]
            gone = sorted(eights, key=lambda k: float((x[k] - x[eights[0]]).norm()))[:FORGOTTEN]

        def picture(k: int) -> Picture:
            return Picture(f"digit-{k}", x[k].view(1, 8, 8), int(y[k]), f"{k}")

        lost = set(gone)
        stays = [k for k in train if k not in lost]
        return Parts(*(tuple(map(picture, part)) for part in (gone, stays, unseen)))

    @property
    def request(self) -> Request:
        return Request(self.forget, self.retain)


class _Config(PretrainedConfig):
    model_type = "expunge_pixels"


class Pixels(PreTrainedModel):
    """A linear classifier of 64 pixels, or one with a hidden layer."""

    config_class = _Config

    def __init__(self, config: PretrainedConfig, body: nn.Module, head: nn.Linear) -> None:
        super().__init__(config)
        self.body, self.classifier = body, head

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values.flatten(1))))


def network(body: nn.Module, head: nn.Linear) -> ImageClassifier:
    module: PreTrainedModel = Pixels(_Config(**SHAPE), body, head)
    return ImageClassifier.of(module.eval(), None)


def scores(model: Model, pictures: Sequence[Picture]) -> Tensor:
    with torch.no_grad():
        return model.ask(Scores(), pictures).logits


def linear(parts: Parts, pictures: Sequence[Picture]) -> ImageClassifier:
    """The linear classifier that minimises the penalised loss of these pictures."""
    start = network(nn.Identity(), nn.Linear(PIXELS, CLASSES).double())
    with torch.no_grad():
        for parameter in start.module.parameters():
            parameter.zero_()
    other = tuple(p for p in parts.unseen[:1])  # a request forgets something; nothing of it is read
    result = Newton(l2=PENALTY / len(pictures), steps=30)(start, Request(other, tuple(pictures)))
    assert isinstance(result, ImageClassifier)
    return result


def convex(kind: str, seed: int) -> list[dict[str, Any]]:
    """RMSE of the forgotten pictures' class scores to those of the classifier trained without them."""
    parts = Parts.drawn(kind, seed)
    before, oracle = linear(parts, (*parts.forget, *parts.retain)), linear(parts, parts.retain)

    def far(model: Model, pictures: Sequence[Picture]) -> float:
        one, other = (_centred(scores(each, pictures)) for each in (model, oracle))
        return float((one - other).square().mean().sqrt())

    learn = Finetune(
        adapter=Full(),
        learning_rate=5e-3,
        steps=2000,
        batch=60,
        retain_batch=180,
        schedule="linear",
        stop=NEVER,
        norms=False,
    )
    newton = Newton(l2=PENALTY / len(parts.retain))
    made = {
        "nothing": before,
        "ascent, best of 40 rates": min(
            (ascended(before, parts, 10 ** (-3 + 5 * k / 39)) for k in range(40)), key=lambda m: far(m, parts.forget)
        ),
        "Newton": newton(before, parts.request),
        "datamodel matching": DatamodelMatching(oracle=newton, learn=learn)(before, parts.request),
    }
    return [
        {
            "study": "convex",
            "set": kind,
            "seed": seed,
            "method": name,
            "forget": far(m, parts.forget),
            "retain": far(m, parts.retain),
            "unseen": far(m, parts.unseen),
        }
        for name, m in made.items()
    ]


def _centred(logits: Tensor) -> Tensor:
    """A number added to all class scores changes no answer."""
    return logits - logits.mean(1, keepdim=True)


def ascended(model: ImageClassifier, parts: Parts, rate: float) -> ImageClassifier:
    """One step up the forget set's loss, by its gradient."""
    module = copy.deepcopy(model.module)
    x = torch.stack([p.pixels.flatten() for p in parts.forget]).double()
    labels = torch.tensor([p.label for p in parts.forget])
    weights = [module.classifier.weight.requires_grad_(True), module.classifier.bias.requires_grad_(True)]
    slopes = torch.autograd.grad(cross_entropy(x @ weights[0].T + weights[1], labels), weights)
    with torch.no_grad():
        for weight, slope in zip(weights, slopes, strict=True):
            weight.add_(rate * slope)
    return model.fork(module.requires_grad_(False))


# KLoM: ensembles, trained as one batched tensor


def starts(draw: torch.Generator) -> list[Tensor]:
    """Weights of untrained multilayer perceptrons as one tensor each."""
    shapes = ((MODELS, PIXELS, WIDTH), (MODELS, 1, WIDTH), (MODELS, WIDTH, CLASSES), (MODELS, 1, CLASSES))
    bounds = (PIXELS**-0.5, PIXELS**-0.5, WIDTH**-0.5, WIDTH**-0.5)
    return [
        ((2 * torch.rand(shape, generator=draw) - 1) * bound).requires_grad_(True)
        for shape, bound in zip(shapes, bounds, strict=True)
    ]


def logits_of(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """[models, pictures, classes] of pictures [models, pictures, pixels]."""
    hidden = torch.relu(torch.baddbmm(weights[1], x, weights[0]))
    return torch.baddbmm(weights[3], hidden, weights[2])


def networks(weights: Sequence[Tensor]) -> list[ImageClassifier]:
    a, b, c, d = (weight.detach() for weight in weights)
    return [network(_layer(a[k], b[k]), _head(c[k], d[k])) for k in range(MODELS)]


def ensemble(pictures: Sequence[Picture], seed: int, parts: Tensor | None = None) -> list[ImageClassifier]:
    """Multilayer perceptrons that differ in their start and in the order of the pictures, trained as one tensor.

    `parts` [models, pictures] says which pictures each learns; else all.
    """
    draw = torch.Generator().manual_seed(seed)
    x = torch.stack([p.pixels.flatten() for p in pictures])
    y = torch.tensor([p.label for p in pictures])
    weights = starts(draw)
    optimizer = torch.optim.Adam(weights, lr=RATE)
    known = torch.arange(len(y)).expand(MODELS, -1) if parts is None else parts
    steps = EPOCHS * (known.shape[1] // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(EPOCHS):
        order = torch.stack([own[torch.randperm(len(own), generator=draw)] for own in known])
        for now in order.split(BATCH, dim=1)[: known.shape[1] // BATCH]:
            logits = logits_of(weights, x[now])
            loss = cross_entropy(logits.flatten(0, 1), y[now].flatten(), reduction="sum") / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return networks(weights)


def _head(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape)
    layer.weight.data, layer.bias.data = weight.T.contiguous(), bias[0].clone()
    return layer.requires_grad_(False)


def _layer(weight: Tensor, bias: Tensor) -> nn.Module:
    return nn.Sequential(_head(weight, bias), nn.ReLU())


@dataclass(frozen=True)
class Mean(Model):
    """The mean class scores of several models."""

    models: tuple[Model, ...]

    def ask(self, question: Any, batch: Any) -> Any:
        replies = [model.ask(question, batch) for model in self.models]
        return replace(replies[0], states=torch.stack([reply.logits for reply in replies]).mean(0), head=None)

    def batches(self, examples: Any) -> Any:
        return self.models[0].batches(examples)

    def fingerprint(self) -> str:
        return "mean"


@dataclass(frozen=True)
class Retrained(Method):
    """Models that were trained without the forget set, as a method."""

    models: tuple[Model, ...]

    def __call__(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Model:
        return Mean(self.models)


def tuned(objective: Objective | None, rate: float, epochs: float, of: Literal["forget", "retain"]) -> Finetune:
    more: dict[str, Any] = {} if objective is None else {"objective": objective}
    return Finetune(
        **more,
        adapter=Full(),
        learning_rate=rate,
        steps=Epochs(count=epochs, of=of),
        batch=20,
        retain_batch=60,
        schedule="linear",
        stop=NEVER,
        norms=False,
    )


def methods(oracles: Sequence[Model]) -> dict[str, list[Method]]:
    """What is tried, at several rates; the best by the forgotten pictures' KLoM stands in the table."""
    rates = (1e-4, 3e-4, 1e-3)

    def matching(oracle: Method, rate: float) -> Method:
        return DatamodelMatching(oracle=oracle, learn=tuned(None, rate, 30.0, "forget"))

    return {
        "ascent": [tuned(Ascent(), rate, 3.0, "forget") for rate in (1e-5, 1e-4, 3e-4, 1e-3)],
        "gradient difference": [tuned(Ascent() + RetainNLL(), rate, 3.0, "forget") for rate in rates],
        "fine-tuning on the rest": [tuned(RetainNLL(), rate, 5.0, "retain") for rate in rates],
        "oracle matching": [matching(Retrained(tuple(oracles)), rate) for rate in (1e-3, 3e-3)],
        "datamodel matching (Newton)": [matching(Newton(), rate) for rate in (1e-3, 3e-3)],
        "Newton alone": [Newton()],
    }


def margins_of(models: Sequence[Model], parts: Parts) -> dict[str, Tensor]:
    """[models, examples] of each part."""
    sets = {"forget": parts.forget, "retain": parts.retain, "unseen": parts.unseen}
    return {
        name: torch.stack([margins(model.ask(LogProbabilities(), pictures).log_probs) for model in models])
        for name, pictures in sets.items()
    }


def measured(models: Sequence[Model], oracles: dict[str, Tensor], parts: Parts) -> dict[str, Any]:
    """KLoM and U-LiRA of each part, as 95th percentile and mean, and how many of the forgotten are still right.

    Beside U-LiRA stands an attack that has one threshold for all pictures: the AUC of the forgotten against unseen ones
    by the margin, as a mean over models.
    """
    found: dict[str, Any] = {}
    ours = margins_of(models, parts)
    for name, wanted in oracles.items():
        for metric, each in (("", klom(ours[name], wanted)), (" ulira", ulira(ours[name], wanted))):
            found |= {f"{name}{metric} p95": float(each.quantile(0.95)), f"{name}{metric} mean": float(each.mean())}
    told = [auc(*both) for both in zip(ours["forget"].tolist(), ours["unseen"].tolist(), strict=True)]
    return found | {"right": float((ours["forget"] > 0).double().mean()), "one threshold": sum(told) / len(told)}


def ensembles(kind: str, seed: int) -> list[dict[str, Any]]:
    parts = Parts.drawn(kind, seed)
    before = ensemble((*parts.forget, *parts.retain), 1000 + seed)
    retrained, others, taught = (ensemble(parts.retain, 2000 + 10 * seed + k) for k in range(3))
    oracles = margins_of(retrained, parts)
    common = {"study": "klom", "set": kind, "seed": seed}
    made = [
        {**common, "method": "retrained, other seeds (the floor)", **measured(others, oracles, parts)},
        {**common, "method": "nothing", **measured(before, oracles, parts)},
    ]
    for name, tried in methods(taught[:10]).items():
        found = []
        for method in tried:
            results = [method(model, parts.request).plain() for model in before]
            found.append({**common, "method": name, "line": repr(method)[:60], **measured(results, oracles, parts)})
            print(name, found[-1]["forget p95"], found[-1]["retain p95"], flush=True)
        made.append(min(found, key=lambda row: row["forget p95"]))
    return made


def run(out: Path) -> None:
    for seed in range(3):
        for kind in ("random", "alike"):
            for study, make in (("convex", convex), ("klom", ensembles)):
                if not any((r["study"], r["set"], r["seed"]) == (study, kind, seed) for r in rows(out)):
                    for row in make(kind, seed):
                        keep(out, row)


PARTS = ("forget", "retain", "unseen")


def show(out: Path) -> None:
    """Both tables, in the page beside the rows' file."""
    found = list(rows(out))
    text = "\n\n".join([*_convex_tables(found), *_klom_tables(found)])
    between(out.with_suffix(".md"), "oracles", text)


def _by_method(found: Sequence[dict[str, Any]], study: str, kind: str) -> dict[str, list[dict[str, Any]]]:
    chosen: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        if (row["study"], row["set"]) == (study, kind):
            chosen.setdefault(row["method"], []).append(row)
    return chosen


def _convex_tables(found: Sequence[dict[str, Any]]) -> list[str]:
    made = []
    for kind in ("random", "alike"):
        lines = [
            [name, *(", ".join(f"{row[part]:.4f}" for row in its) for part in ("forget", "retain", "unseen"))]
            for name, its in _by_method(found, "convex", kind).items()
        ]
        made += [f"**Convex, {kind}**: RMSE of the class scores, seed by seed.", table(["", *PARTS], lines)]
    return made


def _klom_tables(found: Sequence[dict[str, Any]]) -> list[str]:
    made = []
    for kind in ("random", "alike"):
        lines = []
        for name, its in _by_method(found, "klom", kind).items():
            cells = [
                ", ".join(f"{row[f'{part} p95']:.2f} ({row[f'{part} mean']:.2f})" for row in its) for part in PARTS
            ]
            own = [row for row in its if "one threshold" in row]
            attacked = ", ".join(f"{row['forget ulira p95']:.2f} ({row['forget ulira mean']:.2f})" for row in own)
            plain = ", ".join(f"{row['one threshold']:.2f}" for row in own)
            lines.append([name, *cells, ", ".join(f"{row['right']:.2f}" for row in its), attacked, plain])
        if lines:
            head = ["", *PARTS, "forgotten still right", "U-LiRA, forget", "one threshold"]
            made += [f"**KLoM, {kind}**: 95th percentile (mean), seed by seed.", table(head, lines)]
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_or_show(__doc__, run, show)
