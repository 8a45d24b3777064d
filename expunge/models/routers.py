"""Router probabilities of a mixture of experts, read by hooks that stop the forward pass after the last router needed.

Later layers do not run, so they get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.mixtures import the_mixtures
from expunge.primitives.class_scores import widen


class UpToRouter(nn.Module):
    """A mixture of experts up to a router, whose probabilities it returns as `logits`.

    Their shape is [1, tokens, 2, layers, experts]: first the probabilities, then 1 where the expert is among the top K.
    """

    def __init__(self, module: nn.Module, layer: int | None) -> None:
        super().__init__()
        found = the_mixtures(module)
        if layer is not None and layer not in found:
            numbers = ", ".join(map(str, found))
            raise UsageRefused(f"The `layer` must be a block with experts: {numbers}. Got {layer!r}.")
        self.module = module
        self.layers = tuple(found) if layer is None else (layer,)
        self.gates = [found[number].gate for number in self.layers]  # a list registers no submodule

    def forward(self, **inputs: Any) -> SimpleNamespace:
        outputs: list[tuple[Tensor, Tensor]] = []
        hooks = [gate.register_forward_hook(self._listen(outputs)) for gate in self.gates]
        try:
            self.module(**inputs)
        except _AllRoutersRead:
            # Not in the hook: a block that is recomputed for backward has no hook, and must save the same tensors.
            return SimpleNamespace(logits=torch.stack([_read(*one) for one in outputs], -2)[None])
        finally:
            for hook in hooks:
                hook.remove()
        raise ModelRefused(f"{type(self.module).__name__} did not run the routers that are wanted.")

    def _listen(self, outputs: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
        def hook(gate: nn.Module, _inputs: tuple[Any, ...], made: Any) -> None:
            if not (isinstance(made, tuple) and len(made) == 3):
                raise ModelRefused(
                    f"{type(gate).__name__} does not return scores, weights and indices as the routers of Mixtral, "
                    f"OLMoE and Qwen-MoE do, so it cannot be read. Use adapter=Full(), and no Anchor()."
                )
            outputs.append((made[0], made[2]))
            if len(outputs) == len(self.gates):
                raise _AllRoutersRead

        return hook


def _read(scores: Tensor, indices: Tensor) -> Tensor:
    """Probabilities of all experts, and 1 where they are among the top K: [tokens, 2, experts]."""
    probabilities = widen(scores).softmax(-1)
    return torch.stack([probabilities, torch.zeros_like(probabilities).scatter(-1, indices, 1.0)], -2)


class _AllRoutersRead(Exception):  # noqa: N818 (not an error: it stops a forward pass)
    pass
