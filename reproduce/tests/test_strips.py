"""Band strips: what stands where, for linear and logarithmic bands, far values, and truth values."""

import dataclasses
import math
import re
from xml.etree import ElementTree

import pytest

from gdyn_reproduce.claims import Between, Claim, Holds
from gdyn_reproduce.strips import MARGIN, WIDTH, band_strip
from gdyn_reproduce.verdicts import judge_all


def verdict(accept, values, paper=None, **changes):
    claim = Claim("c", "It is so.", "Sec. 1", "m", accept, "because", paper, no_control="none")
    (found,) = judge_all([claim], {"m": values}, scale="paper size", preset="paper")
    return dataclasses.replace(found, **changes)


def places(svg, kind):
    root = ElementTree.fromstring(svg)
    return [
        float(item.get("cx") or item.get("x") or re.match("M([0-9.]+)", item.get("d"))[1])
        for item in root.iter()
        if item.get("class") == kind
    ]


def test_order_of_band_seeds_and_paper():
    svg = band_strip(verdict(Between(1.0, 3.0), [0.5, 2.0, 2.5], 1.5))
    (left,) = places(svg, "band")
    width = float(re.search('class="band".*?width="([0-9.]+)"', svg)[1])
    seeds, (paper,) = places(svg, "seed"), places(svg, "paper")
    assert seeds[0] < left < paper < seeds[1] < seeds[2] < left + width
    assert all(MARGIN <= x <= WIDTH - MARGIN for x in seeds)


def test_many_decades_are_logarithmic():
    svg = band_strip(verdict(Between(1e-6, 1e2), [1e-2, 1.1e-2]))
    (left,) = places(svg, "band")
    width = float(re.search('class="band".*?width="([0-9.]+)"', svg)[1])
    assert (places(svg, "seed")[0] - left) / width == pytest.approx(0.5, abs=0.01)  # half way in decades


def test_values_that_are_not_finite_are_left_out():
    assert len(places(band_strip(verdict(Between(0, 2), [1.0, math.nan, 1.2])), "seed")) == 2
    assert band_strip(verdict(Between(0, 2), [math.nan, math.inf])) == ""


def test_truth_values_stand_as_their_share():
    svg = band_strip(verdict(Holds(), [True, True, True, False]))
    assert len(places(svg, "seed")) == 1
    assert "ours 0.75" in svg


def test_a_one_sided_band_reaches_the_edge():
    svg = band_strip(verdict(Between(1.0, math.inf), [2.0, 2.1]))
    assert svg.count("<text") == 1


def test_text_is_escaped():
    svg = band_strip(verdict(Between(0, 2), [1.0, 1.1], band="<b>"))
    assert "<b>" not in svg
    ElementTree.fromstring(svg)
