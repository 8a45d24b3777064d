"""Causal language models, through transformers' `AutoModelForCausalLM`: a row for each labelled token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.core.errors import ModelRefused
from expunge.core.model import Network, Speaker
from expunge.core.predictions import Predictions
from expunge.models.source import Source, load_module
from expunge.models.tree import Tree, grown

if TYPE_CHECKING:
    from expunge.core.model import Batch

ROOM = 768
"""Nodes of one tree (or tokens of one padded batch) that a call reads at most, where examples are short."""

LARGEST = 4096
"""Nodes of the largest tree: its mask has the square of that many entries (64 MB)."""


@dataclass(frozen=True)
class LanguageModel(Network, Speaker):
    """A decoder with its tokenizer."""

    tokenizer: Any = field(repr=False)
    trees: int = 0
    """Largest tree that the architecture reads rightly (0: none); probed when it is loaded."""

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
        return LanguageModel(module, tokenizer, reads_trees(module))

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
        sequences = [example.tokens for example in batch]
        logits, row = self._read(sequences, [e.first for e in batch])
        labels = [token for example in batch for token in example.tokens[example.first :]]
        owner = [k for k, example in enumerate(batch) for _ in range(example.rows)]
        return Predictions(
            labels=torch.tensor(labels, device=logits.device),
            example=torch.tensor(owner, device=logits.device),
            examples=len(batch),
            share=None,
            logits=logits[row],
        )

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        sequences = [example.tokens for example in examples]
        if self.trees:
            yield from grown(sequences, min(ROOM, self.trees))
            return
        group: list[int] = []
        for index in sorted(range(len(sequences)), key=lambda k: len(sequences[k])):
            if group and (len(group) + 1) * len(sequences[index]) > ROOM:
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    def generate(self, prompts: Batch, max_new_tokens: int) -> list[str]:
        """Greedy continuations, batched by length, padded on the left, with the key-value cache."""
        said = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda k: len(prompts[k].asked))
        for start in range(0, len(order), 16):
            group = order[start : start + 16]
            texts = self._continue([prompts[k].asked for k in group], max_new_tokens)
            for index, text in zip(group, texts, strict=True):
                said[index] = text
        return said

    def save(self, folder: Path) -> None:
        self.module.config.use_cache = True  # the folder is for serving, where the cache is wanted
        try:
            self.module.save_pretrained(folder, safe_serialization=True)
        finally:
            self.module.config.use_cache = False
        self.tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes through a temporary file that only its owner may read

    def _read(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Class scores of some positions, and for each labelled row of each sequence the one that predicts it."""
        if self.trees:
            tree = Tree.of(sequences)
            if len(tree.tokens) <= self.trees:
                return self._tree(tree, firsts)
        return self._padded(sequences, firsts)

    def _tree(self, tree: Tree, firsts: Sequence[int]) -> tuple[Tensor, Tensor]:
        asked = [node for path, first in zip(tree.paths, firsts, strict=True) for node in path[first - 1 : -1]]
        keep, row = torch.unique(torch.tensor(asked), return_inverse=True)
        dtype = self.module.get_input_embeddings().weight.dtype
        logits = _logits(
            self.module,
            keep.to(self.device),
            input_ids=tree.tokens[None].to(self.device),
            position_ids=tree.depth[None].to(self.device),
            attention_mask=tree.mask(dtype).to(self.device),
        )
        return logits[0], row.to(self.device)

    def _padded(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> tuple[Tensor, Tensor]:
        width = max(map(len, sequences))
        tokens = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        low = min(firsts) - 1
        keep = torch.arange(low, width, device=self.device)
        logits = _logits(self.module, keep, input_ids=tokens.to(self.device), attention_mask=mask.to(self.device))
        at = [
            index * (width - low) + place - low
            for index, (sequence, first) in enumerate(zip(sequences, firsts, strict=True))
            for place in range(first - 1, len(sequence) - 1)
        ]
        return logits.flatten(0, 1), torch.tensor(at, device=self.device)

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


def _logits(module: Any, keep: Tensor, **inputs: Tensor) -> Tensor:
    """Class scores at the positions `keep` only, so that unlabelled rows never meet the output matrix."""
    if "logits_to_keep" in inspect.signature(module.forward).parameters:
        return module(**inputs, logits_to_keep=keep, use_cache=False).logits
    return module(**inputs, use_cache=False).logits[:, keep]


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
            one, row = probe._tree(Tree.of(sequences), [1, 1, 1])
            other, place = probe._padded(sequences, [1, 1, 1])
        except (RuntimeError, ValueError, TypeError, IndexError):
            return 0
    a, b = one[row].float(), other[place].float()
    scale = float((b - b.mean(-1, keepdim=True)).abs().max())
    close = float((a - b).abs().max()) <= (1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2) * scale
    return min(int(window), LARGEST) if close else 0
