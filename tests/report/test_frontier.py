"""The frontier's pictures, tables and sentences, from made-up numbers of twenty methods."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from leftover.report import charts
from leftover.report.frontier import apart, frontier_svg, frontier_view, level_grid, standing_out, turns
from leftover.report.svg import _CLASSES, style_of
from tests.browser import visit

METHODS = ["nll", "a_lol_seq", "dpo", "kto", *(f"method_{i}" for i in range(16))]


def made_up(methods=METHODS):
    curves, points = {"best of n": line([0, 0.2, 0.6, 1.2, 1.8], 1.0)}, []
    for i, name in enumerate(methods):
        curves[name] = line([0, 1, 2, 4, 3 + i], 0.3 + 0.05 * i)
        points += [
            {"method": name, "kl": kl + 0.1, "reward": r, "judge/j": r, "length": r, "step": 1}
            for kl, r in zip(curves[name]["kl"][1:], curves[name]["reward"][1:], strict=True)
        ]
    at = {"mean": 0.5, "low": 0.25, "high": 0.75}
    turn = {"kl": 4.0, "best_kl": 2.0, "judge": at | {"mean": -0.5}, "reward": at}
    return {
        "name": "made up",
        "prompts": 128,
        "families": 100,
        "seeds": [0],
        "levels": [1.0, 8.0],
        "measures": ["reward", "judge/j", "length"],
        "curves": curves,
        "points": points,
        "table": {m: {name: [at, None] for name in curves} for m in ("reward", "judge/j", "length")},
        "over_optimised": {"judge/j": {"dpo": turn}},
        "scoring_caveats": [],
    }


def line(kl, slope):
    values = [slope * x**0.5 for x in kl]
    return {"kl": kl, "reward": values, "judge/j": values, "length": values}


def test_names_stand_apart_and_as_near_to_their_lines_as_they_can():
    assert apart([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert apart([0.5, 0.5, 0.55], 0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert apart([0.95, 0.97, 0.99], 0.1) == pytest.approx([0.8, 0.9, 1.0])  # not above the picture
    crowded = apart([0.5] * 30, 0.05)
    assert np.diff(crowded) == pytest.approx([0.05] * 29)


def test_of_many_methods_the_main_ones_stand_out():
    assert standing_out(METHODS) == {*METHODS[:6]}  # two that are not main, too
    assert standing_out(METHODS[-8:]) == {*METHODS[-8:]}


def test_methods_have_the_colour_and_dash_of_the_pages_other_pictures_and_begin_at_the_reference():
    methods = METHODS[:3]
    svg = frontier_view(made_up(methods))["charts"][0].svg
    for name in methods:
        assert f'stroke-{_CLASSES[style_of(name, methods)["color"]]}"' in svg
    curve = charts.curve("t", {name: {0: {1: 1.0, 2: 2.0}} for name in methods}, methods, {}, "l", (0.0, "reference"))
    dashes = [set(re.findall('stroke-dasharray="([^"]+)"', picture)) for picture in (svg, curve.svg)]
    assert len(dashes[1]) == 3 and len(dashes[0] & dashes[1]) >= 2, "those of two methods, drawn as wide"
    assert ">reference<" in svg and "stroke-neutral" in svg


def test_names_in_pictures_are_large_enough_and_do_not_touch():
    """A picture of 288 points is shown 330 pixels wide at least: 12 pixels are 10.5 points."""
    for chart in frontier_view(made_up())["charts"]:
        root = ElementTree.fromstring(chart.svg)
        texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
        assert min(float(e.get("font-size").removesuffix("px")) for e in texts) >= 10.5
        names = [e for e in texts if "".join(e.itertext()).startswith(("method_", "best of n", "nll", "dpo"))]
        heights = sorted(float(re.findall(r"-?[\d.]+", e.get("transform"))[-1]) for e in names)
        assert len(heights) == 19 and np.diff(heights).min() > 10


def test_the_picture_has_a_panel_a_measure_and_every_name_in_each():
    svg = ElementTree.fromstring(frontier_svg(made_up()))
    texts = ["".join(e.itertext()) for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [texts.count(name) for name in ("best of n", "a_lol_seq", "method_15")] == [3, 3, 3]
    assert [texts.count(title) for title in ("Reward", "Judge j", "Length")] == [1, 1, 1]
    classes = " ".join(e.get("class", "") for e in svg.iter())
    assert "stroke-neutral" in classes and "stroke-series-3" in classes and "#000" not in classes


def test_a_measure_without_numbers_leaves_its_picture_empty():
    results = made_up(["nll", "dpo"])
    for curve in results["curves"].values():
        curve["judge/j"] = [None] * 5
    for point in results["points"]:
        point["judge/j"] = None
    assert "KL to the reference" in frontier_svg(results)
    chart = frontier_view(results)["charts"][1]
    assert "nll" not in chart.description and "best of n from" in frontier_view(results)["charts"][0].description


def test_a_level_that_is_not_reached_is_a_dash_and_the_farthest_is_told():
    grid = level_grid(made_up(["nll"]), "reward")
    assert grid.header == ["method", "KL 1", "KL 8", "farthest KL"]
    assert grid.cells == [
        ["best of n", "0.500 [0.250, 0.750]", "–", "1.8"],
        ["nll", "0.500 [0.250, 0.750]", "–", "4.0"],
    ]


def test_who_over_optimises_is_said_with_both_differences():
    (said,) = turns(made_up())
    assert said.startswith("dpo over-optimises from KL 4.0 on") and "at KL 2.0" in said
    assert "changed by -0.500 [+0.250, +0.750] and the reward by +0.500 [+0.250, +0.750]" in said


def test_points_that_no_picture_shows_are_told():
    far = made_up(["nll"])
    far["curves"]["nll"]["kl"][-1] = 50.0
    assert any("nll: points beyond KL 20" in caveat for caveat in frontier_view(far)["caveats"])
    assert not any("beyond" in caveat for caveat in frontier_view(made_up(["nll"]))["caveats"])


def test_the_picture_alone_is_light_or_dark_as_the_reader_has_it(browser, tmp_path):
    (tmp_path / "frontier.svg").write_text(frontier_svg(made_up()), encoding="utf-8")
    found = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        visit(browser, tmp_path / "frontier.svg")
        style = "getComputedStyle(document.querySelector('{}')).{}"
        wanted = style.format("svg", "backgroundColor"), style.format(".stroke-series-0", "stroke")
        found[scheme] = browser.execute_script(f"return [{', '.join(wanted)}]")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found["light"] == ["rgb(255, 255, 255)", "rgb(11, 122, 112)"]
    assert found["dark"] == ["rgb(27, 30, 33)", "rgb(63, 196, 179)"]
