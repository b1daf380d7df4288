"""The measured numbers as Markdown, every bar beside what was reached."""

import datetime
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import lengths_of, mean_lengths, random_batches
from benchmarks.end_to_end import MAX_COMPLETION, MAX_PROMPT, TEST, TRAIN, Finished, Task
from benchmarks.models import matrix_rate, training_flops
from benchmarks.rows import REAL_COMPLETION, REAL_PROMPT, load_rows
from benchmarks.setting import Setting, scored_rows
from benchmarks.steps import PRECISIONS, Entry, Measured

NAMES = {
    "released": "released method",
    "trl_sft": "TRL SFT",
    "trl_sft_no_checkpointing": "TRL SFT, gradient checkpointing off",
    "trl_dpo": "TRL DPO, reference precomputed",
    "trl_dpo_no_checkpointing": "TRL DPO, gradient checkpointing off",
    "ours": "Leftover, a_lol_seq",
    "ceiling": "stock ceiling",
}
END_NAMES = NAMES | {"trl_dpo": "TRL DPO"}  # TRL's own default there: not precomputed
SPEED_BAR, END_TO_END_BAR = 5.0, 3.0  # on a real model


HEADINGS = ("## Training step", "## A real model", "## Everything else")
HEAD = "# Benchmarks\n\n`make bench`. A GPU: `benchmarks/gpu.py` has not been run on one yet."


def page(before: str, section: str) -> str:
    """results.md with one section anew, which says when and where it was measured; the others are as they were."""
    heading, _, rest = section.partition("\n")
    measured = f"{datetime.date.today().isoformat()}, {machine()}, one thread."
    found = [*re.split(r"\n(?=## )", before)[1:], f"{heading}\n\n{measured}\n{rest}"]
    parts = {next((h for h in HEADINGS if text.startswith(h)), text): text.strip() for text in found}
    order = [*HEADINGS, *(name for name in parts if name not in HEADINGS)]
    return "\n\n".join([HEAD, *(parts[name] for name in order if name in parts)]) + "\n"


def machine() -> str:
    import transformers
    import trl

    return (
        f"{processor()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, trl {trl.__version__}"
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name} ({platform.system()})"


def steps_section(measured: dict[Entry, Measured]) -> str:
    """Rates and peaks of all contestants, the floor, and the ratios with their bars."""
    prompt, completion = mean_lengths(scored_rows("small"))
    lines = [
        "## Training step",
        "",
        f"Llama with random weights (hidden 288, 6 layers), batches of {Setting.batch} rows, {load_rows()[1]}: "
        f"{prompt} prompt and {completion} completion tokens on average as drawn. {_how(measured)}",
        "",
        *_rates(measured),
    ]
    for vocabulary, bf16 in ((50_257, False), (50_257, True), (128_000, False)):
        rate = floor_rate(vocabulary, bf16)
        name = "bf16" if bf16 else "float32"
        lines.append(f"| floor: unavoidable products at the measured rate | {vocabulary:,} | {name} | {rate:.1f} | | |")
    return "\n".join([*lines, "", *_ratios(bars(measured))])


