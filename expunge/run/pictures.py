"""What a report shows of images: thumbnails with the classes that the models name, and how often they name which.

Of the sets that no training read (or the retain set, where there is no other) only the forgotten classes are shown and
their neighbours: those that the model names in place of a forgotten one.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.internals.examples import Pictured
from expunge.models.vision import ImageClassifier
from expunge.report.answers import should_stay
from expunge.report.confusion import Confused
from expunge.report.record import SAMPLES
from expunge.report.report import Sample, Samples
from expunge.runtime.cached_model import CachedModel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

ASKED = 256
"""Images of a set that are asked at most, evenly spaced: each costs a forward pass."""
GONE, NEIGHBOURS = 4, 4
"""Forgotten classes, and others, that are shown at most."""
SIDE = 64
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class Named:
    """An image, and the classes that the models name for it."""

    set: str
    picture: Pictured
    label: str
    said: tuple[str, ...]
    """Before, and after where there is a model after."""


def show_pictures(models: Sequence[CachedModel], request: Request) -> tuple[Samples, tuple[Confused, ...]]:
    """Thumbnails and confusions of image classifiers; nothing of other models."""
    network = models[0].plain()
    if not isinstance(network, ImageClassifier) or not isinstance(request.forget[0], Pictured):
        return Samples(True), ()
    classes = {number: name for name, number in network.classes.items()}
    named = [each for name in _shown_sets(request) for each in _name(models, name, request, classes)]
    gone = [label for label, _ in Counter(n.label for n in named if n.set == "forget").most_common(GONE)]
    instead = Counter(n.said[-1] for n in named if n.set == "forget" and n.said[-1] not in gone)
    shown = [*gone, *(label for label, _ in instead.most_common(NEIGHBOURS))]
    return Samples(True, tuple(_samples(named, shown))), tuple(_confusions(named, shown))


def _shown_sets(request: Request) -> list[str]:
    others = [name for name in request.sets() if should_stay(name) and name != "retain"]
    return ["forget", *(others or [name for name in request.sets() if name == "retain"])]


def _name(models: Sequence[CachedModel], name: str, request: Request, classes: dict[int, str]) -> Iterator[Named]:
    whole = cast(Sequence[Pictured], request.sets()[name])
    asked = whole[:: -(-len(whole) // ASKED)]
    said = [_first_classes(model, asked) for model in models]
    for place, picture in enumerate(asked):
        yield Named(name, picture, classes[picture.label], tuple(classes[each[place]] for each in said))


def _first_classes(model: CachedModel, pictures: Sequence[Pictured]) -> list[int]:
    made: list[int] = []
    with torch.no_grad():
        for group in model.batches(pictures):
            made += model.ask(Scores(), [pictures[k] for k in group]).logits.argmax(-1).tolist()
    return made


def _samples(named: Sequence[Named], shown: Sequence[str]) -> Iterator[Sample]:
    left = Counter({each.set: SAMPLES if each.set == "forget" else 2 * NEIGHBOURS for each in named})
    taken: Counter[tuple[str, str]] = Counter()
    for one in named:
        enough = one.set != "forget" and taken[one.set, one.label] == 2
        if one.label not in shown or not left[one.set] or enough:
            continue
        left[one.set] -= 1
        taken[one.set, one.label] += 1
        before, after = (*one.said, None)[:2]
        picture = thumbnail(one.picture.pixels)
        yield Sample(one.set, one.picture.id, answer=one.label, before=before, after=after, picture=picture)


def _confusions(named: Sequence[Named], shown: Sequence[str]) -> Iterator[Confused]:
    groups: dict[tuple[str, str], list[Named]] = {}
    for one in named:
        groups.setdefault((one.set, one.label), []).append(one)
    for (where, label), group in sorted(groups.items(), key=lambda item: (item[0][0] != "forget", item[0][0])):
        if label in shown:
            before, *after = (dict(Counter(said)) for said in zip(*(one.said for one in group), strict=True))
            yield Confused(where, label, len(group), before, after[0] if after else None)


def thumbnail(pixels: Float[Tensor, "channels height width"]) -> str:
    """A small PNG of an image as the model reads it, stretched to full contrast, as a data: address."""
    from PIL import Image

    lowest, highest = pixels.min(), pixels.max()
    grey = ((pixels - lowest) / (highest - lowest).clamp(min=1e-6) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey)
    image.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    image.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
