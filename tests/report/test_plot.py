"""The drawings of a page: what stands where, in numbers a reader can check."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vidlit.report.plot import Plot, nice_ticks


def drawn(plot, width=500, height=300):
    return ElementTree.fromstring(str(plot.svg(width, height)))


def texts(root):
    return [element.text for element in root.iter("text")]


def points(root, number=0):
    path = list(root.iter("path"))[number].attrib["d"]
    return np.array([[float(part) for part in point.split()] for point in re.split("[ML]", path)[1:]])


def test_a_curve_keeps_its_shape():
    plot = Plot("loss")
    plot.line([0, 10, 20], [1.0, 0.0, 1.0], "val", label="the end")
    root = drawn(plot)
    left, middle, right = points(root)
    assert left[0] < middle[0] < right[0]
    assert middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.2)
    assert left[1] == right[1] < middle[1]  # down the page is less
    assert {"0", "10", "20", "0.4", "1.0", "step", "the end"} <= set(texts(root))
    assert root.attrib["aria-label"] == "loss"
    assert all(0 <= place <= 500 for place, _ in points(root))


def test_marks_levels_and_bands_lie_where_the_curve_is():
    plot = Plot("loss")
    plot.band(-1, 0.5, "high")
    plot.band(5, 9, "risky")  # beyond what is drawn
    plot.line([0, 100], [0.0, 1.0], "val")
    plot.level(0.5, "stop", dashed=True)
    plot.mark(100, "best", "best 100")
    root = drawn(plot)
    (box,) = root.iter("rect")
    lines = [element.attrib for element in root.iter("line")]
    level = next(each for each in lines if "--stop" in each["style"])
    mark = next(each for each in lines if "--best" in each["style"])
    (_, low), (end, high) = points(root)
    assert float(level["y1"]) == pytest.approx((low + high) / 2, abs=0.1)
    assert float(box.attrib["y"]) == pytest.approx(float(level["y1"]), abs=0.1)
    assert float(mark["x1"]) == end
    assert "best 100" in texts(root)


def test_a_histogram_on_a_logarithmic_axis():
    plot = Plot("seen", x_ticks={1: "1", 10: "10", 100: "100"})
    plot.band(1, 10, "conservative", "few")
    plot.band(10, 100, "risky", "many")
    plot.bar(10, 20, 3, "train_eval")
    root = drawn(plot)
    few, many, bar = (
        {name: float(each.attrib[name]) for name in ("x", "y", "width", "height")} for each in root.iter("rect")
    )
    assert few["width"] == pytest.approx(many["width"], abs=0.2)
    assert bar["x"] == pytest.approx(many["x"], abs=0.2)
    assert bar["y"] + bar["height"] == pytest.approx(many["y"] + many["height"], abs=0.2)
    assert {"few", "many", "1", "10", "100", "3"} <= set(texts(root))


def test_ends_that_would_overlap_are_pushed_apart():
    plot = Plot("loss")
    plot.line([0, 1], [0, 1.0], "val", label="one")
    plot.line([0, 1], [0, 1.001], "train_eval", label="other")
    places = {each.text: float(each.attrib["y"]) for each in drawn(plot).iter("text") if each.text in ("one", "other")}
    assert abs(places["one"] - places["other"]) >= 14


def test_a_long_curve_keeps_its_peaks():
    values = np.zeros(50_000)
    values[[12_345, 40_000]] = 1.0, -1.0
    plot = Plot("loss")
    plot.line(np.arange(50_000), values, "train")
    root = drawn(plot)
    assert len(points(root)) <= 1000
    assert len(set(points(root)[:, 1])) == 3


@pytest.mark.parametrize(
    "values", [[], [np.nan], [np.inf, np.nan], [0.0], [0.3], [-2.0, -2.0], [1e9, 1e-9], [0.0, 0.0]]
)
def test_any_numbers_can_be_drawn(values):
    plot = Plot("any", zero=True)
    plot.line(range(len(values)), values, "val", label="end")
    assert "nan" not in str(plot.svg(500, 300))


def test_words_are_text():
    plot = Plot('<b>"')
    plot.line([0, 1], [0, 1], "val", label="<script>")
    assert "<script>" in texts(drawn(plot))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-36.8, 0.4), (0, 3.2e7), (0.01, 0.012), (-5, 5)])
def test_ticks_are_round_and_few(low, high):
    ticks = nice_ticks(low, high)
    within = [tick for tick in ticks if low <= tick <= high]
    assert 2 <= len(within) <= 7
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert len({f"{tick:.3g}" for tick in within}) == len(within)