def real_section(model: str, measured: dict[Entry, Measured], finished: dict[str, Finished], source: str) -> str:
    """The training step on a real model, and the way from raw rows to an evaluated model."""
    prompt, completion = mean_lengths(scored_rows(model))
    task = Task(model, "", "")
    lines = [
        f"## A real model: {Path(model).name}",
        "",
        f"Batches of {Setting.batch} completions, {load_rows(model)[1]} as plain text, tokenised by the model's own "
        f"tokenizer: prompts cut to {REAL_PROMPT} tokens, completions of more than {REAL_COMPLETION} left out; "
        f"{prompt} prompt and {completion} completion tokens on average as drawn. {_how(measured)}",
        "",
        *_rates(measured),
        "",
        *_ratios(real_bars(measured)),
        "",
        f"From raw rows to an evaluated model: {source} under the model's own chat template (prompts of at most "
        f"{MAX_PROMPT} tokens, completions of {MAX_COMPLETION}), {TRAIN} conversations of two completions to train on, "
        f"{task.steps} updates of {task.batch} completions (LoRA, bf16 autocast), then sampled completions of {TEST} "
        "held-out prompts by reference and policy, their reward (different words, 30 at most), their log-probabilities "
        "under both, KL, distinct-2 and perplexity. Ours is `leftover run`, with validation off; the other a script "
        "with TRL's DPOTrainer and `model.generate`. Seconds of the whole process.",
        "",
        "| contestant | seconds | range | peak MiB | reward, before and after | KL |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in finished.items():
        rewards = [np.mean([n[subject]["reward"] for n in found.numbers]) for subject in ("reference", "policy")]
        low, high = min(found.seconds), max(found.seconds)
        lines.append(
            f"| {END_NAMES[name]} | {np.median(found.seconds):.0f} | {low:.0f} to {high:.0f} "
            f"| {np.median(found.peaks):.0f} | {rewards[0]:.2f}, {rewards[1]:.2f} "
            f"| {np.mean([n['policy']['kl'] for n in found.numbers]):.2f} |"
        )
    return "\n".join([*lines, "", *_ratios(end_to_end_bars(finished))])


def _how(measured: dict[Entry, Measured]) -> str:
    turns = len(next(iter(measured.values())).rates)
    said = "one turn" if turns == 1 else f"medians over {turns} turns (lowest to highest)"
    return (
        f"Completion tokens a second and peak resident memory, {said}, each in a process of its own; contestants take "
        "turns."
    )


def _rates(measured: dict[Entry, Measured]) -> list[str]:
    lines = [
        "| contestant | vocabulary | precision | tokens/s | range | peak MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry, result in measured.items():
        low, high = result.spread
        spread = f"{low:.1f} to {high:.1f}" if len(result.rates) > 1 else "one turn"
        name = NAMES[entry.contestant] + ", LoRA" * entry.setting.lora
        lines.append(
            f"| {name} | {entry.setting.vocabulary:,} | {entry.setting.precision} | {result.rate:.1f} "
            f"| {spread} | {result.peak:.0f} |"
        )
    return lines


def _ratios(found: list[tuple[str, str, str, bool]]) -> list[str]:
    lines = ["| ratio | measured | bar | held |", "| --- | --- | --- | --- |"]
    return lines + [f"| {what} | {value} | {bar} | {'yes' if held else 'NO'} |" for what, value, bar, held in found]


def floor_rate(vocabulary: int, bf16: bool) -> float:
    """Completion tokens a second of a step that does the unavoidable products alone, at the measured matrix rate."""
    lengths = [row for batch in random_batches(scored_rows("small"), 64, Setting.batch) for row in lengths_of(batch)]
    seconds = training_flops(lengths, vocabulary) / matrix_rate(torch.bfloat16 if bf16 else torch.float32)
    return sum(completion for _, completion in lengths) / seconds


def bars(measured: dict[Entry, Measured]) -> list[tuple[str, str, str, bool]]:
    """Every ratio that the entries allow: what, the number, the bar, whether it is reached."""
    found = {
        (e.contestant, e.setting.vocabulary, e.setting.precision): m for e, m in measured.items() if not e.setting.lora
    }

    def of(contestant: str, precision: str = "float32", vocabulary: int = 50_257) -> Measured:
        return found[contestant, vocabulary, precision]

    def best(contestant: str) -> float:
        return max(of(contestant, precision).rate for precision in PRECISIONS)

    def rate(precision: str, rival: str, of_rival: str, vocabulary: int = 50_257) -> float:
        return of("ours", precision, vocabulary).rate / of(rival, of_rival, vocabulary).rate

    f32, bf16 = PRECISIONS
    out = [
        ("against the released method, float32", rate(f32, "released", f32), 7.0),
        ("against the released method, each at its best precision", best("ours") / best("released"), 6.5),
        ("ours in bf16 against the released method in float32", rate(bf16, "released", f32), 15.0),
        ("against the released method, vocabulary 128,000", rate(f32, "released", f32, 128_000), 9.0),
        ("against TRL SFT, float32", rate(f32, "trl_sft", f32), 10.0),
        ("against TRL SFT, bf16", rate(bf16, "trl_sft", bf16), 10.0),
        ("against TRL DPO, float32", rate(f32, "trl_dpo", f32), 8.0),
        ("against TRL DPO, bf16", rate(bf16, "trl_dpo", bf16), 8.0),
    ]
    lines = [_at_least(what, value, bar) for what, value, bar in out]
    for name, precision in (("float32", f32), ("bf16", bf16)):
        share = rate(precision, "ceiling", precision)
        lines.append((f"share of the stock ceiling, {name}", f"{share:.0%}", ">= 85 %", share >= 0.85))
    memory = of("ours").peak / of("released").peak
    lines.append(("peak memory against the released method, float32", f"{memory:.0%}", "<= 45 %", memory <= 0.45))
    return lines


def real_bars(measured: dict[Entry, Measured]) -> list[tuple[str, str, str, bool]]:
    """Ours against every other contestant under the same setting."""
    rates = {(e.contestant, e.setting.precision, e.setting.lora): m.rate for e, m in measured.items()}
    return [
        _at_least(
            f"against {NAMES[name]}{', LoRA' * lora}, {precision}", rates["ours", precision, lora] / rate, SPEED_BAR
        )
        for (name, precision, lora), rate in rates.items()
        if name != "ours"
    ]


def end_to_end_bars(finished: dict[str, Finished]) -> list[tuple[str, str, str, bool]]:
    ours = float(np.median(finished["ours"].seconds))
    return [
        _at_least(f"end to end against {END_NAMES[name]}", float(np.median(found.seconds)) / ours, END_TO_END_BAR)
        for name, found in finished.items()
        if name != "ours"
    ]


def _at_least(what: str, value: float, bar: float) -> tuple[str, str, str, bool]:
    return what, f"{value:.1f} x", f">= {bar:g} x", value >= bar


def others_section(lines: list[dict[str, Any]], imports: list[dict[str, Any]], many: list[dict[str, Any]]) -> str:
    """The reference pass, the value head, generation, imports and tables of many rows."""
    out = [
        "## Everything else",
        "",
        "| what | ours | theirs | ratio (range) | bar |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        spread = f"{min(line['spread']):.2f} to {max(line['spread']):.2f}"
        out.append(
            f"| {line['what']} | {line['ours']:.3g} | {line['theirs']:.3g} | {line['ratio']:.2f} x ({spread}) "
            f"| {line['bar']} |"
        )
    for line in imports:
        spread = f"{min(line['spread']):.2f} to {max(line['spread']):.2f}"
        out.append(f"| `{line['what']}` | {line['seconds']:.2f} s | | ({spread}) | {line['bar']} |")
    first, last = many[0], many[-1]
    out += [
        "",
        "Tables of many rows, a tiny model: 20 steps of reference and policy each, the value from 300 prompts.",
        "",
        "| rows | prepare, s | train, s | opening the table, s | own memory of prepare / train, MiB | resident, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in many:
        out.append(
            f"| {row['rows']:,} | {row['prepare_s']:.1f} | {row['train_s']:.1f} | {row['open_s']:.2f} "
            f"| {row['prepare_mib']:.0f} / {row['train_mib']:.0f} "
            f"| {row['prepare_resident_mib']:.0f} / {row['train_resident_mib']:.0f} |"
        )
    growth = max(last[k] / first[k] for k in ("prepare_mib", "train_mib")) - 1
    per_row = [1e3 * row["prepare_s"] / row["rows"] for row in many]
    out += [
        "",
        f"Own (anonymous) memory grows by {growth:.1%} from {first['rows']:,} to {last['rows']:,} rows (bar: 10 %); "
        "resident memory also counts the mapped pages of the table, which the system can drop at any time. Prepare "
        f"takes {', '.join(f'{ms:.2f}' for ms in per_row)} ms a row. The table of {last['rows']:,} rows opens in "
        f"{last['open_s']:.2f} s (bar: 1 s).",
    ]
    return "\n".join(out)
