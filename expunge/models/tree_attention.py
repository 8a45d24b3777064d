"""Attention over the nodes of a prefix tree (see `prefix_tree.py`): each piece attends to itself and to its ancestors.

A row of N nodes has N^2 pairs, of which few are an ancestor and its descendant: with 40 records about one in 40. In
pieces, attention costs about as much as for the records one by one. It is registered with transformers'
`AttentionInterface` and hands on any input that is not a tree to the original function.

For SDPA it has the name of the original: some architectures ask whether their attention is called "sdpa" before they
choose which keys are seen. Eager attention is a function of each architecture's own, which no name stands for. There it
has a name of its own, and an architecture that compares names keeps the original.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

from expunge.models.prefix_tree import Piece, pieces

MOST = {"cpu": 128, "cuda": 512}
"""Most nodes of a piece that can be split: a GPU computes one large square faster than many small ones."""

EAGER = "expunge_eager"
"""The name of eager attention that reads trees."""

COMPARED = re.compile(r"_attn_implementation\W+(==|!=|in\b|not in\b)")
"""In an architecture's source code: a branch that depends on the name of the attention function."""


@dataclass(frozen=True)
class Cut:
    """The pieces of a tree, and the attention mask of each."""

    pieces: Sequence[Piece]
    masks: dict[tuple[torch.dtype, bool], list[Tensor | None]] = field(default_factory=dict)


_cuts: Any = WeakTensorKeyDictionary()
"""The pieces of each tree that is being read, by the tensor of its subtrees' ends. All layers get the same tensor; for
a
copy of it the pieces are computed again."""


def with_trees(module: Any) -> bool:
    """Let the attention of `module` read trees; False where the architecture has an attention function of its own."""
    _register()
    now = _attention(module)
    if (
        now == "eager"
        and module._can_set_attn_implementation()
        and not COMPARED.search(_source(type(module).__module__))
    ):
        module.set_attn_implementation(EAGER)
    return _attention(module) in ("sdpa", EAGER) and bool(module._can_set_attn_implementation())


def without_trees(module: Any) -> None:
    """Restore the original attention of `module`."""
    if _attention(module) == EAGER:
        module.set_attn_implementation("eager")


def _attention(module: Any) -> str | None:
    return getattr(module.config.get_text_config(), "_attn_implementation", None)


@cache
def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):  # no file
        return ""


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask

    def sdpa(module: Any, *given: Any, **settings: Any) -> tuple[Tensor, Any]:
        return attend(sdpa_attention_forward, True, module, *given, **settings)

    AttentionInterface.register("sdpa", sdpa)
    AttentionInterface.register(EAGER, _eager)
    AttentionMaskInterface.register(EAGER, eager_mask)


def _eager(module: Any, *given: Any, **settings: Any) -> tuple[Tensor, Any]:
    # Every architecture defines its own, with its soft caps and sinks, under this name.
    theirs = sys.modules[type(module).__module__].eager_attention_forward
    return attend(theirs, False, module, *given, **settings)


def attend(
    theirs: Callable[..., tuple[Tensor, Any]],
    causal: bool,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Any]:
    """The output of `theirs` for each piece of a tree; for other inputs its output for the whole.

    `causal`: whether it needs no mask for a plain sequence, which is about twice as fast.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64 or attention_mask.dim() != 4:
        return theirs(module, query, key, value, attention_mask, **settings)
    cut = cut_of(attention_mask)
    masks = masks_of(attention_mask, query.dtype, causal)
    sizes = [piece.size for piece in cut.pieces]
    queries, keys, values = (part.split(sizes, 2) for part in (query, key, value))
    said = []
    for place, (piece, mask) in enumerate(zip(cut.pieces, masks, strict=True)):
        seen = [*piece.above, place]
        k, v = (parts[place] if len(seen) == 1 else torch.cat([parts[s] for s in seen], 2) for parts in (keys, values))
        known = {"is_causal": True} if mask is None else {}
        said.append(theirs(module, queries[place], k, v, mask, **(settings | known))[0])
    return (said[0] if len(said) == 1 else torch.cat(said, 1)), None


def cut_of(ends: Tensor) -> Cut:
    """The pieces of the tree with these subtree ends."""
    if ends not in _cuts:
        # A plan's tensors have no contents: where an architecture copied the mask, it stands for one sequence.
        bare = ends.is_meta or isinstance(ends, FakeTensor)
        known = [ends.numel()] * ends.numel() if bare else ends.flatten().tolist()
        _cuts[ends] = Cut(pieces(known, most_on(ends.device.type)))
    return _cuts[ends]  # type: ignore[no-any-return]


def most_on(device: str) -> int:
    """Most nodes of a piece on a type of device."""
    return MOST.get(device, MOST["cpu"])


def masks_of(ends: Tensor, dtype: torch.dtype, causal: bool) -> list[Tensor | None]:
    """The additive attention mask of each piece; where `causal`, None for a plain sequence."""
    cut = cut_of(ends)
    if (dtype, causal) not in cut.masks:
        cut.masks[dtype, causal] = [
            None if causal and piece.path and not piece.above else _mask(cut.pieces, place, ends, dtype)
            for place, piece in enumerate(cut.pieces)
        ]
    return cut.masks[dtype, causal]


def set_pieces(ends: Tensor, cut: Sequence[Piece]) -> None:
    """Set the pieces of a tree beforehand, for meta tensors, whose values cannot be read."""
    _cuts[ends] = Cut(cut)


def _mask(cut: Sequence[Piece], place: int, ends: Tensor, dtype: torch.dtype) -> Tensor:
    """A piece's additive mask: 0 where a node attends, the lowest number elsewhere; [1, 1, nodes, keys]."""
    there = torch.cat([torch.arange(cut[k].start, cut[k].stop, device=ends.device) for k in (*cut[place].above, place)])
    own = there[-cut[place].size :, None]
    visible = (there <= own) & (own < ends.flatten()[there])
    mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=ends.device)
    return mask.masked_fill_(visible, 0.0)[None, None]
