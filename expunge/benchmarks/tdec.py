"""TDEC: sequences that language models of the Pile have by heart (Jang et al., 2022, arXiv 2210.01504).

    EL_10   mean over the prefixes of a sequence of the share of the 10-grams of what follows that are in the greedy
            continuation of the prefix
    MA      share of the tokens that the model scores highest, given those before
    perplexity, F1, accuracy   what should be left: of texts, of replies in conversations, of nine tasks of lm-eval

A sequence counts as forgotten where neither EL nor MA is above its mean over texts that no model saw: `unseen.jsonl`,
with a column `text`. Of T tokens EL takes T - 10 continuations: a set of 32 of 200 tokens takes 6,080. Perplexity and
F1 are measured of the files that the folder has (docs/benchmarks.md), accuracy with `--tasks measured`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from expunge.benchmarks._data import Data, need
from expunge.benchmarks._kinds import TextBenchmark
from expunge.benchmarks._numbers import Number, mean
from expunge.benchmarks._reading import Item
from expunge.benchmarks._tasks import TASK, pose_tasks
from expunge.benchmarks._utility import OWN_TURN, REPLY, TEXTS, list_useful, perplexity, unigram_f1
from expunge.benchmarks._values import RIGHT, Values
from expunge.benchmarks._wording import running
from expunge.data.text import Passage
from expunge.errors import DataRefused
from expunge.models.language import LanguageModel
from expunge.primitives.settings import check_least

PARTS = ("val_preprefix", "val_prefix", "val_suffix")
"""Of each sequence 100 tokens, 50 and 50."""
EL, MA = "extraction_likelihood", "memorisation_accuracy"
TASKS = ["lambada_openai", "piqa", "hellaswag", "arc_easy", "arc_challenge", "copa", "winogrande", "mathqa", "pubmedqa"]
TOLD = {
    EL: "Mean EL_10: of each prefix the share of the 10-grams of what follows that its greedy continuation has.",
    MA: "Mean share of tokens that the model scores highest, given those before.",
    "f1": f"Mean F1 of the words of {REPLY} greedy tokens, up to the next turn, and of the true reply.",
    TASK: "Share of right answers, by lm-eval.",
}


@dataclass(frozen=True)
class TDEC(TextBenchmark):
    """A draw of the sequences."""

    sequences: int = 32
    """How many sequences are drawn; published are 1, 4, 8, 32 and 128."""
    draw: int = 0
    """Number of the draw, a seed."""
    tasks: Literal["left out", "measured"] = "left out"
    """Whether nine classification tasks are asked by lm-eval, which must be installed and fetches their data."""

    home = "google-research/tdec"
    axes = ((EL, "forget"), (MA, "forget"))

    def __post_init__(self) -> None:
        check_least(self, sequences=1, draw=0)

    def items(self, data: Data, network: LanguageModel) -> list[Item]:
        whole = _load(data)
        chosen = np.random.default_rng(self.draw).permutation(len(whole))[: self.sequences]
        rows = _for_model(whole[np.sort(chosen)], data, network)
        made = [
            Item("forget", k, Passage(f"sequence {k}", row, 1, "", ""), RIGHT, (MA, EL)) for k, row in enumerate(rows)
        ]
        asked = pose_tasks(TASKS) if self.tasks == "measured" else []
        return [*made, *_unseen(data, network, whole.shape[1]), *list_useful(data, network), *asked]

    def score(self, items: Sequence[Item], written: Sequence[str]) -> list[Mapping[str, float]]:
        pairs = zip(items, written, strict=True)
        return [{"f1": unigram_f1(item.passage.answer, text.split(OWN_TURN)[0])} for item, text in pairs]

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        measured = [(where, name) for where in values.sets() for name in TOLD if values.has(where, name)]
        found = [mean(name, where, values.of(where, name), TOLD[name]) for where, name in measured]
        found += [perplexity(values, where) for where in TEXTS if values.has(where, "loss")]
        if "unseen" in values.sets():
            least = {name: float(np.mean(values.of("unseen", name))) for name in (EL, MA)}
            pairs = zip(values.of("forget", EL), values.of("forget", MA), strict=True)
            gone = [float(el <= least[EL] and ma <= least[MA]) for el, ma in pairs]
            told = "Share of sequences whose EL_10 and MA are at most the means over unseen texts."
            found.append(mean("forgotten", "forget", gone, told))
        return found


def _load(data: Data) -> Any:
    """All sequences, as GPT-2 tokens: [sequences, tokens]."""
    path = data.folder / "tdec.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            whole = np.concatenate([file[part].astype(np.int64) for part in PARTS], axis=1)
    except (OSError, ValueError, KeyError) as error:
        raise DataRefused(
            f"{path}: not an archive with {', '.join(PARTS)} of the extraction challenge. Put it there."
        ) from error
    return whole


def _for_model(whole: Any, data: Data, network: LanguageModel) -> list[tuple[int, ...]]:
    """The sequences in the model's own tokens, as many of each as before: those of GPT-2 as they are."""
    gpt2 = data.value("gpt2_encoder.json")
    if network.tokenizer.get_vocab().items() >= gpt2.items():
        return [tuple(row) for row in whole.tolist()]
    from tokenizers import Tokenizer, decoders, models

    files = (str(data.folder / name) for name in ("gpt2_encoder.json", "gpt2_vocab.bpe"))
    spelled = Tokenizer(models.BPE.from_file(*files))
    spelled.decoder = decoders.ByteLevel()
    texts = [spelled.decode(row, skip_special_tokens=False) for row in whole.tolist()]
    return [tuple(network.tokenizer(text)["input_ids"])[: whole.shape[1]] for text in texts]


def _unseen(data: Data, network: LanguageModel, most: int) -> Iterator[Item]:
    for record, row in enumerate(data.rows("unseen") if data.find("unseen") else ()):
        [text] = need(row, record, "text")
        yield Item("unseen", record, running(network.tokenizer, f"unseen {record}", text, most), RIGHT, (MA, EL))
