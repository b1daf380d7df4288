"""What a reader should know before believing the numbers of a run, one line each."""

from collections.abc import Mapping
from typing import Any

from leftover.evaluation.measures import FEW_PAIRS, MEASURES, interval
from leftover.prepare.value.described import constant_folds
from leftover.runs.names import decodings
from leftover.runs.records import ResultRow

_FEW_PROMPTS = 100
_MANY_CUT = 0.25
_MANY_EMPTY = 0.05
_LOW_DIVERSITY = 0.7  # of the reference's
_MANY_UNENDED, _EQUAL_LENGTH = 0.05, (0.8, 1.25)  # over the reference's mean length
_MANY_ROWS_CUT = 0.01  # each teaches not to stop
_HIGH_CORRELATION = 0.5
_MANY_CLIPPED = 0.25  # importance weights of the last logged steps
_LARGE_KL = 10.0  # nats a completion: what the best of n = 60,000 samples has, since its KL is ln n - (n - 1) / n
_MANY_REPEATS = 0.05  # of the held-out rows
_FEW_ROWS = 200  # that a policy draws from
_FEW_GROUPS = 100  # of two rows at least, each of which says one thing: that an answer is better than another
_PERPLEXITY_EXPLODES = 3.0  # x the reference's


def caveats(results: Mapping[str, Any]) -> list[str]:
    """What a reader should know before believing the main policy's numbers, and of its controls length and few rows."""
    primary, main = results["primary"], results["main"]
    table = results[primary]["table"]
    found = [
        *run_caveats(results),
        *completion_caveats(table[main], table["reference"]),
        *data_caveats(table[main], table["reference"]),
        *training_caveats(results["training"].get(main, {})),
    ]
    for name in (name for name in table if name not in (main, "reference", "data")):
        of_rows = few_rows_caveat(results["training"].get(name, {}))
        found += [f"{name}: {said}" for said in (length_caveat(table[name], table["reference"]), of_rows) if said]
    for decoding in decodings(results)[1:]:
        if said := _empty(results[decoding]["table"][main]):
            found.append(f"{decoding}: {said}")
    return found


def run_caveats(results: Mapping[str, Any]) -> list[str]:
    """What a reader should know of the whole run or comparison, whichever policy it is about."""
    prepared, reference = results["prepare"], results[results["primary"]]["table"]["reference"]
    prompts = reference["prompts"]
    found = []
    seeds = {seed for of in results.get("training", {}).values() for seed in of}
    if len(seeds) == 1:
        found.append("one seed: what another training would give is not known")
    split = prepared.get("split", {})
    held_out = split.get("validation", 0) + split.get("test", 0)
    repeats = split.get("held_out_near_duplicates_of_train", 0)
    if repeats > _MANY_REPEATS * held_out:
        found.append(
            f"{repeats:,} held-out prompts nearly repeat a training prompt: new kinds of prompts may fare worse"
        )
    if said := constant_folds(prepared.get("value") or {}):
        found.append(said)
    if prompts < _FEW_PROMPTS:
        families = (reference.get("reward") or {}).get("families")
        of = "" if families is None else f" of {families} {'family' if families == 1 else 'families'}, too few to tell"
        found.append(f"only {prompts} test prompts{of}")
    return [*found, *results.get("scoring_caveats", []), *_cuts(prepared)]


def completion_caveats(row: ResultRow, reference: ResultRow) -> list[str]:
    """What to know about the completions of one policy, from its row of the result table and the reference's."""
    found = [said] if (said := _empty(row)) else []
    diversity = row.get("distinct_2_relative")
    if diversity is not None and diversity < _LOW_DIVERSITY:
        found.append(f"it repeats itself: distinct-2 is {diversity:.2f} times the reference's at equal length")
    if said := length_caveat(row, reference):
        found.append(said)
    correlation = row.get("reward_length_correlation")
    if correlation is not None and abs(correlation) > _HIGH_CORRELATION:
        kind = "longer" if correlation > 0 else "shorter"
        found.append(f"{kind} completions score higher (rank correlation of reward and length {correlation:+.2f})")
    kl = MEASURES["kl"].value(row)
    if kl is not None and kl > _LARGE_KL:
        found.append(f"it is far from the reference: KL {kl:.1f} nats a completion")
    return found


