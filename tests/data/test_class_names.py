"""Which class is meant by a name or a number, and what is said where that is not clear."""

from pathlib import Path

import pytest

from expunge.data.class_names import explain_unknown, find_conflicts, number_of
from expunge.data.images import ImageRecord, encode
from expunge.errors import DataRefused

NAMED = {"cat": 0, "dog": 1, "3": 2, "crane (3)": 3, "crane (4)": 4}
UNNAMED = {f"LABEL_{k}": k for k in range(3)}


def test_a_name_goes_before_a_number():
    assert number_of("dog", "", NAMED) == 1
    assert number_of(0, "dog", NAMED) == 1
    assert number_of("3", "", NAMED) == 2  # a class that is called so, and not number 3
    assert number_of(3, "", NAMED) == 3
    assert number_of("4", "", NAMED) == 4
    assert number_of("cow", "", NAMED) is None
    assert number_of(1, "cow", UNNAMED) == 1


def test_a_file_and_a_model_that_name_one_number_differently_are_told():
    assert list(find_conflicts([(0, "cat"), (1, "cow"), ("dog", ""), (1, "")], NAMED)) == [
        (1, "class 1 is 'cow' in the file and 'dog' in the model")
    ]
    assert list(find_conflicts([(1, "cow")], UNNAMED)) == []  # the model has no names that could differ
    with pytest.raises(DataRefused, match=r"row 2: class 1 is 'cow' in the file and 'dog' in the model. Give both"):
        encode([record(1, 0, "cat"), record(2, 1, "cow")], None, NAMED, Path("f.parquet"))


def record(line: int, label: int | str, name: str = "") -> ImageRecord:
    from PIL import Image

    return ImageRecord(f"row-{line}", line, Image.new("RGB", (2, 2)), label, name)


@pytest.mark.parametrize(
    ("label", "known", "said"),
    [
        ("cow", NAMED, "The model's 5 classes are: cat, dog, 3, crane (3), crane (4). Fix the labels."),
        (
            "cat",
            UNNAMED,
            "The model has no names for its 3 classes (LABEL_0, ...): name the folders, or labels, by their",
        ),
        ("crane", NAMED, "'crane' is the name of several classes: say which, crane (3) or crane (4)."),
    ],
)
def test_an_unknown_class_is_told_with_what_to_do(label: str, known: dict, said: str):
    assert explain_unknown([label], known).startswith(said)
    with pytest.raises(DataRefused) as refused:
        encode([record(1, label)], None, known, Path("f.parquet"))
    assert said in str(refused.value)


def test_two_label_columns_are_refused(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from expunge.data.images import load

    pq.write_table(pa.table({"image": [b""], "label": [1], "fine_label": [2]}), tmp_path / "f.parquet")
    with pytest.raises(DataRefused, match="has 2 label columns: label, fine_label. Keep the one that is meant"):
        load(tmp_path / "f.parquet")
