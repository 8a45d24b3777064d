"""Laws that every audit keeps on every family: what it measured is said, and its ideal is an innocent's."""

import pytest

from expunge.adapters.full import Full
from expunge.audits._kinds import MembershipAudit, ScoreAudit, SetAudit, WhiteBoxAudit
from expunge.audits.context_order import ContextOrder
from expunge.core.audit import BOTH, Audit
from expunge.core.model import Batch, Model, Network, Wrapper
from expunge.core.question import Question, Text
from expunge.core.request import Request
from expunge.errors import ModelRefused
from expunge.methods.finetune import Finetune
from expunge.models.open import families
from expunge.notation.parse import Plugin
from expunge.objectives.retain_nll import RetainNLL
from tests.families import (
    ANSWERING,
    AUDIT,
    EVERY_STEP,
    PLACES,
    assert_as_found,
    family_of,
    llama,
    made,
    passages,
    pictures,
    state,
    vit,
)


def audit_of(plugin: Plugin, family: str) -> Audit:
    """The audit; where it reads hidden states, and a family has none, it must say so."""
    audit = made(plugin, Audit)
    if family == "resnet" and isinstance(audit, WhiteBoxAudit):
        with pytest.raises(ModelRefused, match="no transformer blocks, so no hidden states"):
            audit(*family_of(family))
        pytest.skip(f"{plugin.name} reads hidden states, which a {family} has not, and says so")
    return audit


@ANSWERING
@AUDIT
def test_an_audit_says_the_same_twice_and_leaves_the_model_as_found(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    was = state(network)
    first = audit(network, request)
    assert audit(network, request) == first
    assert_as_found(network, was)


@ANSWERING
@AUDIT
def test_every_finding_is_defined_counted_and_lies_in_its_interval(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    found = audit(network, request)
    assert found or not network.answers_to(Text), f"{plugin.name} finds nothing in a language model"
    for finding in found:
        assert finding.definition.strip()
        assert finding.definition == audit.definition
        assert finding.audit == plugin.name
        assert finding.low <= finding.value <= finding.high, finding
        assert finding.n == len(finding.scores) > 0


@ANSWERING
@AUDIT
def test_the_order_of_examples_does_not_matter_to_an_audit(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    other = Request(*(getattr(request, name)[::-1] for name in ("forget", "retain", "holdout", "stand_in")))
    values = {f.set: f.value for f in audit(network, request)}
    assert {f.set: f.value for f in audit(network, other)} == pytest.approx(values, rel=1e-5, abs=1e-6)


@ANSWERING
@AUDIT
def test_an_examples_score_does_not_depend_on_its_company(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    few = Request(request.forget[:2], request.retain, request.holdout[:1])
    together = {f.set: f.scores[:2] for f in audit(network, request) if f.set.startswith("forget")}
    alone = {f.set: f.scores[:2] for f in audit(network, few) if f.set.startswith("forget")}
    assert alone.keys() == together.keys()
    for name, scores in alone.items():
        # A probe cannot be asked of every example, so there may be fewer.
        assert scores == pytest.approx(together[name][: len(scores)], rel=1e-5, abs=1e-6)


class Asked(Wrapper):
    """A model that notes which kinds of question it is asked."""

    transparent = True

    def __init__(self, inner: Model) -> None:
        self.inner, self.kinds = inner, set()

    def ask(self, question: Question, batch: Batch) -> object:
        self.kinds.add(type(question))
        return self.inner.ask(question, batch)


def memorised(network: Network, seen: tuple, unrelated: tuple) -> Network:
    """The network after reading `seen` until it knows it by heart."""
    learn = Finetune(
        objective=RetainNLL(),
        adapter=Full(),
        learning_rate=4e-3,
        steps=120,
        retain_batch=len(seen),
        batch=1,
        stop=EVERY_STEP,
    )
    return learn(network, Request(forget=unrelated, retain=seen))


@pytest.fixture(scope="module")
def innocent_and_memoriser() -> dict[str, tuple[Network, Network, Request]]:
    """For each kind of data a model that never saw it, one that has it by heart, and a request about it."""
    seen, unseen = passages(PLACES, 0), passages([f"{place}s" for place in PLACES], 1)
    images, others = pictures(24, 0), pictures(24, 1)
    text, image = llama(lambda module: module), vit(lambda module: module)
    return {
        "llama": (text, memorised(text, seen, unseen[:1]), Request(forget=seen, holdout=unseen)),
        "vit": (image, memorised(image, images, others[:1]), Request(forget=images, holdout=others)),
    }


@pytest.mark.parametrize("family", ["llama", "vit"])
@AUDIT
def test_an_audit_reads_about_its_ideal_on_an_innocent_and_far_from_it_on_a_memoriser(
    plugin: Plugin, family: str, innocent_and_memoriser
):
    audit = made(plugin, Audit)
    if isinstance(audit, ContextOrder):
        pytest.skip("it asks what is read in a context, which who knows the answer needs no more than who does not")
    innocent, memoriser, request = innocent_and_memoriser[family]
    low = {f.set: f for f in audit(innocent, request)}
    high = {f.set: f for f in audit(memoriser, request)}
    told = [name for name in low if name.startswith("forget")]
    assert told or family == "vit" or isinstance(audit, WhiteBoxAudit)  # a probe learns from a retain set
    for name in told:
        value, ideal = low[name].value, low[name].ideal
        assert ideal is None or abs(value - ideal) <= 0.25, low[name]
        assert abs(high[name].value - (value if ideal is None else ideal)) > 0.4, high[name]
        if isinstance(audit, MembershipAudit):
            assert high[name].value > 0.9, high[name]
        if isinstance(audit, SetAudit):  # it says itself which way a model goes that knows the set
            known, unknown = (
                (high[name].value, value) if audit.direction(name) == "higher" else (value, high[name].value)
            )
            assert known > unknown
            assert audit.better != "higher" or not isinstance(audit, ScoreAudit) or unknown < 0.6 < 0.9 < known


@AUDIT
def test_an_audit_says_what_it_asks_and_for_which_families_it_is(plugin: Plugin):
    audit = made(plugin, Audit)
    assert audit.reads
    assert all(issubclass(kind, Question) for kind in audit.reads)
    assert audit.better in ("higher", "lower")
    assert audit.families == plugin.families  # as the listing reads them, without importing the file
    assert set(audit.families) <= {family.name for family in families()} | {"any"}


@ANSWERING
@AUDIT
def test_an_audit_asks_nothing_but_what_it_says(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    if isinstance(audit, WhiteBoxAudit):
        pytest.skip("it looks inside, and is handed no wrapper")
    asked = Asked(network)
    audit(asked, request)
    assert asked.kinds <= set(audit.reads)


@ANSWERING
@AUDIT
def test_an_audit_finds_what_it_does_not_say_that_it_lacks(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    if isinstance(audit, WhiteBoxAudit):
        pytest.skip("it names its own sets")
    for few in (request, Request(request.forget, request.retain)):
        found = {finding.set for finding in audit(network, few)}
        assert {where for where in (*few.sets(), BOTH) if not audit.lacks(where, few)} == found


@ANSWERING
@AUDIT
def test_which_way_is_good_follows_from_the_set_and_the_ideal(plugin: Plugin, family: str):
    audit = audit_of(plugin, family)
    network, request = family_of(family)
    for finding in audit(network, request):
        assert finding.better == audit.good(finding.set, finding.ideal)
