"""The probes that come with the package: asked where nobody says what should stay, and said to be so."""

from dataclasses import replace

import pytest

import expunge
from expunge.core.request import Request
from expunge.data import text
from expunge.events import Note
from expunge.run.added import NAMES, PLACE, add_probes
from tests.families import llama, passages, picture_request, text_request, vit
from tests.run.test_unlearn import SHORT


def test_a_language_model_is_asked_general_knowledge_and_plain_prose_where_no_probe_should_stay():
    given = replace(text_request(), probes={"paraphrase": passages(["Alice", "Berta"], 5)})
    request, added = add_probes(llama(), given)
    assert added == ("general", "neutral")
    assert list(request.probes) == ["paraphrase", "general", "neutral"]
    assert (len(request.probes["general"]), len(request.probes["neutral"]) >= 6) == (49, True)
    assert all(example.alternatives for example in request.probes["general"])
    assert not any(example.question for example in request.probes["neutral"])


def test_who_gives_a_probe_that_should_stay_gets_no_other():
    given = replace(text_request(), probes={"world": passages(["Alice", "Berta"], 5)})
    assert add_probes(llama(), given) == (given, ())


def test_a_model_of_images_is_asked_none():
    assert add_probes(vit(), picture_request()) == (picture_request(), ())


def test_a_question_that_the_request_asks_already_is_left_out():
    network = llama()
    records = text.load(PLACE / "general.jsonl")
    [first, *_] = text.encode_for(records, network, "memory")
    request, _ = add_probes(network, Request(forget=(first, *passages(["Alice"], 0))))
    assert len(request.probes["general"]) == 48
    assert first.question not in [example.question for example in request.probes["general"]]


def test_a_model_that_cannot_read_them_goes_without_and_it_is_said():
    network, told = llama(), []
    network.module.config.max_position_embeddings = 12
    request, added = add_probes(network, text_request(), told.append)
    assert added == ("neutral",)  # whose texts are cut into pieces
    assert list(request.probes) == ["neutral"]
    assert [type(event) for event in told] == [Note]
    assert "The probe general that comes with expunge could not be asked" in told[0].what


@pytest.fixture(scope="module")
def made() -> expunge.Report:
    return expunge.unlearn(llama(), text_request(), SHORT, "Loss, Choice")


def test_a_report_says_that_they_were_added_and_keeps_the_fingerprint_of_what_was_given(made):
    assert {name: made.request.sets[name].source for name in NAMES} == dict.fromkeys(NAMES, "added by expunge")
    assert made.request.fingerprint == text_request().fingerprint()
    assert any("expunge added general and neutral" in limit for limit in made.limits)
    assert any("Only the records themselves were asked" in limit for limit in made.limits)
    judged = {rule.rule.split(" ")[0] for rule in made.verdict.unharmed.rules}
    assert {"general.Loss", "general.Choice", "neutral.Loss"} <= judged
    assert not [line for line in made.verdict.unharmed.unmeasured if "besides the retain set" in line]


def test_they_can_be_left_out(made):
    without = expunge.unlearn(llama(), text_request(), SHORT, "Loss, Choice", added_probes=False)
    assert set(without.request.sets) == set(made.request.sets) - set(NAMES)
    assert without.result == made.result
