"""The result table, from completions of four prompts in two families."""

import json
import math
from typing import Any

import numpy as np
import pytest

from leftover.evaluation.caveats import caveats
from leftover.evaluation.measures import excludes_zero, interval, number
from leftover.evaluation.policy import order_intervals
from leftover.evaluation.statistics import by_source, compare, interval_record, summarise
from leftover.evaluation.verdict import headline, outcome, verdict, winner
from leftover.metrics import pair_accuracy, rank_correlation

L = math.log(2)
FAMILIES = ["a", "a", "b", "b"]


def make_records(rewards, tokens=(2, 2, 2, 2), decoding="greedy", text="x y", logprob=-2 * L, **columns):
    """One record a prompt; `columns` hold one number a prompt."""
    return [
        {"group": i, "family": FAMILIES[i], "decoding": decoding, "text": text, "tokens": tokens[i]}
        | {"reward": reward, "logprob": logprob, "reference_logprob": -4 * L}
        | {name: values[i] for name, values in columns.items()}
        for i, reward in enumerate(rewards)
    ]


REFERENCE = make_records([1.0, 1.0, 2.0, 2.0])
OURS = {0: make_records([1.0, 2.0, 3.0, 0.0]), 7: make_records([3.0, 2.0, 3.0, 2.0])}


def row_of(ours=OURS, reference=REFERENCE, metrics=None, decoding="greedy"):
    return summarise(ours, reference, metrics or {}, decoding)


def without(records, *names):
    return [{n: v for n, v in record.items() if n not in names} for record in records]


def test_rewards_are_averaged_over_seeds_with_each_seed_beside_them():
    row = row_of()
    # Seeds averaged, the prompts have 2, 2, 3 and 1.
    assert row["reward"]["mean"] == 8 / 4
    assert row["reward_by_seed"] == {0: 6 / 4, 7: 10 / 4}
    assert row["seeds"] == [0, 7] and row["prompts"] == 4


def test_the_difference_from_the_reference_is_paired_by_prompt():
    # 2 2 3 1 less 1 1 2 2 is 1 1 1 -1; family a has the mean 1, family b 0: 1/2 -+ 12.706 x 1/2.
    ends = {"low": pytest.approx(0.5 - 12.706 / 2, abs=1e-3), "high": pytest.approx(0.5 + 12.706 / 2, abs=1e-3)}
    assert row_of()["difference_from_reference"] == {"mean": 2 / 4, **ends, "families": 2}


def test_intervals_resample_whole_families():
    # Family means 2 and 2 leave nothing to resample, though the prompts differ.
    assert row_of()["reward"] == {"mean": 2, "low": 2, "high": 2, "families": 2}


@pytest.mark.parametrize(("count", "said"), [(7, {"families": 7}), (8, {}), (40, {})])
def test_an_interval_of_too_few_families_says_so(count, said):
    found = interval_record(np.arange(2.0 * count), np.repeat(np.arange(count), 2))
    assert found.keys() - {"mean", "low", "high"} == said.keys() and found | said == found
    assert ("too few to tell: 7 families" in interval(found)) == bool(said)
    assert excludes_zero(found) == (not said)


NO_MORE = {"prepare": {}, "training": {}, "can_score_new_completions": True}


def scored(mean: float, **more: Any) -> dict[str, Any]:
    return {"prompts": 40, "reward": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}, "win_rate": 0.9} | more


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.4, 0.6, "Better"), (-0.1, 0.6, "No clear difference"), (-0.6, -0.4, "Worse")],
)
def test_the_verdict_begins_with_whether_it_is_better(low: float, high: float, expected: str) -> None:
    mean = (low + high) / 2
    row = scored(1 + mean, difference_from_reference={"mean": mean, "low": low, "high": high})
    results = NO_MORE | {"main": "p", "primary": "greedy", "greedy": {"table": {"p": row, "reference": scored(1.0)}}}
    beaten = {"difference": {"mean": 0.3, "low": 0.1, "high": 0.5}}
    even = {"difference": {"mean": 0.3, "low": -0.1, "high": 0.5}}
    results["greedy"]["main_against"] = {"nll": beaten, "top": even, "failed": None}
    said = headline(results)
    assert said.startswith(
        f"{expected}: on 40 held-out prompts the answers of the tuned model (p) score {1 + mean:.3f}, "
    )
    assert f"those of the reference, from which it started, 1.000 ({mean:+.3f} [{low:+.3f}, {high:+.3f}])" in said
    assert "); they win on 90% (ties count half)" in said
    assert "it beats nll (+0.300 [+0.100, +0.500]) and is not clearly apart from top (" in said and "failed" not in said
    assert outcome(results, "p") in said and "Against" not in outcome(results, "p")


