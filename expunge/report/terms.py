"""What sets, audits and rules are called where a page speaks to people who do not know the field's names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from expunge.primitives.meanings import meaning_of
from expunge.report.answers import Outcome


@dataclass(frozen=True)
class Term:
    """An audit in plain words."""

    name: str
    """What it is called in a sentence."""
    meaning: str
    """What its number is, under the audit's own name."""


TERMS = {
    "Choice": Term(
        "right answers among the options", "how often it finds the right answer likelier than each wrong option given"
    ),
    "Accuracy": Term("right classes", "how often the right class, or next word, comes first"),
    "ExactMatch": Term("answers known by heart", "how often each token of the right answer comes first"),
    "Rouge": Term("the right answer as it writes it", "how much of the right answer it writes when it is asked"),
    "Loss": Term("loss of the right answer", "how unlikely the right answer is to it, in nats; 0 is certain"),
    "Probability": Term("probability of the right answer", "how likely the right answer is to it, by token"),
    "Perplexity": Term("perplexity", "among how many tokens it wavers, on average, at each token of the right text"),
    "TruthRatio": Term("truth ratio", "how likely wrong answers are to it beside the right one"),
    "LossMembership": Term(
        "telling forgotten from never seen records by their loss",
        "how often an attacker is right who holds the likelier of two records for the trained one; 0.5 is guessing",
    ),
    "MinK": Term(
        "telling forgotten from never seen records by their least likely tokens",
        "the same, where the attacker looks at each record's least likely tokens; 0.5 is guessing",
    ),
    "MinKPlusPlus": Term(
        "telling forgotten from never seen records by how their tokens stand out",
        "the same, where the attacker holds each token against all that could stand in its place; 0.5 is guessing",
    ),
    "LinearProbe": Term("answers read out of hidden states", "how often a probe of hidden states finds the answer"),
}
SETS = {
    "forget": "what should be gone",
    "paraphrase": "the same, asked in other words",
    "retain": "what should stay; training reads it",
    "general": "what the model can do besides",
    "neutral": "plain prose, as it reads it",
    "neighbour": "near what should be gone, and should stay",
    "neighbours": "near what should be gone, and should stay",
    "holdout": "never seen in training",
}
MEANT = {"gone": "what should be gone", "kept": "what should stay", "never": "never seen in training"}
"""Of sets that go by other names, or were declared to be what their names do not say."""
NAMED = re.compile(rf"(\w[\w -]*?)\.({'|'.join(TERMS)})\b")


def meaning(where: str) -> str:
    """What a set is for, in plain words."""
    if " vs " in where:
        return "can the two be told apart?"
    meant = meaning_of(where)
    told = MEANT.get(meant or "", "")
    return SETS.get(where, told) if meant == meaning_of(str(where)) else told


def colour(where: str) -> str:
    """The page's style for a set."""
    return {"gone": "gone", "kept": "kept"}.get(meaning_of(where) or "", "other")


def explain(audit: str) -> str:
    """What an audit's number is; empty where nobody has said it in plain words."""
    return TERMS[audit].meaning if audit in TERMS else ""


def name_finding(where: str, audit: str) -> str:
    """`right answers among the options (paraphrase)`; the forget set goes without saying."""
    of = "" if where == "forget" or " vs " in where else f" ({where})"
    return f"{TERMS[audit].name if audit in TERMS else audit}{of}"


def name_rule(rule: Outcome) -> str:
    """What a rule is about, in plain words; of a condition, the whole of it."""
    where, audit = parts_of(rule)
    return name_finding(where, audit) if audit else rule.rule


def parts_of(rule: Outcome) -> tuple[str, str]:
    """The set and the audit that a rule is about; empty where it is of neither."""
    named = None if rule.condition else re.match(r"([\w -]+?)\s*\.\s*(\w+)", rule.rule)
    return (named[1], named[2]) if named else ("", "")


def in_plain_words(text: str) -> str:
    """A sentence of a verdict with `SET.AUDIT` spelled out."""
    return NAMED.sub(lambda found: name_finding(found[1], found[2]), text)


def begin(sentence: str) -> str:
    """The sentence with a capital letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]
