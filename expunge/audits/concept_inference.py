"""Which directions does a class rest on? Integrated gradients of its log-odds, read along concepts (arXiv 2405.15662).

    along v:  ((h - h') . v) * (mean over s in (0, 1) of grad odds(h' + s (h - h')) . v)
    over any orthonormal basis these add up to odds(h) - odds(h'),   h' = mean state of the retained examples

h is an example's state in one layer, v the direction of a concept (`TCAV` tells how it is found, from a probe set that
shows it). The number is in nats: how much of what lifts the class above the typical example comes along the direction.
`whole` is the sum over all directions. Concepts are not at right angles, so theirs overlap and do not add up. `random`
is what directions between random sets get: a concept below it explains nothing. The way and its gradients are those of
Sundararajan et al. (2017, arXiv 1703.01365), by captum, which must be installed: pip install 'expunge[concepts]'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expunge.audits._concept_vectors import cav, mean_of, present, random_cavs, sample
from expunge.audits._kinds import WhiteBoxAudit
from expunge.core.audit import Finding
from expunge.core.model import Batch, Network
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.internals.states import Inside
from expunge.primitives.settings import check_finite, check_seed

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class ConceptInference(WhiteBoxAudit):
    """Nats of the forget examples' log-odds that come along a concept's direction."""

    concepts: tuple[str, ...] = ("forget",)
    """Sets that show one concept each, by name; the forget set stands for the class itself."""
    against: str = "retain"
    """The set whose mean state is the baseline, and from which concepts are told."""
    layer: int | float | str = 0.75
    """Where states are read: a block's number from 0, a share of the depth below 1.0, or a module's name."""
    samples: int = 100
    """Examples at most on either side of a direction."""
    draws: int = 20
    """Random directions that a concept is compared with."""
    steps: int = 32
    """Points of the way at which gradients are taken (Gauss-Legendre); the published number."""
    seed: int = 0
    """Draws examples and random sets."""

    definition = (
        "Nats of the forget examples' log-odds above those at the retained examples' mean state that come along the "
        "concept's direction, by integrated gradients; 'whole' is all directions', 'random' that of random ones."
    )

    def __post_init__(self) -> None:
        check_finite(self, "layer")
        check_seed(self)
        if min(self.samples, self.draws, self.steps) < 2 or not self.concepts:
            raise UsageRefused(
                f"ConceptInference: `samples`, `draws` and `steps` must be at least 2, and `concepts` not empty. "
                f"Got {self.samples!r}, {self.draws!r}, {self.steps!r}, {self.concepts!r}."
            )

    def look(self, network: Network, request: Request) -> tuple[Finding, ...]:
        sets = request.sets()
        present(self.name, self.concepts, sets)
        if len(sets.get(self.against, ())) < 2:
            return ()
        return tuple(self._findings(Inside.of(network, self.layer), request))

    def directions(self, network: Network, request: Request) -> "dict[str, Float[np.ndarray, ' width']]":
        """The unit vector of each concept, told from as many random examples."""
        states = self._states(Inside.of(network, self.layer), request)
        found = {}
        for name in self.concepts:
            draw = np.random.default_rng(self.seed)
            shown, rest = (sample(states[part], self.samples, draw) for part in (name, self.against))
            found[name] = cav(shown, rest, draw)[0]
        return found

    def random_directions(self, network: Network, request: Request) -> "list[Float[np.ndarray, ' width']]":
        """Unit vectors between random sets."""
        states = self._states(Inside.of(network, self.layer), request)[self.against]
        return random_cavs(states, self.samples, self.draws, np.random.default_rng(self.seed))

    def _findings(self, inside: Inside, request: Request) -> Iterator[Finding]:
        baseline = inside.states(self._in_order(request.sets()[self.against])).double().mean(0)
        way = (inside.states(request.forget).double() - baseline).cpu().numpy()
        slope = inside.mean_slopes(request.forget, baseline, self.steps).double().cpu().numpy()
        yield self._finding("whole", (way * slope).sum(1))
        random = [_along(v, way, slope) for v in self.random_directions(inside.network, request)]
        yield self._finding("random", np.mean(random, axis=0))
        for name, direction in self.directions(inside.network, request).items():
            yield self._finding(f"concept {name}", _along(direction, way, slope))

    def _states(self, inside: Inside, request: Request) -> "dict[str, Float[np.ndarray, '_its_examples width']]":
        sets = request.sets()
        names = dict.fromkeys((*self.concepts, self.against))
        return {name: inside.states(self._in_order(sets[name])).double().cpu().numpy() for name in names}

    def _in_order(self, examples: Batch) -> Batch:
        """In an order of their own, so that the order of a file changes nothing that is drawn."""
        return sorted(examples, key=lambda example: example.record_digest())

    def _finding(self, name: str, scores: "Float[np.ndarray, ' scores']") -> Finding:
        return mean_of(self, name, scores)


def _along(
    direction: "Float[np.ndarray, ' width']",
    way: "Float[np.ndarray, 'examples width']",
    slope: "Float[np.ndarray, 'examples width']",
) -> "Float[np.ndarray, ' examples']":
    products: np.ndarray = (way @ direction) * (slope @ direction)
    return products
