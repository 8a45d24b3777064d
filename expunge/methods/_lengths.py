"""How long a run is, where it was given in epochs."""

from expunge.core.request import Request
from expunge.events import Note, OnEvent
from expunge.methods.epochs import Epochs


def count_steps(length: int | Epochs, request: Request, batches: tuple[int, int], what: str, on_event: OnEvent) -> int:
    """A number of steps; where it was given in epochs, this is said. `batches` are those of forget and retain set."""
    if not isinstance(length, Epochs):
        return length
    steps = length.steps(request, batches[length.of == "retain"])
    fewest = f", {length.least} at least" if length.least > 1 else ""
    on_event(Note(f"{length.count:g} epochs of the {length.of} set{fewest}: {steps} {what}"))
    return steps


def as_steps(steps: int | Epochs) -> int:
    """The steps of a method that was fitted to its request."""
    assert isinstance(steps, int)
    return steps
