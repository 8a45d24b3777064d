"""All audits of TOFU's records against a naive evaluation: one metric at a time, padded, in file order.

    python benchmarks_speed/evaluation.py MODEL_FOLDER TOFU_FOLDER --write

Asked of each record: the probability of the right, of a paraphrased and of five wrong answers (truth ratio), exact
match, loss, two membership scores against a holdout set, and the greedy continuation (ROUGE). The naive evaluation
makes a pass for each metric in batches of 16, float32 scores of every token, as evaluation scripts do, and continues
prompts with transformers' `generate`. The product's audits run with an empty memory, then once more from the cache on
disk. All must find the same numbers. Two models are asked: the one given, which knows none of the records, and the same
after it has been taught them, as before unlearning.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from side_by_side import machine, ratio, settings, show, spread, table, tofu

from expunge.audits.exact_match import ExactMatch
from expunge.audits.loss import Loss
from expunge.audits.loss_membership import LossMembership
from expunge.audits.min_k import MinK
from expunge.audits.probability import Probability
from expunge.audits.rouge import Rouge
from expunge.audits.truth_ratio import TruthRatio
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.run.unlearn import Task, examine
from expunge.runtime.answer_store import AnswerStore
from expunge.runtime.cached_model import CachedModel

AT_ONCE, NEW = 16, 48
AUDITS = [Probability(), TruthRatio(), ExactMatch(), Loss(), LossMembership(), MinK(), Rouge(max_new_tokens=NEW)]


def passed(network: LanguageModel, batch: list[Passage]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability and rank of every labelled token of a padded batch, and which are labelled."""
    width = max(p.size for p in batch)
    tokens, labelled = (
        torch.zeros(len(batch), width, dtype=torch.long),
        torch.zeros(len(batch), width, dtype=torch.bool),
    )
    mask = torch.zeros_like(tokens)
    for row, p in enumerate(batch):
        tokens[row, : p.size] = torch.tensor(p.tokens)
        labelled[row, p.first : p.size] = True
        mask[row, : p.size] = 1
    logits = network.module(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
    right = tokens[:, 1:, None]
    return logits.log_softmax(-1).gather(-1, right)[..., 0], logits.argmax(-1) == right[..., 0], labelled[:, 1:]


def means(network: LanguageModel, records: list[Passage]) -> list[float]:
    """Mean log-probability of each record's answer, from a pass of their own."""
    made: list[float] = []
    for start in range(0, len(records), AT_ONCE):
        said, _, labelled = passed(network, records[start : start + AT_ONCE])
        made += ((said * labelled).sum(-1) / labelled.sum(-1)).tolist()
    return made


def naively(network: LanguageModel, forget: list[Passage], holdout: list[Passage]) -> dict[str, float]:
    """Each metric by itself."""
    found: dict[str, float] = {}
    with torch.inference_mode():
        found["Probability"] = statistics.mean(2.718281828459045**v for v in means(network, forget))
        for answer in range(max(len(p.alternatives) for p in forget)):
            means(network, [p.alternatives[answer] for p in forget if len(p.alternatives) > answer])
        means(network, forget)  # the truth ratio's own right answers
        exact = []
        for start in range(0, len(forget), AT_ONCE):
            _, right, labelled = passed(network, forget[start : start + AT_ONCE])
            exact += (right | ~labelled).all(-1).tolist()
        found["ExactMatch"] = statistics.mean(map(float, exact))
        found["Loss"] = -statistics.mean(means(network, forget))
        for _ in ("LossMembership", "MinK"):
            means(network, forget)
            means(network, holdout)
        for records in (forget, holdout):
            for start in range(0, len(records), AT_ONCE):
                continued(network, records[start : start + AT_ONCE])
    return found


def continued(network: LanguageModel, batch: list[Passage]) -> list[str]:
    """Greedy continuations, padded on the left."""
    width = max(len(p.prompt_tokens) for p in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, p in enumerate(batch):
        tokens[row, width - len(p.prompt_tokens) :] = torch.tensor(p.prompt_tokens)
        mask[row, width - len(p.prompt_tokens) :] = 1
    pad = network.tokenizer.pad_token_id or 0
    written = network.module.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        use_cache=True,
        pad_token_id=pad,
    )
    return [str(text) for text in network.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)]


def teach(network: LanguageModel, records: list[Passage], epochs: int) -> None:
    """Full fine-tuning on the records, until the answers come word for word."""
    network.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-4, weight_decay=0)
    for _ in range(epochs):
        for start in range(0, len(records), AT_ONCE):
            loss = network.ask(Scores(), records[start : start + AT_ONCE]).nll()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.module.requires_grad_(False)


def audited(
    network: LanguageModel, forget: list[Passage], holdout: list[Passage], store: AnswerStore
) -> dict[str, float]:
    """The product's audits."""
    request = Request(forget=tuple(forget), holdout=tuple(holdout))
    found = examine(CachedModel(network, store), Task(network, request, tuple(AUDITS)), "before")
    return {f.audit: f.value for f in found if f.set == "forget"}


def main() -> None:
    asked = settings(
        __doc__,
        ("model", {}),
        ("tofu", {"type": Path}),
        ("--records", {"type": int, "default": 400}),
        ("--epochs", {"type": int, "default": 12}),
    )
    network = open_network(asked.model, "cpu")
    assert isinstance(network, LanguageModel)
    forget = tofu(asked.tofu, network.tokenizer, asked.records)
    holdout = tofu(asked.tofu, network.tokenizer, asked.records // 4, "holdout10.jsonl")
    naively(network, forget[:2], holdout[:2])
    rows, apart = [], []
    for model in ("knows none of them", "knows them"):
        if model == "knows them":
            teach(network, forget, asked.epochs)
        seconds: dict[str, list[float]] = {"naive": [], "expunge": [], "expunge, the second time": []}
        for _ in range(asked.repeats):
            found = {}
            with tempfile.TemporaryDirectory() as folder:
                store = AnswerStore(Path(folder) / "answers.sqlite")
                for name in seconds:
                    start = time.perf_counter()
                    if name == "naive":
                        found[name] = naively(network, forget, holdout)
                    else:
                        found[name] = audited(network, forget, holdout, store)
                    seconds[name].append(time.perf_counter() - start)
                    print(f"{name} {seconds[name][-1]:.1f} s", flush=True)
        others = list(found)[1:]
        apart += [abs(found["naive"][name] - found[other][name]) for name in found["naive"] for other in others]
        rows += [
            [f"{model} ({found['naive']['ExactMatch']:.2f} exact)", name, spread(s), ratio(seconds["naive"], s)]
            for name, s in seconds.items()
        ]
    told = (
        f"{machine()}. {len(forget)} records with {sum(len(p.alternatives) for p in forget)} other answers, "
        f"{len(holdout)} holdout records, {NEW} new tokens at most; {asked.repeats} rounds.\n\n"
        f"{table(['the model', 'evaluation', 'seconds', 'naive takes times as long'], rows)}\n\n"
        f"Largest difference of Probability, ExactMatch and Loss: {max(apart):.1e}."
    )
    show("evaluation", told, asked.write)


if __name__ == "__main__":
    main()
