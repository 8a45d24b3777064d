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
in both: from the end alone nothing was learnt in some ten settings. Both orders are learnt in turn, by one network.

The answer at the end does not tell the orders apart: who read the long set first has only the four tokens of the short
one left to choose from, which is easier by as much as what it kept is worse. So four tokens are compared in either
order: the common one and three others of its set. A causal network knows this of the set that is read last; where all
is known, of both, and the one that is told better counts.

A row takes 4 to 10 minutes on one thread.
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
WIDTH = 64
SIZES = {"layers": 2, "heads": 1, "features": 2}
"""7 features a key: what limits the state."""
SEEDS = (0, 1, 2)
STEPS, BATCH, RATE, ASKED = 10000, 64, 2e-3, 2000
CANDIDATES = 4


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
    parts: tuple[slice, slice]
    """The places of the first and the second set, as they are read last."""


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
    starts = tokens.shape[1] - 1 - other  # of the set that is read last
    last = word & (place >= starts)
    parts = slice(starts - 1 - one, starts - 1), slice(starts, starts + other)
    # Reading twice, all is known in the second reading; as a prefix, everywhere.
    told = {"causal": last, "twice": word & (place >= one + 2), "prefix": word}[form]
    few = first if one < other else second
    return Sets(tokens, common, few, (tokens == common[:, None]).float(), told, parts)


def scores(network: PrefixTransformer, sets: Sets, form: str) -> tuple[Tensor, Tensor]:
    """Of each word at the end [rows, words]; that a token is in both, in nats, at each place [rows, places]."""
    x, ones = network.embedding(sets.tokens), torch.ones(sets.tokens.shape)
    for block in network.blocks:
        x = block(x, ones, ones if form == "prefix" else None)
    # Not `network(...)`, which would score every word at every place.
    in_both = network.norm(x) @ (network.embedding.weight[BOTH] - network.embedding.weight[ONE])
    return network.score(x[:, -1])[:, :WORDS], in_both


def loss(said: tuple[Tensor, Tensor], sets: Sets) -> Tensor:
    """Of the common token at the end, and of what each token is."""
    end, in_both = said
    rare = torch.tensor(5.0)  # one token of 32 is in both
    marks = binary_cross_entropy_with_logits(in_both[sets.told], sets.both[sets.told], pos_weight=rare)
    return cross_entropy(end, sets.common) + marks


def trained(form: str, seed: int) -> PrefixTransformer:
    """A network that has read both orders in turn."""
    torch.manual_seed(seed)
    network, generator = PrefixTransformer(WORDS + 5, WIDTH, **SIZES), torch.Generator().manual_seed(seed + 1)
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
    """named: the common token has the highest score of all at the end; chosen: of the short set; told: of four tokens
    of one set it seems likeliest to be in both. Each a share of the rows, at chance 1/256, 1/4, 1/4."""
    generator = torch.Generator().manual_seed(999)
    sets = draw(ASKED, order, form, generator)
    end, in_both = scores(network, sets, form)
    first, second = (of_four(in_both[:, part], sets.both[:, part], generator) for part in sets.parts)
    few = end.gather(1, sets.few).argmax(1)
    return {
        "named": share(end.argmax(1) == sets.common),
        "chosen": share(sets.few.gather(1, few[:, None])[:, 0] == sets.common),
        "told": second if form == "causal" else max(first, second),
    }


def of_four(in_both: Tensor, both: Tensor, generator: torch.Generator) -> float:
    """How often the common token's score is above those of three others, drawn at random."""
    drawn = torch.rand(both.shape, generator=generator) + both  # the common one is always among them
    kept = drawn >= drawn.topk(CANDIDATES, 1).values[:, -1:]
    return share(both.gather(1, in_both.masked_fill(~kept, -torch.inf).argmax(1, keepdim=True))[:, 0] > 0)


def share(hit: Tensor) -> float:
    return float(hit.float().mean())


def run(out: Path) -> None:
    """Make the rows that the file lacks."""
    torch.set_num_threads(1)
    for seed, form in itertools.product(SEEDS, FORMS):
        if any((row["seed"], row["form"]) == (seed, form) for row in rows(out)):
            continue
        network = trained(form, seed)
        for order in ORDERS:
            keep(out, {"form": form, "seed": seed, "order": order, **measured(network, form, order)})


MEASURED = ("told", "chosen", "named")


def lines(found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A line for each form: short set first, long set first."""
    for form in FORMS:
        mine = [row for row in found if row["form"] == form]
        if mine:
            cells = [
                spread([row[what] for row in mine if row["order"] == order]) for what in MEASURED for order in ORDERS
            ]
            yield [form, str(len({row["seed"] for row in mine})), *cells]


def spread(values: Sequence[float]) -> str:
    """Mean, least and most."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def show(out: Path) -> None:
    """The table of the page."""
    heads = ["read", "seeds", *(f"{what}, {order}" for what in MEASURED for order in ORDERS)]
    between(PAGE, "reading-twice", table(heads, list(lines(list(rows(out))))))


if __name__ == "__main__":
    run_or_show(__doc__, run, show)
