"""The confusion table: which class is named for which, before and after, with the rest counted together."""

from expunge.report import html
from expunge.report.confusion import COLUMNS, Confused, confusion_table
from tests.report.reports import assert_inert, report

ROWS = (
    Confused("forget", "cat", 10, {"cat": 9, "dog": 1}, {"dog": 7, "fox": 3}),
    Confused("test", "dog", 5, {"dog": 5}, {"dog": 4, "cat": 1}),
)


def test_a_row_has_its_right_class_in_front_and_counts_before_and_after():
    table = confusion_table(ROWS)
    assert table.columns == ["cat", "dog", "fox"]
    assert [line.cells for line in table.lines] == [["9 → 0", "1 → 7", "0 → 3"], ["0 → 1", "5 → 4", "·"]]
    assert [line.right for line in table.lines] == [0, 1]


def test_classes_beyond_the_columns_are_counted_together():
    many = Confused("forget", "c0", 20, {f"c{k}": 2 for k in range(10)}, None)
    table = confusion_table([many])
    assert table.columns == [*(f"c{k}" for k in range(COLUMNS)), "others"]
    assert table.lines[0].cells == ["2"] * COLUMNS + ["4"]  # two classes of two each


def test_the_page_of_images_has_the_table_and_hides_the_pictures():
    text = assert_inert(html.render(report(confusion=ROWS))).text
    assert "Images of n cat dog fox cat forget 10 9 → 0 1 → 7 0 → 3 dog test 5 0 → 1 5 → 4 ·" in text
    assert "The images are hidden" in text
