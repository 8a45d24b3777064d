"""Files of examples: what is read as what, and what is refused with its place and without its text."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import records
from expunge.data.records import read
from expunge.data.tables import columns
from expunge.data.text import load
from expunge.errors import DataRefused

CANARY = "zanzibarlighthouse77"
GOOD = {"question": "Q", "answer": "A"}


def file(folder: Path, content: str | bytes, name: str = "f.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(folder: Path, *rows: dict) -> Path:
    return file(folder, "".join(json.dumps(row) + "\n" for row in rows))


def refusal(path: Path) -> str:
    """What is said of a file, in which no text of its records may stand."""
    with pytest.raises(DataRefused) as refused:
        load(path)
    said = refused.value.line()
    assert said.startswith(f"expunge: E3-data: {path}: ")
    assert CANARY not in said
    assert "\n" not in said
    return said


def test_json_lines_are_read_with_their_line_numbers(tmp_path: Path):
    path = file(tmp_path, '\n{"question": "Q", "answer": "A"}\n\n  \n{"text": "T", "id": 7}')
    assert [(r.line, r.columns) for r in load(path)] == [(2, GOOD), (5, {"text": "T", "id": 7})]


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff", "\ufeff\n"])
def test_a_file_without_records_is_refused(content: str, tmp_path: Path):  # D01
    assert "holds no records, so there is nothing to read" in refusal(file(tmp_path, content))


def test_a_csv_of_a_header_only_is_refused(tmp_path: Path):  # D01
    for content in ("", "question,answer\n", "question,answer\n\n"):
        assert "holds no records" in refusal(file(tmp_path, content, "f.csv"))


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path):  # D08
    plain = load(file(tmp_path, '{"text": "one"}\n{"text": "two"}\n'))
    assert load(file(tmp_path, b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')) == plain
    assert load(file(tmp_path, b"\xef\xbb\xbftext\r\none\r\n", "f.csv"))[0].columns == {"text": "one"}


def test_nul_control_and_bidi_characters_in_a_text_are_kept_as_they_are(tmp_path: Path):  # D08
    odd = "a\0b\x07c\u202ed"
    assert load(lines(tmp_path, {"text": odd}))[0].columns["text"] == odd


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        (b'{"text": "' + CANARY.encode() + b'"}\n{"text": "caf\xe9"}\n', 2, 46),  # Latin-1: 33 + 13
        (b'\xef\xbb\xbf{"text": "\xff"}\n', 1, 13),  # after a byte order mark of three bytes: 3 + 10
        ('{"text": "x"}\n'.encode("utf-16"), 1, 0),
        (b'{"text": "abc\xe2\x82', 1, 13),  # cut within a letter
    ],
)
def test_bytes_that_are_not_utf_8_are_refused_with_line_and_offset(
    content: bytes, line: int, byte: int, tmp_path: Path
):
    assert f"line {line}: byte {byte} is not UTF-8" in refusal(file(tmp_path, content))  # D07
    assert "�" not in content[:byte].decode(errors="replace")
    assert content[byte:].decode(errors="replace").startswith("�")


def test_a_lone_surrogate_is_refused_wherever_it_stands(tmp_path: Path):  # D07
    good = {"question": CANARY, "answer": "A"}
    for row in ({**good, "answer": "\ud800"}, {**good, "lead": "\udfff"}, {**good, "options": ["\ud800"]}):
        assert "line 1: a lone surrogate, which is not text" in refusal(lines(tmp_path, row))
    assert "line 1: 'id' must be" in refusal(lines(tmp_path, {**good, "id": "\ud800"}))


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "' + CANARY,
        '{"text": "' + CANARY + '\t"}',
        '{"text": "\\x' + CANARY + '"}',
        CANARY,
        "{" * 100_000,
        "]",
    ],
)
def test_a_line_that_is_not_json_is_refused_with_its_place(text: str, tmp_path: Path):
    said = refusal(file(tmp_path, '{"text": "good"}\n' + text))
    assert "line 2: " in said


def test_a_json_value_that_is_not_an_object_is_refused(tmp_path: Path):  # D09
    for text in ("[1]", f'"{CANARY}"', "5", "null", "NaN"):
        assert "line 1: not a JSON object" in refusal(file(tmp_path, text))


def test_a_key_that_stands_twice_is_refused_and_named_where_it_is_a_column(tmp_path: Path):  # D10
    assert "line 1: the key 'text' occurs twice" in refusal(file(tmp_path, '{"text": "a", "text": "b"}'))
    assert "line 1: a key occurs twice" in refusal(file(tmp_path, f'{{"{CANARY}": 1, "{CANARY}": 2}}'))
    nested = f'{{"text": "a", "more": {{"{CANARY}": 1, "{CANARY}": 2}}}}'
    assert "line 1: a key occurs twice" in refusal(file(tmp_path, nested))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": CANARY}, "no 'answer' (needed: question and answer, or text)"),
        ({"answer": CANARY}, "no 'question'"),
        ({"prompt": CANARY}, "no 'question'"),
        ({}, "no 'question'"),
        ({"question": CANARY, "answer": None}, "no 'answer'"),
        ({"question": CANARY, "answer": " \n "}, "'answer' is empty, but must be text"),
        ({"question": CANARY, "answer": ""}, "'answer' is empty"),
        ({"question": CANARY, "answer": 5}, "'answer' is int, but must be text"),
        ({"question": CANARY, "answer": 0}, "'answer' is int, but must be text"),
        ({"question": CANARY, "answer": False}, "'answer' is bool"),
        ({"question": CANARY, "answer": 10**30}, "'answer' is int"),
        ({"question": CANARY, "answer": float("nan")}, "'answer' is float"),
        ({"text": [CANARY]}, "'text' is list"),
        ({"text": {CANARY: 1}}, "'text' is dict"),
        ({**GOOD, "options": CANARY}, "'options' must be a list of texts"),
        ({**GOOD, "options": [CANARY, 5]}, "'options' must be a list of texts"),
        ({**GOOD, "options": [CANARY, " "]}, "'options' must be a list of texts"),
        ({**GOOD, "answer": CANARY, "options": [CANARY]}, "'options' holds the right answer"),
        ({**GOOD, "lead": [CANARY]}, "'lead' must be text"),
        ({**GOOD, "id": {CANARY: 1}}, "'id' must be"),
        ({**GOOD, "id": [CANARY]}, "'id' must be"),
        ({**GOOD, "id": True}, "'id' must be"),
        ({**GOOD, "id": 1.5}, "'id' must be"),
        ({**GOOD, "id": ""}, "'id' must be"),
        ({**GOOD, "id": "\x1b[31m"}, "'id' must be"),
        ({**GOOD, "id": "a\u202eb"}, "'id' must be"),
        ({**GOOD, "id": "a\nb"}, "'id' must be"),
        ({**GOOD, "id": CANARY * 20}, "'id' must be"),
    ],
)
def test_a_row_of_another_shape_is_refused_with_its_line(row: dict, said: str, tmp_path: Path):  # D09
    assert f"line 2: {said}" in refusal(lines(tmp_path, {"text": "good"}, row))


def test_an_integer_of_five_thousand_digits_is_refused(tmp_path: Path):  # D09
    assert "line 1: " in refusal(file(tmp_path, '{"text": ' + "9" * 5000 + "}"))


def test_ids_must_differ_from_one_another_and_from_line_numbers(tmp_path: Path):
    said = refusal(lines(tmp_path, {"text": CANARY, "id": 7}, {"text": "b"}, {"text": "c", "id": "7"}))
    assert "lines 1, 3: its id occurs twice." in said
    said = refusal(lines(tmp_path, {"text": CANARY, "id": "line-2"}, {"text": "b"}))
    assert "lines 1, 2: its id occurs twice." in said
    assert len(load(lines(tmp_path, {"text": "a", "id": "None"}, {"text": "b"}))) == 2


def test_thirty_thousand_ids_are_checked_in_a_moment(tmp_path: Path):
    path = lines(tmp_path, *({"text": "a", "id": k} for k in range(30_000)))
    assert len(load(path)) == 30_000  # compared pair by pair, this would take minutes


def test_twenty_faults_are_named_and_the_others_are_counted(tmp_path: Path):  # D07
    said = refusal(file(tmp_path, "x\n" * 25))
    assert ", 19, 20: not JSON at column 1" in said
    assert ", 21" not in said
    assert said.count("not JSON") == 1  # a fault of many lines is told once
    assert "; and 5 more. Fix the file; nothing was written." in said


def test_a_line_over_the_limit_is_refused_before_it_is_read_whole(tmp_path: Path, monkeypatch):  # D14
    monkeypatch.setattr(records, "LINE_LIMIT", 100)
    exact = '{"text": "' + "a" * (100 - 12) + '"}'
    assert len(exact) == 100
    assert len(load(file(tmp_path, exact))) == 1
    said = refusal(file(tmp_path, '{"text": "x"}\n' + exact.replace("a", CANARY, 1)))
    assert "line 2 is longer than 0.0001 MB. Split the record." in said


def test_csv_cells_may_hold_commas_quotes_and_line_ends(tmp_path: Path):
    path = file(tmp_path, 'id,question,answer\n1,"a, ""b""\nc",d\n2,e,f\n', "f.csv")
    assert [(r.line, r.columns) for r in load(path)] == [
        (3, {"id": "1", "question": 'a, "b"\nc', "answer": "d"}),
        (4, {"id": "2", "question": "e", "answer": "f"}),
    ]


def test_a_long_csv_cell_is_read_as_a_long_json_line_is(tmp_path: Path):
    long = "word " * 40_000  # 200 kB; Python's reader stops at 131 kB by itself
    assert load(file(tmp_path, f"text\n{long}\n", "f.csv"))[0].columns["text"] == long


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"question,answer\na,b\n{CANARY}\n", "line 3: not 2 columns wide as the header is"),
        (f"question,answer\na,b,{CANARY}\n", "line 2: not 2 columns wide"),
        (f'question,answer\n"{CANARY}', "line 2: not CSV (unexpected end of data)"),
        (f'question,answer\n"{CANARY}"x,b\n', "line 2: not CSV"),
        (f"question,answer,answer\na,b,{CANARY}\n", "line 1: two columns of the header have one name"),
        (f"question,answer\n{CANARY},\n", "line 2: no 'answer'"),
        (f"question\n{CANARY}\n", "line 2: no 'answer'"),
    ],
)
def test_a_crooked_csv_is_refused(content: str, said: str, tmp_path: Path):  # D09, D10
    assert said in refusal(file(tmp_path, content, "f.csv"))


def test_a_csv_in_latin_1_is_refused_with_line_and_offset(tmp_path: Path):  # D07
    assert "line 2: byte 8 is not UTF-8" in refusal(file(tmp_path, "text\ncafé\n".encode("latin-1"), "f.csv"))


def test_parquet_is_read_row_by_row(tmp_path: Path):
    rows = [
        {"id": "a", "question": "Q1", "answer": "A1", "options": ["x", "y"]},
        {"id": "b", "question": "Q2", "answer": "A2", "options": None},
    ]
    path = tmp_path / "f.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    second = {name: value for name, value in rows[1].items() if value is not None}
    assert [(r.line, r.columns) for r in load(path)] == [(1, rows[0]), (2, second)]
    assert columns(path) == {"id", "question", "answer", "options"}


def test_a_parquet_file_with_a_fault_is_refused(tmp_path: Path):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"question": ["Q", CANARY], "answer": ["A", None]}), path)
    assert "line 2: no 'answer'" in refusal(path)
    pq.write_table(pa.table({"question": [], "answer": []}), path)
    assert "holds no records" in refusal(path)
    pq.write_table(pa.Table.from_arrays([pa.array([CANARY]), pa.array(["b"])], names=["text", "text"]), path)
    assert "not a Parquet file that can be read" in refusal(path)  # D10
    offsets, content = pa.py_buffer(b"\x00\0\0\0\x04\0\0\0"), pa.py_buffer(b"caf\xe9")
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(1, offsets, content)}), path)
    assert "line 1: not UTF-8" in refusal(path)  # D07
    path.write_bytes(CANARY.encode() * 10)
    assert "not a Parquet file" in refusal(path)


def test_another_kind_of_file_or_none_is_refused(tmp_path: Path):  # D15
    assert "'.zip' files are not read. Allowed: .jsonl, .json, .csv, .parquet, .arrow." in refusal(
        file(tmp_path, "x", "f.zip")
    )
    assert "'.gz' files are not read" in refusal(file(tmp_path, "x", "f.jsonl.gz"))
    assert "no such file" in refusal(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet, .arrow, .jsonl, .json, .csv file" in refusal(tmp_path / "empty")


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u0dnaetxQ \n\r', max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path_factory):
    for name in ("any.jsonl", "any.csv", "any.parquet"):
        path = file(tmp_path_factory.getbasetemp(), content, name)
        said = ""
        try:
            found = read(path)
        except DataRefused as refused:
            found, said = [], str(refused)
        assert found or str(path) in said


@pytest.mark.parametrize(("sign", "called"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_table_separated_by_something_else_is_refused_by_its_header(sign: str, called: str, tmp_path: Path):
    said = refusal(file(tmp_path, f"id{sign}question{sign}answer\n1{sign}{CANARY}{sign}b\n", "f.csv"))
    assert f"line 1: the header's columns are separated by {called}, but must be by commas." in said


def test_columns_that_others_call_differently_are_told_by_their_known_names(tmp_path: Path):
    said = refusal(lines(tmp_path, {"query": CANARY, "solution": "b"}))
    assert "no 'question' (needed: question and answer, or text; rename 'query' to 'question' and " in said
    assert "'solution' to 'answer')" in said
    assert "rename 'Answer' to 'answer')" in refusal(lines(tmp_path, {"question": "a", "Answer": CANARY}))
    both = refusal(lines(tmp_path, {"instruction": CANARY, "prompt": "a", "answer": "b"}))
    assert "rename 'prompt' to 'question')" in both  # one of the two, not both
    # A name that nobody uses may be text of the record, and is not told.
    assert "rename" not in refusal(lines(tmp_path, {CANARY: "a"}))


def test_a_null_is_as_a_column_that_is_not_there(tmp_path: Path):
    row = {**GOOD, "id": None, "options": None, "lead": None, "text": None, "messages": None}
    [jsonl] = load(lines(tmp_path, row))
    pq.write_table(pa.Table.from_pylist([{**row, "messages": None}]), tmp_path / "f.parquet")
    [parquet] = load(tmp_path / "f.parquet")
    [array] = load(file(tmp_path, json.dumps([row]), "f.json"))
    assert jsonl == parquet == array
    assert jsonl.columns == GOOD


def test_a_json_list_is_read_as_its_lines_are(tmp_path: Path):
    rows = [GOOD, {"text": 'T\n[]{},"\\', "id": 7}, {"question": "é", "answer": "b"}]
    expected = load(lines(tmp_path, *rows))
    for text in (json.dumps(rows), json.dumps(rows, indent=2), " \n [" + ",\n".join(map(json.dumps, rows)) + " ] \n"):
        for raw in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
            assert load(file(tmp_path, raw, "f.json")) == expected
    assert load(file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "f.json")) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no records"),
        ("", "holds no records"),
        ('[{"text": "a"}', "not JSON at column 15"),
        ('[{"text": "a"} {"text": "b"}]', "not JSON at column 16"),
        ('[{"text": "a"},]', "not JSON at column 16"),
        ('[{"text": "a"}\n,\n{"text": "' + CANARY, "line 3: not JSON"),
        ('[{"text": "a"}] more', "something follows the list's end"),
        ('[{"text": "a"}, "' + CANARY + '"]', "line 2: not a JSON object"),
        ('[{"text": "a"}, {"text": "b", "text": "c"}]', "line 2: the key 'text' occurs twice"),
        ("[" * 100_000, "line 1: "),
        ('{"data": [\n{"text": "a"}]}', "line 1: not JSON"),
    ],
)
def test_a_crooked_json_list_is_refused_with_its_place(content: str, said: str, tmp_path: Path):
    assert said in refusal(file(tmp_path, content, "f.json"))


def test_a_json_list_in_latin_1_or_too_large_is_refused(tmp_path: Path, monkeypatch):
    assert "line 2: byte 15 is not UTF-8" in refusal(file(tmp_path, b'[\n{"text": "caf\xe9"}]', "f.json"))
    monkeypatch.setattr(records, "JSON_LIMIT", 10)
    assert "Write it as JSON lines" in refusal(file(tmp_path, '[{"text": "a"}]', "f.json"))


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_that_unpacks_without_end_is_refused_unread(nested: bool, tmp_path: Path, monkeypatch):  # D15
    monkeypatch.setattr("expunge.data.tables.UNPACKED", 10_000_000)
    long = "x" * 1_000_000
    columns = {"question": ["What?"] * 30, "answer": ["It."] * 30, "options": [["a", "b"]] * 30}
    columns |= {"options": [[long, "b"]] * 30} if nested else {"answer": [long] * 30}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(DataRefused, match="unpacks to more than"):
        load(path)
    monkeypatch.setattr("expunge.data.tables.UNPACKED", 32_000_000)
    assert len(load(path)) == 30
