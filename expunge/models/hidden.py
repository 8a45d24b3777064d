"""Hidden states after one block of a transformer, read by a hook that ends the pass there.

Nothing above the block is computed, so nothing above it has a gradient either, and no activations are kept for it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from expunge.core.question import HiddenStates
from expunge.errors import ModelRefused
from expunge.internals.blocks import blocks


class UpToBlock(nn.Module):
    """A transformer up to one of its blocks, whose states it gives where the whole would give class scores."""

    def __init__(self, module: nn.Module, question: HiddenStates) -> None:
        super().__init__()
        found = list(blocks(module).values())
        if not found:
            raise ModelRefused(
                f"{type(module).__name__} has no transformer blocks, so no hidden states to read. "
                f"Use an objective that reads answers only."
            )
        self.module = module
        self.last = [found[question.block(len(found))]]  # in a list: it is no second child of this module

    def forward(self, **inputs: Any) -> SimpleNamespace:
        hook = self.last[0].register_forward_hook(_stop)
        try:
            self.module(**inputs)
        except _Reached as reached:
            return SimpleNamespace(logits=reached.states)
        finally:
            hook.remove()
        raise ModelRefused(f"{type(self.module).__name__} did not run the block whose states were asked for.")

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the whole."""
        return self.module.get_input_embeddings()


class _Reached(Exception):  # noqa: N818 (it is no error: it ends a pass)
    def __init__(self, states: Tensor) -> None:
        self.states = states


def _stop(_block: nn.Module, _inputs: tuple[Any, ...], made: Tensor | tuple[Tensor, ...]) -> None:
    raise _Reached(made if isinstance(made, Tensor) else made[0])
