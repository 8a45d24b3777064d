"""A report, its steps and its page, as the tests of pages have them."""

from dataclasses import replace
from html.parser import HTMLParser

from expunge.core.audit import Finding
from expunge.events import Checked, Ended, Started, Step
from expunge.primitives.repeat import Repeat
from expunge.report.answers import NAMES, Answer, Outcome, Verdict
from expunge.report.report import (
    Cost,
    Environment,
    Original,
    Report,
    RequestFacts,
    Sample,
    Samples,
    SetFacts,
)
from expunge.report.run import Run, Saved

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = {"meta", "br", "link", "img", "input", "hr"}


def finding(audit, where, model, value, spread=0.05, ideal=None, better="lower"):
    said = f"How {audit} is defined."
    return Finding(audit, where, value, value - spread, value + spread, 24, said, ideal, model, better=better)


def findings(after=0.2, kept=0.94):
    choice = {"ideal": 0.25, "better": "ideal"}
    return (
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
    )


STARTED = Started(90, 1_224_000, 134_515_008, 24, 5.2, 0.25, "holdout", 0.1)
ENDED = Ended("forget loss 5.31 reached the level 5.20 (holdout)", 22, 24, True, 5.31, 0.0, 0.05)
RUN = Run(started=STARTED, ended=ENDED, saved=Saved(True, 1.2e-5, 3.0, "float32 safetensors"))


def step(n):
    change = {"frobenius": 0.1 * n, "spectral": 0.05 * n}
    return Step(n, -n, 0.2 * n, 0.5, {"mlp": 1.0, "attention": 0.1}, change, 1e-4, 9, 1.2)


STEPS = (*map(step, range(1, 25)), Checked(24, 4.8, 0.5, 5.2, 0.4))


def outcome(rule, result="yes", value=0.2, bound=0.25, answer="forgotten", **more):
    return Outcome(answer, rule, result, value, bound, **more)


def verdict(*outcomes, unmeasured=()):
    """The answers of rules, each with a reason made up."""
    made = {}
    for name in NAMES:
        rules = tuple(each for each in outcomes if each.answer == name)
        results = [each.result for each in rules]
        said = next((each for each in ("no", "not measured", "yes") if each in results), "not measured")
        made[name] = Answer(said, f"Why {name} is so.", rules, tuple(unmeasured) if name == "traceless" else ())
    return Verdict(**made)


def report(**changed):
    """A finished run, with whatever is to be otherwise; it has no steps."""
    whole = Report(
        schema=3,
        expunge="0.1.0",
        created="2026-11-22T09:00:00Z",
        command="expunge forget ./smollm2 --forget forget.jsonl --retain retain.jsonl",
        original=Original("smollm2", "language", "LlamaForCausalLM", 134_515_008, "9f86d081884c7d65"),
        result="c0ffee081884c7d65",
        request=RequestFacts(
            "60303ae22b998861",
            "tokens",
            {"forget": SetFacts(24, 96, "forget.jsonl"), "retain": SetFacts(120, 480, "retain.jsonl")},
            {"forget": 0, "retain": 0},
            (Repeat("forget", "retain", 1, 0, ((3, 4),)),),
        ),
        environment=Environment("3.11.7", "2.13", "5.1", "0.18", "cpu", 2),
        method="Finetune(objective=Ascent() + RetainNLL())",
        findings=findings(),
        run=RUN,
        verdict=verdict(
            outcome("forget.Choice <= 0.25"),
            outcome(
                "forget vs holdout.MinK within 0.1 of no difference",
                value=0.52,
                bound=0.5,
                answer="traceless",
                because="0.52, as it should be.",
                low=-0.1,
                high=0.14,
                tolerance=0.1,
            ),
            outcome("retain.Choice >= 0.9", value=0.94, bound=0.9, answer="unharmed"),
        ),
        cost=Cost({"load": 1.2, "forget": 80.2}, 82.4, 123456, 2_400_000_000),
        limits=("Outputs only: the weights may still hold what the answers no longer say.",),
        samples=Samples(False, (Sample("forget", "forget-01"),)),
    )
    return replace(whole, **changed)


def audited(**changed):
    """The same model, only looked at."""
    before = tuple(each for each in findings() if each.model == "before")
    return report(run=None, method="", result=None, findings=before, **changed)


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
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(found.tags)
    assert [name for name, _ in found.attributes if name.startswith("on")] == []
    reaching = [v for name, v in found.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert [value for value in reaching if not value.startswith(("#", "data:image/png;base64,"))] == []
    assert POLICY in found.all("content")
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    return found
