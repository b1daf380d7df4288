"""Who takes training steps: functions of a Setting that yield (seconds, prompt and completion tokens of every row)."""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.rows import Row
from benchmarks.setting import Setting

Lengths = list[tuple[int, int]]
Steps = Iterator[tuple[float, Lengths]]
_ORDER_STEPS = 256  # length buckets are those of a run of this many steps


def lengths_of(rows: list[Row]) -> Lengths:
    return [(len(row["prompt_ids"]), len(row["completion_ids"])) for row in rows]


def random_batches(rows: list[Row], num_batches: int, batch_size: int, seed: int = 0) -> list[list[Row]]:
    """Batches drawn by priority, as the released sampler composes them: whatever the lengths."""
    from leftover.training.draws import draw_batches

    weights = np.array([row["advantage"] for row in rows])
    order = draw_batches(weights, _ORDER_STEPS * batch_size, batch_size=batch_size, seed=seed)
    return [[rows[i] for i in order.batch(b)] for b in range(num_batches)]


def mean_lengths(rows: list[Row]) -> tuple[int, int]:
    """Mean prompt and completion tokens of the rows that are drawn, whole numbers."""
    prompt, completion = np.average(lengths_of(rows), axis=0, weights=[row["advantage"] for row in rows])
    return round(float(prompt)), round(float(completion))


def prepared_table(rows: list[Row], args: Any, model: Any, tokenizer: Any, num_batches: int) -> Any:
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
    logprobs, _ = reference_pass(model, tokenizer, drawn, features=False, compute_dtype=args.compute_dtype)
    known = dict(zip(needed, logprobs, strict=True))
    return table.add_column("reference_logprobs", [known.get(i, []) for i in range(len(rows))])


def released(setting: Setting) -> Steps:
    """The released method (benchmarks/released.py)."""
    from benchmarks.released import step_loss
    from leftover.models.load import add_adapter
    from leftover.prepare.value import ValueHead

    batches = random_batches(setting.rows(), setting.steps, setting.batch, setting.seed)
    policy, reference = setting.build(), setting.build().eval()
    if setting.lora:
        policy = add_adapter(policy, setting.peft_config(), seed=setting.seed)
    head = ValueHead(policy.config.hidden_size).to(setting.device).eval()
    pad = setting.tokenizer().pad_token_id

    def loss(batch: list[Row]) -> torch.Tensor:
        with setting.autocast():
            return step_loss(policy, reference, head, batch, pad)[0]

    yield from _steps(setting, policy, loss, batches, lengths_of)


def ceiling(setting: Setting) -> Steps:
    """The stock model on rows of equal length without padding, logits at the completion's share of positions."""
    import torch.nn.functional as F

    prompt, completion = mean_lengths(setting.rows())
    model = setting.build()
    generator = torch.Generator().manual_seed(setting.seed)
    shape = (setting.batch, prompt + completion)
    known = min(50_257, model.config.vocab_size)
    batches = [torch.randint(known, shape, generator=generator).to(setting.device) for _ in range(setting.steps)]

    def loss(ids: torch.Tensor) -> torch.Tensor:
        with setting.autocast():
            logits = model(input_ids=ids[:, :-1], logits_to_keep=completion, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, -completion:].flatten())

    yield from _steps(setting, model, loss, batches, lambda ids: [(prompt, completion)] * len(ids))


