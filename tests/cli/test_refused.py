"""What the command refuses: one line, an exit code of its own, and nothing written."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForCausalLM

from expunge.errors import UsageRefused
from expunge.report import html
from expunge.report.pages import check_page
from expunge.run.checks import check_out
from expunge.runtime.atomic_files import folder_digest, lock, write_text
from tests.cli.commands import CANARY, Files, below, plain, refused, rows, write
from tests.report.reports import audited


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no records, so there is nothing to read"),
        (
            '{"question": "zanzibarlighthouse77", "answer": "a"}\n{"question": "zanzibarlighthouse77"',
            "line 2: not JSON",
        ),
        ('{"question": "zanzibarlighthouse77"}', "line 1: no 'answer'"),
        ('{"question": "zanzibarlighthouse77", "answer": 5}', "line 1: 'answer' is int"),
        ('{"question": "zanzibarlighthouse77", "answer": "a", "answer": "b"}', "line 1: the key 'answer' occurs twice"),
        ('{"text": "!"}', "line 1: has no labelled token"),
        ('{"text": "\\ud800 zanzibarlighthouse77"}', "line 1: a lone surrogate"),
    ],
)
def test_a_bad_file_of_examples_is_refused(content: str, said: str, expunge, model: Path, files: Files, tmp_path: Path):
    forget = tmp_path / "f.jsonl"
    forget.write_text(content)
    ended = expunge("forget", model, f"--forget={forget}", f"--retain={files.retain}", "--out", tmp_path / "out")
    assert said in refused(ended, 3, "data")
    assert below(tmp_path) == ["f.jsonl"]


def test_a_missing_file_is_refused_by_its_option(model: Path, files: Files, tmp_path: Path):
    for option in ("--forget", "--retain", "--holdout", "--stand-in"):
        given = {"--forget": files.forget, option: tmp_path / "none.jsonl"}
        said = plain("forget", model, *(f"{name}={path}" for name, path in given.items()), "--out", tmp_path / "out")
        assert said.returncode == 3
        assert said.stderr.startswith(f"expunge: E3-data: {option} {tmp_path / 'none.jsonl'}: no such file")
        assert said.stderr.count("\n") == 1
    assert below(tmp_path) == []


@pytest.mark.parametrize("other", ["retain", "holdout"])
def test_overlap_is_refused_by_ids(other: str, expunge, model: Path, files: Files, tmp_path: Path):  # D03, D06
    same = write(tmp_path / "o.jsonl", [{**row, "id": f"o{k}"} for k, row in enumerate(rows("forget", CANARY))][:2])
    sets = {"forget": files.forget, "retain": files.retain, other: same}
    said = expunge("forget", model, *(f"--{name}={path}" for name, path in sets.items()), "--out", tmp_path / "out")
    line = refused(said, 3, "data")
    assert f"2 records are in the forget set and in the {other} set (forget0 = o0, forget1 = o1)" in line
    assert below(tmp_path) == ["o.jsonl"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method=Finetune(objective=NP0())"], "No plug-in is called 'NP0'. Nearest: NPO, SimNPO."),
        (["--method=Fintune()"], "No plug-in is called 'Fintune'. Nearest: Finetune"),
        (["--audits=Lossy"], "No plug-in is called 'Lossy'. Nearest: Loss"),
        (["--probe=para"], "--probe 'para': write NAME=FILE"),
    ],
)
def test_a_wrong_name_is_refused_at_once(
    options: list[str], said: str, model: Path, files: Files, tmp_path: Path
):  # C01
    ended = plain("forget", model, f"--forget={files.forget}", *options, "--out", tmp_path / "out")
    assert ended.returncode == 2
    assert ended.stderr.startswith("expunge: E2-usage: ")
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr
    assert below(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method=Bounded()"], "is not a method. Give Finetune(...)"),
        (["--method="], "'' could not be read"),
        (
            ["--method=Finetune(lerning_rate=1)"],
            "Finetune has no setting 'lerning_rate'. Did you mean 'learning_rate'?",
        ),
        (["--method=Finetune(steps=0, learning_rate=-1)"], "learning_rate must be positive"),
        (["--method=Finetune(steps=0, learning_rate=-1)"], "steps must be at least 1"),
        (
            ["--method=Finetune(steps=1.5)"],
            "The `steps` of Finetune must be a whole number or an Epochs or a Memorised. Got 1.5.",
        ),
        (["--method=Finetune(adapter=LoRA(rank=0))"], "rank must be a whole number from 1 to 65536 (got 0)"),
        (["--method=os:system(command='touch canary')"], "'os:system' is not a plug-in"),
        (["--audits=NPO()"], "is not an audit"),
        (["--require=forget.Loss"], "--require 'forget.Loss' could not be read"),
        (["--probe=forget=README.md"], "--probe forget"),
        (["--forget-class=a", "--forget-ids=README.md"], "--forget-class or --forget-ids, not both"),
    ],
)
def test_a_wrong_setting_is_refused(options: list[str], said: str, expunge, model: Path, files: Files, tmp_path: Path):
    (tmp_path / "README.md").write_text("x")
    ended = expunge("forget", model, f"--forget={files.forget}", *options, "--out", tmp_path / "out", folder=tmp_path)
    assert said in refused(ended, 2, "usage")
    assert below(tmp_path) == ["README.md"]


def test_a_mistyped_option_or_command_ends_with_2(model: Path, files: Files, tmp_path: Path):
    for arguments in (
        ["forget", model, f"--forgte={files.forget}", "--out", tmp_path / "out"],
        ["forget", model, "--out", tmp_path / "out"],
        ["forgte", model],
        ["forget", model, f"--forget={files.forget}", "--seed=x", "--out", tmp_path / "out"],
    ):
        ended = plain(*arguments)
        assert ended.returncode == 2, arguments
        assert "Traceback" not in ended.stderr
        assert ended.stderr
    assert below(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "code", "slug"),
    [
        ("./none", 2, "usage"),
        ("../../etc/passwd", 2, "usage"),
        ("file:///etc/passwd", 2, "usage"),
        ("org/none-of-this-name", 4, "model"),
        (".", 4, "model"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    name: str, code: int, slug: str, expunge, files: Files, tmp_path: Path
):  # M14, C09
    said = expunge("forget", name, *files.options, "--out", tmp_path / "out" / "x", folder=files.root)
    refused(said, code, slug)
    assert not (tmp_path / "out" / "x").exists()


def test_a_model_with_a_fault_is_refused_and_left_alone(expunge, model: Path, files: Files, tmp_path: Path):
    import shutil

    def torn(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def coded(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "evil.Config"}}))

    for fault in (torn, pickled, coded):
        folder = Path(shutil.copytree(model, tmp_path / fault.__name__))
        fault(folder)
        digest = folder_digest(folder)
        said = expunge("forget", folder, *files.options, "--out", tmp_path / "out")
        refused(said, 4, "model")
        assert folder_digest(folder) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coded", "pickled", "torn"]


def test_a_folder_that_holds_something_is_never_written_to(expunge, model: Path, files: Files, tmp_path: Path):  # C04
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for verb in ("forget", "audit"):
        said = expunge(verb, model, f"--forget={files.forget}", "--out", tmp_path / "out")
        assert "is not empty. Give a new folder with --out" in refused(said, 2, "usage")
    refused(expunge("forget", model, f"--forget={files.forget}", "--out", tmp_path / "out" / "mine"), 2, "usage")
    assert below(tmp_path) == ["out", "out/mine"]
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_the_model_s_folder_is_never_written_to(expunge, model: Path, files: Files):  # C05
    digest = folder_digest(model)
    for out in (model, model / "out", model / "deep" / "out", model / ".." / "model" / "out"):
        refused(expunge("forget", model, f"--forget={files.forget}", "--out", out), 2, "usage")
    assert folder_digest(model) == digest
    assert all(path.is_file() for path in model.iterdir())


def test_a_second_run_on_one_folder_is_refused_at_once(expunge, model: Path, files: Files, tmp_path: Path):  # C06
    with lock(tmp_path / "out"):
        said = expunge("forget", model, f"--forget={files.forget}", "--out", tmp_path / "out")
        assert f"another run writes to it (process {os.getpid()} on " in refused(said, 7, "environment")
    assert below(tmp_path) == []


def test_images_for_a_language_model_are_refused(expunge, model: Path, files: Files, tmp_path: Path):
    said = expunge("forget", model, f"--forget={files.forget}", "--forget-class=cat", "--out", tmp_path / "out")
    refused(said, 3, "data")
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "a.png")
    said = expunge("forget", model, f"--forget={tmp_path / 'images'}", "--forget-class=cat", "--out", tmp_path / "out")
    refused(said, 3, "data")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_s_tokens_are_refused_by_the_two_sizes(expunge, model: Path, files: Files, tmp_path: Path):
    import shutil

    other = Path(shutil.copytree(model, tmp_path / "model"))  # M20
    module = AutoModelForCausalLM.from_pretrained(other)
    module.resize_token_embeddings(100)
    module.save_pretrained(other)
    said = expunge("forget", other, *files.options, "--out", tmp_path / "out")
    assert "but the model's embedding has 100 rows" in refused(said, 4, "model")


def test_a_set_that_the_objective_reads_is_asked_for_before_the_model_is_loaded(
    expunge, model: Path, files: Files, tmp_path: Path
):
    import shutil

    torn = Path(shutil.copytree(model, tmp_path / "model"))
    whole = (model / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[:-9])
    for method, said in {
        "Finetune(objective=2.0 * DPO())": "the stand-in set (for DPO), and none was given. Give --stand-in FILE",
    }.items():
        # The model cannot be loaded: had that been tried first, it would be what is said.
        ended = expunge("forget", torn, f"--forget={files.forget}", "--method", method, "--out", tmp_path / "out")
        assert said in refused(ended, 3, "data")
    assert not (tmp_path / "out").exists()


def test_the_command_alone_shows_its_help_and_no_empty_refusal():
    said = plain()
    assert (said.returncode, said.stderr) == (2, "")
    assert "Commands" in said.stdout


def test_a_refusal_is_the_one_line_that_is_told(model: Path, tmp_path: Path):
    empty = write(tmp_path / "f.jsonl", [])
    said = plain("forget", model, f"--forget={empty}", "--out", tmp_path / "out")
    told = "holds no records, so there is nothing to read. Give at least one."
    assert said.stderr == f"expunge: E3-data: {empty}: {told}\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("link", "is a link, which would be replaced"),
        ("astray", "is a link, which would be replaced"),
        ("o" * 230, "the name has 230 bytes"),
        ("o" * 300, "File name too long"),
        ("a\nb", "line breaks and control characters are no part of a name"),
        ("a\x1b[31mb", "line breaks and control characters are no part of a name"),
    ],
)
def test_a_name_that_no_result_can_have_is_refused_before_the_work(name: str, said: str, tmp_path: Path):  # S04
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "astray").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageRefused, match=said) as caught:
        check_out(tmp_path / name, "model")
    assert caught.value.line().isprintable()
    assert below(tmp_path) == ["astray", "empty", "link"]


def test_a_name_with_brackets_and_spaces_is_shown_as_it_is(expunge, model: Path, files: Files, tmp_path: Path):
    out = tmp_path / "[red] out [/dim]"
    said = expunge("audit", model, f"--forget={files.forget}", "--audits=Loss", "--out", out)
    assert said.code == 0, said.err
    assert f"Report: {out / 'report.html'}\n" in said.out


def test_a_page_is_written_over_a_page_and_over_nothing_else(tmp_path: Path):
    write_text(tmp_path / "page.html", html.render(audited()))
    check_page(tmp_path / "page.html")
    check_page(tmp_path / "new.html")
    (tmp_path / "model.safetensors").write_bytes(bytes(9))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    os.mkfifo(tmp_path / "pipe")
    for name in ("model.safetensors", "empty", "link", "pipe", ".", "none/page.html", "a\nb", "o" * 300):
        with pytest.raises(UsageRefused):
            check_page(tmp_path / name)
