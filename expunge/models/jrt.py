"""JRT-RNN (Arora et al., 2024, arXiv 2407.05483) as a network: the prompt is a prefix that is read knowing all of it.

The answer follows token by token, from a state of fixed size. A small model to be trained here: what an order of
reading costs is asked of it and of the same blocks read causally. It is no architecture of transformers; `save` writes
a folder that `open_model` reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.core.model import Model, Network, answers
from expunge.core.predictions import Predictions, weights_of
from expunge.core.question import Scores, Text
from expunge.internals.examples import Tokenized
from expunge.models.prefix_attention import PrefixTransformer
from expunge.primitives.composed_files import FILE, kind_name

if TYPE_CHECKING:
    from expunge.core.model import Batch

ROOM = 4096
"""Most tokens in one pass."""
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class JRT(Network):
    """A network of prefix linear attention, with its tokenizer."""

    family: ClassVar[str] = "language"
    module: PrefixTransformer
    tokenizer: Any = field(repr=False)
    prompts: Literal["prefix", "causal"] = "prefix"
    """How prompts are read: by the encoder too, or as a causal model reads them, which is the control."""
    longest: ClassVar[int] = 2048
    """The longest input, in tokens: a bound on time, the state has none."""

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.module.embedding.num_embeddings

    @answers(Scores)
    def score(self, _question: Scores, batch: Sequence[Tokenized]) -> Predictions:
        tokens, mask, prefix = self._rows([e.tokens for e in batch], [e.first for e in batch])
        scores = self.module(tokens, mask, prefix)
        width = tokens.shape[1]
        # Rows end together, so the place from which the last token is predicted is the last but one.
        asked = [(row, width - e.rows - 1 + k) for row, e in enumerate(batch) for k in range(e.rows)]
        row, place = torch.tensor(asked, device=self.device).T
        return Predictions(
            labels=tokens[row, place + 1],
            example=row,
            examples=len(batch),
            share=None,
            weights=weights_of(batch),
            states=scores[row, place],
        )

    @answers(Text)
    def write(self, question: Text, prompts: Sequence[Tokenized]) -> list[str]:
        texts = [""] * len(prompts)
        for group in self.batches(prompts):
            for k, text in zip(group, self._continue([prompts[k] for k in group], question), strict=True):
                texts[k] = text
        return texts

    def _continue(self, prompts: Sequence[Tokenized], question: Text) -> list[str]:
        """One prefill, then a step for each token."""
        begun = [prompt.prompt_tokens for prompt in prompts]
        end, written = self.tokenizer.eos_token_id, []
        with torch.inference_mode():
            scores, states = self.module.prefill(*self._rows(begun, [len(own) for own in begun]))
            for _ in range(question.max_new_tokens):
                written.append(scores.argmax(-1))
                scores, states = self.module.step(written[-1], states)
        rows = [own[: own.index(end)] if end in own else own for own in torch.stack(written, 1).tolist()]
        return [str(self.tokenizer.decode(own, skip_special_tokens=True)) for own in rows]

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        order = sorted(range(len(examples)), key=lambda k: examples[k].size)
        group: list[int] = []
        for k in order:
            if group and (len(group) + 1) * examples[k].size > ROOM:
                yield group
                group = []
            group.append(k)
        if group:
            yield group

    def _rows(self, sequences: Sequence[Sequence[int]], prefixes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mask and prefix of rows that are padded on the left, as the state needs them."""
        width = max(map(len, sequences))
        tokens = torch.zeros(len(sequences), width, dtype=torch.long)
        mask, prefix = torch.zeros(2, len(sequences), width)
        for row, (sequence, many) in enumerate(zip(sequences, prefixes, strict=True)):
            start = width - len(sequence)
            tokens[row, start:] = torch.tensor(sequence)
            mask[row, start:] = 1
            prefix[row, start : start + many] = float(self.prompts == "prefix")
        return tokens.to(self.device), mask.to(self.device), prefix.to(self.device)

    def settings(self) -> str:
        return f"{kind_name(type(self))} {self.module.sizes} {self.prompts} {self.tokenizer.backend_tokenizer.to_str()}"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.module.state_dict(), folder / WEIGHTS)
        self.tokenizer.save_pretrained(folder)
        settings = {"sizes": self.module.sizes, "prompts": self.prompts}
        (folder / FILE).write_text(json.dumps({"kind": kind_name(type(self)), "settings": settings}, indent=1))

    @staticmethod
    def load(folder: Path, open_part: Callable[[Path], Model]) -> JRT:
        """What `save` wrote."""
        from transformers import AutoTokenizer

        settings = json.loads((folder / FILE).read_text(encoding="utf-8"))["settings"]
        module = PrefixTransformer(**settings["sizes"])
        module.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return JRT(module.eval().requires_grad_(False), tokenizer, settings["prompts"])
