"""What an edit reads: the method itself is run on a network that only takes notes, so that no rule is written twice.

Each of its gradients is of all numbers, the output matrix among them. How often a labelled row meets that matrix is
counted on the small network, by the same method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from expunge.core.model import Network
from expunge.core.predictions import Hidden, Predictions
from expunge.core.request import Request
from expunge.models.language import LanguageModel
from expunge.plan.reads import Asked, Part, Reads, Scores, audited, groups, shape, short

if TYPE_CHECKING:
    from expunge.core.audit import Audit
    from expunge.core.method import Method
    from expunge.core.model import Batch
    from expunge.plan.cost import Call
    from expunge.plan.paper import Readable


def edit_reads(
    network: Readable,
    small: Readable,
    method: Method,
    request: Request,
    audits: Sequence[Audit],
    device: str,
    processes: int,
) -> Reads:
    """What one process of a run reads; each of several takes all the gradients."""
    times, copies = met(small, method, request)
    calls = noted(network, method, request, device)
    return Reads(
        asked=Asked(("forget", "retain") if request.retain else ("forget",), (), (), {"forget": times}, copies),
        steps=(tuple(Part((call,), (), (), times * call.rows) for call in calls),),
        times=1.0,
        level=(),
        check=(),
        checks=0,
        tokens=0,  # a report counts those of steps
        **audited(network, request, audits, device, processes),
    )


def noted(network: Readable, method: Method, request: Request, device: str) -> list[Call]:
    """Every pass that the method makes over the network."""
    notes: list[Call] = []
    method(_Notes(_Point(), network, device, notes), request)
    return notes


def met(small: Readable, method: Method, request: Request) -> tuple[float, float]:
    """How often a row meets the output matrix, there or back; and the tensors of class scores alive at one time."""
    if not isinstance(small, LanguageModel):
        return 0.0, 0.0
    cut = {"forget": 1, "retain": 2}
    few = Request(**{n: (short(getattr(request, n)[0], rows),) for n, rows in cut.items() if getattr(request, n)})
    with Scores.of(small) as scores:
        method(small, few)
    rows = sum(call.rows for call in noted(small, method, few, "cpu"))
    return sum(scores.flops.values()) / (2 * rows * max(1, scores.classes * scores.width)), scores.peak


class _Point(nn.Module):
    """Two numbers, both of which have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.5]), requires_grad=False)


@dataclass(frozen=True)
class _Notes(Network):
    """Stands where the network would, is asked as it would be, and writes down the passes."""

    stands_for: Readable
    lies: str
    notes: list[Call] = field(repr=False)

    def predict(self, batch: Batch) -> Predictions:
        self.notes.append(shape(self.stands_for, batch, self.lies))
        owner = torch.tensor([k for k, example in enumerate(batch) for _ in range(example.rows)])
        states: Any = self.module.weight
        return Predictions(torch.zeros_like(owner), owner, len(batch), None, states.expand(len(owner), 2))

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        yield from groups(self.stands_for, examples, self.lies)

    def head(self) -> None:
        """None: it has two classes."""

    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        raise NotImplementedError("No edit reads hidden states.")

    def settings(self) -> str:
        return ""

    def save(self, folder: Path) -> None:
        raise NotImplementedError("Notes are not saved.")
