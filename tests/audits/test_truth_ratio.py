"""The truth ratio by hand, its two means, and the figures that TOFU's own logs give."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from expunge.audits.truth_ratio import TruthRatio
from expunge.core.audit import Finding
from expunge.notation.parse import parse
from expunge.primitives.statistics import ks
from tests.audits import scripted
from tests.audits.scripted import Asked, lost

LOGS = Path(__file__).parents[3] / "shared/data/tofu_logs"


def asked(name: str, right: tuple[float, ...], *wrong: tuple[float, ...]) -> Asked:
    return lost(name, *right, options=wrong)


# Ragged: the right answer loses 1 and 2 nats (mean 1.5), the wrong ones 2 and 1, 1, 4 (means 2 and 2).
ONE = asked("one", (1.0, 2.0), (2.0,), (1.0, 1.0, 4.0))
# The right answer loses 3; the wrong ones 1 and 2: they are likelier than the right one.
TWO = asked("two", (3.0,), (1.0,), (2.0,))


GEOMETRIC = TruthRatio()


def findings(audit: TruthRatio = GEOMETRIC, **sets: tuple[Asked, ...]) -> dict[str, Finding]:
    return scripted.findings(audit, **sets)


def test_it_is_the_geometric_mean_of_the_wrong_over_the_right_each_normalised_by_its_rows():
    found = findings(forget=(ONE, TWO))["forget"]
    assert found.scores == pytest.approx((math.exp(1.5 - 2), math.exp(3 - 1.5)), rel=1e-8)
    # of what should be gone min(R, 1 / R): both e^-0.5 and e^-1.5
    assert found.value == pytest.approx((math.exp(-0.5) + math.exp(-1.5)) / 2, rel=1e-8)
    assert found.n == 2


def test_the_arithmetic_mean_is_that_of_the_paper():
    found = findings(TruthRatio(mean="arithmetic"), forget=(TWO,))["forget"]
    assert found.scores == pytest.approx([(math.exp(-1) + math.exp(-2)) / 2 / math.exp(-3)], rel=1e-8)
    assert "arithmetic" in found.definition
    assert "geometric" in findings(forget=(TWO,))["forget"].definition


def test_of_what_should_stay_it_is_what_the_wrong_answers_fall_short_of_the_right_one():
    found = findings(forget=(asked("f", (1.0,), (1.0,)),), retain=(ONE, TWO))
    # max(0, 1 - R): 1 - e^-0.5, and 0 where the wrong answers are likelier
    assert found["retain"].value == pytest.approx((1 - math.exp(-0.5)) / 2, rel=1e-8)
    # the holdout set is what the forget set is compared with, so it is read as that is
    assert findings(forget=(TWO,), holdout=(ONE,))["holdout"].value == pytest.approx(math.exp(-0.5), rel=1e-8)


def test_questions_without_options_are_not_asked():
    found = findings(forget=(ONE, lost("none", 1.0)), retain=(lost("also none", 2.0),))
    assert {name: f.n for name, f in found.items()} == {"forget": 1}


def test_a_collapsed_model_has_a_ratio_of_0_by_the_published_definition():
    # right answer at e^-60, wrong ones at e^-58: truly e^2, but the divisor is held at 1e-10
    found = findings(forget=(asked("x", (60.0,), (58.0,)),))["forget"]
    assert found.scores == pytest.approx([math.exp(-58) / (math.exp(-60) + 1e-10)], rel=1e-6)
    assert found.value < 1e-12


def test_it_is_read_back_and_refuses_another_mean():
    assert parse(repr(TruthRatio(mean="arithmetic"))) == TruthRatio(mean="arithmetic")
    with pytest.raises(Exception, match="The `mean` of TruthRatio must be one of geometric, arithmetic"):
        parse("TruthRatio(mean='harmonic')")


# TOFU's own logs


def logged(name: str) -> dict[str, dict]:
    """Losses of the 300 forget questions, by question."""
    path = LOGS / f"{name}.json.gz"
    if not path.exists():
        pytest.skip("TOFU's logs are not here")
    with gzip.open(path, "rt") as file:
        return json.load(file)["eval_log_forget.json"]


def ratios(audit: TruthRatio, log: dict[str, dict]) -> torch.Tensor:
    """R of each question from its summed losses and token counts."""

    def mean(losses: object, tokens: object) -> torch.Tensor:
        return torch.tensor(losses, dtype=torch.float64) / torch.tensor(tokens)

    made = [
        audit.ratio(
            mean(log["paraphrased_loss"][key], log["num_token_paraphrased"][key]),
            mean(log["perturb_loss"][key], log["num_token_perturb"][key]),
        )
        for key in log["paraphrased_loss"]
    ]
    return torch.stack(made)


@pytest.mark.parametrize(
    ("family", "mean", "full", "retained", "p"),
    [
        ("llama2-7b", "geometric", 0.5160, 0.6740, 1.834e-21),
        ("llama2-7b", "arithmetic", 0.5304, 0.6797, 6.032e-23),
        ("phi", "geometric", 0.4834, 0.6288, 2.194e-16),
        ("phi", "arithmetic", 0.5006, 0.6418, 2.431e-17),
    ],
)
def test_tofus_own_logs_give_the_recorded_figures(family: str, mean: str, full: float, retained: float, p: float):
    audit = TruthRatio(mean=mean)
    one, other = (ratios(audit, logged(f"{family}_{of}")) for of in ("full", "retain90"))
    assert round(float(audit.values(one, gone=True).mean()), 4) == full
    assert round(float(audit.values(other, gone=True).mean()), 4) == retained
    found = ks(one.tolist(), other.tolist())
    assert float(f"{found.p:.3e}") == p
    assert found.sign == -1  # the model that saw the authors has the lower ratios: it still knows


@pytest.mark.parametrize(
    ("reference", "size", "p"),
    [("retain90", 300, "2.19e-16"), ("retain95", 200, "6.87e-13"), ("retain99", 40, "7.37e-05")],
)
def test_references_of_other_splits_have_other_sizes(reference: str, size: int, p: str):
    one, other = (ratios(TruthRatio(), logged(f"phi_{of}")).tolist() for of in ("full", reference))
    assert (len(one), len(other)) == (300, size)
    assert f"{ks(one, other).p:.2e}" == p
