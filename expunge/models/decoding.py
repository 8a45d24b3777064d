"""Greedy continuations of many sequences side by side.

What the sequences begin with in common is read once, as a tree (see `tree.py`), and each sequence takes its keys and
values from it, into memory that has room for all that it will write. A step of writing then reads every weight once
for all of them; who has ended leaves the batch. What is written is the highest-scoring token at each place, nothing
else: no sampling, no penalty, no forced token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.models.prefix_tree import Tree

if TYPE_CHECKING:
    from expunge.models.language import LanguageModel
    from expunge.primitives.class_scores import Head

WRITES = 128
"""Continuations that are written side by side at most. A product of 16 rows runs at a third of the rate of one of 128
on a CPU; beyond that little is gained."""

SPACE = {"cpu": 1 << 30, "cuda": 1 << 33}
"""Bytes that keys and values of the continuations written side by side may take."""


def ends(module: Any) -> frozenset[int]:
    """The tokens that end what is written."""
    for config in (getattr(module, "generation_config", None), module.config.get_text_config()):
        end = getattr(config, "eos_token_id", None)
        if end is not None:
            return frozenset([end] if isinstance(end, int) else end)
    return frozenset()


def side_by_side(module: Any, longest: int) -> int:
    """How many sequences of `longest` tokens, the written ones included, may be written at one time."""
    text = module.config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    weight = module.get_input_embeddings().weight
    token = 2 * int(text.num_hidden_layers) * int(getattr(text, "num_key_value_heads", None) or heads) * width
    space = SPACE.get(weight.device.type, SPACE["cpu"])
    return max(1, min(WRITES, space // (token * weight.element_size() * longest)))


def greedy(network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
    """What comes after each of `begun`: at most so many tokens as `most` says of it, up to an end with it.

    Only for a network that reads trees of the length of the longest of `begun`.
    """
    continuations: list[list[int]] = [[] for _ in begun]
    alive = [k for k, many in enumerate(most) if many > 0]
    if not alive:
        return continuations
    stop = ends(network.module)
    with torch.inference_mode():
        cache, scores = _read(network, [begun[k] for k in alive], max(most))
        lengths = torch.tensor([len(begun[k]) for k in alive])
        mask = (torch.arange(int(lengths.max())) >= int(lengths.max()) - lengths[:, None]).long().to(network.device)
        place = lengths.to(network.device)
        while True:
            token = scores.argmax(-1)
            for k, new in zip(alive, token.tolist(), strict=True):
                continuations[k].append(new)
            stay = [
                row
                for row, k in enumerate(alive)
                if continuations[k][-1] not in stop and len(continuations[k]) < most[k]
            ]
            if not stay:
                return continuations
            if len(stay) < len(alive):
                taken = _moved_up(stay)
                for layer in cache.layers:
                    layer.keep(taken)
                alive = [alive[row] for row in taken]
                rows = torch.tensor(taken, device=network.device)
                token, mask, place = token[rows], mask[rows], place[rows]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            states, head = network.states(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=place[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            scores = _scores(states[:, -1], head)
            place = place + 1


def _moved_up(stay: Sequence[int]) -> list[int]:
    """The rows that stay, in such an order that all but the last few lie where they lay."""
    there = set(stay)
    late = iter([row for row in reversed(stay) if row >= len(stay)])
    return [row if row in there else next(late) for row in range(len(stay))]


def _read(network: LanguageModel, sequences: Sequence[Sequence[int]], more: int) -> tuple[Any, Tensor]:
    """The keys and values of each sequence, padded on the left, with room for `more`; the scores of what comes next."""
    from transformers import DynamicCache

    from expunge.models.kv_cache import PreallocatedLayer

    tree = Tree.of(sequences)
    cache = DynamicCache()
    states, head = network.states(**network.inputs(tree), past_key_values=cache, use_cache=True)
    last = torch.tensor([path[-1] for path in tree.paths], device=states.device)
    longest = max(map(len, sequences))
    paths = torch.tensor([(0,) * (longest - len(path)) + path for path in tree.paths], device=states.device)
    for place, layer in enumerate(cache.layers):
        cache.layers[place] = PreallocatedLayer(_along(layer.keys, paths), _along(layer.values, paths), more)
    return cache, _scores(states[0, last], head)


def _along(kept: Tensor, paths: Tensor) -> Tensor:
    """Keys or values [1, heads, nodes, width] of the nodes along each path: [paths, heads, length, width]."""
    return kept[0].transpose(0, 1)[paths].transpose(1, 2)


def _scores(states: Tensor, head: Head | None) -> Tensor:
    return states if head is None else head(states)


def generate(network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
    """The same by transformers' own loop, for architectures that read no trees: all are read, padded on the left."""
    continuations: list[list[int]] = [[] for _ in begun]
    alive = [k for k, many in enumerate(most) if many > 0]
    if not alive:
        return continuations
    stop = ends(network.module)
    width = max(len(begun[k]) for k in alive)
    tokens = torch.full((len(alive), width), min(stop, default=0), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, k in enumerate(alive):
        tokens[row, width - len(begun[k]) :] = torch.tensor(begun[k])
        mask[row, width - len(begun[k]) :] = 1
    with torch.inference_mode():
        written = network.module.generate(
            input_ids=tokens.to(network.device),
            attention_mask=mask.to(network.device),
            max_new_tokens=max(most[k] for k in alive),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            use_cache=True,
            pad_token_id=min(stop, default=0),
        )
    for k, row in zip(alive, written[:, width:].tolist(), strict=True):
        end = next((place + 1 for place, token in enumerate(row) if token in stop), len(row))
        continuations[k] = row[: min(end, most[k])]
    return continuations
