"""A model that says what a test gives it: the one place where the tests of audits meet the interface of models."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from expunge.core.audit import Audit, Finding
from expunge.core.model import Model, answers
from expunge.core.predictions import RowMoments, RowScores, weights_of
from expunge.core.question import LogProbabilities, RowStatistics, Text
from expunge.core.request import Request


@dataclass(frozen=True)
class Asked:
    """An example, and what the model says of it."""

    id: str
    log_probs: tuple[float, ...] = (0.0,)
    """Natural log-probability of the right class, row by row."""
    right: tuple[bool, ...] | None = None
    """Whether the right class has the highest score, row by row; None: where it has more than half."""
    moments: tuple[tuple[float, float], ...] = ()
    """Mean and variance of log p over the classes, weighted by p, row by row."""
    alternatives: tuple["Asked", ...] = ()
    answer: str = ""
    """What the model should write."""
    written: str = ""
    """What it writes."""
    prompt_tokens: tuple[int, ...] = (1,)
    weight: float = 1.0

    @property
    def rows(self) -> int:
        return len(self.log_probs)

    size = rows

    @property
    def flags(self) -> tuple[bool, ...]:
        return tuple(p > math.log(0.5) for p in self.log_probs) if self.right is None else self.right

    def record_digest(self) -> str:
        return self.id

    fact_digest = record_digest

    def input_digest(self) -> bytes:
        return self.id.encode()


class Scripted(Model):
    """Says of each example what the example holds."""

    @answers(LogProbabilities)
    def log_probabilities(self, question: LogProbabilities, examples: Sequence[Asked]) -> RowScores:
        flags = [flag for example in examples for flag in example.flags]
        return RowScores(
            labels=torch.zeros(len(flags), dtype=torch.long),
            example=torch.tensor([k for k, example in enumerate(examples) for _ in example.log_probs]),
            examples=len(examples),
            share=None,
            weights=weights_of(examples),
            log_probs=torch.tensor([p for example in examples for p in example.log_probs], dtype=torch.float64),
            right=torch.tensor(flags, dtype=torch.bool),
        )

    @answers(RowStatistics)
    def row_statistics(self, question: RowStatistics, examples: Sequence[Asked]) -> RowMoments:
        said = self.log_probabilities(LogProbabilities(), examples)
        mean, variance = torch.tensor([pair for example in examples for pair in example.moments]).double().T
        rows = said.labels, said.example, said.examples, said.share
        return RowMoments(*rows, said.log_probs, torch.zeros_like(said.labels), mean, variance, weights=said.weights)

    @answers(Text)
    def text(self, question: Text, prompts: Sequence[Asked]) -> list[str]:
        return [" ".join(example.written.split()[: question.max_new_tokens]) for example in prompts]

    def batches(self, examples: Sequence[Asked]) -> Iterator[list[int]]:
        yield list(range(len(examples)))


def likely(name: str, *probabilities: float) -> Asked:
    """An example whose rows have these probabilities."""
    return Asked(name, tuple(math.log(p) for p in probabilities))


def flagged(name: str, *right: bool) -> Asked:
    """An example of which these rows are right."""
    return Asked(name, (math.log(0.5),) * len(right), right)


def lost(name: str, *losses: float, options: Sequence[Sequence[float]] = ()) -> Asked:
    """An example that loses so many nats row by row, and wrong answers that lose theirs."""
    wrong = tuple(lost(f"{name}{k}", *each) for k, each in enumerate(options))
    return Asked(name, tuple(-loss for loss in losses), alternatives=wrong)


def findings(audit: Audit, **sets: tuple[Asked, ...]) -> dict[str, Finding]:
    """What the audit finds in each set; beside a forget set of one certain row where none is given."""
    return {f.set: f for f in audit(Scripted(), Request(**{"forget": (Asked("certain"),), **sets}))}


def membership(audit: Audit, forget: tuple[Asked, ...], holdout: tuple[Asked, ...]) -> Finding:
    """What an attacker finds who is to tell the two sets apart."""
    return findings(audit, forget=forget, holdout=holdout)["forget vs holdout"]
