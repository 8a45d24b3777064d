"""Reading twice: the prompt again before the prompt, the answer's rows as they were, and nothing around it noticed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge import open_model
from expunge.core.model import network_of
from expunge.core.question import HiddenStates, LogProbabilities, RowStatistics, Scores, Text
from expunge.data.text import Passage
from expunge.errors import UsageRefused
from expunge.guard.twice import Twice
from expunge.notation.parse import parse
from tests.families import llama, text_request

REQUEST = text_request()
SHORT = (Passage("a", (5, 6, 7, 8), 2, "", "", "", (5, 6)), Passage("text", (5, 6, 7), 1, "", ""))


def test_a_prompt_is_read_as_often_as_is_said_and_a_plain_text_once():
    network = llama()
    by_hand = (replace(SHORT[0], tokens=(5, 6, 5, 6, 5, 6, 7, 8), first=6, prompt_tokens=(5, 6) * 3), SHORT[1])
    thrice = Twice(times=3)(network, REQUEST)
    for question in (LogProbabilities(), RowStatistics()):
        ours, theirs = thrice.ask(question, SHORT), network.ask(question, by_hand)
        assert torch.equal(ours.log_probs, theirs.log_probs)
        assert ours.labels.tolist() == [7, 8, 6, 7]
    with torch.inference_mode():
        assert torch.equal(thrice.ask(Scores(), SHORT).logits, network.ask(Scores(), by_hand).logits)
    assert thrice.ask(Text(4), SHORT[:1]) == network.ask(Text(4), by_hand[:1])


def test_read_once_it_is_the_model_and_twice_it_is_not():
    network = llama()
    alone = network.ask(LogProbabilities(), REQUEST.forget).log_probs
    assert torch.equal(Twice(times=1)(network, REQUEST).ask(LogProbabilities(), REQUEST.forget).log_probs, alone)
    twice = Twice()(network, REQUEST)
    assert not torch.allclose(twice.ask(LogProbabilities(), REQUEST.forget).log_probs, alone, atol=1e-3)
    assert twice.fingerprint() != network.fingerprint()
    assert twice.settings() != Twice(times=3)(network, REQUEST).settings()  # so a cache tells them apart


def test_audits_ask_it_as_any_model_and_it_is_saved_and_opened(tmp_path: Path):
    twice = Twice()(llama(), REQUEST)
    found = parse("Choice()")(twice, REQUEST) + parse("Rouge(max_new_tokens=3)")(twice, REQUEST)
    assert {finding.set for finding in found} >= {"forget", "retain", "holdout"}
    twice.save(tmp_path / "twice")
    read = open_model(tmp_path / "twice")
    assert torch.equal(read.ask(LogProbabilities(), SHORT).log_probs, twice.ask(LogProbabilities(), SHORT).log_probs)


def test_it_is_no_network_and_reads_a_prompt_at_least_once():
    with pytest.raises(UsageRefused, match="gives answers only"):
        network_of(Twice()(llama(), REQUEST), "An edit")
    assert not Twice()(llama(), REQUEST).answers_to(HiddenStates)
    with pytest.raises(UsageRefused, match="at least 1. Got 0"):
        Twice(times=0)
