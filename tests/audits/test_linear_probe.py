"""The linear probe: what it learns from, what it is asked, its controls, and what it finds in a model that learnt."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audits.linear_probe import LinearProbe
from expunge.core.model import Network, Wrapper, answers
from expunge.core.predictions import Hidden
from expunge.core.question import HiddenStates
from expunge.core.request import Request
from expunge.data.records import Record
from expunge.data.text import Passage, encode
from expunge.errors import UsageRefused
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.runtime.cached_model import CachedModel

torch.set_num_threads(1)


@dataclass(frozen=True)
class Shown:
    """An example of several rows: the state of its first row, and its answer's first token."""

    id: str
    state: tuple[float, ...]
    label: int
    rows: int = 1
    size: int = 1
    alternatives: tuple = ()
    weight: float = 1.0

    def record_digest(self) -> str:
        return self.id

    fact_digest = record_digest


@dataclass(frozen=True)
class Shows(Network):
    """Hidden states as given, times a matrix; later rows of an example show the wrong thing."""

    asked: list[int | None] = field(default_factory=list)
    """The layers that were asked for."""

    @answers(HiddenStates)
    def states(self, question: HiddenStates, batch: list[Shown]) -> Hidden:
        self.asked.append(question.layer)
        states = [e.state if row == 0 else tuple(-s for s in e.state) for e in batch for row in range(e.rows)]
        labels = [e.label if row == 0 else 99 for e in batch for row in range(e.rows)]
        owner = [k for k, e in enumerate(batch) for _ in range(e.rows)]
        seen = torch.tensor(states) @ self.module.weight
        return Hidden(torch.tensor(labels), torch.tensor(owner), len(batch), None, seen.detach())

    def batches(self, examples: list[Shown]) -> Iterator[list[int]]:
        yield list(range(len(examples) - 1, -1, -1))  # out of order, as batches by length are

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def settings(self) -> str:
        return ""


def shows(width: int = 3) -> Shows:
    module = nn.Linear(width, width, bias=False)
    module.weight.data = torch.eye(width)
    return Shows(module)


def along(name: str, axis: int, rows: int = 1, label: int | None = None) -> Shown:
    """An example whose state points along one of three axes, which is its answer unless said otherwise."""
    state = [0.1 * (len(name) % 3), 0.05, -0.1]
    state[axis] += 1.0
    return Shown(name, tuple(state), axis if label is None else label, rows)


KNOWN = tuple(along(f"{'k' * (1 + n % 5)}{n}", n % 3, rows=1 + n % 3) for n in range(18))


def values(request: Request, network: Network | None = None, **settings: object) -> dict[str, float]:
    return {f.set: f.value for f in LinearProbe(layer=0, **settings)(network or shows(), request)}


def test_it_learns_from_what_was_kept_and_is_asked_of_what_was_forgotten():
    asked = (along("a", 0, rows=3), along("b", 1), along("c", 2, rows=2), along("d", 2, label=0))
    (found, *_) = LinearProbe(layer=0)(shows(), Request(asked, KNOWN))
    assert (found.set, found.n, found.scores) == ("forget", 4, (1.0, 1.0, 1.0, 0.0))  # the last shows another's answer
    assert found.value == 3 / 4
    assert found.ideal == 1 / 3
    assert found.low < 3 / 4 < found.high


def test_answers_that_no_kept_example_has_are_not_asked():
    asked = (along("a", 0), along("b", 1, label=7), along("c", 1))
    (found, *_) = LinearProbe(layer=0)(shows(), Request(asked, KNOWN))
    assert (found.n, found.scores) == (2, (1.0, 1.0))
    assert LinearProbe(layer=0)(shows(), Request((along("b", 1, label=7),), KNOWN)) == ()


def test_with_nothing_to_learn_from_it_finds_nothing():
    asked = (along("a", 0),)
    assert LinearProbe(layer=0)(shows(), Request(asked)) == ()
    assert LinearProbe(layer=0)(shows(), Request(asked, (along("k", 0), along("kk", 0)))) == ()  # one answer only
    assert LinearProbe(layer=0, train="capitals")(shows(), Request(asked, KNOWN)) == ()


def test_named_sets_are_learnt_from_and_asked():
    request = Request((along("x", 0, label=1),), probes={"kept": KNOWN, "forget_born": (along("a", 2),)})
    found = values(request, train="kept", test="forget_born")
    assert found["forget_born"] == 1.0
    assert set(found) == {
        "forget_born",
        "forget_born, labels shuffled",
        "forget_born, weights shuffled",
        "forget_born, most frequent answer",
    }


