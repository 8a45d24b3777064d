"""Prefix linear attention: what JRT-RNN is made of (Arora et al., 2024, "Just read twice", arXiv 2407.05483).

    phi(x) = [1, x / d^(1/4), vec(x x^T) / sqrt(2 d)],   so that phi(q) phi(k) = 1 + s + s^2 / 2 with s = q k / sqrt(d)
    y_i = phi(q_i) (S_i + S^e) / phi(q_i) (z_i + z^e)
    S_i = sum over j <= i of phi(k_j) v_j^T,   z_i = sum over j <= i of phi(k_j)

S^e and z^e are the same sums over all of the prefix, by keys and values of its own projections (the encoder): each
place of the prefix is read knowing what comes later in it. After the prefix both sums are one state of a size that does
not depend on the length, and each further token is one step of an ordinary recurrence.

Masked places are left out of the sums *after* the map: its first feature is 1, so a key of 0 would still add a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

EPSILON = 1e-12
"""Added to the normaliser. The map is positive, so nothing else is needed in float32."""
REACH = 3
"""Tokens that the short convolution before each attention sees: the order of words, which the sums do not know."""


@dataclass
class State:
    """All that a layer remembers of what it has read."""

    sums: Float[Tensor, "batch heads features values"]
    norms: Float[Tensor, "batch heads features"]
    recent: Float[Tensor, "batch places width"]
    """The last inputs, which the convolution still needs."""


def taylor(x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest features"]:
    """The second-order Taylor map of exp: 1 + d + d^2 features."""
    d = x.shape[-1]
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x / d**0.25, squares / math.sqrt(2 * d)], -1)


def weigh(
    queries: Float[Tensor, "batch heads n d"], keys: Float[Tensor, "batch heads m d"], seen: Tensor
) -> Float[Tensor, "batch heads n m"]:
    """phi(q) phi(k), as a polynomial of the product; 0 where `seen` is. [n, m] or [batch, 1, n, m]."""
    s = queries @ keys.mT / math.sqrt(queries.shape[-1])
    return (1 + s + s * s / 2) * seen


class PrefixAttention(nn.Module):
    """Multi-head prefix linear attention, behind a short causal convolution."""

    def __init__(self, width: int, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        self.convolution = nn.Conv1d(width, width, REACH, groups=width)
        self.query, self.key, self.encoder_key = (nn.Linear(width, heads * features, bias=False) for _ in range(3))
        self.value, self.encoder_value, self.output = (nn.Linear(width, width, bias=False) for _ in range(3))
        with torch.no_grad():  # at first a token finds itself, whatever stands before it: what recall begins with
            self.convolution.weight.zero_()[:, 0, -1] = 1.0
            cast(Tensor, self.convolution.bias).zero_()
            self.key.weight.copy_(self.query.weight)
            self.encoder_key.weight.copy_(self.query.weight)

    def forward(
        self, x: Float[Tensor, "batch n width"], mask: Float[Tensor, "batch n"], prefix: Float[Tensor, "batch n"] | None
    ) -> Float[Tensor, "batch n width"]:
        """The parallel form, quadratic in n. `mask` is 0 at padding, `prefix` 1 in the prefix; None: causal."""
        x = self._convolve(functional.pad(x * mask[..., None], (0, 0, REACH - 1, 0)))
        queries = self._split(self.query(x))
        causal = torch.ones_like(x[0, :, :1] @ x[0, :, :1].mT).tril() * mask[:, None, None, :]
        own = weigh(queries, self._split(self.key(x)), causal)
        summed, norms = own @ self._split(self.value(x)), own.sum(-1)
        if prefix is not None:
            encoded = weigh(queries, self._split(self.encoder_key(x)), (prefix * mask)[:, None, None, :])
            summed, norms = summed + encoded @ self._split(self.encoder_value(x)), norms + encoded.sum(-1)
        return self._join(summed / (norms + EPSILON)[..., None])

    def prefill(
        self, x: Float[Tensor, "batch n width"], mask: Float[Tensor, "batch n"], prefix: Float[Tensor, "batch n"]
    ) -> State:
        """The state after these places, of which the last must not be padding: the sums of both, as one."""
        padded = functional.pad(x * mask[..., None], (0, 0, REACH - 1, 0))
        x = self._convolve(padded)
        keys = taylor(self._split(self.key(x))) * mask[:, None, :, None]
        encoded = taylor(self._split(self.encoder_key(x))) * (prefix * mask)[:, None, :, None]
        sums = keys.mT @ self._split(self.value(x)) + encoded.mT @ self._split(self.encoder_value(x))
        return State(sums, keys.sum(2) + encoded.sum(2), padded[:, padded.shape[1] - REACH + 1 :])

    def step(self, x: Float[Tensor, "batch width"], state: State) -> tuple[Float[Tensor, "batch width"], State]:
        """The recurrent form: one more token, in time and memory that do not depend on how many came before."""
        recent = torch.cat([state.recent, x[:, None]], 1)
        x = self._convolve(recent)
        key, query = taylor(self._split(self.key(x))), taylor(self._split(self.query(x)))
        sums = state.sums + key.mT @ self._split(self.value(x))
        norms = state.norms + key[:, :, 0]
        normed = (query @ sums) / ((query[:, :, 0] * norms).sum(-1) + EPSILON)[..., None, None]
        return self._join(normed)[:, 0], State(sums, norms, recent[:, 1:])

    def _convolve(self, x: Float[Tensor, "batch more width"]) -> Float[Tensor, "batch n width"]:
        return functional.silu(self.convolution(x.mT).mT)

    def _split(self, x: Float[Tensor, "batch n all"]) -> Float[Tensor, "batch heads n d"]:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)

    def _join(self, x: Float[Tensor, "batch heads n d"]) -> Float[Tensor, "batch n width"]:
        joined: Tensor = self.output(x.transpose(1, 2).flatten(2))
        return joined


class Block(nn.Module):
    """Attention and an MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int, features: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = PrefixAttention(width, heads, features)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor, prefix: Tensor | None) -> Tensor:
        return self._add_mlp(x + self.attention(self.attention_norm(x), mask, prefix))

    def prefill(self, x: Tensor, mask: Tensor, prefix: Tensor) -> State:
        """The state of its attention after these places."""
        return self.attention.prefill(self.attention_norm(x), mask, prefix)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token."""
        made, state = self.attention.step(self.attention_norm(x), state)
        return self._add_mlp(x + made), state

    def _add_mlp(self, x: Tensor) -> Tensor:
        made: Tensor = self.mlp(self.mlp_norm(x))
        return x + made


class PrefixTransformer(nn.Module):
    """Token embedding, blocks of prefix linear attention, and class scores by the embedding's own matrix."""

    def __init__(self, vocabulary: int, width: int = 64, layers: int = 2, heads: int = 2, features: int = 8) -> None:
        super().__init__()
        self.sizes = {
            "vocabulary": vocabulary,
            "width": width,
            "layers": layers,
            "heads": heads,
            "features": features,
        }
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, features) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Int[Tensor, "batch n"], mask: Float[Tensor, "batch n"], prefix: Float[Tensor, "batch n"] | None
    ) -> Float[Tensor, "batch n vocabulary"]:
        """Class scores at each place."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, mask, prefix)
        return self.score(x)

    def prefill(
        self, tokens: Int[Tensor, "batch n"], mask: Float[Tensor, "batch n"], prefix: Float[Tensor, "batch n"]
    ) -> tuple[Float[Tensor, "batch vocabulary"], list[State]]:
        """Scores of what follows the last place, and each layer's state."""
        x, states = self.embedding(tokens), []
        for block in self._each_block():
            states.append(block.prefill(x, mask, prefix))
            x = block(x, mask, prefix)
        return self.score(x[:, -1]), states

    def step(self, token: Int[Tensor, " batch"], states: list[State]) -> tuple[Tensor, list[State]]:
        """Scores of what follows one more token, and the states after it."""
        x, after = self.embedding(token), []
        for block, state in zip(self._each_block(), states, strict=True):
            x, state = block.step(x, state)
            after.append(state)
        return self.score(x), after

    def score(self, x: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest vocabulary"]:
        """Class scores of hidden states."""
        scores: Tensor = self.norm(x) @ self.embedding.weight.mT
        return scores

    def _each_block(self) -> Iterator[Block]:
        return (cast(Block, block) for block in self.blocks)


def prefix_loss(
    module: PrefixTransformer,
    tokens: Int[Tensor, "batch n"],
    mask: Float[Tensor, "batch n"],
    prefix: Float[Tensor, "batch n"],
    blanked: Bool[Tensor, "batch n"],
    blank: int,
    weight: float = 0.25,
) -> Float[Tensor, ""]:
    """JRT-RNN's training loss: (L_NTP + weight L_MLM) / (1 + weight), each a mean over its tokens, in nats.

    L_NTP is of the tokens after the prefix, each from the place before; L_MLM of those of the prefix that `blanked`
    replaces by the token `blank` (15 % of them as published), each from its own place. Fewer tokens carry loss than in
    a causal model of the same texts: compare at equal data or at equal loss tokens, and say which.
    """
    scores = module(tokens.masked_fill(blanked, blank), mask, prefix)
    after = (mask * (1 - prefix))[:, 1:].bool()
    next_token = functional.cross_entropy(scores[:, :-1][after], tokens[:, 1:][after])
    if not weight or not blanked.any():
        return next_token
    masked = functional.cross_entropy(scores[blanked], tokens[blanked])
    return (next_token + weight * masked) / (1 + weight)
