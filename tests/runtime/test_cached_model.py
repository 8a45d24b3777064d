"""Answers kept on disk: found again by whoever asks exactly the same of exactly the same, and by nobody else."""

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.question import LogProbabilities, Scores, Text
from expunge.data.text import Passage
from expunge.errors import EnvironmentRefused
from expunge.models.language import LanguageModel
from expunge.runtime import cached_model
from expunge.runtime.answer_store import AnswerStore
from expunge.runtime.cached_model import CachedModel

ONE = Passage("a", (1, 5, 6, 7, 8), 3, "", "", prompt_tokens=(1, 5, 6))
TWO = Passage("b", (1, 9, 10, 11), 2, "", "", prompt_tokens=(1, 9))


@pytest.fixture
def network(tiny_tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval(), tiny_tokenizer)


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(tmp_path / "answers.sqlite")


def asked(network: LanguageModel, store: AnswerStore, example: Passage = ONE) -> int:
    """How many of one answer, one pass and one generation the store had."""
    model = CachedModel(network, store)
    model.ask(LogProbabilities(), [example])
    with torch.no_grad():
        model.ask(Scores(), [example])
    model.ask(Text(3), [example])
    return model.recalled


def test_the_second_time_everything_is_found_and_equal(network, store):
    first, second = CachedModel(network, store), CachedModel(network, store)
    for model in (first, second):
        model.ask(LogProbabilities(), [ONE, TWO])
        model.ask(Text(4), [ONE])
        with torch.no_grad():
            model.ask(Scores(), [TWO, ONE])
    assert (first.recalled, second.recalled) == (0, 5)
    assert torch.equal(first.ask(LogProbabilities(), [ONE]).log_probs, second.ask(LogProbabilities(), [ONE]).log_probs)
    assert first.ask(Text(4), [ONE]) == second.ask(Text(4), [ONE])
    with torch.no_grad():
        assert torch.equal(first.ask(Scores(), [ONE, TWO]).log_prob(), second.ask(Scores(), [ONE, TWO]).log_prob())


def test_an_unchanged_model_is_not_asked_again(network, store):
    asked(network, store)
    passes = []
    network.module.register_forward_hook(lambda *_: passes.append(1))
    assert asked(network, store) == 3
    assert passes == []


def test_a_model_of_which_one_weight_moved_is_asked_again(network, store):
    asked(network, store)
    with torch.no_grad():
        network.module.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    assert asked(network, store) == 0


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(ONE, tokens=(1, 5, 6, 7, 9)),
        dataclasses.replace(ONE, first=2),
        dataclasses.replace(ONE, prompt_tokens=(1, 5)),
    ],
)
def test_another_question_is_asked_anew(network, store, other):
    asked(network, store)
    assert asked(network, store, other) == 0
    assert asked(network, store, dataclasses.replace(ONE, id="renamed")) == 3


def test_other_settings_are_asked_anew(network, store, chat):
    asked(network, store)
    rope = dict(network.module.config.rope_parameters)
    network.module.config.rope_parameters = {**rope, "rope_theta": 1234.0}
    assert asked(network, store) == 0
    network.module.config.rope_parameters = rope
    assert asked(network, store) == 3
    network.module.generation_config.repetition_penalty = 1.5
    assert asked(network, store) == 0
    network.module.generation_config.repetition_penalty = 1.0
    words = dataclasses.replace(network, tokenizer=None)
    object.__setattr__(words, "tokenizer", chat)
    chat.add_tokens(["entirely-new"])
    assert asked(words, store) == 0


def test_other_code_is_asked_anew(network, store, monkeypatch):
    asked(network, store)
    monkeypatch.setattr(cached_model, "code", lambda: "changed")
    assert asked(network, store) == 0


def test_a_continuation_of_another_length_is_written_anew(network, store):
    CachedModel(network, store).ask(Text(3), [ONE])
    longer = CachedModel(network, store)
    longer.ask(Text(4), [ONE])
    assert longer.recalled == 0


def test_a_damaged_entry_is_as_good_as_absent(network, store):
    asked(network, store)
    with sqlite3.connect(store.path) as base:
        base.execute("UPDATE entries SET value = x'0123456789abcdef' || substr(value, 9)")
    assert asked(network, store) == 0
    assert asked(network, store) == 3


