"""Causal language models, through transformers' `AutoModelForCausalLM`: a row for each labelled token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from expunge.core.model import Network, answers
from expunge.core.predictions import Hidden, Predictions, RouterScores, weights_of
from expunge.core.question import HiddenStates, Routes, Scores, Text
from expunge.errors import EnvironmentRefused, ModelRefused
from expunge.internals.examples import Tokenized
from expunge.internals.wordings import Wordings
from expunge.models._family import Family
from expunge.models.configuration import prepare
from expunge.models.continuations import continue_prompts, word_answers
from expunge.models.hidden import UpToBlock
from expunge.models.prefix_tree import Layout, Tree, pack, pieces
from expunge.models.probe import ANY_LENGTH, probe
from expunge.models.routers import UpToRouter
from expunge.models.source import Source, config_text, load_module, refuse_adapted
from expunge.models.stored import Stored, stored_of, write_module
from expunge.models.tree_attention import most_on
from expunge.primitives.class_scores import Head
from expunge.runtime.atomic_files import open_to_readers
from expunge.runtime.precision import full_precision

if TYPE_CHECKING:
    from expunge.core.model import Batch

ROOM = {"cpu": 1024, "cuda": 8192}
"""Most tokens in one forward pass without gradients: nodes of a prefix tree, or tokens of padded rows."""

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")
"""Files that a tokenizer may be in."""

LARGEST = 4096
"""Longest text, in tokens, that is read as a path of a prefix tree (its mask has 64 MB)."""


@dataclass(frozen=True)
class LanguageModel(Network):
    """A causal language model with its tokenizer."""

    family: ClassVar[str] = "language"
    module: Any
    """A transformers model, or the part of one that is read; it is called with `input_ids` and gives `logits`."""
    tokenizer: Any = field(repr=False)
    trees: int = 0
    """Longest sequence, in tokens, that the architecture reads correctly as a path of a prefix tree; 0: it cannot.
    Probed when the model is loaded."""
    headed: bool = False
    """Whether class scores are just the output matrix times the last hidden state; probed too."""
    most: int = 0
    """Nodes of a tree, or tokens of padded rows, that a call without gradients reads at most; 0: by the device."""
    rows: int = ANY_LENGTH
    """Longest sequence, in tokens, that is read in padded rows; longer ones are read alone. Probed too."""
    nodes: int = ANY_LENGTH
    """Most nodes of a tree; sequences that have more together are read in padded rows."""
    stored: Stored | None = field(repr=False, default=None)
    """How its file holds the weights, which it is written in as well; None: as they are in memory."""
    served: Mapping[str, Any] = field(repr=False, default_factory=lambda: {"use_cache": True})
    """Settings of the configuration that it is written with, and not read with here."""

    @staticmethod
    def load(source: Source, device: str = "cpu", storage_device: str | None = None) -> LanguageModel:
        """Weights in float32 for a CPU, else in the precision of the file or of `source.dtype`; never remote code or
        pickle.

        They are put on `storage_device` where one is given, else on `device`.
        """
        from transformers import AutoModelForCausalLM

        module = load_module(source, AutoModelForCausalLM, torch.float32 if device == "cpu" else source.dtype or "auto")
        tokenizer = load_tokenizer(source)
        try:
            made = LanguageModel.of(module.to(storage_device or device), tokenizer)
        except ModelRefused as refusal:
            raise ModelRefused(f"{source.name}: {refusal}") from refusal
        return replace(made, stored=stored_of(source, module.config))

    @staticmethod
    @full_precision()
    def of(module: Any, tokenizer: Any) -> LanguageModel:
        """From a module and a tokenizer in memory. Raises `ModelRefused` where it is no causal model of texts."""
        served = prepare(module)
        reads = probe(LanguageModel(module, None))
        trees = min(reads.trees, LARGEST)
        return LanguageModel(module, tokenizer, trees, ends_in_head(module), 0, reads.rows, reads.nodes, served=served)

    @property
    def longest(self) -> int:
        """The longest input, in tokens."""
        text = self.module.config.get_text_config()
        return int(getattr(text, "max_position_embeddings", 0) or 2048)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    @answers(Scores)
    def _scores(self, _question: Scores, batch: Sequence[Tokenized]) -> Predictions:
        states, row, head = self._read([example.tokens for example in batch], [e.first for e in batch])
        labels = [token for example in batch for token in example.tokens[example.first :]]
        owner = [k for k, example in enumerate(batch) for _ in range(example.rows)]
        return Predictions(
            labels=torch.tensor(labels, device=states.device),
            example=torch.tensor(owner, device=states.device),
            examples=len(batch),
            share=None,
            weights=weights_of(batch),
            states=states[row],
            head=head,
        )

    @answers(HiddenStates)
    def _hidden_states(self, question: HiddenStates, batch: Batch) -> Hidden:
        said = replace(self, module=UpToBlock(self.module, question), headed=False).ask(Scores(), batch)
        return Hidden(said.labels, said.example, said.examples, None, said.states, weights=said.weights)

    @answers(Routes)
    def _routes(self, question: Routes, batch: Sequence[Tokenized]) -> RouterScores:
        routing = UpToRouter(self.module, question.layer)
        reader = replace(self, module=routing, headed=False)
        states, row, _ = reader._read([example.tokens for example in batch], [1] * len(batch))
        probabilities, taken = states[row].unbind(1)
        labels = [token for example in batch for token in example.tokens[1:]]
        owner = [k for k, example in enumerate(batch) for _ in example.tokens[1:]]
        return RouterScores(
            labels=torch.tensor(labels, device=states.device),
            example=torch.tensor(owner, device=states.device),
            examples=len(batch),
            share=None,
            weights=weights_of(batch),
            layers=routing.layers,
            states=probabilities,
            taken=taken > 0,
        )

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        sequences = _sequences(examples)
        longest = max(map(len, sequences), default=0)
        if longest > self.longest:  # records are no longer than that, but what a guard or an audit makes of them may be
            raise ModelRefused(f"A text has {longest} tokens; {type(self.module).__name__} reads {self.longest}.")
        most = self.most or ROOM.get(self.device.type, ROOM["cpu"])
        inside = [k for k, sequence in enumerate(sequences) if len(sequence) <= self.trees]
        for group in pack([sequences[k] for k in inside], min(most, self.nodes)):
            yield [inside[k] for k in group]
        yield from self._batches_of_rows(sequences, set(inside), most)

    def _batches_of_rows(self, sequences: Sequence[Sequence[int]], inside: set[int], most: int) -> Iterator[list[int]]:
        """Of those that are not inside of a tree: padded rows of about one length, and each that is read alone."""
        group: list[int] = []
        for index in sorted(set(range(len(sequences))) - inside, key=lambda k: len(sequences[k])):
            size = len(sequences[index])
            if group and ((len(group) + 1) * size > most or size > self.rows):
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    @answers(Text)
    def _text(self, question: Text, prompts: Sequence[Tokenized]) -> list[str]:
        return continue_prompts(self, question, prompts)

    @answers(Wordings)
    def _wordings(self, question: Wordings, prompts: Sequence[Tokenized]) -> list[Tokenized | None]:
        return word_answers(self, question, prompts)

    def side_by_side(self) -> LanguageModel:
        return replace(self, trees=0)

    def head(self) -> Head | None:
        """The output embedding, where class scores are its product with the hidden state and nothing more."""
        matrix = self.module.get_output_embeddings()
        return Head(matrix.weight, matrix.bias).detach() if self.headed else None

    def settings(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend else f"{type(self.tokenizer).__name__} {self.tokenizer.get_vocab()!r}"
        generation = getattr(self.module, "generation_config", None)
        return "\n".join(
            (config_text(self.module.config), config_text(generation), words, f"{self.trees} {self.headed}")
        )

    def save(self, folder: Path) -> None:
        refuse_adapted(self.module)
        config = self.module.config
        read_with = {name: getattr(config, name) for name in self.served}
        try:
            config.update(self.served)
            write_module(self.module, self.stored, folder)
        finally:
            config.update(read_with)
        self.tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            open_to_readers(path)  # safetensors writes a temporary file that only its owner may read

    def _read(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> tuple[Tensor, Tensor, Head | None]:
        """Last hidden states (or class scores) of some positions, the index among them for each labelled row, and the
        head."""
        groups = self._passes(sequences)
        if len(groups) == 1:
            return self._read_pass(sequences, firsts)
        if any(isinstance(part, FSDPModule) for part in self.module.modules()):
            raise EnvironmentRefused(
                f"{type(self.module).__name__} reads texts of more than {max(self.trees, self.rows)} tokens one at a "
                f"time, which processes that share it cannot. Shorten them, or use one process."
            )
        parts: dict[int, Tensor] = {}
        for group in groups:
            own = [firsts[k] for k in group]
            states, row, head = self._read_pass([sequences[k] for k in group], own)
            sizes = [len(sequences[k]) - first for k, first in zip(group, own, strict=True)]
            parts |= zip(group, states[row].split(sizes), strict=True)
        together = torch.cat([parts[k] for k in range(len(sequences))])
        return together, torch.arange(len(together), device=together.device), head

    def _passes(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """The indices of the sequences that one forward pass reads, for each."""
        most = max(self.trees, self.rows)
        together = [k for k, sequence in enumerate(sequences) if len(sequence) <= most]
        alone = [[k] for k, sequence in enumerate(sequences) if len(sequence) > most]
        return [together, *alone] if together else alone

    def _read_pass(
        self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Head | None]:
        if self.trees and max(map(len, sequences)) <= self.trees:
            tree = Tree.of(sequences)
            if tree.tokens.numel() <= self.nodes:
                return self._read_tree(tree, firsts)
        return self._read_padded(sequences, firsts)

    def layout(self, batch: Batch, device: str) -> Layout:
        """How one forward pass on a device of that kind would read a batch."""
        sequences = _sequences(batch)
        longest = max(map(len, sequences))
        ends = Tree.of(sequences).ends.flatten().tolist() if longest <= self.trees else []
        if not ends or len(ends) > self.nodes:
            return Layout(len(sequences), longest)
        return Layout(1, len(ends), tuple(pieces(ends, most_on(device))))

    def inputs(self, tree: Tree) -> dict[str, Tensor]:
        """The module's arguments for reading a prefix tree."""
        return {
            "input_ids": tree.tokens.to(self.device),
            "position_ids": tree.depth.to(self.device),
            "attention_mask": tree.ends.to(self.device),
        }

    def _read_tree(self, tree: Tree, firsts: Sequence[int]) -> tuple[Tensor, Tensor, Head | None]:
        asked = [node for path, first in zip(tree.paths, firsts, strict=True) for node in path[first - 1 : -1]]
        keep, row = torch.unique(torch.tensor(asked), return_inverse=True)
        states, head = self.states(**self.inputs(tree))
        return states[0, keep.to(self.device)], row.to(self.device), head

    def read_tree(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Class scores (or last hidden states) of each sequence, read as a prefix tree: [tokens, classes] of each."""
        tree = Tree.of(sequences)
        states, _ = self.states(**self.inputs(tree))
        return [states[0, list(path)] for path in tree.paths]

    def read_rows(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """The same, read in padded rows."""
        states, _ = self.states(**self.row_inputs(sequences))
        return [states[row, : len(sequence)] for row, sequence in enumerate(sequences)]

    def row_inputs(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The module's arguments for reading rows that are padded on the right; a single one has no mask."""
        width = max(map(len, sequences))
        tokens = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        if len(sequences) == 1:
            return {"input_ids": tokens.to(self.device)}
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        return {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}

    def _read_padded(
        self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Head | None]:
        width = max(map(len, sequences))
        states, head = self.states(**self.row_inputs(sequences))
        at = [
            index * width + place
            for index, (sequence, first) in enumerate(zip(sequences, firsts, strict=True))
            for place in range(first - 1, len(sequence) - 1)
        ]
        return states.flatten(0, 1), torch.tensor(at, device=self.device), head

    def states(self, **inputs: Any) -> tuple[Tensor, Head | None]:
        """Last hidden states of every position and the output matrix; or class scores and None."""
        inputs.setdefault("use_cache", False)
        if not self.headed:
            return self.module(**inputs).logits, None
        with _bypass(self.module.get_output_embeddings()) as matrix:
            states = self.module(**inputs).logits
        return states, Head(matrix.weight, matrix.bias)


def _sequences(batch: Batch) -> list[tuple[int, ...]]:
    return [example.tokens for example in cast(Sequence[Tokenized], batch)]


def load_tokenizer(source: Source) -> Any:
    """The model's own tokenizer."""
    from transformers import AutoTokenizer

    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        made = AutoTokenizer.from_pretrained(**source.arguments, **gguf)
        made("a")  # settings of a wrong type show when they are used
        return made
    except Exception as error:  # each tokenizer class fails in its own way on a damaged file
        there = source.gguf or not source.local or any((Path(source.name) / name).is_file() for name in TOKENIZERS)
        what = "could not be loaded" if there else "is not in the folder"
        raise ModelRefused(
            f"{source.name}: its tokenizer {what} ({type(error).__name__}). Copy tokenizer.json and "
            f"tokenizer_config.json of the model that it was made from into the folder."
        ) from error


@contextmanager
def _bypass(matrix: nn.Linear) -> Iterator[nn.Linear]:
    """Within the block the output layer returns its input, so that scores of unlabelled rows are never computed."""
    matrix.forward = lambda states: states  # type: ignore[assignment, method-assign]
    try:
        yield matrix
    finally:
        del matrix.forward


def ends_in_head(module: Any) -> bool:
    """Whether class scores are the output matrix times its input: no soft cap, scale or slice follows."""
    matrix = module.get_output_embeddings()
    if type(matrix) is not nn.Linear:
        return False
    tokens = torch.arange(min(5, module.config.get_text_config().vocab_size), device=matrix.weight.device)[None]
    with torch.inference_mode():
        plain = module(input_ids=tokens, use_cache=False).logits
        with _bypass(matrix):
            states = module(input_ids=tokens, use_cache=False).logits
        return states.shape[-1] == matrix.in_features and torch.equal(matrix(states).to(plain.dtype), plain)


@dataclass(frozen=True)
class Language(Family):
    """Causal language models."""

    name: ClassVar[str] = "language"
    records: ClassVar[str] = "text"
    unit: ClassVar[str] = "tokens"
    limits: ClassVar[tuple[str, ...]] = (
        "Facts that follow from the forgotten ones, and other languages, were not asked about.",
    )
    kind: ClassVar[str] = "a causal language model"
    defaults: ClassVar[tuple[str, str]] = ("TokenLevels", "Settle")
    endings: ClassVar[tuple[str, ...]] = ("ForCausalLM", "LMHeadModel")

    def has(self, config: Any) -> bool:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        named = list(config.architectures or [])
        if named:
            return any(name.endswith(self.endings) for name in named)
        return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    def open(self, source: Source, device: str, storage_device: str | None) -> LanguageModel:
        return LanguageModel.load(source, device, storage_device)


FAMILY = Language()
