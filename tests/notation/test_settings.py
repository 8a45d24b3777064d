"""Settings read off the plug-ins' files: the same that Python has, told before torch is loaded."""

import inspect
import subprocess
import sys

import pytest

from expunge.errors import UsageRefused
from expunge.notation.parse import find, plugins
from expunge.notation.settings import check_settings, setting_names


@pytest.mark.parametrize("plugin", plugins(), ids=lambda plugin: plugin.name)
def test_a_plug_in_s_settings_are_those_that_python_has(plugin):
    assert set(setting_names(plugin)) == set(inspect.signature(find(plugin.name)).parameters)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Finetune(objective=WGA(bta=0.5) + RetainKL())", "WGA has no setting 'bta'. Did you mean 'beta'?"),
        ("Finetune(stepz=3)", "Finetune has no setting 'stepz'. Did you mean 'steps'?"),
        ("Finetune(adapter=bounded(map='sine', stop=Stop(levl=1)))", "bounded has no setting 'stop'."),
        ("Finetune(steps=)", "could not be read"),
        ("Finetune(**x)", "Finetune has no setting '**'."),
        ("NPO(" + "b" * 5000 + "=1)", "NPO has no setting 'bbb"),
    ],
)
def test_a_wrong_setting_is_told_from_the_files_alone(text: str, said: str):  # C01
    with pytest.raises(UsageRefused) as refused:
        check_settings(text)
    assert said in refused.value.line()
    assert len(refused.value.line()) < 400


def test_no_torch_is_loaded_for_it():  # C01
    code = (
        "import sys\n"
        "from expunge.cli.main import app\n"
        "try:\n"
        "    method = 'Finetune(objective=NPO(bta=1))'\n"
        "    app(['forget', 'm', '--forget', 'f', '--method', method], standalone_mode=False)\n"
        "except Exception as error:\n"
        "    print(error, 'torch' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "NPO has no setting 'bta'. Did you mean 'beta'? False\n"


def test_what_is_right_or_somebody_else_s_is_left_to_the_parser():
    check_settings("0.5 * Settle() + Finetune(objective=NPO(beta=0.1), adapter=Bounded(rank=2))")
    check_settings("Loss, MinK(fraction=0.4)")
    check_settings("mylab.losses:Gentle(anything=2.0)")
