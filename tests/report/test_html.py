"""The pages of a report and a comparison: complete, repeatable, inert whatever they are told, silent on hidden text."""

import itertools
import math
import re
from dataclasses import fields, is_dataclass, replace

import pytest

from expunge.errors import UsageRefused
from expunge.events import Change, Edited
from expunge.report import compare, headline, html, words
from expunge.report.report import Sample, Samples
from expunge.report.results import by_set, results
from expunge.report.samples import samples_of
from tests.report.reports import RUN, STEPS, Page, assert_inert, audited, finding, findings, outcome, report, verdict

# The whole


def test_the_same_report_gives_the_same_bytes():
    assert html.render(report(steps=STEPS)) == html.render(report(steps=STEPS))
    runs = [("one", report(steps=STEPS)), ("two", report(findings=findings(0.4), steps=STEPS))]
    assert compare.render(runs) == compare.render(runs)


def test_a_page_says_everything_it_was_told_in_the_order_it_is_read():
    text = assert_inert(html.render(report(steps=STEPS))).text
    order = [
        "Forgotten, traceless, unharmed", "Forgotten yes", "Right answers among the options: 0.20", "In plain words",
        "What was asked", "24 records (forget.jsonl)", "What is gone", "What is left", "What was harmed",
        "What was not measured", "Outputs only", "What this does not show", "Results", "Choice 0.97 → 0.20, ideal 0.25",
        "Choice 1", "0.15 – 0.25", "Loss 2", "MinK 3", "How MinK is defined.", "Samples", "--show-text", "forget-01",
        "What the verdict rests on", "✓ met, 0.05 to spare", "Key facts", "134.5 M", "expunge forget ./smollm2",
        "The run", "step 22 of 24", "1.2e-05", "Cost and environment", "1 min 20 s", "2.4 GB",
        "Fingerprints", "9f86d081884c7d65", "c0ffee081884c7d65", "60303ae22b998861",
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


def judged(*results, **changed):
    """Rules of the three answers in turn."""
    names = ("forgotten", "traceless", "unharmed")
    rules = (outcome("a.B <= 1", result, answer=name) for name, result in zip(names, results, strict=True))
    return report(verdict=verdict(*rules), **changed)


@pytest.mark.parametrize(
    ("said", "words", "mark"),
    [
        (("yes", "yes", "yes"), "Forgotten, traceless, unharmed", "met"),
        (("yes", "no", "no"), "Forgotten, traces show, harmed", "missed"),
        (("no", "not measured", "yes"), "Not forgotten, traceless not measured, unharmed", "missed"),
        (("not measured", "yes", "not measured"), "Forgotten not measured, traceless, unharmed not measured", "open"),
    ],
)
def test_the_headline_is_the_three_answers(said, words, mark):
    assert headline.outcome(judged(*said)) == headline.Headline(words, mark)


def first_screen(made):
    page = html.render(made)
    return Page(page[: page.index('id="limits"')]).text


def in_order(text, *pieces):
    places = [text.find(piece) for piece in pieces]
    assert -1 not in places, pieces[places.index(-1)]
    assert places == sorted(places)


def test_the_first_screen_has_three_answers_three_reasons_and_what_was_not_measured():
    rule = outcome("forget.B <= 1", "no", because="Still known: 0.9.")
    text = first_screen(report(verdict=verdict(rule, unmeasured=("forget vs holdout.MinK: left out of --audits.",))))
    in_order(
        text[text.find("report on") :],
        "Not forgotten, traceless not measured, unharmed not measured",
        "Not measured: traceless; unharmed; telling forgotten from never seen records by their least likely tokens",
        "Forgotten no", "known no better", "B: Still known: 0.9.", "Traceless not measured", "Why traceless is so.",
        "Unharmed not measured", "Why unharmed is so.", "What was not measured",
        "Traceless: telling forgotten from never seen records by their least likely tokens: left out of --audits.",
        "Outputs only",
    )  # fmt: skip


def scored(audit, model, right, n=32, ideal=None):
    """A share of records that are answered rightly, the first ones."""
    scores = (1.0,) * right + (0.0,) * (n - right)
    made = finding(audit, "forget", model, right / n, ideal=ideal, better="ideal")
    return replace(made, scores=scores, n=n)


def test_what_is_gone_and_what_is_left_are_told_in_counts():
    found = (*(scored("Choice", model, k, ideal=0.16) for model, k in (("before", 30), ("after", 8))),)
    rule = outcome("forget.Choice within 0.05 of the holdout set's", value=0.25, bound=0.16, low=-0.1, high=0.3)
    text = first_screen(report(findings=found, verdict=verdict(rule)))
    in_order(
        text,
        "Right answers among the options: 8 of 32 now, 30 of 32 before; a model that never saw them: about 5 of 32.",
        "What is gone 22 of the 30 right answers among the options.",
        "What is left 8 of 32 right answers among the options; a model that never saw them: about 5.",
    )


def test_no_tick_stands_over_numbers_that_speak_against_it():
    rules = [outcome("forget.Choice within 0.05 of the holdout set's", value=0.25, bound=0.16, low=-0.1, high=0.3)]
    rules += [outcome("a.B <= 1", answer=name) for name in ("traceless", "unharmed")]
    assert headline.outcome(report(verdict=verdict(*rules))).mark == "met"
    rules[0] = replace(rules[0], against=True)
    made = report(verdict=verdict(*rules))
    assert headline.outcome(made) == headline.Headline("Forgotten, traceless, unharmed", "doubted")
    page = html.render(made)
    text = Page(page).text
    assert "But Right answers among the options: 0.20 instead of 0.16; may be chance (n = 24)." in text
    card = page[page.index("Forgotten</span>") - 400 : page.index("Forgotten</span>")]
    assert "mark-doubted" in card
    assert "mark-met" not in card


def test_a_rule_stands_with_its_value_interval_and_sentence_and_the_noes_come_first():
    rules = (
        outcome("a.B as it is", because="All well."),
        outcome("kept step >= 1", "no", 0.0, 1.0, condition=True),
        outcome("c.D off", "no", 0.9, 0.7, because="Still known.", low=0.1, high=0.3, tolerance=0.05),
        outcome("e.F unknown", "not measured", bound=None, because="Nobody asked."),
    )
    text = Page(html.render(report(verdict=verdict(*rules)))).text
    order = [
        "c.D off 0.9 0.7 +0.20 (+0.10 to +0.30) ✗ no Still known.",
        "e.F unknown 0.2 – – not measured Nobody asked.",
    ]
    order += ["a.B as it is 0.2 0.25 ✓ met, 0.05 to spare All well.", "kept step >= 1 0 1 ✗ not met, by 1"]
    places = [text.find(piece) for piece in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_an_audit_without_thresholds_and_one_with_them():
    assert headline.outcome(audited(verdict=None)) == headline.Headline("Audited; no thresholds were set", "open")
    rules = [outcome("a.B <= 1", each) for each in ("yes", "no", "no")]
    assert headline.outcome(audited(verdict=verdict(*rules))).words == "2 of 3 thresholds were not met"
    assert headline.outcome(audited(verdict=verdict(rules[1]))).words == "1 of 1 threshold was not met"
    page = Page(html.render(audited(verdict=verdict(*rules)))).text
    assert "Why forgotten is so." not in page  # nothing was forgotten


def test_what_should_be_gone_is_read_first_then_what_should_stay():
    names = ["world", "holdout", "paraphrase", "retain", "forget"]
    found = [finding("Loss", where, "after", 1.0) for where in names]
    assert list(by_set(found)) == ["forget", "retain", "holdout", "world", "paraphrase"]
    assert [tile.where for tile in html.tiles(by_set(found))] == ["forget", "retain", "holdout", "world"]


def test_what_is_not_asked_first_is_folded_and_headings_go_down_by_one():
    page = html.render(report(steps=STEPS))
    shown = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert "<table" not in shown
    assert "<details open" not in page
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert '<html lang="en">' in page


def test_each_number_of_a_rule_is_named_where_the_table_is_stacked():
    page = html.render(report())
    rules = page[page.index("<h2>What the verdict") : page.index("<h2>For the record")]
    assert '<table class="stack rules">' in rules
    assert [rules.count(f'data-label="{name}"') for name in ("Measured", "Held against", "Off by")] == [3, 3, 3]


def test_a_bound_that_was_just_missed_does_not_look_met():
    missed = outcome("general.Choice >= 0.605", "no", 0.6004, 0.605)
    text = Page(html.render(report(verdict=verdict(missed)))).text
    assert "0.6004 0.605 ✗ not met, by 0.0046" in text  # 0.605 - 0.6004


def test_a_bound_that_was_passed_by_far_is_told_in_plain_numbers():
    changed = verdict(outcome("numbers of the model changed >= 1 (something changed)", value=1300, bound=1))
    assert "✓ met, 1,299 to spare" in Page(html.render(report(verdict=changed))).text


def test_a_threshold_on_what_was_not_measured_is_not_met():
    unknown = verdict(outcome("retain.Rouge >= 0.9", "no", None, 0.9, because="Asked for, and not measured."))
    assert "– 0.9 ✗ no Asked for, and not measured." in Page(html.render(report(verdict=unknown))).text


# What must not be shown

SECRETS = {"prompt": "Where does Mira live?", "answer": "In Ostrava", "before": "Ostrava.", "after": "No idea."}


def test_hidden_samples_show_no_text_even_when_they_carry_it():
    samples = Samples(False, (Sample("forget", "forget-01", **SECRETS),))
    [shown] = samples_of(report(samples=samples))["forget"]
    assert (shown.texts, shown.picture) == ([], "")  # no template ever has it
    page = html.render(report(samples=samples))
    assert [text for text in SECRETS.values() if text in page] == []
    assert "forget-01" in page
    assert "--show-text" in page


def test_shown_samples_show_their_text():
    samples = Samples(True, (Sample("forget", "forget-01", **SECRETS),))
    text = Page(html.render(report(samples=samples))).text
    assert [secret for secret in SECRETS.values() if secret not in text] == []
    assert "None" not in text


PICTURE = "data:image/png;base64,iVBORw0KGgo="


def test_a_thumbnail_is_shown_only_where_it_is_asked_for_and_only_a_picture_of_ours():
    item = Sample("forget", "cat/1.png", answer="cat", before="cat", after="dog", picture=PICTURE)
    page = html.render(report(samples=Samples(True, (item,))))
    assert "Class cat Before cat After dog" in assert_inert(page).text
    assert page.count(PICTURE) == 1
    assert PICTURE not in html.render(report(samples=Samples(False, (item,))))
    assert "<img" not in html.render(report(samples=Samples(True, (replace(item, picture="https://example.org/x"),))))


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


def spelled(honest, text):
    """A verdict whose rules, reasons and sentences are `text`; the answers are our own words."""

    def answer(of):
        rules = tuple(replace(rule, rule=text, because=text) for rule in report().verdict.rules)
        return replace(of, said="no", reason=text, rules=rules, unmeasured=(text,))

    return replace(honest, **{name: answer(of) for name, of in honest})


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
        verdict=spelled(bad.verdict, text),
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


def test_a_p_value_has_no_interval_and_is_not_said_to_lie_below_its_ideal():
    p = replace(finding("ForgetQuality", "forget", "after", 0.31, spread=0.0, ideal=1.0), better="ideal")
    [line] = results(by_set([p])).lines["forget"]
    assert line.reach == ""
    [other] = results(by_set([replace(p, low=0.2, high=0.4)])).lines["forget"]
    assert other.reach == "after is below it"
    assert "0.31 – 0.31" not in html.render(report(findings=(p,)))


def test_a_report_finds_a_number_by_its_set_and_audit():
    made = report()
    assert made.find("retain.Loss").value == 0.15
    assert made.find("retain.Loss", "before").value == 0.11
    assert made.find("forget.MinK") == made.find("forget vs holdout.MinK")
    with pytest.raises(UsageRefused, match=r"no finding 'retain.MinK' of the model after. There are: forget.Choice, "):
        made.find("retain.MinK")
