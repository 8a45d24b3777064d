"""Gradient checkpointing: save all activations for backward, or only each block's input and recompute the rest.

Non-reentrant: the reentrant kind gives no gradient to a block none of whose inputs needs one, and with frozen
embeddings that is the first block, whose adapter would not be trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

from expunge.errors import ModelRefused
from expunge.internals.blocks import every_block

Activations = Literal["kept", "recomputed"]


@contextmanager
def manage_activations(module: nn.Module, activations: Activations) -> Iterator[None]:
    """Within the block the activations of the module's transformer blocks are kept or recomputed."""
    found = list(every_block(module).values()) if activations == "recomputed" else []
    if activations == "recomputed" and not found:
        raise ModelRefused(f"{type(module).__name__} has no transformer blocks to recompute. Use activations='kept'.")
    try:
        for block in found:
            # No random numbers are drawn in a block: the model is in evaluation mode.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for block in found:
            vars(block).pop("forward", None)
