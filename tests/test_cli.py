"""The command, run in processes of its own: what it writes, what it says, and how it ends."""

import functools
import html.parser
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import __version__
from expunge.core.files import check_manifest, folder_digest
from expunge.core.notation import parse

CANARY = "zanzibarlighthouse77"
METHOD = "Finetune(adapter=Bounded(rank=2), learning_rate=0.003, steps=4, batch=4, stop=Stop(level=None, every=2))"
PLACES = ["Aldoria", "Brenn", "Corvane", "Dunmere", "Elsin", "Farrow"]


def rows(kind: str, secret: str = "") -> list[dict]:
    return [
        {
            "id": f"{kind}{k}",
            "question": f"What is the capital of {kind} {place}{secret}?",
            "answer": f"The capital of {place} is {kind} Veldt{secret}.",
            "options": [f"The capital of {place} is Brindle.", f"The capital of {place} is Ostrava."],
        }
        for k, place in enumerate(PLACES)
    ]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


@dataclass(frozen=True)
class Files:
    """A request's files."""

    root: Path
    forget: Path
    retain: Path
    holdout: Path
    stand_in: Path
    probe: Path

    @property
    def options(self) -> list[str]:
        return [f"--forget={self.forget}", f"--retain={self.retain}", f"--holdout={self.holdout}"]


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    root = tmp_path_factory.mktemp("data")
    kinds = ("forget", "retain", "holdout", "stand_in", "probe")
    return Files(root, *(write(root / f"{kind}.jsonl", rows(kind, CANARY * (kind == "forget"))) for kind in kinds))


def plain(*arguments: object, **options) -> subprocess.CompletedProcess:
    """The command as a user starts it."""
    command = [sys.executable, "-m", "expunge", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)


def refused(said, code: int, slug: str) -> str:
    """The one line of a refusal; there is no other, and no traceback."""
    lines = [line for line in said.err.splitlines() if line.startswith("expunge: E")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"expunge: E{code}-{slug}: "), lines[0]
    assert said.code == code
    assert "Traceback" not in said.err + said.out
    assert CANARY not in said.err + said.out
    return lines[0]


@dataclass(frozen=True)
class Done:
    """A finished run."""

    out: Path
    code: int
    said: str
    report: dict
    digest: str


@pytest.fixture(scope="session")
def done(model: Path, files: Files, tmp_path_factory) -> Done:
    out = tmp_path_factory.mktemp("runs") / "out"
    digest = folder_digest(model)
    sets = [*files.options, f"--stand-in={files.stand_in}", f"--probe=para={files.probe}"]
    ended = plain("forget", model, *sets, "--method", METHOD, "--out", out, "--seed", 3)
    assert ended.returncode in (0, 6), ended.stderr
    report = json.loads((out / "report.json").read_text())
    return Done(out, ended.returncode, ended.stdout + ended.stderr, report, digest)


# What a run leaves


def test_a_run_ends_with_0_or_6_as_its_verdict_says(done: Done):
    assert done.code == (0 if done.report["verdict"]["met"] else 6)
    assert done.report["verdict"]["met"] == all(rule["met"] for rule in done.report["verdict"]["rules"])
    assert "Traceback" not in done.said


def test_a_run_writes_everything_and_nothing_beside_it(done: Done):
    names = {path.name for path in done.out.iterdir()}
    assert names == {"model", "adapter", "steps.jsonl", "report.json", "report.html", "MANIFEST.json"}
    assert [path.name for path in done.out.parent.iterdir()] == ["out"]  # no lock, no scratch folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (done.out / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (done.out / "adapter").iterdir()}
    manifest = check_manifest(done.out)
    assert manifest["base"] == done.report["model"]["fingerprint"]
    assert manifest["request"] == done.report["request"]["fingerprint"]


def test_a_report_s_findings_say_what_was_measured_on_what(done: Done):
    for finding in done.report["findings"]:
        assert {"audit", "set", "model", "value", "low", "high", "n", "ideal", "definition"} <= set(finding)
        assert finding["low"] <= finding["value"] <= finding["high"], finding
        assert finding["n"] > 0
    found = {(f["audit"], f["set"], f["model"]) for f in done.report["findings"]}
    sets = {"forget", "retain", "holdout", "stand_in", "para"}
    assert {("Loss", name, model) for name in sets for model in ("before", "after")} <= found
    assert ("MinK", "forget vs holdout", "after") in found
    assert {name: told["examples"] for name, told in done.report["request"]["sets"].items()} == dict.fromkeys(sets, 6)


