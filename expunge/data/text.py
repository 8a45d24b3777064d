"""Questions with answers, conversations and plain texts, from files to labelled tokens.

The prompt is masked by the offsets of one tokenisation, not by tokenising it a second time: where a prompt ends in a
space, byte-level BPE merges the space into the first answer token, which a count of prompt tokens would mask too.
A conversation is one passage for each turn of the assistant, with all that came before as its prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.core.request import Example
from expunge.data.chat import Chat, MisfitError, Turns, Written, check_arguments
from expunge.data.formats import FormatError, add_system, answers_in, paraphrase_of, read_row, turns_of
from expunge.data.records import LONGEST_ID, WEIGHT, Fault, Record, is_id, read, refuse, rename, weight_of
from expunge.errors import ModelRefused, UsageRefused

ALSO = {
    "question": ("prompt", "instruction", "input", "query", "problem"),
    "answer": ("completion", "response", "output", "answers", "solution"),
    "text": ("content", "document"),
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
    """The question as the file has it; of a conversation all that came before; empty for a plain text."""
    prompt_tokens: tuple[int, ...] = field(repr=False, default=())
    """Tokens of the prompt, without a lead: the input that a continuation is generated from."""
    alternatives: tuple[Passage, ...] = field(repr=False, default=())
    """The same prompt with wrong answers."""
    weight: float = 1.0
    """How often it counts."""
    lead: str = field(repr=False, default="")
    """How the answer begins, given to the model and not labelled."""

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
        """SHA-256 of question, answer and lead, case and spaces normalised (NFC, casefold)."""
        return _digest(self.question, self.answer, *([self.lead] if self.lead else []))

    def fact_digest(self) -> str:
        """SHA-256 of question and answer, normalised likewise."""
        return _digest(self.question, self.answer)


def _digest(*parts: str) -> str:
    # Normalised before they are joined: split() takes the separator for a space.
    return hashlib.sha256("\x1f".join(map(_normalize, parts)).encode()).hexdigest()


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


@dataclass(frozen=True)
class Reading:
    """How texts are read where their file does not say it."""

    system: str = ""
    """System turn of every question that has none."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given beside the messages, such as {"enable_thinking": False}."""
    block_size: int = 0
    """Most tokens of a piece of a text; 0: as many as the model reads."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Where a file has what we call `question`, `answer`, ...: {"question": "query"}; none where it says so itself."""

    def __post_init__(self) -> None:
        if self.block_size < 0 or self.block_size == 1:
            raise UsageRefused(f"--block-size must be at least 2 tokens, of which one is a row. Got {self.block_size}.")

    def options(self) -> dict[str, Any]:
        """The options of the command that say the same; empty ones mean nothing."""
        return {
            "system": self.system,
            "chat_template_kwargs": json.dumps(dict(self.template)) if self.template else "",
            "block_size": self.block_size,
            "columns": ",".join(f"{ours}={theirs}" for ours, theirs in self.columns.items()),
        }

    def load(self, path: Path) -> list[Record]:
        """The records of a file, checked, with what it does not say. Raises `DataRefused`."""
        return self.check(read(path), path)

    def check(self, records: list[Record], path: Path) -> list[Record]:
        """Records as a file or a list has them, checked, with what they do not say; `path` is their name."""
        return self.apply(check(rename(records, self.columns, path), path))

    def apply(self, records: list[Record]) -> list[Record]:
        """Checked records with what their file does not say."""
        return [replace(record, columns=self._columns(record.columns)) for record in records]

    def _columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        made = add_system(columns, self.system) if self.system.strip() else dict(columns)
        if "text" in columns:
            return {**made, "block_size": self.block_size} if self.block_size else made
        given = {**self.template, **columns.get("chat_template_kwargs", {})}
        return {**made, "chat_template_kwargs": given} if given else made


def load(path: Path) -> list[Record]:
    """The records of a file, columns checked; needs no tokenizer, so that a bad file is refused before a model loads.

    Columns: `question` and `answer`, or `text`, or those of another format (`formats.py`); optionally `id` and, with a
    question, `options` (wrong answers to the last question) and `lead` (how its answer begins, such as "The capital of
    Japan is": given to the model and not labelled).
    """
    return check(read(path), path)


def check(records: list[Record], path: Path) -> list[Record]:
    """The records, each as a text, a question with its answer, or a conversation, if every one can be used.

    Raises `DataRefused` with the faults of the rest; `path` is their name.
    """
    made: list[Record] = []
    faults: list[Fault] = []
    for record in records:
        try:
            columns = read_row(record.columns)
            what = "" if _is_blank(columns) else _wrong(columns)
        except FormatError as error:
            what = str(error)
        if what:
            faults.append(Fault(record.line, what))
        else:
            made.append(Record(record.line, columns))
    if all(_is_blank(record.columns) for record in made):
        faults += [Fault(record.line, _wrong(record.columns)) for record in made]
    counts = Counter(_name(record) for record in records)
    faults += [Fault(record.line, "its id occurs twice") for record in records if counts[_name(record)] > 1]
    refuse(path, faults)
    return made


