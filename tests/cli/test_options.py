"""Options: the same name, help and kind wherever a command takes them, and groups that the parser sees through."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.cli.options import Sets, spread_options
from expunge.errors import DataRefused, UsageRefused

COMMANDS = typer.main.get_command(app).commands


def test_an_option_of_several_commands_is_one_option():
    seen: dict[str, tuple] = {}
    for verb in ("forget", "audit", "plan"):
        for option in COMMANDS[verb].params:
            told = (option.help, option.metavar, option.required, option.multiple)
            if option.name != "out":  # each writes to a folder of its own by default
                told += (option.default,)
            assert seen.setdefault(" ".join(option.opts), told) == told, option.name
    assert {"--forget", "--method", "--reference", "--processes"} < set(seen)


def test_each_command_takes_what_it_has_a_use_for():
    taken = {verb: {option.opts[0] for option in COMMANDS[verb].params} for verb in ("forget", "audit", "plan")}
    assert taken["audit"] < taken["forget"]  # an audit does no more than look
    assert {"--method", "--seed", "--stand-in", "--checkpoint-every", "--resume"} <= taken["forget"] - taken["audit"]
    assert not {"--reference", "--require", "--show-text"} & taken["plan"]


@dataclass(frozen=True)
class Pair:
    """Two options."""

    left: Annotated[int, typer.Option("--left")]
    right: Annotated[list[str] | None, typer.Option("--right")] = None


def test_a_group_reaches_the_command_whole_beside_its_other_arguments():
    own, got = typer.Typer(), []

    @own.command()
    @spread_options
    def command(name: Annotated[str, typer.Argument()], pair: Pair, loud: bool = False) -> None:
        """Collects."""
        got.append((name, pair, loud))

    said = CliRunner().invoke(own, ["x", "--right", "a", "--left", "3", "--right", "b", "--loud"])
    assert said.exit_code == 0, said.output
    assert got == [("x", Pair(3, ["a", "b"]), True)]
    assert CliRunner().invoke(own, ["x"]).exit_code == 2  # --left must be given


def test_probes_are_named_files_that_are_there(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}")
    assert Sets(file, probe=[f"one={file}", f"two={file}"]).probes() == {"one": file, "two": file}
    for given, said in (([str(file)], "write NAME=FILE"), ([f"one={file}"] * 2, "--probe one is given twice")):
        with pytest.raises(UsageRefused, match=said):
            Sets(file, probe=given).probes()
    with pytest.raises(DataRefused, match=r"--probe one .*none\.jsonl: no such file"):
        Sets(file, probe=[f"one={tmp_path / 'none.jsonl'}"]).probes()


@pytest.mark.parametrize("name", ["forget", "retain", "holdout"])
def test_a_file_that_is_not_there_is_refused_by_its_option(name: str, tmp_path: Path):
    (tmp_path / "a").write_text("")
    with pytest.raises(DataRefused, match=f"--{name} .*none: no such file or folder"):
        Sets(**{"forget": tmp_path / "a", name: tmp_path / "none"}).check()
