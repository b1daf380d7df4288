"""From raw rows to an evaluated model: `leftover run` of a recipe, and a script with TRL that gives the same numbers.

python -m benchmarks.end_to_end CONTESTANT TASK

Both read the same conversations, score them with the same function, take as many updates of as many completions on a
LoRA adapter, complete the same held-out prompts with the reference and the policy, and score what these wrote.
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Numbers = dict[str, dict[str, float]]  # reference and policy -> name -> number
NAMES = ("reward", "kl", "distinct_2", "length", "own_perplexity_under_reference")
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 64, 8, 64  # conversations, of two completions each
MAX_PROMPT, MAX_COMPLETION = 160, 48  # tokens; conversations with more are left out
LEARNING_RATE = 1e-4
GENERATED = 32  # prompts at once


@dataclass(frozen=True)
class Task:
    model: str  # a folder
    rows: str  # JSON lines: messages, completion, split
    folder: str  # for what is written
    steps: int = 16
    batch: int = 8  # completions a step
    max_new_tokens: int = MAX_COMPLETION
    seed: int = 0


def score(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """A reward that costs nothing: how many different words, 30 at most."""
    return [float(min(len(set(text.lower().split())), 30)) for text in completions]


def write_rows(model: str, path: Path, sizes: tuple[int, int, int] = (TRAIN, VALIDATION, TEST)) -> str:
    """Raw rows for a task: conversations that fit, whose two completions differ in reward. Returns their source."""
    from benchmarks.rows import load_tokenizer, pairs

    tokenizer, (groups, source) = load_tokenizer(model), pairs()
    splits = (name for name, size in zip(SPLITS, sizes, strict=True) for _ in range(size))
    with path.open("w", encoding="utf-8") as file:
        for group in groups:
            asked = tokenizer.apply_chat_template(group[0].messages, add_generation_prompt=True, tokenize=False)
            longest = max(len(ids) for ids in tokenizer([answer.completion for answer in group])["input_ids"])
            first, second = score([], [answer.completion for answer in group])
            if first == second or len(tokenizer(asked)["input_ids"]) > MAX_PROMPT or longest >= MAX_COMPLETION:
                continue
            if (split := next(splits, None)) is None:
                return source
            for answer in group:
                row = {"prompt": answer.messages, "completion": answer.completion.strip(), "split": split}
                file.write(json.dumps(row) + "\n")
    assert next(splits, None) is None, "too few conversations are as short as that"
    return source


def ours(task: Task) -> Numbers:
    """`leftover run` of a small recipe: A-LoL seq, the value from the other completion of a prompt."""
    from leftover.evaluation.measures import MEASURES
    from leftover.pipeline import run
    from leftover.recipe.files import make_recipe

    content = {
        "name": "end_to_end",
        "output_dir": str(Path(task.folder) / "run"),
        "seeds": [task.seed],
        "model": {"path": task.model, "lora": {"r": 16, "alpha": 32}},
        "data": {"path": task.rows, "max_prompt_tokens": 2 * MAX_PROMPT, "max_completion_tokens": 2 * MAX_COMPLETION},
        "reward": {"functions": [{"type": "python", "function": "benchmarks.end_to_end:score"}]},
        "reference": {"source": "as_is"},
        "value": {"targets": "group_loo"},
        "train": {
            "max_steps": task.steps,
            "per_device_train_batch_size": task.batch,
            "learning_rate": LEARNING_RATE,
            "bf16": True,
            "load_best_model_at_end": False,  # the other trains to the end, too
            **dict.fromkeys(("eval_strategy", "save_strategy"), "no"),
        },
        "evaluate": {"max_new_tokens": task.max_new_tokens, "batch_size": GENERATED},
    }
    results = run(make_recipe(content))
    assert results is not None
    table = results["sampled"]["table"]

    def numbers(subject: str) -> dict[str, float]:
        return {name: float(MEASURES[name].value(table[subject]) or 0.0) for name in NAMES}

    return {"reference": numbers("reference"), "policy": numbers(results["main"])}


def trl_dpo(task: Task, **more: Any) -> Numbers:
    """TRL's DPOTrainer on pairs of the same rows, then `model.generate` in batches padded on the left."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in Path(task.rows).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(task.model, padding_side="left")
    trainer = DPOTrainer(
        task.model,
        args=DPOConfig(
            output_dir=str(Path(task.folder) / "dpo"),
            max_steps=task.steps,
            per_device_train_batch_size=task.batch // 2,  # pairs
            learning_rate=LEARNING_RATE,
            seed=task.seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **more,
        ),
        train_dataset=datasets.Dataset.from_list(preferences([row for row in rows if row["split"] == "train"])),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    prompts = list({json.dumps(row["prompt"]): row["prompt"] for row in rows if row["split"] == "test"}.values())
    torch.manual_seed(task.seed)
    model = trainer.model.eval()
    return {
        "reference": evaluate(model, tokenizer, prompts, task, adapter=False),
        "policy": evaluate(model, tokenizer, prompts, task, adapter=True),
    }


def preferences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every prompt's completions the best as chosen, the worst as rejected."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row, reward in zip(rows, score([], [row["completion"] for row in rows]), strict=True):
        by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row | {"reward": reward})
    pairs = []
    for found in by_prompt.values():
        worst, *_, best = sorted(found, key=lambda row: row["reward"])
        sides = {"chosen": best, "rejected": worst}
        if best["reward"] > worst["reward"]:
            answers = {k: [{"role": "assistant", "content": row["completion"]}] for k, row in sides.items()}
            pairs.append({"prompt": best["prompt"], **answers})
    return pairs


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, prompts: list[Any], task: Task, adapter: bool) -> dict[str, float]:
    """Sampled completions of the policy, or of the reference, `adapter` off: their reward, likelihood, diversity."""
    from leftover.metrics import distinct_n

    texts, tokens, own, reference = list[str](), list[int](), list[Tensor](), list[Tensor]()
    for start in range(0, len(prompts), GENERATED):
        options = {"add_generation_prompt": True, "padding": True, "return_dict": True, "return_tensors": "pt"}
        asked = tokenizer.apply_chat_template(prompts[start : start + GENERATED], **options)
        sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        with contextlib.nullcontext() if adapter else model.disable_adapter():
            ids = model.generate(**asked, max_new_tokens=task.max_new_tokens, **sampling)
            completion = ids[:, asked["input_ids"].shape[1] :]
            is_end = completion == tokenizer.eos_token_id
            kept = (is_end.cumsum(1) - is_end.long()) == 0  # the first end is the completion's own
            mask = torch.cat([asked["attention_mask"], kept.long()], dim=1)
            own.append(sequence_logprobs(model, ids, mask, kept))
        if adapter:
            with model.disable_adapter():
                reference.append(sequence_logprobs(model, ids, mask, kept))
        else:
            reference.append(own[-1])
        texts += tokenizer.batch_decode(completion, skip_special_tokens=True)
        tokens += kept.sum(1).tolist()
    return {
        "reward": sum(score([], texts)) / len(texts),
        "kl": float((torch.cat(own) - torch.cat(reference)).mean()),
        "distinct_2": distinct_n(texts, 2),
        "length": sum(tokens) / len(tokens),
        "own_perplexity_under_reference": float((-torch.cat(reference).sum() / sum(tokens)).exp()),
    }


