"""Class unlearning by data poisoning (Chang et al., 2024, arXiv 2405.15662): retrain a class under another label.

    loss = CE(f(x with a donor's patch), y_donor or a random class) over forget + CE(f(x), y) over retain

Each forget image gets a window of an image of the donor class, and the donor's label; these stand-ins are then trained
on together with the retain set. It is removal at the output and should be called that: as published, only the last
layer is trained, so hidden states still separate the class (`LinearProbe`), and one pass over the class brings it back
(`Relearn`). The effect comes from the label, not from the patch: without a patch the published figures are as good,
with a patch and the old label little is forgotten, and where the whole image is the donor's (`patch=1.0`) the class
stays, since nothing of it is trained on.

Published: windows of 64 (located by concept), 96 (centre, random) and 160 of 224 pixels; SGD at 1e-3 with momentum 0.9,
batches of 32 from both sets together, 15 to 30 epochs. Here `learn` is any fine-tuning, whose objective weighs the two
means. In the paper every example has the same weight: weigh the means by the ratio of the sets' sizes (the default: one
class of ten). Texts have no windows: for them the request's own stand-ins, such as refusals, are trained on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import torch

from expunge.adapters.last_layer import LastLayer
from expunge.core.method import Method, WeightMethod
from expunge.core.model import Model, Network
from expunge.core.question import Scores
from expunge.core.request import Example, Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note, OnEvent
from expunge.internals.examples import Pictured
from expunge.methods._patches import Box, decisive_windows, paste
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives.idk_nll import IdkNLL
from expunge.objectives.retain_nll import RetainNLL
from expunge.primitives.settings import check_seed

PUBLISHED = Recipe(
    "Poison",
    "vision",
    "Poison(label='donor', patch=0.42857142857142855, place='centre', learn=Finetune(objective=0.1 * "
    "IdkNLL() + 0.9 * RetainNLL(), adapter=LastLayer(), optimizer='sgd', learning_rate=0.001, "
    f"steps=Epochs(count=20.0, of='retain'), batch=3, retain_batch=29, {ALL_STEPS}, norms=False))",
    "Chang et al., 2024, on CIFAR-10: last layer, SGD at 1e-3, batches of 32 from both sets "
    "together, 20 epochs; windows of 96 of 224 pixels in the centre, the donor's label.",
)


@dataclass(frozen=True)
class Poison(WeightMethod):
    """Train on the forget images, patched, under another label."""

    label: Literal["donor", "random", "own"] = "donor"
    """Label of the patched images: the donor class, a random one of the other retained classes, or, as a control, their
    own."""
    donor: int | None = None
    """Number of the class that patches and labels come from; None takes, for each forgotten class, the retained class
    with the next highest score."""
    patch: float = 96 / 224
    """Side of the window, in image sides. 0 pastes nothing."""
    place: Literal["centre", "random", "located"] = "centre"
    """Position of the window. located: where blanking it lowers the class's probability most, which reads every image
    once
    for each window."""
    learn: Method = Finetune(
        objective=0.1 * IdkNLL() + 0.9 * RetainNLL(),
        adapter=LastLayer(),
        learning_rate=1e-3,
        steps=600,
        batch=8,
        retain_batch=56,
        stop=Stop(level=None, max_retain_increase=None, every=1000),
        norms=False,
    )
    """How the stand-ins are trained on. To train all weights: `adapter=Full()`."""
    seed: int = 0
    """Draws donors, windows and random labels; the order of the examples is `learn`'s."""

    def __post_init__(self) -> None:
        check_seed(self)
        if self.label not in ("donor", "random", "own") or self.place not in ("centre", "random", "located"):
            raise UsageRefused(
                f"Poison: `label` must be donor, random or own, and `place` centre, random or located. "
                f"Got {self.label!r}, {self.place!r}."
            )
        if not 0 <= self.patch <= 1:
            raise UsageRefused(f"The `patch` of Poison must lie from 0 to 1. Got {self.patch!r}.")

    def with_seed(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        on_event(Note("Making stand-ins of the forget set"))
        return self.learn(network, self.make_stand_ins(network, request), on_event).plain()

    def make_stand_ins(self, network: Network, request: Request) -> Request:
        """The request with the patched and relabelled images as its stand-ins."""
        if not request.retain:
            raise DataRefused("Poison takes its donors from the retain set, and the request has none. Give --retain.")
        if not all(isinstance(e, Pictured) for e in (*request.forget, *request.retain)):
            if not request.stand_in:
                raise DataRefused(
                    "Poison patches images; for texts it needs other answers to train on. Give --stand-in."
                )
            return request
        kinds = _Kinds.of(request)
        chosen = kinds.donors(network, request) if self.donor is None else self._named_donor(kinds)
        forget = cast(Sequence[Pictured], request.forget)
        donors = [kinds.one_of(chosen[e.label], self._lot(e, "donor")) for e in forget]
        patched = self._patch(network, request, donors) if self.patch else request.forget
        labels = [self._label(e, donor, kinds) for e, donor in zip(request.forget, donors, strict=True)]
        return replace(request, stand_in=tuple(replace(p, label=k) for p, k in zip(patched, labels, strict=True)))

    def _named_donor(self, kinds: "_Kinds") -> dict[int, int]:
        if self.donor not in kinds.retained or self.donor in kinds.forgotten:
            raise DataRefused(
                f"The `donor` of Poison must be a class of the retain set that is not forgotten: one of "
                f"{', '.join(str(c) for c in kinds.retained if c not in kinds.forgotten)}. Got {self.donor!r}."
            )
        return dict.fromkeys(kinds.forgotten, self.donor)

    def _patch(self, network: Network, request: Request, donors: list[Any]) -> list[Any]:
        """The forget images, each with a window of its donor."""
        forget: Any = request.forget
        if self.place == "located":
            retain: Any = request.retain
            blank = torch.stack([picture.pixels for picture in retain]).mean(0)
            targets, sources = (decisive_windows(network, pictures, self.patch, blank) for pictures in (forget, donors))
        elif self.place == "random":
            targets = sources = [Box.random(e.pixels, self.patch, self._lot(e, "window")) for e in forget]
        else:
            targets = sources = [Box.centre(e.pixels, self.patch) for e in forget]
        return [
            paste(e, donor.pixels, box, donor.digest, to)
            for e, donor, box, to in zip(forget, donors, sources, targets, strict=True)
        ]

    def _label(self, example: Any, donor: Any, kinds: "_Kinds") -> int:
        others = [kind for kind in kinds.retained if kind != example.label]
        drawn = others[self._lot(example, "label") % len(others)]
        labels: dict[str, int] = {"donor": donor.label, "random": drawn, "own": example.label}
        return labels[self.label]

    def _lot(self, example: Example, what: str) -> int:
        """A random number that depends on the example alone, not on its place in the set."""
        return int(hashlib.sha256(f"{self.seed}:{what}:{example.record_digest()}".encode()).hexdigest()[:15], 16)


@dataclass(frozen=True)
class _Kinds:
    """The classes of a request."""

    forgotten: tuple[int, ...]
    retained: dict[int, tuple[Any, ...]]
    """Images of each class of the retain set, sorted by digest."""

    @staticmethod
    def of(request: Request) -> "_Kinds":
        retain: Any = sorted(request.retain, key=lambda example: example.record_digest())
        numbers = sorted({e.label for e in retain})
        forgotten = tuple(sorted({e.label for e in cast(Sequence[Pictured], request.forget)}))
        kinds = _Kinds(forgotten, {k: tuple(e for e in retain if e.label == k) for k in numbers})
        alone = [k for k in forgotten if not set(numbers) - {k}]
        if alone:
            raise DataRefused(f"The retain set has no class beside class {alone[0]}, so there is no donor. Give more.")
        return kinds

    def one_of(self, kind: int, lot: int) -> Any:
        """An image of the class, chosen by the number `lot`."""
        return self.retained[kind][lot % len(self.retained[kind])]

    def donors(self, network: Network, request: Request) -> dict[int, int]:
        """For each forgotten class the retained class with the highest mean score on its images."""
        forget: Any = request.forget
        total = {label: torch.zeros((), dtype=torch.float64) for label in self.forgotten}
        with torch.inference_mode():
            for group in network.batches(forget):
                predictions = network.ask(Scores(), [forget[k] for k in group])
                for label, scores in zip(
                    predictions.labels.tolist(), predictions.log_probs().double().cpu(), strict=True
                ):
                    total[label] = total[label] + scores
        return {
            label: max((k for k in self.retained if k != label), key=lambda k: float(scores[k]))
            for label, scores in total.items()
        }
