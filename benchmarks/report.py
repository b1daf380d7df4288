"""The measured numbers as Markdown, every bar beside what was reached."""

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import BATCH, mean_lengths, random_batches, scored_rows
from benchmarks.models import matrix_rate, training_flops
from benchmarks.rows import load_rows
from benchmarks.steps import Entry, Measured

NAMES = {
    "released": "released method",
    "trl_sft": "TRL SFT",
    "trl_sft_no_checkpointing": "TRL SFT, gradient checkpointing off",
    "trl_dpo": "TRL DPO, reference precomputed",
    "ours": "Leftover, a_lol_seq",
    "ours_lora": "Leftover, a_lol_seq, LoRA",
    "ceiling": "stock ceiling",
}


def page(parts: list[str]) -> str:
    head = [
        "# Benchmarks",
        "",
        f"`make bench`, {datetime.date.today().isoformat()}, {machine()}, one thread. "
        "A GPU: `benchmarks/gpu.py` has not been run on one yet.",
        "",
    ]
    return "\n".join(head) + "\n" + "\n\n".join(parts) + "\n"


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
    prompt, completion = mean_lengths()
    turns = len(next(iter(measured.values())).rates)
    said = "one turn" if turns == 1 else f"medians over {turns} turns (lowest to highest)"
    lines = [
        "## Training step",
        "",
        f"Llama with random weights (hidden 288, 6 layers), batches of {BATCH} rows, {load_rows()[1]}: {prompt} prompt "
        f"and {completion} completion tokens on average as drawn. Completion tokens a second and peak resident memory, "
        f"{said}, each in a process of its own; contestants take turns.",
        "",
        "| contestant | vocabulary | precision | tokens/s | range | peak MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry, result in measured.items():
        low, high = result.spread
        spread = f"{low:.1f} to {high:.1f}" if turns > 1 else "one turn"
        lines.append(
            f"| {NAMES[entry.contestant]} | {entry.vocabulary:,} | {entry.precision} | {result.rate:.1f} "
            f"| {spread} | {result.peak:.0f} |"
        )
    for vocabulary, bf16 in ((50_257, False), (50_257, True), (128_000, False)):
        rate = floor_rate(vocabulary, bf16)
        name = "bf16" if bf16 else "float32"
        lines.append(f"| floor: unavoidable products at the measured rate | {vocabulary:,} | {name} | {rate:.1f} | | |")
    lines += ["", "| ratio | measured | bar | held |", "| --- | --- | --- | --- |"]
    lines += [f"| {what} | {value} | {bar} | {'yes' if held else 'NO'} |" for what, value, bar, held in bars(measured)]
    return "\n".join(lines)


def floor_rate(vocabulary: int, bf16: bool) -> float:
    """Completion tokens a second of a step that does the unavoidable products alone, at the measured matrix rate."""
    rows = [row for batch in random_batches(scored_rows(), 64) for row in batch]
    lengths = [(len(row["prompt_ids"]), len(row["completion_ids"])) for row in rows]
    seconds = training_flops(lengths, vocabulary) / matrix_rate(torch.bfloat16 if bf16 else torch.float32)
    return sum(completion for _, completion in lengths) / seconds


def bars(measured: dict[Entry, Measured]) -> list[tuple[str, str, str, bool]]:
    """Every ratio that the entries allow: what, the number, the bar, whether it is reached."""
    found = {(e.contestant, e.vocabulary, e.bf16): m for e, m in measured.items()}

    def best(contestant: str) -> float:
        return max(m.rate for (name, v, _), m in found.items() if name == contestant and v == 50_257)

    ours = found["ours", 50_257, False]
    ours_bf16 = found["ours", 50_257, True]
    released = found["released", 50_257, False]
    out = [
        ("against the released method, float32", ours.rate / released.rate, 7.0),
        ("against the released method, each at its best precision", best("ours") / best("released"), 6.5),
        ("ours in bf16 against the released method in float32", ours_bf16.rate / released.rate, 15.0),
        (
            "against the released method, vocabulary 128,000",
            found["ours", 128_000, False].rate / found["released", 128_000, False].rate,
            9.0,
        ),
        ("against TRL SFT, float32", ours.rate / found["trl_sft", 50_257, False].rate, 10.0),
        ("against TRL SFT, bf16", ours_bf16.rate / found["trl_sft", 50_257, True].rate, 10.0),
        ("against TRL DPO, float32", ours.rate / found["trl_dpo", 50_257, False].rate, 8.0),
        ("against TRL DPO, bf16", ours_bf16.rate / found["trl_dpo", 50_257, True].rate, 8.0),
    ]
    lines = [(what, f"{value:.1f} x", f">= {bar:g} x", value >= bar) for what, value, bar in out]
    for name, bf16 in (("float32", False), ("bf16", True)):
        share = found["ours", 50_257, bf16].rate / found["ceiling", 50_257, bf16].rate
        lines.append((f"share of the stock ceiling, {name}", f"{share:.0%}", ">= 85 %", share >= 0.85))
    memory = ours.peak / released.peak
    lines.append(("peak memory against the released method, float32", f"{memory:.0%}", "<= 45 %", memory <= 0.45))
    return lines


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
