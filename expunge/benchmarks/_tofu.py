"""TOFU's texts and numbers under each of the three definitions that are in use."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expunge.benchmarks._data import Data, need
from expunge.benchmarks._deep import GRADIENT
from expunge.benchmarks._logs import write_log
from expunge.benchmarks._numbers import (
    MEMBERSHIP,
    Mean,
    Number,
    mean,
    membership,
    option_probabilities,
    probabilities,
    truth_ratios,
    truth_scores,
)
from expunge.benchmarks._reading import Item
from expunge.benchmarks._values import PARAPHRASE, RIGHT, WRONG, Column, Values
from expunge.benchmarks._wording import Counting, Wording
from expunge.errors import DataRefused
from expunge.primitives.statistics import harmonic_mean

GENERAL = ("real_authors", "world_facts")
"""Sets of questions with options, whose right answer is the original."""
USEFUL = ("retain", *GENERAL)
"""Sets that model utility is of."""
ROOM = 200
"""Tokens of a continuation, or of the whole with its prompt."""
TOKENS = ("loss", "tokens")
KNOWN = ("extraction_strength", "exact_memorisation")
ATTACKS = ("min_k", "min_k_plus", "zlib")


@dataclass(frozen=True)
class Definition:
    """What a name such as "released" stands for."""

    averaged: Mean
    """How the wrong answers of a truth ratio are averaged."""
    options: Literal["raw", "normalised"]
    """Whether options are weighed by their whole probability, or by that to the power 1 / tokens."""
    first: int | None
    """How many questions of the forget and the retain set are asked; None: all."""
    counting: Counting
    room: Literal["with prompt", "without prompt"]
    """What a continuation's 200 tokens hold."""


DEFINITIONS = {
    "paper": Definition("arithmetic", "raw", 300, "released", "with prompt"),
    "released": Definition("geometric", "normalised", 300, "released", "with prompt"),
    "open-unlearning": Definition("geometric", "normalised", None, "open-unlearning", "without prompt"),
}


def items(split: str, data: Data, wording: Wording, by: Definition, gradients: bool) -> Iterator[Item]:
    """Every text of TOFU; those of the forget and the holdout set are measured as an attacker does, too."""
    attacked = (*TOKENS, *ATTACKS, *((GRADIENT,) if gradients else ()))
    yield from _questions("forget", data.rows(f"{split}_perturbed"), wording, by, (*attacked, *KNOWN))
    yield from _questions("retain", data.rows("retain_perturbed"), wording, by, TOKENS)
    for where in GENERAL:
        yield from _questions(where, data.rows(f"{where}_perturbed"), wording, by, TOKENS)
    holdout = split.replace("forget", "holdout")
    if data.find(holdout):
        for record, row in enumerate(data.rows(holdout)):
            question, answer = need(row, record, "question", "answer")
            [passage] = wording.write(f"holdout {record}", question, [answer])
            yield Item("holdout", record, passage, RIGHT, attacked)


def _questions(
    where: str, rows: list[Mapping[str, Any]], wording: Wording, by: Definition, measures: tuple[str, ...]
) -> Iterator[Item]:
    for record, row in enumerate(rows if where in GENERAL else rows[: by.first]):
        question, answer = need(row, record, "question", "answer")
        wrong = row.get("perturbed_answer")
        if not isinstance(wrong, list) or not wrong or not all(isinstance(each, str) for each in wrong):
            raise DataRefused(f"Record {record} of {where} has no list of wrong answers (perturbed_answer).")
        paraphrase = [] if where in GENERAL else need(row, record, "paraphrased_answer")
        passage, *others = wording.write(f"{where} {record}", question, [answer, *paraphrase, *wrong])
        room = ROOM - (len(passage.prompt_tokens) if by.room == "with prompt" else 0)
        yield Item(where, record, passage, RIGHT, measures, max(1, room))
        named = [PARAPHRASE] * len(paraphrase) + [f"{WRONG} {number}" for number in range(1, len(wrong) + 1)]
        yield from (Item(where, record, each, name, TOKENS) for name, each in zip(named, others, strict=True))


def ratios(values: Values, where: str, by: Definition) -> list[float]:
    """The truth ratio of each question of a set. TOFU's own logs read the general sets' answers twice, the second time
    as the paraphrase, and its script takes that."""
    first = None if where in GENERAL else by.first
    wrong = values.wrong(where, "loss", first)
    if not wrong and by.averaged == "geometric" and values.has(where, "truth_ratio"):
        return values.of(where, "truth_ratio", RIGHT, first)
    if not wrong:
        raise DataRefused(f"The losses of the wrong answers of '{where}' are not there, of which R is made anew.")
    right = PARAPHRASE if values.has(where, "loss", PARAPHRASE) else RIGHT
    return truth_ratios(values.of(where, "loss", right, first), wrong, by.averaged)


def _weigh_options(values: Values, where: str, by: Definition) -> list[float]:
    """The probability of each right answer among its options."""
    right, wrong = values.of(where, "loss"), values.wrong(where, "loss")
    if by.options == "normalised":
        return option_probabilities(right, wrong)
    sums = [loss * n for loss, n in zip(right, values.of(where, "tokens"), strict=True)]
    counts = values.wrong(where, "tokens")
    others = [[loss * n for loss, n in zip(*each, strict=True)] for each in zip(wrong, counts, strict=True)]
    return option_probabilities(sums, others, least=0.0)


