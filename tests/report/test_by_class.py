"""Right answers by class, and the plot of where images lie."""

import re
from collections import Counter

from expunge.report import html
from expunge.report.by_class import LINES, ClassCount, Placed, class_lines
from expunge.report.confusion import Confused
from expunge.report.places import draw_places
from tests.report.reports import assert_inert, report

ROWS = (
    ClassCount("test", "dog", False, 10, {"before": 10, "after": 9}),
    ClassCount("test", "fox", False, 10, {"before": 9, "after": 4}),
    ClassCount("forget", "cat", True, 40, {"before": 40, "after": 1}),
)


def test_what_should_be_gone_comes_first_and_then_what_changed_most():
    assert [line.label for line in class_lines(ROWS)] == ["cat", "fox", "dog"]
    assert class_lines(ROWS)[1].shares == {"before": 0.9, "after": 0.4}


def test_classes_without_a_line_of_their_own_are_one_line_of_all_their_images():
    many = [ClassCount("test", f"c{k:02}", False, 10, {"before": 10, "after": 10 - k % 2}) for k in range(20)]
    lines = class_lines([ROWS[2], *many])
    assert len(lines) == LINES + 1
    last = lines[-1]
    assert (last.label, last.n) == ("9 others", 90)  # 11 of the 20 are shown: the ten that changed, and one
    assert last.shares == {"before": 1.0, "after": 1.0}


def test_one_class_too_many_has_a_line_rather_than_being_called_one_other():
    rows = [ClassCount("test", f"c{k}", False, 10, {"before": 10}) for k in range(LINES + 1)]
    assert [line.label for line in class_lines(rows)] == sorted(f"c{k}" for k in range(LINES + 1))


def test_in_an_audit_the_classes_that_are_named_wrongly_come_first():
    rows = [ClassCount("test", label, False, 10, {"before": right}) for label, right in (("a", 9), ("b", 3))]
    assert [line.label for line in class_lines(rows)] == ["b", "a"]


def test_the_plot_has_a_panel_for_each_model_and_names_each_class_in_it():
    points = [Placed("forget", "cat", True, {"before": (0.0, 1.0), "after": (1.0, 0.0)})] * 3
    points += [Placed("test", "dog", False, {"before": (2.0, 1.0), "after": (1.0, 2.0)})] * 3
    drawn = draw_places(points)
    texts = Counter(re.findall(r"<text[^>]*>([^<]*)</text>", drawn))
    assert [texts[word] for word in ("Before", "After", "Reference", "cat", "dog")] == [1, 1, 0, 2, 2]
    assert draw_places([]) == ""


def test_the_page_of_images_has_both():
    places = tuple(Placed("test", "<dog>", False, {"before": (0.1 * k, 1.0)}) for k in range(9))
    made = report(confusion=(Confused("forget", "cat", 40, {"cat": 40}, {"dog": 40}),), classes=ROWS, places=places)
    text = assert_inert(html.render(made)).text
    assert "cat forget 40 100% 2% fox test 10 90% 40% dog test 10 100% 90%" in text
    assert "Where the images lie" in text
