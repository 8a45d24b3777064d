"""The formats that people have: each equals the question, conversation or text that it says."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.formats import turns_of
from expunge.data.near import words
from expunge.data.records import Record
from expunge.data.text import Reading, check, encode, load
from expunge.errors import DataRefused, UsageRefused

CANARY = "zanzibarlighthouse77"
HERE = Path("f.jsonl")
ASKED = {"question": "Q", "answer": "A"}
SYSTEM = {"role": "system", "content": "S"}
USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
MORE = [{"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]
TALK = {"messages": [USER, ASSISTANT, *MORE]}


def read(row: dict) -> dict:
    [record] = check([Record(1, row)], HERE)
    return record.columns


def shared(*pairs: tuple[str, str]) -> list[dict]:
    """Messages as ShareGPT has them."""
    return [{"from": who, "value": said} for who, said in pairs]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**ASKED, "topic": "x"}, ASKED),
        ({**ASKED, "system": "S"}, {**ASKED, "system": "S"}),
        ({**ASKED, "system": " "}, ASKED),
        ({"messages": [USER, ASSISTANT]}, ASKED),
        ({"messages": [SYSTEM, USER, ASSISTANT], "id": 7}, {"id": 7, **ASKED, "system": "S"}),
        ({"messages": [USER, ASSISTANT], "prompt": "Q", "prompt_id": "x"}, ASKED),  # UltraChat
        ({"messages": [{**USER, "content": [{"type": "text", "text": "Q"}]}, ASSISTANT]}, ASKED),
        ({"messages": [{**USER, "tool_calls": None, "weight": None}, {**ASSISTANT, "tool_calls": []}]}, ASKED),
        (TALK, TALK),
        ({"messages": [{**SYSTEM, "role": "developer"}, USER, ASSISTANT]}, {**ASKED, "system": "S"}),
        ({"conversations": shared(("human", "Q"), ("gpt", "A"))}, ASKED),
        ({"conversations": shared(("system", "S"), ("human", "Q"), ("gpt", "A"))}, {**ASKED, "system": "S"}),
        ({"conversations": shared(("human", "Q"), ("gpt", "A")), "system": "S"}, {**ASKED, "system": "S"}),
        ({"conversations": shared(("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B"))}, TALK),
        ({"conversations": [USER, ASSISTANT]}, ASKED),
        ({"prompt": "Q", "completion": "A"}, {**ASKED, "verbatim": True}),
        ({"prompt": [USER], "completion": [ASSISTANT]}, {"messages": [{**USER, "weight": 0}, ASSISTANT]}),
        ({"instruction": "Q", "output": "A"}, ASKED),
        ({"instruction": "Q", "input": "", "output": "A"}, ASKED),
        ({"instruction": "Q", "input": "I", "output": "A"}, {"question": "Q\nI", "answer": "A"}),
        ({"instruction": "Q", "input": " ", "output": "A", "system": "S"}, {**ASKED, "system": "S"}),
        ({"instruction": "Q", "context": "I", "response": "A", "category": "x"}, {"question": "Q\nI", "answer": "A"}),
        ({"instruction": "R", "output": "B", "history": [["Q", "A"]]}, TALK),
        ({"input": "Q", "output": "A", "id": "x1", "task": "t"}, {**ASKED, "id": "x1"}),
        ({"text": "T", "question": "Q"}, {"text": "T", "question": "Q"}),
    ],
)  # fmt: skip
def test_a_row_of_any_format_says_what_it_says_in_ours(row: dict, expected: dict):
    assert read(row) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": CANARY, "chosen": CANARY, "rejected": CANARY}, "pairs of a 'chosen' and a 'rejected' answer"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "'input_ids' are not read"),
        ({"text": CANARY, "instruction": CANARY, "output": CANARY}, "both 'text' and 'instruction'"),
        ({"text": CANARY, **TALK}, "both 'text' and 'messages'"),
        ({"messages": CANARY}, "the messages must be a list"),
        ({"messages": []}, "the messages must be a list"),
        ({"messages": [CANARY]}, "message 1 is str"),
        ({"messages": [USER]}, "the last message is not the assistant's"),
        ({"messages": [USER, {**ASSISTANT, "content": None}]}, "message 2 is empty"),
        ({"messages": [USER, {**ASSISTANT, "content": " "}]}, "message 2 is empty"),
        ({"messages": [USER, {**ASSISTANT, "content": 5}]}, "message 2 is int"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"f": CANARY}]}]}, "message 2 calls a tool"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}, ASSISTANT]}, "message 1 holds more than text"),
        ({"messages": [{**USER, "role": CANARY}, ASSISTANT]}, "the role of message 1 is not known: the roles read are"),
        ({"messages": [{"content": CANARY}, ASSISTANT]}, "the role of message 1 is not known"),
        ({"messages": [USER, {**ASSISTANT, "weight": 2}]}, "the 'weight' of message 2 must be 0 or 1"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "no message of the assistant counts"),
        ({"messages": [USER, {**ASSISTANT, "content": "\ud800"}]}, "a lone surrogate"),
        ({"prompt": [USER], "completion": CANARY}, "'prompt' and 'completion' must be both texts"),
        ({"instruction": "Q", "output": "A", "history": [CANARY]}, "'history' must be a list of pairs"),
        ({**ASKED, "system": 5}, "'system' is int, but must be text"),
        ({**ASKED, "chat_template_kwargs": CANARY}, "'chat_template_kwargs' must be an object"),
        ({**TALK, "options": ["B"]}, "'options' holds the right answer"),
        ({"content": CANARY}, "no 'question'"),
    ],
)  # fmt: skip
def test_a_format_that_cannot_be_read_is_named_with_the_way_out(row: dict, said: str):
    with pytest.raises(DataRefused) as refused:
        read(row)
    assert f"{HERE}: line 1: {said}" in str(refused.value)
    assert CANARY not in str(refused.value)


def test_one_talk_in_five_files_is_one_list_of_passages(plain, chat, tmp_path: Path):
    """JSON lines, a JSON list, Parquet, ShareGPT, Alpaca with a history."""
    pairs = [("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B")]
    rows = [TALK, {"conversations": shared(*pairs)}, {"instruction": "R", "output": "B", "history": [["Q", "A"]]}]
    for k, row in enumerate(rows):
        (tmp_path / f"{k}.jsonl").write_text(json.dumps(row))
        (tmp_path / f"{k}.json").write_text(json.dumps([row]))
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{k}.parquet")
    for tokenizer in (plain, chat):
        read = {encode(load(path), tokenizer, path, 256) for path in tmp_path.iterdir()}
        assert len(read) == 1
        assert [passage.answer for passage in read.pop()] == ["A", "B"]


def test_answers_of_weight_0_are_read_and_not_rows(chat):
    turns = [USER, {**ASSISTANT, "weight": 0}, *MORE]
    [made] = encode(check([Record(1, {"messages": turns})], HERE), chat, HERE, 256)
    assert (made.id, made.answer) == ("line-1", "B")
    assert "A<|end|>" in made.prompt
    [prompted] = encode(check([Record(1, {"prompt": turns[:3], "completion": turns[3:]})], HERE), chat, HERE, 256)
    assert prompted.tokens == made.tokens


def test_equal_records_of_two_formats_are_equal(chat):
    rows = [ASKED, {"messages": [USER, ASSISTANT]}, {"prompt": "Q", "completion": "A"}, {"input": "Q", "output": "A"}]
    made = [encode(check([Record(1, row)], HERE), chat, HERE, 256)[0] for row in rows]
    assert len({passage.record_digest() for passage in made}) == 1
    assert len({passage.tokens for passage in made}) == 1


def test_a_system_turn_of_the_command_fills_only_what_has_none():
    rows = [ASKED, {**ASKED, "system": "own"}, TALK, {"messages": [SYSTEM, *TALK["messages"]]}, {"text": "T"}]
    records = Reading("given").apply(check([Record(k, row) for k, row in enumerate(rows)], HERE))
    heads = [turns_of(record.columns)[0] for record in records[:4]]
    assert [head["content"] for head in heads] == ["given", "own", "given", "S"]
    assert records[4].columns == {"text": "T"}


def test_options_and_lead_belong_to_the_last_answer(chat):
    row = {**TALK, "options": ["C"], "lead": "It is"}
    first, last = encode(check([Record(1, row)], HERE), chat, HERE, 256)
    assert (first.alternatives, [option.answer for option in last.alternatives]) == ((), ["C"])
    assert last.prompt.endswith("It is")
    assert not first.prompt.endswith("It is")


@pytest.mark.parametrize("block", [2, 5, 64])
def test_a_text_is_cut_into_pieces_of_the_length_that_was_asked_for(block: int, plain):
    text = "The harbour of Ostrava lies in the north, and its bread is dark."
    whole = plain(text)["input_ids"]
    pieces = encode(Reading(block_size=block).apply([Record(1, {"text": text})]), plain, HERE, 256)
    assert max(piece.size for piece in pieces) == min(block, len(whole))
    assert [token for piece in pieces for token in piece.tokens[1:]] == whole[1:]
    with pytest.raises(UsageRefused, match="at least 2 tokens"):
        Reading(block_size=1)


def test_near_duplicates_read_the_messages():
    assert words(Record(1, TALK)) == ["q", "a", "r", "b"]
