"""Pages in a real browser, on a desk and on a phone: nothing is clipped, folded or open."""

import html as markup
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.report import compare, html
from expunge.report.confusion import Confused
from expunge.report.report import Sample, Samples
from tests.report.reports import STEPS, findings, outcome, report, verdict

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,900",
]  # fmt: skip
WIDTHS = (1280, 390)
LONG = "Which of the many rivers that leave Veldt, the town of Mara Lind, reaches the sea at Ostrava-under-the-hills? "
MEASURE = """
onload = () => {
  const told = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const sides = [false, true].map(open => {
      page.querySelectorAll("details").forEach(one => one.open = open);
      const beyond = [...page.querySelectorAll("body *")].filter(
        one => !one.closest(".wide") && one.getBoundingClientRect().right > root.clientWidth + 1);
      const wide = [...page.querySelectorAll(".wide")].filter(one => one.scrollWidth > one.clientWidth + 1);
      return {scroll: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight,
              beyond: beyond.map(one => one.outerHTML.slice(0, 80)), wide: wide.map(one => one.ariaLabel)};
    });
    told[frame.name] = sides;
  }
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.append(out);
};
"""


def full(after=0.2, letter="A"):
    """A run with everything that a page can hold, in long words."""
    wrote = LONG + letter
    samples = Samples(
        True, tuple(Sample("forget", f"forget-{k:02}", LONG, "In Veldt.", wrote, wrote) for k in range(3))
    )
    long = {"value": -0.012345, "bound": -1234.5, "low": -1234.5, "high": 1234.5, "tolerance": 0.1}
    rules = [
        outcome("forget.Choice within 0.05 of the holdout set's", "yes", against=True, because=LONG, **long),
        outcome("forget vs holdout.LossMembership within 0.1 of no difference", "no", answer="traceless", **long),
        outcome("retain.Choice at most 0.01 below before", answer="unharmed", **long),
    ]
    confusion = (Confused("forget", "cat", 40, {f"class number {k}": 999 for k in range(12)}, {"dog": 1999}),)
    made = report(findings=findings(after), samples=samples, steps=STEPS, verdict=verdict(*rules), confusion=confusion)
    return replace(made, limits=(LONG * 2,))


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium or chrome here: docs/testing.md says how to get one")
def test_nothing_is_clipped_on_a_desk_or_on_a_phone(tmp_path: Path):
    runs = [(f"a-run-of-a-rather-long-name-{k}", full(0.1 * k, letter)) for k, letter in enumerate("ABCDEF")]
    pages = {"run": html.render(full()), "six runs": compare.render(runs)}
    frames = [
        f'<iframe name="{name} at {width}" style="width: {width}px" srcdoc="{markup.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    ]
    place = tmp_path / "pages.html"
    place.write_text(f"<!DOCTYPE html><body>{''.join(frames)}<script>{MEASURE}</script>")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", place.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    told = json.loads(markup.unescape(re.search(r'<pre id="told">(.*?)</pre>', said)[1]))
    assert set(told) == {f"{name} at {width}" for name in pages for width in WIDTHS}
    for name, sides in told.items():
        for side in sides:
            assert side["scroll"] == side["client"] == int(name.split()[-1]), (name, side)
            assert side["beyond"] == [], (name, side)
        folded, opened = sides
        assert folded["height"] < opened["height"] / 1.5, (name, sides)
        if name.endswith("1280"):  # six columns beside the ideal, the reference and the model before
            assert opened["wide"] == [], (name, opened)
