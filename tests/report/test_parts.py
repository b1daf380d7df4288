"""The parts of report.html that need no run: escaping, budget, pictures, caveats, curves."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from leftover.commands.compare.tables import method_caveats
from leftover.evaluation.caveats import caveats, run_caveats
from leftover.evaluation.statistics import reward_length_correlation
from leftover.evaluation.tables import escape
from leftover.monitoring.terminal import clock
from leftover.objectives import OBJECTIVES
from leftover.publish.card.facts import results_facts
from leftover.report import charts, terms
from leftover.report.completions import side_by_side
from leftover.report.curves import read_log, reference_level
from leftover.report.embedded import Embedded, as_script_json, embed, shorten
from leftover.report.figures import COLORS, GREY, series_style, thinned
from leftover.report.page import TEMPLATES, _explained
from leftover.report.reproduce import machines, stages
from leftover.report.svg import printable, style_of
from leftover.report.views import verdict_view, win_shares, with_main
from leftover.report.write import as_csv

HOSTILE = "</script><!--<script>x & y\u2028\u2029\ud800"


def test_embedded_json_holds_nothing_that_ends_a_script() -> None:
    text = as_script_json({"a": HOSTILE})
    assert not re.search(r"[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == {"a": HOSTILE}
    with pytest.raises(ValueError):
        as_script_json(float("nan"))  # which JSON.parse refuses


def test_a_long_text_loses_its_middle_and_no_more_than_it_must() -> None:
    assert shorten("abc", 3) == "abc" and shorten("abc", None) == "abc"
    short = shorten("a" * 50 + "b" * 50, 40)
    assert len(short) <= 40 and short.startswith("aaa") and short.endswith("bbb") and "[…]" in short


def unpacked(found: Embedded) -> dict[str, Any]:
    """What page.js reads."""
    text = found.text if found.encoding == "json" else gzip.decompress(base64.b64decode(found.text)).decode()
    return json.loads(text)


def test_what_exceeds_the_budget_is_compressed_then_shortened_then_left_out_and_said() -> None:
    digits = np.random.default_rng(0).integers(0, 10, (10, 3000))
    value = {"prompts": [{"id": i, "prompt": "".join(map(str, row))} for i, row in enumerate(digits)]}
    assert embed(value, 40_000) == Embedded(as_script_json(value), "json", "")
    whole = embed(value, 25_000)
    assert whole.encoding == "gzip" and unpacked(whole) == value | {"note": ""} and whole.note == ""
    shorter = embed(value, 15_000)
    shown = unpacked(shorter)["prompts"]
    assert len(shown) == 10 and all(len(p["prompt"]) <= 2000 for p in shown) and "2,000 characters" in shorter.note
    few = embed(value, 1000)
    shown = unpacked(few)["prompts"]
    assert 0 < len(shown) < 10 and f"{len(shown)} of 10 prompts are shown" in few.note
    assert all(len(e.text.encode()) <= most for e, most in ((whole, 25_000), (shorter, 15_000), (few, 1000)))


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_of_both_themes_can_be_told_from_what_is_behind_them(theme: int) -> None:
    """Contrast as WCAG 2.2 asks at level AA: 4.5 of text, 3 of lines that carry meaning."""
    css = (Path(charts.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([a-z0-9]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", css)
    colors = {name: pair[theme] for name, *pair in pairs}

    def contrast(a: str, b: str) -> float:
        light, dark = sorted((luminance(colors[a]), luminance(colors[b])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert luminance("#ffffff") == pytest.approx(1) and luminance("#000000") == 0
    text = [(ink, back) for ink in ("ink", "muted", "accent", "up", "down") for back in ("paper", "card", "wash")]
    faint = {pair: contrast(*pair) for pair in [*text, ("ink", "mark")] if contrast(*pair) < 4.5}
    lines = {
        name: contrast(name, "card")
        for name in colors
        if re.fullmatch(r"s\d|neutral", name) and contrast(name, "card") < 3
    }
    assert not faint and not lines


def test_a_kept_checkpoint_is_ringed_between_the_steps_that_were_logged() -> None:
    without, ringed = (charts.curve("t", {"p": {0: {10: 1.0, 20: 3.0}}}, ["p"], chosen, "l")
                       for chosen in ({"p": {30}}, {"p": {15}}))  # fmt: skip
    assert without is not None and ringed is not None and len(ringed.svg) > len(without.svg)


def test_the_reference_has_one_line_and_one_star_in_every_picture() -> None:
    names = ["reference", "p"]
    row: dict[str, Any] = {"reward": {"mean": 1.0, "low": 0.5, "high": 1.5}, "distinct_2_relative": 1.0}
    at = {"mean": 1.0, "low": 0.5, "high": 1.5}
    found = [
        picture("p"),
        charts.reward_against_diversity({"reference": row, "p": row}, names),
        charts.wins({"p": (0.5, 0.25, 0.25)}, names),
        charts.curve("t", {"p": {0: {1: 1.0, 2: 2.0}}}, names, {}, "l", (1.5, "reference")),
        charts.points("t", {"reference": [(0.0, at)], "p": [(1.0, at)]}, names, "x", "y"),
    ]
    for chart in found:
        assert chart is not None
        root = ElementTree.fromstring(chart.svg)
        lines = [e for e in root.iter() if "stroke-neutral" in e.get("class", "") and e.get("stroke-dasharray")]
        widths = {float(e.get("stroke-width", "0")) for e in lines}
        dashes = [[float(n) for n in e.get("stroke-dasharray", "").split(",")] for e in lines]
        assert lines and all(any(d == pytest.approx([8 * w, 3 * w]) for w in widths) for d in dashes), chart.title
        texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
        assert any(text.startswith("reference") for text in texts), chart.title
    assert found[3] is not None and found[3].description.endswith("; reference: 1.5.")


def test_what_the_reference_has_is_known_by_definition_or_measured_and_else_left_out() -> None:
    curves = {"p": {0: {0: 2.0, 10: 3.0}, 1: {0: 4.0, 10: 3.0}}}
    table = {"reference": {"reward": {"mean": 7.0}, "length": 5.0}}
    assert reference_level("eval_kl", curves, []) == (0.0, "reference")
    assert reference_level("eval_entropy", curves, [table]) == (3.0, "reference"), "before the first step"
    later = {"p": {0: {10: 3.0}}}
    assert reference_level("eval_reward/mean", later, [table]) == (7.0, "reference, test prompts")
    assert reference_level("eval_completions/mean_length", later, [table]) == (5.0, "reference, test prompts")
    assert reference_level("eval_reward/mean", later, [table, table]) is None, "of two decodings neither"
    assert reference_level("eval_reward/mean", later, [{}]) is None
    assert reference_level("eval_entropy", later, [table]) is None


def test_long_curves_are_drawn_by_means_of_neighbours() -> None:
    assert thinned([1.0, 2.0]).tolist() == [1.0, 2.0]
    assert thinned(range(400)).tolist()[:2] == [0.5, 2.5] and len(thinned(range(400))) == 200
    noise = np.random.default_rng(0).normal(size=20_000)
    picture = charts.curve("t", {"p": {0: dict(enumerate(noise))}}, ["p"], {"p": {15_000}}, "l")
    assert picture is not None and len(picture.svg) < 20_000


def picture(name: str) -> charts.Chart:
    rewards = {"reference": np.array([0.0, 1.0, 2.0]), name: np.array([1.0, 2.0, 3.0])}
    found = charts.reward_distribution(rewards, list(rewards))
    assert found is not None
    return found


def test_all_pictures_have_the_colours_of_the_page() -> None:
    style = (TEMPLATES / "page.css").read_text()
    assert tuple(re.findall(r"--s\d: light-dark\((#\w+),", style)) == COLORS
    assert re.findall(r"--neutral: light-dark\((#\w+),", style) == [GREY]
    styles = [style_of(name, [*"abcdefgh", "reference"]) for name in "abcdefgh"]
    assert [one["ls"] for one in styles] == [series_style(i)["ls"] for i in range(8)]
    grey = [(str(one["ls"]), one["marker"]) for one in styles]
    assert len(set(grey[:7])) == 7, "told apart without colour"


def test_pictures_follow_the_theme_and_hold_no_style_of_their_own() -> None:
    svg = picture("a policy").svg
    root = ElementTree.fromstring(svg)
    assert not [e for e in root.iter() if "style" in e.attrib or e.tag.endswith("}style")]
    assert "stroke-series-0" in svg and "fill-neutral" in svg, "the reference is grey"
    colors = {e.get(k) for e in root.iter() for k in ("fill", "stroke")} - {None, "none"}
    assert not colors, f"colours outside the theme: {colors}"
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    assert "a policy" in texts and "reward" in texts, "text is text"


def test_pictures_of_one_page_share_no_ids() -> None:
    found = [set(re.findall(r' id="([^"]+)"', picture("p").svg)) for _ in range(2)]
    assert found[0] and not found[0] & found[1]


def test_a_hostile_name_in_a_picture_is_text() -> None:
    name = "<script>$x_1$</script>\x00&"
    svg = picture(name).svg
    assert "<script" not in svg and "\x00" not in svg
    assert "$x_1$" in svg, "no formula is set"
    assert printable("a\x07b") == "a\N{REPLACEMENT CHARACTER}b" and len(printable("x" * 99)) == 28


def test_pictures_without_numbers_are_left_out() -> None:
    assert charts.reward_distribution({}, []) is None
    assert charts.advantage_histogram(np.empty(0)) is None
    assert charts.reward_against_value(np.empty(0), np.empty(0), []) is None
    assert charts.weight_curve(np.array([-1.0])) is None
    assert charts.curve("t", {"p": {0: {}}}, ["p"], {}, "l") is None


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [-2.0, -1.0], [0.5, 0.25, 1e6]])
def test_pictures_take_few_equal_and_extreme_numbers(values: list[float]) -> None:
    assert charts.advantage_histogram(np.array(values)) is not None
    assert charts.reward_distribution({"reference": np.array(values)}, ["reference"]) is not None


def record(group: int, reward: float | None, tokens: int = 3, **more: Any) -> dict[str, Any]:
    scored = {} if reward is None else {"reward": reward}
    return {"group": group, "decoding": "sampled", "text": "t", "tokens": tokens, **scored, **more}


def test_wins_ties_and_losses_are_of_the_same_prompts_over_all_seeds() -> None:
    reference = [record(0, 1.0), record(1, 1.0)]
    policy = {0: [record(0, 2.0), record(1, 1.0)], 1: [record(0, 2.0), record(1, 0.0)]}
    shares = win_shares({"reference": {0: reference}, "p": policy}, "sampled")
    assert shares == {"p": (pytest.approx(0.5), pytest.approx(0.25), pytest.approx(0.25))}
    tied = [record(i, 1.0) for i in range(12)]
    never_lost = win_shares(
        {"reference": {0: tied}, "p": {0: [record(i, 1.0 + (i < 5)) for i in range(12)]}}, "sampled"
    )
    assert never_lost["p"][2] == 0 and f"{never_lost['p'][2]:.0%}" == "0%", "not -0%"
    unscored = {"reference": {0: [record(0, None)]}, "p": {0: [record(0, None)]}}
    assert win_shares(unscored, "sampled") == {}


def test_completions_are_of_the_first_seed_of_the_recipe_and_rounded_for_the_page() -> None:
    rows = [{"group": 0, "source": None, "prompt": "p", "conversational": False, "completion": "own", "reward": np.nan}]
    records: Any = {
        "reference": {3: [record(0, 0.123456)]},
        "p": {1: [record(0, 1.0, text="seed 1")], 3: [record(0, 2.0, text="seed 3")]},
    }
    found = side_by_side(rows, records, "p", ["sampled"], seed=3)
    assert found["prompts"][0]["sampled"]["p"][0] == "seed 3" and found["names"] == ["data", "reference", "p"]
    shown = unpacked(embed(found, 10_000))["prompts"][0]
    assert shown["data"] == ["own", None] and shown["sampled"]["reference"] == ["t", 0.1235, 3, True, []]


def results(**row: Any) -> dict[str, Any]:
    shared = {"prompts": 200, "distinct_2": 0.5, "distinct_2_relative": 1.0, "reward": {"mean": 1.0}}
    table = {"reference": dict(shared), "p": shared | row}
    training: dict[str, Any] = {"p": {"0": {}, "1": {}}}
    return {"main": "p", "primary": "sampled", "prepare": {}, "sampled": {"table": table}, "training": training}


def test_reward_that_goes_with_length_and_a_large_kl_are_caveats() -> None:
    assert caveats(results(reward_length_correlation=0.3, kl={"mean": 5.0})) == []
    [length] = caveats(results(reward_length_correlation=-0.8))
    assert "shorter completions score higher" in length and "-0.80" in length
    [far] = caveats(results(kl={"mean": 12.0}))
    assert "KL 12.0 nats" in far
    assert reward_length_correlation([record(0, float(i), tokens=i) for i in range(5)]) == pytest.approx(1)
    assert reward_length_correlation([record(0, None)]) is None


def of_lengths(ours: float, theirs: float = 100.0, **row: Any) -> dict[str, Any]:
    """Results of a policy and a reference of these mean lengths, with a win rate at equal length."""
    rates = {"win_rate": 0.8, "win_rate_at_equal_length": 0.52, "pairs_of_equal_length": 134}
    given = results(length=ours, **(rates | row))
    given["sampled"]["table"]["reference"] |= {"length": theirs, "unended": 0.3}
    return given


@pytest.mark.parametrize(
    ("ours", "unended", "said"),
    [
        (79.0, 0.0, ["0.79 times as long"]),
        (80.0, 0.05, []),
        (125.0, 0.0, []),
        (126.0, 0.0, ["1.26 times as long"]),
        (100.0, 0.06, ["6% of its completions have no end", "30% of the reference's"]),
        (200.0, 0.5, ["2.00 times as long", "50% of its completions have no end"]),
    ],
)
def test_another_length_than_the_references_is_a_caveat_with_the_win_rate_at_equal_length(
    ours: float, unended: float, said: list[str]
) -> None:
    found = caveats(of_lengths(ours, unended=unended))
    assert len(found) == bool(said) and all(part in found[0] for part in said)
    assert not said or "at equal length its win rate is 0.52 (134 pairs)" in found[0]
    if said:
        [few] = caveats(of_lengths(ours, unended=unended, pairs_of_equal_length=12))
        assert "too few pairs to tell (12 pairs)" in few and "0.52" not in few
        recorded = of_lengths(ours, unended=unended)
        del recorded["sampled"]["table"]["p"]["win_rate"]
        assert "equal length" not in caveats(recorded)[0], "nothing was scored"


def test_a_control_that_owes_its_reward_to_length_is_named_wherever_caveats_are() -> None:
    given = of_lengths(100.0)
    table = given["sampled"]["table"]
    table["long"] = table["p"] | {"length": 300.0}
    table["data"] = table["p"] | {"length": 900.0}
    [found] = caveats(given)
    assert found.startswith("long: its completions are 3.00 times as long")
    for row in table.values():
        row |= {name: {"mean": 0.0, "low": -1.0, "high": 1.0} for name in ("reward", "difference_from_reference")}
        row["seeds"] = [0]
    assert verdict_view(given | {"can_score_new_completions": True})["caveats"] == [found]
    assert found in results_facts(given | {"can_score_new_completions": True}, "p", 0)["caveats"]
    of_control = caveats(given | {"main": "long"})
    assert len(of_control) == 1 and of_control[0].startswith("its completions are 3.00")


def test_rows_that_were_cut_and_never_end_are_a_caveat() -> None:
    given = results()
    given["prepare"] = {"tokens": {"rows_dropped": 0, "prompts_cut": 0, "share_cut": 0.12}, "split": {"train": 50}}
    [found] = caveats(given)
    assert "12% of the rows were cut" in found and "no end" in found
    given["prepare"]["tokens"]["share_cut"] = 0.01
    assert caveats(given) == []


def test_a_comparison_speaks_of_the_method_of_highest_reward() -> None:
    given = results(reward={"mean": 3.0})
    given["sampled"]["table"]["q"] = given["sampled"]["table"]["p"] | {"reward": {"mean": 4.0}}
    given["training"]["q"] = {"0": {}}
    del given["main"]
    found = with_main(given, {"reference": {0: [record(0, 1.0)]}})
    assert found["main"] == "q" and found["is_comparison"]


def test_metrics_of_a_killed_run_are_read_up_to_its_half_line(tmp_path: Any) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2}]
    (tmp_path / "flipped.jsonl").write_bytes(
        b'{"step": 1}\n\xb9{"step": 2}\n17\n{"stfp": 3}\n{"step": 4}\n' + b"[" * 10**5
    )
    assert read_log(tmp_path / "flipped.jsonl") == [{"step": 1}, {"step": 4}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_what_stages_took_is_said_in_units_that_suit() -> None:
    assert [clock(s) for s in (7.46, 516, 3725)] == ["7.5 s", "8 min 36 s", "1 h 02 min"]
    cost = {"seconds": 90.0, "sessions": 2, "peak_memory": 5 * 2**20}
    before_costs = {"seconds": 10.0, "peak_memory": 3 * 2**20, "peak_memory_of": "gpu", "resumed_at": 4}
    found = stages({"a": before_costs, "b": {"num_rows": 3}, "c": {"cost": cost}, "d": {"complete": False}})
    assert found.header == ["stage", "wall time", "peak memory", "peak GPU memory"]
    assert found.cells == [
        ["a", "10.0 s since step 4", "not recorded", "3.0 MiB"],
        ["b", "not recorded", "not recorded", "not recorded"],
        ["c", "1 min 30 s in 2 sessions", "5.0 MiB", "not recorded"],
        ["all that is recorded", "1 min 40 s", "5.0 MiB", "3.0 MiB"],
    ]


def test_machines_are_told_once_with_the_stages_that_ran_on_them() -> None:
    small = {
        "system": "Linux x86_64", "processor": "P", "cores": 2, "memory": 4 * 2**30, "gpus": [], "python": "3.11.0",
        "packages": {"torch": "1"},
    }  # fmt: skip
    large = small | {"gpus": ["G", "G"]}
    given = {"a": {"cost": {"machines": [small]}}, "b": {"cost": {"machines": [small, large]}}, "c": {"seconds": 3.0}}
    [first, second] = machines(given)
    assert first["stages"] == ["a", "b"] and second["stages"] == ["b"]
    assert first["hardware"] == "Linux x86_64, P, 2 cores, 4.0 GiB of memory" and second["hardware"].endswith(", 2 x G")
    assert first["versions"] == "Python 3.11.0, torch 1"


def test_limits_that_take_many_rows_are_a_caveat() -> None:
    given = results()
    given["prepare"] = {
        "tokens": {"rows_dropped": 30, "prompts_cut": 20},
        "split": {"train": 70, "validation": 5, "test": 25},
    }
    [found] = caveats(given)
    assert "30% of the rows were too long" in found


def test_clipped_importance_weights_and_steps_left_out_are_a_caveat_of_the_policy_alone() -> None:
    given = results()
    given["training"] = {"p": {"0": {"clipped_weights": 0.2}, "1": {}}, "q": {"0": {"clipped_weights": 0.9}}}
    assert caveats(given) == []
    given["training"]["p"]["1"] = {"clipped_weights": 0.4, "skipped_steps": 2}
    clipped, skipped = caveats(given)
    assert clipped.startswith("40% of the importance weights of the last steps are beyond the clip")
    assert skipped == "2 steps were left out, since numbers were not finite"


def test_few_pairs_are_a_caveat_as_few_rows_are_of_the_controls_too() -> None:
    given = results()
    given["training"] = {"p": {"0": {"selected_rows": 400, "groups": 99}, "1": {"selected_rows": 500, "groups": 120}}}
    assert caveats(given) == ["it learnt from 99 pairs or groups of answers only"]
    assert method_caveats(given, "sampled") == {"p": caveats(given)}, "of a comparison"
    given["training"]["p"]["0"]["groups"] = 100
    assert caveats(given) == [] == list(method_caveats(given, "sampled"))
    given["sampled"]["table"]["nll"] = dict(given["sampled"]["table"]["p"])
    given["training"]["nll"] = {"0": {"selected_rows": 12}}
    assert caveats(given) == ["nll: it learnt from 12 rows only"]


def test_empty_completions_are_a_caveat_of_either_decoding() -> None:
    assert caveats(results(empty=0.04)) == []
    assert caveats(results(empty=0.2)) == ["20% of completions are empty"]
    given = results()
    given["greedy"] = {"table": {"reference": {"prompts": 200}, "p": {"prompts": 200, "empty": 0.5}}}
    assert caveats(given) == ["greedy: 50% of completions are empty"]


def test_what_is_true_of_the_whole_run_is_told_of_a_comparison_too() -> None:
    given = results()
    given["prepare"] = {"value": {"kind": "constant"}}
    given["sampled"]["table"]["reference"]["prompts"] = 20
    found = run_caveats(given)
    assert len(found) == 2 and "constant" in found[0] and "20 test prompts" in found[1]
    assert caveats(given)[:2] == found


def test_no_control_mark_reaches_markdown_and_no_formula_a_table() -> None:
    assert escape("\x1b]0;owned\x07 \u202egnp <b>") == r"\\x1b]0;owned\\x07 \\u202egnp \<b\>"
    written = as_csv([{"policy": "=cmd|' /C calc'!A0", "reward": -0.5}, {"policy": "@sum", "reward": 1.0}])
    assert written.splitlines()[1:] == ["'=cmd|' /C calc'!A0,-0.5", "'@sum,1.0"]


def test_every_term_is_explained_where_it_first_stands_and_every_objective_has_a_line() -> None:
    text = "KL to the reference (KL 12), of a_kl_reference, not preference; its effective sample size, R² and nll_top"
    found = list(terms.parts(text))
    assert "".join(piece for piece, _ in found) == text
    assert [piece for piece, meaning in found if meaning] == ["KL", "reference", "effective sample size", "R²"]
    assert terms.meaning_of("Value") == terms.WORDS["value"] and terms.meaning_of("its value") is None
    assert terms.meaning_of("Held-out NLL") == terms.WORDS["NLL"] and terms.meaning_of("steps") is None
    assert {*OBJECTIVES, "ppo"} == {*terms.OBJECTIVES}
    named = terms.names_explained({"best": {"objective": "nll", "rows": "top"}, "mine": {"objective": "of a package"}})
    assert named["best"].endswith("of the highest scores alone.") and "mine" not in named and "reference" in named


def test_an_explained_text_is_still_text() -> None:
    found = str(_explained("<b>KL</b> & \x00"))
    assert "<b>" not in found and "&lt;b&gt;<span" in found and ">KL</span>" in found and "\x00" not in found
