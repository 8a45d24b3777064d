"""Questions with answers, and plain texts, from files to labelled tokens.

The prompt is masked by the offsets of one tokenisation, not by tokenising it a second time: where a prompt ends in a
space, byte-level BPE joins the space to the first answer token, and a count of prompt tokens would swallow it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.errors import ModelRefused
from expunge.data.records import Fault, Record, read, refuse

PLAIN_PROMPT = "Question: {question}\nAnswer: "
"""Used where the tokenizer has no chat template."""


@dataclass(frozen=True)
class Passage:
    """Tokens of which the last ones are labelled: an answer after its prompt, or all but the first of a text."""

    id: str
    tokens: tuple[int, ...]
    first: int
    """Index of the first labelled token, at least 1; all from there to the end are labelled."""
    prompt: str = field(repr=False)
    """The rendered prompt as the model reads it; empty for a plain text."""
    answer: str = field(repr=False)
    question: str = field(repr=False, default="")
    """The question as the file has it; empty for a plain text."""
    asked: tuple[int, ...] = field(repr=False, default=())
    """Tokens of the prompt alone, without a lead: what a continuation is generated from."""
    alternatives: tuple[Passage, ...] = field(repr=False, default=())
    """The same prompt with wrong answers."""

    @property
    def rows(self) -> int:
        """Number of labelled tokens."""
        return len(self.tokens) - self.first

    @property
    def size(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.tokens)

    def content(self) -> str:
        """SHA-256 of question and answer, case and spaces evened (NFC, casefold)."""
        said = "\x1f".join((self.question, self.answer))
        return hashlib.sha256(" ".join(unicodedata.normalize("NFC", said).casefold().split()).encode()).hexdigest()


def load(path: Path) -> list[Record]:
    """The records of a file, columns checked; needs no tokenizer, so that a bad file is refused before a model loads.

    Columns: `question` and `answer`, or `text`; optionally `id` and, with a question, `options` (wrong answers) and
    `lead` (how the answer begins, such as "The capital of Japan is": given to the model and not labelled).
    """
    records = read(path)
    faults = [Fault(record.line, what) for record in records if (what := _wrong(record.columns))]
    ids = [str(record.columns["id"]) for record in records if "id" in record.columns]
    faults += [Fault(r.line, "its id stands twice") for r in records if ids.count(str(r.columns.get("id"))) > 1]
    refuse(path, faults)
    return records


def _wrong(columns: dict[str, Any]) -> str:
    """What is wrong with a row, in words without its text; empty where nothing is."""
    wanted = ("text",) if "text" in columns else ("question", "answer")
    missing = [name for name in wanted if name not in columns]
    if missing:
        return f"no column '{missing[0]}' (needed: question and answer, or text)"
    bad = next((n for n in wanted if not isinstance(columns[n], str) or not columns[n].strip()), "")
    if bad:
        return f"'{bad}' is {type(columns[bad]).__name__ if columns[bad] else 'empty'}, but must be text"
    if any("\ud800" <= letter <= "\udfff" for name in wanted for letter in columns[name]):
        return "a lone surrogate, which is not text"
    if not isinstance(columns.get("lead", ""), str):
        return "'lead' must be text (how the answer begins)"
    options = columns.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        return "'options' must be a list of texts (the wrong answers)"
    if "answer" in columns and columns["answer"] in options:
        return "'options' holds the right answer; list only wrong ones"
    return ""


def encode(records: list[Record], tokenizer: Any, path: Path, longest: int) -> tuple[Passage, ...]:
    """Passages of at most `longest` tokens; a longer text is split, a longer question refused."""
    if not tokenizer.is_fast:
        raise ModelRefused("The tokenizer has no offsets. Use a fast one (a folder with tokenizer.json).")
    passages: list[Passage] = []
    faults: list[Fault] = []
    for record in records:
        made = _texts(record, tokenizer, longest) if "text" in record.columns else [_answer(record, tokenizer)]
        for passage in made:
            if passage.rows < 1 or any(option.rows < 1 for option in passage.alternatives):
                faults.append(Fault(record.line, "has no labelled token, so nothing can be asked about it"))
            elif max(len(p.tokens) for p in (passage, *passage.alternatives)) > longest:
                faults.append(Fault(record.line, f"{len(passage.tokens)} tokens; the model reads {longest}"))
            passages.append(passage)
    refuse(path, faults)
    return tuple(passages)


def prompt_of(question: str, tokenizer: Any) -> str:
    """What the model reads before it answers: the tokenizer's chat template where it has one."""
    if not tokenizer.chat_template:
        return PLAIN_PROMPT.format(question=question)
    turn = [{"role": "user", "content": question}]
    try:
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates are programs of strangers and fail in any way they like
        raise ModelRefused(f"The tokenizer's chat template failed ({type(error).__name__}). Mend or remove it.") from error


