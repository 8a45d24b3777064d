"""Plots: the same bytes each time, nothing that reaches outside, and places along a strip worked by hand."""

import itertools
import math
import re
from dataclasses import replace

from expunge.events import Checked, Step
from expunge.report.plots import COLOURS, curves, overlay
from expunge.report.strips import Span, strip
from expunge.report.tradeoff import Axis, Point, draw_tradeoff, part


def step(number, forget, retain=0.5, mlp=1.0):
    gradient, delta = {"mlp": mlp, "attention": 0.0}, {"frobenius": 0.1 * number, "spectral": 0.05 * number}
    return Step(number, -forget, forget, retain, gradient, delta, 1e-4, 9, 1.2)


def check(number, forget, retain=0.5, level=5.0):
    return Checked(number, forget, retain, level, 0.0)


RUN = [step(1, 0.5), step(2, 1.5), check(2, 1.6), step(3, 4.0), step(4, 5.5), check(4, 5.4)]


def ids(svg):
    return re.findall(r'\bid="([^"]+)"', svg)


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_run_has_three_plots():
    titles = ["Loss", "Gradient norm, by part of the network", "Size of the change to the weights"]
    drawn = curves(RUN, kept=4)
    assert drawn.count("<svg") == drawn.count("</svg>") == 3
    assert [text for text in texts(drawn) if text in titles] == titles


def test_the_same_steps_give_the_same_bytes():
    assert curves(RUN, kept=4) == curves(RUN, kept=4)
    assert overlay([("A", RUN)]) == overlay([("A", RUN)])


def test_no_two_plots_share_an_id_and_every_reference_has_its_target():
    page = curves(RUN) + overlay([("A", RUN), ("B", RUN)]) + draw_tradeoff([point("A", 0.1, 0.9, run=0)], *AXES)
    assert len(ids(page)) == len(set(ids(page)))
    wanted = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert wanted
    assert wanted <= set(ids(page))


def test_plots_reach_for_nothing_outside_and_style_nothing_but_themselves():
    drawn = curves(RUN, kept=4)
    assert "http" not in drawn
    assert "<style" not in drawn
    assert "<metadata" not in drawn
    assert "<!" not in drawn


def test_every_colour_is_left_to_the_page():
    assert len(set(COLOURS.values())) == len(COLOURS)  # else one would be replaced within another
    fixed = re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", curves(RUN, kept=4))
    assert fixed == []


def test_the_level_and_the_kept_step_are_named():
    assert "level 5.00" in texts(curves(RUN))  # from the checks
    assert {"level 5.20", "kept: step 4"} <= set(texts(curves(RUN, kept=4, level=5.2)))


def test_a_part_without_gradient_is_named_though_a_log_axis_cannot_draw_it():
    assert {"mlp", "attention: 0"} <= set(texts(curves(RUN)))


def test_no_steps_give_no_plot():
    assert curves([]) == ""
    assert overlay([("A", []), ("B", [])]) == ""


def test_what_was_not_recorded_leaves_a_gap_not_a_zero():
    nothing = {"retain": None, "gradient": {}, "delta": {}}
    drawn = curves([replace(step(n, forget), **nothing) for n, forget in enumerate((1.0, 2.0, 3.0, math.nan), start=1)])
    assert drawn.count("<svg") == 1
    assert "forget" in texts(drawn)
    assert "retain" not in texts(drawn)


def test_a_name_that_looks_like_a_formula_is_shown_as_it_is():
    line = replace(step(1, 0.5), gradient={"$x^2$": 1.0, "層": 2.0})
    assert {"$x^2$", r"\u5c64"} <= set(texts(curves([line])))


def test_thousands_of_steps_stay_small():
    many = [step(n, 5 / (1 + math.exp(-n / 1000)) + 0.1 * math.sin(n)) for n in range(1, 5001)]
    assert len(curves(many)) < 400_000


def test_each_line_is_named_where_it_ends():
    drawn = overlay([("A", RUN), ("B", [check(2, 1.6), check(4, 5.4)])])
    assert texts(drawn).count("A") == texts(drawn).count("B") == 2  # forget and retain


# The trade-off

AXES = Axis("Choice on forget", ideal=0.25), Axis("Choice on retain")


def point(label, forget, retain, run=None):
    return Point(label, Span(forget, forget - 0.1, forget + 0.1), Span(retain, retain - 0.1, retain + 0.1), run)


def test_the_tradeoff_names_every_model_and_the_ideal():
    drawn = draw_tradeoff([point("before", 0.9, 0.9), point("A", 0.2, 0.8, run=0), point("B", 0.3, 0.7, run=1)], *AXES)
    assert {"before", "A", "B", "ideal", "Choice on forget", "Choice on retain"} <= set(texts(drawn))
    assert 'aria-label="Trade-off. before: forget 0.9, kept 0.9; A: forget 0.2, kept 0.8;' in drawn


