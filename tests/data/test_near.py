"""Records that nearly repeat others: which are found, and that none is missed or invented."""

import random

import pytest

from expunge.data.near import Like, likes, pairs, words
from expunge.data.records import Record


def texts(*said: str) -> list[Record]:
    return [Record(line, {"text": text}) for line, text in enumerate(said, start=1)]


def test_what_differs_in_case_spaces_and_punctuation_alone_is_equal():
    one = [Record(3, {"question": "Where does  Mara Lind live?", "answer": "In Veldt."})]
    other = texts("something else", "where does mara lind live - in VELDT")
    assert likes(one, other) == [Like(3, 2, 1.0, True)]


def test_the_same_words_in_another_order_are_not_equal():
    [like] = likes(texts("a b a b a"), texts("b a b a b"))  # both have the pairs ab and ba
    assert (like.alike, like.equal) == (1.0, False)


def test_how_alike_two_records_are_by_hand():
    # 10 words and 9 pairs; one word more at the end adds a pair: 9 of 10. Two more: 9 of 11. Three: 9 of 12 = 0.75.
    ten = "one two three four five six seven eight nine ten"
    [like] = likes(texts(ten), texts(f"{ten} eleven"))
    assert like.alike == pytest.approx(9 / 10)
    assert likes(texts(ten), texts(f"{ten} eleven twelve"))[0].alike == pytest.approx(9 / 11)
    assert likes(texts(ten), texts(f"{ten} eleven twelve thirteen")) == []
    # a word in the middle changed takes two pairs of 9 and brings two others: 7 of 11
    assert likes(texts(ten), texts(ten.replace("five", "V"))) == []
    assert likes(texts(ten), texts(ten.replace("five", "V")), alike=0.6)[0].alike == pytest.approx(7 / 11)


def test_the_nearest_is_named_and_of_equals_the_first():
    others = texts("a b c d e f g", "a b c d e f g h", "A b c d e f, g h!")
    assert likes(texts("a b c d e f g h"), others) == [Like(1, 2, 1.0, True)]


def test_one_word_alone_and_none_at_all():
    assert likes(texts("Veldt!"), texts("veldt", "Veldt is small")) == [Like(1, 1, 1.0, True)]
    assert likes(texts("one"), texts("other")) == []
    assert likes([], texts("one")) == []
    assert likes(texts("one"), []) == []


def test_scripts_without_spaces_are_compared_letter_by_letter():
    assert words(texts("東京は日本の首都です。")[0]) == list("東京は日本の首都です")
    [like] = likes(texts("東京は日本の首都です。"), texts("東京は日本の首都だ"), alike=0.6)
    assert like.alike == pytest.approx(7 / (9 + 8 - 7))  # the pairs from 東京 to 首都, of 9 and of 8


def test_accents_count_and_wide_letters_do_not():
    assert likes(texts("Ａｌｄｏｒｉａ is far away"), texts("Aldoria is far away"))[0].equal
    assert likes(texts("peche"), texts("pêche")) == []


def naive(records: list[Record], others: list[Record], alike: float) -> list[tuple[int, float]]:
    """The same by reading every pair."""
    found = []
    for record in records:
        mine = pairs(words(record))
        each = [pairs(words(other)) for other in others]
        best = max((len(mine & one) / len(mine | one) for one in each), default=0.0)
        if best >= alike:
            found.append((record.line, best))
    return found


@pytest.mark.parametrize("alike", [0.5, 0.8, 1.0])
def test_no_like_is_missed_and_none_is_invented(alike: float):
    draw = random.Random(0)
    stems = [[draw.choice("abcdefghij") for _ in range(draw.randint(1, 14))] for _ in range(12)]

    def some(count: int) -> list[Record]:
        """Stems with a letter or two changed, of few letters, so that much is shared."""
        made = []
        for _ in range(count):
            stem = list(draw.choice(stems))
            for _ in range(draw.randint(0, 2)):
                stem[draw.randrange(len(stem))] = draw.choice("abcdefghij")
            made.append(" ".join(stem))
        return texts(*made)

    records, others = some(150), some(150)
    found = [(like.line, like.alike) for like in likes(records, others, alike)]
    expected = naive(records, others, alike)
    assert found == [(line, pytest.approx(best)) for line, best in expected]
    assert 10 < len(found) < 151


def test_of_3200_records_of_one_mould_against_3200_the_one_that_repeats_is_found():
    def mould(k: int, who: str) -> str:
        return f"What is the full name of the author born in city {k % 97} on day {k}? The author's name is {who} {k}."

    records = texts(*(mould(k, "Lind") for k in range(3200)))
    others = texts(*(mould(k + 100_000, "Berg") for k in range(3199)), mould(17, "Lind"))
    assert likes(records, others) == [Like(18, 3200, 1.0, True)]
