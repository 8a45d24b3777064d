"""A function of sets that is learnt from choices (EquiVSet, Ou et al., 2022, arXiv 2203.01693), and sees what was left
out of them (INSET, Xie et al., 2024, ICLR, arXiv 2402.03139).

    p(S | V) ~ exp F(S, V),   z(S) = sum over S of phi(x)
    F = f(z(S)) + g(z(V \\ S))             complement: INSET as its authors' code has it
    F = sigmoid(f(z(S)) + g(z(V)))         whole: INSET by its equation
    F = f(z(S))                            none: EquiVSet
    q_i = sigmoid(mean over samples S ~ q of F(S + i) - F(S - i)),   one step from the q of a recogniser

Each batch takes two steps by Adam: the recogniser's, up E F(S) + H(q) with S drawn by a Gaussian copula (relaxed, and
straight through), and F's, down the cross-entropy of q on the chosen and on as many others. All draws come from torch's
own generator: `draw_from` makes them those of a seed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Background = Literal["complement", "whole", "none"]
SAMPLES, RANK, TEMPERATURE = 8, 8, 0.1
"""Sets drawn for each mean, factors of the copula, and the temperature of a relaxed draw."""
DECAY, CLIP, PATIENCE = 1e-5, 10.0, 6
"""Weight decay, the longest gradient, and the epochs without a better check after which learning ends."""
AT_ONCE = 64
"""Sets that are read together where nothing is learnt."""


@dataclass(frozen=True)
class Choice:
    """A set of records, each as some numbers, and which of them were chosen."""

    records: Float[Tensor, "records width"]
    chosen: Bool[Tensor, " records"]


@dataclass(frozen=True)
class Learning:
    """How a set function is learnt."""

    background: Background = "complement"
    width: int = 64
    """Numbers of phi(x)."""
    hidden: int = 64
    """Width of the layers of f, g and the recogniser."""
    epochs: int = 100
    learning_rate: float = 1e-3
    batch: int = 4
    """Choices in a step."""
    seed: int = 0

    def __call__(self, choices: Sequence[Choice], check: Sequence[Choice]) -> SetFunction:
        """The set function of the epoch that agreed best with the choices of `check`."""
        with draw_from(self.seed), torch.enable_grad():
            made = SetFunction(choices[0].records.shape[1], self)
            self._learn(made, choices, check)
        return made.eval()

    def _learn(self, made: SetFunction, choices: Sequence[Choice], check: Sequence[Choice]) -> None:
        parts = made.value, made.recogniser
        steps = [torch.optim.Adam(part.parameters(), self.learning_rate, weight_decay=DECAY) for part in parts]
        best, kept, idle = -1.0, copy.deepcopy(made.state_dict()), 0
        for _ in range(self.epochs):
            for places in torch.randperm(len(choices)).split(self.batch):
                sets = Sets.of([choices[k] for k in places.tolist()])
                for part, loss, step in zip(parts, (made.mistake, made.shortfall), steps, strict=True):
                    step.zero_grad()
                    loss(sets).backward()
                    nn.utils.clip_grad_norm_(part.parameters(), CLIP)
                    step.step()
            now = sum(made.agreements(check)) / len(check)
            idle = 0 if now > best else idle + 1
            if now > best:
                best, kept = now, copy.deepcopy(made.state_dict())
            if idle == PATIENCE:
                break
        made.load_state_dict(kept)


@contextmanager
def draw_from(seed: int) -> Iterator[None]:
    """Torch's generator at a seed, and afterwards where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Sets:
    """Choices of unequal size side by side."""

    records: Float[Tensor, "sets most width"]
    there: Float[Tensor, "sets most"]
    """1 where there is a record, 0 where there is none."""
    chosen: Float[Tensor, "sets most"]

    @staticmethod
    def of(choices: Sequence[Choice]) -> Sets:
        columns = (
            [choice.records for choice in choices],
            [torch.ones(len(choice.records)) for choice in choices],
            [choice.chosen.float() for choice in choices],
        )
        return Sets(*(pad_sequence(column, batch_first=True) for column in columns))

    def balance(self) -> Float[Tensor, "sets most"]:
        """1 for the chosen and for as many others, drawn at random."""
        order = torch.rand(self.there.shape).masked_fill(self.chosen + (1 - self.there) > 0, -1.0)
        place = order.argsort(1, descending=True).argsort(1)
        others = (place < self.chosen.sum(1, keepdim=True)).float() * self.there
        return torch.maximum(others, self.chosen)


