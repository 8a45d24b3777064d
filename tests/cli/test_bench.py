"""`expunge bench NAME --method`: how methods are named, and what is refused before a model is loaded."""

import pytest

from expunge.cli.bench import Tried, name_method
from expunge.errors import Refusal


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SalUn", ("SalUn", "SalUn")),
        ("NPO(beta=0.1, learning_rate=1e-5)", ("NPO", "NPO(beta=0.1, learning_rate=1e-5)")),
        ("slow=NPO(beta=0.1)", ("slow", "NPO(beta=0.1)")),
        ("GD+sine = Finetune(objective=GradDiff())", ("GD+sine", "Finetune(objective=GradDiff())")),
        ("L1-sparse=L1Sparse", ("L1-sparse", "L1Sparse")),
    ],
)
def test_a_method_is_called_as_is_written_before_it_or_by_its_first_word(text: str, named: tuple[str, str]):
    assert name_method(text) == named


def test_methods_and_seeds_are_read():
    assert Tried(["SSD", "b=SalUn"], "0-1,5").read() == ({"SSD": "SSD", "b": "SalUn"}, (0, 1, 5))
    assert Tried().read() == ({}, ())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((["NPO", "NPO(beta=0.2)"],), "Two methods have one name"),
        ((["NPOO"],), "No method is called 'NPOO'. Nearest: NPO"),
        ((["a=Finetune(stepz=3)"],), "'stepz'"),
        ((None, "0-2"), "--seeds are those of methods. Give --method too"),
        ((["NPO"], "x"), "--seeds 'x' could not be read"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_line(given: tuple, said: str):
    with pytest.raises(Refusal, match=said):
        Tried(*given).read()
