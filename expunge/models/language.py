"""Causal language models, through transformers' `AutoModelForCausalLM`: a row for each labelled token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.core.errors import ModelRefused
from expunge.core.model import Network, Speaker
from expunge.core.predictions import Hidden, Predictions
from expunge.core.rows import Head
from expunge.models.hidden import Below
from expunge.models.source import Source, load_module, settled
from expunge.models.tree import Woods, grown

if TYPE_CHECKING:
    from expunge.core.model import Batch

ROOM = 512
"""Nodes of one tree (or tokens of one padded row) at most, where examples are short: its mask has the square of that
many entries, and attention the cost."""

ROOMS = {"cpu": 2, "cuda": 16}
"""Trees that a call reads side by side at most, where no gradient is wanted."""

WRITES = 64
"""Continuations that are written side by side: a step of writing reads every weight once, for however many."""

LARGEST = 4096
"""Nodes of the largest tree, for one long text (a mask of 64 MB)."""


@dataclass(frozen=True)
class LanguageModel(Network, Speaker):
    """A decoder with its tokenizer."""

    tokenizer: Any = field(repr=False)
    trees: int = 0
    """Largest tree that the architecture reads rightly (0: none); probed when it is loaded."""
    headed: bool = False
    """Whether class scores are the output matrix times the last hidden state, and nothing more; probed too."""

    @staticmethod
    def load(source: Source, device: str = "cpu") -> LanguageModel:
        """Weights in float32 on a CPU, in their own precision elsewhere; never remote code, never a pickle."""
        from transformers import AutoModelForCausalLM

        module = load_module(source, AutoModelForCausalLM, torch.float32 if device == "cpu" else "auto")
        return LanguageModel.of(module.to(device), load_tokenizer(source))

    @staticmethod
    def of(module: Any, tokenizer: Any) -> LanguageModel:
        """A network from parts that are already in memory."""
        module.config.use_cache = False
        headed = ends_in_head(module)
        return LanguageModel(module, tokenizer, reads_trees(module), headed)

    @property
    def longest(self) -> int:
        """Tokens that the model reads at most."""
        text = self.module.config.get_text_config()
        return int(getattr(text, "max_position_embeddings", 0) or 2048)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    def predict(self, batch: Batch) -> Predictions:
        states, row, head = self._read([example.tokens for example in batch], [e.first for e in batch])
        labels = [token for example in batch for token in example.tokens[example.first :]]
        owner = [k for k, example in enumerate(batch) for _ in range(example.rows)]
        return Predictions(
            labels=torch.tensor(labels, device=states.device),
            example=torch.tensor(owner, device=states.device),
            examples=len(batch),
            share=None,
            states=states[row],
            head=head,
        )

    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        said = replace(self, module=Below(self.module, layer), headed=False).predict(batch)
        return Hidden(said.labels, said.example, said.examples, None, said.states)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        sequences = [example.tokens for example in examples]
        room = ROOM * ROOMS.get(self.device.type, 1)
        if self.trees:
            yield from grown(sequences, room)
            return
        group: list[int] = []
        for index in sorted(range(len(sequences)), key=lambda k: len(sequences[k])):
            if group and (len(group) + 1) * len(sequences[index]) > room:
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    def generate(self, prompts: Batch, max_new_tokens: int) -> list[str]:
        """Greedy continuations, batched by length, padded on the left, with the key-value cache."""
        said = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda k: len(prompts[k].asked))
        for start in range(0, len(order), WRITES):
            group = order[start : start + WRITES]
            texts = self._continue([prompts[k].asked for k in group], max_new_tokens)
            for index, text in zip(group, texts, strict=True):
                said[index] = text
        return said

    def head(self) -> Head | None:
        """The output embedding, where nothing comes after it."""
        matrix = self.module.get_output_embeddings()
        return Head(matrix.weight, matrix.bias).detach() if self.headed else None

    def settings(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend else f"{type(self.tokenizer).__name__} {self.tokenizer.get_vocab()!r}"
        generation = getattr(self.module, "generation_config", None)
        return "\n".join(
            (settled(self.module.config), settled(generation), words, f"{self.trees} {self.headed} {ROOM}")
        )

    def save(self, folder: Path) -> None:
        self.module.config.use_cache = True  # the folder is for serving, where the cache is wanted
        try:
            self.module.save_pretrained(folder, safe_serialization=True)
        finally:
            self.module.config.use_cache = False
        self.tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes through a temporary file that only its owner may read

    def _read(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> tuple[Tensor, Tensor, Head | None]:
        """Last states (or class scores) of some positions; for each labelled row the one that predicts it; the head."""
        if self.trees and max(map(len, sequences)) <= self.trees:
            return self._woods(Woods.of(sequences, ROOM, self._thrift()), firsts)
        return self._padded(sequences, firsts)

    def _thrift(self) -> int:
        """Entries of attention's square that cost as much as all other work on a token, in a layer of this width.

        A token takes 2 * 12 * width**2 FLOPs in a layer and 4 * width for each entry; with the rates that attention,
        products and elementwise work reach on a CPU at width 576 (measured), that makes about 2.5 * width.
        """
        return int(self.module.get_input_embeddings().weight.shape[1] * 5 // 2)

    def _woods(self, woods: Woods, firsts: Sequence[int]) -> tuple[Tensor, Tensor, Head | None]:
        asked = [node for path, first in zip(woods.paths, firsts, strict=True) for node in path[first - 1 : -1]]
        keep, row = torch.unique(torch.tensor(asked), return_inverse=True)
        dtype = self.module.get_input_embeddings().weight.dtype
        states, head = self._states(
            input_ids=woods.tokens.to(self.device),
            position_ids=woods.depth.to(self.device),
            attention_mask=woods.mask(dtype, self.device),
        )
        return states.flatten(0, 1)[keep.to(self.device)], row.to(self.device), head

    def _padded(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> tuple[Tensor, Tensor, Head | None]:
        width = max(map(len, sequences))
        tokens = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        states, head = self._states(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device))
        at = [
            index * width + place
            for index, (sequence, first) in enumerate(zip(sequences, firsts, strict=True))
            for place in range(first - 1, len(sequence) - 1)
        ]
        return states.flatten(0, 1), torch.tensor(at, device=self.device), head

    def _states(self, **inputs: Tensor) -> tuple[Tensor, Head | None]:
        """What the output matrix reads at every position, and that matrix; or the class scores themselves."""
        if not self.headed:
            return self.module(**inputs, use_cache=False).logits, None
        with _passing(self.module.get_output_embeddings()) as matrix:
            states = self.module(**inputs, use_cache=False).logits
        return states, Head(matrix.weight, matrix.bias)

    def _continue(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        pad = 0 if pad is None else pad
        tokens = torch.full((len(prompts), width), pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            written = self.module.generate(
                input_ids=tokens.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=pad,
            )
        return [str(text) for text in self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)]


def load_tokenizer(source: Source) -> Any:
    """The model's own tokenizer."""
    from transformers import AutoTokenizer

    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        return AutoTokenizer.from_pretrained(**source.arguments, **gguf)
    except Exception as error:  # each tokenizer class fails in its own way on a torn file
        raise ModelRefused(f"{source.name}: its tokenizer could not be loaded ({type(error).__name__}).") from error


