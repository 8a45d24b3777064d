"""A report, its steps and its page, as the tests of pages have them."""

from html.parser import HTMLParser

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