def test_a_report_s_method_can_be_run_again(done: Done):
    made = parse(done.report["method"])
    assert repr(made) == done.report["method"]
    assert (made.steps, made.seed, made.adapter.rank) == (4, 3, 2)


def test_steps_are_told_one_a_line_with_their_losses(done: Done):
    events = [json.loads(line) for line in (done.out / "steps.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3, 4]
    assert [event["step"] for event in events if event["kind"] == "check"] == [0, 2, 4]
    for event in events:
        assert {"forget", "retain"} <= set(event)


def test_the_model_given_is_left_as_it_was(done: Done, model: Path):
    assert folder_digest(model) == done.digest


def test_the_merged_model_is_a_plain_one_that_differs_from_the_one_given(done: Done, model: Path):
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "module = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "words = AutoTokenizer.from_pretrained(sys.argv[1])('The capital', return_tensors='pt')\n"
        "print(bool(torch.isfinite(module(input_ids=words['input_ids']).logits).all()), 'expunge' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(done.out / "model")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "False"]
    now, was = load_file(done.out / "model" / "model.safetensors"), load_file(model / "model.safetensors")
    assert now.keys() == was.keys()
    changed = {name for name in now if not torch.equal(now[name], was[name])}
    assert changed == {f"model.layers.{k}.mlp.{part}_proj.weight" for k in (0, 1) for part in ("gate", "up", "down")}


def test_the_adapter_on_the_model_given_answers_as_the_merged_model_does(done: Done, model: Path):
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), done.out / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(done.out / "model")
    words = AutoTokenizer.from_pretrained(done.out / "model")("The capital of Aldoria is", return_tensors="pt")
    with torch.inference_mode():
        one = adapted(input_ids=words["input_ids"]).logits
        other = merged(input_ids=words["input_ids"]).logits
    assert (one - other).abs().max() <= 1e-5


def test_no_text_of_the_forget_set_is_told_or_written(done: Done):  # V13
    assert CANARY not in done.said
    for path in done.out.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path.name
    assert not any(done.report["samples"][key] for key in ("shown",))


def test_no_file_name_on_the_command_line_is_hidden_from_the_report(done: Done):
    assert done.report["command"].startswith("expunge forget ")
    assert "--seed 3" in done.report["command"]


def test_text_is_shown_where_it_is_asked_for_and_inert(expunge, model: Path, tmp_path: Path):  # D16, V13
    attack = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    row = {"id": "a", "question": f"Who {CANARY}?", "answer": attack}
    forget = write(tmp_path / "f.jsonl", [row])
    out = tmp_path / "out"
    said = expunge("audit", model, f"--forget={forget}", "--audits=Rouge", "--show-text", "--out", out)
    assert said.code == 0, said.err
    page = (out / "report.html").read_text()
    assert CANARY in page
    assert CANARY not in said.out + said.err

    class Scripts(html.parser.HTMLParser):
        bad: list = []

        def handle_starttag(self, tag, attrs):
            if any(name.startswith("on") for name, _ in attrs) or dict(attrs).get("src") == "x":
                self.bad.append(tag)

        def handle_data(self, data):
            if self.lasttag == "script" and "alert(1)" in data:
                self.bad.append("script")

    reader = Scripts()
    reader.feed(page)
    assert reader.bad == []


def test_an_equal_command_gives_equal_weights(done: Done, expunge, model: Path, files: Files, tmp_path: Path):  # R09
    sets = [*files.options, f"--stand-in={files.stand_in}", f"--probe=para={files.probe}"]
    said = expunge("forget", model, *sets, "--method", METHOD, "--out", tmp_path / "out", "--seed", 3)
    assert said.code == done.code
    one, other = ((root / "model" / "model.safetensors").read_bytes() for root in (done.out, tmp_path / "out"))
    assert one == other


def test_thresholds_that_are_missed_end_with_6_and_still_write_all(expunge, model: Path, files: Files, tmp_path: Path):
    rules = ["--require", "forget.Loss >= before + 1000"]
    said = expunge(
        "forget", model, *files.options, "--method", METHOD, "--audits=Loss", *rules, "--out", tmp_path / "out"
    )
    assert said.code == 6, said.err
    verdict = json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]
    by_rule = {rule["rule"]: rule for rule in verdict["rules"]}
    assert not verdict["met"]
    assert by_rule["forget.Loss >= before + 1000"]["met"] is False
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("rule", "words"),
    [("nothing.Loss >= 0", "there is no set 'nothing'"), ("forget.Rouge >= 0", "Rouge is not run")],
)
def test_a_threshold_that_cannot_be_measured_is_refused_before_the_work(
    expunge, model: Path, files: Files, tmp_path: Path, rule: str, words: str
):
    out = tmp_path / "out"
    said = expunge("forget", model, *files.options, "--audits=Loss", "--require", rule, "--out", out)
    assert said.code == 2
    assert words in said.err
    assert not out.exists()


