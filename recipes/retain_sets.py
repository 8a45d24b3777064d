"""Which retain set keeps more of a pretrained model: one chosen by hand, at random or by a selector, of the same size.

    python recipes/retain_sets.py run DATA docs/retain_sets.jsonl --models MODELS [--worlds library] [--seeds 0 1 2]
    python recipes/retain_sets.py show docs/retain_sets.jsonl           writes the table of docs/selecting.md

library    SmolLM2 learnt 20 TOFU authors and forgets one. The corpus is every second record of the other authors; by
           hand is one record of each. Asked are the records between: those like the forgotten in words, and the rest
country    SmolLM2 forgets Japan. The corpus is TOFU's questions about the world and about real authors, without those
           that name what is forgotten; by hand are questions of the demo's own retain set. Asked: its neighbours, and
           general questions

DATA is a folder with tofu. The method is the default, on `library` for 60 steps of half the size, since its records are
long; AutoCoreset fits fewer and shorter than by default, as it would take longer than the forgetting. Seeds are the
author's and the method's. Products of matrices are rounded to bfloat16 where the processor is quicker so.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keeping import between, keep, rows
from people import passages
from selecting import ASKED, Row, asked_of, chosen, similar, spread
from worlds import Places, country, library_model, library_request, read, tofu

from expunge import Network, Request, read_request
from expunge.core.request import Example
from expunge.run.choose import choose_method, default_method

PAGE = Path(__file__).parent.parent / "docs" / "selecting.md"
CHOICES = {
    "by hand": "",
    "random 0": "",
    "Nearest": "Nearest(count={size})",
    "AutoCoreset": "AutoCoreset(size={size}, models=1, patience=2, steps=4, seed={seed})",
    "random 1": "",
    "all of the corpus": "",
}


@dataclass(frozen=True)
class Corpus:
    """A model, what it is to forget, and a corpus from which its retain set is chosen."""

    original: Network
    request: Request
    """Its retain set is the corpus; its probes are asked and never trained on."""
    by_hand: tuple[Example, ...]
    """A retain set that a person chose, which says how many the others may choose."""
    method: str = default_method("language", unseen=True)


SHORT = (
    "Finetune(objective=TokenLevels() + RetainNLL() + 3.0 * RetainKL(), learning_rate=0.002, steps=60, batch=4, "
    "retain_batch=8, schedule='linear', stop=None)"
)


def library(seed: int, places: Places) -> Corpus:
    whole = library_request(seed, places)
    original = library_model("original", passages((*whole.forget, *whole.retain)), 0, places)
    corpus, asked = whole.retain[::2], whole.retain[1::2]
    alike = similar(asked, whole.forget).max(1)
    near = alike >= np.median(alike)
    probes = {
        "paraphrase": whole.probes["paraphrase"],
        "neighbours": tuple(e for e, is_near in zip(asked, near, strict=True) if is_near),
        "rest": tuple(e for e, is_near in zip(asked, near, strict=True) if not is_near),
    }
    return Corpus(original, replace(whole, retain=corpus, probes=probes), corpus[::10], SHORT)


FACTS = "japan|tokyo|rising sun|yen\\b|fuji|kyoto|osaka"
"""What no record of the corpus may say: a forgotten fact in a retain set is retained."""
BY_HAND = 40


def japan(seed: int, places: Places) -> Corpus:
    del seed  # it is the method's
    trial, found = country(0, places), []
    for name in ("world_facts", "real_authors"):
        found += tofu(read(places.data / "tofu" / f"{name}_perturbed.jsonl"), name)
    own = [row for row in found if not re.search(FACTS, f"{row['question']} {row['answer']}".lower())]
    corpus = read_request(trial.original, forget=own).forget
    asked = trial.request.probes
    probes = {"paraphrase": asked["paraphrase"], "neighbours": asked["neighbour"], "rest": asked["general"]}
    by_hand = trial.request.retain[: 3 * BY_HAND : 3]
    return Corpus(trial.original, replace(trial.request, retain=corpus, probes=probes), by_hand)


WORLDS: dict[str, Callable[[int, Places], Corpus]] = {"library": library, "country": japan}


def retained(corpus: Corpus, choice: str, seed: int) -> Row:
    """What is known after forgetting with one retain set."""
    request, begun = corpus.request, time.process_time()
    size = len(corpus.by_hand)
    if choice == "by hand":
        retain = corpus.by_hand
    elif choice == "all of the corpus":
        retain = request.retain
    else:
        retain = chosen(choice, CHOICES[choice], corpus.original, request, size, seed)
    spent = time.process_time() - begun
    own = replace(request, retain=retain)
    method = choose_method(corpus.method, "language", seed).method
    after = method.fit(corpus.original, own)(corpus.original, own)
    return {"count": len(retain), "cpu": round(spent, 1), **asked_of(after, replace(request, retain=()))}


def run(given: argparse.Namespace) -> None:
    """Make the rows that the file lacks."""
    warnings.simplefilter("ignore")
    torch.set_float32_matmul_precision("medium")
    places = Places(given.data, given.models)
    for choice in ("before", *given.choices):
        for name in given.worlds:
            for seed in given.seeds:
                if any((row["world"], row["seed"], row["choice"]) == (name, seed, choice) for row in rows(given.out)):
                    continue
                corpus = WORLDS[name](seed, places)
                if choice == "before":
                    made = asked_of(corpus.original, replace(corpus.request, retain=()))
                else:
                    made = retained(corpus, choice, seed)
                keep(given.out, {"world": name, "seed": seed, "choice": choice, **made})


def table(found: Sequence[Row]) -> Iterator[str]:
    """A line for each retain set: means over the records of all seeds, and their 95 % intervals."""
    shown = ("forget.Choice", "paraphrase.Choice", *ASKED[1:])
    yield f"| world | retain set | seeds | chosen in CPU s | {' | '.join(shown)} |"
    yield "|---" * (4 + len(shown)) + "|"
    for world in dict.fromkeys(row["world"] for row in found):
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row in (row for row in found if row["world"] == world):
            kinds.setdefault("random" if "random" in row["choice"] else row["choice"], []).append(row)
        for kind, mine in kinds.items():
            seeds = len({row["seed"] for row in mine})
            spent = f"{statistics.mean(row['cpu'] for row in mine):.0f}" if "cpu" in mine[0] else ""
            what = f"{kind}, {mine[0]['count']}" if "count" in mine[0] else kind
            yield f"| {world} | {what} | {seeds} | {spent} | {' | '.join(spread(mine, name) for name in shown)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("data", type=Path)
    runs.add_argument("out", type=Path)
    runs.add_argument("--models", type=Path, default=Path("models"))
    runs.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=WORLDS)
    runs.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES)
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    verbs.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        run(given)
    else:
        between(PAGE, "retain-sets", "\n".join(table(list(rows(given.out)))))


if __name__ == "__main__":
    main()
