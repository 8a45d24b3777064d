"""Causal tracing (Meng et al., 2022, arXiv 2202.05262): which states of a language model carry a fact.

    clean P(answer);   corrupted P*: noise on the embeddings of the subject's tokens;   restored P*_h: corrupted, but
    the state h of some layer at some token is restored to that of the clean run
    indirect effect = P*_h - P*,   total effect = P - P*

A large indirect effect means that this state is enough to recover the answer. States are those after a block, or the
outputs of its MLP or attention; of the last two a window of neighbouring layers is restored together, since one alone
has little effect in a deep model. All runs of a fact share their noise (of `noise` times the embeddings' standard
deviation), so that restoring everything gives the total effect exactly, and restoring nothing gives 0. P is the
probability
of the answer's first token. Read the average over facts that the model knows; a single fact says little. As in SHA256's
entry to SemEval-2025 task 4, `strongest` turns it into the `layers=` of an adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.internals.blocks import blocks, is_mixer

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from expunge.core.model import Network

Part = Literal["block", "mlp", "attention"]
ROLES = ("first subject", "middle subject", "last subject", "next", "further", "last")
"""Position of a token: in the subject, right after it, further on, or last of the prompt."""
ROWS = 512
"""Most noisy copies of a prompt in one forward pass."""


@dataclass(frozen=True)
class Fact:
    """A prompt that names a subject, and the token that should come next."""

    tokens: tuple[int, ...]
    subject: range
    """Indices of the subject's tokens in the prompt."""
    answer: int

    def __post_init__(self) -> None:
        if not self.subject or not 0 <= self.subject[0] <= self.subject[-1] < len(self.tokens):
            raise DataRefused(
                f"The subject must be some of the prompt's {len(self.tokens)} tokens. Got {self.subject}."
            )

    @staticmethod
    def read(tokenizer: Any, prompt: str, subject: str, answer: str) -> Fact:
        """A fact from text; the answer is what follows the prompt, with the space before it."""
        start = prompt.rfind(subject)
        if start < 0 or not subject:
            raise DataRefused("The subject is not in the prompt. Spell it exactly as there.")
        read = tokenizer(prompt, return_offsets_mapping=True)
        inside = [
            place
            for place, (low, high) in enumerate(read["offset_mapping"])
            if low < start + len(subject) and high > start and high > low
        ]
        first = tokenizer(prompt + answer)["input_ids"][len(read["input_ids"])]
        return Fact(tuple(read["input_ids"]), range(inside[0], inside[-1] + 1), first)

    def roles(self) -> list[str]:
        """The role of each token; tokens before the subject, which no noise reaches, have none."""
        first, last, end = self.subject[0], self.subject[-1], len(self.tokens) - 1
        found = []
        for place in range(len(self.tokens)):
            # Where one token has two roles, the later one here counts.
            named = {last + 1: "next", end: "last", first: "first subject", last: "last subject"}.get(place)
            inside = "middle subject" if first < place < last else "further" if place > last else ""
            found.append(named or inside)
        return found


@dataclass(frozen=True)
class Trace:
    """The result of tracing one fact."""

    fact: Fact
    clean: float
    corrupted: float
    effect: Float[Tensor, "layers tokens"]
    """Indirect effect of restoring the state of each layer at each token."""

    @property
    def total(self) -> float:
        """The total effect of the noise."""
        return self.clean - self.corrupted


