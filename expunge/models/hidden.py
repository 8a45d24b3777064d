"""Hidden states after one block of a transformer, read by a hook that stops the forward pass there.

Later blocks do not run, so they get no gradient and store no activations.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from expunge.core.question import HiddenStates
from expunge.errors import ModelRefused
from expunge.internals.blocks import blocks


class UpToBlock(nn.Module):
    """A transformer up to one of its blocks, whose hidden states it returns as `logits`."""

    def __init__(self, module: nn.Module, question: HiddenStates) -> None:
        super().__init__()
        found = list(blocks(module).values())
        if not found:
            raise ModelRefused(
                f"{type(module).__name__} has no transformer blocks, so no hidden states to read. "
                f"Use an objective without hidden states."
            )
        self.module = module
        self.last = [found[question.block(len(found))]]  # a list registers no submodule

    def forward(self, **inputs: Any) -> SimpleNamespace:
        hook = self.last[0].register_forward_hook(_stop)
        try:
            self.module(**inputs)
        except _Reached as reached:
            return SimpleNamespace(logits=reached.states)
        finally:
            hook.remove()
        raise ModelRefused(f"{type(self.module).__name__} did not run the block whose hidden states are wanted.")


class _Reached(Exception):  # noqa: N818 (not an error: it stops a forward pass)
    def __init__(self, states: Tensor) -> None:
        self.states = states


def _stop(_block: nn.Module, _inputs: tuple[Any, ...], made: Tensor | tuple[Tensor, ...]) -> None:
    raise _Reached(made if isinstance(made, Tensor) else made[0])
