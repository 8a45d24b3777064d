"""The report and the comparison: complete, repeatable, inert whatever they are told, silent about hidden text."""

import math
from html.parser import HTMLParser

import pytest

from expunge.report import compare, html, words

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = {"meta", "br", "link", "img", "input", "hr"}


def finding(audit, where, model, value, spread=0.05, ideal=None, better="lower"):
    return {
        "audit": audit, "set": where, "model": model, "value": value, "low": value - spread, "high": value + spread,
        "n": 24, "ideal": ideal, "definition": f"How {audit} is defined.", "better": better,
    }  # fmt: skip


def findings(after=0.2, kept=0.94):
    choice = {"ideal": 0.25, "better": "ideal"}
    return [
        finding("Choice", "forget", "before", 0.97, **choice),
        finding("Choice", "forget", "after", after, **choice),
        finding("Choice", "forget", "reference", 0.29, **choice),
        finding("MinK", "forget vs holdout", "before", 0.99, ideal=0.5, better="ideal"),
        finding("MinK", "forget vs holdout", "after", 0.52, ideal=0.5, better="ideal"),
        finding("Choice", "retain", "before", 0.95, better="higher"),
        finding("Choice", "retain", "after", kept, better="higher"),
        finding("Loss", "retain", "before", 0.11),
        finding("Loss", "retain", "after", 0.15),
        finding("Loss", "retain", "reference", 0.10),
        finding("Perplexity", "general", "before", 18.4),
        finding("Perplexity", "general", "after", 19.1),
    ]


def rule(text, value, bound, met):
    return {"rule": text, "value": value, "bound": bound, "met": met}


def report(**changed):
    whole = {
        "schema": 1,
        "expunge": "0.1.0",
        "created": "2026-11-22T09:00:00Z",
        "command": "expunge forget ./smollm2 --forget forget.jsonl --retain retain.jsonl",
        "method": "Finetune(objective=Ascent() + RetainNLL())",
        "model": {
            "name": "smollm2", "family": "language", "architecture": "LlamaForCausalLM", "parameters": 134515008,
            "fingerprint": "9f86d081884c7d65",
        },
        "request": {
            "fingerprint": "60303ae22b998861",
            "sets": {
                "forget": {"examples": 24, "rows": 96, "source": "forget.jsonl"},
                "retain": {"examples": 120, "rows": 480, "source": "retain.jsonl"},
            },
        },
        "findings": findings(),
        "verdict": {"met": True, "rules": [rule("forget.Choice <= 0.25", 0.2, 0.25, True)]},
        "run": {
            "stopped": "forget loss 5.31 reached the level 5.20 (holdout)", "kept_step": 22, "steps": 24,
            "level": 5.2, "level_source": "holdout", "budget": 0.1,
            "adapter": {"layers": 90, "trainable": 1234, "share": 0.0091}, "merge": {"max_logit_difference": 1.2e-5},
        },
        "cost": {"seconds": {"load": 1.2, "forget": 80.2, "total": 82.4}, "tokens": 123456, "peak_memory_bytes": 2.4e9},
        "environment": {"python": "3.11.7", "device": "cpu", "threads": 2, "seed": 0},
        "limits": ["Outputs only: the weights may still hold what the answers no longer say."],
        "samples": {"shown": False, "items": [{"set": "forget", "id": "forget-01"}]},
    }  # fmt: skip
    return whole | changed


STEPS = [
    {
        "kind": "step", "step": n, "loss": -n, "forget": 0.2 * n, "retain": 0.5,
        "gradient": {"mlp": 1.0, "attention": 0.1}, "delta": {"frobenius": 0.1 * n, "spectral": 0.05 * n},
        "learning_rate": 1e-4, "seconds": 1.2,
    }
    for n in range(1, 25)
] + [{"kind": "check", "step": 24, "forget": 4.8, "retain": 0.5, "level": 5.2}]  # fmt: skip


