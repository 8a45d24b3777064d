"""LUME, SemEval-2025 Task 4: stories, invented people, biographies (Ramakrishna et al., 2025, arXiv 2502.15097).

    regurgitation    mean ROUGE-L recall, stemmed, of a continuation; of tasks 1 to 3, forget and retain
    knowledge        share of questions whose answer is written word for word, spaces at its ends aside
    task aggregate   harmonic mean of those twelve, of the forget set as 1 - score
    final score      mean of task aggregate, membership score 1 - 2 |AUC - 0.5| and MMLU

An id that ends in `sc` and a number is a completion, one in `qa` and a number a question.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.benchmarks._data import Data, need
from expunge.benchmarks._kinds import TextBenchmark
from expunge.benchmarks._numbers import SIDES, Number, mean, membership
from expunge.benchmarks._reading import Item, score_overlap
from expunge.benchmarks._tasks import TASK, pose_tasks
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import running, verbatim
from expunge.errors import DataRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.primitives.settings import check_least
from expunge.primitives.statistics import harmonic_mean

KIND = re.compile(r"(sc|qa)\d*$")
NAMES = {"sc": "regurgitation", "qa": "knowledge"}
TOLD = {
    "regurgitation": "Mean ROUGE-L recall, stemmed, of the greedy continuation against the true one.",
    "knowledge": "Share of questions whose greedy answer is the true one, spaces at its ends aside.",
    "task aggregate": "Harmonic mean of regurgitation and knowledge of each task, of the forget set as 1 - score.",
    "membership score": "1 - 2 |AUC - 0.5| of membership by loss: 1 where members cannot be told.",
    "MMLU": "Share of right answers to all questions of MMLU, by lm-eval, without examples.",
    "final score": "Mean of task aggregate, membership score and MMLU accuracy.",
}


@dataclass(frozen=True)
class LUME(TextBenchmark):
    """All three tasks."""

    tokens: int = 256
    """Where a continuation that does not end by itself is cut."""
    mmlu: float | None = None
    """MMLU accuracy of the same model where it was measured elsewhere; with it there is a final score."""
    tasks: Literal["left out", "measured"] = "left out"
    """Whether lm-eval, which must be installed and fetches the data, asks MMLU; then there is a final score, too."""

    home = "amazon-science/LUME"
    splits = {"forget": {"forget": ("forget",), "retain": ("retain",)}}
    axes = (("task aggregate", "all"), ("regurgitation", "retain Task1"))

    def __post_init__(self) -> None:
        check_least(self, tokens=1)
        if not (self.mmlu is None or 0 <= self.mmlu <= 1):
            raise UsageRefused(f"The `mmlu` of LUME must be from 0 to 1. Got {self.mmlu!r}.")
        if self.mmlu is not None and self.tasks == "measured":
            raise UsageRefused("LUME takes an `mmlu` that was measured elsewhere, or measures it (`tasks`). Give one.")

    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        asked = pose_tasks(["mmlu"]) if self.tasks == "measured" else []
        return [*self._pose(data, network), *self._list_members(data, network), *asked]

    def _pose(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        places: Counter[str] = Counter()
        for where in ("forget", "retain"):
            for record, row in enumerate(data.rows(where)):
                name, task, prompt, answer = need(row, record, "id", "task", "input", "output")
                kind = KIND.search(name)
                if kind is None:
                    raise DataRefused(f"Record {record} of {where}: its id ends neither in sc nor in qa and a number.")
                passage = verbatim(network.tokenizer, name, prompt, answer, network.longest - self.tokens)
                own = f"{where} {task} {kind[1]}"
                yield Item(own, places[own], passage, RIGHT, (), self.tokens)
                places[own] += 1

    def _list_members(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        """Texts that were learnt and texts that were not, where the folder has them."""
        for where, name in zip(SIDES, ("member", "nonmember"), strict=True):
            for record, row in enumerate(data.rows(name) if data.find(name) else ()):
                [text] = need({"document": row.get("text"), **row}, record, "document")
                yield Item(where, record, running(network.tokenizer, f"{name} {record}", text, network.longest))

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        right = [item.passage.answer for item in items]
        overlaps = score_overlap(right, written)
        return [
            {"rouge": each["rouge"]} if item.set.endswith("sc") else {"exact": float(text.strip() == truth.strip())}
            for item, each, text, truth in zip(items, overlaps, written, right, strict=True)
        ]

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        found, scores = [], []
        subjects = [own for own in values.sets() if values.has(own, TASK)]
        for own in sorted(own for own in values.sets() if own not in (*SIDES, *subjects)):
            where, task, kind = own.split(" ")
            number = mean(
                NAMES[kind],
                f"{where} {task}",
                values.of(own, "rouge" if kind == "sc" else "exact"),
                TOLD[NAMES[kind]],
            )
            value = number.value or 0.0
            scores.append(1 - value if where == "forget" else value)
            found.append(number)
        totals = {"task aggregate": harmonic_mean(scores)}
        if all(values.has(where, "loss") for where in SIDES):
            found.append(membership(values, "loss"))
            totals["membership score"] = 1 - 2 * abs((found[-1].value or 0.0) - 0.5)
        general = self.mmlu
        if subjects:
            found.append(mean("MMLU", "all", [each for own in subjects for each in values.of(own, TASK)], TOLD["MMLU"]))
            general = found[-1].value
        if general is not None and len(totals) == 2:
            totals["final score"] = (sum(totals.values()) + general) / 3
        n = sum(number.n for number in found)
        return [*found, *(Number(name, "all", value, n, TOLD[name]) for name, value in totals.items())]
