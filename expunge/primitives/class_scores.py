"""Values computed from each row's class scores, a chunk of rows at a time.

Rows times vocabulary is the largest matrix of a small model's step: 4,096 rows of 128,000 classes are 2 GB in float32,
and a loss keeps several of them. A value that depends on one row's scores alone needs none of that: while a chunk's
scores exist, the gradient of the value with respect to the row's hidden state, [rows, width], is computed and saved
instead of them. Backward only scales it. The matrix products are those of the plain computation; none is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Class scores that exist at one time: 32 MB in float32 on a CPU, 256 MB on a GPU."""

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 26}
"""The same where a row's scores may be read in blocks of classes: 2 MB on a CPU, which fits its cache."""

ROWS = 1024
"""Most rows of such a block; with fewer rows a block holds more classes."""


@dataclass(frozen=True)
class Head:
    """The output layer: class scores from a hidden state."""

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"] | None = None

    def __call__(self, states: Float[Tensor, "rows width"]) -> Float[Tensor, "rows classes"]:
        return linear(states, self.weight, self.bias)

    def cut(self, classes: slice) -> Head:
        """The rows of the matrix that belong to these classes."""
        return Head(self.weight[classes], None if self.bias is None else self.bias[classes])

    def detach(self) -> Head:
        """The same matrix, through which no gradient flows."""
        return Head(self.weight.detach(), None if self.bias is None else self.bias.detach())

    @property
    def moves(self) -> bool:
        """Whether gradients must reach the matrix itself."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)


Read = Callable[..., Tensor]
"""`(labels, logits, *others) -> [rows]`: differentiable, each value from its own row only."""
Scores = tuple[Tensor, Head | None]


def right_log_prob(labels: Int[Tensor, " rows"], logits: Float[Tensor, "rows classes"]) -> Float[Tensor, " rows"]:
    """Natural log-probability of the right class."""
    return logits.gather(-1, labels[:, None]).squeeze(-1) - logits.logsumexp(-1)


def divergence(
    labels: Int[Tensor, " rows"], now: Float[Tensor, "rows classes"], before: Float[Tensor, "rows classes"]
) -> Float[Tensor, " rows"]:
    """KL(before || now), in nats."""
    was = before.log_softmax(-1)
    return (was.exp() * (was - now.log_softmax(-1))).sum(-1)


def entropy(labels: Int[Tensor, " rows"], logits: Float[Tensor, "rows classes"]) -> Float[Tensor, " rows"]:
    """Entropy of the row's distribution over the classes, in nats."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def _right_slope(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`right_log_prob` and its gradient, written over `logits`: the right class's 1, less every class's probability."""
    logits -= logits.amax(-1, keepdim=True)
    value = logits.gather(-1, labels[:, None])
    total = logits.exp_().sum(-1, keepdim=True)
    slope = logits.div_(-total).scatter_add_(1, labels[:, None], torch.ones_like(total))
    return (value - total.log()).squeeze(-1), slope