def drop_blank(records: list[Record]) -> list[Record]:
    """The records without the empty texts, which some corpora hold: there is nothing in them to ask."""
    return [record for record in records if not _is_blank(record.columns)]


def _is_blank(columns: Mapping[str, Any]) -> bool:
    """Whether a row is a text without a letter, and nothing else that could be asked."""
    text = columns.get("text")
    return isinstance(text, str) and not text.strip() and "question" not in columns


def paraphrases(records: list[Record], path: Path) -> list[Record]:
    """Each record in the other words that its file has for it; those that have none are left out."""
    reworded = [(record.line, paraphrase_of(record.columns)) for record in records]
    return check([Record(line, columns) for line, columns in reworded if columns], path)


def _name(record: Record) -> str:
    """What the record is called: its id, else its line."""
    return str(record.columns.get("id", f"line-{record.line}"))


def _wrong(columns: dict[str, Any]) -> str:
    """What is wrong with a row, in words without its text; empty where nothing is."""
    wanted = ("messages",) if "messages" in columns else ("text",) if "text" in columns else ("question", "answer")
    missing = [name for name in wanted if name not in columns]
    if missing:
        return f"no '{missing[0]}' (needed: question and answer, or text{_suggest_names(columns, missing)})"
    said = [columns[name] for name in wanted] if "messages" not in columns else []
    bad = next((n for n, each in zip(wanted, said, strict=False) if not isinstance(each, str) or not each.strip()), "")
    if bad:
        empty = columns[bad] is None or isinstance(columns[bad], str)
        return f"'{bad}' is {'empty' if empty else type(columns[bad]).__name__}, but must be text"
    if "id" in columns and not is_id(columns["id"]):
        return f"'id' must be a whole number, or text of 1 to {LONGEST_ID} printable letters"
    if not isinstance(columns.get("lead", ""), str):
        return "'lead' must be text (how the answer begins)"
    given = columns.get("chat_template_kwargs", {})
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        return "'chat_template_kwargs' must be an object of names and values"
    if not 0 <= weight_of(columns) < math.inf:
        return f"'{WEIGHT}' must be a number of at least 0 (how often the record counts)"
    options = columns.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        return "'options' must be a list of texts (the wrong answers)"
    said += [turn["content"] for turn in columns.get("messages", ())]
    texts = [*said, columns.get("system", ""), columns.get("lead", ""), *options]
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        return "a lone surrogate, which is not text"
    if said[-1] in options:
        return "'options' holds the right answer; list only wrong ones"
    return ""


def _suggest_names(columns: dict[str, Any], missing: list[str]) -> str:
    """Which columns seem to be the missing ones. Only known names are printed: others may be text of a record."""
    known = {name.strip().lower(): name for name in columns}
    seen = {wanted: [known[name] for name in (wanted, *ALSO[wanted]) if name in known] for wanted in missing}
    pairs = [(names[0], wanted) for wanted, names in seen.items() if names]
    return f"; rename {' and '.join(f'{name!r} to {wanted!r}' for name, wanted in pairs)}" if pairs else ""


WANTED = "texts (.jsonl, .json, .csv)"


def count_apart(records: list[Record], passages: Sequence[Example]) -> tuple[int, int]:
    """How many records became several passages, and how many these are."""
    whole = {passage.id for passage in passages}
    apart = sum(_name(record) not in whole for record in records)
    return apart, len(passages) - len(records) + apart


def encode_for(records: list[Record], network: Any, path: Path) -> tuple[Passage, ...]:
    """Passages as a language model reads them; tokens that its embedding does not have are refused."""
    passages = encode(records, network.tokenizer, path, network.longest)
    refuse_unknown_tokens(passages, network.vocabulary, path)
    return passages


def encode(records: list[Record], tokenizer: Any, path: Path, longest: int) -> tuple[Passage, ...]:
    """Passages of at most `longest` tokens; a longer text is split, a longer question refused."""
    return tuple(passage for made in encode_each(records, tokenizer, path, longest) for passage in made)


def encode_each(records: list[Record], tokenizer: Any, path: Path, longest: int) -> list[list[Passage]]:
    """The passages of each record."""
    if not tokenizer.is_fast:
        raise ModelRefused("The tokenizer has no offsets. Use a fast one (a folder with tokenizer.json).")
    passages: list[list[Passage]] = []
    faults: list[Fault] = []
    writer = Writer(tokenizer)
    for record in records:
        try:
            made = _texts(record, tokenizer, longest) if "text" in record.columns else writer.write(record)
        except MisfitError as error:
            faults.append(Fault(record.line, str(error)))
            continue
        for passage in made:
            if passage.rows < 1 or any(option.rows < 1 for option in passage.alternatives):
                faults.append(Fault(record.line, "has no labelled token, so nothing can be asked about it"))
            elif (most := max(p.size for p in (passage, *passage.alternatives))) > longest:
                faults.append(Fault(record.line, f"{most} tokens; the model reads {longest}"))
        weight = weight_of(record.columns)
        passages.append(made if weight == 1 else [replace(passage, weight=weight) for passage in made])
    refuse(path, faults)
    return passages