class Page(HTMLParser):
    """What a browser would find: tags, attributes and the text outside of styles."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.pieces = [], [], [], []
        self.feed(page)
        self.close()
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)

    def all(self, name):
        return [value for attribute, value in self.attributes if attribute == name]


def assert_inert(page):
    found = Page(page)
    assert found.open == []
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form"} & set(found.tags)
    assert [name for name, _ in found.attributes if name.startswith("on")] == []
    reaching = [v for name, v in found.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert [value for value in reaching if not value.startswith("#")] == []
    assert POLICY in found.all("content")
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    return found


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
        "Choice 1", "0.15 – 0.25", "MinK 2", "How MinK is defined.", "The run", "step 22 of 24", "1.2e-05",
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


def test_a_bound_that_was_just_missed_does_not_look_met():
    missed = {"met": False, "rules": [rule("general.Choice >= 0.605", 0.6004, 0.605, False)]}
    text = Page(html.render(report(verdict=missed), [])).text
    assert "0.6004 0.605 ✗ not met, by 0.0046" in text  # 0.605 - 0.6004


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


# What an edit changed


def edited(**blocks):
    """A run without steps, as dampening leaves it."""
    return {
        "edit": {
            "changed": 30_000, "parameters": 2_000_000, "distance": 4.25, "selected": 30_500, "alpha": 12.5,
            "blocks": blocks,
        },
        "merge": {"max_logit_difference": 0.0},
    }  # fmt: skip


def test_an_edit_tells_how_much_it_changed_and_in_which_blocks():
    run = edited(**{
        "vit.layers.0": {"changed": 20_000, "parameters": 1_000_000, "distance": 4.0},
        "vit.layers.1": {"changed": 10_000, "parameters": 1_000_000, "distance": 1.4361},
    })  # fmt: skip
    found = assert_inert(html.render(report(run=run), []))
    assert "Numbers changed 30,000 of 2.0 M (1.50%)" in found.text
    dampened = "Numbers dampened 30,500, each more than 12.50 times as important to the forget set as to all data"
    assert dampened in found.text
    assert "Length of the change 4.25" in found.text
    assert "vit.layers.0 20,000 1.0 M 4.00 2.00% vit.layers.1 10,000 1.0 M 1.44 1.00%" in found.text
    assert ("style", "width: 100.0%") in found.attributes
    assert ("style", "width: 50.0%") in found.attributes


def test_of_very_many_blocks_the_most_changed_are_shown_in_their_order():
    run = edited(**{f"block.{k}": {"changed": k, "parameters": 100, "distance": 1.0} for k in range(100)})
    names = [block.name for block in html.blocks_of(run)]
    assert names == [f"block.{k}" for k in range(40, 100)]


def test_a_run_without_an_edit_or_with_one_that_changed_nothing_has_a_page_all_the_same():
    assert html.blocks_of({}) == html.blocks_of({"edit": {"changed": 3}}) == []
    [still] = html.blocks_of(edited(**{"a.0": {"changed": 0, "parameters": 5}, "b": {"changed": None}}))
    assert (still.share, still.width) == (0.0, 0.0)
    assert "a.0 0 5 – 0.00%" in assert_inert(html.render(report(run=edited(**{"a.0": vars(still)})), [])).text


def test_a_step_read_in_parts_because_memory_ran_out_is_told():
    text = Page(html.render(report(run=report()["run"] | {"parts": 4}), [])).text
    assert "Read in parts 4 a step, since memory ran out" in text


# The comparison


def test_a_comparison_has_a_column_for_each_run_and_shares_what_they_share():
    runs = [("gentle", report(), []), ("harsh", report(findings=findings(0.02, 0.7)), [])]
    found = assert_inert(compare.render(runs))
    assert "Audit Before A gentle B harsh Reference Ideal" in found.text
    shown = "0.97 0.92 – 1.02 n = 24 0.20 0.15 – 0.25 n = 24 best 0.02 -0.03 – 0.07 n = 24 0.29 0.24 – 0.34 n = 24 0.25"
    assert shown in found.text  # before, A, B, reference, ideal
    assert "Not all runs" not in found.text


def test_the_best_run_is_the_nearest_to_the_ideal_not_the_lowest():
    def best(better, *values):
        return compare._best([{"after": finding("X", "forget", "after", v, ideal=0.25, better=better)} for v in values])

    assert best("ideal", 0.02, 0.2, 0.9) == 1  # |0.20 - 0.25| = 0.05, |0.02 - 0.25| = 0.23
    assert best("lower", 0.02, 0.2, 0.9) == 0
    assert best("higher", 0.02, 0.2, 0.9) == 2
    assert best("lower", 0.2, 0.2) is None  # a tie
    assert best("lower", 0.2) is None  # nothing to choose from


def test_different_beginnings_are_told_apart_and_warned_of():
    other = report(model=report()["model"] | {"fingerprint": "b" * 64})
    other["findings"] = [f | {"value": 0.5} if f["model"] == "before" else f for f in findings()]
    text = Page(compare.render([("one", report(), []), ("two", other, []), ("three", report(), [])])).text
    assert "Not all runs began with the same model: A, C (9f86d081884c) against B (bbbbbbbbbbbb)." in text
    assert "A, C 0.97" in text
    assert "B 0.50" in text


def test_limits_that_bind_some_runs_name_them():
    text = Page(
        compare.render([("one", report(limits=["All.", "Mine."]), []), ("two", report(limits=["All."]), [])])
    ).text
    assert "What this does not show All. A: Mine." in text


def test_runs_are_lettered_beyond_the_alphabet():
    assert [compare.letter(n) for n in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]


def test_a_dozen_runs_and_their_curves_fit_one_page():
    runs = [(f"run {n}", report(findings=findings(0.05 * n)), STEPS) for n in range(12)]
    page = compare.render(runs)
    assert_inert(page)
    assert len(page.encode()) < 1_000_000