def test_a_file_that_is_no_database_ends_no_run(network, store):
    store.path.write_bytes(b"not a database" * 100)
    assert asked(network, store) == 0
    assert asked(network, store) == 0  # nothing is kept, and nothing of whoever wrote it is lost
    assert store.path.read_bytes() == b"not a database" * 100


def test_a_folder_that_cannot_be_written_to_ends_no_run(network, tmp_path):
    (tmp_path / "file").write_text("")
    store = AnswerStore(tmp_path / "file" / "answers.sqlite")
    assert asked(network, store) == 0
    assert store.size() == (0, 0)


def test_the_longest_unused_make_room(tmp_path):
    store = AnswerStore(tmp_path / "answers.sqlite", limit=3000)
    entry = {"x": torch.zeros(250)}  # 1,000 bytes and a header of less than 100
    store.put({b"a": entry, b"b": entry})
    store.get([b"a"])
    store.put({b"c": entry})
    assert set(store.get([b"a", b"b", b"c"])) == {b"a", b"c"}


def test_what_is_kept_can_be_read_only_with_the_record(store):
    written = "The capital of Aldoria is Veldt."
    store.put({b"the record": {"text": torch.tensor(list(written.encode()), dtype=torch.uint8)}})
    held = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert b"Veldt" not in held
    assert b"the record" not in held
    assert b"dtype" not in held  # not even the header of the tensors
    assert bytes(store.get([b"the record"])[b"the record"]["text"].tolist()).decode() == written
    assert store.get([b"another record"]) == {}


def test_nothing_is_kept_where_gradients_are_wanted(network):
    model = CachedModel(network)
    network.module.requires_grad_(True)
    assert model.ask(Scores(), [ONE]).states.requires_grad
    assert not model.replies.get(repr(Scores()))


def test_the_reference_is_read_once_however_many_epochs(network):
    model, passes = CachedModel(network), []
    network.module.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        both = model.ask(Scores(), [ONE, TWO])
        swapped = model.ask(Scores(), [TWO, ONE])
    assert len(passes) == 1
    one, two = both.cut([1, 1])
    # Close, since a kernel may sum the rows of a batch in an order of its own.
    torch.testing.assert_close(swapped.log_prob(), torch.cat([two.log_prob(), one.log_prob()]))


def test_class_scores_of_a_large_vocabulary_are_not_kept(network, store, monkeypatch):
    monkeypatch.setattr("expunge.runtime.cached_model.WIDEST", len(network.tokenizer) - 1)
    model = CachedModel(dataclasses.replace(network, headed=False), store)  # as where a cap follows the output matrix
    with torch.no_grad():
        said = model.ask(Scores(), [ONE])
        assert torch.equal(model.ask(Scores(), [ONE]).states, said.states)
    assert said.states.shape == (2, len(network.tokenizer))
    assert not model.replies.get(repr(Scores()))
    assert store.size() == (0, 0)


@pytest.mark.parametrize("kind", ["text", "database", "folder"])
def test_a_file_of_another_program_in_the_cache_s_place_is_left_alone(kind: str, tmp_path: Path):
    path = tmp_path / "answers.sqlite"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("somebody's notes, and rather long ones at that: " + "x" * 200)
    else:
        with closing(sqlite3.connect(path)) as base, base:
            base.execute("CREATE TABLE entries (mine TEXT)")
    was = path.read_bytes() if path.is_file() else b""
    store = AnswerStore(path)
    store.put({b"a": {"x": torch.ones(2)}})
    assert (store.get([b"a"]), store.size()) == ({}, (0, 0))
    with pytest.raises(EnvironmentRefused, match="is no cache of expunge, so it is not removed"):
        store.clear()
    assert (path.read_bytes() if path.is_file() else b"") == was
    assert [each.name for each in tmp_path.iterdir()] == ["answers.sqlite"]


def test_a_damaged_cache_of_ours_is_made_anew(tmp_path: Path):  # V02
    store = AnswerStore(tmp_path / "answers.sqlite")
    store.put({b"a": {"x": torch.ones(2)}})
    content = bytearray(store.path.read_bytes())
    content[100:] = bytes(len(content) - 100)
    store.path.write_bytes(content)
    store.get([b"a"])
    store.put({b"b": {"x": torch.ones(3)}})
    assert torch.equal(store.get([b"b"])[b"b"]["x"], torch.ones(3))