def prompt_of(question: str, tokenizer: Any) -> str:
    """What stands before the answer to a question: by the tokenizer's chat template where it has one."""
    turns = turns_of({"question": question, "answer": "?"})
    return Chat.of(tokenizer, {}).around(turns)[0] if tokenizer.chat_template else _plain(turns).before


class Writer:
    """Writes what is asked, through the tokenizer's chat template where it has one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._chats: dict[str, Chat] = {}

    def write(self, record: Record) -> list[Passage]:
        """A passage for each of the record's answers. Raises `MisfitError` where the template changes one."""
        columns, places = record.columns, answers_in(record.columns)
        turns, name = turns_of(columns), _name(record)
        last = [columns.get("options", []), columns.get("lead", "").rstrip()]
        made = []
        for number, place in enumerate(places, start=1):
            options, lead = last if place == len(turns) - 1 else ([], "")
            called = f"{name}.{number}" if len(places) > 1 else name
            write = self._choose_writing(columns)
            wrong = tuple(
                self._passage(called, turns[:place], {**turns[place], "content": option}, lead, write)
                for option in options
            )
            own = self._passage(called, turns[:place], turns[place], lead, write)
            made.append(replace(own, alternatives=wrong))
        return made

    def _choose_writing(self, columns: Mapping[str, Any]) -> Callable[[Turns], Written]:
        """What writes a row's conversations."""
        given = columns.get("chat_template_kwargs", {})
        if not self.tokenizer.chat_template:
            check_arguments(self.tokenizer, given)
            return _verbatim if columns.get("verbatim") else _plain
        key = repr(sorted(given.items()))
        if key not in self._chats:
            self._chats[key] = Chat.of(self.tokenizer, given)
        return self._chats[key].write

    def _passage(
        self, name: str, asked: Turns, turn: Mapping[str, Any], lead: str, write: Callable[[Turns], Written]
    ) -> Passage:
        answer = turn["content"]
        written = write([*asked, {**turn, "content": f"{lead} {answer}"} if lead else turn])
        begun = written.start + len(lead)
        tokens, first = _label(written, begun, self.tokenizer)
        prompt = _prompt_tokens(written.before, self.tokenizer)
        return Passage(name, tokens, first, written.text[:begun], answer, _question(asked), prompt, lead=lead)


def _question(asked: Turns) -> str:
    """The text of what was asked; with roles where there is more than a question."""
    if len(asked) == 1:
        return str(asked[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)


def _plain(turns: Turns) -> Written:
    """Without a chat template: each question after `Question:`, each answer after `Answer:`."""
    *asked, last = turns
    begins = {"user": "Question: ", "assistant": "Answer: ", "system": "", "tool": "Result: "}
    before = "".join(f"{begins[turn['role']]}{turn['content']}\n" for turn in asked) + begins["assistant"]
    return Written(before + last["content"], len(before), len(before) + len(last["content"]))


def _verbatim(turns: Turns) -> Written:
    """Without a chat template, a prompt and what completes it: as they are, nothing between them."""
    before, text = turns[0]["content"], "".join(turn["content"] for turn in turns)
    return Written(text, len(before), len(text))


def _label(written: Written, begun: int, tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """Tokens up to the end token, and the index of the first one that overlaps the answer from `begun` on."""
    read = tokenizer(written.text, add_special_tokens=not tokenizer.chat_template, return_offsets_mapping=True)
    tokens, offsets = list(read["input_ids"]), read["offset_mapping"]
    end = tokenizer.eos_token_id
    if tokens and tokens[-1] == end and offsets[-1][0] == offsets[-1][1]:
        tokens, offsets = tokens[:-1], offsets[:-1]
    # Special tokens that the tokenizer adds have empty spans and are not labelled.
    over = (k for k, (a, b) in enumerate(offsets) if b > max(a, begun) and a < written.stop)
    first = next(over, None)
    if first is None:
        return tuple(tokens), max(len(tokens), 1)
    if not written.ends and end is not None:
        tokens.append(end)
    return tuple(tokens), max(first, 1)


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
    longest = min(longest, record.columns.get("block_size", longest))
    tokens = tuple(tokenizer(text)["input_ids"])
    if len(tokens) <= longest:
        return [Passage(name, tokens, 1, "", text)]
    pieces = [tokens[k : k + longest] for k in range(0, len(tokens) - 1, longest - 1)]
    return [Passage(f"{name}.{k}", piece, 1, "", tokenizer.decode(piece)) for k, piece in enumerate(pieces, start=1)]


def refuse_unknown_tokens(passages: Sequence[Passage], vocabulary: int, path: Path) -> None:
    """Refuse passages with token ids beyond the model's embedding (the tokenizer of another model)."""
    read = [one for passage in passages for one in (passage, *passage.alternatives)]
    largest = max(max((*one.tokens, *one.prompt_tokens), default=0) for one in read)
    if largest >= vocabulary:
        raise ModelRefused(
            f"{path}: the tokenizer gives token id {largest}, but the model's embedding has {vocabulary} rows. "
            f"Use the model's own tokenizer."
        )
