"""Which way of greedy decoding a network is written with: the fastest that writes what the model scores highest.

Right is the token that the model scores highest when it is asked about the whole text anew. A faster way is tried on a
few tokens before a network first writes with it, and the next one taken where it scores otherwise: one prefix tree and
a cache, transformers' `generate` with rows padded on the left, `generate` one text at a time, no cache.

Where an architecture reads texts beyond a length otherwise that the probe's do not reach, a way is tried there on the
first text that is as long, and again on one that is half as long again: a cache that drops the keys of a window which
the network does not have loses few of them at first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from expunge.models.decoding import ends, generate, greedy, score, spell
from expunge.models.prefix_tree import pack
from expunge.models.probe import ANY_LENGTH, FAILS, Texts, close
from expunge.runtime.precision import full_precision
from expunge.runtime.processes import barrier

if TYPE_CHECKING:
    from expunge.models.language import LanguageModel

Way = Callable[["LanguageModel", Sequence[Sequence[int]], Sequence[int], list[Tensor] | None], list[list[int]]]
TRIED = 3
"""Tokens that each text is written on for in a trial."""
AGAIN = 1.5
"""How many times as long as those tried a text is on which a way is tried anew."""

_tried: WeakKeyDictionary[nn.Module, dict[tuple[Way, int], int]] = WeakKeyDictionary()
"""Ways to write texts up to a length, and the longest text on which each wrote what the module scores highest; 0: it
did not."""


def write(network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
    """The continuation of each of `begun`, of at most `most` tokens each, up to and including an end token."""
    stop = ends(network.module)
    continuations: list[list[int]] = [[] for _ in begun]
    lengths = (*Texts.of(network.module).far, ANY_LENGTH)
    each = [(generate_each, longest) for longest in lengths]
    # Where a longer text is read otherwise, keys and values of what came before may be others: it is read anew. Of what
    # is written the last token is not read.
    for way, longest in ((greedy, network.trees), (generate, network.rows), *each, (spell, ANY_LENGTH)):
        whole = [(*own, *new) for own, new in zip(begun, continuations, strict=True)]
        room = [
            0 if new and new[-1] in stop else min(many - len(new), longest + 1 - len(all_of_it))
            for new, many, all_of_it in zip(continuations, most, whole, strict=True)
        ]
        group = [k for k, many in enumerate(room) if many > 0]
        if group and _is_right(network, way, longest, [whole[k] for k in group]):
            most_room = max(room[k] for k in group)
            fit = [k for k in group if len(whole[k]) + most_room <= longest + 1 or way is greedy]
            parts = pack([whole[k] for k in fit], network.nodes if way is greedy else ANY_LENGTH)
            # `generate` goes on with all rows until the last has ended, so those that must end earlier are apart.
            for own in [*([fit[k] for k in part] for part in parts), *([k] for k in group if k not in fit)]:
                texts = way(network, [whole[k] for k in own], [room[k] for k in own], None)
                for k, text in zip(own, texts, strict=True):
                    continuations[k] += text
    return continuations


def generate_each(
    network: LanguageModel, begun: Sequence[Sequence[int]], most: Sequence[int], seen: list[Tensor] | None = None
) -> list[list[int]]:
    """transformers' `generate`, one text at a time."""
    each: list[list[Tensor]] = [[] for _ in begun]
    texts = [
        generate(network, [own], [many], None if seen is None else scores)[0]
        for own, many, scores in zip(begun, most, each, strict=True)
    ]
    if seen is not None:
        seen.extend(torch.cat(scores) for scores in zip(*each, strict=True))
    return texts


def _is_right(network: LanguageModel, way: Way, longest: int, whole: Sequence[Sequence[int]]) -> bool:
    """Whether the way's scores are those of the whole text read anew, for texts up to `longest` that are like `whole`;
    on the texts of the probe, and beyond those on one of `whole`."""
    if way is spell:
        return True
    known, texts = _tried.setdefault(network.module, {}), Texts.of(network.module)
    room = max(0, longest - TRIED)
    probed = [text[:room] for text in (*texts.short, texts.short[0][:1], texts.long)]
    begun = probed if longest <= texts.beyond else [tuple(max(whole, key=len)[:room])]
    before = max((limit for limit in texts.far if limit < longest), default=0)
    size = max(map(len, begun))
    tried = known.get((way, longest), -1)
    if tried < 0 or (0 < AGAIN * tried < size):
        right = room > 1 and size > before and _scores_as_alone(network, way, begun)
        known[way, longest] = size if right else 0
    return known[way, longest] > 0


@full_precision()
def _scores_as_alone(network: LanguageModel, way: Way, begun: Sequence[tuple[int, ...]]) -> bool:
    seen: list[Tensor] = []
    try:
        texts = way(network, begun, [TRIED] * len(begun), seen)
    except FAILS:
        barrier()  # where another process is lost, what failed is not the way
        return False
    with torch.inference_mode():
        for row, (own, new) in enumerate(zip(begun, texts, strict=True)):
            scores = torch.stack([step[row] for step in seen])
            if not close(scores, _read_anew(network, (*own, *new[:-1]), len(own))):
                return False
    return True


def _read_anew(network: LanguageModel, text: Sequence[int], begun: int) -> Tensor:
    """The scores of the tokens after the first `begun`, of the text read without a cache."""
    states, head = network.states(**network.row_inputs([text]))
    return score(states[0, begun - 1 :], head)
