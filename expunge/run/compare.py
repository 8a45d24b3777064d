"""How far a model that was written is from the one that was trained, in class scores of some forget examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expunge.core.adapter import Adapted
from expunge.core.model import Model
from expunge.core.question import Scores
from expunge.core.request import Example, Request
from expunge.primitives.out_of_memory import in_fitting_batches
from expunge.report.run import Saved

MOST = 8
"""Examples at most."""


@dataclass(frozen=True)
class Compared:
    """What the trained model and its plain form said, and how far they are apart."""

    saved: Saved
    parts: tuple[tuple[list[Example], Tensor, Tensor], ...] = ()
    """Examples, and the scores of their rows by the trained model and by the plain one."""

    def read_back(self, written: Model, form: str) -> Saved:
        """The same of the model as it was written and read again; `form` is the format of its weights."""
        if not self.parts:
            return replace(self.saved, format=form)
        apart, rounded = 0.0, 0.0
        with torch.inference_mode():
            for examples, trained, plain in self.parts:
                said = written.ask(Scores(), examples).logits.cpu()
                apart = max(apart, float((said - trained).abs().max()))
                rounded = max(rounded, float((said - plain).abs().max()))
        return replace(self.saved, format=form, max_logit_difference=apart, max_logit_rounding=rounded)


def compare(original: Model, changed: Model, plain: Model, request: Request) -> Compared:
    """How far the plain model's scores are from those of what was trained, and from the original's."""
    adapter = isinstance(changed, Adapted)
    if not all(model.answers_to(Scores) for model in (original, changed, plain)):
        return Compared(Saved(adapter, None, None, ""))

    def say(part: list[Example]) -> list[tuple[list[Example], Tensor, Tensor, float]]:
        said, trained, before = (m.ask(Scores(), part).logits.cpu() for m in (plain, changed, original))
        return [(part, trained, said, float((said - before).abs().max()))]

    group = next(plain.batches(request.forget))[:MOST]
    with torch.inference_mode():
        found = [each for _, made in in_fitting_batches(None, request.forget, [group], say) for each in made]
    parts = tuple((examples, trained, said) for examples, trained, said, _ in found)
    apart = max(float((said - trained).abs().max()) for _, trained, said in parts)
    return Compared(Saved(adapter, apart, max(moved for *_, moved in found), ""), parts)
