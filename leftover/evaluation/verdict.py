"""What came of a run in a sentence with numbers, and the caveats that a reader should know."""

from typing import Any


def verdict(results: dict[str, Any]) -> str:
    """One sentence with numbers, and the caveats that apply."""
    found = caveats(results)
    return headline(results) + (f" Caveats: {'; '.join(found)}." if found else "")


def headline(results: dict[str, Any]) -> str:
    """What came of the main policy, in one or two sentences with numbers and intervals."""
    main, primary = results["main"], results["primary"]
    row = results[primary]["table"][main]
    if not results["can_score_new_completions"]:
        others = [name for name in results["training"] if name != main]
        said = [_recorded(name, results[primary]["table"][name]) for name in (main, *others)]
        return (
            "The rewards are recorded, so new completions could not be scored. On held-out rows the log-ratio against "
            f"the reference orders the recorded rewards as follows: {'; '.join(said)}."
        )
    gain = row["difference_from_reference"]
    direction = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not clearly different from"
    against = [
        f"{name} by {other['difference']['mean']:+.3f} [{other['difference']['low']:+.3f}, "
        f"{other['difference']['high']:+.3f}]"
        for name, other in results[primary].get("main_against", {}).items()
        if other
    ]
    controls = f" Against its controls: {', '.join(against)}." if against else ""
    return (
        f"{main} scores {row['reward']['mean']:.3f} on {row['prompts']} held-out prompts, {direction} the reference "
        f"by {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}].{controls}"
    )


def caveats(results: dict[str, Any]) -> list[str]:
    """What a reader should know before believing the main policy's numbers."""
    main, primary = results["main"], results["primary"]
    row, reference = results[primary]["table"][main], results[primary]["table"]["reference"]
    found = []
    value = results["prepare"].get("value")
    if value and value["kind"] == "constant":
        found.append("no value estimate beat the constant on held-out prompts")
    if row["prompts"] < _FEW_PROMPTS:
        found.append(f"only {row['prompts']} test prompts")
    found += results.get("scoring_caveats", [])
    found += _cuts(results["prepare"])
    return found + completion_caveats(row, reference)


def completion_caveats(row: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """What to know of the completions of one policy, from its row of the result table and the reference's."""
    found = []
    diversity = row.get("distinct_2_relative")
    if diversity is not None and diversity < _LOW_DIVERSITY:
        found.append(f"it repeats itself: distinct-2 is {diversity:.2f} times the reference's at equal length")
    unended = row.get("unended", 0.0)
    # Cut more often than the reference, or so often that the reward is of beginnings.
    if unended > min(max(_MANY_UNENDED, 2 * reference.get("unended", 0.0)), _MOSTLY_UNENDED):
        found.append(f"{unended:.0%} of its completions ran into the length limit")
    correlation = row.get("reward_length_correlation")
    if correlation is not None and abs(correlation) > _HIGH_CORRELATION:
        kind = "longer" if correlation > 0 else "shorter"
        found.append(f"{kind} completions score higher (rank correlation of reward and length {correlation:+.2f})")
    kl = (row.get("kl") or {}).get("mean")
    if kl is not None and kl > _LARGE_KL:
        found.append(f"it is far from the reference: KL {kl:.1f} nats a completion")
    return found


def _cuts(prepared: dict[str, Any]) -> list[str]:
    """Shares of rows that the limits took away or cut, where they are large."""
    tokens = prepared.get("tokens", {"rows_dropped": 0, "prompts_cut": 0})
    rows = sum(prepared.get("split", {}).get(split, 0) for split in ("train", "validation", "test"))
    said = {
        "rows_dropped": "of the rows were too long and put aside",
        "prompts_cut": "of the prompts were cut on the left",
    }
    return [f"{tokens[name] / rows:.0%} {what}" for name, what in said.items() if tokens[name] > _MANY_CUT * rows]


_FEW_PROMPTS = 100
_MANY_CUT = 0.25
_LOW_DIVERSITY = 0.7  # of the reference's
_MANY_UNENDED, _MOSTLY_UNENDED = 0.2, 0.5
_HIGH_CORRELATION = 0.5
_LARGE_KL = 10.0  # nats a completion: the best of n samples is there at n = 60,000, since its KL is ln n - (n - 1) / n


def _recorded(name: str, row: dict[str, Any]) -> str:
    shown = {
        "rank correlation": row.get("logratio/rank_correlation"),
        "pair accuracy": row.get("logratio/pair_accuracy"),
    }
    parts = [f"{what} {number:.3f}" for what, number in shown.items() if number is not None and number == number]
    return f"{name} with {' and '.join(parts)}" if parts else f"{name}: no held-out row has a score"
