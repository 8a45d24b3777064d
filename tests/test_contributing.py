"""Every file that CONTRIBUTING.md shows runs, as a plug-in of another package would."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from expunge.core.question import HiddenStates, LogProbabilities, Text
from expunge.errors import ModelRefused
from expunge.models.open import open_model
from expunge.notation.parse import parse
from tests.audits.scripted import findings, flagged
from tests.families import llama, text_request

ROOT = Path(__file__).parent.parent
CLASSES = {"WGA": "wga", "FirstToken": "first_token", "Noise": "noise", "Forbids": "forbids"}


def files() -> dict[str, str]:
    """The complete files that the page shows, by the class that each defines."""
    shown = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```py\n")[1:]
    blocks = [block.partition("```\n")[0] for block in shown]
    return {name: block for name in CLASSES for block in blocks if f"\nclass {name}(" in block}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with those files on Python's path."""
    folder = tmp_path / "shown_package"
    folder.mkdir()
    for name, text in files().items():
        (folder / f"{CLASSES[name]}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name
    for module in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[module]


def test_the_page_shows_a_complete_file_of_each():
    assert list(files()) == list(CLASSES)
    assert all(text.startswith('"""') for text in files().values())


def test_the_objective_shown_is_the_one_that_is_there():
    assert files()["WGA"] == (ROOT / "expunge" / "objectives" / "wga.py").read_text(encoding="utf-8")


def test_the_audit_reads_the_first_row_alone(package: str):
    audit = parse(f"{package}.first_token:FirstToken()")
    records = (flagged("starts right", True, False), flagged("starts wrong", False, True, True))
    assert findings(audit, forget=records)["forget"].scores == (1, 0)


def test_the_attack_adds_noise_of_the_size_that_it_says_and_leaves_the_network_alone(package: str):
    network, request = llama(), text_request()
    before = network.fingerprint()
    assert parse(f"{package}.noise:Noise(scale=0.0)")(network, request).fingerprint() == before
    result = parse(f"{package}.noise:Noise(scale=0.5)")(network, request)
    assert network.fingerprint() == before
    pairs = zip(network.module.parameters(), result.module.parameters(), strict=True)
    sizes = [float(((now - was).std() / was.std()).detach()) for was, now in pairs if was.dim() >= 2]
    assert sizes == pytest.approx([0.5] * len(sizes), rel=0.2)


def test_the_guard_filters_texts_hands_on_what_it_passes_and_refuses_the_rest(package: str, tmp_path: Path):
    network, prompts = llama(), text_request().forget
    written = network.ask(Text(4), prompts)
    word = written[0]
    guarded = importlib.import_module(f"{package}.forbids").Forbids(network, word)
    assert guarded.ask(Text(4), prompts) == ["I cannot say." if word in text else text for text in written]
    one, other = guarded.ask(LogProbabilities(), prompts), network.ask(LogProbabilities(), prompts)
    assert torch.equal(one.log_probs, other.log_probs)
    with pytest.raises(ModelRefused, match="Forbids cannot be asked for HiddenStates"):
        guarded.ask(HiddenStates(0), prompts)
    guarded.save(tmp_path / "guarded")
    assert open_model(tmp_path / "guarded").ask(Text(4), prompts) == guarded.ask(Text(4), prompts)
