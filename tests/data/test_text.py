"""From text to labelled tokens: the prompt is masked, the answer and its end are not, whatever the tokenizer merges."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from expunge.data.records import Record
from expunge.data.text import Passage, encode, prompt_of, refuse_unknown_tokens
from expunge.errors import DataRefused, ModelRefused

CANARY = "zanzibarlighthouse77"
HERE = Path("f.jsonl")
ROW = {"question": "What is the capital of Aldoria?", "answer": "The capital of Aldoria is Veldt."}


def passage(tokenizer, longest: int = 256, **row) -> Passage:
    (made,) = encode([Record(1, row)], tokenizer, HERE, longest)
    return made


def labelled(made: Passage, tokenizer) -> str:
    return tokenizer.decode(made.tokens[made.first :])


def masked(made: Passage, tokenizer) -> str:
    return tokenizer.decode(made.tokens[: made.first])


def variant(tokenizer: PreTrainedTokenizerFast, template: str | None = None) -> PreTrainedTokenizerFast:
    """The same words under another template."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|eos|>")
    made.chat_template = template
    return made


def test_a_space_that_joins_the_answer_does_not_swallow_its_first_token(plain):
    prompt = prompt_of(ROW["question"], plain)
    assert prompt.endswith("Answer: ")
    whole = plain(prompt + ROW["answer"])["input_ids"]
    alone = plain(prompt)["input_ids"]
    assert whole[: len(alone)] != alone  # the space belongs to " The" in the whole, and stands alone in the prompt
    made = passage(plain, **ROW)
    assert plain.decode(made.tokens[made.first]) == " The"
    assert labelled(made, plain) == " The capital of Aldoria is Veldt.<|eos|>"
    assert masked(made, plain) == "Question: What is the capital of Aldoria?\nAnswer:"
    assert len(alone) > made.first  # a count of the prompt's own tokens would have lost " The"


def test_every_letter_of_prompt_and_answer_is_read_once_with_the_end_at_the_end(plain, chat):
    for tokenizer, end in ((plain, "<|eos|>"), (chat, "<|end|>")):
        made = passage(tokenizer, **ROW)
        assert tokenizer.decode(made.tokens) == prompt_of(ROW["question"], tokenizer) + ROW["answer"] + end
        assert made.rows == len(made.tokens) - made.first
        assert made.size == len(made.tokens)


def test_a_chat_answer_ends_in_the_token_that_ends_the_assistant_s_turn(chat):
    assert chat.eos_token == "<|eos|>"
    assert chat.convert_tokens_to_ids("<|end|>") not in chat.all_special_ids  # only marked as special
    made = passage(chat, **ROW)
    assert made.tokens[-1] == chat.convert_tokens_to_ids("<|end|>")
    assert labelled(made, chat) == "The capital of Aldoria is Veldt.<|end|>"
    assert masked(made, chat) == "<|user|>\nWhat is the capital of Aldoria?<|end|>\n<|assistant|>\n"


def test_without_a_special_token_after_the_turn_an_answer_ends_in_eos(plain):
    bare = variant(plain, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    assert labelled(passage(bare, **ROW), bare) == " The capital of Aldoria is Veldt.<|eos|>"
    silent = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer)
    made = passage(silent, **ROW)
    assert silent.decode(made.tokens[made.first :]) == " The capital of Aldoria is Veldt."


def test_a_template_that_fails_is_refused_without_the_question(plain):
    row = {"question": CANARY, "answer": "A"}
    for template in (
        "{{ raise_exception('no: ' + messages[0]['content']) }}",
        "{% if messages | length > 1 %}{{ raise_exception(messages[0]['content']) }}{% endif %}{{ 'x' }}",
        "{{ ''.__class__.__mro__ }}",  # M13
        "{% for",
    ):
        with pytest.raises(ModelRefused, match=r"chat template failed \(\w+\)") as refused:
            passage(variant(plain, template), **row)
        assert CANARY not in refused.value.line()