def sequence_logprobs(model: Any, ids: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
    """[B] log-probability of the last columns of `ids`, those that are `kept`."""
    width = kept.shape[1]
    with torch.autocast("cpu", torch.bfloat16):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=width + 1, use_cache=False
        ).logits[:, :-1]
    logprobs = logits.float().log_softmax(-1).gather(2, ids[:, -width:, None]).squeeze(2)
    return (logprobs * kept).sum(1)


CONTESTANTS: dict[str, Callable[[Task], Numbers]] = {
    "ours": ours,
    "trl_dpo": trl_dpo,
    "trl_dpo_no_checkpointing": lambda task: trl_dpo(task, gradient_checkpointing=False),
}


@dataclass
class Finished:
    """The turns of one contestant: seconds of its process, peak memory in MiB, and what it found."""

    seconds: list[float]
    peaks: list[float]
    numbers: list[Numbers]


def take_turns(model: str, turns: int) -> Iterator[tuple[dict[str, Finished], str]]:
    """Every contestant once, then again; yields after every turn, with the source of the rows."""
    from benchmarks.process import result_of

    found = {name: Finished([], [], []) for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        source = write_rows(model, rows)
        for turn in range(turns):
            for name, finished in found.items():
                folder = Path(scratch) / f"{name}-{turn}"
                folder.mkdir()
                task = Task(model, str(rows), str(folder), seed=turn)
                start = time.perf_counter()
                result = result_of("-m", "benchmarks.end_to_end", name, json.dumps(asdict(task)))
                finished.seconds.append(time.perf_counter() - start)
                finished.peaks.append(result["peak_mib"])
                finished.numbers.append(result["numbers"])
                print(f"turn {turn + 1}/{turns}  end to end  {name:26} {finished.seconds[-1]:7.1f} s", flush=True)
            yield found, source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("task", type=json.loads, help="fields of a Task as JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    from benchmarks.process import peak_mib

    torch.set_num_threads(1)
    numbers = CONTESTANTS[args.contestant](Task(**args.task))
    print(json.dumps({"numbers": numbers, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
