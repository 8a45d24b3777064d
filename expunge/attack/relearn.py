"""Relearning attack (Hu et al., 2024, arXiv 2406.13356): a few steps of training may recover forgotten answers.

The attacker trains on a few examples; recovery of the *others* shows that they were not gone. Three sources: a
part of the forget set, related texts without the answers, and unrelated texts as a control (give those two as probes).
Compare with the retrained model under the same attack: where attacked and other examples have the same form, even that
one improves. `curve` audits at several budgets, on a forget set without the attacked examples; `area` and
`first_reaching` of
`primitives/statistics.py` summarise it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from expunge.core.audit import Audit, Finding
from expunge.core.method import WeightMethod
from expunge.core.model import Batch, Model, Network
from expunge.core.request import Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import OnEvent
from expunge.methods.finetune import Finetune
from expunge.notation.parse import parse
from expunge.primitives.rehearsal import Rehearsal
from expunge.primitives.settings import check_seed


@dataclass(frozen=True)
class Relearn(WeightMethod):
    """Training on the attacker's examples."""

    steps: int = 10
    """Training steps of the attacker. Answers that were only suppressed are back within a handful."""
    items: int = 10
    """Most examples of the attacker: the first of the source, so that neighbouring records of one person are trained on
    together."""
    source: str = "forget"
    """The set of these examples: the forget set, or a probe by its name."""
    learn: Finetune = parse(
        "Finetune(objective=RetainNLL(), adapter=Full(), learning_rate=5e-4, batch=1, "
        "stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False)"
    )
    """How the attacker trains, with the items as its retain set. Choose the learning rate on the retrained model: high
    enough to learn the items, and no higher."""
    seed: int = 0
    """Fixes the order in which the items are read."""

    def __post_init__(self) -> None:
        check_seed(self)
        if self.steps < 1 or self.items < 1:
            raise UsageRefused(f"Relearn: steps and items must be at least 1. Got {self.steps!r}, {self.items!r}.")

    def with_seed(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        return self._learn()(network, self._own_request(request), on_event).plain()

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        return self._learn().rehearse(model, self._own_request(request), rehearsal).plain()

    def _learn(self) -> Finetune:
        return replace(self.learn, steps=self.steps, seed=self.seed)

    def _own_request(self, request: Request) -> Request:
        """What the attacker trains on: the items, as its retain set."""
        return Request(self.others(request).forget, retain=tuple(self.attacker_examples(request)))

    def attacker_examples(self, request: Request) -> Batch:
        """The examples that the attacker has."""
        sets = request.sets()
        if self.source not in sets:
            raise UsageRefused(f"Relearn: there is no set '{self.source}'. Sets: {', '.join(sets)}.")
        return sets[self.source][: self.items]

    def others(self, request: Request) -> Request:
        """The request without the attacker's facts in its forget set, which the attack is measured on."""
        known = {example.fact_digest() for example in self.attacker_examples(request)}
        left = tuple(example for example in request.forget if example.fact_digest() not in known)
        if not left:
            raise DataRefused(
                f"Relearn: the attacker has all {len(request.forget)} forget examples, so none is left to measure. "
                f"Give it fewer `items`."
            )
        return replace(request, forget=left)

    def curve(
        self, network: Network, request: Request, audit: Audit, budgets: Sequence[int] = (0, 1, 2, 5, 10, 20, 50)
    ) -> Iterator[tuple[int, tuple[Finding, ...]]]:
        """Each budget in steps, and what the audit finds on the other examples; 0 is the network as it is.

        Every budget is a run of its own, whose steps are the first of any longer one.
        """
        if list(budgets) != sorted(set(budgets)) or min(budgets, default=0) < 0:
            raise UsageRefused(f"Relearn: budgets must rise from 0 or more. Got {tuple(budgets)!r}.")
        others = self.others(request)
        for budget in budgets:
            yield budget, audit(replace(self, steps=budget)(network, request) if budget else network, others)