def _divergence_slope(labels: Tensor, now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """`divergence` and its gradient, p_now - p_before, written over `now`."""
    before -= before.logsumexp(-1, keepdim=True)
    now -= now.logsumexp(-1, keepdim=True)
    was = before.exp()
    value = torch.linalg.vecdot(was, before.sub_(now))
    return value, now.exp_().sub_(was)


def _entropy_slope(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`entropy` and its gradient, -p (log p + entropy), written over `logits`."""
    logits -= logits.logsumexp(-1, keepdim=True)
    likely = logits.exp()
    value = -torch.linalg.vecdot(likely, logits)
    return value, logits.add_(value[:, None]).mul_(likely).neg_()


SLOPES: dict[Read, Callable[..., tuple[Tensor, Tensor]]] = {
    right_log_prob: _right_slope,
    divergence: _divergence_slope,
    entropy: _entropy_slope,
}
"""Value and gradient at once, in place, of what every step needs; for all others autograd computes the gradient."""


def best_class(labels: Int[Tensor, " rows"], scores: Scores) -> tuple[Tensor, Tensor]:
    """Log-probability of the right class of each row, and whether it scores highest; without gradients.

    Rows whose states are equal to the bit (all answers to one question start from its last state) are multiplied once,
    by a block of classes at a time, whose scores stay in the processor's cache. Of each row only the highest score so
    far and the sum of exp(score - highest) are kept.
    """
    states, head = scores[0].detach(), scores[1]
    if head is None:
        highest = (logits := widen(states)).max(-1)
        return right_log_prob(labels, logits), highest.indices == labels
    states, row = torch.unique(states, dim=0, return_inverse=True)
    value = torch.empty(len(labels), device=states.device, dtype=widen(states[:0]).dtype)
    total = torch.zeros(len(states), device=states.device, dtype=value.dtype)
    top, first = torch.full_like(total, -torch.inf), torch.zeros_like(labels, dtype=torch.bool)
    for rows in _runs(len(states), ROWS):
        asked = ((row >= rows.start) & (row < rows.stop)).nonzero()[:, 0]
        for classes in _runs(len(head.weight), max(1, _room(BLOCK, states) // (rows.stop - rows.start))):
            part = widen(head.cut(classes)(states[rows]))
            here = asked[(labels[asked] >= classes.start) & (labels[asked] < classes.stop)]
            place, own = row[here] - rows.start, labels[here] - classes.start
            value[here] = part[place, own]
            peak = part.amax(-1)  # without its place, which takes ten times as long
            best = value[here] == torch.where(peak > top[rows], peak, torch.inf)[place]
            first[here[best]] = part[place[best]].argmax(-1) == own[best]  # of equal scores the first comes first
            peak = torch.maximum(peak, top[rows])
            total[rows] = total[rows] * (top[rows] - peak).exp() + part.sub_(peak[:, None]).exp_().sum(-1)
            top[rows] = peak
    return value - (top + total.log())[row], first & (value == top[row])


def moments(labels: Int[Tensor, " rows"], scores: Scores) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row the log-probability of the right class, how many classes score higher, and the mean and variance of
    the log-probabilities under the row's own distribution; without gradients."""
    found = []
    for rows, logits in chunks(labels, scores, most=BLOCK):
        log_probs = logits.log_softmax(-1)
        right = log_probs.gather(-1, rows[:, None])
        rank = (log_probs > right).view(torch.uint8).sum(-1, dtype=torch.int64)  # bytes add up faster than booleans
        likely = torch.exp(log_probs, out=logits)
        mean = (likely * log_probs).sum(-1, keepdim=True)
        variance = likely.mul_(log_probs.sub_(mean).square_()).sum(-1)
        found.append((right[:, 0], rank, mean[:, 0], variance))
    log_prob, rank, mean, variance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return log_prob, rank, mean, variance


def widen(logits: Tensor) -> Tensor:
    """The same scores in float32, or in float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def chunks(labels: Tensor, *scores: Scores, most: dict[str, int] | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Labels and class scores of successive rows, in float32 at least, at most so many scores on a type of device;
    without gradients. The next chunk overwrites them."""
    buffers: list[Tensor | None] = [None] * len(scores)
    with torch.no_grad():
        for rows in _slices(len(labels), scores[0], most):
            made = []
            for place, (states, head) in enumerate(scores):
                if head is None or head.bias is not None or head.weight.dtype not in (torch.float32, torch.float64):
                    part = _scores(states[rows].detach(), head)
                    made.append(part.clone() if head is None else part)
                    continue
                whole = buffers[place]
                if whole is None:  # one buffer for all chunks: fresh pages cost as much as the product
                    whole = buffers[place] = states.new_empty(rows.stop - rows.start, len(head.weight))
                into = whole[: rows.stop - rows.start]
                made.append(torch.mm(states[rows].detach(), head.weight.detach().T, out=into))
            yield labels[rows], *made


def each_row(
    read: Read, labels: Int[Tensor, " rows"], scores: Scores, others: Sequence[Scores]
) -> Float[Tensor, " rows"]:
    """`read` of every row, and gradients to the states (and to a head that moves) of `scores`."""
    states, head = scores
    if head is None:
        return read(labels, widen(states), *(_scores(s.detach(), h) for s, h in others))
    if not torch.is_grad_enabled() or not (states.requires_grad or head.moves):
        return torch.cat([read(*part).clone() for part in chunks(labels, scores, *others)])
    if head.moves:  # its gradient is as large as the matrix, so the scores are recomputed in backward instead
        return torch.cat(
            [
                checkpoint(_read_again, read, labels[rows], states[rows], head, _cut(others, rows), use_reentrant=False)
                for rows in _slices(len(labels), scores)
            ]
        )
    values: Tensor = _EachRow.apply(states, read, labels, head, others)  # type: ignore[no-untyped-call]
    return values


class _EachRow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, read: Read, labels: Tensor, head: Head, others: Sequence[Scores]
    ) -> Float[Tensor, " rows"]:
        values, slopes, start = [], torch.empty_like(states), 0
        known = SLOPES.get(read)
        for part in chunks(labels, (states, head), *others):
            if known:
                value, slope = known(*part)
            else:
                value, slope = _differentiate(read, *part)
            rows = slice(start, start := start + len(part[0]))
            torch.mm(slope.to(head.weight.dtype), head.weight, out=slopes[rows])
            values.append(value)
        ctx.save_for_backward(slopes)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * up[:, None].to(slopes.dtype), None, None, None, None


def _differentiate(read: Read, labels: Tensor, logits: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        value = read(labels, logits.requires_grad_(), *others)
        (slope,) = torch.autograd.grad(value.sum(), logits)
    logits.requires_grad_(False)
    return value.detach().clone(), slope


def _read_again(read: Read, labels: Tensor, states: Tensor, head: Head, others: Sequence[Scores]) -> Tensor:
    return read(labels, _scores(states, head), *(_scores(s, h) for s, h in others))


def _cut(others: Sequence[Scores], rows: slice) -> list[Scores]:
    return [(states[rows].detach(), head) for states, head in others]


def _scores(states: Tensor, head: Head | None) -> Tensor:
    return widen(states if head is None else head(states))


def _slices(count: int, scores: Scores, most: dict[str, int] | None = None) -> Iterator[slice]:
    states, head = scores
    if head is None or count == 0:
        yield slice(0, count)
        return
    yield from _runs(count, max(1, _room(most or CHUNK, states) // len(head.weight)))


def _room(most: dict[str, int], states: Tensor) -> int:
    return most.get(states.device.type, most["cpu"])


def _runs(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))