class SetFunction(nn.Module):
    """F, and the recogniser that says where its mean-field step begins."""

    def __init__(self, columns: int, how: Learning) -> None:
        super().__init__()
        self.value, self.recogniser = _Value(columns, how), _Recogniser(columns, how)

    def chances(self, sets: Sets) -> Float[Tensor, "sets most"]:
        """q: how likely each record is to be chosen."""
        with torch.no_grad():
            return torch.sigmoid(self.value.gains(sets, torch.sigmoid(self.recogniser.location(sets)))) * sets.there

    def choose(self, records: Float[Tensor, "records width"], count: int | None = None) -> tuple[int, ...]:
        """Places of the `count` records that are likeliest to be chosen; without a count, of all beyond a half."""
        none = torch.zeros(len(records), dtype=torch.bool)
        likely = self.chances(Sets.of([Choice(records, none)]))[0]
        order = likely.argsort(descending=True).tolist()
        return tuple(order[:count] if count is not None else [k for k in order if likely[k] > 0.5])

    def agreements(self, choices: Sequence[Choice]) -> list[float]:
        """Of each choice, the Jaccard index with as many records as were chosen, the likeliest here."""
        found = []
        for start in range(0, len(choices), AT_ONCE):
            some = choices[start : start + AT_ONCE]
            for choice, likely in zip(some, self.chances(Sets.of(some)), strict=True):
                count = int(choice.chosen.sum())
                both = int(choice.chosen[likely[: len(choice.chosen)].topk(count).indices].sum())
                found.append(both / (2 * count - both))
        return found

    def mistake(self, sets: Sets) -> Tensor:
        """Cross-entropy of q on the chosen and as many others, summed over a set: the loss of F."""
        with torch.no_grad():
            begin = torch.sigmoid(self.recogniser.location(sets))
        each = binary_cross_entropy_with_logits(self.value.gains(sets, begin), sets.chosen, reduction="none")
        return (each * sets.balance()).sum(1).mean()

    def shortfall(self, sets: Sets) -> Tensor:
        """-(E F(S) + H(q)): the loss of the recogniser."""
        location, drawn = self.recogniser.draw(sets)
        q = torch.sigmoid(location)
        entropy = -(q * logsigmoid(location) + (1 - q) * logsigmoid(-location)) * sets.there
        return -(self.value.of_sets(sets, drawn).mean(1) + entropy.sum(1)).mean()


class _Value(nn.Module):
    """F."""

    def __init__(self, columns: int, how: Learning) -> None:
        super().__init__()
        self.background = how.background
        self.embed = nn.Sequential(nn.Linear(columns, how.width), nn.ReLU(), nn.Linear(how.width, how.width))
        self.inside = _layers(how.width, how.hidden, 1)
        self.outside = None if how.background == "none" else _layers(how.width, how.hidden, 1)

    def of_sets(self, sets: Sets, drawn: Float[Tensor, "sets samples most"]) -> Float[Tensor, "sets samples"]:
        """F of each sample, whose records have the share 1, or what a relaxed draw has."""
        phi = self._embed(sets)
        return self._read(drawn @ phi, phi.sum(1)[:, None])

    def gains(self, sets: Sets, q: Float[Tensor, "sets most"]) -> Float[Tensor, "sets most"]:
        """The mean over samples of F(S + i) - F(S - i). All records share the samples; the authors draw for each."""
        phi = self._embed(sets)
        drawn = torch.bernoulli(q[:, None].expand(-1, SAMPLES, -1)) * sets.there[:, None]
        held, own = drawn[..., None], phi[:, None]
        without = (drawn @ phi)[:, :, None] - held * own
        whole = phi.sum(1)[:, None, None]
        return (self._read(without + own, whole) - self._read(without, whole)).mean(1)

    def _embed(self, sets: Sets) -> Float[Tensor, "sets most width"]:
        phi: Tensor = self.embed(sets.records) * sets.there[..., None]
        return phi

    def _read(
        self, inside: Float[Tensor, "*each width"], whole: Float[Tensor, "*ones width"]
    ) -> Float[Tensor, "*each"]:
        value: Tensor = self.inside(inside)
        if self.outside is not None and self.background == "complement":
            value = value + self.outside(whole - inside)
        if self.outside is not None and self.background == "whole":
            value = torch.sigmoid(value + self.outside(whole))
        return value.squeeze(-1)


class _Recogniser(nn.Module):
    """A first q, record by record, and draws of sets whose records hang together."""

    def __init__(self, columns: int, how: Learning) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(columns, how.width), _layers(how.width, how.hidden, how.hidden), nn.ReLU()
        )
        self.head = nn.Linear(how.hidden, 2 + RANK)

    def location(self, sets: Sets) -> Float[Tensor, "sets most"]:
        """The log-odds of q."""
        location: Tensor = self.head(self.layers(sets.records))[..., 0]
        return location

    def draw(self, sets: Sets) -> tuple[Float[Tensor, "sets most"], Float[Tensor, "sets samples most"]]:
        """The log-odds of q, and sets: 0 or 1 for each record, with the gradient of the relaxed draw."""
        location, spread, *factors = self.head(self.layers(sets.records)).unbind(-1)
        alone = torch.randn(len(location), SAMPLES, location.shape[1]) * softplus(spread)[:, None]
        together = torch.randn(len(location), SAMPLES, RANK) @ torch.tanh(torch.stack(factors, 1))
        tail = torch.special.ndtr(alone + together).clamp(1e-6, 1 - 1e-6)
        relaxed = torch.sigmoid((location[:, None] + torch.logit(tail)) / TEMPERATURE)
        hard = torch.bernoulli(relaxed.detach())
        return location, (hard + relaxed - relaxed.detach()) * sets.there[:, None]


def _layers(columns: int, hidden: int, made: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, made)
    )


def chance(size: int, count: int) -> float:
    """The mean Jaccard index of a choice with as many records drawn at random: `count` of `size`."""
    ways = [math.comb(count, both) * math.comb(size - count, count - both) for both in range(count + 1)]
    return sum(way * both / (2 * count - both) for both, way in enumerate(ways)) / math.comb(size, count)
