"""A mistake in a name, a file or a column is refused before torch is imported, which takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cli.commands import CANARY, rows, write

TRY = """
import contextlib, io, json, sys
from expunge.cli.ending import run_guarded
from expunge.cli.main import app

for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run_guarded(lambda: app(arguments, standalone_mode=False), debug=False)
    print(json.dumps([code, said.getvalue(), "torch" in sys.modules]))
"""


def test_names_files_and_columns_are_refused_before_torch_is_there(model: Path, tmp_path: Path):
    forget, other = write(tmp_path / "f.jsonl", rows("forget")), tmp_path / "other.jsonl"
    write(other, [{"query": CANARY, "gold": CANARY}])
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("")
    (tmp_path / "wrong.toml").write_text('forgte = "f.jsonl"\n')
    (tmp_path / "kind.toml").write_text('seed = ["1"]\n')
    (tmp_path / "no.toml").write_text("= 3\n")
    base = ["forget", str(model), "--forget", str(forget), "--out", str(tmp_path / "out")]
    told = {
        ("--retain", "none.jsonl"): (3, "--retain none.jsonl: no such file"),
        ("--forget-ids", "none.txt"): (3, "--forget-ids none.txt: no such file"),
        ("--retain", str(other)): (3, "line 1: no 'question' (needed: question and answer, or text"),
        ("--columns", "question=query"): (3, "--columns names 'query', which no row has. Columns there: answer, id,"),
        ("--columns", "question"): (2, "--columns 'question': write OURS=THEIRS"),
        ("--columns", "asked=query"): (2, "--columns: 'asked' is not known. Allowed: question, answer,"),
        ("--columns", "id=a,id=b"): (2, "--columns: 'id' is given twice"),
        ("--method", "Fintune()"): (2, "No plug-in is called 'Fintune'. Nearest: Finetune"),
        ("--method", "Finetune(step=1)"): (2, "Finetune has no setting 'step'. Did you mean 'steps'?"),
        ("--audits", "Lossy"): (2, "No plug-in is called 'Lossy'. Nearest: Loss"),
        ("--audits", "Loss, NPO(beta=1)"): (2, "--audits: NPO is not an audit."),
        ("--require", "forget.Loss"): (2, "--require 'forget.Loss' could not be read"),
        ("--device", "tpu"): (2, "--device 'tpu' is not known"),
        ("--hold", "half"): (2, "--hold 'half' is not known. Allowed: whole, cut."),
        ("--dtype", "float8"): (2, "--dtype 'float8' is not known"),
        ("--log-to", "wand"): (2, "--log-to 'wand' is not known. Allowed: tensorboard, trackio."),
        ("--probe", f"forget={forget}"): (2, "--probe forget: name it by"),
        ("--reference", "./none"): (2, "./none: no such folder, and not a hub id"),
        ("--seeds", "4-0"): (2, "--seeds 4-0: give each range upwards"),
        ("--seeds", "1,1"): (2, "--seeds 1,1 names a seed twice"),
        ("--seeds", "a"): (2, "--seeds 'a' could not be read. Write 0-4, or 0,3,7."),
        ("--seeds", "0-2000"): (2, "at most 1000 seeds"),
        ("--seeds", "0-1", "--seed", "3"): (2, "Give --seed or --seeds, not both."),
        ("--out", str(full)): (2, f"{full} is not empty. Give a new folder with --out"),
        ("--config", "none.toml"): (3, "--config none.toml: No such file"),
        ("--config", str(tmp_path / "wrong.toml")): (2, "forget has no option 'forgte'. Did you mean 'forget'?"),
        ("--config", str(tmp_path / "kind.toml")): (2, "'seed' must be a text or a number."),
        ("--config", str(tmp_path / "no.toml")): (2, "not TOML (Invalid statement"),
    }
    asked = [[*base, *options] for options in told] + [["forget", "./none", "--forget", str(forget)]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TRY]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [*told.values(), (2, "./none: no such folder, and not a hub id")]
    for arguments, (code, said, loaded), (exit_code, words) in zip(asked, results, wanted, strict=True):
        assert (code, loaded) == (exit_code, False), (arguments[5:], said)
        assert words in said, (arguments[5:], said)
        assert said.count("\n") == 1, said
        assert CANARY not in said
    assert not (tmp_path / "out").exists()
