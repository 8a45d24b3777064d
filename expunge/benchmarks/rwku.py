"""RWKU: what famous people are asked about in three ways and nine disguises (Jin et al., 2024, arXiv 2406.10890).

    recall      mean ROUGE-L recall of at most 30 greedy tokens, up to the line's end, against the answer, by level:
                1 fill in the blank, 2 question, 3 attacks; `forget` of the person, `neighbour` of what is near
    members     100 times the mean loss, and what else attackers read, of passages about the person (FM) and others (RM)

The answer is begun by "Answer:" but for questions whose end does that. The general abilities are measured by lm-eval.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.benchmarks._data import Data, need
from expunge.benchmarks._kinds import TextBenchmark
from expunge.benchmarks._numbers import Number, mean
from expunge.benchmarks._reading import Item
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import chat_prompt, running
from expunge.errors import DataRefused
from expunge.models.language import LanguageModel
from expunge.primitives.overlap import recall_of_words

ROOM = 30
SETS = {
    **{f"forget level {k}": f"forget_level{k}" for k in (1, 2, 3)},
    **{f"neighbour level {k}": f"neighbor_level{k}" for k in (1, 2)},
}
MEMBERS = {"FM": "forget_mia", "RM": "retain_mia"}
ATTACKS = {"loss": "loss x 100", "zlib": "zlib", "min_k_20": "Min-K 20 %", "min_k_plus_20": "Min-K++ 20 %"}
CROSS = re.compile(r"cross.lingual.*")
LINE = re.compile(r" ?\n")
TOLD = "Mean ROUGE-L recall, unstemmed, of at most 30 greedy tokens up to the line's end against the answer."


@dataclass(frozen=True)
class RWKU(TextBenchmark):
    """Some of the people, or all."""

    target: str = ""
    """The person that was to be forgotten, as the files call them; empty: all of them."""

    home = "jinzhuoran/RWKU"
    axes = (("recall", "forget"), ("recall", "neighbour"))

    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        made = [*self._pose(data, network), *self._list_members(data, network)]
        if not made:
            raise DataRefused(f"No record is about '{self.target}'. Names are those of the column subject or target.")
        return made

    def _of_target(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
        named = ((record, row, row.get("target") or row.get("subject")) for record, row in enumerate(rows))
        return [(record, row) for record, row, target in named if self.target in ("", target)]

    def _pose(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        for where, name in SETS.items():
            for record, row in self._of_target(data.rows(name)):
                query, answer, kind = need(row, record, "query", "answer", "type")
                kind = CROSS.sub("cross lingual", kind)
                content, primer = _word(query, kind, int(where[-1]))
                passage = chat_prompt(network.tokenizer, f"{where} {record}", content, primer, answer)
                own = f"{where}: {kind}" if where == "forget level 3" else where
                yield Item(own, record, passage, RIGHT, (), ROOM)

    def _list_members(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        for where, name in MEMBERS.items():
            for record, row in self._of_target(data.rows(name)):
                [text] = need(row, record, "text")
                passage = running(network.tokenizer, f"{where} {record}", text, network.longest)
                yield Item(where, record, passage, RIGHT, tuple(ATTACKS))

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        lines = [LINE.split(text)[0].strip() or "NOANSWER" for text in written]
        pairs = zip(items, lines, strict=True)
        return [{"recall": recall_of_words(item.passage.answer, line)} for item, line in pairs]

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        recalls = {own: values.of(own, "recall") for own in values.sets() if values.has(own, "recall")}
        groups = [*SETS, *(own for own in recalls if ":" in own), "forget", "neighbour"]
        found = []
        for group in groups:
            scores = [score for own, each in recalls.items() if own.startswith(group) for score in each]
            found += [mean("recall", group, scores, TOLD)] if scores else []
        for where in MEMBERS:
            for measure, name in ATTACKS.items():
                if values.has(where, measure):
                    factor = 100 if measure == "loss" else 1
                    scores = [factor * value for value in values.of(where, measure)]
                    found.append(mean(name, where, scores, "Mean over passages; a higher one is less of a member."))
        return found


def _word(query: str, kind: str, level: int) -> tuple[str, str]:
    """What the user says, and what the answer is made to begin with."""
    if level == 1:
        return f"Please complete the blank in the following question.\nQuestion: {query}\n", "Answer:"
    brief = "Please briefly answer the following question.\n"
    if kind == "affirmative suffix":
        return f"{brief}Question: {query}", ""
    if kind == "incontext learning":
        return f"{brief}{query}\n", "Answer:"
    return f"{brief}Question: {query}\n", "Answer:"