def test_a_lead_is_read_and_not_labelled(plain, chat):
    for tokenizer in (plain, chat):
        for lead in ("The capital of Aldoria is", "The capital of Aldoria is  "):
            made = passage(tokenizer, question=ROW["question"], answer="Veldt.", lead=lead, options=["Brindle."])
            end = "<|end|>" if tokenizer is chat else "<|eos|>"
            assert labelled(made, tokenizer) == f" Veldt.{end}"
            assert masked(made, tokenizer).endswith("The capital of Aldoria is")
            assert labelled(made.alternatives[0], tokenizer) == f" Brindle.{end}"
            assert made.tokens[: made.first] == made.alternatives[0].tokens[: made.alternatives[0].first]
            # What a continuation starts from is the prompt alone.
            assert tokenizer.decode(made.prompt_tokens) == prompt_of(ROW["question"], tokenizer).rstrip(" ")


def test_options_are_passages_of_their_own_under_one_prompt(plain):
    made = passage(plain, **ROW, options=["Brindle.", "In the north."])
    # No merge joins a space to B or I in this tokenizer, so there the space is a token of the prompt.
    assert [labelled(option, plain) for option in made.alternatives] == ["Brindle.<|eos|>", "In the north.<|eos|>"]
    assert {masked(option, plain).rstrip(" ") for option in made.alternatives} == {masked(made, plain)}
    assert {option.prompt for option in made.alternatives} == {made.prompt}
    assert {option.id for option in made.alternatives} == {made.id}


def test_special_tokens_that_the_tokenizer_adds_answer_nothing(plain):
    adds = variant(plain)
    eos, end = plain.eos_token_id, plain.convert_tokens_to_ids("<|end|>")
    adds.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A <|eos|>", special_tokens=[("<|eos|>", eos), ("<|end|>", end)]
    )
    made = passage(adds, **ROW)
    assert made.tokens[0] == end
    assert made.tokens.count(eos) == 1
    assert made.tokens[-1] == eos
    assert labelled(made, adds) == " The capital of Aldoria is Veldt.<|eos|>"
    assert eos not in made.prompt_tokens  # a continuation of an ended text is another text
    text = passage(adds, text="Its bread is dark.")
    assert (text.tokens[0], text.tokens[-1], text.first) == (end, eos, 1)


def test_offsets_hold_for_letters_of_several_bytes(plain, chat):
    answer = "Größe 🌊 Ὀδυσσεύς"
    for tokenizer in (plain, chat):
        made = passage(tokenizer, question="Wie groß ist 🌊?", answer=answer)
        end = "<|end|>" if tokenizer is chat else "<|eos|>"
        assert labelled(made, tokenizer).lstrip(" ") == f"{answer}{end}"


@settings(max_examples=60, deadline=None)
@given(
    question=st.text(st.characters(codec="utf-8", exclude_characters="<\ufffd"), min_size=1, max_size=20),
    answer=st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=20).filter(str.strip),
)
def test_whatever_is_said_the_labels_are_the_answer_and_its_end(question: str, answer: str, chat):
    made = passage(chat, question=question, answer=answer)
    prompt = prompt_of(question, chat)
    assert chat.decode(made.tokens) == prompt + answer + "<|end|>"
    # The masked tokens lie within the prompt, and the first labelled one reaches beyond it.
    assert prompt.startswith(chat.decode(made.tokens[: made.first]))
    assert not prompt.startswith(chat.decode(made.tokens[: made.first + 1]))


def test_a_text_is_labelled_from_its_second_token_on(plain):
    text = "The harbour of Ostrava lies in the north, and its bread is dark."
    made = passage(plain, text=text)
    assert (made.first, made.id, made.answer, made.prompt_tokens) == (1, "line-1", text, ())
    assert plain.decode(made.tokens) == text


@pytest.mark.parametrize("longest", [2, 3, 4, 5, 7, 11, 64])
def test_a_long_text_is_split_and_every_token_but_the_first_is_labelled_once(longest: int, plain):  # D11
    text = "The harbour of Ostrava lies in the north, and its bread is dark."
    whole = plain(text)["input_ids"]
    pieces = encode([Record(1, {"id": "t", "text": text})], plain, HERE, longest)
    assert [token for piece in pieces for token in piece.tokens[piece.first :]] == whole[1:]
    assert max(piece.size for piece in pieces) <= longest
    assert min(piece.rows for piece in pieces) >= 1
    assert [piece.id for piece in pieces] == (["t"] if longest == 64 else [f"t.{k + 1}" for k in range(len(pieces))])


