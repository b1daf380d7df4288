"""The parts of report.md that are words rather than tables of results."""

from typing import Any

import numpy as np

from leftover.data.chat import readable
from leftover.prepare.readers import test_rows, training_mask, unique_prompts
from leftover.report.markdown import quote
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_subject, read_completions
from leftover.store.table import Table, column

_EXAMPLE_ROWS = 3


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


def leftover_section(table: Table, results: dict[str, Any]) -> str:
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
    rows = table.open("rows", "split", "tokens", "reward", "value")
    advantages = column(rows, "advantage")
    usable = np.flatnonzero(training_mask(rows) & np.isfinite(advantages))
    ordered = usable[np.argsort(-advantages[usable])]
    for title, chosen in (("weigh most", ordered[:_EXAMPLE_ROWS]), ("dropped", ordered[-_EXAMPLE_ROWS:][::-1])):
        lines += ["", f"Rows that {title if title != 'dropped' else 'were dropped with the widest margin'}:", ""]
        for i in chosen:
            row = rows[int(i)]
            lines.append(
                f"- A {row['advantage']:+.3f} (R {row['reward']:.3f}, V {row['value']:.3f}): {quote(row['completion'])}"
            )
    return "\n".join(lines)


def examples_section(run: FinishedRun) -> str:
    """Completions side by side: the data's own, the reference's, and the policies' of the first seed."""
    rows = unique_prompts(test_rows(run.recipe, run.table))[: run.recipe.evaluate.num_examples]
    if not rows:
        return ""
    primary, seed = run.recipe.evaluate.primary, run.recipe.seeds[0]
    names = {"reference": "reference"} | {p: policy_subject(p, seed) for p in run.recipe.policies}
    by_subject = {
        name: {r["group"]: r for r in read_completions(run.folder, subject) if r["decoding"] == primary}
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
