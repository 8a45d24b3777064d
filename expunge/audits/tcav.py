"""Does a class's score rise with a concept? Testing with concept activation vectors (Kim et al., 2018, 1711.11279).

    TCAV = share of the class's examples with  grad_h odds(h) . v > 0,
    v = unit normal of a linear SVM that tells states h of the concept's examples from others'

odds is the log-odds of the right answer. A concept is shown by a probe set; the forget set itself stands for the class.
A vector hangs on what the concept is told from, so it is found anew against each of `draws` random sets, and beside it
stands what random sets told from one another get: a concept means something where the two differ (`..., p`: Welch's
t-test; with several concepts divide the 0.05 among them). All vectors of a concept come from its one set of examples,
so a small p says that these have a direction, not that others of the concept would have it too: show many. Where the
last layer reads the states directly, all examples of a class have nearly one gradient and the share is near 0 or 1:
read a layer further down, or use `ConceptInference`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ttest_ind_from_stats

from expunge.audits._concept_vectors import cav, mean_of, present, random_cavs, sample
from expunge.audits._kinds import WhiteBoxAudit
from expunge.core.audit import Finding
from expunge.core.model import Network
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.internals.states import Inside
from expunge.primitives.settings import check_finite, check_seed

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class TCAV(WhiteBoxAudit):
    """Share of the forget examples whose log-odds rise along a concept's direction."""

    concepts: tuple[str, ...] = ("forget",)
    """Sets that show one concept each, by name."""
    against: str = "retain"
    """The set that random examples are drawn from."""
    layer: int | float | str = 0.75
    """Where states are read: a block's number from 0, a share of the depth below 1.0, or a module's name."""
    samples: int = 100
    """Examples at most on either side of a vector."""
    draws: int = 20
    """Random sets that each concept is told from, and pairs of them that are told from one another."""
    seed: int = 0
    """Draws the random sets."""

    definition = (
        "Share of the forget examples whose log-odds rise along the concept's direction, a mean over random sets that "
        "the concept is told from; 'random': directions between random sets; 'p': chance of so large a difference."
    )

    def __post_init__(self) -> None:
        check_finite(self, "layer")
        check_seed(self)
        if self.samples < 2 or self.draws < 2 or not self.concepts:
            raise UsageRefused(
                f"TCAV: `samples` and `draws` must be at least 2, and `concepts` not empty. "
                f"Got {self.samples!r}, {self.draws!r}, {self.concepts!r}."
            )

    def look(self, network: Network, request: Request) -> tuple[Finding, ...]:
        sets = request.sets()
        present(self.name, self.concepts, sets)
        if len(sets.get(self.against, ())) < 2:
            return ()
        inside = Inside.of(network, self.layer)
        # Sorted, so that the order of a file changes nothing that is drawn.
        states = {
            name: inside.states(sorted(sets[name], key=lambda e: e.record_digest())).double().cpu().numpy()
            for name in (*self.concepts, self.against)
        }
        slopes = inside.slopes(request.forget).double().cpu().numpy()
        others = states[self.against]
        random = random_cavs(others, self.samples, self.draws, np.random.default_rng(self.seed))
        chance = [slopes @ direction > 0 for direction in random]
        found = [self._finding("random", np.mean(chance, axis=0))]
        for name in self.concepts:
            draw = np.random.default_rng(self.seed)
            rises = []
            for _ in range(self.draws):
                shown, rest = (sample(part, self.samples, draw) for part in (states[name], others))
                rises.append(slopes @ cav(shown, rest, draw)[0] > 0)
            p = _p(np.mean(rises, axis=1), np.mean(chance, axis=1))
            found += [self._finding(f"concept {name}", np.mean(rises, axis=0))]
            found += [self._finding(f"concept {name}, p", np.full(self.draws, p))]
        return tuple(found)

    def _finding(self, name: str, scores: "Float[np.ndarray, ' scores']") -> Finding:
        return mean_of(self, name, scores)


def _p(one: "Float[np.ndarray, ' draws']", other: "Float[np.ndarray, ' draws']") -> float:
    """Welch's t-test; of two sets without any spread, whether they are equal."""
    spread = one.std(ddof=1), other.std(ddof=1)
    if max(spread) < 1e-9:
        return float(abs(one.mean() - other.mean()) < 1e-9)
    return float(
        ttest_ind_from_stats(
            one.mean(), spread[0], len(one), other.mean(), spread[1], len(other), equal_var=False
        ).pvalue
    )
