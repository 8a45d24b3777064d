"""Five requests in a row: does what was forgotten first come back when more is forgotten?

    python recipes/in_a_row.py run DATA docs/in_a_row.jsonl --models MODELS [--seeds 0 1 2]
    python recipes/in_a_row.py show docs/in_a_row.jsonl        writes the table of docs/test-sets.md

The world of contracts (`recipes/worlds.py`): a small model has eight by heart and forgets five, one request after the
other, each on the model that the one before left. Retained are the contracts that are not forgotten yet. Two ways: each
request by itself, and with the records of earlier requests in the forget set too, where they are at their levels
already and are held there. Three requests per seed start at different contracts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from keeping import between, keep, rows
from worlds import EDGE, EDGES, Places, contracts

from expunge import Network, Request
from expunge.core.model import network_of
from expunge.notation.parse import parse
from expunge.run.choose import choose_method, default_method
from expunge.runtime.cached_model import CachedModel

REQUESTS = 5
WAYS = ("by itself", "with the earlier")
AUDITS = ("Choice()", "Loss()", "LossMembership()", "MinK()")
COLUMNS = {
    "Choice": "forget.Choice",
    "loss": "forget.Loss",
    "membership": "forget vs holdout.LossMembership",
    "Min-K": "forget vs holdout.MinK",
}


def read(network: Network, request: Request) -> dict[str, float]:
    """What the audits read of one contract."""
    model = CachedModel(network)
    found = {f"{f.set}.{f.audit}": f.value for text in AUDITS for f in parse(text)(model, request)}
    return {column: round(found[key], 4) for column, key in COLUMNS.items()}


def run(places: Places, out: Path, seeds: Sequence[int]) -> None:
    """What is missing in the file: after each request, every contract that was forgotten until then."""
    for seed in seeds:
        trial = contracts(seed, places)
        every = (*trial.request.forget, *trial.request.retain)
        names = list(dict.fromkeys(example.id.rpartition(" ")[0] for example in every))
        parts = {name: tuple(e for e in every if e.id.rpartition(" ")[0] == name) for name in names}
        assert len(parts) == EDGES
        assert all(len(part) == EDGE for part in parts.values())
        for way in WAYS:
            if not any((row["seed"], row["way"]) == (seed, way) for row in rows(out)):
                for row in requests(trial.original, trial.request, parts, way):
                    keep(out, {"seed": seed, "way": way, **row})


def requests(network: Network, whole: Request, parts: dict[str, Any], way: str) -> list[dict[str, Any]]:
    """The rows of one way: which request, which contract, and what is read of it."""
    method, made = choose_method(default_method("language", unseen=True), "language").method, []
    names = list(parts)
    for number in range(REQUESTS):
        earlier = [e for name in names[:number] for e in parts[name]] if way == WAYS[1] else []
        retain = [e for name in names[number + 1 :] for e in parts[name]]
        request = replace(whole, forget=(*parts[names[number]], *earlier), retain=tuple(retain), probes={})
        network = network_of(method.fit(network, request)(network, request).plain(), "requests")
        for place in range(number + 1):
            about = replace(whole, forget=parts[names[place]], retain=tuple(retain), probes={})
            made.append({"after": number + 1, "contract": place + 1, **read(network, about)})
    return made


def show(path: Path) -> None:
    """What is read of each contract when it had just been forgotten, and after the fifth request."""
    found = list(rows(path))
    lines = ["| | contract | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for way in WAYS:
        for place in range(1, REQUESTS):
            cells = []
            for column in COLUMNS:
                each = [
                    " → ".join(
                        f"{row[column]:.2f}" for row in found if at(row, seed, way, place) and row["after"] in ends
                    )
                    for ends in [(place, REQUESTS)]
                    for seed in sorted({row["seed"] for row in found})
                ]
                cells.append(", ".join(each))
            lines.append(f"| {way} | {place} | {' | '.join(cells)} |")
    between(path.parent / "test-sets.md", "in-a-row", "\n".join(lines))


def at(row: dict[str, Any], seed: int, way: str, place: int) -> bool:
    return (row["seed"], row["way"], row["contract"]) == (seed, way, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    running.add_argument("data", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--models", type=Path, default=Path("test-set-models"))
    running.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parts.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.what == "run":
        run(Places(given.data, given.models), given.out, given.seeds)
    else:
        show(given.out)


if __name__ == "__main__":
    main()
