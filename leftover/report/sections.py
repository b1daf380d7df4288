"""The parts of report.md that are words rather than tables of results."""

from typing import Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.evaluate import policy_subject, read_completions, test_rows, unique_prompts
from leftover.table import column, equals
from leftover.terminal import visible
from leftover.workspace import Run

_EXAMPLE_ROWS = 3
_TEXT_SHOWN = 300


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


def training_section(results: dict[str, Any]) -> str:
    """Which rows every policy drew from, and which of its checkpoints was kept."""
    metric = "mean reward" if results["can_score_new_completions"] else "rank correlation with the recorded rewards"
    lines = [
        "## Training",
        "",
        f"Of every policy the checkpoint with the highest {metric} on the selection prompts was kept.",
        "",
        "| policy | seed | rows selected | effective sample size | steps | kept step | its value | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for policy, seeds in results["training"].items():
        for seed, facts in seeds.items():
            best = "–" if facts["best_metric"] is None else f"{facts['best_metric']:.3f}"
            lines.append(
                f"| {policy} | {seed} | {facts['selected_rows']} | {facts['effective_sample_size']:.0f} "
                f"| {facts['steps']} | {facts['best_step'] or '–'} | {best} | {facts['seconds']:.0f} |"
            )
    for policy, seeds in results["training"].items():
        for seed, facts in seeds.items():
            if "rollout_tokens" in facts:
                lines += [
                    "",
                    f"{policy}, seed {seed}, is online: its rows are prompts, for which it wrote {facts['rollouts']:,} "
                    f"completions of {facts['rollout_tokens']:,} tokens and had them scored, in "
                    f"{facts['rollout_seconds']:.0f} of its seconds.",
                ]
    return "\n".join(lines)


def data_section(results: dict[str, Any]) -> str:
    """What was read, rejected, cut and split."""
    facts = results["prepare"]
    rows, split, tokens = facts["rows"], facts["split"], facts["tokens"]
    others = rows.get("other_parts", 0)
    sources = ", ".join(f"{name} {count}" for name, count in rows.get("sources", {}).items())
    said = {
        "system_turns_cut": "of the cut prompts lost their system turn or tools",
        "rows_refused": "conversations refused by the chat template, and put aside",
    }
    return "\n".join(
        [
            "## Data",
            "",
            f"- {rows['read']} rows read, {rows['rejected']} rejected, {rows['duplicates']} repeat an earlier row, "
            f"{rows['without_reward']} without a recorded score.",
            *(f"- {count} left out: {reason}." for reason, count in rows.get("left_out", {}).items()),
            *([f"- {others} rows belong to families outside data.part."] if others else []),
            *([f"- Sources: {sources}."] if len(rows.get("sources", {})) > 1 else []),
            f"- {tokens['prompts_cut']} prompts cut on the left; {tokens['completions_long']} completions over the "
            f"limit, {tokens['rows_dropped']} of these rows put aside.",
            *(f"- {tokens[name]} {words}." for name, words in said.items() if name in tokens),
            f"- {split['train']} training, {split['validation']} validation, {split['test']} test rows; "
            f"{split['held_out_near_duplicates_of_train']} held-out prompts nearly repeat a training prompt.",
        ]
    )


def leftover_section(run: Run, results: dict[str, Any]) -> str:
    """How many rows were kept, the spread of the advantage, and rows at both ends of it."""
    facts, value = results["prepare"].get("leftover"), results["prepare"].get("value")
    if not facts:
        return ""
    r2 = "n/a" if value["r2"] is None else f"{value['r2']:.3f}"
    lines = [
        "## The leftover",
        "",
        f"{facts['leftover_rows']} of {facts['training_rows']} training rows ({facts['share']:.1%}) have a positive "
        f"advantage and were kept; the others were dropped. Drawn by priority they are worth "
        f"{facts['effective_sample_size']:.0f} equally weighted rows. The value is the {value['kind']} estimate "
        f"(targets: {value['targets']}; R² on prompts that neither fitted nor chose it: {r2}).",
        "",
        "| quantile of the advantage | 0 % | 5 % | 25 % | 50 % | 75 % | 95 % | 100 % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| |" + "".join(f" {q:.3f} |" for q in facts["advantage_quantiles"]),
    ]
    table = run.table.open("rows", "split", "tokens", "reward", "value")
    advantages = column(table, "advantage")
    usable = np.flatnonzero(equals(table, "split", "train") & equals(table, "kept", True) & np.isfinite(advantages))
    ordered = usable[np.argsort(-advantages[usable])]
    for title, chosen in (("weigh most", ordered[:_EXAMPLE_ROWS]), ("dropped", ordered[-_EXAMPLE_ROWS:][::-1])):
        lines += ["", f"Rows that {title if title != 'dropped' else 'were dropped with the widest margin'}:", ""]
        for i in chosen:
            row = table[int(i)]
            lines.append(
                f"- A {row['advantage']:+.3f} (R {row['reward']:.3f}, V {row['value']:.3f}): {quote(row['completion'])}"
            )
    return "\n".join(lines)


def examples_section(run: Run) -> str:
    """Completions side by side: the data's own, the reference's, and the policies' of the first seed."""
    rows = unique_prompts(test_rows(run))[: run.recipe.evaluate.num_examples]
    if not rows:
        return ""
    primary, seed = run.recipe.evaluate.primary, run.recipe.seeds[0]
    names = {"reference": "reference"} | {p: policy_subject(p, seed) for p in run.recipe.policies}
    by_subject = {
        name: {r["group"]: r for r in read_completions(run, subject) if r["decoding"] == primary}
        for name, subject in names.items()
    }
    lines = [f"## Completions side by side ({primary})"]
    for row in rows:
        lines += ["", f"**Prompt:** {quote(readable(row))}", "", f"- data: {quote(row['completion'])}"]
        for name, records in by_subject.items():
            record = records[row["group"]]
            score = f" ({record['reward']:.3f})" if "reward" in record else ""
            lines.append(f"- {name}{score}: {quote(record['text'])}")
    return "\n".join(lines)


def readable(row: dict[str, Any], between: str = " ") -> str:
    """A prompt as text: `role: content` of every message of a conversation, with `between` between them."""
    prompt = as_prompt(row["prompt"], row["conversational"])
    return prompt if isinstance(prompt, str) else between.join(f"{m['role']}: {m['content']}" for m in prompt)


def quote(text: str) -> str:
    """A text on one line of Markdown, markup escaped, long ones cut in the middle."""
    flat = visible(" ".join(text.split())) or "(empty)"
    if len(flat) > _TEXT_SHOWN:
        flat = f"{flat[: _TEXT_SHOWN // 2]} … {flat[-_TEXT_SHOWN // 2 :]}"
    for character in "\\`*_[]<>|#":
        flat = flat.replace(character, f"\\{character}")
    return flat