@contextmanager
def _passing(matrix: nn.Linear) -> Iterator[nn.Linear]:
    """The output matrix hands on what it is given, so that unlabelled rows never meet it."""
    matrix.forward = lambda states: states  # type: ignore[method-assign]
    try:
        yield matrix
    finally:
        del matrix.forward


def ends_in_head(module: Any) -> bool:
    """Whether the class scores are the output matrix times what it reads: no cap, scale or slice comes after it."""
    matrix = module.get_output_embeddings()
    if type(matrix) is not nn.Linear:
        return False
    tokens = torch.arange(min(5, module.config.get_text_config().vocab_size), device=matrix.weight.device)[None]
    with torch.inference_mode():
        plain = module(input_ids=tokens, use_cache=False).logits
        with _passing(matrix):
            states = module(input_ids=tokens, use_cache=False).logits
        return states.shape[-1] == matrix.in_features and torch.equal(matrix(states).to(plain.dtype), plain)


def reads_trees(module: Any) -> int:
    """The largest tree that is answered as its branches alone are: 0 where a probe of three branches is not.

    Architectures that make their own positions or masks (GPT-Neo's local layers) answer otherwise, and are read in
    padded batches. A tree's mask replaces that of local attention, so no tree may outgrow a window.
    """
    text = module.config.get_text_config()
    window = getattr(text, "sliding_window", None) or getattr(text, "window_size", None) or LARGEST
    if "position_ids" not in inspect.signature(module.forward).parameters:
        return 0
    draw = torch.Generator().manual_seed(0)
    stem, *tips = (torch.randint(text.vocab_size, (n,), generator=draw).tolist() for n in (5, 4, 3, 6))
    sequences = [stem + tip for tip in tips]
    probe = LanguageModel(module, None)
    with torch.inference_mode():
        try:
            one, row, _ = probe._woods(Woods.of(sequences, ROOM), [1, 1, 1])
            other, place, _ = probe._padded(sequences, [1, 1, 1])
        except (RuntimeError, ValueError, TypeError, IndexError):
            return 0
    a, b = one[row].float(), other[place].float()
    scale = float((b - b.mean(-1, keepdim=True)).abs().max())
    close = float((a - b).abs().max()) <= (1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2) * scale
    return min(int(window), LARGEST) if close else 0
