"""What forgets where no method is named, and which recipe a report says was run."""

import pytest

from expunge.methods.finetune import Finetune
from expunge.objectives.absent_class import AbsentClass
from expunge.objectives.token_levels import TokenLevels
from expunge.run.choose import choose_method, default_method


@pytest.mark.parametrize(
    ("family", "unseen", "method"),
    [
        ("language", True, "TokenLevels"),
        ("language", False, "Settle"),
        ("vision", True, "AbsentClass"),
        ("vision", False, "AbsentClass"),
        ("a stranger's", True, "Settle"),
    ],
)
def test_levels_are_taken_of_unseen_texts_where_there_are_any(family: str, unseen: bool, method: str):
    assert default_method(family, unseen) == method


def test_the_defaults_are_recipes_that_are_what_they_say():
    levels = choose_method("TokenLevels", "language")
    assert isinstance(levels.method, Finetune)
    assert isinstance(levels.method.objective.terms()[0][1], TokenLevels)
    assert levels.method.stop.level is None
    images = choose_method("AbsentClass", "vision")
    assert isinstance(images.method.objective.terms()[0][1], AbsentClass)
    assert images.method.stop.level is None
    for family in ("language", "vision"):
        means = choose_method("Settle", family)
        assert means.method == Finetune()
        assert means.recipe.name == "Settle"


def test_a_method_that_is_written_out_or_made_is_no_recipe_and_takes_a_seed():
    for method in ("Finetune(steps=3)", Finetune(steps=3)):
        chosen = choose_method(method, "language", seed=5)
        assert chosen.recipe is None
        assert chosen.method == Finetune(steps=3, seed=5)