def test_an_interval_that_leaves_its_value_outside_is_still_drawn():
    assert "<svg" in draw_tradeoff([Point("A", Span(0.5, 0.6, 0.7), Span(0.5), run=0)], *AXES)


# Strips: an axis runs from 3 to 97 per cent of the width


def test_shares_stand_on_an_axis_from_0_to_1():
    placed = strip([("before", "before", Span(0.5, 0.25, 1.0))], ideal=0.0)
    assert (placed.start, placed.end, placed.ideal) == (0.0, 1.0, 3.0)
    (dot,) = placed.dots
    assert (dot.low, dot.at, dot.high) == (3 + 94 * 0.25, 3 + 94 * 0.5, 97.0)


def test_larger_values_stand_on_an_axis_that_ends_at_the_next_round_number():
    placed = strip([("before", "before", Span(0.1)), ("after", "after", Span(5.4))])
    assert (placed.start, placed.end) == (0.0, 6.0)
    assert [dot.at for dot in placed.dots] == [round(3 + 94 * 0.1 / 6, 2), round(3 + 94 * 5.4 / 6, 2)]


def test_values_below_0_widen_the_axis_on_their_side_only():
    placed = strip([("after", "after", Span(-3.2))])
    assert (placed.start, placed.end, placed.dots[0].at) == (-4.0, 0.0, round(3 + 94 * 0.8 / 4, 2))


def test_values_a_thousandfold_apart_stand_on_a_log_axis():
    placed = strip([("before", "before", Span(10.0)), ("after", "after", Span(100_000.0))])
    assert (placed.log, placed.start, placed.end) == (True, 10.0, 100_000.0)
    assert strip([("after", "after", Span(1000.0))], ideal=10.0).log is False  # a hundredfold is not


def test_what_is_no_number_has_no_dot_but_keeps_its_lane():
    placed = strip([("before", "before", Span(math.nan)), ("after", "after", Span(0.5, None, None))])
    assert [(dot.name, dot.lane, dot.low) for dot in placed.dots] == [("after", 1, None)]
    assert placed.lanes == 2


def test_numbers_at_the_edge_of_floats_have_a_place_or_none():
    for value in (0.0, -5e-324, 5e-324, 1e299, -1e299, 10**400, math.inf):
        placed = strip([("after", "after", Span(value)), ("before", "before", Span(1.5))])
        assert all(3 <= dot.at <= 97 for dot in placed.dots)


def test_values_that_pile_up_at_0_stand_on_a_log_axis():
    placed = strip([("before", "before", Span(0.16)), ("after", "after", Span(0.037, 0.004, 0.05))], ideal=0.029)
    assert (placed.log, placed.start, placed.end, placed.below) == (True, 0.01, 1.0, False)
    before, after = placed.dots
    assert before.at == round(3 + 94 * (math.log10(0.16) + 2) / 2, 2)
    assert after.low == 3.0  # it goes on beyond the axis
    nothing = strip([("before", "before", Span(0.0)), ("after", "after", Span(0.01)), ("A", "A", Span(0.5))], ideal=0.0)
    assert (nothing.log, nothing.below, nothing.dots[0].at) == (True, True, 3.0)
    assert strip([("before", "before", Span(0.9)), ("after", "after", Span(0.02))], ideal=0.6).log is False
    drawn = draw_tradeoff(
        [point("A", 0.01, 0.8, run=0), point("B", 0.002, 0.8, run=1), point("C", 0.5, 0.7, run=2)],
        Axis("Rouge"),
        Axis("Choice"),
    )
    assert "Rouge, log axis" in texts(drawn)
    assert "Choice" in texts(drawn)


def test_marks_that_would_cover_one_another_are_parted_and_the_others_stay():
    places = [(0.0, 0.0), (4.0, 0.0), (100.0, 0.0), (100.0, 0.0), (300.0, 0.0), (310.0, 0.0)]
    shifts = part(places, [False, False, False, False, True, False])
    now = [complex(*place) + complex(*shift) for place, shift in zip(places, shifts, strict=True)]
    assert min(abs(a - b) for a, b in itertools.combinations(now, 2)) > 17.8
    assert shifts[:2] == [(-7.0, 0.0), (7.0, 0.0)]  # 18 apart, each by half of what lacks
    assert shifts[4:] == [(0.0, 0.0), (8.0, 0.0)]  # a fixed one stays, the other goes all the way
    assert part([(0.0, 0.0), (18.0, 0.0)], [False, False]) == [(0.0, 0.0), (0.0, 0.0)]
