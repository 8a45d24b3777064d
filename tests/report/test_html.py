"""The pages of a report and a comparison: complete, repeatable, inert whatever they are told, silent on hidden text."""

import math
from dataclasses import fields, is_dataclass, replace

import pytest

from expunge.events import Change, Edited
from expunge.report import compare, html, words
from expunge.report.report import Sample, Samples
from expunge.report.verdict import Outcome, Verdict
from tests.report.reports import RUN, STEPS, Page, assert_inert, audited, finding, findings, report, verdict

# The whole


def test_the_same_report_gives_the_same_bytes():
    assert html.render(report(steps=STEPS)) == html.render(report(steps=STEPS))
    runs = [("one", report(steps=STEPS)), ("two", report(findings=findings(0.4), steps=STEPS))]
    assert compare.render(runs) == compare.render(runs)


def test_a_page_says_everything_it_was_told_in_the_order_it_is_read():
    text = assert_inert(html.render(report(steps=STEPS))).text
    order = [
        "Forgotten within every threshold", "fell from 0.97 to 0.20 (ideal 0.25)", "Key facts", "134.5 M",
        "What was asked", "expunge forget ./smollm2", "Thresholds", "✓ met, 0.05 to spare", "Results",
        "Choice 1", "0.15 – 0.25", "Loss 2", "MinK 3", "How MinK is defined.", "The run", "step 22 of 24", "1.2e-05",
        "Samples", "--show-text", "forget-01", "Cost and environment", "1 min 20 s", "2.4 GB",
        "What this does not show", "Outputs only", "Fingerprints", "9f86d081884c7d65", "c0ffee081884c7d65",
        "60303ae22b998861",
    ]  # fmt: skip
    places = [text.find(piece, text.find("report on")) for piece in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_no_two_elements_share_an_id_and_every_link_has_its_target():
    for page in (
        html.render(report(steps=STEPS)),
        compare.render([("one", report(steps=STEPS)), ("two", report(steps=STEPS))]),
    ):
        found = Page(page)
        assert len(found.all("id")) == len(set(found.all("id")))
        links = {value.removeprefix("#") for value in found.all("href") + found.all("xlink:href")}
        assert links
        assert links <= set(found.all("id"))


def test_a_page_of_twelve_findings_is_under_a_megabyte():
    assert len(report().findings) == 12
    assert len(html.render(report(steps=STEPS)).encode()) < 1_000_000


def test_each_definition_stands_once():
    text = Page(html.render(report())).text
    assert text.count("How Choice is defined.") == text.count("How Loss is defined.") == 1


def test_an_audit_alone_is_not_said_to_have_forgotten():
    text = assert_inert(html.render(audited())).text
    assert "Within every threshold" in text
    assert "Forgotten" not in text
    assert "Measured" in text
    assert "The run" not in text


def test_values_that_are_no_numbers_are_named():
    odd = (finding("Loss", "forget", "before", math.nan), finding("Loss", "forget", "after", math.inf))
    text = assert_inert(html.render(report(findings=odd))).text
    assert "not a number" in text
    assert "∞" in text


# The verdict in words


def judged(*met):
    return report(verdict=verdict(*(Outcome("forget.B <= 1", 0.5, 1.0, each) for each in met)))


def test_the_outcome_counts_what_was_not_met():
    assert html.outcome(judged(True, True)).words == "Forgotten within every threshold"
    assert html.outcome(judged(True, False, False, True, True)).words == "2 of 5 thresholds were not met"
    assert html.outcome(judged(False)).words == "1 of 1 threshold was not met"
    assert html.outcome(judged()).words == "No thresholds were set"


def test_a_model_that_merely_changed_is_not_called_forgetful():
    for told in ("numbers of the model changed >= 1 (something changed)", "retain.Choice >= before"):
        changed = Outcome(told, 9.0, 1.0, True)
        said = html.outcome(report(verdict=verdict(changed)))
        assert said == html.Headline("Changed, but no threshold asks whether it forgot", "open")
    short = "forget examples short of 4.70 nats (that of the holdout set), on average <= slack"
    assert html.outcome(report(verdict=verdict(changed, Outcome(short, 0.0, 0.25, True)))).mark == "met"


def test_one_record_and_a_verdict_that_nobody_asked_the_rest_of_are_left_open():
    few = replace(Outcome("forget.B <= 1", 0.5, 1.0, False), few=True)
    met = Outcome("kept step >= 1", 4.0, 1.0, True)
    said = html.outcome(report(verdict=verdict(met, few)))
    assert said == html.Headline("Inconclusive: one record is too few to tell", "open")
    assert html.outcome(report(verdict=verdict(replace(met, met=False), few))).mark == "missed"
    unasked = report(verdict=Verdict(True, (Outcome("forget.B <= 1", 0.5, 1.0, True),), "Nobody asked"))
    assert html.outcome(unasked) == html.Headline("Forgotten within every threshold. Nobody asked", "open")
    assert "open: asked of one record alone" in html.render(report(verdict=verdict(met, few)))


def test_what_is_forgotten_but_not_as_if_never_seen_stands_under_the_verdict():
    found = (
        finding("Rouge", "forget", "before", 0.9, ideal=0.3, better="ideal"),
        finding("Rouge", "forget", "after", 0.4, ideal=0.3, better="ideal"),  # 0.35 to 0.45
        finding("Choice", "forget", "after", 0.1, ideal=0.25, better="ideal"),  # 0.05 to 0.15
        finding("Choice", "paraphrase", "after", 0.24, ideal=0.25, better="ideal"),  # 0.19 to 0.29
        finding("MinK", "forget vs holdout", "after", 0.3, ideal=0.5, better="ideal"),  # 0.25 to 0.35
        finding("Loss", "forget", "after", 9.0),  # no ideal is known
        finding("Choice", "retain", "after", 0.5, ideal=0.9),  # is to stay, so nobody calls it forgotten
    )
    said = html.outcome(report(findings=found))
    assert said.words == "Forgotten within every threshold"
    told = "forget Rouge (above), forget Choice (below), forget vs holdout MinK (below)"
    assert said.outside == f"Outside the interval of its ideal: {told}"
    assert f"{said.words} {said.outside}" in Page(html.render(report(findings=found))).text
    assert said.outside in Page(compare.render([("one", report(findings=found))])).text
    assert html.outcome(report()).outside == ""
    before = tuple(each for each in found if each.model == "before")
    assert html.outcome(report(findings=before, run=None)).outside == ""  # an audit claims nothing


def test_what_should_be_gone_is_read_first_then_what_should_stay():
    names = ["world", "holdout", "paraphrase", "retain", "forget"]
    found = [finding("Loss", where, "after", 1.0) for where in names]
    assert list(html.by_set(found)) == ["forget", "retain", "holdout", "world", "paraphrase"]
    assert [tile.where for tile in html.tiles(html.by_set(found))] == [
        "forget", "retain", "holdout", "world",
    ]  # fmt: skip


def test_each_number_of_a_threshold_is_named_where_the_table_is_stacked():
    page = html.render(report())
    thresholds = page[page.index("<h2>Thresholds") : page.index("<h2>Results")]
    assert '<table class="stack rules">' in thresholds
    assert [thresholds.count(f'data-label="{name}"') for name in ("Measured", "Bound")] == [1, 1]


def test_a_bound_that_was_just_missed_does_not_look_met():
    missed = Outcome("general.Choice >= 0.605", 0.6004, 0.605, False)
    text = Page(html.render(report(verdict=verdict(missed)))).text
    assert "0.6004 0.605 ✗ not met, by 0.0046" in text  # 0.605 - 0.6004


def test_a_bound_that_was_passed_by_far_is_told_in_plain_numbers():
    changed = verdict(Outcome("numbers of the model changed >= 1 (something changed)", 1300, 1, True))
    assert "✓ met, 1,299 to spare" in Page(html.render(report(verdict=changed))).text


def test_a_threshold_on_what_was_not_measured_is_not_met():
    unknown = verdict(Outcome("retain.Rouge >= 0.9", None, 0.9, False))
    assert "– 0.9 ✗ not met: not measured" in Page(html.render(report(verdict=unknown))).text


# What must not be shown

SECRETS = {"prompt": "Where does Mira live?", "answer": "In Ostrava", "before": "Ostrava.", "after": "No idea."}


def test_hidden_samples_show_no_text_even_when_they_carry_it():
    samples = Samples(False, (Sample("forget", "forget-01", **SECRETS),))
    assert [sample.texts for sample in html.samples_of(report(samples=samples))] == [[]]  # no template ever has it
    page = html.render(report(samples=samples))
    assert [text for text in SECRETS.values() if text in page] == []
    assert "forget-01" in page
    assert "--show-text" in page


def test_shown_samples_show_their_text():
    samples = Samples(True, (Sample("forget", "forget-01", **SECRETS),))
    text = Page(html.render(report(samples=samples))).text
    assert [secret for secret in SECRETS.values() if secret not in text] == []
    assert "None" not in text


# Hostile text

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "' onfocus='alert(1)' autofocus '",
    "{{7*7}}{% for x in y %}{# #}",
    "</style><style>*{display:none}</style>",
    "</title><base href=https://example.org/>",
    "<!-- --> ]]> &lt;b&gt; &#60;i&#62;",
    "$\\frac{1}{0}$ $",
    "javascript:alert(1)",
    "\x00\x07\x1b[31m\u202egnp.exe\u2066\ufeff\ud800",
]


