"""Batched greedy decoding.

Prefixes that sequences share are prefilled once, as a tree (see `prefix_tree.py`), and each sequence copies its keys
and
values from it into a preallocated cache. Finished sequences leave the batch. The token with the highest score is taken
at each position: no sampling, no penalties, no forced tokens, whatever the model's generation_config asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from expunge.models.configuration import largest
from expunge.models.prefix_tree import Tree

if TYPE_CHECKING:
    from expunge.models.language import LanguageModel
    from expunge.primitives.class_scores import Head

WRITES = 512
"""Largest batch. A matrix product of 16 rows runs at a third of the rate of one of 128 on a CPU; more rows save steps,
since each batch goes on until its longest continuation ends, at last with few rows."""

SPACE = {"cpu": 1 << 30, "cuda": 1 << 33}
"""Largest size of a batch's keys and values, in bytes."""


def ends(module: Any) -> frozenset[int]:
    """The end-of-sequence tokens."""
    for config in (getattr(module, "generation_config", None), module.config.get_text_config()):
        end = getattr(config, "eos_token_id", None)
        if end is not None:
            return frozenset([end] if isinstance(end, int) else end)
    return frozenset()


def side_by_side(module: Any, longest: int) -> int:
    """Batch size for sequences of `longest` tokens, generated ones included."""
    space = SPACE.get(module.get_input_embeddings().weight.device.type, SPACE["cpu"])
    return max(1, min(WRITES, space // (cache_bytes(module) * longest)))


def cache_bytes(module: Any) -> int:
    """Bytes of the keys and values of one token, by the configuration. A model without heads has a state instead, which
    is counted as keys and values of its width."""
    text = module.config.get_text_config(decoder=True)
    heads = largest(text, "num_attention_heads") or 1
    width = largest(text, "head_dim") or largest(text, "hidden_size") // heads
    number = 2 * largest(text, "num_hidden_layers") * (largest(text, "num_key_value_heads") or heads) * width
    return max(number, 1) * int(module.get_input_embeddings().weight.element_size())


def greedy(
    network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int], seen: list[Tensor] | None = None
) -> list[list[int]]:
    """The continuation of each of `begun`, of at most `most` tokens each, up to and including an end token.

    Only for a network that reads prefix trees as long as the longest of `begun`. With `seen` no token is an end, and
    the scores at each place, [texts, classes], are added to it.
    """
    from expunge.models.kv_cache import cache_argument

    continuations: list[list[int]] = [[] for _ in begun]
    alive = [k for k, many in enumerate(most) if many > 0]
    if not alive:
        return continuations
    stop = ends(network.module) if seen is None else frozenset()
    with torch.inference_mode():
        cache, scores = _read(network, [begun[k] for k in alive], max(most))
        lengths = torch.tensor([len(begun[k]) for k in alive])
        mask = (torch.arange(int(lengths.max())) >= int(lengths.max()) - lengths[:, None]).long().to(network.device)
        place = lengths.to(network.device)
        while True:
            token = scores.argmax(-1)
            if seen is not None:
                seen.append(scores)
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
                taken = _compact(stay)
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
                use_cache=True,
                **{cache_argument(network.module): cache},
            )
            scores = score(states[:, -1], head)
            place = place + 1


def _compact(stay: Sequence[int]) -> list[int]:
    """The rows that stay, in an order in which most keep their place, so that few are copied."""
    there = set(stay)
    late = iter([row for row in reversed(stay) if row >= len(stay)])
    return [row if row in there else next(late) for row in range(len(stay))]


def _read(network: LanguageModel, sequences: Sequence[Sequence[int]], more: int) -> tuple[Any, Tensor]:
    """A cache of each sequence, padded on the left, with room for `more` tokens; and the scores of the next token."""
    from transformers import DynamicCache

    from expunge.models.kv_cache import PreallocatedLayer, cache_argument

    tree = Tree.of(sequences)
    cache: Any = DynamicCache()
    states, head = network.states(**network.inputs(tree), use_cache=True, **{cache_argument(network.module): cache})
    last = torch.tensor([path[-1] for path in tree.paths], device=states.device)
    longest = max(map(len, sequences))
    paths = torch.tensor([(0,) * (longest - len(path)) + path for path in tree.paths], device=states.device)
    for place, layer in enumerate(cache.layers):
        cache.layers[place] = PreallocatedLayer(_along(layer.keys, paths), _along(layer.values, paths), more)
    return cache, score(states[0, last], head)


def _along(kept: Tensor, paths: Tensor) -> Tensor:
    """Keys or values [1, heads, nodes, width] of the nodes along each path: [paths, heads, length, width]."""
    return kept[0].transpose(0, 1)[paths].transpose(1, 2)


def score(states: Tensor, head: Head | None) -> Tensor:
    """Class scores of hidden states; states that come without a head are scores already."""
    return states if head is None else head(states)


def generate(
    network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int], seen: list[Tensor] | None = None
) -> list[list[int]]:
    """The same by transformers' `generate`, in rows that are padded on the left."""
    continuations: list[list[int]] = [[] for _ in begun]
    alive = [k for k, many in enumerate(most) if many > 0]
    if not alive:
        return continuations
    stop = ends(network.module) if seen is None else frozenset()
    width = max(len(begun[k]) for k in alive)
    tokens = torch.zeros(len(alive), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, k in enumerate(alive):
        tokens[row, width - len(begun[k]) :] = torch.tensor(begun[k])
        mask[row, width - len(begun[k]) :] = 1
    bare = GenerationConfig(
        max_new_tokens=max(most[k] for k in alive),
        do_sample=False,
        use_cache=True,
        eos_token_id=sorted(stop) or None,
        pad_token_id=0,
        output_logits=seen is not None,
        return_dict_in_generate=True,
    )
    with torch.inference_mode(), _generation_config(network.module, bare):
        made = network.module.generate(tokens.to(network.device), bare, attention_mask=mask.to(network.device))
    if seen is not None:
        seen.extend(made.logits)
    for k, row in zip(alive, made.sequences[:, width:].tolist(), strict=True):
        end = next((place + 1 for place, token in enumerate(row) if token in stop), len(row))
        continuations[k] = row[: min(end, most[k])]
    return continuations


@contextmanager
def _generation_config(module: Any, bare: GenerationConfig) -> Iterator[None]:
    """Within the block the module has no other: from its own `generate` would take what `bare` leaves open, such as
    penalties and forbidden words."""
    own = module.generation_config
    module.generation_config = bare
    try:
        yield
    finally:
        module.generation_config = own


def spell(
    network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int], seen: list[Tensor] | None = None
) -> list[list[int]]:
    """The same without any cache, one text after the other: right for every architecture, and slow."""
    stop = ends(network.module)
    continuations: list[list[int]] = []
    with torch.inference_mode():
        for own, many in zip(begun, most, strict=True):
            new: list[int] = []
            while len(new) < many and not (new and new[-1] in stop):
                states, head = network.states(**network.row_inputs([[*own, *new]]))
                new.append(int(score(states[0, -1:], head).argmax()))
            continuations.append(new)
    return continuations
