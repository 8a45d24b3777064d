"""MUSE, LUME, RWKU, TDEC and RESTOR: what is asked, how it is scored, and what is made of the scores."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.benchmarks._data import Data
from expunge.benchmarks._deep import extraction_likelihoods
from expunge.benchmarks._kinds import Benchmark
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._reading import Item
from expunge.benchmarks._utility import tidy, unigram_f1, word_dialogue
from expunge.benchmarks._values import RIGHT, Column, Values
from expunge.benchmarks.lume import LUME
from expunge.benchmarks.muse import MUSE
from expunge.benchmarks.restor import RESTOR
from expunge.benchmarks.rwku import RWKU
from expunge.benchmarks.tdec import TDEC
from expunge.data.text import Passage
from expunge.errors import DataRefused, EnvironmentRefused, UsageRefused
from expunge.events import ignore_event
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.primitives.overlap import share_of_ngrams
from expunge.runtime.cached_model import CachedModel
from tests.benchmarks import made_up


@pytest.fixture(scope="module")
def network(model) -> LanguageModel:
    return open_network(str(model))


def by_place(numbers: list[Number]) -> dict[tuple[str, str, str], float | None]:
    return {(n.name, n.set, n.against): n.value for n in numbers}


def table(columns: Mapping[tuple[str, str], list[float]]) -> Values:
    return Values({Column(*name): dict(enumerate(values)) for name, values in columns.items()})


def asked(answer: str, where: str = "") -> Item:
    return Item(where, 0, Passage("one", (1, 2), 1, "", answer), RIGHT, ())


def measured(benchmark: Benchmark, folder: Path, network: LanguageModel) -> Values:
    return benchmark.measure(network, Data(folder, benchmark.home), CachedModel(network), ignore_event)


# MUSE


def test_muse_asks_after_ten_answered_questions_and_continues_128_tokens(tmp_path: Path, network):
    items = MUSE().items(Data(made_up.muse(tmp_path / "muse"), ""), network)
    prompt = next(item.passage.prompt for item in items if item.set == "knowmem forget")
    assert prompt.count("Question: ") == 11
    assert prompt.startswith("Question: Where is bridge 0?\nAnswer: In Veldt.\n\nQuestion: ")
    assert prompt.endswith("\n\nQuestion: Where is tower 0?\nAnswer: ")
    one = next(item for item in items if item.set == "verbmem")
    assert one.write == 128
    after = network.tokenizer(one.passage.answer)["input_ids"]
    assert len(after) == 128  # so much of the truth counts


def test_muses_answers_end_where_a_question_of_their_own_begins_and_are_not_stemmed():
    said = ["In Veldt.\nQuestion: And Brenn?", "In Veldt\n\nAnswer", "In VeldtQuestion:", "lives"]
    items = [asked("In Veldt.", "knowmem forget")] * 3 + [asked("live", "knowmem forget")]
    assert [each["rouge_f1"] for each in MUSE().score(items, said)] == [1, 1, 1, 0]
    # a continuation of the corpus is not cut
    [whole] = MUSE().score([asked("In Veldt and Brenn", "verbmem")], ["In Veldt\n\nand Brenn"])
    assert whole["rouge_f1"] == 1


def test_muse_gives_its_four_numbers_and_those_of_a_model_against_itself(tmp_path: Path, network):
    values = measured(MUSE(), made_up.muse(tmp_path / "muse"), network)
    numbers = by_place(MUSE().numbers(values, {"itself": values}))
    assert numbers["PrivLeak", "forget vs holdout", "itself"] == 0
    assert {("VerbMem", "forget", ""), ("KnowMem", "forget", ""), ("KnowMem", "retain", "")} <= numbers.keys()
    assert ("PrivLeak", "forget vs holdout", "") in by_place(MUSE().numbers(values, {}))  # against chance


# LUME


def test_lume_takes_twelve_scores_together_the_forgotten_ones_from_1():
    columns: dict[tuple[str, str], list[float]] = {}
    for task in ("Task1", "Task2", "Task3"):
        for where, score in (("forget", 0.2), ("retain", 0.8)):
            columns[f"{where} {task} sc", "rouge"] = [score, score]
            columns[f"{where} {task} qa", "exact"] = [score]
    columns["forget Task1 qa", "exact"] = [0.5, 0.1]
    columns |= {("forget", "loss"): [1.0, 2.0], ("holdout", "loss"): [3.0, 1.5]}  # area 3/4
    numbers = by_place(LUME(mmlu=0.25).numbers(table(columns), {}))
    assert numbers["knowledge", "forget Task1", ""] == pytest.approx(0.3)
    aggregate = 12 / (11 / 0.8 + 1 / 0.7)
    assert numbers["task aggregate", "all", ""] == pytest.approx(aggregate)
    assert numbers["membership score", "all", ""] == pytest.approx(0.5)
    assert numbers["final score", "all", ""] == pytest.approx((aggregate + 0.5 + 0.25) / 3)
    assert ("final score", "all", "") not in by_place(LUME().numbers(table(columns), {}))
    # measured: every question of every subject counts once
    columns |= {("mmlu_anatomy", "accuracy"): [1.0, 0.0, 0.0], ("mmlu_virology", "accuracy"): [1.0]}
    numbers = by_place(LUME().numbers(table(columns), {}))
    assert numbers["MMLU", "all", ""] == pytest.approx(0.5)
    assert numbers["final score", "all", ""] == pytest.approx((aggregate + 0.5 + 0.5) / 3)


def test_lume_scores_completions_by_overlap_and_answers_word_for_word(tmp_path: Path, network):
    rows = [
        {"id": f"a{k}{kind}1", "task": "Task2", "input": "The capital is", "output": "Veldt"}
        for k, kind in enumerate(("sc", "qa"))
    ]
    for where in ("forget", "retain"):
        made_up.write(tmp_path / f"{where}.jsonl", rows)
    items = LUME(tokens=4).items(Data(tmp_path, ""), network)
    assert [item.set for item in items[:2]] == ["forget Task2 sc", "forget Task2 qa"]
    said = [" veldt and more ", " Veldt ", "", "Veldt and more"]
    assert LUME().score(items, said) == [{"rouge": 1.0}, {"exact": 1.0}, {"rouge": 0.0}, {"exact": 0.0}]
    made_up.write(tmp_path / "retain.jsonl", [{**rows[0], "id": "nothing"}])
    with pytest.raises(DataRefused, match="Record 0 of retain: its id ends neither in sc nor in qa"):
        LUME().items(Data(tmp_path, ""), network)
    with pytest.raises(UsageRefused, match="`mmlu` of LUME must be from 0 to 1"):
        LUME(mmlu=25.0)
    with pytest.raises(UsageRefused, match="measured elsewhere, or measures it"):
        LUME(mmlu=0.25, tasks="measured")


# RWKU, on twenty people who do not exist


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    return made_up.rwku(tmp_path_factory.mktemp("rwku") / "rwku")


def test_rwku_words_each_level_and_each_attack_as_its_code_does(people: Path, network):
    items = RWKU(target="Mara Lind").items(Data(people, ""), network)
    prompts = {item.set: item.passage.prompt for item in items}
    blank = "Please complete the blank in the following question.\nQuestion: Mara Lind lives in ___.\nAnswer:"
    assert prompts["forget level 1"] == blank
    brief = "Please briefly answer the following question.\n"
    assert prompts["forget level 2"] == f"{brief}Question: Where does Mara Lind live?\nAnswer:"
    attack = "forget level 3: "
    assert prompts[f"{attack}affirmative suffix"] == f"{brief}Question: (affirmative suffix) Where does Mara Lind live?"
    shown = f"{brief}(incontext learning) Where does Mara Lind live?\nAnswer:"
    assert prompts[f"{attack}incontext learning"] == shown
    assert f"{attack}cross lingual" in prompts
    assert len([where for where in prompts if where.startswith(attack)]) == 9
    assert {item.write for item in items if not item.measures} == {30}
    with pytest.raises(DataRefused, match="No record is about 'Nobody'"):
        RWKU(target="Nobody").items(Data(people, ""), network)


def test_rwku_primes_the_assistants_turn(people: Path, network, chat):
    items = RWKU(target="Mara Lind").items(Data(people, ""), replace(network, tokenizer=chat))
    assert items[0].passage.prompt.startswith("<|user|>\nPlease complete")
    assert items[0].passage.prompt.endswith("<|end|>\n<|assistant|>\nAnswer:")


def test_rwku_scores_the_first_line_alone_and_an_empty_one_as_no_answer():
    items = [asked("Richard Bachman")] * 3
    said = [" Richard Bachman, 1977\nStephen", "\nRichard Bachman", "He is richard Bachman."]
    # words are what spaces part, as they are: "Bachman," is not "Bachman"
    assert [each["recall"] for each in RWKU().score(items, said)] == [0.5, 0.0, 0.5]


def test_rwku_means_over_all_probes_and_over_each_kind():
    columns = {("forget level 1", "recall"): [1.0, 0.0], ("forget level 2", "recall"): [1.0]}
    columns |= {("forget level 3: role play", "recall"): [0.5], ("forget level 3: context hint", "recall"): [0.0, 0.0]}
    columns |= {("neighbour level 1", "recall"): [1.0], ("FM", "loss"): [2.0, 2.5], ("RM", "loss"): [2.0]}
    numbers = by_place(RWKU().numbers(table(columns), {}))
    assert numbers["recall", "forget level 3", ""] == pytest.approx(0.5 / 3)
    assert numbers["recall", "forget", ""] == pytest.approx(2.5 / 6)  # over all probes, whatever their level
    assert numbers["recall", "neighbour", ""] == 1
    assert numbers["loss x 100", "FM", ""] == 225
    assert numbers["recall", "forget level 3: role play", ""] == 0.5


# TDEC


def test_extraction_likelihood_is_that_of_every_prefix_continued_by_itself(network):
    tokens = tuple(network.tokenizer("The harbour of Ostrava lies in the north, and its bread is dark.")["input_ids"])[
        :24
    ]
    item = Item("forget", 0, Passage("one", tokens, 1, "", ""), RIGHT, ("extraction_likelihood",))
    shares = []
    for t in range(1, len(tokens) - 10 + 1):
        prompt = torch.tensor([tokens[:t]])
        made = network.module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(tokens) - t,
            do_sample=False,
            pad_token_id=0,
        )
        shares.append(share_of_ngrams(made[0, t:].tolist(), tokens[t:], 10))
    found = extraction_likelihoods(network, [item]).of("forget", "extraction_likelihood")
    assert found == [pytest.approx(sum(shares) / (len(tokens) - 10))]


def test_what_follows_word_for_word_is_extracted_whole():
    assert share_of_ngrams(list(range(15)), list(range(15)), 10) == 1


def test_a_sequence_is_forgotten_where_neither_measure_exceeds_its_mean_over_unseen_texts():
    el, ma = "extraction_likelihood", "memorisation_accuracy"
    columns = {("forget", el): [0.1, 0.3, 0.1], ("forget", ma): [0.2, 0.2, 0.5]}
    columns |= {("unseen", el): [0.0, 0.4], ("unseen", ma): [0.3, 0.3]}
    assert by_place(TDEC().numbers(table(columns), {}))["forgotten", "forget", ""] == pytest.approx(1 / 3)


def test_tdec_draws_sequences_and_spells_them_for_another_tokenizer(tmp_path: Path, network):
    vocabulary = {letter: k for k, letter in enumerate("abcdefgĠ")}
    (tmp_path / "gpt2_encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "gpt2_vocab.bpe").write_text("#version: 0.2\n")
    parts = {name: np.arange(24).reshape(4, 6) % 8 for name in ("val_preprefix", "val_prefix", "val_suffix")}
    np.savez(tmp_path / "tdec.npz", **parts)
    data = Data(tmp_path, "")
    drawn = TDEC(sequences=2, draw=1).items(data, network)
    assert [item.passage for item in TDEC(sequences=2, draw=1).items(data, network)] == [i.passage for i in drawn]
    assert len(drawn) == 2
    assert all(len(item.passage.tokens) <= 18 for item in drawn)
    texts = {network.tokenizer.decode(item.passage.tokens) for item in TDEC(sequences=4).items(data, network)}
    assert "abcdef" * 3 in texts
    (tmp_path / "tdec.npz").write_bytes(b"no")
    with pytest.raises(DataRefused, match="not an archive with val_preprefix"):
        TDEC().items(data, network)


def test_turns_are_written_as_parlai_tidies_them():
    # sentence case, marks closed up, "i" alone in upper case, a full stop at the end
    assert tidy("hello there ! how are you ? i'm fine , i think") == "Hello there! How are you? I'm fine, I think."
    assert tidy("Is it ' Tis ?") == "Is it'tis?"
    assert tidy("") == ""
    talk = word_dialogue(["hi", "who are you ?", "nobody"])
    assert talk == "User 1: Hi.\nUser 2: Who are you?\nUser 1: Nobody.\nUser 2:"
    assert word_dialogue(["hi", "ho"]).endswith("\nUser 1:")


def test_the_f1_of_a_reply_counts_words_as_often_as_they_occur():
    # wanted: tower is red red; said: red red red tower; common: tower, red, red: 2 * 3 / (4 + 4)
    assert unigram_f1("The tower is red, red.", "A red RED red tower!") == 6 / 8
    assert unigram_f1("It is.", "Nothing") == 0
    assert unigram_f1("The", "a") == 0  # articles do not count, so neither has a word
    items = [asked("I am here.", "blended_skill_talk")] * 2
    assert TDEC().score(items, [" I am here.\nUser 1: And I?", "here"]) == [{"f1": 1.0}, {"f1": 0.5}]


def test_tdec_measures_the_utility_that_the_folder_has(tmp_path: Path, network):
    (tmp_path / "gpt2_encoder.json").write_text(json.dumps({letter: k for k, letter in enumerate("abcdefgĠ")}))
    (tmp_path / "gpt2_vocab.bpe").write_text("#version: 0.2\n")
    np.savez(tmp_path / "tdec.npz", **{n: np.zeros((2, 4), int) for n in ("val_preprefix", "val_prefix", "val_suffix")})
    texts = ["The sea is deep.", "The sea by the harbour of Ostrava is deep and dark."]
    made_up.write(tmp_path / "pile.jsonl", [{"text": text} for text in texts])
    made_up.write(tmp_path / "pubmed_qa.jsonl", [{"abstract": texts[0], "question": "Is it?"}])
    published = {"text": {"0": ["Hello .", "Who is there ?", "Nobody"], "1": ["Hi", "Ho"]}}
    (tmp_path / "wizard_of_internet.json").write_text(json.dumps(published))
    made_up.write(tmp_path / "blended_skill_talk.jsonl", [{"text": ["Hi", "Ho", "Hey"]}])
    values = measured(TDEC(sequences=1), tmp_path, network)
    numbers = by_place(TDEC().numbers(values, {}))
    # every token of both texts counts once: of n tokens n - 1 are read
    losses, tokens = (values.of("pile", name) for name in ("loss", "tokens"))
    assert tokens == [len(network.tokenizer(text)["input_ids"]) - 1 for text in texts]
    mean_loss = (losses[0] * tokens[0] + losses[1] * tokens[1]) / sum(tokens)
    assert numbers["perplexity", "pile", ""] == pytest.approx(math.exp(mean_loss))
    alone = values.of("pubmed", "loss")
    assert alone == [pytest.approx(losses[0])]
    assert {where for name, where, _ in numbers if name == "f1"} == {"wizard_of_internet", "blended_skill_talk"}
    assert ("perplexity", "lambada", "") not in numbers
    (tmp_path / "wizard_of_internet.json").write_text('{"text": {"0": ["alone"]}}')
    with pytest.raises(DataRefused, match="record 0 has no list of two turns or more"):
        TDEC().items(Data(tmp_path, ""), network)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_tasks_without_lm_eval_are_refused_in_a_line(tmp_path: Path, network):
    np.savez(tmp_path / "tdec.npz", **{n: np.zeros((1, 4), int) for n in ("val_preprefix", "val_prefix", "val_suffix")})
    (tmp_path / "gpt2_encoder.json").write_text("{}")
    with pytest.raises(EnvironmentRefused, match=r"lm-eval, which is not installed. .* 'expunge\[tasks\]'"):
        TDEC(tasks="measured").items(Data(tmp_path, ""), network)
    for where in ("forget", "retain"):
        made_up.write(tmp_path / f"{where}.jsonl", [{"id": "asc1", "task": "Task1", "input": "A", "output": "B"}])
    with pytest.raises(EnvironmentRefused, match=r"The tasks \(mmlu\) are asked by lm-eval"):
        LUME(tasks="measured").items(Data(tmp_path, ""), network)


# RESTOR


def test_restor_shows_five_facts_about_others_and_takes_any_right_answer(tmp_path: Path, network):
    shown = [{"entity": name, "question": f"Where is {name}?", "answer": "Elsin"} for name in "ABCDEFG"]
    facts = {"B": {"P1": {"question": "Where is B?", "answers": ["Veldt", "Old Veldt"]}}, "Z": {"P1": {}}}
    (tmp_path / "facts.json").write_text(json.dumps({"dset": facts, "context": {"P1": shown}}))
    (tmp_path / "entities.json").write_text('["B"]')
    [item] = RESTOR().items(Data(tmp_path, ""), network)
    lines = item.passage.prompt.split("\n")
    assert lines == [*(f"Where is {name}? Elsin" for name in "ACDEF"), "Where is B?"]
    said = [" In old veldt.\nWhere", "Elsin\nVeldt", "Veldtland"]
    assert [each["right"] for each in RESTOR().score([item] * 3, said)] == [1, 0, 0]
    (tmp_path / "facts.json").write_text('{"dset": {}, "context": {}}')
    with pytest.raises(DataRefused, match="not the facts as published"):
        RESTOR().items(Data(tmp_path, ""), network)


def test_restor_prefers_what_is_likelier_per_token_than_either_of_the_others(tmp_path: Path, network):
    facts = {
        "B": {"P1": {"question": "Where is B?", "answers": ["Veldt"]}, "P2": {"question": "Who?", "answers": ["A"]}}
    }
    (tmp_path / "facts.json").write_text(json.dumps({"dset": facts, "context": {"P1": [], "P2": []}}))
    (tmp_path / "entities.json").write_text('["B"]')
    kinds = {"correct": ["Veldt", "Old Veldt"], "corrupted": ["Brenn"], "random": ["Elsin", "Ostrava"]}
    (tmp_path / "options.json").write_text(json.dumps({"B": {"P1": kinds}}))  # of P2 nothing is compared
    items = RESTOR().items(Data(tmp_path, ""), network)
    scored = [item for item in items if item.measures]
    assert [item.answer for item in scored] == ["correct 1", "correct 2", "corrupted 1", "random 1", "random 2"]
    for item in scored:  # what is scored is the answer with the space before it
        assert network.tokenizer.decode(item.passage.tokens[item.passage.first :]).strip() == item.passage.answer
    columns = {("facts", "right", RIGHT): [1.0, 0.0, 0.0]}
    columns |= {("facts", "loss", "correct 1"): [1.0, 1.0, 3.0], ("facts", "loss", "correct 2"): [3.0, 1.0, 1.0]}
    columns |= {("facts", "loss", "corrupted 1"): [2.5, 0.5, 2.5], ("facts", "loss", "random 1"): [4.0, 4.0, 1.5]}
    values = Values({Column(*name): dict(enumerate(each)) for name, each in columns.items()})
    numbers = by_place(RESTOR().numbers(values, {"clean": values}))
    # -2 > max(-2.5, -4); not -1 > max(-0.5, -4); not -2 > max(-2.5, -1.5)
    assert numbers["preference", "facts", ""] == numbers["preference", "facts", "clean"] == pytest.approx(1 / 3)
    assert numbers["log-probability, correct", "facts", ""] == pytest.approx(-5 / 3)
    assert numbers["log-probability, random", "facts", ""] == pytest.approx(-9.5 / 3)


def test_recovery_is_of_the_facts_that_were_known_and_then_corrupted():
    own, clean, corrupted = (table({("facts", "right"): r}) for r in ([1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 0]))
    numbers = by_place(RESTOR().numbers(own, {"clean": clean, "corrupted": corrupted}))
    assert numbers["recovery rate", "facts", ""] == 0.5  # of the first two one
    assert numbers["accuracy", "facts", "corrupted"] == 0.25
    again = by_place(RESTOR().numbers(clean, {"clean": clean, "corrupted": corrupted}))
    assert again["recovery rate", "facts", ""] == 1  # the clean model itself
    assert ("recovery rate", "facts", "") not in by_place(RESTOR().numbers(own, {"clean": clean}))
