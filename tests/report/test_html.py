"""The pages of a report and a comparison: complete, repeatable, inert whatever they are told, silent on hidden text."""

import math

import pytest

from expunge.report import compare, html, words
from tests.report.reports import STEPS, Page, assert_inert, finding, findings, report, rule

# The whole


def test_the_same_report_gives_the_same_bytes():
    assert html.render(report(), STEPS) == html.render(report(), STEPS)
    runs = [("one", report(), STEPS), ("two", report(findings=findings(0.4)), STEPS)]
    assert compare.render(runs) == compare.render(runs)


def test_a_page_says_everything_it_was_told_in_the_order_it_is_read():
    text = assert_inert(html.render(report(), STEPS)).text
    order = [
        "Forgotten within every threshold", "fell from 0.97 to 0.20 (ideal 0.25)", "Key facts", "134.5 M",
        "What was asked", "expunge forget ./smollm2", "Thresholds", "✓ met, 0.05 to spare", "Results",
        "Choice 1", "0.15 – 0.25", "Loss 2", "MinK 3", "How MinK is defined.", "The run", "step 22 of 24", "1.2e-05",
        "Samples", "--show-text", "forget-01", "Cost and environment", "1 min 20 s", "2.4 GB",
        "What this does not show", "Outputs only", "Fingerprints", "9f86d081884c7d65", "60303ae22b998861",
    ]  # fmt: skip
    places = [text.find(piece, text.find("report on")) for piece in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_no_two_elements_share_an_id_and_every_link_has_its_target():
    for page in (html.render(report(), STEPS), compare.render([("one", report(), STEPS), ("two", report(), STEPS)])):
        found = Page(page)
        assert len(found.all("id")) == len(set(found.all("id")))
        links = {value.removeprefix("#") for value in found.all("href") + found.all("xlink:href")}
        assert links
        assert links <= set(found.all("id"))


def test_a_page_of_twelve_findings_is_under_a_megabyte():
    assert len(report()["findings"]) == 12
    assert len(html.render(report(), STEPS).encode()) < 1_000_000


def test_each_definition_stands_once():
    text = Page(html.render(report(), [])).text
    assert text.count("How Choice is defined.") == text.count("How Loss is defined.") == 1


# What is missing


@pytest.mark.parametrize(
    "part",
    ["command", "method", "model", "request", "findings", "verdict", "run", "cost", "environment", "limits", "samples"],
)
def test_a_report_without_one_of_its_parts_still_renders(part):
    without = {name: value for name, value in report().items() if name != part}
    assert_inert(html.render(without, []))
    assert_inert(html.render(report() | {part: None}, []))
    assert_inert(compare.render([("whole", report(), []), ("without", without, [])]))


def test_a_report_of_nothing_renders():
    assert "No thresholds were set" in assert_inert(html.render({}, [])).text
    assert_inert(compare.render([("nothing", {}, [])]))


def test_an_audit_alone_is_not_said_to_have_forgotten():
    looked = {name: value for name, value in report().items() if name not in ("run", "cost")}
    looked["findings"] = [f for f in findings() if f["model"] == "before"]
    text = assert_inert(html.render(looked, [])).text
    assert "Within every threshold" in text
    assert "Forgotten" not in text
    assert "Measured" in text
    assert "The run" not in text


def test_values_that_are_no_numbers_are_named():
    odd = [finding("Loss", "forget", "before", math.nan), finding("Loss", "forget", "after", math.inf)]
    odd.append(finding("Loss", "retain", "after", 0.5) | {"value": None, "low": None, "high": None, "n": None})
    text = assert_inert(html.render(report(findings=odd), [])).text
    assert "not a number" in text
    assert "∞" in text


# The verdict in words


def verdict(*met):
    return {"verdict": {"met": all(met), "rules": [rule("forget.B <= 1", 0.5, 1.0, each) for each in met]}}


def test_the_outcome_counts_what_was_not_met():
    assert html.outcome(report(**verdict(True, True))).words == "Forgotten within every threshold"
    assert html.outcome(report(**verdict(True, False, False, True, True))).words == "2 of 5 thresholds were not met"
    assert html.outcome(report(**verdict(False))).words == "1 of 1 threshold was not met"
    assert html.outcome(report(**verdict())).words == "No thresholds were set"


def test_a_model_that_merely_changed_is_not_called_forgetful():
    for told in ("numbers of the model changed >= 1 (something changed)", "retain.Choice >= before"):
        rules = [rule(told, 9.0, 1.0, True)]
        said = html.outcome(report(verdict={"met": True, "rules": rules}))
        assert said == html.Headline("Changed, but no threshold asks whether it forgot", "open")
    rules.append(
        rule("forget examples short of 4.70 nats (that of the holdout set), on average <= slack", 0, 0.25, True)
    )
    assert html.outcome(report(verdict={"met": True, "rules": rules})).mark == "met"


def test_what_is_forgotten_but_not_as_if_never_seen_stands_under_the_verdict():
    found = [
        finding("Rouge", "forget", "before", 0.9, ideal=0.3, better="ideal"),
        finding("Rouge", "forget", "after", 0.4, ideal=0.3, better="ideal"),  # 0.35 to 0.45
        finding("Choice", "forget", "after", 0.1, ideal=0.25, better="ideal"),  # 0.05 to 0.15
        finding("Choice", "paraphrase", "after", 0.24, ideal=0.25, better="ideal"),  # 0.19 to 0.29
        finding("MinK", "forget vs holdout", "after", 0.3, ideal=0.5, better="ideal"),  # 0.25 to 0.35
        finding("Loss", "forget", "after", 9.0),  # no ideal is known
        finding("Choice", "retain", "after", 0.5, ideal=0.9),  # is to stay, so nobody calls it forgotten
    ]
    said = html.outcome(report(findings=found))
    assert said.words == "Forgotten within every threshold"
    told = "forget Rouge (above), forget Choice (below), forget vs holdout MinK (below)"
    assert said.outside == f"Outside the interval of its ideal: {told}"
    assert f"{said.words} {said.outside}" in Page(html.render(report(findings=found), [])).text
    assert said.outside in Page(compare.render([("one", report(findings=found), [])])).text
    assert html.outcome(report()).outside == ""
    before = [each for each in found if each["model"] == "before"]
    assert html.outcome(report(findings=before, run=None)).outside == ""  # an audit claims nothing


def test_what_should_be_gone_is_read_first_then_what_should_stay():
    names = ["world", "holdout", "paraphrase", "retain", "forget"]
    found = [finding("Loss", where, "after", 1.0) for where in names]
    assert list(html.by_set({"findings": found})) == ["forget", "retain", "holdout", "world", "paraphrase"]
    assert [tile.where for tile in html.tiles(html.by_set({"findings": found}))] == [
        "forget", "retain", "holdout", "world",
    ]  # fmt: skip


def test_each_number_of_a_threshold_is_named_where_the_table_is_stacked():
    page = html.render(report(), [])
    thresholds = page[page.index("<h2>Thresholds") : page.index("<h2>Results")]
    assert '<table class="stack rules">' in thresholds
    assert [thresholds.count(f'data-label="{name}"') for name in ("Measured", "Bound")] == [1, 1]


def test_a_bound_that_was_just_missed_does_not_look_met():
    missed = {"met": False, "rules": [rule("general.Choice >= 0.605", 0.6004, 0.605, False)]}
    text = Page(html.render(report(verdict=missed), [])).text
    assert "0.6004 0.605 ✗ not met, by 0.0046" in text  # 0.605 - 0.6004


def test_a_bound_that_was_passed_by_far_is_told_in_plain_numbers():
    changed = {"met": True, "rules": [rule("numbers of the model changed >= 1 (something changed)", 1300, 1, True)]}
    assert "✓ met, 1,299 to spare" in Page(html.render(report(verdict=changed), [])).text


def test_a_threshold_on_what_was_not_measured_is_not_met():
    unknown = {"met": False, "rules": [rule("retain.Rouge >= 0.9", None, 0.9, False)]}
    assert "– 0.9 ✗ not met: not measured" in Page(html.render(report(verdict=unknown), [])).text


# What must not be shown

SECRETS = {"prompt": "Where does Mira live?", "answer": "In Ostrava", "before": "Ostrava.", "after": "No idea."}


def test_hidden_samples_show_no_text_even_when_they_carry_it():
    samples = {"shown": False, "items": [{"set": "forget", "id": "forget-01", **SECRETS}]}
    page = html.render(report(samples=samples), [])
    assert [text for text in SECRETS.values() if text in page] == []
    assert "forget-01" in page
    assert "--show-text" in page


def test_text_is_shown_only_where_the_report_says_true():
    for shown in (None, 0, 1, "false", "true", [True]):
        samples = {"shown": shown, "items": [{"set": "forget", "id": "forget-01", **SECRETS}]}
        assert [sample.texts for sample in html.samples_of({"samples": samples})] == [[]]  # no template ever has it
        assert "Ostrava" not in html.render(report(samples=samples), [])


def test_shown_samples_show_their_text():
    samples = {"shown": True, "items": [{"set": "forget", "id": "forget-01", **SECRETS, "reference": None}]}
    text = Page(html.render(report(samples=samples), [])).text
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
    """The same report with `text` for every string, and for every key that a user may choose."""
    if isinstance(value, dict):
        return {key: poisoned(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, text) for inner in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_inert_wherever_they_stand(text):
    bad = poisoned(report(), text)
    bad["request"]["sets"] = {text: {"examples": 1, "rows": 1, "source": text}}
    bad["cost"]["seconds"], bad["environment"] = {text: 1.0}, {text: text}
    bad["samples"] = {"shown": True, "items": [{name: text for name in ("set", "id", *html.TEXTS)}]}
    for f, honest in zip(bad["findings"], findings(), strict=True):
        f |= {"set": honest["set"], "model": honest["model"]}
    bad["findings"] += poisoned(findings(), text)
    steps = [line | {"gradient": {text: 1.0}} if "gradient" in line else line for line in STEPS]
    for page in (html.render(bad, steps), compare.render([(text, bad, steps), (text, report(), [])])):
        found = assert_inert(page)
        assert page.count("<style") == page.count("</style") == page.count("<title") == 1
        assert words.visible(text).split()[0] in found.text
        page.encode("utf-8")


def test_letters_that_mislead_are_spelled_out():
    page = html.render(report(command="a\u202eb\x00c\u2028d\ud800e\U000e0041f"), [])
    assert r"a\u202eb\u0000c\u2028d\ud800e\U000e0041f" in page
    assert not {"\u202e", "\x00", "\u2028", "\ud800"} & set(page)
