"""TOFU: forget some of 200 invented authors, and nothing else (Maini et al., 2024, COLM, arXiv 2401.06121).

    forget quality   p of the Kolmogorov-Smirnov test of the truth ratios R of the forget questions against a model that
                     never saw them
    model utility    harmonic mean of probability, ROUGE-L recall and truth ratio of the retained authors, of real
                     authors and of world facts

Three definitions are in use, and numbers of one cannot be held against those of another:

    paper             R has the arithmetic mean of the wrong answers; options are weighed by their whole probability
    released          R has the geometric mean; options are length-normalised; the first 300 questions of a set
    open-unlearning   as released, of all questions, with tokens counted and texts continued as open-unlearning does
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.benchmarks._data import Data
from expunge.benchmarks._kinds import Form, TextBenchmark
from expunge.benchmarks._logs import read_log
from expunge.benchmarks._numbers import Number, against, compare, leak
from expunge.benchmarks._reading import Item, score_overlap
from expunge.benchmarks._tofu import DEFINITIONS, alone, items, ratios, write_result
from expunge.benchmarks._values import Values
from expunge.benchmarks._wording import Wording, check_template
from expunge.models.language import LanguageModel

PARTS = {"01": "99", "05": "95", "10": "90"}
"""Per cent to forget, and what is left."""


@dataclass(frozen=True)
class TOFU(TextBenchmark):
    """One split under one definition."""

    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """How many of the authors were to be forgotten, in per cent: 2, 10 or 20 authors, 20 questions each."""
    definition: Literal["paper", "released", "open-unlearning"] = "open-unlearning"
    """Whose definition all numbers follow."""
    template: str = ""
    """For models without a chat template, or in place of it: a text with {question} that ends in {answer}; else
    'Question: {question}', a line break, 'Answer: {answer}'."""
    gradients: Literal["left out", "measured"] = "left out"
    """Whether membership by the norm of gradients is measured, which takes a backward pass for each text."""

    home = "locuslab/TOFU"
    splits = {
        f"forget{part}": {
            "forget": (f"forget{part}_perturbed", f"forget{part}"),
            "retain": (f"retain{rest}",),
            "holdout": (f"holdout{part}",),
            "real_authors": ("real_authors_perturbed",),
            "world_facts": ("world_facts_perturbed",),
        }
        for part, rest in PARTS.items()
    }
    remainders = {
        f"retain{rest}": ("full", (f"forget{part}", f"forget{part}_perturbed")) for part, rest in PARTS.items()
    }
    axes = (("forget quality", "forget"), ("model utility", "all"))
    form = Form("open-unlearning.json", read_log, write_result)

    def __post_init__(self) -> None:
        check_template(self.template)

    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        by = DEFINITIONS[self.definition]
        wording = Wording(network.tokenizer, by.counting, self.template)
        return list(items(self.split, data, wording, by, self.gradients == "measured"))

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        by = DEFINITIONS[self.definition]
        found = list(alone(values, by))
        ours = ratios(values, "forget", by)
        leaks = values.has("forget", "min_k") and values.has("holdout", "min_k")
        found += [leak(values, None, "")] if leaks and not references else []
        for name, reference in references.items():
            found += compare(ours, ratios(reference, "forget", by), name, by.averaged)
            found += [leak(values, reference, name)] if leaks else []
            found += against(values, reference, name)
        return found

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        return score_overlap([item.passage.answer for item in items], written)
