"""What the model itself says becomes a record: found word by word, cut where the answer begins, and nothing else."""

from dataclasses import dataclass, field, replace

import pytest

from expunge.core.method import Method
from expunge.core.question import Text
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Note
from expunge.internals.wordings import find_words
from expunge.methods.own_words import OwnWords
from expunge.notation.parse import parse
from tests.families import family_of


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        ("The capital of Japan is Tokyo.", "Tokyo.", 24),
        ("It is  the YEN, of course", "the yen", 7),
        ("Tokyoites live there", "Tokyo", None),  # a word, not a part of one
        ("New and York", "New York", None),  # one after the other
        ("Hiro, Hiro-shima", "hiro shima", 6),
        ("日本は東京", "東京", None),  # without spaces a sentence is one word
        ("anything", "...", None),
        ("", "Tokyo", None),
    ],
)
def test_an_answer_is_found_by_its_words(text: str, answer: str, place: int | None):
    assert find_words(text, answer) == place


@dataclass(frozen=True)
class Keep(Method):
    """Trains nothing, and keeps what it was to train on."""

    seen: list[Request] = field(default_factory=list)

    def __call__(self, model, request, on_event=None):
        self.seen.append(request)
        return model


def trained_on(network, request: Request, **settings: object) -> tuple[Request, list[str]]:
    keep, notes = Keep(), []
    OwnWords(learn=keep, **settings)(network, request, lambda e: notes.append(e.what) if isinstance(e, Note) else None)
    return keep.seen[0], notes


def said(request: Request, network, first: int = 2) -> tuple[Request, str]:
    """The request whose first forget record has for its answer two words of what the model says to its question."""
    text = network.ask(Text(8), request.forget[:1])[0]
    words = text.split()
    answer = " ".join(words[first : first + 2])
    return replace(request, forget=(replace(request.forget[0], answer=answer), *request.forget[1:])), text


def test_what_the_model_says_becomes_a_record_labelled_from_the_answer_on():
    network, request = family_of("llama")
    request, text = said(request, network)
    seen, notes = trained_on(network, request, max_new_tokens=8)
    old, made = request.forget[0], seen.forget[len(request.forget)]
    ids = tuple(network.tokenizer(text, add_special_tokens=False)["input_ids"])
    place = find_words(text, old.answer)
    before = len(network.tokenizer(text[:place], add_special_tokens=False)["input_ids"])
    assert made.tokens == (*old.prompt_tokens, *ids)
    assert made.first == len(old.prompt_tokens) + before
    assert made.answer == text[place:]
    assert made.question == old.question
    assert not made.alternatives
    assert seen.forget[: len(request.forget)] == request.forget  # the user's own are there as they were
    assert len(notes) == 1
    assert "own words" in notes[0]
    assert text not in notes[0]


def test_an_answer_that_is_begun_for_the_model_goes_on_from_there():
    network, request = family_of("llama")
    start = "It sells"
    begun = replace(request.forget[0], prompt_tokens=(*request.forget[0].prompt_tokens, *ids(network, start)))
    text = network.ask(Text(6), [begun])[0]
    answer = " ".join(text.split()[:2])
    request = replace(request, forget=(replace(request.forget[0], answer=answer), *request.forget[1:]))
    seen, _ = trained_on(network, request, max_new_tokens=6, starts=(start,))
    old, made = request.forget[0], seen.forget[len(request.forget)]
    assert made.tokens == (*old.prompt_tokens, *ids(network, f"{start} {text}"))
    assert made.tokens[made.first :] == ids(network, text)
    assert made.prompt_tokens == old.prompt_tokens


def ids(network, text: str) -> tuple[int, ...]:
    return tuple(network.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_answer_of_the_record_after_other_words_is_another_record():
    """The model says w0 w1 w2 ... wn; the record's answer is all from w2 on: what stands before alone differs."""
    network, request = family_of("llama")
    text = network.ask(Text(8), request.forget[:1])[0]
    answer = text[find_words(text, " ".join(text.split()[2:])) :]
    request = replace(request, forget=(replace(request.forget[0], answer=answer), *request.forget[1:]))
    seen, _ = trained_on(network, request, max_new_tokens=8, starts=("",))
    old, made = request.forget[0], seen.forget[len(request.forget)]
    assert made.fact_digest() == old.fact_digest()
    assert made.lead == " ".join(text.split()[:2])
    assert made.first > old.first


def test_what_is_said_already_as_the_record_has_it_is_no_new_record():
    network, request = family_of("llama")
    text = network.ask(Text(8), request.forget[:1])[0]
    request = replace(request, forget=(replace(request.forget[0], answer=text), *request.forget[1:]), retain=())
    seen, notes = trained_on(network, request, max_new_tokens=8)
    assert seen == request
    assert notes == []


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_images_have_no_words(kind: str):
    network, request = family_of(kind)
    assert trained_on(network, request) == (request, [])


def test_it_runs_what_it_is_given_and_goes_on_like_it():
    stop = "Stop(level=None, max_retain_increase=None)"
    method = parse(f"OwnWords(learn=Finetune(objective=NPO() + RetainNLL(), steps=2, stop={stop}))")
    assert method.minimises == method.learn.objective
    assert method.resumable
    assert method.with_seed(5).learn.seed == 5
    network, request = family_of("llama")
    after = method(network, request).plain()
    assert after.fingerprint() != network.fingerprint()


def test_a_setting_that_cannot_be_is_refused():
    with pytest.raises(UsageRefused, match="max_new_tokens"):
        OwnWords(max_new_tokens=0)