@dataclass(frozen=True)
class Tracer:
    """Traces facts in a causal language model, which is not changed."""

    network: Network
    part: Part = "mlp"
    """What is restored: the state after a block, or the output of its MLP or attention."""
    window: int = 1
    """Neighbouring layers that are restored together, centred on the layer; the paper: 10 of 48."""
    noise: float = 3.0
    """Standard deviation of the noise, in standard deviations of the input embeddings."""
    draws: int = 10
    """Draws of the noise; probabilities are means over them."""
    seed: int = 0
    """Fixes the noise."""

    def __post_init__(self) -> None:
        if self.part not in ("block", "mlp", "attention"):
            raise UsageRefused(f"The `part` of Tracer must be block, mlp or attention. Got {self.part!r}.")
        if self.window < 1 or self.draws < 1 or not self.noise > 0:
            raise UsageRefused(
                f"Tracer: `window` and `draws` must be at least 1 and `noise` above 0. "
                f"Got {self.window!r}, {self.draws!r} and {self.noise!r}."
            )

    def trace(self, fact: Fact) -> Trace:
        """Every layer at every token. No noise reaches tokens before the subject: their effect is 0 without a run."""
        depth, length, first = len(self.parts()), len(fact.tokens), fact.subject[0]
        ways = torch.zeros(1 + depth * (length - first), depth, length, dtype=torch.bool)
        for layer in range(depth):
            near = slice(max(0, layer - self.window // 2), layer + (self.window + 1) // 2)
            for place in range(first, length):
                ways[1 + layer * (length - first) + place - first, near, place] = True
        corrupted, *restored = self.restore(fact, ways).tolist()
        effect = torch.zeros(depth, length, dtype=torch.float64)
        effect[:, first:] = torch.tensor(restored, dtype=torch.float64).view(depth, -1) - corrupted
        return Trace(fact, self.clean(fact)[0], corrupted, effect)

    def knows(self, fact: Fact) -> bool:
        """Whether the answer is the model's greedy next token."""
        return self.clean(fact)[1] == fact.answer

    @torch.inference_mode()
    def clean(self, fact: Fact) -> tuple[float, int]:
        """Probability of the answer in the clean run, and the likeliest token."""
        scores = self._last(self._tokens(fact, 1))
        return float(scores.double().softmax(-1)[0, fact.answer]), int(scores[0].argmax())

    @torch.inference_mode()
    def restore(self, fact: Fact, ways: Bool[Tensor, "ways layers tokens"]) -> Float[Tensor, " ways"]:
        """Mean probability of the answer under noise, for each selection of restored states; restoring none gives
        P*."""
        parts = self.parts()
        kept: list[Tensor] = []

        def keep(made: Tensor) -> Tensor:
            kept.append(made.clone())
            return made

        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(_hook_output(part, keep))
            self._last(self._tokens(fact, 1))
        noise, found = self._noise(fact), []
        for some in ways.to(self.network.device).split(max(1, ROWS // self.draws)):
            back = some.repeat_interleave(self.draws, 0)
            with ExitStack() as stack:
                stack.enter_context(
                    _hook_output(self._embedding(), _add_noise(fact.subject, noise.repeat(len(some), 1, 1)))
                )
                for layer, part in enumerate(parts):
                    stack.enter_context(_hook_output(part, _put_back(kept[layer], back[:, layer])))
                scores = self._last(self._tokens(fact, len(back)))
            likely = scores.double().softmax(-1)[:, fact.answer]
            found.append(likely.view(len(some), self.draws).mean(1).cpu())
        return torch.cat(found)

    def parts(self) -> list[nn.Module]:
        """The modules whose output is restored, one for each layer."""
        found = []
        for name, block in blocks(self.network.module).items():
            if self.part == "block":
                found.append(block)
                continue
            attention = self.part == "attention"
            fit = [child for child in block.children() if _linear(child) and _attends(child) == attention]
            if len(fit) != 1:
                raise ModelRefused(
                    f"{type(self.network.module).__name__}: {name} has {len(fit)} parts that could be its {self.part}; "
                    f"tracing needs one. Use part='block'."
                )
            found += fit
        if not found:
            raise ModelRefused(f"{type(self.network.module).__name__} has no transformer blocks to trace through.")
        return found

    def _tokens(self, fact: Fact, rows: int) -> Tensor:
        return torch.tensor([fact.tokens], device=self.network.device).expand(rows, -1)

    def _last(self, tokens: Tensor) -> Tensor:
        module = self.network.module
        # Most architectures can compute class scores of chosen positions only; all of them are costly.
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}
        scores: Tensor = module(input_ids=tokens, use_cache=False, **last).logits
        return scores[:, -1]

    def _embedding(self) -> Any:
        module: Any = self.network.module
        return module.get_input_embeddings()

    def _noise(self, fact: Fact) -> Float[Tensor, "draws subject width"]:
        weight = self._embedding().weight
        draw = torch.Generator().manual_seed(self.seed)
        made = torch.randn(self.draws, len(fact.subject), weight.shape[1], generator=draw)
        return (made * self.noise * float(weight.float().std())).to(weight.device, weight.dtype)


def by_role(traces: Sequence[Trace]) -> Float[Tensor, "roles layers"]:
    """Mean indirect effect at each role (see `ROLES`), over the facts that have it; NaN where none has."""
    depth = len(traces[0].effect)
    total, count = torch.zeros(len(ROLES), depth, dtype=torch.float64), torch.zeros(len(ROLES), 1)
    for trace in traces:
        roles = trace.fact.roles()
        for row, role in enumerate(ROLES):
            places = [place for place, one in enumerate(roles) if one == role]
            if places:
                total[row] += trace.effect[:, places].mean(1)
                count[row] += 1
    return total / count


def strongest(traces: Sequence[Trace], count: int, role: str = "last subject") -> tuple[int, ...]:
    """The layers with the largest mean indirect effect at a role, in order: what an adapter takes as `layers=`."""
    effect = by_role(traces)[ROLES.index(role)]
    if not 1 <= count <= len(effect):
        raise UsageRefused(f"The `count` of layers must be from 1 to {len(effect)}. Got {count!r}.")
    return tuple(sorted(effect.topk(count).indices.tolist()))


def _linear(part: nn.Module) -> bool:
    return any(isinstance(each, (nn.Linear, Conv1D)) for each in part.modules())


def _attends(part: nn.Module) -> bool:
    return any(map(is_mixer, part.modules()))


@contextmanager
def _hook_output(part: nn.Module, change: Any) -> Iterator[None]:
    """Within the block the module's output (or the first of its outputs) is passed through `change`."""

    def hook(_part: nn.Module, _inputs: Any, made: Any) -> Any:
        return change(made) if isinstance(made, Tensor) else (change(made[0]), *made[1:])

    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _add_noise(subject: range, noise: Tensor) -> Any:
    def change(made: Tensor) -> Tensor:
        made = made.clone()
        made[:, list(subject)] += noise
        return made

    return change


def _put_back(clean: Float[Tensor, "1 tokens width"], where: Bool[Tensor, "rows tokens"]) -> Any:
    return lambda made: torch.where(where[..., None], clean, made)
