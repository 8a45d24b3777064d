"""How a method goes about it, as far as what it costs depends on that: by steps, or in one edit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.adapters.full import Full
from expunge.edit.assd import ASSD
from expunge.edit.iau import IAU
from expunge.edit.lfssd import LFSSD
from expunge.edit.negate import Negate
from expunge.edit.ssd import SSD
from expunge.errors import UsageRefused
from expunge.methods.finetune import Finetune
from expunge.notation.parse import write

if TYPE_CHECKING:
    from expunge.core.method import Method
    from expunge.core.request import Request

Opened = Callable[[Any, Any], Any]
"""`(network, request) -> network`: an adapter, or what an edit takes its gradients of."""
EDITS = (SSD, ASSD, LFSSD, IAU)


@dataclass(frozen=True)
class Course:
    """A method that can be counted."""

    method: Method
    trained: Finetune | None
    """The fine-tuning whose steps it takes; None for an edit."""

    @property
    def opened(self) -> Opened:
        """Makes the network of which gradients are taken."""
        return self.trained.adapter if self.trained else every_number

    @property
    def copies(self) -> bool:
        """Whether it trains a copy of the network in float32, which is its result."""
        return self.trained is not None and isinstance(self.trained.adapter, Full)

    @property
    def plain(self) -> bool:
        """Whether its result is written in the precision of the model, whole and without an adapter."""
        return self.trained is not self.method

    @property
    def recomputed(self) -> bool:
        """Whether blocks are computed again for backward."""
        return self.trained is not None and self.trained.activations == "recomputed"

    @property
    def steps(self) -> int:
        """Steps at most; none for an edit."""
        return self.trained.steps if self.trained else 0

    @property
    def norms(self) -> int:
        """How often the size of the change is worked out."""
        return self.steps if self.trained and self.trained.norms else 0

    def gathered(self, request: Request) -> tuple[int, int]:
        """For an edit: numbers that it holds for each one of the network while gradients are taken, and afterwards.

        A dampening edit keeps the importances of one set while it works out the other's, and adds those of a set up
        over its runs of `batch` examples, beside the gradient.
        """
        if isinstance(self.method, IAU):
            return 1, 1
        assert isinstance(self.method, SSD | ASSD | LFSSD)
        runs = [math.ceil(count / self.method.batch) for count in self.counts(request)]
        during = max(done + (each > 1) + 1 for done, each in enumerate(runs))
        ratios = isinstance(self.method, ASSD) or (isinstance(self.method, LFSSD) and self.method.alpha is None)
        return during, 2 + ratios

    def counts(self, request: Request) -> tuple[int, int]:
        """Examples of the sets of which a dampening edit takes gradients."""
        return len(request.retain) + len(request.forget), len(request.forget)


def every_number(network: Any, _request: Any) -> Any:
    """The network as an edit takes its gradients: every number of it has one."""
    fork = network.fork()
    for parameter in fork.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return fork


def course_of(method: Method) -> Course:
    """The method's course. Refuses methods that cannot be counted."""
    if isinstance(method, Finetune):
        return Course(method, method)
    if isinstance(method, Negate) and isinstance(method.learn, Finetune):
        return Course(method, method.learn)
    if isinstance(method, EDITS):
        return Course(method, None)
    names = ", ".join(kind.__name__ for kind in EDITS)
    raise UsageRefused(
        f"--method {write(method)}: `plan` cannot count {type(method).__name__}. It counts Finetune, {names}, and "
        f"Negate where that learns by Finetune."
    )
