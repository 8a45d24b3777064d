"""What the order of reading costs a recurrent model: set disjointness (Arora et al., 2024, arXiv 2407.05483).

    python recipes/recall.py run docs/recall.jsonl            # three seeds of each way of reading
    python recipes/recall.py show docs/recall.jsonl           # the table of docs/recurrent.md

A text is a set, a mark, another set and a mark; one token is in both, and the model says which. Of the sets one has 4
tokens and one 32, and half of the texts of training begin with either. A token of the first set and the same token of
the second begin as one vector and another that says which set it is of, as a token type does. Read causally, the state
after the first set must tell for each token whether it is in it: that is easier of 4 than of 32. Read twice, or as a
prefix that is not causal, each set can be compared with the shorter one.

All ways have the same texts (equal data), the same labels (equal loss tokens: the answer, and at each token of the
second set whether it is the common one), the same blocks and steps; `twice` reads twice as many tokens, and `prefix`
has an encoder's projections more.
"""

import sys
from pathlib import Path

import torch
from keeping import between, keep, rows
from torch import Tensor
from torch.nn import functional

from expunge.models.prefix_attention import PrefixTransformer

SHORT, LONG, WORDS = 4, 32, 128
MARK = 2 * WORDS
WAYS = ("causal", "twice", "prefix")
STEPS, BATCH, RATE, TESTS = 800, 32, 3e-3, 1000
SEEDS = (0, 1, 2)
PAGE = Path(__file__).parent.parent / "docs" / "recurrent.md"


def draw(count: int, first: int, second: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts [count, first + second + 2] whose sets have these sizes, and the one token that both have."""
    words = torch.rand(count, WORDS, generator=generator).argsort(1)
    ours, theirs = words[:, :first], words[:, first : first + second].clone()
    each = torch.arange(count)
    common = ours[each, torch.randint(first, (count,), generator=generator)]
    theirs[each, torch.randint(second, (count,), generator=generator)] = common
    mark = torch.full((count, 1), MARK)
    return torch.cat([ours, mark, theirs + WORDS, mark], 1), common


def ask(network: PrefixTransformer, texts: Tensor, way: str) -> Tensor:
    """Scores at each place of the texts, where they are read last, [texts, places, tokens]."""
    read = torch.cat([texts, texts], 1) if way == "twice" else texts
    everything = torch.ones(read.shape)
    return network(read, everything, everything if way == "prefix" else None)[:, -texts.shape[1] :]


def loss_of(scores: Tensor, texts: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy of the answer, and of what is asked at each token of the second set: the token, if it is the common
    one, else the mark."""
    places = (texts >= WORDS) & (texts < MARK)
    common = texts == right[:, None] + WORDS
    wanted = torch.where(common, right[:, None], MARK)
    return functional.cross_entropy(scores[:, -1, :WORDS], right) + functional.cross_entropy(
        scores[places], wanted[places]
    )


def learn(way: str, seed: int, steps: int = STEPS) -> PrefixTransformer:
    """Two blocks, trained on both orders alike."""
    torch.manual_seed(seed)
    network = PrefixTransformer(2 * WORDS + 1, width=64, layers=2, heads=2, features=4)
    with torch.no_grad():
        network.embedding.weight[WORDS:MARK] = network.embedding.weight[:WORDS] + torch.randn(64) / 8
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 50) * max(0.02, 1 - k / steps))
    for step in range(steps):
        texts, right = draw(BATCH, *((SHORT, LONG) if step % 2 else (LONG, SHORT)), generator)
        loss = loss_of(ask(network, texts, way), texts, right)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def test(network: PrefixTransformer, way: str, seed: int) -> dict[str, list[bool]]:
    """For each order, whether the answer to each new text is right."""
    generator = torch.Generator().manual_seed(1000 + seed)
    hits = {}
    for order, sizes in {"short first": (SHORT, LONG), "long first": (LONG, SHORT)}.items():
        texts, right = draw(TESTS, *sizes, generator)
        hits[order] = (ask(network, texts, way)[:, -1, :WORDS].argmax(-1) == right).tolist()
    return hits


def run(out: Path) -> None:
    """What is missing in the file: each way and seed."""
    for seed in SEEDS:
        for way in WAYS:
            if not any((row["way"], row["seed"]) == (way, seed) for row in rows(out)):
                for order, hits in test(learn(way, seed), way, seed).items():
                    keep(out, {"way": way, "seed": seed, "order": order, "right": sum(hits), "of": len(hits)})


def show(path: Path) -> None:
    """Right answers in each order, seed by seed, and the gap between them."""
    found = {(row["way"], row["seed"], row["order"]): row["right"] / row["of"] for row in rows(path)}
    lines = ["| read | short set first | long set first | gap | mean gap |", "|---|---|---|---|---|"]
    for way in WAYS:
        seeds = sorted({seed for name, seed, _ in found if name == way})
        first, last = ([found[way, seed, order] for seed in seeds] for order in ("short first", "long first"))
        gaps = [a - b for a, b in zip(first, last, strict=True)]
        cells = [", ".join(f"{value:.2f}" for value in each) for each in (first, last, gaps)]
        lines.append(f"| {way} | {' | '.join(cells)} | {sum(gaps) / len(gaps):.2f} |")
    between(PAGE, "recall", "\n".join(lines))


def main() -> None:
    torch.set_num_threads(1)
    what, path = sys.argv[1:3]
    {"run": run, "show": show}[what](Path(path))


if __name__ == "__main__":
    main()
