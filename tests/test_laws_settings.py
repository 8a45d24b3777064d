"""Of every plug-in: a number that makes no sense is refused when the plug-in is made, not steps later."""

import math
from dataclasses import fields, replace
from typing import get_type_hints

import pytest

from expunge.errors import UsageRefused
from expunge.notation.parse import find, plugins

CASES = [
    pytest.param(plugin.name, each.name, wrong, id=f"{plugin.name}-{each.name}-{wrong}")
    for plugin in plugins()
    if isinstance(kind := find(plugin.name), type)
    for each in fields(kind)
    if each.init
    for wrong in ((math.nan, math.inf) if "float" in str(get_type_hints(kind)[each.name]) else ())
    + ((-(2**70),) if get_type_hints(kind)[each.name] is int else ())
]
"""NaN and infinity for settings that may be real numbers; what is far below 0 for whole ones."""


def test_there_are_such_settings():
    assert len(CASES) > 100


@pytest.mark.parametrize(("name", "setting", "wrong"), CASES)
def test_a_number_that_makes_no_sense_is_refused_by_name(name, setting, wrong):
    made = find(name)()
    with pytest.raises(UsageRefused) as refused:
        replace(made, **{setting: wrong})
    assert setting in str(refused.value)
    assert name in str(refused.value)
    assert repr(wrong) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins()])
def test_a_seed_that_no_generator_takes_is_refused(name):
    made = find(name)
    if isinstance(made, type) and "seed" in {each.name for each in fields(made)}:
        with pytest.raises(UsageRefused, match="seed"):
            replace(made(), seed=2**63)
        assert replace(made(), seed=2**63 - 1)
