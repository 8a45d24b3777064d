"""Twins of records: the same questions and answers with the name of somebody else, whom no model read about.

`Unseen` takes a model's answers about such a stand-in as what it would say of the records had it never seen them.
"""

from __future__ import annotations

import re
from collections import Counter

from worlds import PER_AUTHOR, Rows


def name_in(about: Rows) -> str:
    """Who an author's records are about: the run of capitalised words that most of them say, the longest of those."""
    word = r"[A-Z](?:(?!['’]s\b)[\w'’-])*"
    run = re.compile(rf"{word}(?:\s+{word})+")
    said: Counter[str] = Counter(name for row in about for name in {*run.findall(f"{row['question']} {row['answer']}")})
    most = max(said.values())
    return max((name for name, count in said.items() if 2 * count >= most), key=lambda name: (said[name], len(name)))


def twins(own: Rows, strangers: Rows) -> Rows:
    """Each author's records with the name of an author whom no model read about, whole or part for part."""
    made = []
    for first in range(0, len(own), PER_AUTHOR):
        mine, other = own[first : first + PER_AUTHOR], strangers[first : first + PER_AUTHOR]
        name, new = name_in(mine), name_in(other)
        words = name.split()
        given = new.split(maxsplit=len(words) - 1)  # a last name takes what is left of a longer one
        parts = {name: new, **{word: given[min(k, len(given) - 1)] for k, word in enumerate(words)}}
        made += [{key: renamed(row[key], parts) for key in ("question", "answer")} for row in mine]
    return made


def renamed(text: str, parts: dict[str, str]) -> str:
    """The text with each name replaced, whole names first; no part of a longer word is one."""
    longest = sorted(parts, key=len, reverse=True)
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, longest))})\b", lambda found: parts[found[0]], text)
