"""Questions with answers, and plain texts, from files to labelled tokens.

The prompt is masked by the offsets of one tokenisation, not by tokenising it a second time: where a prompt ends in a
space, byte-level BPE merges the space into the first answer token, which a count of prompt tokens would mask too.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.data.records import Fault, Record, read, refuse
from expunge.errors import ModelRefused

PLAIN_PROMPT = "Question: {question}\nAnswer: "
"""Used where the tokenizer has no chat template."""

LONGEST_ID = 200
ALSO = {
    "question": ("prompt", "instruction", "input"),
    "answer": ("completion", "response", "output"),
    "text": (),
}
"""Names of these columns in other projects."""


@dataclass(frozen=True)
class Passage:
    """A token sequence whose last tokens are labelled: an answer after its prompt, or all of a text but its first."""

    id: str
    tokens: tuple[int, ...]
    first: int
    """Index of the first labelled token, at least 1; all from there to the end are labelled."""
    prompt: str = field(repr=False)
    """The rendered prompt as the model reads it; empty for a plain text."""
    answer: str = field(repr=False)
    question: str = field(repr=False, default="")
    """The question as the file has it; empty for a plain text."""
    prompt_tokens: tuple[int, ...] = field(repr=False, default=())
    """Tokens of the prompt, without a lead: the input that a continuation is generated from."""
    alternatives: tuple[Passage, ...] = field(repr=False, default=())
    """The same prompt with wrong answers."""
    weight: float = 1.0
    """How often it counts."""

    @property
    def rows(self) -> int:
        """Number of labelled tokens."""
        return len(self.tokens) - self.first

    @property
    def size(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.tokens)

    def input_digest(self) -> bytes:
        """SHA-256 of the tokens, of the index of the first label, and of the prompt tokens."""
        return hashlib.sha256(repr((self.tokens, self.first, self.prompt_tokens)).encode()).digest()

    def record_digest(self) -> str:
        """SHA-256 of question and answer, case and spaces normalised (NFC, casefold)."""
        # Normalised before they are joined: split() takes the separator for a space.
        text = "\x1f".join(_normalize(part) for part in (self.question, self.answer))
        return hashlib.sha256(text.encode()).hexdigest()


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def load(path: Path) -> list[Record]:
    """The records of a file, columns checked; needs no tokenizer, so that a bad file is refused before a model loads.

    Columns: `question` and `answer`, or `text`; optionally `id` and, with a question, `options` (wrong answers) and
    `lead` (how the answer begins, such as "The capital of Japan is": given to the model and not labelled).
    """
    return check(read(path), path)


def check(records: list[Record], path: Path) -> list[Record]:
    """The records, if every one can be used. Raises `DataRefused` with the faults of the rest; `path` is their name."""
    faults = [Fault(record.line, what) for record in records if (what := _wrong(record.columns))]
    counts = Counter(_name(record) for record in records)
    faults += [Fault(record.line, "its id occurs twice") for record in records if counts[_name(record)] > 1]
    refuse(path, faults)
    return records


def _name(record: Record) -> str:
    """What the record is called: its id, else its line."""
    return str(record.columns.get("id", f"line-{record.line}"))


def _wrong(columns: dict[str, Any]) -> str:
    """What is wrong with a row, in words without its text; empty where nothing is."""
    wanted = ("text",) if "text" in columns else ("question", "answer")
    missing = [name for name in wanted if name not in columns]
    if missing:
        return f"no '{missing[0]}' (needed: question and answer, or text{_suggest_names(columns, missing)})"
    bad = next((n for n in wanted if not isinstance(columns[n], str) or not columns[n].strip()), "")
    if bad:
        empty = columns[bad] is None or isinstance(columns[bad], str)
        return f"'{bad}' is {'empty' if empty else type(columns[bad]).__name__}, but must be text"
    if "id" in columns and not _is_id(columns["id"]):
        return f"'id' must be a whole number, or text of 1 to {LONGEST_ID} printable letters"
    if not isinstance(columns.get("lead", ""), str):
        return "'lead' must be text (how the answer begins)"
    options = columns.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        return "'options' must be a list of texts (the wrong answers)"
    texts = [*(columns[name] for name in wanted), columns.get("lead", ""), *options]
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        return "a lone surrogate, which is not text"
    if "answer" in columns and columns["answer"] in options:
        return "'options' holds the right answer; list only wrong ones"
    return ""


def _suggest_names(columns: dict[str, Any], missing: list[str]) -> str:
    """Which columns seem to be the missing ones. Only known names are printed: others may be text of a record."""
    known = {name.strip().lower(): name for name in columns}
    seen = {wanted: [known[name] for name in (wanted, *ALSO[wanted]) if name in known] for wanted in missing}
    pairs = [(names[0], wanted) for wanted, names in seen.items() if names]
    return f"; rename {' and '.join(f'{name!r} to {wanted!r}' for name, wanted in pairs)}" if pairs else ""


def _is_id(value: object) -> bool:
    """Whether an id is safe to print in errors, on a terminal and in reports."""
    if isinstance(value, str):
        return bool(value.strip()) and len(value) <= LONGEST_ID and value.isprintable()
    return isinstance(value, int) and not isinstance(value, bool)


WANTED = "texts (.jsonl, .csv)"


def encode_for(records: list[Record], network: Any, path: Path) -> tuple[Passage, ...]:
    """Passages as a language model reads them; tokens that its embedding does not have are refused."""
    passages = encode(records, network.tokenizer, path, network.longest)
    refuse_unknown_tokens(passages, network.vocabulary, path)
    return passages


def encode(records: list[Record], tokenizer: Any, path: Path, longest: int) -> tuple[Passage, ...]:
    """Passages of at most `longest` tokens; a longer text is split, a longer question refused."""
    if not tokenizer.is_fast:
        raise ModelRefused("The tokenizer has no offsets. Use a fast one (a folder with tokenizer.json).")
    passages: list[Passage] = []
    faults: list[Fault] = []
    asks = any("text" not in record.columns for record in records)
    end = end_of_answer(tokenizer) if asks else None  # once: it renders the chat template
    for record in records:
        made = _texts(record, tokenizer, longest) if "text" in record.columns else [_answer(record, tokenizer, end)]
        for passage in made:
            if passage.rows < 1 or any(option.rows < 1 for option in passage.alternatives):
                faults.append(Fault(record.line, "has no labelled token, so nothing can be asked about it"))
            elif (most := max(p.size for p in (passage, *passage.alternatives))) > longest:
                faults.append(Fault(record.line, f"{most} tokens; the model reads {longest}"))
            passages.append(passage)
    refuse(path, faults)
    return tuple(passages)


def prompt_of(question: str, tokenizer: Any) -> str:
    """What the model reads before it answers: the tokenizer's chat template where it has one."""
    if not tokenizer.chat_template:
        return PLAIN_PROMPT.format(question=question)
    return _render(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)


