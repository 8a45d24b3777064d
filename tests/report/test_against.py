"""Numbers that speak against a yes: off by more than the tolerance, on the wrong side, if by no more than chance."""

from tests.report.made_up import good, rule, share, verdict


def told(name, **changed):
    found = rule(verdict(good(**changed)), name)
    return found.result, found.against


def test_what_is_off_by_more_than_the_tolerance_speaks_against_a_yes():
    assert told("forget.Choice") == ("yes", False)  # 28 of 40, as in the holdout set
    assert told("forget.Choice", forget__Choice=share(0.725)) == ("yes", False)  # 29: by 0.025, and 0.05 is allowed
    assert told("forget.Choice", forget__Choice=share(0.775)) == ("yes", True)  # 31: by 0.075
    assert told("forget.Choice", forget__Choice=share(0.6)) == ("yes", True)  # 24: by 0.10, to the other side


def test_what_should_stay_is_off_on_the_worse_side_alone():
    assert told("neighbours.Choice") == ("yes", False)
    assert told("neighbours.Choice", neighbours__Choice=share(0.85)) == ("not measured", True)  # 34 for 36 of 40
    assert told("neighbours.Choice", neighbours__Choice=share(0.95)) == ("yes", False)


def test_a_no_needs_no_more_and_less_of_what_is_written_is_fine():
    assert told("forget.Choice", forget__Choice=share(1.0)) == ("no", False)
    assert told("forget.Rouge", forget__Rouge=[0.0] * 40) == ("yes", False)
