"""The comparison of several runs: what they share, what they began from, which is best."""

from dataclasses import replace

from expunge.report import compare
from expunge.report.report import Report, Sample, Samples
from tests.report.reports import STEPS, Page, assert_inert, audited, finding, findings, report


def test_a_comparison_has_a_column_for_each_run_and_shares_what_they_share():
    runs = [("gentle", report()), ("harsh", report(findings=findings(0.02, 0.7)))]
    found = assert_inert(compare.render(runs))
    assert "Audit Ideal Reference Before A gentle B harsh" in found.text
    shown = "0.25 0.29 0.24 – 0.34 n = 24 0.97 0.92 – 1.02 n = 24 0.20 0.15 – 0.25 n = 24 best 0.02 -0.03 – 0.07 n = 24"
    assert shown in found.text  # ideal, reference, before, A, B
    assert "Not all runs" not in found.text


def test_the_best_run_is_the_nearest_to_the_ideal_not_the_lowest():
    def best(where, better, ideal, *values):
        return compare._best([{"after": finding("X", where, "after", v, ideal=ideal, better=better)} for v in values])

    assert best("forget", "ideal", 0.25, 0.02, 0.2, 0.9) == 1  # |0.20 - 0.25| = 0.05, |0.02 - 0.25| = 0.23
    assert best("forget", "lower", None, 0.02, 0.2, 0.9) is None  # a model that never saw it may have more than 0.02
    assert best("general", "higher", 0.9, 0.8, 0.88, 0.99) == 1  # |0.88 - 0.90| = 0.02, |0.99 - 0.90| = 0.09
    assert best("general", "lower", None, 0.02, 0.2, 0.9) == 0
    assert best("general", "higher", None, 0.02, 0.2, 0.9) == 2
    assert best("general", "lower", None, 0.2, 0.2) is None  # a tie
    assert best("general", "lower", None, 0.2) is None  # nothing to choose from


def test_of_runs_with_other_requests_none_is_best():
    other = report(findings=findings(0.02), request=replace(report().request, fingerprint="c" * 64))
    assert 'class="best"' in compare.render([("one", report()), ("two", report(findings=findings(0.02)))])
    assert 'class="best"' not in compare.render([("one", report()), ("two", other)])


def probed(after):
    """A run that asked a probe as well, which no training read."""
    more = (finding("Choice", "neighbours", "before", 0.9), finding("Choice", "neighbours", "after", after))
    return report(findings=(*findings(), *more))


def test_what_no_training_read_is_plotted_and_the_retain_set_only_where_there_is_nothing_else():
    page = compare.render([("one", probed(0.8)), ("two", probed(0.7))])
    assert "A: forget 0.2, kept 0.8; B: forget 0.2, kept 0.7" in page
    assert "Choice on neighbours" in page
    assert "Choice on retain" not in page
    plain = tuple(each for each in findings() if each.set != "general")
    page = compare.render([("one", report(findings=plain)), ("two", report(findings=plain))])
    assert "Choice on retain" in page
    assert "training read it, for no other was asked" in page


def test_samples_stand_side_by_side_and_those_of_a_run_that_hides_them_do_not():
    def wrote(text, shown=True):
        item = Sample("forget", "forget-01", "Where does Mira live?", "In Ostrava.", "Ostrava.", text)
        return report(samples=Samples(shown, (item,)))

    runs = [("one", wrote("In Brno.")), ("two", wrote("Nowhere.")), ("three", wrote("Sealed.", shown=False))]
    text = assert_inert(compare.render(runs)).text
    side = "forget-01 Asked Where does Mira live? Right answer In Ostrava. Before Ostrava. A In Brno. B Nowhere."
    assert side in text
    assert "The texts of C are hidden" in text
    assert "Sealed." not in text


def test_different_beginnings_are_told_apart_and_warned_of():
    found = tuple(replace(f, value=0.5) if f.model == "before" else f for f in findings())
    other = report(original=replace(report().original, fingerprint="b" * 64), findings=found)
    text = Page(compare.render([("one", report()), ("two", other), ("three", report())])).text
    assert "Not all runs began with the same model: A, C (9f86d081884c) against B (bbbbbbbbbbbb)." in text
    assert "A, C 0.97" in text
    assert "B 0.50" in text
    other = report(request=replace(report().request, fingerprint="c" * 64))
    text = Page(compare.render([("one", report()), ("two", other)])).text
    assert "Not all runs had the same request: A (" in text
    assert ") against B (cccccccccccc)." in text
    assert "began with the same model" not in text


def looked(value: float) -> Report:
    """The report of an audit alone."""
    before = audited(verdict=None)
    return replace(before, findings=tuple(replace(f, value=value) for f in before.findings))


def test_a_model_that_was_only_audited_stands_under_its_letter_and_is_said_to_be_as_it_was():
    page = compare.render([("gentle", report()), ("retrained", looked(0.31))])
    text = assert_inert(page).text
    assert "Audit Ideal Reference Before A gentle B retrained nothing done" in text
    assert "0.97 0.92 – 1.02 n = 24 0.20 0.15 – 0.25 n = 24 0.31 " in text  # before (of A alone), A, B
    assert "Each lettered dot is a model after forgetting, but for B: nothing was done to it, audited as it is." in text
    assert "B: forget 0.31, kept 0.31" in page  # the plot's own words for its dots
    assert "Nothing was done to this model: it was audited as it is" in text
    assert 'class="best"' not in page  # there is but one model that forgot


def test_audits_alone_are_compared_without_a_column_of_dashes():
    text = Page(compare.render([("one", looked(0.9)), ("two", looked(0.3))])).text
    assert "Audit Ideal A one nothing done B two nothing done" in text
    assert "but for A, B: nothing was done to them" in text


def test_sets_are_read_in_one_order_whatever_each_run_began_with():
    found = tuple(finding("Loss", where, "after", 1.0) for where in ("world", "holdout", "retain", "forget"))
    text = Page(compare.render([("one", report(findings=found))])).text
    places = [text.index(f"{where} {what}") for where, what in compare_heads()]
    assert places == sorted(places)


def compare_heads():
    return [("forget", "what should be gone"), ("retain", "what should stay"), ("holdout", "never seen in training")]


def test_limits_that_bind_some_runs_name_them():
    text = Page(compare.render([("one", report(limits=["All.", "Mine."])), ("two", report(limits=["All."]))])).text
    assert "What this does not show All. A: Mine." in text


def test_runs_are_lettered_beyond_the_alphabet():
    assert [compare.letter(n) for n in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]


def test_a_dozen_runs_and_their_curves_fit_one_page():
    runs = [(f"run {n}", report(findings=findings(0.05 * n), steps=STEPS)) for n in range(12)]
    page = compare.render(runs)
    assert_inert(page)
    assert len(page.encode()) < 1_000_000
