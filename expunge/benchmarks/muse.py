"""MUSE: six ways of looking at a forgotten corpus, of which four are numbers (Shi et al., 2024, arXiv 2407.06460).

    VerbMem    mean ROUGE-L F1, unstemmed, of 128 tokens after a piece of the corpus, against its own continuation
    KnowMem    mean ROUGE-L F1 of answers to questions about it, after ten that are answered; 32 tokens
    PrivLeak   100 ((1 - AUC) - (1 - AUC of the reference)) / (1 - AUC of the reference), by Min-K of the lowest 40 %
    utility    KnowMem on questions about what is retained

Models of larger forget sets (scalability) and of requests one after the other (sustainability) are evaluated alike, one
by one; `expunge bench show` puts them side by side.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.benchmarks._data import Data, need
from expunge.benchmarks._kinds import TextBenchmark
from expunge.benchmarks._numbers import Number, leak, mean, membership
from expunge.benchmarks._reading import Item, score_overlap
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import running, verbatim
from expunge.models.language import LanguageModel

LENGTHS = {"verbmem": 128, "knowmem": 32}
"""Tokens of a continuation."""
ENDS = re.compile(r"\n\n|\nQuestion|Question:")
"""What an answer ends at, as it would go on with a question of its own."""
KNOWN = {"forget": ("knowmem_forget_qa", "knowmem/forget_qa"), "retain": ("knowmem_retain2_qa", "knowmem/retain_qa")}
TOLD = {
    "VerbMem": "Mean ROUGE-L F1, unstemmed, of 128 greedy tokens after a piece of the corpus against what follows.",
    "KnowMem": "Mean ROUGE-L F1, unstemmed, of at most 32 greedy tokens after ten answered questions.",
}


@dataclass(frozen=True)
class MUSE(TextBenchmark):
    """News or books, whichever the folder of the data holds."""

    membership: Literal["measured", "left out"] = "measured"
    """Whether the long texts of PrivLeak are read, which take most of the time."""

    home = "muse-bench/MUSE-News"
    splits = {
        "forget": {
            name: (f"raw_{file}", f"raw/{file}")
            for name, file in {"forget": "forget", "retain": "retain1", "holdout": "holdout"}.items()
        }
    }
    axes = (("VerbMem", "forget"), ("KnowMem", "retain"))

    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        return [
            *self._pose_pieces(data, network),
            *self._pose_questions(data, network),
            *self._list_members(data, network),
        ]

    def _pose_pieces(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        words, most = network.tokenizer, LENGTHS["verbmem"]
        for record, row in enumerate(data.rows("verbmem_forget", "verbmem/forget")):
            prompt, after = need({"gt": row.get("answer"), **row}, record, "prompt", "gt")
            after = words.decode(words(after)["input_ids"][:most], skip_special_tokens=True)
            passage = verbatim(words, f"verbmem {record}", prompt, after, network.longest - most)
            yield Item("verbmem", record, passage, RIGHT, (), most)

    def _pose_questions(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        words, most = network.tokenizer, LENGTHS["knowmem"]
        for where, names in KNOWN.items():
            rows = [need(row, k, "question", "answer") for k, row in enumerate(data.rows(*(f"{n}_icl" for n in names)))]
            shown = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in rows)
            for record, row in enumerate(data.rows(*names)):
                question, answer = need(row, record, "question", "answer")
                prompt = f"{shown}Question: {question}\nAnswer: "
                passage = verbatim(words, f"knowmem {record}", prompt, answer, network.longest - most)
                yield Item(f"knowmem {where}", record, passage, RIGHT, (), most)

    def _list_members(self, data: Data, network: LanguageModel) -> Iterator[Item]:
        for where in ("forget", "holdout") if self.membership == "measured" else ():
            for record, row in enumerate(data.rows(f"privleak_{where}", f"privleak/{where}")):
                [text] = need(row, record, "text")
                passage = running(network.tokenizer, f"privleak {where} {record}", text, network.longest)
                yield Item(where, record, passage, RIGHT, ("loss", "min_k"))

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        ended = [ENDS.split(t)[0] if i.set != "verbmem" else t for i, t in zip(items, written, strict=True)]
        return score_overlap([item.passage.answer for item in items], ended, "as they are")

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        found = [mean("VerbMem", "forget", values.of("verbmem", "rouge_f1"), TOLD["VerbMem"])]
        found += [mean("KnowMem", w, values.of(f"knowmem {w}", "rouge_f1"), TOLD["KnowMem"]) for w in KNOWN]
        if values.has("forget", "min_k"):
            found.append(membership(values, "min_k"))
            found += [leak(values, reference, name) for name, reference in references.items()] or [
                leak(values, None, "")
            ]
        return found
