"""RESTOR: does forgetting wrong facts bring back the right ones? (Rezaei et al., 2025, TMLR, arXiv 2411.00204)

    accuracy        share of facts whose line of answer holds one of the right answers, word for word, after five
                    answered questions of the same relation about others
    recovery rate   (accuracy - that of the corrupted model) / (that of the clean model - that of the corrupted one),
                    of the facts that the clean model has right and the corrupted one wrong

The clean and the corrupted model are the references: `--reference clean=DIR --reference corrupted=DIR`. Answers are
greedy and matched by their words; the paper samples them and has a language model judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expunge.benchmarks._data import Data
from expunge.benchmarks._kinds import TextBenchmark
from expunge.benchmarks._numbers import Number, mean
from expunge.benchmarks._reading import Item
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import verbatim
from expunge.errors import DataRefused
from expunge.internals.wordings import find_words
from expunge.models.language import LanguageModel
from expunge.primitives.settings import check_least

SHOTS = 5
CLEAN, CORRUPTED = "clean", "corrupted"
TOLD = "Share of facts whose line of answer holds a right answer word for word."
RECOVERED = "Share of what the corrupted model lost, of facts that the clean one has right, that is right again."
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
            return list(self._pose(facts, read["context"], network))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataRefused(f"{data.folder}/facts.json: not the facts as published. Copy it anew.") from error

    def _pose(self, facts: Any, context: Any, network: LanguageModel) -> Iterator[Item]:
        record = 0
        for entity, relations in facts.items():
            for relation, fact in relations.items():
                shown = [each for each in context[relation] if each["entity"] != entity][:SHOTS]
                prompt = "".join(f"{each['question']} {each['answer']}\n" for each in shown) + fact["question"]
                answers = SEPARATOR.join(map(str, fact["answers"]))
                name, longest = f"fact {record}", network.longest - self.tokens
                passage = verbatim(network.tokenizer, name, prompt, answers, longest)
                yield Item("facts", record, passage, RIGHT, (), self.tokens)
                record += 1

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        lines = [text.strip().split("\n")[0] for text in written]
        pairs = zip((item.passage.answer.split(SEPARATOR) for item in items), lines, strict=True)
        return [{"right": float(any(find_words(line, one) is not None for one in each))} for each, line in pairs]

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        found = [mean("accuracy", "facts", values.of("facts", "right"), TOLD)]
        for name, reference in references.items():
            found.append(replace(mean("accuracy", "facts", reference.of("facts", "right"), TOLD), against=name))
        if {CLEAN, CORRUPTED} <= references.keys():
            clean, corrupted = (references[name].records("facts", "right") for name in (CLEAN, CORRUPTED))
            lost = [k for k in clean if clean[k] == 1 and corrupted.get(k) == 0]
            own = values.records("facts", "right")
            found += [mean("recovery rate", "facts", [own[k] for k in lost], RECOVERED)] if lost else []
        return found
