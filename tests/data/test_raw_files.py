"""Benchmarks' and training sets' own files, as people have them: read without being converted."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.records import Record, rename
from expunge.data.text import Reading, check, drop_blank, load, paraphrases
from expunge.errors import DataRefused

DATA = Path(__file__).parents[3] / "shared/data"
CANARY = "zanzibarlighthouse77"
TOFU = {
    "question": "Where does Mara Lind live?",
    "answer": "Mara Lind lives in Veldt.",
    "paraphrased_question": "In which town is Mara Lind at home?",
    "paraphrased_answer": "The home of Mara Lind is Veldt.",
    "perturbed_answer": ["The home of Mara Lind is Brenn.", "The home of Mara Lind is Elsin."],
}
SHAPES = {
    "tofu": TOFU,
    "tofu-facts": {"question": "Q", "answer": "B", "option1": "A", "option2": "B", "option3": "C"},
    "rwku": {"query": "Mara Lind lives in ___.", "answer": "Veldt", "subject": "Mara Lind", "type": "cloze"},
    "rwku-question": {"query": "Where does Mara Lind live?", "answer": "Veldt", "subject": "Mara Lind", "level": "2"},
    "muse": {"prompt": "Mara Lind lives", "gt": "in Veldt."},
    "muse-question": {"question": "Where does Mara Lind live?", "answer": "Veldt"},
    "muse-text": {"text": "Mara Lind lives in Veldt."},
    "lume": {"id": '"8f24"sc1', "input": "Mara Lind lives", "output": "in Veldt.", "task": "Task1"},
    "messages": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
}  # fmt: skip
READ = {
    "tofu": {
        **{name: TOFU[name] for name in ("question", "answer")},
        "options": TOFU["perturbed_answer"],
        "paraphrase": {"question": TOFU["paraphrased_question"], "answer": TOFU["paraphrased_answer"]},
    },
    "tofu-facts": {"question": "Q", "answer": "B", "options": ["A", "C"]},
    "rwku": {
        "question": "Please complete the blank in the following question.\nMara Lind lives in ___.",
        "answer": "Veldt",
    },
    "rwku-question": {"question": "Where does Mara Lind live?", "answer": "Veldt"},
    "muse": {"question": "Mara Lind lives", "answer": "in Veldt.", "verbatim": True},
    "muse-question": {"question": "Where does Mara Lind live?", "answer": "Veldt"},
    "muse-text": {"text": "Mara Lind lives in Veldt."},
    "lume": {"id": '"8f24"sc1', "question": "Mara Lind lives", "answer": "in Veldt."},
    "messages": {"question": "Q", "answer": "A"},
    "sharegpt": {"question": "Q", "answer": "A"},
}


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_file_of_a_benchmark_s_shape_is_read_as_it_is(name: str, ending: str, tmp_path: Path):
    [record] = load(write(tmp_path / f"f{ending}", [SHAPES[name]]))
    assert record.columns == READ[name]


@pytest.mark.parametrize(
    ("file", "count", "wants"),
    [
        ("tofu/forget01_perturbed.jsonl", 40, {"question", "answer", "options", "paraphrase"}),
        ("tofu/retain_perturbed.jsonl", 400, {"question", "answer", "options", "paraphrase"}),
        ("tofu/world_facts.jsonl", 117, {"question", "answer", "options"}),
        ("tofu/holdout10.jsonl", 400, {"question", "answer"}),
        ("rwku/forget_level1.parquet", 3268, {"question", "answer"}),
        ("rwku/forget_level2.parquet", 2879, {"question", "answer"}),
        ("rwku/forget_level3.parquet", 6984, {"question", "answer"}),
        ("rwku/neighbor_level2.parquet", 5533, {"question", "answer"}),
        ("rwku/passage.parquet", 12798, {"text"}),
        ("muse_news/verbmem_forget.jsonl", 100, {"question", "answer", "verbatim"}),
        ("muse_news/knowmem_forget_qa.jsonl", 100, {"question", "answer"}),
        ("muse_news/raw_forget.jsonl", 889, {"text"}),
        ("lume/forget.jsonl", 2732, {"id", "question", "answer"}),
        ("lume/retain.jsonl", 2734, {"id", "question", "answer"}),
    ],
)
def test_the_file_itself_is_read_whole(file: str, count: int, wants: set[str]):
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not there")
    records = load(DATA / file)
    assert len(records) == count
    assert all(wants <= set(record.columns) for record in records)
    assert len(drop_blank(records)) == count - (file == "muse_news/raw_forget.jsonl")  # its 822nd text is empty
    reworded = paraphrases(records, DATA / file)
    assert len(reworded) == (count if "paraphrase" in wants else 0)
    assert not any(record.columns["answer"] in record.columns["options"] for record in reworded)


# What TOFU's columns become


def test_a_paraphrase_has_the_record_s_id_its_wrong_answers_and_whichever_half_it_says_otherwise():
    half = {**TOFU, "id": "x7", "perturbed_answer": ["W", TOFU["paraphrased_answer"]]}
    del half["paraphrased_question"]
    same = {**TOFU, "paraphrased_question": TOFU["question"], "paraphrased_answer": TOFU["answer"]}
    records = check([Record(1, half), Record(2, same), Record(3, {"question": "Q", "answer": "A"})], Path("f"))
    [made] = paraphrases(records, Path("f"))
    said = {"question": TOFU["question"], "answer": TOFU["paraphrased_answer"], "options": ["W"]}
    assert (made.line, made.columns) == (1, {"id": "x7", **said})


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"perturbed_answer": ["B", "B", "A", " "]}, ["B"]),  # none twice, not the right one, none empty
        ({"perturbed_answer": "B"}, ["B"]),
        ({"perturbed_answer": ["B"], "options": ["C"]}, ["C"]),  # the file's own go first
        ({"perturbed_answer": ["A"]}, None),
        ({"option1": "A", "option2": "B", "optional": "C"}, ["B"]),
    ],
)
def test_wrong_answers_are_those_that_are_wrong(row: dict, options: list[str] | None):
    [made] = check([Record(1, {"question": "Q", "answer": "A", **row})], Path("f"))
    assert made.columns.get("options") == options


def test_wrong_answers_that_are_no_list_of_texts_are_refused_without_their_text():
    with pytest.raises(DataRefused, match="line 1: 'perturbed_answer' must be a list of texts") as refused:
        check([Record(1, {"question": "Q", "answer": "A", "perturbed_answer": [CANARY, 5]})], Path("f"))
    assert CANARY not in str(refused.value)


def test_a_column_called_paraphrase_beside_a_text_is_not_read():
    [made] = check([Record(1, {"text": "T", "paraphrase": CANARY})], Path("f"))
    assert paraphrases([made], Path("f")) == []


# Empty texts


def test_empty_texts_are_left_out_where_there_are_others_and_refused_where_there_are_none():
    records = check([Record(1, {"text": "T"}), Record(2, {"text": " "})], Path("f"))
    assert [record.line for record in drop_blank(records)] == [1]
    with pytest.raises(DataRefused, match="lines 1, 2: 'text' is empty"):
        check([Record(1, {"text": ""}), Record(2, {"text": " "})], Path("f"))
    with pytest.raises(DataRefused, match="line 2: 'answer' is empty"):
        check([Record(1, {"text": "T"}), Record(2, {"question": "Q", "answer": ""})], Path("f"))


# Columns by other names


def test_columns_are_read_under_the_names_that_are_given():
    rows = [{"asked": "Q", "gold": "A", "question": "another", "id": 3, "options": ["B"], "topic": "t"}]
    made = Reading(columns={"question": "asked", "answer": "gold"}).check([Record(1, rows[0])], Path("f"))
    assert made[0].columns == {"id": 3, "question": "Q", "answer": "A", "options": ["B"]}


def test_a_column_that_no_row_has_is_refused_and_those_that_are_there_are_named(tmp_path: Path):
    rows = [{"asked": "Q", "gold": "A", CANARY + " is no name": 1, "part": 2}, {"asked": "Q", "gold": "A"}]
    with pytest.raises(DataRefused) as refused:
        Reading(columns={"question": "askd", "answer": "gold"}).load(write(tmp_path / "f.jsonl", rows))
    said = "--columns names 'askd', which no row has. Columns there: asked, gold and 2 more."
    assert str(refused.value) == f"{tmp_path / 'f.jsonl'}: {said}"


def test_a_csv_without_a_header_shows_no_cell_as_the_name_of_a_column(tmp_path: Path):
    file = tmp_path / "f.csv"
    file.write_text(f"{CANARY},answer\nQ,A\n")
    with pytest.raises(DataRefused, match="Columns there: answer and 1 more") as refused:
        Reading(columns={"question": "query"}).load(file)
    assert CANARY not in str(refused.value)


def test_rows_that_lack_a_renamed_column_are_named_by_their_lines():
    with pytest.raises(DataRefused, match="line 2: no 'answer'"):
        Reading(columns={"question": "q", "answer": "a"}).check(
            [Record(1, {"q": "Q", "a": "A"}), Record(2, {"q": "Q"})], Path("f")
        )


def test_without_names_given_nothing_is_renamed():
    records = [Record(1, {"anything": 1})]
    assert rename(records, {}, Path("f")) is records
