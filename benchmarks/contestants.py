"""Who takes training steps. Each contestant is a function of a Setting that yields (seconds, completion tokens)."""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.models import PAD, TINY, build_llama
from benchmarks.rows import load_rows, load_tokenizer, tiny_rows

BATCH = 8
LEARNING_RATE = 2e-5
_ORDER_STEPS = 256  # length buckets are those of a run of this many steps

Steps = Iterator[tuple[float, int]]


@dataclass(frozen=True)
class Setting:
    vocabulary: int
    bf16: bool
    steps: int  # the first cannot be timed
    seed: int
    tiny: bool = False  # small rows and a small model, to try a contestant out

    def model(self) -> Any:
        return build_llama(self.vocabulary, **(TINY if self.tiny else {}))

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def scored_rows(tiny: bool = False) -> list[dict[str, Any]]:
    """The benchmark's rows with a constant value, the mean reward: about half of them are left over."""
    rows = tiny_rows() if tiny else load_rows()[0]
    mean = float(np.mean([row["reward"] for row in rows]))
    return [row | {"value": mean, "advantage": max(row["reward"] - mean, 0.0)} for row in rows]


def random_batches(
    rows: list[dict[str, Any]], num_batches: int, batch_size: int = BATCH, seed: int = 0
) -> list[list[dict[str, Any]]]:
    """Batches drawn by priority, as the released sampler composes them: whatever the lengths."""
    from leftover.training.draws import draw_batches

    weights = np.array([row["advantage"] for row in rows])
    order = draw_batches(weights, _ORDER_STEPS * batch_size, batch_size=batch_size, seed=seed)
    return [[rows[i] for i in order.batch(b)] for b in range(num_batches)]


def prepared_table(rows: list[dict[str, Any]], args: Any, model: Any, num_batches: int) -> Any:
    """The rows as LoLTrainer takes them; of the first batches' rows with the reference's log-probabilities."""
    import datasets

    from leftover.models.reference import reference_pass
    from leftover.store.table import list_lengths
    from leftover.training.selection import run_order, selection

    names = ("prompt_ids", "completion_ids", "reward", "value", "advantage")
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in names})
    table = table.add_column("group", list(range(len(rows))))
    columns = {name: np.asarray(table[name]) for name in ("reward", "value", "advantage", "group")}
    columns["length"] = list_lengths(table, "prompt_ids") + list_lengths(table, "completion_ids")
    selected, weights, _ = selection(args, columns)
    order, _ = run_order(args, columns, selected, weights)
    needed = sorted(set(order.indices[: order.offsets[num_batches]].tolist()))
    drawn = [rows[i] for i in needed]
    logprobs, _ = reference_pass(model, load_tokenizer(), drawn, features=False, compute_dtype=args.compute_dtype)
    known = dict(zip(needed, logprobs, strict=True))
    return table.add_column("reference_logprobs", [known.get(i, []) for i in range(len(rows))])


def mean_lengths(tiny: bool = False) -> tuple[int, int]:
    """Mean prompt and completion tokens of the rows that are drawn, whole numbers."""
    rows = scored_rows(tiny)
    weights = [row["advantage"] for row in rows]
    means = [np.average([len(row[name]) for row in rows], weights=weights) for name in ("prompt_ids", "completion_ids")]
    return round(float(means[0])), round(float(means[1]))


def released(setting: Setting) -> Steps:
    """The released method (benchmarks/released.py)."""
    from benchmarks.released import step_loss
    from leftover.prepare.value import ValueHead

    batches = random_batches(scored_rows(setting.tiny), setting.steps, seed=setting.seed)
    policy, reference = setting.model(), setting.model().eval()
    head = ValueHead(policy.config.hidden_size).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, fused=True)

    def step(batch: list[dict[str, Any]]) -> int:
        with setting.autocast():
            loss, _ = step_loss(policy, reference, head, batch, PAD)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return sum(len(row["completion_ids"]) for row in batch)

    yield from timed(step, batches)