def test_a_comparison_names_its_winner_or_says_that_there_is_none() -> None:
    table = {"data": scored(9.0), "reference": scored(1.0), "a": scored(2.0), "b": scored(1.8)}
    lead = {"difference": {"mean": 0.2, "low": 0.1, "high": 0.3}}
    own = {"table": table, "marks": {"reward": {"a": "best"}}, "lead": lead}
    results = NO_MORE | {"primary": "greedy", "greedy": own}
    assert headline(results) == winner(results) == headline(results | {"main": "b"})
    assert winner(results) == (
        "Best: a. On 40 held-out prompts its answers score 2.000, those of the next, b, 1.800, by +0.200 [+0.100, "
        "+0.300]; the reference, from which all started, has 1.000."
    )
    own |= {"marks": {}, "lead": None}  # of an earlier version
    assert winner(results) == (
        "No winner. On 40 held-out prompts the two highest, a with 2.000 and b with 1.800, cannot be told apart; the "
        "reference, from which all started, has 1.000."
    )
    table["reference"] = scored(1.9)
    assert winner(results).endswith(
        "a with 2.000 and the reference (from which all started) with 1.900, cannot be told apart."
    )


def test_of_recorded_scores_the_verdict_claims_nothing_and_says_how_to_find_out() -> None:
    rank = {"mean": 0.5, "low": 0.4, "high": 0.6, "rows": 30}
    table = {"p": {"logratio/rank_correlation": rank}, "q": {"logratio/pair_accuracy": 0.7}, "reference": {}}
    results = {"main": "q", "primary": "greedy", "greedy": {"table": table}, "training": {"p": {}, "q": {}}}
    said = headline(results | {"can_score_new_completions": False})
    assert "cannot say whether they are better" in said
    assert all(way in said for way in ("new_completions", "`leftover judge`", "`leftover judge --human`"))
    assert said.endswith("q pair accuracy 0.700; p rank correlation 0.500 [0.400, 0.600] (30 rows).")


def test_what_is_known_of_rows_and_seeds_is_a_caveat() -> None:
    split = {"train": 60, "validation": 20, "test": 20, "held_out_near_duplicates_of_train": 9}
    row = {"prompts": 200, "difference_from_data": {"mean": -0.5, "low": -0.6, "high": -0.4}}
    row["perplexity_of_test_completions"] = 40.0
    table = {"p": row, "reference": {"prompts": 200, "perplexity_of_test_completions": 4.0}}
    training = {"p": {"0": {"selected_rows": 57}}}
    results = {"main": "p", "primary": "greedy", "greedy": {"table": table}, "prepare": {"split": split}}
    seed, repeats, data, perplexity, rows = caveats(results | {"training": training})
    assert seed.startswith("one seed") and repeats.startswith("9 held-out prompts nearly repeat")
    assert data == "its answers score below the data's own (-0.500 [-0.600, -0.400])"
    assert "perplexity 40.0, 4.0 before" in perplexity and rows == "it learnt from 57 rows only"


