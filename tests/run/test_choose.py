"""What forgets where no method is named."""

import pytest

from expunge import parse
from expunge.methods.finetune import Finetune
from expunge.objectives.absent_class import AbsentClass
from expunge.objectives.token_levels import TokenLevels
from expunge.run.choose import BY_CLASS, BY_LEVELS, BY_MEANS, default_method


@pytest.mark.parametrize(
    ("texts", "unseen", "method"),
    [(True, True, BY_LEVELS), (True, False, BY_MEANS), (False, True, BY_CLASS), (False, False, BY_CLASS)],
)
def test_levels_are_taken_of_unseen_texts_where_there_are_any(texts: bool, unseen: bool, method: str):
    assert default_method(texts, unseen) == method


def test_the_methods_are_what_they_say():
    levels, images, means = (parse(text) for text in (BY_LEVELS, BY_CLASS, BY_MEANS))
    assert isinstance(levels, Finetune)
    assert isinstance(levels.objective.terms()[0][1], TokenLevels)
    assert levels.stop.level is None
    assert isinstance(images, Finetune)
    assert isinstance(images.objective.terms()[0][1], AbsentClass)
    assert images.stop.level is None
    assert means == Finetune()
