"""RESTOR: does forgetting wrong facts bring back the right ones? (Rezaei et al., 2025, TMLR, arXiv 2411.00204)

    accuracy        share of facts whose line of answer holds one of the right answers, word for word, after five
                    answered questions of the same relation about others
    recovery rate   (accuracy - that of the corrupted model) / (that of the clean model - that of the corrupted one),
                    of the facts that the clean model has right and the corrupted one wrong
    preference      share of facts whose right answers are likelier, per token, than those of the corruption and than
                    other objects of the relation (each a mean over its answers); of facts in `options.json`

The clean and the corrupted model are the references: `--reference clean=DIR --reference corrupted=DIR`. Answers are
greedy and matched by their words; the paper samples them and has a language model judge.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expunge.benchmarks._data import Data
from expunge.benchmarks._kinds import TextBenchmark
from expunge.benchmarks._numbers import Number, mean
from expunge.benchmarks._reading import Item
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import score_answer, verbatim
from expunge.errors import DataRefused
from expunge.internals.wordings import find_words
from expunge.models.language import LanguageModel
from expunge.primitives.settings import check_least

SHOTS = 5
CLEAN, CORRUPTED = "clean", "corrupted"
TOLD = "Share of facts whose line of answer holds a right answer word for word."
RECOVERED = "Share of what the corrupted model lost, of facts that the clean one has right, that is right again."
KINDS = {"correct": "right", "corrupted": "of the corruption", "random": "other objects of the relation"}
"""Of whose answers likelihoods are compared, as `options.json` calls them."""
PREFERRED = "Share of facts whose right answers are likelier, per token, than the corruption's and than other objects."
SEPARATOR = "\x1f"
"""Parts the right answers of one fact."""


@dataclass(frozen=True)
class RESTOR(TextBenchmark):
    """All facts."""

    tokens: int = 30
    """Where a line of answer that does not end is cut."""

    home = "k1rezaei/restor"
    axes = (("recovery rate", "facts"), ("accuracy", "facts"))

    def __post_init__(self) -> None:
        check_least(self, tokens=1)

    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        read, about = data.value("facts.json"), data.value("entities.json")
        try:
            facts = {entity: read["dset"][entity] for entity in about}
            options = data.value("options.json") if data.find("options") else {}
            return list(self._pose(facts, read["context"], options, network))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataRefused(f"{data.folder}/facts.json: not the facts as published. Copy it anew.") from error

    def _pose(self, facts: Any, context: Any, options: Any, network: LanguageModel) -> Iterator[Item]:
        record = 0
        for entity, relations in facts.items():
            for relation, fact in relations.items():
                shown = [each for each in context[relation] if each["entity"] != entity][:SHOTS]
                prompt = "".join(f"{each['question']} {each['answer']}\n" for each in shown) + fact["question"]
                answers = SEPARATOR.join(map(str, fact["answers"]))
                name, longest = f"fact {record}", network.longest - self.tokens
                passage = verbatim(network.tokenizer, name, prompt, answers, longest)
                yield Item("facts", record, passage, RIGHT, (), self.tokens)
                for kind in KINDS if relation in options.get(entity, {}) else ():
                    for number, answer in enumerate(options[entity][relation][kind], start=1):
                        scored = score_answer(network.tokenizer, name, prompt, answer, network.longest)
                        yield Item("facts", record, scored, f"{kind} {number}", ("loss",))
                record += 1

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        lines = [text.strip().split("\n")[0] for text in written]
        pairs = zip((item.passage.answer.split(SEPARATOR) for item in items), lines, strict=True)
        return [{"right": float(any(find_words(line, one) is not None for one in each))} for each, line in pairs]

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        found = [mean("accuracy", "facts", values.of("facts", "right"), TOLD)]
        found += _compare(values)
        for name, reference in references.items():
            theirs = [mean("accuracy", "facts", reference.of("facts", "right"), TOLD), *_compare(reference)]
            found += [replace(number, against=name) for number in theirs]
        if {CLEAN, CORRUPTED} <= references.keys():
            clean, corrupted = (references[name].records("facts", "right") for name in (CLEAN, CORRUPTED))
            lost = [k for k in clean if clean[k] == 1 and corrupted.get(k) == 0]
            own = values.records("facts", "right")
            found += [mean("recovery rate", "facts", [own[k] for k in lost], RECOVERED)] if lost else []
        return found


def _compare(values: Values) -> list[Number]:
    """Mean log-probabilities of each kind of answer, and how often the right ones are preferred."""
    likely = {kind: _likelihoods(values, kind) for kind in KINDS}
    if not likely["correct"]:
        return []
    told = "Mean log-probability of a token of answers that are {}, in nats: of answers, then of facts."
    found = [
        mean(f"log-probability, {kind}", "facts", [*each.values()], told.format(KINDS[kind]))
        for kind, each in likely.items()
    ]
    preferred = [own > max(likely["corrupted"][k], likely["random"][k]) for k, own in likely["correct"].items()]
    return [mean("preference", "facts", [float(each) for each in preferred], PREFERRED), *found]


def _likelihoods(values: Values, kind: str) -> dict[int, float]:
    """Of each fact the mean over its answers of a kind."""
    found: dict[int, list[float]] = {}
    for column, losses in values.columns.items():
        if column.answer.startswith(f"{kind} "):
            for record, loss in losses.items():
                found.setdefault(record, []).append(-loss)
    return {record: statistics.fmean(each) for record, each in found.items()}