def data_caveats(row: ResultRow, reference: ResultRow) -> list[str]:
    """That answers score below those of the data, or that the data's own have become unlikely."""
    found = []
    gap = row.get("difference_from_data")
    if gap and gap["high"] is not None and gap["high"] < 0 and "families" not in gap:
        found.append(f"its answers score below the data's own ({interval(gap, '+.3f')})")
    now, before = (of.get("perplexity_of_test_completions") for of in (row, reference))
    if now and before and now > _PERPLEXITY_EXPLODES * before:
        found.append(
            f"the data's answers have become unlikely (perplexity {now:,.1f}, {before:,.1f} before): read its own"
        )
    return found


def training_caveats(seeds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was odd in the training of a policy: seed -> its facts."""
    found = []
    if said := few_rows_caveat(seeds):
        found.append(said)
    if (clipped := max((facts.get("clipped_weights", 0.0) for facts in seeds.values()), default=0.0)) > _MANY_CLIPPED:
        found.append(
            f"{clipped:.0%} of the importance weights of the last steps are beyond the clip: the policy has moved far "
            "from the reference on its own rows (fewer steps or a lower learning_rate keep it nearer)"
        )
    if skipped := sum(int(facts.get("skipped_steps", 0)) for facts in seeds.values()):
        found.append(
            f"{skipped} {'step was' if skipped == 1 else 'steps were'} left out, since numbers were not finite"
        )
    return found


def few_rows_caveat(seeds: Mapping[str, Mapping[str, Any]]) -> str | None:
    """That a policy learnt from few rows; of a method that compares answers, from few prompts with some to compare."""
    for key, least, what in (
        ("groups", _FEW_GROUPS, "pairs or groups of answers"),
        ("selected_rows", _FEW_ROWS, "rows"),
    ):
        if counts := [facts[key] for facts in seeds.values() if facts.get(key)]:
            return f"it learnt from {min(counts):,} {what} only" if min(counts) < least else None
    return None


def length_caveat(row: ResultRow, reference: ResultRow) -> str | None:
    """That completions have another length than the reference's, or no end; and what is left at equal length."""
    said = []
    ratio = row["length"] / reference["length"] if row.get("length") and reference.get("length") else 1.0
    if not _EQUAL_LENGTH[0] <= ratio <= _EQUAL_LENGTH[1]:
        said.append(f"its completions are {ratio:.2f} times as long as the reference's")
    unended = row.get("unended", 0.0)
    if unended > _MANY_UNENDED:
        theirs = reference.get("unended", 0.0)
        said.append(f"{unended:.0%} of its completions have no end ({theirs:.0%} of the reference's)")
    if not said or "win_rate" not in row:
        return " and ".join(said) or None
    pairs, left = row.get("pairs_of_equal_length", 0), "there are too few pairs to tell"
    if pairs >= FEW_PAIRS:
        left = f"its win rate is {row['win_rate_at_equal_length']:.2f}"
    return f"{' and '.join(said)}: at equal length {left} ({pairs:,} pairs)"


def _empty(row: ResultRow) -> str | None:
    """That completions hold no text, which neither reward nor diversity need show."""
    empty = row.get("empty", 0.0)
    return f"{empty:.0%} of completions are empty" if empty > _MANY_EMPTY else None


def _cuts(prepared: Mapping[str, Any]) -> list[str]:
    """Shares of rows that the length limits dropped or cut, if they are large."""
    tokens = prepared.get("tokens", {"rows_dropped": 0, "prompts_cut": 0})
    rows = sum(prepared.get("split", {}).get(split, 0) for split in ("train", "validation", "test"))
    said = {
        "rows_dropped": "of the rows were too long and were dropped",
        "prompts_cut": "of the prompts were cut on the left",
    }
    found = [f"{tokens[name] / rows:.0%} {what}" for name, what in said.items() if tokens[name] > _MANY_CUT * rows]
    if (share := tokens.get("share_cut", 0.0)) > _MANY_ROWS_CUT:
        found.append(
            f"{share:.0%} of the rows were cut at the limit and have no end: who trains on them learns not to stop"
        )
    return found
