"""A class that was never learnt (our own): its images as unlikely to be of it as images of other classes are.

    loss = mean over the forget images of | level + log p_now(y | x) |

A model retrained without a class gives it next to no image, its own included; but how little it gives to its own images
cannot be asked of a holdout set, for images of the class that no model saw are still of a class that it knows. What can
be asked is what the original says of the class about retained images, of which it is wrong: the levels are drawn from
that third of these losses that is smallest, as those images are the most like the class. On digits of which one was
left out the mean of that third is within ln 2 of what retrained models say (docs/log.md). No level is below
ln(classes) + 2, so that the class is named no more.

Where there is no retain set, or it has the class too, images get the losses of the holdout's (`TokenLevels`); without a
holdout that of guessing among all classes (`Settle`). Needs the forget set. Meant as removal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor

from expunge.core.model import Batch
from expunge.core.objective import Objective, Scalar
from expunge.core.question import LogProbabilities, Scores
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.internals.examples import Pictured, are_absent
from expunge.notation.recipes import Recipe
from expunge.objectives.settle import Settle
from expunge.objectives.token_levels import TokenLevels
from expunge.primitives.unseen_losses import evenly

PUBLISHED = Recipe(
    "AbsentClass",
    "vision",
    "Finetune(objective=AbsentClass() + RetainNLL() + RetainKL(), learning_rate=0.002, full_scale=0.05, "
    "steps=Memorised(count=0.0, epochs=40.0, least=200), batch=16, retain_batch=48, schedule='linear', "
    "stop=Stop(level=None, max_retain_increase=None, every=20))",
    "Our own, the default of images: docs/log.md. A class that is deleted goes to what an unlearnt class gets, other "
    "images to the losses of unseen ones.",
)

Images = Sequence[Pictured]
ASKED = 300
"""Retained images that are asked how unlikely the class is."""
NEAREST = 3
"""One in so many of these, those that are taken for the class most, stand for its own images."""

BELOW_GUESSING = 2.0
"""Nats beyond guessing among all classes that each level has at least: a class that was never learnt is never named. A
weak network takes many images for the class, and the smallest third of its losses would leave it in front on some."""

NEVER = 20.0
"""Log-odds that no image has: how sure a model is of unseen images is a trace, since most of them are easy."""


@dataclass(frozen=True)
class AbsentClass(Objective):
    """Move each forgotten class's images to the loss of a class that was never learnt."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    every: int = 10
    """Steps after which the levels of images whose class stays are drawn anew; each time the holdout set is read."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageRefused(f"The `every` of AbsentClass must be at least 1. Got {self.every!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        forget, retain = (now.run.whole.get(name, ()) for name in ("forget", "retain"))
        name = f"{self!r}, absent"
        if name not in now.run.memory:
            now.run.memory[name] = {"yes": are_absent(forget, retain)}
        if not cast(dict[str, bool], now.run.memory[name])["yes"]:
            unseen, guessing = TokenLevels(self.every, NEVER), Settle(level=math.log(now.forget.log_probs().shape[1]))
            return (unseen if now.run.whole.get("holdout") else guessing)(now, before)
        levels = self._levels(now, before, cast(Images, forget), retain)
        losses = -now.forget.log_prob()
        wanted = [levels[example.record_digest()] for example in now.batch("forget")]
        return now.forget.over_rows((losses - losses.new_tensor(wanted)).abs())

    def _levels(self, now: View, before: View, forget: Images, retain: Batch) -> dict[str, float]:
        """The level of each forget image, by its digest."""
        memory = cast(dict[str, float], now.run.memory.setdefault(repr(self), {}))
        if not memory:
            # Of the original: losses of now rise with those that are aimed at them, and the levels would run away.
            few = [retain[k * len(retain) // ASKED] for k in range(ASKED)] if len(retain) > ASKED else retain
            said = -before.model.ask(Scores(), few).log_probs()
            known = -before.model.ask(LogProbabilities(), forget).log_probs
            memory |= _draw(forget, known, said)
        return memory


def _draw(forget: Images, known: Tensor, said: Tensor) -> dict[str, float]:
    """For each forget image one of the smallest losses [retained images, classes] that its class has on retained ones.

    `known` are the losses of the forget images under the original model: the hardest gets the largest.
    """
    made: dict[str, float] = {}
    for label in {image.label for image in forget}:
        own = [k for k, image in enumerate(forget) if image.label == label]
        least = math.log(said.shape[1]) + BELOW_GUESSING
        near = said[:, label].sort().values[: max(1, len(said) // NEAREST)].clamp(min=least).tolist()
        names = [forget[k].record_digest() for k in own]
        places = evenly(names, known[own].double().cpu().numpy())
        made |= {name: near[int(place * len(near))] for name, place in zip(names, places.tolist(), strict=True)}
    return made
