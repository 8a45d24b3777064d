"""What the page says of the run itself: what an edit or an adapter changed, and how it was written."""

from expunge.report import html
from tests.report.reports import Page, assert_inert, report


def edited(**blocks):
    """A run without steps, as dampening leaves it."""
    return {
        "edit": {
            "changed": 30_000, "parameters": 2_000_000, "distance": 4.25, "selected": 30_500, "alpha": 12.5,
            "blocks": blocks,
        },
        "merge": {"adapter": False, "max_logit_difference": 0.0},
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


MERGED = "Merged model against adapter"


def about(**changed):
    """What the page says of a run, by fact."""
    return dict(html.about_run(report()["run"] | changed))


def test_an_adapter_is_compared_with_the_model_that_it_was_merged_into():
    assert about()[MERGED] == "logits within 1.2e-05"
    assert about(merge={"adapter": True, "max_logit_difference": 0.0})[MERGED] == "logits within 0"


def test_a_result_without_an_adapter_was_not_merged():
    assert MERGED not in dict(html.about_run(edited()))
    assert MERGED not in Page(html.render(report(run=edited()), [])).text
    without = edited() | {"merge": {"max_logit_difference": 0.0}}  # as it was written before adapters were told of
    assert MERGED not in dict(html.about_run(without))


def test_a_model_that_was_rounded_when_it_was_written_is_said_to_be():
    """Trained in float32, written in bfloat16: there is no adapter, and yet the two differ."""
    told = about(merge={"adapter": False, "max_logit_difference": 0.03})
    assert told["Saved model against the trained one"] == "logits within 0.03"
    assert MERGED not in told
    assert "Saved model against the trained one" not in about(merge={"adapter": False, "max_logit_difference": 0.0})


def test_blocks_that_an_adapter_left_on_are_told_among_the_facts():
    groups = [0.4, 0.0, 0.01, 0.2]
    page = html.render(report(run=report()["run"] | {"groups": {"norms": groups, "left": [0, 3]}}), [])
    assert "Blocks that still change 2 of 4 (from 0: 0, 3)" in Page(page).text
    assert about(groups={"norms": groups, "left": []})["Blocks that still change"] == "0 of 4"
    assert "Blocks that still change" not in about()
