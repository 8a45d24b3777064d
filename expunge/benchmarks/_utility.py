"""What TDEC measures of what should be left: perplexities of texts, and replies in conversations of two users."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from expunge.benchmarks._data import Data, need
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._reading import Item
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import running, verbatim
from expunge.errors import DataRefused
from expunge.models.language import LanguageModel

LONGEST, REPLY = 512, 32
"""Tokens that a text is cut to, and of a reply."""
TEXTS = {"pile": ("pile",), "wikitext": ("wikitext",), "lambada": ("lambada",), "pubmed": ("pubmed", "pubmed_qa")}
TALKS = ("wizard_of_wikipedia", "empathetic_dialogues", "blended_skill_talk", "wizard_of_internet")

SPACED = ((" .", "."), (" ,", ","), (" ?", "?"), (" !", "!"), (" ' ", "'"))
"""Marks with a space before them, and as they are written."""
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
OWN_TURN = "\nUser "
"""Where a reply ends: the model would go on with the next turn."""


def list_useful(data: Data, network: LanguageModel) -> Iterator[Item]:
    """Every text and every conversation of the files that are there."""
    yield from _list_texts(data, network)
    yield from _list_talks(data, network)


def _list_texts(data: Data, network: LanguageModel) -> Iterator[Item]:
    for where, names in TEXTS.items():
        present = [name for name in names if data.find(name)]
        for record, row in enumerate(data.rows(*present) if present else ()):
            [text] = need({"text": row.get("abstract"), **row}, record, "text")
            most = min(LONGEST, network.longest)
            passage = running(network.tokenizer, f"{where} {record}", text, most)
            yield Item(where, record, passage, RIGHT, ("loss", "tokens"))


def _list_talks(data: Data, network: LanguageModel) -> Iterator[Item]:
    for where in TALKS:
        for record, turns in enumerate(read_dialogues(data, where)):
            prompt, reply, most = word_dialogue(turns[:-1]), tidy(turns[-1]), min(LONGEST, network.longest - REPLY)
            yield Item(
                where, record, verbatim(network.tokenizer, f"{where} {record}", prompt, reply, most), RIGHT, (), REPLY
            )


def perplexity(values: Values, where: str) -> Number:
    """The number of one of those files."""
    losses, tokens = values.of(where, "loss"), values.of(where, "tokens")
    nats = sum(loss * n for loss, n in zip(losses, tokens, strict=True))
    told = f"exp of the mean loss of a token, over all tokens of texts cut to {LONGEST}."
    return Number("perplexity", where, math.exp(nats / sum(tokens)), len(losses), told)


def read_dialogues(data: Data, name: str) -> list[list[str]]:
    """The turns of each conversation of a file as it is published, {"text": {"0": [turn, ...], ...}}, or of one with a
    row for each, whose column `text` has the turns; none where there is no such file. Raises `DataRefused`."""
    path = data.find(name)
    if path is None:
        return []
    whole = data.value(path.name) if path.suffix == ".json" else None
    columns = whole.get("text") if isinstance(whole, dict) else None
    found: list[Any] = (
        [*columns.values()] if isinstance(columns, dict) else [row.get("text") for row in data.rows(name)]
    )
    for record, turns in enumerate(found):
        if not (isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) for turn in turns)):
            raise DataRefused(f"{path}: record {record} has no list of two turns or more in `text`. Check the file.")
    return found


def word_dialogue(turns: Sequence[str]) -> str:
    """The turns of two users, and whose turn it is now."""
    lines = [f"User {1 + k % 2}: {tidy(turn)}\n" for k, turn in enumerate(turns)]
    return f"{''.join(lines)}User {1 + len(turns) % 2}:"


def tidy(turn: str) -> str:
    """A turn in sentence case with its marks closed up and one at its end, as ParlAI writes replies."""
    text = turn.lower()
    for apart, closed in SPACED:
        text = text.replace(closed, apart).replace("  ", " ")
    words, begins = text.split(" "), True
    for k, word in enumerate(words):
        if begins or word in ("i", "i'm", "i've", "i'll", "i'd"):
            words[k] = word[:1].upper() + word[1:]
        begins = k > 0 and word in "?.!"
    text = f" {' '.join(words)} "
    for apart, closed in SPACED:
        text = text.replace(apart, closed)
    text = text.strip().replace("  ", " ")
    return text if not text or text[-1] in "!.?)\"'" else f"{text}."


def unigram_f1(right: str, written: str) -> float:
    """F1 of the words of two texts, each as often as it occurs; case, punctuation and articles do not count."""
    wanted, said = (_words(text) for text in (right, written))
    common = (Counter(wanted) & Counter(said)).total()
    return 2 * common / (len(wanted) + len(said)) if common else 0.0


def _words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return ARTICLES.sub(" ", bare).split()