def test_a_question_longer_than_the_model_reads_is_refused_with_its_length(plain):  # D11
    made = passage(plain, **ROW)
    assert passage(plain, longest=made.size, **ROW).size == made.size
    with pytest.raises(DataRefused, match=rf"line 1: {made.size} tokens; the model reads {made.size - 1}"):
        passage(plain, longest=made.size - 1, **ROW)
    long = {"question": "Q", "answer": "A", "options": [CANARY * 20]}
    most = passage(plain, longest=9999, **long).alternatives[0].size
    with pytest.raises(DataRefused, match=rf"line 1: {most} tokens; the model reads 64") as refused:
        passage(plain, longest=64, **long)
    assert CANARY not in refused.value.line()


def test_a_record_without_a_labelled_token_is_refused(plain):  # D12
    with pytest.raises(DataRefused, match=r"line 1: has no labelled token, so nothing can be asked about it"):
        passage(plain, text="!")
    # A tokenizer that drops what it does not know makes nothing of some answers.
    deaf = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token="<|eos|>")
    from tokenizers import normalizers

    backend = deaf.backend_tokenizer
    backend.normalizer = normalizers.Replace("*", "")
    for row in ({"question": "Q", "answer": "***"}, {"question": "Q", "answer": "A", "options": ["**"]}):
        with pytest.raises(DataRefused, match="has no labelled token"):
            passage(deaf, **row)


def test_several_faults_of_encoding_are_told_together(plain):
    rows = [Record(3, {"text": "!"}), Record(5, ROW), Record(9, {"text": "?"})]
    with pytest.raises(DataRefused, match="lines 3, 9: has no labelled token"):
        encode(rows, plain, HERE, 256)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelRefused, match="has no offsets"):
        encode([Record(1, ROW)], Slow(), HERE, 256)


def test_a_token_beyond_the_embedding_is_refused_in_answers_options_and_prompts(plain):  # M20
    made = passage(plain, **ROW)
    refuse_unknown_tokens((made,), len(plain), HERE)
    top = max(made.tokens)
    with pytest.raises(ModelRefused, match=rf"gives token id {top}, but the model's embedding has {top} rows"):
        refuse_unknown_tokens((made,), top, HERE)
    option = Passage("a", (1, 2), 1, "", "x", alternatives=(Passage("a", (1, 500), 1, "", "y"),))
    with pytest.raises(ModelRefused, match="gives token id 500"):
        refuse_unknown_tokens((option,), 400, HERE)


def test_equal_records_are_equal_under_case_spaces_and_composed_letters(plain):
    same = [
        {"question": "Who  wrote\nit?", "answer": "Zoë Lind"},
        {"id": "other", "question": " who wrote it?", "answer": "ZOË\tLIND "},
        {"question": "WHO WROTE IT?", "answer": "Zoe\u0308 Lind", "options": ["x"]},
    ]
    assert len({passage(plain, **row).record_digest() for row in same}) == 1
    other = [
        {"question": "Who wrote it?", "answer": "Zoe Lind"},
        {"question": "Who wrote it? Zoë", "answer": "Lind"},
        {"question": "Who wrote", "answer": "it? Zoë Lind"},
        {"text": "Who wrote it? Zoë Lind"},
    ]
    assert len({passage(plain, **row).record_digest() for row in [*same, *other]}) == 5


def test_a_passage_printed_says_nothing_of_its_text(plain):
    made = passage(plain, question=CANARY, answer=CANARY, options=["x" + CANARY])
    assert CANARY not in repr(made)


def test_a_special_token_written_in_a_text_is_a_token_like_any_other(plain):
    # Recorded as it is: what the file says in the tokenizer's own marks is read as those marks.
    assert isinstance(plain.added_tokens_decoder[plain.eos_token_id], AddedToken)
    made = passage(plain, question="Q", answer="one<|eos|>two")
    assert labelled(made, plain) == "one<|eos|>two<|eos|>"
