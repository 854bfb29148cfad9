"""aligner.markdown: the formats of figures, and the hidden characters, which page.js replaces by the same rule."""

import re
from pathlib import Path

import pytest

from aligner import markdown
from aligner.report import page

RATE = {"estimate": 0.41176, "low": 0.38, "high": 0.44}
BARE = {"estimate": -0.5, "low": None, "high": None}
NONE = {"estimate": None, "reason": "no prompt"}


@pytest.mark.parametrize(("value", "text"), [(None, "undefined"), (3, "3"), (0.0, "0.000"), (0.41176, "0.412"), (-0.5, "-0.500")])
def test_a_figure_has_three_decimals(value, text):
    assert markdown.figure(value) == text


@pytest.mark.parametrize(
    ("estimate", "interval", "both"),
    [(RATE, "0.380 to 0.440", "0.412 (0.380 to 0.440)"), (BARE, "", "-0.500"), (NONE, "", "undefined (no prompt)")],
)
def test_an_estimate_has_its_interval_or_the_reason_for_none(estimate, interval, both):
    assert markdown.interval(estimate) == interval
    assert markdown.with_interval(estimate) == both


@pytest.mark.parametrize(("p", "text"), [(1, "1.0000"), (0.0001, "0.0001"), (0.00009999, "below 0.0001"), (0.0, "below 0.0001")])
def test_a_p_value_has_four_decimals_or_a_bound(p, text):
    assert markdown.p_value(p) == text


def test_the_page_hides_the_same_characters():
    script = Path(page.__file__).with_suffix(".js").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"const HIDDEN = /(.+)/g;", script)
    hidden = re.compile(pattern)
    everything = [chr(code) for code in range(0x11000)]
    assert [c for c in everything if hidden.match(c)] == [c for c in everything if markdown.HIDDEN.match(c)] != []