def _steps(
    setting: Setting,
    model: Any,
    loss: Callable[[Any], torch.Tensor],
    batches: list[Any],
    lengths: Callable[[Any], Lengths],
) -> Steps:
    """A training loop by hand."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.trainer_settings()["learning_rate"], fused=True)
    for number, batch in enumerate(batches):
        start = time.perf_counter()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        setting.wait()
        if number:  # as a clock at the ends of steps, which cannot see the first
            yield time.perf_counter() - start, lengths(batch)


def ours(setting: Setting) -> Steps:
    """LoLTrainer, a_lol_seq, on a prepared table."""
    from leftover import LoLConfig, LoLTrainer

    rows, tokenizer, model, clock = setting.rows(), setting.tokenizer(), setting.build(), make_clock(setting)
    with tempfile.TemporaryDirectory() as folder:
        args = LoLConfig(
            output_dir=folder,
            objective="a_lol_seq",
            max_steps=_ORDER_STEPS,
            seed=setting.seed,
            **setting.trainer_settings(),
        )
        table = prepared_table(rows, args, model, tokenizer, setting.steps)
        trainer = LoLTrainer(
            model,
            args,
            table,
            processing_class=tokenizer,
            peft_config=setting.peft_config(),
            callbacks=[clock],
        )
        drawn = [[rows[i] for i in trainer.draw_order.batch(b)] for b in range(setting.steps)]
        yield from _trained(trainer, clock, [lengths_of(batch) for batch in drawn])


def trl_sft(setting: Setting, **more: Any) -> Steps:
    """TRL's SFTTrainer on the same rows, loss on completions."""
    from trl import SFTConfig, SFTTrainer

    decode = setting.tokenizer().decode
    data = [
        {"prompt": decode(row["prompt_ids"]), "completion": decode(row["completion_ids"][:-1])}
        for batch in random_batches(setting.rows(), setting.steps, setting.batch, setting.seed)
        for row in batch
    ]
    yield from _trl(SFTTrainer, SFTConfig, data, setting, **more)


def trl_dpo(setting: Setting, **more: Any) -> Steps:
    """TRL's DPOTrainer on pairs of the same texts, the reference's log-probabilities precomputed."""
    from trl import DPOConfig, DPOTrainer

    by_prompt: dict[tuple, list[Row]] = {}
    for row in setting.rows():
        by_prompt.setdefault(tuple(row["prompt_ids"]), []).append(row)
    pairs = [sorted(p, key=lambda r: -r["reward"])[:2] for p in by_prompt.values() if len(p) > 1]
    chosen = np.random.default_rng(setting.seed).permutation(len(pairs))[: setting.steps * setting.batch]
    decode = setting.tokenizer().decode
    data = [
        {
            "prompt": decode(pairs[i][0]["prompt_ids"]),
            "chosen": decode(pairs[i][0]["completion_ids"][:-1]),
            "rejected": decode(pairs[i][1]["completion_ids"][:-1]),
        }
        for i in chosen
    ]
    yield from _trl(DPOTrainer, DPOConfig, data, setting, **{"precompute_ref_log_probs": True, **more})


def _trl(trainer_class: Any, config_class: Any, data: list[Row], setting: Setting, **more: Any) -> Steps:
    import datasets

    clock, lengths = make_clock(setting), list[Lengths]()

    class Counting(trainer_class):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            lengths.append(_lengths(inputs))
            return super().compute_loss(model, inputs, *rest, **options)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            setting.build(),
            args=config_class(output_dir=folder, max_steps=setting.steps, **setting.trainer_settings(), **more),
            train_dataset=datasets.Dataset.from_list(data),
            processing_class=setting.tokenizer(),
            peft_config=setting.peft_config(),
            callbacks=[clock],
        )
        yield from _trained(trainer, clock, lengths)


def _lengths(inputs: dict[str, torch.Tensor]) -> Lengths:
    """Of a batch as TRL's trainers get it."""
    completion = inputs["labels"] != -100 if "labels" in inputs else inputs["completion_mask"]
    own, whole = completion.sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
    return [(total - tokens, tokens) for tokens, total in zip(own, whole, strict=True)]


def _trained(trainer: Any, clock: Any, lengths: list[Lengths]) -> Steps:
    """Train, and yield what the clock read."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    for (start, end), found in zip(itertools.pairwise(clock.ends), lengths[1:], strict=False):
        yield end - start, found


def make_clock(setting: Setting) -> Any:
    """A trainer callback whose `ends` are the times at the ends of steps; it stops the run after them."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            setting.wait()
            self.ends.append(time.perf_counter())
            control.should_training_stop = len(self.ends) >= setting.steps

    return Clock()


CONTESTANTS: dict[str, Callable[[Setting], Steps]] = {
    "released": released,
    "trl_sft": trl_sft,
    "trl_sft_no_checkpointing": lambda setting: trl_sft(setting, gradient_checkpointing=False),
    "trl_dpo": trl_dpo,
    "ours": ours,
    "ceiling": ceiling,
}
