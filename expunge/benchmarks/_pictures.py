"""Pictures of a benchmark: where they are read from, how some are drawn, and what is measured of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge.benchmarks._data import Data
from expunge.benchmarks._kinds import Stage
from expunge.benchmarks._values import IDENTITY, Column, Values
from expunge.core.method import Method
from expunge.core.model import Batch, Model, Network
from expunge.core.question import RowStatistics
from expunge.core.request import Example, Request
from expunge.data.cifar_archive import CifarArchive, Part
from expunge.data.class_names import list_few, shorten
from expunge.data.images import ImageRecord, Picture, encode_for, load
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.internals.representation import represent
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse

Pictures = tuple[Picture, ...]
FILES = ("", "plain_text/", "cifar100/")
"""Where a part's table is: as copied, and as the hub has CIFAR-10 and CIFAR-100."""
PROBED = 2000
"""Most pictures that the linear probe learns from."""
BUDGETS = (1, 2, 4, 8, 16)
"""Steps of relearning after which the forgotten is asked again."""


@dataclass(frozen=True)
class Drawn:
    """Some training and some test pictures."""

    train: Pictures
    test: Pictures

    @staticmethod
    def read(data: Data, network: Network, most: tuple[int, int], draw: int) -> Drawn:
        """At most so many of each part, drawn by a seed; 0 is all. Of equal ones one is taken, and no test picture is
        one that was trained on. Raises a `Refusal`."""
        if not isinstance(network, ImageClassifier):
            raise ModelRefused(f"Cifar is for image classifiers, and this is a {type(network).__name__}.")
        found: list[Pictures] = []
        seen: set[str] = set()
        for part, count in zip(("train", "test"), most, strict=True):
            path, records = _records(data, cast(Part, part))
            some = random.Random(f"{part} {draw}").sample(records, min(count or len(records), len(records)))
            every = {p.record_digest(): p for p in encode_for(some, network, path)}
            found.append(tuple(p for digest, p in every.items() if digest not in seen))
            seen |= every.keys()
        return Drawn(*found)

    def split(self, is_gone: Callable[[Picture], bool]) -> tuple[Drawn, Drawn]:
        """Those of which that is true, and the others."""
        yes, no = (
            Drawn(*(tuple(p for p in part if is_gone(p) == which) for part in (self.train, self.test)))
            for which in (True, False)
        )
        return yes, no


def _records(data: Data, part: Part) -> tuple[Path, list[ImageRecord]]:
    """The pictures of a part, and where they were."""
    archive = CifarArchive.find(data.folder)
    if archive:
        return archive.folder, archive.read(part)
    folder = data.folder / part
    path = next((found for place in FILES if (found := data.find(f"{place}{part}"))), folder)
    if path == folder and not folder.is_dir():
        raise DataRefused(
            f"{data.folder}: holds no {part}.parquet, no folder {part}/ with one of each class, and no binary archive "
            f"of CIFAR. Copy the files of {data.home} there."
        )
    return path, load(path)


def class_numbers(setting: str, names: Iterable[str], network: Network) -> list[int]:
    """The numbers of classes, which are named as the model names them or numbered. Raises `UsageRefused`."""
    known = cast(ImageClassifier, network).classes
    numbered = {str(number): number for number in known.values()} | known
    asked = [name.strip() for name in names]
    wrong = next((name for name in asked if name not in numbered), None)
    if wrong is not None:
        raise UsageRefused(f"The `{setting}` of Cifar: the model has no class '{shorten(wrong)}'. {list_few(known)}.")
    return [numbered[name] for name in asked]


def replay(retain: Pictures, each: int | None, without: Sequence[int], draw: int) -> Pictures:
    """Of each class so many pictures (None: all), drawn by a seed, and none of the classes `without`."""
    left = [picture for picture in retain if picture.label not in without]
    if each is None:
        return tuple(left)
    taken: dict[int, int] = {}
    random.Random(draw).shuffle(left)
    some = []
    for picture in left:
        taken[picture.label] = taken.get(picture.label, 0) + 1
        some += [picture] if taken[picture.label] <= each else []
    return tuple(some)


def read_each(known: Model, sets: Mapping[str, Batch]) -> Values:
    """Of each picture: whether it is right, its loss, the entropy of the answer, in nats, and a number of its own."""
    rows = []
    for name, batch in sets.items():
        said = known.ask(RowStatistics(), batch)
        measured = {"right": said.rank == 0, "loss": -said.log_probs, "entropy": said.entropy}
        for measure, values in measured.items():
            rows += [(Column(name, measure), k, v) for k, v in enumerate(values.double().tolist())]
        rows += [(Column(name, IDENTITY), k, number_of(picture)) for k, picture in enumerate(batch)]
    return Values.collect(rows)


def number_of(picture: Example) -> float:
    """12 digits of its digest, which a double holds: by these it is known again, and not seen."""
    return float(int(picture.record_digest()[:12], 16))


def probe(network: Network, learnt: Batch, where: str, asked: Batch) -> Values:
    """Whether a linear probe of what the last layer reads tells the class of each picture `asked`; it learns from
    pictures of every class."""
    some = learnt[:: -(-len(learnt) // PROBED)]
    told = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    told.fit(*_features(network, some))
    states, labels = _features(network, asked)
    hits = enumerate(told.predict(states) == labels)
    return Values.collect((Column(where, "probe"), k, float(hit)) for k, hit in hits)


def _features(network: Network, pictures: Batch) -> tuple[list[list[float]], list[int]]:
    with torch.no_grad():
        parts = [represent(network, [pictures[k] for k in group]) for group in network.batches(pictures)]
    return torch.cat(parts).double().tolist(), [cast(Picture, picture).label for picture in pictures]


def relearn(network: Network, stage: Stage) -> Values:
    """Whether each forgotten picture is right again after so many steps of training on the other half of them."""
    forget = stage.request.forget
    half = len(forget) // 2
    if not half:
        return Values({})
    found = Values({})
    for steps in BUDGETS:
        attack = parse(f"Relearn(steps={steps}, items={half})")
        assert isinstance(attack, Method)
        said = attack(network, Request(forget)).ask(RowStatistics(), forget[half:])
        hits = enumerate((said.rank == 0).double().tolist())
        found = found.join(Values.collect((Column("forget", f"right after {steps}"), k, hit) for k, hit in hits))
    return found
