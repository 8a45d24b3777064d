"""What the page says of the run itself: what an edit or an adapter changed, and how it was written."""

from dataclasses import replace

from expunge.events import BlockGroups, Change, Edited
from expunge.report import html
from expunge.report.run import Run, Saved
from tests.report.reports import ENDED, RUN, Page, assert_inert, report


def edited(**blocks: Change) -> Edited:
    """What dampening says of itself."""
    return Edited(30_000, 2_000_000, 4.25, blocks, selected=30_500, alpha=12.5)


def edit_run(**blocks: Change) -> Run:
    """A run without steps, as dampening leaves it."""
    return Run(edited=edited(**blocks), saved=Saved(False, 0.0, 3.0, "float32 safetensors"))


def test_an_edit_tells_how_much_it_changed_and_in_which_blocks():
    run = edit_run(
        **{"vit.layers.0": Change(20_000, 1_000_000, 4.0), "vit.layers.1": Change(10_000, 1_000_000, 1.4361)}
    )
    found = assert_inert(html.render(report(run=run)))
    assert "Numbers changed 30,000 of 2.0 M (1.50%)" in found.text
    dampened = "Numbers dampened 30,500, each more than 12.50 times as important to the forget set as to all data"
    assert dampened in found.text
    assert "Length of the change 4.25" in found.text
    assert "vit.layers.0 20,000 1.0 M 4.00 2.00% vit.layers.1 10,000 1.0 M 1.44 1.00%" in found.text
    assert ("style", "width: 100.0%") in found.attributes
    assert ("style", "width: 50.0%") in found.attributes


def test_of_very_many_blocks_the_most_changed_are_shown_in_their_order():
    edit = edited(**{f"block.{k}": Change(k, 100, 1.0) for k in range(100)})
    assert [block.name for block in html.blocks_of(edit)] == [f"block.{k}" for k in range(40, 100)]


def test_an_edit_that_changed_nothing_has_a_page_all_the_same():
    assert html.blocks_of(edited()) == html.blocks_of(edited(empty=Change(0, 0, 0.0))) == []
    [still] = html.blocks_of(edited(**{"a.0": Change(0, 5, 0.0)}))
    assert (still.share, still.width) == (0.0, 0.0)
    nothing = Run(edited=Edited(0, 5, 0.0, {"a.0": Change(0, 5, 0.0)}))
    assert "a.0 0 5 0 0.00%" in assert_inert(html.render(report(run=nothing))).text


def test_a_step_read_in_parts_because_memory_ran_out_is_told():
    text = Page(html.render(report(run=replace(RUN, parts=4)))).text
    assert "Read in parts 4 a step, since memory ran out" in text


MERGED = "Merged model against adapter"


def about(run: Run = RUN, **changed: object) -> dict[str, str]:
    """What the page says of a run, by fact."""
    return dict(html.about_run(replace(run, **changed)))


def test_what_a_run_aimed_at_and_where_it_ended_are_its_first_facts():
    assert list(about().items())[:5] == [
        ("Why it stopped", "forget loss 5.31 reached the level 5.20 (holdout)"),
        ("Kept", "step 22 of 24"),
        ("Forget loss to reach", "5.20, from holdout"),
        ("Budget for the retain loss", "0.10"),
        ("Numbers that could move", "1,224,000 in 90 layers, 0.91% of the model"),  # of 134,515,008
    ]


def test_an_adapter_is_compared_with_the_model_that_it_was_merged_into():
    assert about()[MERGED] == "logits within 1.2e-05"
    assert about(saved=Saved(True, 0.0, 3.0, "float32"))[MERGED] == "logits within 0"


def test_a_result_without_an_adapter_was_not_merged():
    assert MERGED not in about(edit_run())
    assert MERGED not in Page(html.render(report(run=edit_run()))).text


def test_a_model_that_was_rounded_when_it_was_written_is_said_to_be():
    """Trained in float32, written in bfloat16: there is no adapter, and yet the two differ."""
    told = about(saved=Saved(False, 0.03, 3.0, "bfloat16"))
    assert told["Saved model against the trained one"] == "logits within 0.03"
    assert MERGED not in told
    assert "Saved model against the trained one" not in about(saved=Saved(False, 0.0, 3.0, "float32"))


def test_blocks_that_an_adapter_left_on_are_told_among_the_facts():
    def groups(*left: int) -> Run:
        return replace(RUN, ended=replace(ENDED, groups=BlockGroups((0.4, 0.0, 0.01, 0.2), left)))

    assert "Blocks that still change 2 of 4 (from 0: 0, 3)" in Page(html.render(report(run=groups(0, 3)))).text
    assert about(groups())["Blocks that still change"] == "0 of 4"
    assert "Blocks that still change" not in about()
