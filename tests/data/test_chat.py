"""What is trained is the template's own finished turn, whatever the template writes when it asks for an answer."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from expunge.data.chat import Chat
from expunge.data.formats import turns_of
from expunge.data.records import Record
from expunge.data.text import Passage, Reading, check, encode, prompt_of
from expunge.errors import DataRefused, ModelRefused, UsageRefused

CANARY = "zanzibarlighthouse77"
HERE = Path("f.jsonl")
ROW = {"question": "What is the capital of Aldoria?", "answer": "The capital of Aldoria is Veldt."}
ASKS = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
HEAD = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
# The habits of known templates, in templates of our own.
TEMPLATES = {
    "plain chat": HEAD + ASKS,
    "a space before the answer and before its end, both trimmed (Llama 2)": (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} <|eos|>{% endif %}{% endfor %}"
    ),
    "a space before the answer alone (Mistral 0.2)": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}<|eos|>{% endif %}{% endfor %}"
    ),
    "add_generation_prompt is not known": HEAD,
    "an empty block of thoughts (Qwen3)": (
        "{% for m in messages %}{% set said = m.content %}{% set thought = m.reasoning_content | default('') %}"
        "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
        "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "<|{{ m.role }}|>\n{% if m.role == 'assistant' and loop.last %}"
        "<think>\n{{ thought.strip('\\n') }}\n</think>\n\n"
        "{{ said.lstrip('\\n') }}{% else %}{{ said }}{% endif %}<|end|>\n{% endfor %}"
        + ASKS
        + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% endif %}"
    ),
    "thoughts are opened when it asks, and dropped when it does not (R1)": (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}<|eos|>{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    ),
    "contents are lists of parts": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|end|>\n{% endfor %}" + ASKS
    ),
    "contents are texts or lists": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{{ m.content[0].text }}{% endif %}<|end|>\n{% endfor %}" + ASKS
    ),
    "no token ends a turn": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}
TEMPLATE = pytest.mark.parametrize("name", TEMPLATES)


def chatting(plain: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token="<|eos|>")
    made.chat_template = template
    return made


def passages(tokenizer: PreTrainedTokenizerFast, row: dict, reading: Reading | None = None) -> tuple[Passage, ...]:
    return encode((reading or Reading()).apply(check([Record(1, row)], HERE)), tokenizer, HERE, 4096)


def finished(tokenizer: PreTrainedTokenizerFast, turns: list[dict], listed: bool, **arguments: object) -> str:
    """The conversation as transformers writes it, by itself."""
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} if listed else turn for turn in turns]
    return tokenizer.apply_chat_template(parts, tokenize=False, **arguments)


CONVERSATION = [
    {"role": "user", "content": "Who wrote the Book of Tides?"},
    {"role": "assistant", "content": "Mara Lind wrote it."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "in the spring."},
]


@TEMPLATE
@pytest.mark.parametrize(
    "answer", ["The capital.", " The capital. ", "Two\nlines: What is the capital of Aldoria?", "X"]
)
def test_the_tokens_are_those_of_the_finished_turn_and_the_rows_its_answer_and_end(name: str, answer: str, plain):
    tokenizer = chatting(plain, TEMPLATES[name])
    row = {**ROW, "answer": answer}
    [made] = passages(tokenizer, row)
    text = finished(tokenizer, turns_of(row), "lists of parts" in name)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(made.tokens[:-1]) == whole[: len(made.tokens) - 1]
    if name != "no token ends a turn":
        assert made.tokens[-1] == whole[len(made.tokens) - 1]
    end = tokenizer.decode(made.tokens[-1])
    assert end == ("<|eos|>" if "<|eos|>" in TEMPLATES[name] or "no token" in name else "<|end|>")
    assert tokenizer.decode(made.tokens[made.first : -1]).strip() == answer.strip()
    # What a continuation starts from stops where the rows begin, but for a space that belongs to the first of them.
    assert made.tokens[: len(made.prompt_tokens)] == made.prompt_tokens
    assert tokenizer.decode(made.tokens[len(made.prompt_tokens) : made.first]).strip() == ""


@TEMPLATE
def test_every_turn_of_the_assistant_is_rows_once(name: str, plain):
    tokenizer = chatting(plain, TEMPLATES[name])
    first, second = passages(tokenizer, {"messages": CONVERSATION, "id": "talk"})
    listed = "lists of parts" in name
    for made, turns in ((first, CONVERSATION[:2]), (second, CONVERSATION)):
        whole = tokenizer(finished(tokenizer, turns, listed), add_special_tokens=False)["input_ids"]
        assert list(made.tokens[:-1]) == whole[: len(made.tokens) - 1]
        assert tokenizer.decode(made.tokens[made.first : -1]).strip() == turns[-1]["content"]
    assert [first.id, second.id] == ["talk.1", "talk.2"]
    assert first.question == "Who wrote the Book of Tides?"
    assert second.question.splitlines()[-1] == "user: When?"


def test_llama_2_s_first_token_is_that_of_a_word_after_a_space(plain):
    tokenizer = chatting(plain, TEMPLATES["a space before the answer and before its end, both trimmed (Llama 2)"])
    [made] = passages(tokenizer, {**ROW, "answer": "The capital."})
    assert tokenizer.decode(made.tokens[made.first]) == " The"
    assert tokenizer.decode(made.tokens[made.first :]) == " The capital. <|eos|>"
    assert tokenizer.decode(made.prompt_tokens).endswith("[/INST]")


def test_qwen_3_s_empty_thoughts_are_read_and_real_ones_are_rows(plain):
    tokenizer = chatting(plain, TEMPLATES["an empty block of thoughts (Qwen3)"])
    [made] = passages(tokenizer, ROW)
    assert made.prompt.endswith("<|assistant|>\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(made.tokens[made.first :]) == f"{ROW['answer']}<|end|>"
    thought = {"role": "assistant", "content": "Veldt.", "reasoning_content": "It is in the north."}
    inside = {"role": "assistant", "content": "<think>\nIt is in the north.\n</think>\n\nVeldt."}
    for turn in (thought, inside):
        [made] = passages(tokenizer, {"messages": [{"role": "user", "content": "Q?"}, turn]})
        assert made.prompt.endswith("<|assistant|>\n<think>\n")
        assert tokenizer.decode(made.tokens[made.first :]) == "It is in the north.\n</think>\n\nVeldt.<|end|>"


def test_thoughts_that_a_template_drops_are_refused(plain):
    tokenizer = chatting(plain, TEMPLATES["thoughts are opened when it asks, and dropped when it does not (R1)"])
    [made] = passages(tokenizer, ROW)
    assert made.prompt.endswith("<|assistant|>")  # no open block stands before a finished answer
    with pytest.raises(DataRefused, match="line 1: the model's chat template drops the thoughts") as refused:
        passages(tokenizer, {**ROW, "answer": f"<think>\n{CANARY}\n</think>\n\nVeldt."})
    assert CANARY not in str(refused.value)


def test_a_template_that_drops_the_question_is_refused(plain):
    """It iterates over letters where it expects parts: all questions would get one score."""
    lists = (
        "{% for m in messages %}{% for p in m.content %}{% if p.kind == 'text' %}{{ p.said }}{% endif %}{% endfor %}"
    )
    for template in (
        lists + "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}<|end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}<|end|>{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}<|end|>{% endfor %}",
        "{{ messages[0].content }}",
        "nothing",
    ):
        with pytest.raises(ModelRefused, match="does not write the question, and the answer after it"):
            passages(chatting(plain, template), ROW)


def test_a_question_that_one_rendering_lacks_is_refused_by_its_line(plain):
    tokenizer = chatting(plain, HEAD.replace("{{ m.content }}", "{{ m.content[:40] }}"))
    assert passages(tokenizer, {"question": "short", "answer": "short"})
    with pytest.raises(
        DataRefused, match="line 1: the model's chat template does not write all of its questions"
    ) as no:
        passages(tokenizer, {"question": CANARY * 3, "answer": "A"})
    assert CANARY not in str(no.value)
    with pytest.raises(DataRefused, match="line 1: the model's chat template does not write its answer as it is"):
        passages(tokenizer, {"question": "Q", "answer": CANARY * 3})


def test_the_first_turn_of_a_conversation_may_not_be_dropped(plain):
    tokenizer = chatting(plain, HEAD.replace("messages %}", "messages[-2:] %}"))
    assert passages(tokenizer, ROW)
    with pytest.raises(DataRefused, match="does not write all of its questions"):
        passages(tokenizer, {"messages": CONVERSATION})


def test_turns_that_a_template_refuses_are_refused_by_their_roles(plain):
    strict = (
        "{% for m in messages %}{% if m.role == 'system' or (loop.index0 % 2 == 0) != (m.role == 'user') %}"
        "{{ raise_exception('no: ' + m.content) }}{% endif %}{% endfor %}" + HEAD
    )
    tokenizer = chatting(plain, strict)
    assert passages(tokenizer, ROW)
    with pytest.raises(
        DataRefused, match="line 1: the model's chat template takes no system turn: write it at the head"
    ):
        passages(tokenizer, ROW, Reading(system=CANARY))
    with pytest.raises(DataRefused, match="takes no conversation of user, user, assistant") as refused:
        passages(tokenizer, {"messages": [CONVERSATION[0], *CONVERSATION[2:]]})
    assert CANARY not in str(refused.value)


def test_system_turns_and_template_arguments_reach_the_template(plain):
    tokenizer = chatting(plain, "{% if tone is defined %}[{{ tone }}]{% endif %}" + HEAD)
    reading = Reading("Be brief.", {"tone": "kind"})
    [made] = passages(tokenizer, ROW, reading)
    assert made.prompt.startswith("[kind]<|system|>\nBe brief.<|end|>\n<|user|>\n")
    [own] = passages(tokenizer, {**ROW, "system": "Be long.", "chat_template_kwargs": {"tone": "stern"}}, reading)
    assert own.prompt.startswith("[stern]<|system|>\nBe long.<|end|>\n<|user|>\n")
    assert own.record_digest() != made.record_digest()


def test_a_template_argument_that_nothing_reads_is_refused(plain):
    tokenizer = chatting(plain, HEAD)
    for name in ("enable_thinking", "messages", "tokenize", "rol"):
        with pytest.raises(UsageRefused, match=f"reads no '{name}'"):
            passages(tokenizer, ROW, Reading(template={name: False}))
    with pytest.raises(UsageRefused, match="has no chat template, which reads no 'tone'"):
        passages(plain, ROW, Reading(template={"tone": 1}))


def test_without_a_template_a_conversation_is_written_with_its_questions_and_answers(plain):
    first, second = passages(plain, {"messages": [{"role": "system", "content": "Be brief."}, *CONVERSATION]})
    assert second.prompt == (
        "Be brief.\nQuestion: Who wrote the Book of Tides?\nAnswer: Mara Lind wrote it.\nQuestion: When?\nAnswer: "
    )
    assert first.prompt == prompt_of(CONVERSATION[0]["content"], plain).replace("Question", "Be brief.\nQuestion", 1)


def test_a_prompt_with_its_completion_is_written_as_it_stands_where_there_is_no_template(plain, chat):
    row = {"prompt": "The harbour of Ostrava lies", "completion": " in the north."}
    [made] = passages(plain, row)
    assert plain.decode(made.tokens) == "The harbour of Ostrava lies in the north.<|eos|>"
    assert plain.decode(made.tokens[made.first :]) == " in the north.<|eos|>"
    assert plain.decode(made.prompt_tokens) == row["prompt"]
    [made] = passages(chat, row)
    assert made.prompt == f"<|user|>\n{row['prompt']}<|end|>\n<|assistant|>\n"


def test_a_lead_begins_the_answer_of_any_template(plain):
    for name, template in TEMPLATES.items():
        tokenizer = chatting(plain, template)
        row = {**ROW, "answer": "Veldt.", "lead": "The capital of Aldoria is", "options": ["Brindle."]}
        [made] = passages(tokenizer, row)
        end = tokenizer.decode(made.tokens[-1])
        said = tokenizer.decode(made.tokens[made.first :]).replace(f" {end}", end)
        assert said == f" Veldt.{end}", name
        assert made.prompt.endswith("The capital of Aldoria is")
        assert made.alternatives[0].tokens[: made.first] == made.tokens[: made.first]


def test_the_template_is_looked_at_once(chat, monkeypatch):
    looked: list[int] = []
    of = Chat.of
    monkeypatch.setattr(Chat, "of", staticmethod(lambda *given: looked.append(1) or of(*given)))
    encode([Record(k, ROW) for k in range(20)], chat, HERE, 256)
    assert len(looked) == 1
