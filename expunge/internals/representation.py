"""The input of a network's output layer: one vector for each row, in every family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from expunge.core.model import Batch, Network
from expunge.core.question import Scores
from expunge.errors import ModelRefused

if TYPE_CHECKING:
    from jaxtyping import Float


def represent(network: Network, batch: Batch) -> Float[Tensor, "rows width"]:
    """The input of the layer that computes the class scores; for a language model its last hidden states."""
    last: dict[str, Any] = {}

    def note(_layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        last.update(given=given[0] if given else None, made=made)

    if network.head() is not None:
        return network.ask(Scores(), batch).states
    hooks = [part.register_forward_hook(note) for part in network.module.modules() if isinstance(part, nn.Linear)]
    try:
        predictions = network.ask(Scores(), batch)
    finally:
        for hook in hooks:
            hook.remove()
    given: Tensor | None = last.get("given")
    if last.get("made") is not predictions.states or given is None or given.dim() != 2:
        raise ModelRefused(
            f"{type(network.module).__name__} does not compute its class scores by a linear layer of its own, so "
            f"an example has no single representation. Use a method that reads class scores only."
        )
    return given
