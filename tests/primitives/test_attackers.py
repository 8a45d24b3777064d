"""Attackers that learn from records whose part in training is known, on numbers that can be told apart by eye."""

from expunge.primitives.attackers import attack_confidence, attack_entropy

SURE, UNSURE = [0.99, 0.98, 0.97, 0.99], [0.3, 0.35, 0.4, 0.32]


def test_who_is_as_sure_as_members_is_called_one():
    assert attack_confidence(SURE, UNSURE, [0.98, 0.33, 0.96]) == [1, 0, 1]
    assert attack_entropy([0.01, 0.02, 0.03], [3.0, 4.0, 5.0], [0.02, 4.5]) == [1, 0]


def test_a_model_that_is_sure_of_strangers_too_gives_nothing_away():
    assert attack_confidence(SURE, SURE, [0.5]) in ([0.0], [1.0])
    assert len(set(attack_entropy([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]))) == 1


def test_confidence_is_learnt_from_as_many_members_as_strangers():
    """Members beyond that number would make everybody a member: only the first, who is unsure, counts here."""
    assert attack_confidence([0.3, *[0.99] * 50], [0.9], [0.31, 0.89]) == [1, 0]


def test_entropy_weighs_members_and_strangers_alike_however_many_there_are():
    assert attack_entropy([0.0] * 50, [4.0], [3.5, 0.5]) == [0, 1]
