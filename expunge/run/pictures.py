"""What a report shows of images: thumbnails with the classes that the models name, how often they name which, how many
of each class they name rightly, and where images lie in their representation.

Of the sets that no training read (or the retain set, where there is no other) only the forgotten classes are shown and
their neighbours: those that the model names in place of a forgotten one.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from expunge.core.question import LogProbabilities, Scores
from expunge.core.request import Request
from expunge.errors import ModelRefused
from expunge.internals.examples import Pictured
from expunge.internals.representation import represent
from expunge.models.vision import ImageClassifier
from expunge.primitives.meanings import should_be_gone
from expunge.report.answers import should_stay
from expunge.report.by_class import ClassCount, Placed
from expunge.report.confusion import Confused
from expunge.report.record import SAMPLES
from expunge.report.report import Sample, Samples
from expunge.run.plane import project
from expunge.runtime.cached_model import CachedModel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

ASKED = 256
"""Images of a set that are asked at most, evenly spaced: each costs a forward pass."""
GONE, NEIGHBOURS = 4, 4
"""Forgotten classes, and others, that are shown at most."""
DRAWN, LEAST = 64, 8
"""Images of the forget set that a plot has at most, thrice as many others; and the fewest of which one is made."""
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


@dataclass(frozen=True)
class Seen:
    """What one model makes of the images of a request."""

    right: dict[str, list[bool]]
    """Of every image of each set that is counted: whether it is named rightly."""
    states: Float[Tensor, "images width"] | None
    """The representation of the images that `_choose_drawn` lists; None where the model has no single one."""


@dataclass(frozen=True)
class Shown:
    """What a report shows of images."""

    samples: Samples = Samples(True)
    confusion: tuple[Confused, ...] = ()
    classes: tuple[ClassCount, ...] = ()
    places: tuple[Placed, ...] = ()


def look(model: CachedModel, request: Request) -> Seen | None:
    """What one model makes of the images; None of other models."""
    network = model.plain()
    if not isinstance(network, ImageClassifier) or not isinstance(request.forget[0], Pictured):
        return None
    sets = request.sets()
    right = {name: model.ask(LogProbabilities(), sets[name]).right.tolist() for name in _counted_sets(request)}
    return Seen(right, _states(network, [picture for _, picture in _choose_drawn(request)]))


def _states(network: ImageClassifier, pictures: Sequence[Pictured]) -> Float[Tensor, "images width"] | None:
    try:
        with torch.no_grad():
            parts = [represent(network, [pictures[k] for k in group]) for group in network.batches(pictures)]
    except ModelRefused:  # its class scores are no linear layer's
        return None
    return torch.cat(parts).float().cpu()


def _choose_drawn(request: Request) -> list[tuple[str, Pictured]]:
    """Images of each set that a plot has room for, evenly spaced."""
    sets = {name: cast(Sequence[Pictured], request.sets()[name]) for name in _counted_sets(request)}
    stays = sum(should_stay(name) for name in sets)
    room = {name: max(1, 3 * DRAWN // stays) if should_stay(name) else DRAWN for name in sets}
    return [(name, each) for name, whole in sets.items() for each in whole[:: -(-len(whole) // room[name])]]


def show_pictures(models: Sequence[CachedModel], request: Request, seen: Mapping[str, Seen | None]) -> Shown:
    """Thumbnails, confusions, classes and places of image classifiers; nothing of other models.

    `models` are the one before and, where there is one, the one after; `seen` has the reference's look, too.
    """
    looks = {name: each for name in ("before", "after", "reference") if (each := seen.get(name)) is not None}
    network = models[0].plain()
    if not isinstance(network, ImageClassifier) or "before" not in looks:
        return Shown()
    classes = {number: name for name, number in network.classes.items()}
    named = [each for name in _shown_sets(request) for each in _name(models, name, request, classes)]
    gone = [label for label, _ in Counter(n.label for n in named if n.set == "forget").most_common(GONE)]
    instead = Counter(n.said[-1] for n in named if n.set == "forget" and n.said[-1] not in gone)
    shown = [*gone, *(label for label, _ in instead.most_common(NEIGHBOURS))]
    return Shown(
        Samples(True, tuple(_samples(named, shown))),
        tuple(_confusions(named, shown)),
        tuple(_count(looks, request, classes)),
        tuple(_place(looks, request, classes)),
    )


def _find_deleted_classes(request: Request) -> set[int]:
    """The forgotten classes of which nothing is retained: other images of them should be named no more, either."""
    forgotten, retained = (
        {each.label for each in cast(Sequence[Pictured], some)} for some in (request.forget, request.retain)
    )
    return forgotten - retained if retained else set()


def _count(looks: Mapping[str, Seen], request: Request, classes: Mapping[int, str]) -> Iterator[ClassCount]:
    """Right answers of every class in every set that is counted."""
    deleted = _find_deleted_classes(request)
    for name in _counted_sets(request):
        pictures = cast(Sequence[Pictured], request.sets()[name])
        for number in sorted({picture.label for picture in pictures}):
            own = [k for k, picture in enumerate(pictures) if picture.label == number]
            right = {model: sum(seen.right[name][k] for k in own) for model, seen in looks.items()}
            yield ClassCount(name, classes[number], should_be_gone(name) or number in deleted, len(own), right)


def _place(looks: Mapping[str, Seen], request: Request, classes: Mapping[int, str]) -> Iterator[Placed]:
    """Each drawn image in the plane of the model before."""
    drawn = _choose_drawn(request)
    states = {name: seen.states for name, seen in looks.items() if seen.states is not None}
    if "before" not in states or len(drawn) < LEAST:
        return
    deleted = _find_deleted_classes(request)
    gone = [should_be_gone(name) or picture.label in deleted for name, picture in drawn]
    stays = ~torch.tensor(gone)
    places = project(states, stays if stays.any() else ~stays)
    for k, (name, picture) in enumerate(drawn):
        at = {model: (round(float(xy[k, 0]), 3), round(float(xy[k, 1]), 3)) for model, xy in places.items()}
        yield Placed(name, classes[picture.label], gone[k], at)


def _counted_sets(request: Request) -> list[str]:
    """Those that are shown, and other images of what should be gone."""
    gone = [name for name in request.sets() if should_be_gone(name) and name != "forget"]
    forget, *others = _shown_sets(request)
    return [forget, *gone, *others]


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