def test_the_order_of_recorded_rewards_has_intervals_by_family() -> None:
    draws = np.random.default_rng(0)
    rewards = draws.normal(size=200)
    ratios, groups = rewards + draws.normal(size=200), np.arange(200) // 4
    found = order_intervals(ratios, rewards, groups, groups // 2)
    rank, pairs = found["logratio/rank_correlation interval"], found["logratio/pair_accuracy interval"]
    assert rank["low"] < rank_correlation(ratios, rewards) < rank["high"] and rank["rows"] == 200
    accuracy, count = pair_accuracy(ratios, rewards, list(groups))
    assert pairs["low"] < accuracy < pairs["high"] and pairs["pairs"] == count == 300
    assert pairs["high"] - pairs["low"] < 0.2
    assert order_intervals(ratios, np.ones(200), groups, groups) == {}


def test_of_too_few_families_the_verdict_claims_nothing():
    reference = {"prompts": 12, "reward": {"mean": 1.0, "low": 0.9, "high": 1.1, "families": 3}}
    gain = {"mean": 0.5, "low": 0.4, "high": 0.6, "families": 3}
    row = reference | {"difference_from_reference": gain, "win_rate": 0.7}
    results = NO_MORE | {"main": "p", "primary": "greedy", "greedy": {"table": {"p": row, "reference": reference}}}
    said = verdict(results)
    assert said.startswith("Too few prompts to tell: on 12 held-out prompts") and "too few to tell: 3 families" in said
    assert "12 test prompts of 3 families" in said


def test_the_win_rate_is_of_each_seed_and_a_tie_is_one_half():
    # Seed 0: tie, win, win, loss; seed 7: win, win, win, tie.
    assert row_of()["win_rate"] == (2.5 / 4 + 3.5 / 4) / 2


def test_the_win_rate_at_equal_length_is_over_all_pairs_of_all_seeds():
    # Seed 0 keeps its first two prompts (tie, win), seed 7 only its last (tie).
    ours = {0: make_records([1.0, 2, 3, 0], (2, 2, 9, 9)), 7: make_records([3.0, 2, 3, 2], (9, 9, 9, 2))}
    row = row_of(ours)
    assert row["pairs_of_equal_length"] == 3
    assert row["win_rate_at_equal_length"] == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_without_a_pair_of_equal_length_there_is_no_such_rate():
    row = row_of({0: make_records([1.0] * 4, (50,) * 4)})
    assert (row["win_rate_at_equal_length"], row["pairs_of_equal_length"]) == (None, 0)


def test_components_and_judges_have_intervals_of_their_own():
    columns = {"reward/joy": [1.0, 2, 3, 4], "judge/taste": [0.0, 0, 1, 1]}
    row = row_of({0: make_records([1.0] * 4, **columns)}, make_records([1.0] * 4, **columns))
    assert row["reward/joy"]["mean"] == 2.5 and row["judge/taste"]["mean"] == 0.5
    assert row["judge/taste"]["high"] - row["judge/taste"]["low"] == pytest.approx(12.706, abs=1e-3)


def test_length_and_diversity_are_averaged_over_seeds():
    ours = {
        0: make_records([1.0] * 4, (1, 2, 3, 4), text="a b"),
        1: make_records([1.0] * 4, (5,) * 4, text="a a"),
    }
    row = row_of(ours)
    assert row["length"] == (2.5 + 5) / 2
    assert row["distinct_1"] == pytest.approx((2 / 8 + 1 / 8) / 2)
    assert row["distinct_2"] == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert row["distinct_3"] == 0


def test_diversity_is_also_given_relative_to_the_reference_both_cut_to_the_shorter():
    # "a b c d" against "x y" is cut to "a b": one bigram, four times, as the reference's.
    row = row_of({0: make_records([1.0] * 4, text="a b c d")})
    assert row["distinct_2"] == 3 / 12 and row["distinct_2_relative"] == 1
    varied = [record | {"text": f"{i} b c d"} for i, record in enumerate(OURS[0])]
    assert row_of({0: varied})["distinct_2_relative"] == 4
    # The shorter of the two may be ours: then the reference is cut, and is not held against us.
    long = [record | {"text": f"x y {i}"} for i, record in enumerate(REFERENCE)]
    same = make_records([1.0] * 4, text="x y")
    assert row_of({0: same}, long)["distinct_2_relative"] == 1
    assert row_of({0: make_records([1.0] * 4, text="a")})["distinct_2_relative"] is None


def test_perplexity_is_a_token_and_not_a_completion():
    # Four completions of log-probability -4 L: 2^16 over 8 tokens is 2^2, over 16 tokens 2^1.
    assert row_of({0: make_records([1.0] * 4)})["own_perplexity_under_reference"] == pytest.approx(4)
    row = row_of({0: make_records([1.0] * 4, (1, 1, 1, 13))})
    assert row["own_perplexity_under_reference"] == pytest.approx(2)


def test_perplexity_under_the_base_is_there_where_there_is_a_base():
    column = {"base_logprob": [-6 * L] * 4}
    assert "own_perplexity_under_base" not in row_of()
    row = row_of({0: make_records([1.0] * 4, **column)}, make_records([1.0] * 4, **column))
    assert row["own_perplexity_under_base"] == pytest.approx(8)


def test_kl_is_the_mean_log_ratio_of_sampled_completions_only():
    assert "kl" not in row_of()
    ours = {
        0: make_records([1.0] * 4, decoding="sampled"),
        1: make_records([1.0] * 4, decoding="sampled", logprob=-L),
    }
    row = row_of(ours, make_records([1.0] * 4, decoding="sampled"), decoding="sampled")
    assert row["kl"]["mean"] == pytest.approx((2 * L + 3 * L) / 2)


def test_kl_of_tempered_samples_is_of_their_log_probabilities_at_the_temperature():
    columns = {"sampler_logprob": [-L] * 4, "sampler_reference_logprob": [-6 * L] * 4}
    tempered = make_records([1.0] * 4, decoding="sampled", **columns)
    row = summarise({0: tempered}, tempered, {}, "sampled", temperature=0.5)
    assert row["kl"]["mean"] == pytest.approx(5 * L)
    assert row["own_perplexity_under_reference"] == pytest.approx(4), "at temperature 1"
    plain = make_records([1.0] * 4, decoding="sampled")
    assert "kl" not in summarise({0: plain}, plain, {}, "sampled", temperature=0.5), "written before they were"


def test_only_the_asked_decoding_counts():
    ours = {0: OURS[0] + make_records([100.0] * 4, decoding="sampled")}
    assert row_of(ours, REFERENCE + make_records([50.0] * 4, decoding="sampled")) == row_of({0: OURS[0]})


def test_records_may_come_in_any_order():
    assert row_of({0: OURS[0][::-1]}, [REFERENCE[i] for i in (2, 0, 3, 1)]) == row_of({0: OURS[0]})


def test_without_a_reward_function_there_are_no_rewards_in_the_row():
    row = row_of({0: without(OURS[0], "reward")}, without(REFERENCE, "reward"))
    assert not {"reward", "win_rate", "difference_from_reference"} & row.keys()
    assert row["length"] == 2 and row["distinct_2"] == 1 / 4


def test_metrics_of_rows_are_averaged_and_kept_by_seed():
    metrics = {0: {"perplexity": 4.0, "logratio/pair_accuracy": 0.5}, 7: {"perplexity": 6.0}}
    row = row_of(metrics=metrics)
    assert row["perplexity_of_test_completions"] == 5 and row["perplexity by seed"] == [4, 6]
    assert row["logratio/pair_accuracy"] == 0.5 and "logratio/rank_correlation" not in row


def test_a_row_is_json():
    json.dumps(row_of(), allow_nan=False)


def test_other_prompts_than_the_reference_completed_are_not_compared():
    shifted = [record | {"group": record["group"] + 1} for record in OURS[0]]
    with pytest.raises((ValueError, AssertionError)):
        row_of({0: shifted})


# Completions without a reward (`evaluate.unfinished: drop`).

DROPPED = {0: make_records([1.0, None, 3.0, 0.0]), 7: make_records([3.0, None, None, 2.0])}


def test_a_completion_without_a_reward_is_in_no_mean():
    row = row_of(DROPPED)
    # Seeds averaged, the prompts have 2, none, 3 and 1: family a has 2, family b 2.
    assert row["reward"] == {"mean": 2, "low": 2, "high": 2, "families": 2, "prompts": 3}
    assert row["reward_by_seed"] == {0: 4 / 3, 7: 5 / 2}
    # 2, 3, 1 less 1, 2, 2.
    assert row["difference_from_reference"]["mean"] == pytest.approx(1 / 3)
    assert row["difference_from_reference"]["prompts"] == 3
    # Seed 0: tie, win, loss; seed 7: win, tie.
    assert row["win_rate"] == (1.5 / 3 + 1.5 / 2) / 2
    assert row["pairs_of_equal_length"] == 5 and row["win_rate_at_equal_length"] == pytest.approx(3 / 5)
    assert "of 3 prompts" in interval(row["reward"])
    json.dumps(row, allow_nan=False)


def test_a_prompt_counts_in_a_paired_comparison_where_both_have_a_reward():
    reference = make_records([1.0, 1.0, None, 2.0])
    row = row_of(DROPPED, reference)
    assert row["reward"]["prompts"] == 3 and row["difference_from_reference"]["prompts"] == 2
    # 2 and 1 less 1 and 2.
    assert row["difference_from_reference"]["mean"] == 0
    found = compare(DROPPED, {0: THEIRS[0], 7: make_records([3.0, 3.0, 3.0, None])}, "greedy")
    # Seed 0: 0, -, 2, -1; seed 7: 0, -, -, -; averaged 0, 2, -1.
    assert found["difference"]["prompts"] == 3 and found["difference"]["mean"] == pytest.approx(1 / 3)
    assert found["by_seed"] == {0: 1 / 3, 7: 0} and found["win_rate"] == (0.5 + 0.5) / 2


def test_where_none_has_a_reward_there_is_none_in_the_row():
    nothing = {0: make_records([None] * 4)}
    row = row_of(nothing)
    assert not {"reward", "win_rate", "difference_from_reference"} & row.keys() and row["length"] == 2
    assert compare(nothing, THEIRS, "greedy") is None
    results = NO_MORE | {"main": "p", "primary": "greedy", "greedy": {"table": {"p": row, "reference": row_of()}}}
    assert "none of its completions came to an end" in verdict(results)
    against_none = row_of({0: OURS[0]}, make_records([None] * 4))
    assert against_none["reward"]["mean"] == 1.5 and against_none["difference_from_reference"]["prompts"] == 0


def test_the_raw_reward_stands_beside_the_reward():
    columns = {"raw_reward": [5.0, 6.0, 7.0, 8.0]}
    row = row_of({0: make_records([1.0] * 4, **columns)}, make_records([1.0] * 4, **columns))
    assert row["raw_reward"]["mean"] == 6.5 and "raw_reward" not in row_of()


def test_the_length_ratio_is_of_mean_lengths():
    assert row_of({0: make_records([1.0] * 4, (1, 2, 3, 4)), 1: make_records([1.0] * 4, (5,) * 4)})["length_ratio"] == (
        3.75 / 2
    )


THEIRS = {0: make_records([1.0, 1.0, 1.0, 1.0]), 7: make_records([3.0, 3.0, 3.0, 3.0])}


def test_the_sources_of_test_prompts_are_kept_apart():
    where = {"source": ["helpful", "harmless", "helpful", "helpful"], "judge/held out": [0.0, 1.0, 2.0, 4.0]}
    ours = {seed: make_records([r["reward"] for r in records], **where) for seed, records in OURS.items()}
    found = by_source(ours, "greedy")
    assert {source: of["prompts"] for source, of in found.items()} == {"harmless": 1, "helpful": 3}
    # Seeds averaged, the prompts have 2, 2, 3 and 1.
    assert found["harmless"]["reward"]["mean"] == 2 and found["helpful"]["reward"]["mean"] == 6 / 3
    assert found["helpful"]["judge/held out"]["mean"] == 6 / 3
    assert by_source(OURS, "greedy") == {}, "one source is no division"


def test_policies_are_compared_prompt_by_prompt_over_the_seeds_they_share():
    found = compare(OURS, THEIRS, "greedy")
    # Seed 0: 0 1 2 -1; seed 7: 0 -1 0 -1; averaged 0 0 1 -1: both families have the mean 0.
    assert found["difference"] == {"mean": 0, "low": 0, "high": 0, "families": 2}
    assert found["by_seed"] == {0: 2 / 4, 7: -2 / 4}
    assert found["win_rate"] == ((0.5 + 1 + 1 + 0) / 4 + (0.5 + 0 + 0.5 + 0) / 4) / 2


def test_a_seed_that_only_one_policy_has_is_left_out():
    assert compare(OURS, {0: THEIRS[0]}, "greedy") == compare({0: OURS[0]}, THEIRS, "greedy")
    assert list(compare(OURS, {0: THEIRS[0]}, "greedy")["by_seed"]) == [0]


def test_a_comparison_turned_round_changes_sign():
    found, turned = compare({0: OURS[0]}, THEIRS, "greedy"), compare(THEIRS, {0: OURS[0]}, "greedy")
    assert turned["difference"]["mean"] == -found["difference"]["mean"]
    assert turned["win_rate"] == 1 - found["win_rate"]


def test_without_shared_seeds_or_rewards_there_is_no_comparison():
    assert compare({0: OURS[0]}, {7: THEIRS[7]}, "greedy") is None
    assert compare({0: without(OURS[0], "reward")}, {0: without(THEIRS[0], "reward")}, "greedy") is None


def test_completions_without_text_are_counted_where_there_are_some():
    ours = {0: make_records([1.0, 2.0, 3.0, 0.0])}
    ours[0][2]["text"] = " \n"
    assert row_of(ours)["empty"] == 1 / 4
    assert "empty" not in row_of()


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (-0.001, ".2f", "0.00"),
        (-0.0001, "+.3f", "+0.000"),
        (-0.01, ".2f", "-0.01"),
        (0, ",d", "0"),
        (-0.0, ".0%", "0%"),
    ],
)
def test_what_is_rounded_to_nothing_has_no_minus(value: float, form: str, shown: str) -> None:
    assert number(value, form) == shown