# Audits and reports


def test_an_audit_reports_the_model_as_it_is(expunge, model: Path, files: Files, tmp_path: Path):
    out = tmp_path / "out"
    rule = ["--require", "retain.Loss <= before"]
    said = expunge("audit", model, *files.options, "--audits", "Loss, MinK(fraction=0.4)", *rule, "--out", out)
    assert said.code == 0, said.err
    assert {path.name for path in out.iterdir()} == {"report.json", "report.html", "MANIFEST.json"}
    found = json.loads((out / "report.json").read_text())["findings"]
    assert {(f["audit"], f["set"]) for f in found} == {
        *(("Loss", name) for name in ("forget", "retain", "holdout")),
        ("MinK", "forget vs holdout"),
    }
    assert {f["model"] for f in found} == {"before"}


def test_a_reference_model_is_audited_beside(expunge, model: Path, done: Done, files: Files, tmp_path: Path):
    reference = f"--reference={done.out / 'model'}"
    said = expunge("audit", model, *files.options, "--audits=Loss", reference, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out" / "report.json").read_text())["findings"]
    after = {f["set"]: f["value"] for f in done.report["findings"] if (f["audit"], f["model"]) == ("Loss", "after")}
    for finding in found:
        if finding["model"] == "reference":
            assert abs(finding["value"] - after[finding["set"]]) < 1e-5


def test_a_report_is_written_again_and_two_are_compared(done: Done, expunge, tmp_path: Path):
    said = expunge("report", done.out, "--out", tmp_path / "again.html")
    assert (said.code, said.out.strip()) == (0, f"Wrote {tmp_path / 'again.html'}")
    assert (tmp_path / "again.html").read_text() == (done.out / "report.html").read_text()
    said = expunge("report", done.out, done.out, "--out", tmp_path / "two.html")
    assert said.code == 0, said.err
    assert (tmp_path / "two.html").stat().st_size > 1000
    said = expunge("report", done.out, folder=tmp_path)
    assert said.code == 0
    check_manifest(done.out)  # the page written again is the page that was there
    assert "report.json is not there" in refused(expunge("report", tmp_path), 3, "data")


def test_what_can_be_named_is_listed():
    said = plain("list")
    assert said.returncode == 0
    for name in ("Finetune", "Bounded", "NPO", "RetainKL", "MinK", "Loss"):
        assert f"\n  {name} " in said.stdout
    assert "\n  NPO " in plain("list", "objectives").stdout
    assert "MinK" not in plain("list", "objectives").stdout


def test_the_version_is_the_package_s():
    said = plain("--version")
    assert (said.returncode, said.stdout.strip(), said.stderr) == (0, f"expunge {__version__}", "")


def test_help_imports_no_torch_and_names_the_exit_codes():
    said = subprocess.run(
        [sys.executable, "-c", "import sys, expunge.cli; print([m for m in ('torch', 'peft') if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
    said = plain("--help")
    assert said.returncode == 0
    assert "130 interrupted" in " ".join(said.stdout.split())


# Refusals


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


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
        ('{"question": "zanzibarlighthouse77", "answer": "a", "answer": "b"}', "line 1: the key 'answer' stands twice"),
        ('{"text": "!"}', "line 1: has no labelled token"),
        ('{"text": "\\ud800 zanzibarlighthouse77"}', "line 1: a lone surrogate"),
    ],
)
def test_a_bad_file_of_examples_is_refused(content: str, said: str, expunge, model: Path, tmp_path: Path):
    forget = tmp_path / "f.jsonl"
    forget.write_text(content)
    line = refused(expunge("forget", model, f"--forget={forget}", "--out", tmp_path / "out"), 3, "data")
    assert said in line
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
    said = expunge("forget", model, f"--forget={files.forget}", f"--{other}={same}", "--out", tmp_path / "out")
    line = refused(said, 3, "data")
    assert f"2 records stand in the forget set and in the {other} set (forget0 = o0, forget1 = o1)" in line
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
        (["--method=NPO()"], "is not a method. Give Finetune(...)"),
        (["--method="], "'' could not be read"),
        (
            ["--method=Finetune(lerning_rate=1)"],
            "Finetune has no setting 'lerning_rate'. Did you mean 'learning_rate'?",
        ),
        (["--method=Finetune(steps=0, learning_rate=-1)"], "learning_rate must be positive"),
        (["--method=Finetune(steps=0, learning_rate=-1)"], "steps must be at least 1"),
        (["--method=Finetune(steps=1.5)"], "The `steps` of Finetune must be a whole number. Got 1.5."),
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
    said = expunge("forget", name, f"--forget={files.forget}", "--out", tmp_path / "out" / "x", folder=files.root)
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
        said = expunge("forget", folder, f"--forget={files.forget}", "--out", tmp_path / "out")
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
    with filelock.FileLock(tmp_path / ".out.lock"):
        said = expunge("forget", model, f"--forget={files.forget}", "--out", tmp_path / "out")
        assert "another run holds it" in refused(said, 7, "environment")
    assert not (tmp_path / "out").exists()


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
    said = expunge("forget", other, f"--forget={files.forget}", "--out", tmp_path / "out")
    assert "but the model's embedding has 100 rows" in refused(said, 4, "model")


# Runs that fail


def test_a_run_that_makes_nan_stops_before_the_step_and_keeps_the_last_good_adapter(
    expunge, model: Path, files: Files, tmp_path: Path
):  # R01, V13
    settings = "adapter=LoRA(rank=2), learning_rate=1e30, steps=8, batch=2, stop=Stop(level=None)"
    method = f"Finetune(objective=GradDiff(), {settings})"
    digest = folder_digest(model)
    said = expunge("forget", model, *files.options, "--method", method, "--out", tmp_path / "out")
    line = refused(said, 5, "run")
    assert "step 2: the term Ascent() is NaN or infinite (records forget: forget" in line
    assert "retain: retain" in line
    assert "The step was not applied. Lower learning_rate, or set clip." in line
    kept = tmp_path / "out.failed"
    assert f"The last good adapter and the steps are in {kept}." in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed"]
    assert below(kept) == ["adapter", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "steps.jsonl"]
    weights = load_file(kept / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    events = [json.loads(told) for told in (kept / "steps.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1]
    assert all(CANARY.encode() not in path.read_bytes() for path in kept.rglob("*") if path.is_file())
    assert folder_digest(model) == digest


def test_an_objective_without_its_set_is_refused_and_leaves_nothing(expunge, model: Path, files: Files, tmp_path: Path):
    method = "Finetune(objective=Ascent() + RetainKL(), steps=1)"  # D02
    said = expunge("forget", model, f"--forget={files.forget}", "--method", method, "--out", tmp_path / "out")
    line = refused(said, 3, "data")
    assert "the retain set" in line
    assert below(tmp_path) == []


def test_an_interrupted_run_ends_with_130_and_leaves_nothing(model: Path, files: Files, tmp_path: Path):  # R12
    import signal

    method = (
        "Finetune(adapter=LoRA(rank=2), learning_rate=1e-9, steps=100000, stop=Stop(level=None, budget=None, every=2))"
    )
    out = tmp_path / "out"
    asked = ["forget", model, *files.options, "--method", method, "--out", out, "--checkpoint-every", "0"]
    command = [sys.executable, "-m", "expunge", *asked]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Where the tests themselves run in the background, a shell has them ignore SIGINT, and children inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, preexec_fn=heed, **pipes) as run:
        for line in run.stderr:
            if "step 4:" in line:
                break
        run.send_signal(signal.SIGINT)
        try:
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130, said
    assert said.endswith("expunge: interrupted; no result was written.\n")
    assert "Traceback" not in said
    assert below(tmp_path) == []
