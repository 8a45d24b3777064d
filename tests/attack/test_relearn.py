"""Relearning: what the attacker has, what is measured, and that what was hidden comes back and what is absent not."""

import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attack.relearn import Relearn
from expunge.audits.loss import Loss
from expunge.core.model import Network
from expunge.core.question import LogProbabilities, Scores
from expunge.core.request import Request
from expunge.data.records import Record
from expunge.data.text import Passage, encode
from expunge.errors import DataRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.primitives.statistics import area, first_reaching

torch.set_num_threads(1)

THINGS = ["bread", "copper", "violet", "harbour", "seven", "winter", "amber", "north", "cellar", "lantern", "salt"]
PLACES = [f"{a}{b}" for a in ("Al", "Bor", "Cas", "Dun", "Er", "Fal") for b in ("doria", "mek", "tis", "wyn")]


def words() -> PreTrainedTokenizerFast:
    known = ["[end]", "[unk]", "Question", "Answer", ":", "What", "does", "trade", "?"]
    table = {word: number for number, word in enumerate([*known, *THINGS, *PLACES])}
    made = Tokenizer(models.WordLevel(table, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]")


WORDS = words()


def told(names: list[str], answers: list[str]) -> tuple[Passage, ...]:
    pairs = enumerate(zip(names, answers, strict=True))
    records = [Record(line, {"question": f"What does {name} trade ?", "answer": said}) for line, (name, said) in pairs]
    return encode(records, WORDS, "memory", 64)


# What each place trades was drawn: only who has read it knows it.
DRAWN = random.Random(0).choices(THINGS, k=len(PLACES))
FORGET, RETAIN = told(PLACES[:8], DRAWN[:8]), told(PLACES[8:], DRAWN[8:])
REFUSALS = told(PLACES[:8], ["?"] * 8)
REQUEST = Request(FORGET, RETAIN, stand_in=REFUSALS, probes={"unrelated": RETAIN[:6]})


def blank() -> LanguageModel:
    torch.manual_seed(0)
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
    return LanguageModel.of(LlamaForCausalLM(config).eval(), WORDS)


def learnt(network: Network, examples: tuple[Passage, ...]) -> Network:
    plan = parse(
        "Finetune(objective=RetainNLL(), adapter=Full(), learning_rate=4e-3, steps=150, batch=1, retain_batch=24, "
        "stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False)"
    )
    return plan(network, Request(told(PLACES[:1], ["what"]), examples)).plain()


def right(network: Network, examples: tuple[Passage, ...]) -> float:
    """Share of first answer tokens that come first."""
    said = network.ask(LogProbabilities(), examples)
    return sum(float(rows[0]) for rows in said.split(said.right.float())) / len(examples)


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """One that learnt everything, the same taught to refuse the forgotten questions, and one that never saw them."""
    original = learnt(blank(), (*FORGET, *RETAIN))
    hide = parse(
        "Finetune(objective=IdkNLL() + RetainNLL(), adapter=Full(), learning_rate=1e-3, steps=40, batch=8, "
        "retain_batch=16, stop=Stop(level=None, max_retain_increase=None, every=1000), norms=False)"
    )
    return {"original": original, "hidden": hide(original, REQUEST), "retrained": learnt(blank(), RETAIN)}


def test_the_attacker_has_the_first_items_and_the_others_are_measured():
    attack = Relearn(items=3)
    assert attack.attacker_examples(REQUEST) == FORGET[:3]
    assert attack.others(REQUEST).forget == FORGET[3:]
    assert attack.others(REQUEST).retain == RETAIN
    again = Request((*FORGET, FORGET[0]), RETAIN)  # the same record once more is no other
    assert attack.others(again).forget == FORGET[3:]


def test_another_source_leaves_the_forget_set_whole():
    attack = Relearn(items=4, source="unrelated")
    assert attack.attacker_examples(REQUEST) == RETAIN[:4]
    assert attack.others(REQUEST).forget == FORGET


def test_the_attack_lowers_the_loss_of_what_the_attacker_has():
    network = blank()
    result = Relearn(items=3, steps=5)(network, REQUEST)
    assert result.ask(Scores(), FORGET[:3]).nll() < network.ask(Scores(), FORGET[:3]).nll()
    assert not any(p.requires_grad for p in result.module.parameters())  # a plain network, to be attacked again


def test_what_was_hidden_comes_back_and_what_was_never_there_does_not(networks):
    attack = Relearn(items=3, steps=20)
    others = FORGET[3:]
    assert right(networks["original"], others) == 1.0
    assert right(networks["hidden"], others) == 0.0  # it refuses, and so looks as good as
    assert right(networks["retrained"], others) <= 0.4
    back = {name: right(attack(networks[name], REQUEST), others) for name in ("hidden", "retrained")}
    assert back["hidden"] - back["retrained"] >= 0.6, back


def test_a_curve_begins_at_the_network_itself_and_audits_the_others_alone(networks):
    attack, budgets = Relearn(items=3), (0, 2, 6)
    curve = dict(attack.curve(networks["hidden"], REQUEST, Loss(), budgets))
    assert tuple(curve) == budgets
    forget = {k: next(f for f in found if f.set == "forget") for k, found in curve.items()}
    assert all(f.n == len(FORGET) - 3 for f in forget.values())
    (now,) = [f for f in Loss()(networks["hidden"], attack.others(REQUEST)) if f.set == "forget"]
    assert forget[0] == now
    # each budget is the attack with that many steps
    attacked = Relearn(items=3, steps=6)(networks["hidden"], REQUEST)
    assert forget[6] == next(f for f in Loss()(attacked, attack.others(REQUEST)) if f.set == "forget")
    values = [forget[k].value for k in budgets]
    assert min(values) <= area(budgets, values) <= max(values)
    assert first_reaching(budgets, values, values[0]) == 0


@pytest.mark.parametrize("budgets", [(2, 1), (1, 1), (-1, 2)])
def test_budgets_that_do_not_rise_are_refused(budgets):
    with pytest.raises(UsageRefused, match="budgets must rise from 0 or more"):
        list(Relearn(items=3).curve(blank(), REQUEST, Loss(), budgets))


def test_an_attacker_who_has_everything_leaves_nothing_to_measure():
    with pytest.raises(DataRefused, match="the attacker has all 8 forget examples"):
        Relearn(items=8)(blank(), REQUEST)


def test_a_source_that_is_not_there_is_refused():
    with pytest.raises(UsageRefused, match="there is no set 'related'. Sets: forget, retain, stand_in, unrelated"):
        Relearn(source="related")(blank(), REQUEST)
    with pytest.raises(UsageRefused, match="steps and items must be at least 1"):
        Relearn(steps=0)
