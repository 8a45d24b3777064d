"""A level for each token (our own): the loss that it would have if the model had never seen it, held from either side.

    loss = mean over the labelled rows of  | o(exp(-level_row)) - o(p_now(y | x)) |  +  entropy * | H_row - H_now(x) |
    o(p) = log(p / (1 - p)),   H the entropy of what the model says at the row

A mean over an answer can be right while a few of its tokens are blown up, and an attacker who looks at the least likely
tokens (Min-K) then tells the forgotten from the never seen without fail. So each token has a level of its own. Levels
are losses of the holdout's tokens, which no model saw, under the model as it is now: those of tokens that are alike in
what a model that does not know the text could go by (n-grams of the retain set, repetitions within the text, place),
and among these one drawn by the token's own hash, so that levels are spread as the losses of unseen tokens are. Every
`every` steps they are drawn anew, since the holdout's losses move with the training. See `primitives/unseen_losses.py`.

A token can be as unlikely as an unseen one in a distribution that is not like an unseen token's, flatter or sharper,
and an attacker who looks at whole distributions (Min-K++) sees it. So the entropy at a token's row is brought to that
of the unseen token whose loss is its level.

The distance is one of log-odds: that of losses has no slope where a token is known by heart. A level at which the token
is likely (log-odds of `sure` or more) asks for no more than that.

What is known by heart is called up by a part of it, too. So every second step reads the texts with a share of the
answers' tokens replaced by those of other texts, and brings what is left of them to the same levels. Without it the
rest of an answer stays expected after a wrong word, which is then punished: wrong answers become less likely than a
model that never saw the record finds them, and the right one stands out.

Rows that are no tokens, such as images or nodes of a graph, keep the order that their losses have under the original
model: the hardest forget image gets the largest loss of the holdout's. Without a holdout this is `Settle`: the run's
level for an example's mean, or ascent where the run has none. Needs the forget set. Meant as removal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from expunge.core.model import Batch, Model
from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.question import LogProbabilities, RowStatistics
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.internals.corrupted import answer_tokens, corrupt_answers
from expunge.internals.examples import Tokenized
from expunge.notation.recipes import Recipe
from expunge.objectives.settle import Settle
from expunge.primitives import class_scores
from expunge.primitives.log_odds import away
from expunge.primitives.settings import check_finite
from expunge.primitives.unseen_losses import Estimate, Text

SETS = ("forget", "holdout", "retain")
PUBLISHED = (
    Recipe(
        "TokenLevels",
        "language",
        "Finetune(objective=TokenLevels() + RetainNLL() + 3.0 * RetainKL(), learning_rate=0.002, "
        "steps=Memorised(), schedule='linear', "
        "stop=Stop(level=None, max_retain_increase=None, every=20))",
        "Our own, the default of texts with a holdout set: docs/log.md tells how its settings were chosen. All steps "
        "are taken: what it aims at is a distribution, which no mean says is reached.",
    ),
    Recipe(
        "TokenLevels",
        "graph",
        "Finetune(objective=TokenLevels(sure=20.0) + RetainNLL() + 3.0 * RetainKL(), adapter=Full(), "
        "learning_rate=0.003, steps=200, batch=1024, retain_batch=1024, "
        "stop=Stop(level=None, max_retain_increase=None, every=20))",
        "Our own, the default of graphs with a holdout set: docs/graphs.md. A step passes messages over the whole "
        "graph, so it reads many records. Nothing counts as known: how sure a network is of unseen ones is a trace.",
    ),
)


@dataclass(frozen=True)
class TokenLevels(Objective):
    """Move each forget token's loss to that of unseen tokens like it."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    every: int = 10
    """Steps after which the levels are drawn anew; each time the holdout set is read once."""

    sure: float = 1.0
    """Log-odds from which on a token counts as known: what an unseen token has beyond that is nobody's aim. 1 is a
    probability of 0.73."""

    corrupted: float = 0.4
    """Share of an answer's tokens that every second step replaces, where it has eight or more; 0 for none."""

    entropy: float = 0.25
    """Weight of the distance of entropies, in nats; 0 for none. Of texts alone."""

    def __post_init__(self) -> None:
        check_finite(self, "sure", "entropy")
        if not 0 <= self.corrupted < 1:
            raise UsageRefused(
                f"The `corrupted` of TokenLevels must be at least 0 and below 1. Got {self.corrupted!r}."
            )
        if self.entropy < 0:
            raise UsageRefused(f"The `entropy` of TokenLevels must not be negative. Got {self.entropy!r}.")
        if self.every < 1:
            raise UsageRefused(f"The `every` of TokenLevels must be at least 1. Got {self.every!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        if not now.run.whole.get("holdout"):
            return Settle()(now, before)
        wanted, forget, step = self._targets(now, before), now.batch("forget"), now.run.step
        texts = all(isinstance(example, Tokenized) for example in forget)
        if not (texts and self.corrupted and step and step % 2 == 0):
            return now.forget.over_rows(self._distance(now.forget, forget, wanted))
        pool = cast(list[int], now.run.memory.setdefault("answers' tokens", answer_tokens(now.run.whole)))
        read, own = corrupt_answers(cast(Sequence[Tokenized], forget), pool, self.corrupted, str(step))
        said = now.instead("forget", read)
        distance = self._distance(said, forget, wanted)
        return said.over_rows(distance * torch.tensor(own).to(distance) if said.examples else distance)

    def _distance(self, said: Predictions, forget: Batch, wanted: dict[bytes, torch.Tensor]) -> torch.Tensor:
        """From what is wanted of each row; of what is said of the examples, or of others with as many rows."""
        log_prob = said.log_prob()
        if not said.examples:  # this process has none in this step
            return away(log_prob, log_prob.detach(), self.sure)
        level, spread = torch.cat([wanted[example.input_digest()] for example in forget]).to(log_prob).unbind(-1)
        distance = away(log_prob, -level, self.sure)
        if not (self.entropy and isinstance(forget[0], Tokenized)):
            return distance
        return distance + self.entropy * (said.each_row(class_scores.entropy) - spread).abs()

    def _targets(self, now: View, before: View) -> dict[bytes, torch.Tensor]:
        """The level and the entropy of each row of each forget example [rows, 2], in nats."""
        forget, step = now.run.whole["forget"], now.run.step
        levels = cast(dict[str, float], now.run.memory.setdefault(repr(self), {}))
        entropies = cast(dict[str, float], now.run.memory.setdefault(f"{self!r}, entropies", {}))
        if not levels or (step and (step - 1) % self.every == 0 and levels["step"] != step):
            said = now.model.ask(RowStatistics(), now.run.whole["holdout"])
            losses, spread = (each.double().cpu().numpy() for each in (-said.log_probs, said.entropy))
            drawn = self._estimate(now, before).alike(losses)
            levels |= {"step": step, **{str(row): float(level) for row, level in enumerate(losses[drawn])}}
            entropies |= {str(row): float(each) for row, each in enumerate(spread[drawn])}
        rows = torch.tensor([(levels[str(row)], entropies[str(row)]) for row in range(len(entropies))])
        parts = rows.split([example.rows for example in forget])
        return {example.input_digest(): part for example, part in zip(forget, parts, strict=True)}

    def _estimate(self, now: View, before: View) -> Estimate:
        """Made once for a run, from its examples and the original model alone."""
        name = f"{self!r}, estimate"
        if name not in now.run.memory:
            sets = [now.run.whole.get(each, ()) for each in SETS]
            now.run.memory[name] = _of_texts(*sets) or _of_others(before.model, *sets[:2])
        return cast(Estimate, now.run.memory[name])


def _of_texts(forget: Batch, holdout: Batch, retain: Batch) -> Estimate | None:
    texts = [[Text(e.tokens, e.first) for e in each if isinstance(e, Tokenized)] for each in (forget, holdout, retain)]
    return Estimate.of(*texts) if len(texts[0]) == len(forget) and len(texts[1]) == len(holdout) else None


def _of_others(before: Model, forget: Batch, holdout: Batch) -> Estimate:
    names = [f"{example.record_digest()} {row}" for example in forget for row in range(example.rows)]
    losses = -before.ask(LogProbabilities(), forget).log_probs.double().cpu().numpy()
    return Estimate.by_rank(names, losses, sum(example.rows for example in holdout))