def _render(tokenizer: Any, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # templates are third-party programs and can fail in any way
        kind = type(error).__name__
        raise ModelRefused(f"The tokenizer's chat template failed ({kind}). Fix or remove it.") from error
    return str(text)


def end_of_answer(tokenizer: Any) -> int | None:
    """The token that ends an answer: the special token after the assistant's turn, else the end of text."""
    if tokenizer.chat_template:
        answer = "Lorem ipsum"
        turns = [{"role": "user", "content": "Dolor"}, {"role": "assistant", "content": answer}]
        _, verbatim, tail = _render(tokenizer, turns, add_generation_prompt=False).rpartition(answer)
        tokens = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"] if verbatim else []
        # Not every special token has a role such as eos: Phi-3's <|end|> is merely marked as special.
        special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
        if tokens and tokens[0] in special.union(tokenizer.all_special_ids):
            return int(tokens[0])
    end: int | None = tokenizer.eos_token_id
    return end


def _label(prompt: str, answer: str, tokenizer: Any, end: int | None) -> tuple[tuple[int, ...], int]:
    """Tokens of prompt, answer and end token, and the index of the first one that overlaps the answer."""
    chat = bool(tokenizer.chat_template)
    read = tokenizer(prompt + answer, add_special_tokens=not chat, return_offsets_mapping=True)
    tokens, offsets = list(read["input_ids"]), read["offset_mapping"]
    if tokens and tokens[-1] == end and offsets[-1][0] == offsets[-1][1]:
        tokens, offsets = tokens[:-1], offsets[:-1]
    # Special tokens that the tokenizer adds have empty spans and are not labelled.
    first = next((k for k, (a, b) in enumerate(offsets) if b > max(a, len(prompt))), len(tokens))
    if first < len(tokens) and end is not None:
        tokens.append(end)
    return tuple(tokens), max(first, 1)


def _answer(record: Record, tokenizer: Any, end: int | None) -> Passage:
    question, answer = record.columns["question"], record.columns["answer"]
    name = _name(record)
    prompt = prompt_of(question, tokenizer)
    lead = record.columns.get("lead", "").rstrip()
    begun = prompt + lead
    space = " " if lead else ""
    asked = _prompt_tokens(prompt, tokenizer)

    def passage(text: str, wrong: tuple[Passage, ...]) -> Passage:
        tokens, first = _label(begun, space + text, tokenizer, end)
        return Passage(name, tokens, first, begun, text, question, asked, wrong)

    return passage(answer, tuple(passage(option, ()) for option in record.columns.get("options", [])))


def _prompt_tokens(prompt: str, tokenizer: Any) -> tuple[int, ...]:
    """Tokens of a prompt to continue: without the end token that some tokenizers append to everything."""
    tokens = tuple(tokenizer(prompt.rstrip(" "), add_special_tokens=not tokenizer.chat_template)["input_ids"])
    ends = not tokenizer.chat_template and tokens[-1:] == (tokenizer.eos_token_id,)
    return tokens[:-1] if ends else tokens


def _texts(record: Record, tokenizer: Any, longest: int) -> list[Passage]:
    """A text, split where it is longer than the model's context.

    A piece starts with the last token of the one before, so every token but the first is labelled exactly once.
    """
    text, name = record.columns["text"], _name(record)
    tokens = tuple(tokenizer(text)["input_ids"])
    if len(tokens) <= longest:
        return [Passage(name, tokens, 1, "", text)]
    pieces = [tokens[k : k + longest] for k in range(0, len(tokens) - 1, longest - 1)]
    return [Passage(f"{name}.{k}", piece, 1, "", tokenizer.decode(piece)) for k, piece in enumerate(pieces, start=1)]


def refuse_unknown_tokens(passages: tuple[Passage, ...], vocabulary: int, path: Path) -> None:
    """Refuse passages with token ids beyond the model's embedding (the tokenizer of another model)."""
    read = [one for passage in passages for one in (passage, *passage.alternatives)]
    largest = max(max((*one.tokens, *one.prompt_tokens), default=0) for one in read)
    if largest >= vocabulary:
        raise ModelRefused(
            f"{path}: the tokenizer gives token id {largest}, but the model's embedding has {vocabulary} rows. "
            f"Use the model's own tokenizer."
        )
