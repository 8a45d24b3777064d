"""How far two models that never saw a record differ on it: the noise of forget quality's own yardstick.

    OMP_NUM_THREADS=1 python recipes/yardstick.py docs/calibration      writes docs/calibration/yardstick.jsonl, and its
                                                                        table between its marks in docs/results.md

Nothing is trained: the calibration study's models are compared, small and large, on records that neither of two models
ever saw: the forgotten people (by the two retrained models), and the holdout (by all three). A method that forgets
perfectly can do no better than these pairs do.
"""

from __future__ import annotations

import json
import statistics
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from calibration import LARGE, MODELS, SMALL, Study
from keeping import between
from people import World

from expunge.audits.truth_ratio import TruthRatio
from expunge.models.open import open_network
from expunge.primitives.statistics import ks
from expunge.runtime.cached_model import CachedModel

UNSEEN_BY = {"forget": ("retrained", "retrained again"), "holdout": tuple(MODELS)}
"""Which of a seed's models never saw a set."""


def pairs(folder: Path, study: Study) -> list[dict[str, Any]]:
    """A row for each seed whose models are kept, set, and pair of models that never saw it."""
    found = []
    for path in sorted(folder.glob("seed-*.jsonl")):
        seed = int(path.stem.removeprefix("seed-"))
        request = World.drawn(seed, study.groups).request()
        for name, models in UNSEEN_BY.items():
            records = getattr(request, name)
            ratios = {
                model: TruthRatio().ratios(
                    CachedModel(open_network(str(folder / "models" / f"{seed}-{model}"))), records
                )
                for model in models
            }
            for one, other in combinations(models, 2):
                gap = ks(ratios[one].tolist(), ratios[other].tolist())
                found.append(
                    {"n": len(records), "seed": seed, "set": name, "pair": [one, other], "p": gap.p, "D": gap.distance}
                )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """For each size: how often a pair passes, and how far pairs lie apart."""
    lines = [
        "| records | pairs | p >= 0.5 | p >= 0.05 | p, median and range | KS distance, median and range |",
        "|---" * 6 + "|",
    ]
    for n in sorted({row["n"] for row in found}):
        of = [row for row in found if row["n"] == n]
        passes = [f"{sum(row['p'] >= bound for row in of)} of {len(of)}" for bound in (0.5, 0.05)]
        spreads = [
            f"{statistics.median(of_key):.2f} ({min(of_key):.2f} to {max(of_key):.2f})"
            for of_key in ([row[key] for row in of] for key in ("p", "D"))
        ]
        lines.append(f"| {n} | {len(of)} | {' | '.join([*passes, *spreads])} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """The command line above."""
    found = [*pairs(folder, SMALL), *pairs(folder / "large", LARGE)]
    (folder / "yardstick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    between(folder.parent / "results.md", "yardstick", table(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