def ceiling(setting: Setting) -> Steps:
    """The stock model on rows of equal length without padding, logits at the completion's share of positions."""
    import torch.nn.functional as F

    prompt, completion = mean_lengths(setting.tiny)
    model = setting.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(setting.seed)

    def step(ids: torch.Tensor) -> int:
        with setting.autocast():
            logits = model(input_ids=ids[:, :-1], logits_to_keep=completion, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, -completion:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return BATCH * completion

    shape = (BATCH, prompt + completion)
    yield from timed(step, [torch.randint(50_257, shape, generator=generator) for _ in range(setting.steps)])


def ours(setting: Setting, lora: bool = False) -> Steps:
    """LoLTrainer, a_lol_seq, on a prepared table."""
    from leftover import LoLConfig, LoLTrainer

    rows = scored_rows(setting.tiny)
    tokenizer = load_tokenizer()
    model, clock = setting.model(), make_clock(setting.steps)
    with tempfile.TemporaryDirectory() as folder:
        args = LoLConfig(
            output_dir=folder,
            objective="a_lol_seq",
            per_device_train_batch_size=BATCH,
            max_steps=_ORDER_STEPS,
            learning_rate=LEARNING_RATE,
            bf16=setting.bf16,
            use_cpu=True,
            seed=setting.seed,
            disable_tqdm=True,
            save_strategy="no",
        )
        table = prepared_table(rows, args, model, setting.steps)
        peft_config = None
        if lora:
            from peft import LoraConfig

            peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = LoLTrainer(
            model,
            args,
            table,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[clock],
        )
        counts = [
            sum(len(rows[i]["completion_ids"]) for i in trainer.draw_order.batch(b)) for b in range(setting.steps)
        ]
        yield from _trained(trainer, clock, counts)


def trl_sft(setting: Setting, **more: Any) -> Steps:
    """TRL's SFTTrainer on the same rows, loss on completions."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    decode = load_tokenizer().decode
    data = datasets.Dataset.from_list(
        [
            {"prompt": decode(row["prompt_ids"]), "completion": decode(row["completion_ids"][:-1])}
            for batch in random_batches(scored_rows(setting.tiny), setting.steps, seed=setting.seed)
            for row in batch
        ]
    )
    yield from _trl(SFTTrainer, SFTConfig, setting.model(), data, setting, **more)


def trl_dpo(setting: Setting, **more: Any) -> Steps:
    """TRL's DPOTrainer on pairs of the same texts, the reference's log-probabilities precomputed."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    rows = scored_rows(setting.tiny)
    by_prompt: dict[tuple, list] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row["prompt_ids"]), []).append(row)
    pairs = [sorted(p, key=lambda r: -r["reward"])[:2] for p in by_prompt.values() if len(p) > 1]
    chosen = np.random.default_rng(setting.seed).permutation(len(pairs))[: setting.steps * BATCH]
    decode = load_tokenizer().decode
    data = datasets.Dataset.from_list(
        [
            {
                "prompt": decode(pairs[i][0]["prompt_ids"]),
                "chosen": decode(pairs[i][0]["completion_ids"][:-1]),
                "rejected": decode(pairs[i][1]["completion_ids"][:-1]),
            }
            for i in chosen
        ]
    )
    more = {"precompute_ref_log_probs": True, **more}
    yield from _trl(DPOTrainer, DPOConfig, setting.model(), data, setting, **more)


def _trl(trainer_class: Any, config_class: Any, model: Any, data: Any, setting: Setting, **more: Any) -> Steps:
    clock, counts = make_clock(setting.steps), list[int]()
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=setting.steps,
            learning_rate=LEARNING_RATE,
            bf16=setting.bf16,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **more,
        )

        class Counting(trainer_class):
            def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
                counts.append(_completion_tokens(inputs))
                return super().compute_loss(model, inputs, *rest, **options)

        trainer = Counting(
            model,
            args=args,
            train_dataset=data,
            processing_class=load_tokenizer(),
            callbacks=[clock],
        )
        yield from _trained(trainer, clock, counts)


def _completion_tokens(inputs: dict[str, Any]) -> int:
    if "labels" in inputs:
        return int((inputs["labels"] != -100).sum())
    return int(inputs["completion_mask"].sum())


def _trained(trainer: Any, clock: Any, counts: list[int]) -> Steps:
    """Train, and yield what the clock read."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    for (start, end), tokens in zip(itertools.pairwise(clock.ends), counts[1:], strict=False):
        yield end - start, tokens


def make_clock(steps: int, wait: Callable[[], Any] = lambda: None) -> Any:
    """A trainer callback whose `ends` are the times at the ends of steps, after `wait`; it stops the run after them."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wait()
            self.ends.append(time.perf_counter())
            control.should_training_stop = len(self.ends) >= steps

    return Clock()


def timed(step: Callable[[Any], int], batches: list[Any]) -> Steps:
    for number, batch in enumerate(batches):
        start = time.perf_counter()
        tokens = step(batch)
        if number:  # as a clock at the ends of steps, which cannot see the first
            yield time.perf_counter() - start, tokens


CONTESTANTS: dict[str, Callable[[Setting], Steps]] = {
    "released": released,
    "trl_sft": trl_sft,
    "trl_sft_no_checkpointing": lambda setting: trl_sft(setting, gradient_checkpointing=False),
    "trl_dpo": trl_dpo,
    "ours": ours,
    "ours_lora": lambda setting: ours(setting, lora=True),
    "ceiling": ceiling,
}
