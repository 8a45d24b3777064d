"""Which tokens are scored, as each published code counts them."""

import pytest

from expunge.benchmarks._wording import DATE, PLAIN, SYSTEM, Wording
from expunge.errors import DataRefused, UsageRefused
from tests.conftest import tokenizer

ANSWER = "The capital of Aldoria is Veldt."
ASKED = ("record", "What is the capital?", [ANSWER])


def scored(wording: Wording) -> str:
    [made] = wording.write(*ASKED)
    return wording.tokenizer.decode(made.tokens[made.first :])


def test_open_unlearning_masks_the_first_word_behind_a_tag_that_ends_in_a_space(plain):
    wording = Wording(plain, "open-unlearning")
    [made] = wording.write(*ASKED)
    # The prompt's own last token is a space, which in the whole text is part of the answer's first word.
    assert plain.decode(made.prompt_tokens) == "Question: What is the capital?\nAnswer: "
    assert made.first == len(made.prompt_tokens)
    alone = plain.decode(made.tokens[: made.first])
    assert alone.startswith("Question: What is the capital?\nAnswer: ")
    assert len(alone) > len("Question: What is the capital?\nAnswer: ")
    assert made.tokens[-1] == plain.eos_token_id


def test_without_that_space_the_whole_answer_is_scored(plain):
    template = "Question: {question}\nAnswer:{answer}"
    assert scored(Wording(plain, "open-unlearning", template)) == f"{ANSWER}<|eos|>"


def test_the_released_code_scores_the_tag_of_the_last_line_and_continues_from_before_it(plain):
    wording = Wording(plain, "released")
    assert scored(wording) == f"Answer: {ANSWER}<|eos|>"
    [made] = wording.write(*ASKED)
    assert plain.decode(made.prompt_tokens) == "Question: What is the capital?\n"
    assert made.answer == ANSWER
    # Llama 2's template has the question on its last line, so nothing of it is the answer's
    assert scored(Wording(plain, "released", "[INST] {question} [/INST]{answer}")) == f"{ANSWER}<|eos|>"


@pytest.mark.parametrize(("counting", "longest"), [("released", 500), ("open-unlearning", 512)])
def test_a_long_text_is_cut_and_its_end_token_comes_after_that(counting: str, longest: int, plain):
    [made] = Wording(plain, counting).write("long", "Why?", ["because " * 600])
    assert len(made.tokens) == longest + 1
    assert made.tokens[-1] == plain.eos_token_id


def test_open_unlearning_gives_chats_a_system_turn_and_a_date():
    words = tokenizer()
    words.chat_template = (
        "{{ date_string }}|{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    [made] = Wording(words, "open-unlearning").write(*ASKED)
    assert made.prompt == f"{DATE}|<|system|>{SYSTEM}<|end|><|user|>{ASKED[1]}<|end|><|assistant|>"
    assert words.decode(made.tokens[made.first :]) == f"{ANSWER}<|end|><|eos|>"  # the template's end is not its eos


def test_the_other_definitions_score_a_chat_as_an_audit_does(chat):
    [made] = Wording(chat, "released").write(*ASKED)
    assert chat.decode(made.tokens[made.first :]) == f"{ANSWER}<|end|>"


def test_a_template_is_taken_in_place_of_a_chat_template(chat, plain):
    one, other = (made.write(*ASKED) for made in (Wording(chat, "released", PLAIN), Wording(plain, "released")))
    assert one[0].tokens == other[0].tokens


@pytest.mark.parametrize("counting", ["released", "open-unlearning"])
def test_several_answers_are_written_as_each_would_be_alone(plain, chat, counting):
    for each in (plain, chat):
        wording, answers = Wording(each, counting), ["In Veldt.", "It is far from here, by the sea.", "No"]
        together = wording.write("record", "Where?", answers)
        assert together == [made for answer in answers for made in wording.write("record", "Where?", [answer])]


@pytest.mark.parametrize("template", ["{answer}", "{question}", "{question}{question}{answer}", "{question}{answer}."])
def test_a_template_holds_the_question_once_and_ends_in_the_answer(template: str, plain):
    with pytest.raises(UsageRefused, match="--template must hold {question} once and end in {answer}"):
        Wording(plain, "released", template)


def test_a_question_that_leaves_no_room_for_its_answer_is_refused_without_its_text():
    words = tokenizer(pad_token="<|eos|>")
    words.eos_token = None
    with pytest.raises(DataRefused, match="Record long has no token to score") as refused:
        Wording(words, "released").write("long", "why " * 600, ["Veldt"])
    assert "why" not in str(refused.value)
