"""The notation: what is printed can be read back, and nothing that is read is run."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UsageRefused
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.notation.parse import Plugin, check_names, find, parse, parse_list, plugins
from expunge.objectives.npo import NPO

EVERY = pytest.mark.parametrize("plugin", plugins(), ids=lambda plugin: plugin.name)


@EVERY
def test_a_plugin_with_its_defaults_is_printed_and_read_back(plugin: Plugin):
    made = parse(plugin.name)
    assert parse(repr(made)) == made
    assert repr(parse(repr(made))) == repr(made)


@EVERY
def test_every_plugin_file_says_what_it_is_in_one_sentence(plugin: Plugin):
    assert plugin.summary
    assert plugin.summary[0].isupper()
    assert plugin.summary[-1] in ".:?)", plugin.summary
    assert len(plugin.summary) <= 130


@pytest.mark.parametrize(
    "text",
    [
        "NPO(beta=0.5) + 2.0 * RetainKL()",
        "Finetune(objective=0.1 * NPO(beta=0.05) + RetainNLL(), adapter=LoRA(rank=4), steps=7, clip=1.0)",
        "Finetune(objective=GradDiff(forget_weight=0.3), adapter=Full(), learning_rate=1e-05)",
        "Finetune(adapter=Bounded(map='tanh', rank=2, gain=1.5, targets='all'), "
        "stop=Stop(level=None, max_retain_increase=None))",
        "2.0 * (Ascent() + RetainNLL())",
        "-1.0 * Ascent()",
        "MinK(fraction=0.4)",
    ],
)
def test_a_composed_method_is_printed_and_read_back(text: str):
    made = parse(text)
    assert repr(parse(repr(made))) == repr(made)


def test_the_whole_of_a_method_survives():
    text = "Finetune(objective=Ascent() + 2.0 * RetainNLL(), adapter=LoRA(rank=4, targets='attention'), steps=40)"
    made = parse(text)
    assert isinstance(made, Finetune)
    assert parse(repr(made)) == made
    assert (made.steps, made.adapter.rank, made.adapter.targets) == (40, 4, "attention")
    assert [weight for weight, _ in made.objective.terms()] == [1.0, 2.0]


@settings(max_examples=50, deadline=None)
@given(
    beta=st.floats(min_value=1e-6, max_value=1e6),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    level=st.one_of(st.none(), st.floats(-1e3, 1e3), st.just("holdout")),
)
def test_any_numbers_survive_to_the_last_bit(beta: float, weight: float, level: float | str | None):
    method = Finetune(objective=weight * NPO(beta=beta) + parse("RetainKL"), stop=Stop(level=level))
    assert parse(repr(method)) == method


def test_case_and_underscores_of_a_name_do_not_matter():
    assert parse("npo(beta=0.2)") == parse("NPO(beta=0.2)")
    assert find("retain_kl") is find("RetainKL")


def test_a_list_is_several_things_with_commas_between_them():
    assert parse_list("Loss, MinK(fraction=0.4)") == [parse("Loss"), parse("MinK(fraction=0.4)")]
    assert parse_list("Loss") == [parse("Loss")]
    assert parse_list("Loss,\n MinK") == [parse("Loss"), parse("MinK")]
    with pytest.raises(UsageRefused, match=r"^'Loss\), \(MinK' could not be read"):
        parse_list("Loss), (MinK")


def test_a_plugin_of_somebody_else_is_named_by_module_and_class(tmp_path: Path, monkeypatch):
    (tmp_path / "strangers").mkdir()
    source = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    size: int = 3\n"
    (tmp_path / "strangers" / "plug.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert parse("strangers.plug:Mine(size=5)").size == 5
    assert parse("strangers.plug:Mine").size == 3
    check_names("Finetune(objective=strangers.plug:Mine(size=5))")
    with pytest.raises(UsageRefused, match=r"^strangers.plug:Mine has no setting 'sise'. Did you mean 'size'\?"):
        parse("strangers.plug:Mine(sise=5)")
    with pytest.raises(UsageRefused, match=r"^The `size` of strangers.plug:Mine must be a whole number. Got 'a'."):
        parse("strangers.plug:Mine(size='a')")
    with pytest.raises(UsageRefused, match=r"'strangers.plug:Gone' could not be loaded"):
        parse("strangers.plug:Gone")
    with pytest.raises(UsageRefused, match=r"'nowhere.plug:Mine' could not be loaded") as refused:
        parse("nowhere.plug:Mine")
    said = "No module named 'nowhere'. Install it, or set PYTHONPATH to the folder that holds it."
    assert str(refused.value).endswith(said)


@pytest.mark.parametrize("text", ["os:system(command='touch {}')", "subprocess:Popen(args='touch {}', shell=True)"])
def test_a_stranger_s_function_is_never_called(text: str, tmp_path: Path):
    canary = tmp_path / "canary"
    with pytest.raises(UsageRefused, match=r"is not a plug-in: package.module:Class must name a frozen dataclass"):
        parse(text.format(canary))
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "NPO.beta",
        "NPO().beta",
        "().__class__",
        "lambda: 1",
        "lambda x:x",
        "[x for x in (1, 2)]",
        "(x for x in (1, 2))",
        "{1: 2}",
        "{1, 2}",
        "__import__('os')",
        "__import__",
        "f'{1}'",
        "f'{NPO()}'",
        "NPO()[0]",
        "NPO[a:b]",
        "(x := 3)",
        "NPO(*(1, 2))",
        "NPO(**{'beta': 1})",
        "*NPO()",
        "NPO(0.1)",
        "NPO()()",
        "1 if 2 else 3",
        "1 < 2",
        "not 1",
        "~1",
        "+1",
        "1 - 2",
        "1 / 2",
        "2 ** 9",
        "NPO() @ NPO()",
        "b'1'",
        "1j",
        "...",
        "1e999",
        "await x",
        "yield",
        "import os",
        "x = 1",
        "NPO(); NPO()",
        "NPO() NPO()",
        "",
        " ",
        "\0",
        "\ud800",
        "_foreign_0",
        "_foreign_x",
        "nothing_of_this_name",
    ],
)
def test_what_is_not_a_name_a_literal_a_keyword_call_a_sum_or_a_product_is_refused(text: str):
    with pytest.raises(UsageRefused) as refused:
        parse(text)
    assert refused.value.line().startswith("expunge: E2-usage: ")
    refused.value.line().encode()


@pytest.mark.parametrize(
    "text",
    ["NPO() + 3", "3 + NPO()", "NPO() * NPO()", "NPO() * 'x'", "NPO() + Bounded()", "None + 1", "'a' * 3", "(1,) * 3"]
    + ["'a' + 'b'"],
)
def test_a_sum_or_product_of_things_that_do_not_go_together_is_refused(text: str):
    with pytest.raises(UsageRefused, match=r"cannot be added or multiplied"):
        parse(text)


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one():
    with pytest.raises(UsageRefused, match=r"^No plug-in is called 'NP0'. Nearest: NPO, SimNPO\.$"):
        parse("NP0")
    with pytest.raises(UsageRefused, match=r"Nearest: RetainKL"):
        parse("2.0 * RetianKL()")
    with pytest.raises(UsageRefused, match=r"^No plug-in is called 'xqzw'. `expunge list` shows them all\.$"):
        parse("xqzw")


def test_a_setting_that_is_unknown_or_given_twice_is_refused():
    with pytest.raises(UsageRefused, match=r"^Finetune has no setting 'lerning_rate'. Did you mean 'learning_rate'\?$"):
        parse("Finetune(lerning_rate=0.1)")
    with pytest.raises(UsageRefused, match=rf"^NPO has no setting '{'q' * 100}'. It has: beta\.$"):
        parse(f"NPO({'q' * 3000}=1)")
    with pytest.raises(UsageRefused, match=r"^NPO has no setting 'qqq'. It has: beta\.$"):
        parse("NPO(qqq=1)")
    with pytest.raises(UsageRefused, match=r"^The `beta` of NPO is given twice"):
        parse("NPO(beta=1, beta=2)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Finetune(steps=1.5)", "The `steps` of Finetune must be a whole number or an Epochs or a Memorised. Got 1.5."),
        (
            "Finetune(steps=True)",
            "The `steps` of Finetune must be a whole number or an Epochs or a Memorised. Got True.",
        ),
        ("Finetune(learning_rate='a')", "The `learning_rate` of Finetune must be a number. Got 'a'."),
        ("Finetune(clip='a')", "The `clip` of Finetune must be a number or None. Got 'a'."),
        ("Finetune(objective=3)", "The `objective` of Finetune must be an Objective. Got 3."),
        ("Finetune(adapter=Loss())", "The `adapter` of Finetune must be an Adapter or None. Got Loss()."),
        ("Finetune(stop=3)", "The `stop` of Finetune must be a Stop or None. Got 3."),
        ("LoRA(targets='mpl')", "The `targets` of LoRA must be one of mlp, attention, all. Got 'mpl'."),
        ("GradDiff(forget_weight='a')", "The `forget_weight` of GradDiff must be a number. Got 'a'."),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_before_anything_runs(text: str, said: str):
    with pytest.raises(UsageRefused) as refused:
        parse(text)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        "-" * 5000 + "1",
        " + ".join(["NPO()"] * 5000),
        " + ".join(["NPO()"] * 990),
        " + ".join(["NPO()"] * 400),
        "NPO(beta=" * 500 + "1" + ")" * 500,
        "[" * 250 + "]" * 250,
        "'" * 5001,
        "a:b" * 3000,
    ],
)
def test_deep_nesting_is_refused_in_one_line_and_never_crashes(text: str):
    with pytest.raises(UsageRefused) as refused:
        parse(text)
    assert len(str(refused.value)) < 1000


def test_a_quoted_text_is_left_as_it_is():
    assert parse(r"'it\'s os:path'") == "it's os:path"
    assert parse('"NPO.beta lambda:x"') == "NPO.beta lambda:x"
    assert parse(r"'\d'") == r"\d"


def test_a_slip_of_the_pen_is_found_without_importing_torch():
    code = (
        "import sys\n"
        "from expunge.errors import UsageRefused\n"
        "from expunge.notation.parse import check_names\n"
        "check_names('Finetune(objective=NPO(beta=0.1) + 2.0 * RetainKL(), stop=None), Loss, MinK(fraction=0.4)')\n"
        "try:\n"
        "    check_names('Finetune(objective=NP0())')\n"
        "except UsageRefused as refused:\n"
        "    print(refused)\n"
        "print('torch' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["No plug-in is called 'NP0'. Nearest: NPO, SimNPO.", "False"]