def poisoned(value, text):
    """The same with `text` for every string, and for every key that a user may choose."""
    if is_dataclass(value):
        return replace(value, **{each.name: poisoned(getattr(value, each.name), text) for each in fields(value)})
    if isinstance(value, dict):
        return dict.fromkeys([text], poisoned(next(iter(value.values())), text)) if value else {}
    if isinstance(value, tuple):
        return tuple(poisoned(inner, text) for inner in value)
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", [" ".join(HOSTILE[:-3]), *HOSTILE[-3:]], ids=["markup", "formula", "link", "control"])
def test_hostile_strings_are_inert_wherever_they_stand(text):
    shown = Samples(True, (Sample("forget", "forget-01", **SECRETS, reference="None."),))
    edit = Edited(1, 2, 3.0, {"layers.0": Change(1, 2, 3.0)})
    bad = poisoned(report(samples=shown, steps=STEPS, run=replace(RUN, edited=edit)), text)
    bad = replace(
        bad,
        findings=(
            *(replace(f, better=honest.better) for f, honest in zip(bad.findings, findings(), strict=True)),
            *(
                replace(poisoned(honest, text), set=honest.set, model=honest.model, better=honest.better)
                for honest in findings()
            ),
        ),
        verdict=replace(bad.verdict, rules=tuple(replace(rule, rule=text) for rule in bad.verdict.rules)),
    )
    for page in (html.render(bad), compare.render([(text, bad), (text, report())])):
        found = assert_inert(page)
        assert page.count("<style") == page.count("</style") == page.count("<title") == 1
        assert words.visible(text).split()[0] in found.text
        page.encode("utf-8")


def test_letters_that_mislead_are_spelled_out():
    page = html.render(report(command="a\u202eb\x00c\u2028d\ud800e\U000e0041f"))
    assert r"a\u202eb\u0000c\u2028d\ud800e\U000e0041f" in page
    assert not {"\u202e", "\x00", "\u2028", "\ud800"} & set(page)
