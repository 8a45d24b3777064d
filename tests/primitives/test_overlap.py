"""ROUGE and overlaps of n-grams, worked by hand."""

import pytest

from expunge.primitives.overlap import rouge, share_of_ngrams


def test_recall_is_a_share_of_the_right_text_and_f1_punishes_rambling():
    [found] = rouge(["the cat sat down"], ["a cat sat on the mat"])
    # longest common subsequence: cat sat; common words: cat, sat, the
    assert found.recall == 2 / 4
    assert found.words == 3 / 4
    assert found.f1 == pytest.approx(2 * (2 / 4) * (2 / 6) / (2 / 4 + 2 / 6))


def test_stemmed_words_are_the_same_word():
    [stemmed], [bare] = (
        rouge(["she writes novels"], ["writing a novel"], words) for words in ("stemmed", "as they are")
    )
    assert (stemmed.recall, bare.recall) == (2 / 3, 0)


def test_ngrams_are_counted_on_the_side_that_was_to_be_said():
    # bigrams of the first: 12 23 31 12, of the other: 12 23 34; three of the four occur there
    assert share_of_ngrams([1, 2, 3, 1, 2], [1, 2, 3, 4], 2) == 3 / 3
    assert share_of_ngrams([1, 2], [1, 2, 3, 4], 2) == 1 / 3
    assert share_of_ngrams([1, 2], [1], 2) == 0
