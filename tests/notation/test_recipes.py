"""Published recipes: each is read as it stands, names what is there, and is run whole under its name."""

import importlib
import re
import subprocess
import sys

import pytest

from expunge.cli.listing import describe, nameable
from expunge.core.method import Method
from expunge.errors import UsageRefused
from expunge.methods.finetune import Finetune
from expunge.notation.parse import parse, plugins, squash, write
from expunge.notation.recipes import FAMILIES, Recipe, check_method, recipe_of, recipes
from expunge.run.choose import choose_method

EVERY = pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: f"{recipe.name}-{recipe.family}")
OURS = ("Settle", "AbsentClass")
"""Recipes with a stop: nobody's but our own."""


def test_what_is_read_from_the_files_is_what_they_hold_when_they_are_imported():
    held = []
    for plugin in plugins():
        made = getattr(importlib.import_module(plugin.module), "PUBLISHED", ())
        held += [made] if isinstance(made, Recipe) else made
    assert [(r.name, r.family, r.method, r.source) for r in recipes()] == [
        (r.name, r.family, r.method, r.source) for r in held
    ]
    assert len(held) > 35


def test_a_name_is_given_once_in_each_family():
    names = [(squash(recipe.name), recipe.family) for recipe in recipes()]
    assert len(set(names)) == len(names)


@EVERY
def test_a_recipe_is_a_method_that_is_read_back_from_its_own_repr(recipe: Recipe):
    check_method(recipe.name)
    check_method(recipe.method)
    method = parse(recipe.method)
    assert isinstance(method, Method)
    assert parse(write(method)) == method
    assert recipe.family in FAMILIES
    assert recipe.source.endswith(".")
    assert choose_method(recipe.name, recipe.family).method == method
    assert choose_method(f"  {recipe.name.lower()} ", recipe.family).recipe == recipe


@EVERY
def test_no_published_recipe_has_a_stop_of_ours(recipe: Recipe):
    method = parse(recipe.method)
    for found in (method, getattr(method, "learn", None)):
        if isinstance(found, Finetune) and recipe.name not in OURS:
            assert found.checks.level is found.checks.max_retain_increase is None
            if recipe.name != "TokenLevels":
                assert found.checks.max_forget_loss is found.checks.max_growth is None


def test_a_name_that_is_an_objective_too_stays_the_objective_inside_of_a_method():
    method = parse("Finetune(objective=NPO + RetainNLL())")
    assert write(method.objective) == "NPO(beta=0.1) + RetainNLL()"


def test_a_recipe_takes_settings_of_what_it_is_named_after_and_of_the_method_around_it():
    changed = recipe_of("NPO(beta=0.5, learning_rate=1e-3)", "language")
    plain = recipe_of("NPO", "language")
    assert changed.name == "NPO(beta=0.5, learning_rate=0.001)"
    assert parse(changed.method) == parse(
        plain.method.replace("beta=0.1", "beta=0.5").replace("learning_rate=1e-05", "learning_rate=0.001")
    )
    assert parse(recipe_of("NPO()", "language").method) == parse(plain.method)
    assert parse(recipe_of("IdkDPO(beta=1.0)", "language").method).objective.terms()[0][1].beta == 1.0
    assert parse(recipe_of("TokenLevels(every=5)", "language").method).objective.terms()[0][1].every == 5
    weights = [weight for weight, _ in parse(recipe_of("GSLoRA(alpha=0.5)", "vision").method).objective.terms()]
    assert weights == [0.15, 1.0, 0.5]
    assert parse(recipe_of("SalUn(quantile=0.9)", "vision").method).adapter.quantile == 0.9


def test_a_call_of_a_method_is_that_method_and_no_recipe():
    assert recipe_of("LAF(steps=3)", "vision") is None
    assert recipe_of("SSD(alpha=10.0)", "vision") is None
    assert recipe_of("LAF", "vision").name == "LAF"
    assert choose_method("SSD(alpha=10.0)", "vision").method.alpha == 10.0


@pytest.mark.parametrize(
    ("text", "family", "said"),
    [
        ("NPO(bta=0.5)", "language", r"The recipe NPO has no setting 'bta'. It has: beta, objective, adapter, "),
        ("NPO(beta=1.0, beta=2.0)", "language", r"The `beta` of NPO is given twice"),
        ("RMU(layer=2)", "language", r"the `layer` of RMU goes with that of RetainHidden. Write it out: Finetune\("),
        ("SalUn", "language", r"--method SalUn: the recipe is one for image classifiers, and .* language models"),
        ("NPO", "vision", r"the recipe is one for language models, .* write it out: Finetune\(objective=NPO"),
        ("NPO() + RetainKL()", "vision", r"Write Finetune\(objective=NPO\(\) \+ RetainKL\(\)\)"),
        (
            "Ascent()",
            "vision",
            r"is not a method. Write Finetune\(objective=Ascent\(\)\), or name a recipe with it: GA",
        ),
        ("Loss()", "vision", r"--method 'Loss\(\)' is not a method. Give Finetune\(...\) or a recipe's name"),
    ],
)
def test_what_is_no_recipe_of_the_family_is_refused_in_a_line_that_says_what_to_write(text, family, said):
    with pytest.raises(UsageRefused, match=said) as refused:
        choose_method(text, family)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("LoKY", "No method is called 'LoKY'. Nearest: LoKU"), ("SCRUB(alpa=1)", "no setting 'alpa'"), ("NP0", "NPO")],
)
def test_a_typo_is_answered_before_anything_is_imported(text: str, said: str):
    with pytest.raises(UsageRefused, match=re.escape(said)):
        check_method(text)


def test_a_sum_of_one_name_and_spaces_is_a_recipe_where_one_is_called_so():
    assert recipe_of("gd + sine", "language").name == "GD+Sine"


def test_recipes_are_listed_with_family_line_and_source_and_no_torch():
    code = (
        "import sys\n"
        "from expunge.cli.listing import describe\n"
        "from expunge.notation.recipes import check_method\n"
        "check_method('NPO(beta=0.5)')\n"
        "print('\\n'.join(describe('recipes')))\n"
        "print('torch' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *lines, torch = said.splitlines()
    assert torch == "False"
    shown = " ".join(" ".join(lines).split())
    for recipe in recipes():
        assert f"--method {recipe.name} " in shown
        assert f"({recipe.family}) {' '.join(recipe.what.split())}" in shown
        assert " ".join(f"{recipe.method} Numbers: {recipe.source}".split()) in shown


def test_what_is_told_of_a_plugin_names_its_recipes_and_a_recipe_can_be_asked_for():
    assert any(line.startswith("--method NPO ") for line in describe("npo"))
    assert [line.split()[1] for line in describe("DPO") if line.startswith("--method")] == ["IdkDPO", "AltPO"]
    assert [line.split()[1] for line in describe("loku") if line.startswith("--method")] == ["LoKU"]
    assert {"recipes", "GD+Sine", "NPO"} < set(nameable())
    with pytest.raises(UsageRefused, match=r"no kind, recipe or plug-in 'LoKY'. Nearest: LoKU"):
        list(describe("LoKY"))