def test_the_most_frequent_answer_is_that_of_the_kept():
    often = (*KNOWN, along("more", 1))
    found = values(Request((along("a", 0), along("b", 1), along("c", 1), along("d", 2)), often))
    assert found["forget, most frequent answer"] == 2 / 4


def test_the_controls_know_nothing():
    asked = tuple(along(f"{'a' * (1 + n % 5)}{n}", n % 3) for n in range(30))
    draws = [values(Request(asked, KNOWN), seed=seed) for seed in range(12)]
    assert all(found["forget"] == 1.0 for found in draws)
    for control in ("forget, labels shuffled", "forget, most frequent answer"):
        mean = sum(found[control] for found in draws) / len(draws)
        assert abs(mean - 1 / 3) < 0.15, (control, mean)
    # A matrix whose entries were shuffled still turns unlike states into unlike ones, so such a probe can tell them
    # apart where the answer stands in the input: that is what this control is for.
    assert sum(found["forget, weights shuffled"] for found in draws) / len(draws) > 1 / 3


def test_an_answer_that_is_rare_among_the_kept_is_told_as_well():
    few = (*KNOWN, *(along(f"{'m' * (1 + n % 5)}{n}", 0) for n in range(60)))  # 66 of one answer, 6 of each other
    assert values(Request((along("a", 1), along("b", 2)), few))["forget"] == 1.0


def test_the_layer_asked_for_is_the_one_read():
    network = shows()
    LinearProbe(layer=2)(network, Request((along("a", 0),), KNOWN))
    assert set(network.asked) == {2}


def test_what_shows_answers_only_cannot_be_probed():
    class Guard(Wrapper):
        transparent = False
        inner = shows()

    with pytest.raises(UsageRefused, match="LinearProbe reads weights or hidden states, and Guard gives answers only"):
        LinearProbe()(Guard(), Request((along("a", 0),), KNOWN))
    request = Request((along("a", 0),), KNOWN)
    assert LinearProbe(layer=0)(CachedModel(shows()), request) == LinearProbe(layer=0)(shows(), request)


# A language model that learnt where people live, and one that never saw some of them


TOWNS = ["Veldt", "Brenn", "Elsin", "Ostra"]
PEOPLE = [
    f"{a}{b}"
    for a in ("Al", "Bor", "Cas", "Dun", "Er", "Fal", "Gor", "Hul")
    for b in ("ric", "mek", "tis", "wyn", "da", "o")
]


def words() -> PreTrainedTokenizerFast:
    known = ["[end]", "[unk]", "Question", "Answer", ":", "Where", "does", "live", "?"]
    table = {word: number for number, word in enumerate([*known, *TOWNS, *PEOPLE])}
    made = Tokenizer(models.WordLevel(table, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]")


WORDS = words()


def told(names: list[str], answers: list[str]) -> tuple[Passage, ...]:
    pairs = enumerate(zip(names, answers, strict=True))
    records = [Record(line, {"question": f"Where does {name} live ?", "answer": said}) for line, (name, said) in pairs]
    return encode(records, WORDS, "memory", 64)


DRAWN = random.Random(1).choices(TOWNS, k=len(PEOPLE))
REQUEST = Request(told(PEOPLE[:12], DRAWN[:12]), told(PEOPLE[12:], DRAWN[12:]))


def learnt(examples: tuple[Passage, ...], seed: int) -> Network:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    plan = parse(
        "Finetune(objective=RetainNLL(), adapter=Full(), learning_rate=4e-3, steps=90, batch=1, retain_batch=48, "
        "stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False)"
    )
    blank = LanguageModel.of(LlamaForCausalLM(config).eval(), WORDS)
    return plan(blank, Request(told(PEOPLE[:1], ["where"]), examples))


def test_it_tells_a_model_that_learnt_the_answers_from_one_that_never_saw_them():
    networks = {"original": learnt((*REQUEST.forget, *REQUEST.retain), 0), "retrained": learnt(REQUEST.retain, 1)}
    found = {name: {f.set: f.value for f in LinearProbe()(network, REQUEST)} for name, network in networks.items()}
    assert found["original"]["forget"] >= 0.8, found
    assert found["retrained"]["forget"] <= 1 / len(TOWNS) + 0.15, found
    assert found["original"]["forget, labels shuffled"] <= 0.6, found
    assert found["original"]["forget, weights shuffled"] <= 0.6, found
