"""Values in words, and letters as what they are."""

import math

from expunge.report import words


def test_ordinary_letters_of_any_script_stay_as_they_are():
    written = "Ångström\n\tمی\u200cخواهم 東京 👩\u200d🔬"
    assert words.visible(written) == written


def test_numbers_are_as_long_as_they_are_useful():
    said = {0.97: "0.97", 5.312: "5.31", 0: "0", 1.0: "1.00", 0.0833: "0.083", 121.84: "121.8", 1.2e-5: "1.2e-05"}
    assert {value: words.number(value) for value in said} == said
    assert words.number(123456) == "123,456"
    assert words.number(2.5e7) == "2.5e+07"
    assert (words.number(None), words.number(-math.inf)) == ("–", "−∞")


def test_sizes_and_times_have_units():
    assert [words.short(n) for n in (1234, 134515008, 7.2e9)] == ["1,234", "134.5 M", "7.2 B"]
    assert [words.storage(n) for n in (512, 2.4e9)] == ["512 bytes", "2.4 GB"]
    assert [words.duration(s) for s in (1.23, 59.94, 59.96, 82.0, 11100)] == [
        "1.2 s", "59.9 s", "1 min 0 s", "1 min 22 s", "3 h 5 min",
    ]  # fmt: skip
    assert words.moment("2026-11-22T09:00:00Z") == "22 November 2026, 09:00 UTC"
    assert words.moment("yesterday") == "yesterday"
