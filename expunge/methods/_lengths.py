"""How long a run is, where it was given by what it is to do."""

from expunge.core.model import Network
from expunge.core.request import Request
from expunge.events import Note, OnEvent
from expunge.methods.epochs import Epochs
from expunge.methods.memorised import Memorised

Batches = tuple[int, int]


def measure_steps(
    length: int | Epochs | Memorised, network: Network, request: Request, batches: Batches, on_event: OnEvent
) -> int:
    """As `count_steps`, where the network itself may have to be asked."""
    if not isinstance(length, Memorised):
        return count_steps(length, request, batches, "steps", on_event)
    steps = length.steps(network, request, batches[0])
    more = ", or more: what the model knows is not read in a plan" if network.device.type == "meta" else ""
    on_event(Note(f"{steps} steps{more}, by how large the forget set is and how well it is known"))
    return steps


def count_steps(length: int | Epochs, request: Request, batches: Batches, what: str, on_event: OnEvent) -> int:
    """A number of steps; where it was given in epochs, this is said. `batches` are those of forget and retain set."""
    if not isinstance(length, Epochs):
        return length
    steps = length.steps(request, batches[length.of == "retain"])
    on_event(Note(f"{length.count:g} epochs of the {length.of} set: {steps} {what}"))
    return steps


def as_steps(steps: int | Epochs | Memorised) -> int:
    """The steps of a method that was fitted to its request."""
    assert isinstance(steps, int)
    return steps
