"""The parts of report.md that are words rather than tables of results."""

from typing import Any

import numpy as np

from leftover.evaluate import read_completions, test_rows, unique_prompts
from leftover.training import available_blocks
from leftover.workspace import Run

_EXAMPLE_ROWS = 3
_TEXT_SHOWN = 300


def verdict(results: dict[str, Any]) -> str:
    """One sentence with numbers, and the caveats that apply."""
    main, primary = results["main"], results["primary"]
    row = results[primary]["table"][main]
    caveats = []
    value = results["prepare"].get("value")
    if value and value["kind"] == "constant":
        caveats.append("no value estimate beat the constant on held-out prompts")
    if row["prompts"] < 100:
        caveats.append(f"only {row['prompts']} test prompts")
    tail = f" Caveats: {'; '.join(caveats)}." if caveats else ""
    if not results["can_score_new_completions"]:
        correlation = row.get("logratio/rank_correlation")
        accuracy = row.get("logratio/pair_accuracy")
        parts = [f"rank correlation {correlation:.3f}"] if correlation is not None else []
        parts += [f"pair accuracy {accuracy:.3f}"] if accuracy is not None else []
        if not parts:
            parts = ["no held-out row has a score"]
        return (
            f"The rewards are recorded, so new completions could not be scored. On held-out rows the log-ratio of "
            f"{main} against the reference orders the recorded rewards with {' and '.join(parts)}.{tail}"
        )
    gain = row["difference_from_reference"]
    direction = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not clearly different from"
    return (
        f"{main} scores {row['reward']['mean']:.3f} on {row['prompts']} held-out prompts, {direction} the reference "
        f"by {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}].{tail}"
    )


def data_section(results: dict[str, Any]) -> str:
    """What was read, rejected, cut and split."""
    facts = results["prepare"]
    rows, split, tokens = facts["rows"], facts["split"], facts["tokens"]
    return "\n".join(
        [
            "## Data",
            "",
            f"- {rows['read']} rows read, {rows['rejected']} rejected, {rows['duplicates']} repeat an earlier row, "
            f"{rows['without_reward']} without a recorded score.",
            f"- {tokens['prompts_cut']} prompts cut on the left; {tokens['completions_long']} completions over the "
            f"limit, {tokens['rows_dropped']} of these rows put aside.",
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
    advantages = np.array(table.with_format("numpy")["advantage"][:])
    usable = np.flatnonzero(
        (np.array(table["split"][:]) == "train") & np.array(table["kept"][:]) & np.isfinite(advantages)
    )
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
    rows = unique_prompts(test_rows(run, available_blocks(run)))[: run.recipe.evaluate.num_examples]
    if not rows:
        return ""
    primary, seed = run.recipe.evaluate.primary, run.recipe.seeds[0]
    names = {"reference": "reference"} | {p: f"{p}-seed-{seed}" for p in run.recipe.policies}
    by_subject = {
        name: {r["group"]: r for r in read_completions(run, subject) if r["decoding"] == primary}
        for name, subject in names.items()
    }
    lines = [f"## Completions side by side ({primary})"]
    for row in rows:
        lines += ["", f"**Prompt:** {quote(row['prompt'])}", "", f"- data: {quote(row['completion'])}"]
        for name, records in by_subject.items():
            record = records[row["group"]]
            score = f" ({record['reward']:.3f})" if "reward" in record else ""
            lines.append(f"- {name}{score}: {quote(record['text'])}")
    return "\n".join(lines)


def quote(text: str) -> str:
    """A text on one line of Markdown, markup escaped, long ones cut in the middle."""
    flat = " ".join(text.split())
    if len(flat) > _TEXT_SHOWN:
        flat = f"{flat[: _TEXT_SHOWN // 2]} … {flat[-_TEXT_SHOWN // 2 :]}"
    for character in "\\`*_[]<>|#":
        flat = flat.replace(character, f"\\{character}")
    return flat