def parts(values: Values, where: str, by: Definition) -> Iterator[Number]:
    """Probability, ROUGE and truth ratio of a set, as far as its values are there."""
    first = None if where in GENERAL else by.first
    if values.has(where, "loss"):
        told = "Mean of exp(-mean loss of a token of the answer)."
        yield mean("probability", where, probabilities(values.of(where, "loss", RIGHT, first)), told)
    if where in GENERAL and values.wrong(where, "loss"):
        told = f"Mean of p / (p + sum of p of the wrong answers), p {by.options}."
        yield mean("option probability", where, _weigh_options(values, where, by), told)
    if values.has(where, "rouge"):
        told = "Mean ROUGE-L recall, stemmed, of the greedy continuation against the answer."
        yield mean("ROUGE", where, values.of(where, "rouge", RIGHT, first), told)
    if values.has(where, "truth_ratio") or values.wrong(where, "loss"):
        gone = where == "forget"
        told = f"Mean of {'min(R, 1/R)' if gone else 'max(0, 1 - R)'}, R with the {by.averaged} mean of wrong answers."
        yield mean("truth ratio", where, truth_scores(ratios(values, where, by), gone), told)


def alone(values: Values, by: Definition) -> Iterator[Number]:
    """What is known of the model without a reference: of each set, of its memory, its utility, and of its members."""
    found = {where: list(parts(values, where, by)) for where in ("forget", *USEFUL)}
    for each in found.values():
        yield from each
    nine = [number for where in USEFUL for number in found[where] if (number.name, where) in NINE]
    if len(nine) == len(NINE):
        utility, n = harmonic_mean([number.value or 0.0 for number in nine]), sum(number.n for number in nine[::3])
        yield Number("model utility", "all", utility, n, NINE_TOLD)
    for measure, told in (("extraction_strength", EXTRACTED), ("exact_memorisation", EXACT)):
        if values.has("forget", measure):
            yield mean(measure.replace("_", " "), "forget", values.of("forget", measure, RIGHT, by.first), told)
    for measure in MEMBERSHIP:
        if all(values.has(where, measure) for where in ("forget", "holdout")):
            yield membership(values, measure)


NINE = {
    *((name, "retain") for name in ("probability", "ROUGE", "truth ratio")),
    *((name, where) for where in GENERAL for name in ("option probability", "ROUGE", "truth ratio")),
}
"""The parts of model utility."""
NINE_TOLD = (
    "Harmonic mean of probability (of the options, where there are any), ROUGE and truth ratio of the three sets."
)
EXTRACTED = "Mean of 1 - k / n: given its first k tokens, a model says the other n - k of the answer (1 / n at least)."
EXACT = "Mean share of the answer's tokens, end token aside, that have the highest score."


OPEN_UNLEARNING = {
    ("probability", "forget"): "forget_Q_A_Prob",
    ("ROUGE", "forget"): "forget_Q_A_ROUGE",
    ("truth ratio", "forget"): "forget_truth_ratio",
    **{
        (name, where): f"{letters}_{theirs}"
        for where, letters in (("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf"))
        for name, theirs in (
            ("probability", "Q_A_Prob"),
            ("option probability", "Q_A_Prob_normalised"),
            ("ROUGE", "Q_A_ROUGE"),
            ("truth ratio", "Truth_Ratio"),
        )
    },
    ("extraction strength", "forget"): "extraction_strength",
    ("exact memorisation", "forget"): "exact_memorization",
    ("model utility", "all"): "model_utility",
    ("forget quality", "forget"): "forget_quality",
    ("PrivLeak", "forget vs holdout"): "privleak",
    **{
        (f"membership by {ours}", "forget vs holdout"): theirs
        for theirs, ours in (
            ("mia_loss", "loss"),
            ("mia_min_k", "min_k"),
            ("mia_min_k_plus_plus", "min_k_plus"),
            ("mia_zlib", "zlib"),
            ("mia_gradnorm", "gradient_norm"),
        )
    },
}
"""open-unlearning's names of our numbers."""


def with_ratios(values: Values) -> Values:
    """The values with the geometric truth ratio of each question, which open-unlearning's logs hold too."""
    by = DEFINITIONS["open-unlearning"]
    made = {}
    for where in ("forget", *USEFUL):
        if values.wrong(where, "loss"):
            records = values.records(where, "loss")
            made[Column(where, "truth_ratio")] = dict(zip(records, ratios(values, where, by), strict=True))
    return values.join(Values(made))


def totals(values: Values) -> dict[str, float]:
    """open-unlearning's `agg_value` of everything that is of the model alone."""
    by = DEFINITIONS["open-unlearning"]
    known: dict[str, float] = {}
    for number in alone(values, by):
        name = OPEN_UNLEARNING.get((number.name, number.set))
        if name is not None and number.value is not None:
            known[name] = number.value
    for letters, where in (("forget", "forget"), ("retain", "retain"), ("ra", "real_authors"), ("wf", "world_facts")):
        if values.has(where, "loss", PARAPHRASE):
            known[f"{letters}_Q_A_PARA_Prob"] = statistics.mean(probabilities(values.of(where, "loss", PARAPHRASE)))
        wrong = [p for each in values.wrong(where, "loss") for p in probabilities(each)]
        if wrong:
            known[f"{letters}_Q_A_PERT_Prob"] = statistics.mean(wrong)
    return known


def write_result(values: Values, numbers: Sequence[Number]) -> str:
    """The result as open-unlearning writes its own; of several references the last one's comparison."""
    named = {OPEN_UNLEARNING.get((n.name, n.set)): n.value for n in numbers if n.against}
    compared = {name: value for name, value in named.items() if name is not None and value is not None}
    return write_log(with_ratios(values), {**totals(values), **compared})