def end_of_answer(tokenizer: Any) -> int | None:
    """The token that ends an answer: the special token after the assistant's turn, else the end of text."""
    if tokenizer.chat_template:
        said = "Lorem ipsum"
        turns = [{"role": "user", "content": "Dolor"}, {"role": "assistant", "content": said}]
        tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(said)[2].strip()
        tokens = tokenizer(tail, add_special_tokens=False)["input_ids"]
        if tokens and tokens[0] in tokenizer.all_special_ids:
            return int(tokens[0])
    return tokenizer.eos_token_id


def _label(prompt: str, answer: str, tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """Tokens of prompt, answer and end token, and the index of the first that reaches into the answer."""
    chat = bool(tokenizer.chat_template)
    read = tokenizer(prompt + answer, add_special_tokens=not chat, return_offsets_mapping=True)
    tokens, offsets = list(read["input_ids"]), read["offset_mapping"]
    end = end_of_answer(tokenizer)
    if tokens and tokens[-1] == end and offsets[-1][0] == offsets[-1][1]:
        tokens, offsets = tokens[:-1], offsets[:-1]
    # Special tokens that the tokenizer adds have empty spans and answer nothing.
    first = next((k for k, (a, b) in enumerate(offsets) if b > max(a, len(prompt))), len(tokens))
    if first < len(tokens) and end is not None:
        tokens.append(end)
    return tuple(tokens), max(first, 1)


def _answer(record: Record, tokenizer: Any) -> Passage:
    question, answer = record.columns["question"], record.columns["answer"]
    name = str(record.columns.get("id", f"line-{record.line}"))
    prompt = prompt_of(question, tokenizer)
    lead = record.columns.get("lead", "").rstrip()
    begun = prompt + lead
    space = " " if lead else ""
    asked = tuple(tokenizer(prompt.rstrip(" "), add_special_tokens=not tokenizer.chat_template)["input_ids"])

    def passage(text: str, wrong: tuple[Passage, ...]) -> Passage:
        tokens, first = _label(begun, space + text, tokenizer)
        return Passage(name, tokens, first, begun, text, question, asked, wrong)

    return passage(answer, tuple(passage(option, ()) for option in record.columns.get("options", [])))


def _texts(record: Record, tokenizer: Any, longest: int) -> list[Passage]:
    """A text, cut where it is longer than the model reads; no token is dropped or labelled twice."""
    text = record.columns["text"]
    name = str(record.columns.get("id", f"line-{record.line}"))
    tokens = tuple(tokenizer(text)["input_ids"])
    pieces = [tokens[k : k + longest] for k in range(0, max(len(tokens), 1), longest)]
    ids = [name] if len(pieces) == 1 else [f"{name}.{k}" for k in range(1, len(pieces) + 1)]
    whole = len(pieces) == 1
    said = [text] if whole else [tokenizer.decode(piece) for piece in pieces]
    named = zip(ids, pieces, said, strict=True)
    return [Passage(i, piece, 1, "", part) for i, piece, part in named if len(piece) > 1 or whole]


def refuse_unknown_tokens(passages: tuple[Passage, ...], vocabulary: int, path: Path) -> None:
    """Refuse passages whose tokens the model's embedding does not hold (the tokenizer of another model)."""
    largest = max(max(passage.tokens, default=0) for passage in passages)
    if largest >= vocabulary:
        raise ModelRefused(
            f"{path}: the tokenizer makes token {largest}, but the model's embedding has {vocabulary} rows. "
            f"Use the model's own tokenizer."
        )


