"""Does it matter which of two sets a model of fixed state reads first, and does reading twice help (arXiv 2407.05483)?

    OMP_NUM_THREADS=1 python recipes/reading_twice.py run docs/reading_twice.jsonl
    python recipes/reading_twice.py show docs/reading_twice.jsonl         writes the table of docs/recurrent.md

Set disjointness: 4 tokens and 32 others of 256, one of them in both sets. A network of linear attention
(`expunge.models.prefix_attention`, two blocks) reads one set after the other and is to name the common token. Whoever
reads the short set first need only keep 4 tokens in its state, else 32.

causal    each place knows what came before it
twice     the same, and the sets are read twice (JRT-Prompt)
prefix    both sets are a prefix that is read knowing all of it (JRT-RNN)

Learnt is the common token at the end, and at each token of a second set, or of any where all is known, whether it is
in both: from the end alone nothing was learnt in some ten settings. Both orders are learnt in turn, by one network. A
row takes 2 to 4 minutes on one thread.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows, run_or_show, table
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from expunge.models.prefix_attention import PrefixTransformer

PAGE = Path(__file__).parent.parent / "docs" / "recurrent.md"
WORDS, SHORT, LONG = 256, 4, 32
FIRST, SECOND, ASK, BOTH, ONE = range(WORDS, WORDS + 5)
"""Tokens that begin the sets and ask for the answer; two whose scores say whether a token is in both sets or in one."""
ORDERS = {"short first": (SHORT, LONG), "long first": (LONG, SHORT)}
FORMS = ("causal", "twice", "prefix")
WIDTHS = (16,)
SEEDS = (0, 1, 2)
STEPS, BATCH, RATE, ASKED = 4000, 64, 3e-3, 2000


@dataclass(frozen=True)
class Sets:
    """Pairs of sets as tokens, one row each."""

    tokens: Tensor
    common: Tensor
    """The token that is in both sets [rows]."""
    few: Tensor
    """The tokens of the short set [rows, 4]."""
    both: Tensor
    """1 where the token is in both sets [rows, places]."""
    told: Tensor
    """Whether the place is asked for `both` [rows, places]."""
    last: Tensor
    """Whether it is a token of the set that is read last [rows, places]."""


def draw(rows: int, order: str, form: str, generator: torch.Generator) -> Sets:
    """Sets of distinct tokens, the common one at a random place of each."""
    one, other = ORDERS[order]
    words = torch.rand(rows, WORDS, generator=generator).argsort(1)[:, : one + other - 1]
    first = words[:, :one]
    common = first[torch.arange(rows), torch.randint(one, (rows,), generator=generator)]
    second = torch.cat([words[:, one:], common[:, None]], 1)
    second = second.gather(1, torch.rand(rows, other, generator=generator).argsort(1))
    begin, middle, end = (torch.full((rows, 1), token) for token in (FIRST, SECOND, ASK))
    once = torch.cat([begin, first, middle, second], 1)
    tokens = torch.cat([once, once, end] if form == "twice" else [once, end], 1)
    word, place = tokens < WORDS, torch.arange(tokens.shape[1]).expand_as(tokens)
    last = word & (place >= tokens.shape[1] - 1 - other)
    # Reading twice, all is known in the second reading; as a prefix, everywhere.
    told = {"causal": last, "twice": word & (place >= one + 2), "prefix": word}[form]
    few = first if one < other else second
    return Sets(tokens, common, few, (tokens == common[:, None]).float(), told, last)


def scores(network: PrefixTransformer, sets: Sets, form: str) -> Tensor:
    """Class scores at each place."""
    ones = torch.ones(sets.tokens.shape)
    made: Tensor = network(sets.tokens, ones, ones if form == "prefix" else None)
    return made


def loss(said: Tensor, sets: Sets) -> Tensor:
    """Of the common token at the end, and of what each token is."""
    known = (said[..., BOTH] - said[..., ONE])[sets.told]
    rare = torch.tensor(5.0)  # one token of 32 is in both
    marks = binary_cross_entropy_with_logits(known, sets.both[sets.told], pos_weight=rare)
    return cross_entropy(said[:, -1, :WORDS], sets.common) + marks


def trained(form: str, width: int, seed: int) -> PrefixTransformer:
    """A network that has read both orders in turn."""
    torch.manual_seed(seed)
    network, generator = PrefixTransformer(WORDS + 5, width, features=4), torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for _, order in zip(range(STEPS), itertools.cycle(ORDERS), strict=False):
        sets = draw(BATCH, order, form, generator)
        optimizer.zero_grad()
        loss(scores(network, sets, form), sets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network


@torch.no_grad()
def measured(network: PrefixTransformer, form: str, order: str) -> dict[str, float]:
    """named: the common token has the highest score of all; chosen: of the short set; told: the share of the other
    tokens of the set read last that seem less likely to be in both than the common token does (AUC)."""
    sets = draw(ASKED, order, form, torch.Generator().manual_seed(999))
    said = scores(network, sets, form)
    end, known = said[:, -1, :WORDS], said[..., BOTH] - said[..., ONE]
    hit = known.masked_fill(~(sets.last & (sets.both > 0)), 0).sum(1, keepdim=True)
    others = sets.last & (sets.both == 0)
    return {
        "named": float((end.argmax(1) == sets.common).float().mean()),
        "chosen": float(
            (sets.few.gather(1, end.gather(1, sets.few).argmax(1)[:, None])[:, 0] == sets.common).float().mean()
        ),
        "told": float((hit > known)[others].float().mean()),
    }


def run(out: Path) -> None:
    """Make the rows that the file lacks."""
    torch.set_num_threads(1)
    for width, seed, form in itertools.product(WIDTHS, SEEDS, FORMS):
        if any((row["seed"], row["width"], row["form"]) == (seed, width, form) for row in rows(out)):
            continue
        network = trained(form, width, seed)
        for order in ORDERS:
            keep(out, {"form": form, "width": width, "seed": seed, "order": order, **measured(network, form, order)})


def lines(found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A line for each width and form: short set first, long set first."""
    for width, form in itertools.product(WIDTHS, FORMS):
        mine = [row for row in found if (row["width"], row["form"]) == (width, form)]
        if mine:
            cells = [
                spread([row[what] for row in mine if row["order"] == order]) for what in MEASURED for order in ORDERS
            ]
            yield [str(width), form, str(len({row["seed"] for row in mine})), *cells]


MEASURED = ("told", "chosen", "named")


def spread(values: Sequence[float]) -> str:
    """Mean, least and most."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def show(out: Path) -> None:
    """The table of the page."""
    heads = ["width", "read", "seeds", *(f"{what}, {order}" for what in MEASURED for order in ORDERS)]
    between(PAGE, "reading-twice", table(heads, list(lines(list(rows(out))))))


if __name__ == "__main__":
    run_or_show(__doc__, run, show)
