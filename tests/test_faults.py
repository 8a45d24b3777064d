"""docs/faults.md: every case of the fault matrix with a test that is there; and cases that no other file holds."""

import ast
import itertools
import pickle
import re
import resource
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from expunge.audits.loss import Loss
from expunge.cli import ending
from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import EnvironmentRefused, RunFailed
from expunge.events import Step
from expunge.methods.finetune import Finetune
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from expunge.report.limits import limits
from expunge.run.tokenizer_facts import tokenizer_facts
from expunge.run.unlearn import unlearn
from tests.families import llama, text_request, vit
from tests.methods.runs import FREE, equal, numbers, run
from tests.train.cut_runs import SETTINGS, Watcher, cut
from tests.train.cut_runs import run as run_with

ROOT = Path(__file__).parent.parent
SIZES = {"C": 9, "M": 25, "D": 21, "R": 12, "S": 14, "V": 13}


def cases() -> list[tuple[str, str, str]]:
    """Number, what happens, and what holds it, of each case of the page."""
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| [CMDRSV]\d\d ", line)
    ]
    return [(row[0], row[2], row[3]) for row in cells]


def test_the_page_has_each_of_the_94_cases_once():
    wanted = {f"{kind}{number:02}" for kind, count in SIZES.items() for number in range(1, count + 1)}
    assert len(wanted) == 94
    assert Counter(number for number, _, _ in cases()) == Counter(wanted)
    assert all(what for _, what, _ in cases())


def test_each_case_names_a_test_that_is_there_or_why_there_is_none():
    held = 0
    for number, _, holds in cases():
        if holds.startswith("none: "):
            continue
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", holds)
        assert named, number
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), (
                number
            )
        held += 1
    said = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert f"{held} of the 94 are held by a test" in said


# Cases that no other file holds


@dataclass(frozen=True)
class Kink(Objective):
    """A finite value, and a gradient that is none: the slope of a root at 0, times 0."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    def __call__(self, now: View, before: View) -> Scalar:
        log_prob = now.forget.log_prob()
        return (log_prob - log_prob.detach()).abs().sqrt().sum()


def test_a_gradient_that_is_nan_is_not_applied_though_the_loss_is_finite():  # R02
    with pytest.raises(RunFailed, match=r"step 1: a gradient is NaN or infinite \(records forget: f-") as failed:
        run(objective=Kink(), steps=2)
    last = failed.value.last_good
    assert all(bool(p.isfinite().all()) for p in last.inner.module.parameters())


def test_looking_at_the_losses_changes_no_step():  # R05
    often, _ = run(objective=Ascent(), steps=4, stop=replace(FREE, every=1))
    never, _ = run(objective=Ascent(), steps=4, stop=FREE)
    assert equal(numbers(often), numbers(never))


def test_a_checkpoint_with_a_pickle_added_to_it_is_passed_over_unopened(tmp_path: Path):  # M11
    saved = cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path / "saved", last=5)
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (canary,))

    (saved.steps()[0] / ".metadata").write_bytes(pickle.dumps(Evil()))
    told = Watcher()
    run_with(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", told, replace(saved, resume=True))
    assert any("Passed over: " in str(event) and ".metadata" in str(event) for event in told)
    assert not canary.exists()


def test_a_forget_set_that_is_most_of_the_data_and_what_no_audit_can_know_are_said():  # D20, D21
    request = replace(text_request(), retain=text_request().retain[:2])
    said = limits(request, (), (), referenced=False, saved="")
    assert any("more than 30 % of the data" in line for line in said)
    assert "Whether the records were ever in the model's training data was not established." in said


def test_a_report_says_by_which_tokenizer_and_rule_a_text_begins_and_ends():  # M21, M22
    network = llama()
    facts = tokenizer_facts(network)
    words = network.tokenizer
    assert facts == tokenizer_facts(network)
    assert (facts.bos, facts.eos) == (words.bos_token_id, words.eos_token_id)
    assert facts.ends == words.eos_token_id
    assert words.decode(facts.sample).startswith("Question")
    assert len(facts.sample) <= 12
    other = replace(network, tokenizer=type(words)(tokenizer_object=shuffled(words), eos_token=words.eos_token))
    assert len(other.tokenizer) == len(words)  # as many tokens, and other ones
    assert tokenizer_facts(other).digest != facts.digest
    assert tokenizer_facts(vit()) is None


def test_durations_are_sound_though_the_clock_goes_back(monkeypatch):  # S12
    back = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(back)))
    method = Finetune(objective=Ascent() + RetainNLL(), steps=2, stop=FREE)
    made = unlearn(llama(), text_request(), method, [Loss()])
    assert time.time() > time.time()
    seconds = [*made.cost.seconds.values(), *(step.seconds for step in made.steps if isinstance(step, Step))]
    assert len(seconds) > 4
    assert all(0 <= each < 3600 for each in seconds)
    assert made.created.endswith("Z")


SERVES = {"asyncio", "http", "multiprocessing", "queue", "socket", "socketserver", "sqlite3", "sched", "xmlrpc"}


def test_there_is_no_ledger_no_queue_and_no_server_that_could_break():  # S13, S14, V12
    found = set()
    for path in (ROOT / "expunge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {(path.name, name.partition(".")[0]) for name in named} & {(path.name, each) for each in SERVES}
    assert found == {("answer_store.py", "sqlite3")}, "what keeps records or answers others needs its faults tried"
    assert not (ROOT / "expunge" / "ledger").exists()


def shuffled(words):
    """The same tokens under other numbers."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(words.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    return Tokenizer.from_str(json.dumps(state))


def test_a_limit_on_memory_in_which_torch_cannot_be_loaded_is_refused(monkeypatch):
    ending.check_room_for_torch()
    for limit, refused in ((10**9, True), (1_150_000_000, False), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        if refused:
            with pytest.raises(
                EnvironmentRefused, match=r"\(ulimit -v\) is 1,000 MB, and torch and transformers alone"
            ):
                ending.check_room_for_torch()
        else:
            ending.check_room_for_torch()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 7),
        (OSError(12, "Cannot allocate memory"), 7),
        (RuntimeError("can't start new thread"), 7),
        (MemoryError(), 7),
        (PermissionError(13, "Permission denied", "/somewhere"), 7),
        (OSError(28, "No space left on device"), 7),
        (ImportError("No module named x"), 1),
        (RuntimeError("shapes"), 1),
    ],
)
def test_what_a_machine_lacks_ends_with_7(error: Exception, code: int, capsys, monkeypatch):  # S04
    monkeypatch.setattr(ending, "ignore_signals", lambda: None)  # those that end a test that hangs

    def fail() -> None:
        raise error

    assert ending.run_guarded(fail, debug=False) == code
    assert capsys.readouterr().err.count("\n") == 1
