"""A network of the same shape that never learnt: the teacher of what is to be forgotten."""

from dataclasses import replace
from typing import cast

from expunge.core.model import Model, network_of
from expunge.core.objective import Objective
from expunge.core.view import View
from expunge.internals.untrained import draw_weights
from expunge.runtime.parallel_model import ParallelModel


def ask_untaught(objective: Objective, seed: int, now: View, before: View) -> View:
    """What a network with random weights answers about the step's examples. It is drawn once for a run."""
    name = f"{objective!r}, teacher"
    if name not in now.run.memory:
        shape, learner = (network_of(view.model, type(objective).__name__) for view in (before, now))
        # Of several processes each asks a teacher of its own about its share of the step.
        whole = shape.whole if isinstance(shape, ParallelModel) else shape
        now.run.memory[name] = draw_weights(whole, seed, learner.device)
    return replace(before, model=cast(Model, now.run.memory[name]), replies={})
