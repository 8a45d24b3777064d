"""How much of one text is in another: ROUGE (Lin, 2004), and overlaps of n-grams (Jang et al., 2022, 2210.01504)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

Words = Literal["stemmed", "as they are"]


@dataclass(frozen=True)
class Rouge:
    """What a text has in common with the right one, each from 0 to 1."""

    recall: float
    """ROUGE-L recall: the longest common subsequence, as a share of the right text."""
    f1: float
    """ROUGE-L F1."""
    words: float
    """ROUGE-1 recall: common words, as a share of the right text's."""


def rouge(right: Sequence[str], written: Sequence[str], words: Words = "stemmed") -> list[Rouge]:
    """Of each pair, by Google's `rouge-score`, which splits at all that is neither a letter of a to z nor a digit."""
    scorer = _scorer(words)
    pairs = [scorer.score(truth, text) for truth, text in zip(right, written, strict=True)]
    return [Rouge(each["rougeL"].recall, each["rougeL"].fmeasure, each["rouge1"].recall) for each in pairs]


@cache
def _scorer(words: Words) -> Any:
    """The scorer; it stems each word once, since most occur again and stemming takes longer than all else."""
    from nltk.stem.porter import PorterStemmer  # what rouge-score stems with; both take a second to import
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    stemmer = SimpleNamespace(stem=cache(PorterStemmer().stem)) if words == "stemmed" else None
    split = SimpleNamespace(tokenize=lambda text: tokenize(text, stemmer))
    return RougeScorer(["rouge1", "rougeL"], tokenizer=split)


def share_of_ngrams(one: Sequence[int], other: Sequence[int], n: int) -> float:
    """How many of the n-grams of `one` occur in `other`, over the number of n-grams of `other`; 0 where it has none."""
    wanted = [tuple(other[k : k + n]) for k in range(len(other) - n + 1)]
    known = set(wanted)
    found = sum(tuple(one[k : k + n]) in known for k in range(len(one) - n + 1))
    return found / len(wanted) if wanted else 0.0


def recall_of_words(right: str, written: str) -> float:
    """ROUGE-L recall as the `rouge` package has it, which RWKU uses: words are what spaces part, as they are; sentences
    end at full stops; of each pair of sentences the words of a longest common subsequence count, each once."""
    wanted, said = ([sentence.split() for sentence in text.split(".") if sentence.split()] for text in (right, written))
    words = {word for sentence in wanted for word in sentence}
    common = {word for one in wanted for other in said for word in _common_words(one, other)}
    return len(common) / len(words) if words else 0.0


def _common_words(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several the one that is found from the ends, by shortening `other` first."""
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for k, word in enumerate(one):
        for j, their in enumerate(other):
            lengths[k + 1][j + 1] = lengths[k][j] + 1 if word == their else max(lengths[k][j + 1], lengths[k + 1][j])
    found: list[str] = []
    k, j = len(one), len(other)
    while k and j:
        if one[k - 1] == other[j - 1]:
            found.append(one[k - 1])
            k, j = k - 1, j - 1
        elif lengths[k - 1][j] > lengths[k][j - 1]:
            k -= 1
        else:
            j -= 1
    return found
