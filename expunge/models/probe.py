"""How a causal language model may be read: tried when it is loaded, on a few short texts.

What a text is answered alone, without a mask, is right: it is what transformers answers. Reading several at once is
faster and must give the same, so the first of these is taken that does: one prefix tree, padded rows, one text at a
time. A model that draws its answers at random, or whose answers depend on what comes later, is refused.

Some architectures read texts beyond a certain length otherwise: a window, chunks, the keys that an indexer selects,
rotary factors for long texts. The configuration names such lengths. The probe goes beyond those that are short; texts
longer than one of the others are read one at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from expunge.errors import ModelRefused
from expunge.models.configuration import largest, lengths, places, selections
from expunge.models.tree_attention import with_trees, without_trees
from expunge.runtime.processes import barrier

if TYPE_CHECKING:
    from expunge.models.language import LanguageModel

ANY_LENGTH = 1 << 30
"""Longer than any text."""

NEAR = {"cpu": 32, "cuda": 512}
"""Lengths that the probe goes beyond, by device."""

FAILS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError, AssertionError)
"""What architectures raise when they are given what they do not read."""

Reading = Callable[[Sequence[Sequence[int]]], list[Tensor]]


@dataclass(frozen=True)
class Texts:
    """Texts of the probe: two that are shorter than every named length, where that is possible, and one that is longer
    than the near ones."""

    short: tuple[tuple[int, ...], tuple[int, ...]]
    """Their first tokens are the same."""
    long: tuple[int, ...]
    near: tuple[int, ...]
    """The named lengths that the long text goes beyond, the lowest first."""
    far: tuple[int, ...]
    """Those that it does not go beyond, the lowest first."""

    @property
    def beyond(self) -> int:
        """The lowest of those."""
        return self.far[0] if self.far else ANY_LENGTH

    @staticmethod
    def of(module: Any) -> Texts:
        """Of tokens drawn at random."""
        config = module.config.get_text_config(decoder=True)
        limits, selection = lengths(config), min(selections(config), default=ANY_LENGTH)
        weight = module.get_input_embeddings().weight
        nearest = NEAR.get(weight.device.type, NEAR["cpu"])
        # Which of equally good keys are selected may depend on the width of the row, so nothing is beyond a selection.
        near = [limit for limit in limits if limit <= nearest and limit < selection]
        far = [limit for limit in limits if limit not in near]
        size = min(9, max(6, *limits[:1])) if limits else 9
        draw = torch.Generator().manual_seed(0)
        words = torch.randint(len(weight), (max([12, *near]) + 14,), generator=draw).tolist()
        first, second = tuple(words[:size]), (*words[: size - 4], *words[-2:])
        ends = largest(config, "max_position_embeddings") or ANY_LENGTH  # learnt positions end there
        most = min([ends, *far[:1]])
        long = (*words[: size - 2], *words[size + 2 : -4])[:most]
        return Texts((first, second), long, tuple(near), tuple(far))


@dataclass(frozen=True)
class Reads:
    """What the probe found."""

    trees: int
    """The longest text, in tokens, that is read as a path of a prefix tree; 0: none."""
    rows: int
    """The longest that is read in padded rows, beside others; 0: none."""
    nodes: int
    """The most nodes of a tree."""


def probe(network: LanguageModel) -> Reads:
    """How the network may be read; its attention is switched to one that reads trees where that is right.

    Raises `ModelRefused` where it is no causal model of texts.
    """
    module, texts = network.module, Texts.of(network.module)
    short = [*texts.short, texts.short[0][:1]]
    every = [*short, texts.long]
    with torch.inference_mode():
        one, other = (answer(module, text) for text in texts.short)
        _refuse_what_is_not_causal(module, texts, one, other)
        alone = [one, other, one[:1], answer(module, texts.long)]

        def longest(read: Reading) -> int:
            """The longest text that is read as it is alone."""
            if agree(read, every, alone):
                return texts.beyond
            return texts.near[0] if texts.near and agree(read, short, alone) else 0

        rows, trees = longest(network.read_rows), 0
        if "position_ids" in inspect.signature(module.forward).parameters and with_trees(module):
            trees = longest(network.read_tree)
            if not trees:
                without_trees(module)
    return Reads(trees, rows, min(places(module.config.get_text_config(decoder=True)), default=ANY_LENGTH))


def answer(module: Any, text: Sequence[int]) -> Tensor:
    """The class scores at each position of a text, as transformers has them; [tokens, classes]."""
    tokens = torch.tensor([text], device=module.get_input_embeddings().weight.device)
    try:
        scores = module(input_ids=tokens, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except FAILS as error:
        barrier()  # where another process is lost, it is not the architecture that failed
        _refuse(module, f"does not read tokens alone ({type(error).__name__})")
    if scores is None or scores.shape[:2] != tokens.shape:
        _refuse(module, "does not score the next token at each position of a text")
    return scores[0]  # type: ignore[no-any-return]


def agree(read: Reading, texts: Sequence[Sequence[int]], alone: Sequence[Tensor]) -> bool:
    """Whether texts are answered together as each is alone."""
    try:
        together = read(texts)
    except torch.OutOfMemoryError:
        raise
    except FAILS:
        return False
    return all(close(ours, theirs) for ours, theirs in zip(together, alone, strict=False))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether class scores are the same but for rounding."""
    precise = theirs.dtype in (torch.float32, torch.float64)
    ours, theirs = ours.float(), theirs.float()
    scale = float((theirs - theirs.mean(-1, keepdim=True)).abs().max())
    return float((ours - theirs).abs().max()) <= (1e-3 if precise else 5e-2) * scale


def _refuse_what_is_not_causal(module: Any, texts: Texts, one: Tensor, other: Tensor) -> None:
    same = next(k for k, (a, b) in enumerate(zip(*texts.short, strict=False)) if a != b)
    if close(one[:same], other[:same]):
        return
    if close(answer(module, texts.short[0]), one):
        _refuse(module, "scores a token by what comes after it, as an encoder does, so it is no causal language model")
    _refuse(module, "draws its answers at random, so that no two are alike")


def _refuse(module: Any, why: str) -> NoReturn:
    raise ModelRefused(f"{type(module).__name__}, with these settings, {why}. Give a model that writes text by itself.")
