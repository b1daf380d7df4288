"""From what was found of rows, model and machine to the content of a recipe, with a comment a key."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leftover.commands.dry_run.estimate import estimate_run
from leftover.commands.dry_run.rows import Rows
from leftover.commands.dry_run.shape import Shape
from leftover.commands.init.limits import Limits, held_out_share, rows_a_step, steps
from leftover.commands.init.machine import Machine
from leftover.commands.init.scores import JUDGED, Scores, scorer
from leftover.monitoring.terminal import size_text
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import EvaluateSection

Content = dict[str, Any]

# Parameters up to which all weights are trained; above them an adapter is as good, and far lighter.
_FULL_ON_CPU, _FULL_ON_GPU = 1e8, 1e9
_SMALL = 5e7  # models that take, and need, higher learning rates
# Learning rates of the reference and of the policies.
_RATES = {"adapter": (5e-4, 1e-4), "full": (1e-4, 2e-5), "small": (1e-3, 5e-5)}
_MANY_ROWS = 20_000
_LORA = {"r": 16, "alpha": 32}
_LEAST_GENERATED = 4  # completions that are written at a time, at least


@dataclass
class Plan:
    """A recipe's content, `comments` by dotted key, and what is to be said beside it."""

    content: Content
    comments: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, comment: str = "") -> None:
        *sections, last = key.split(".")
        section = self.content
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
        if comment:
            self.comments[key] = comment


def plan_data(plan: Plan, limits: Limits, rows: Rows, rejected: str, own_splits: bool) -> None:
    """Limits and splits. `rejected`: the first fault of the rows that are put aside; empty if there is none."""
    families = len(np.unique(rows.family))
    for key, limit, longer, what in (
        ("max_prompt_tokens", limits.prompt, limits.longer_prompts, "cut on the left"),
        ("max_completion_tokens", limits.completion, limits.longer_completions, "left out"),
    ):
        share = f"{longer:.1%} are longer, and {what}" if longer else "none is longer"
        plan.put(f"data.{key}", limit, f"of the model's tokenizer; {share}")
    if rejected:
        plan.put("data.on_bad_row", "skip", f"faulty rows go to rejected_rows.jsonl; the first: {rejected}")
    if own_splits:
        return
    held_out = held_out_share(families)
    plan.put("data.validation_size", held_out, f"of the {families:,} prompt families: they choose the checkpoint")
    plan.put("data.test_size", held_out, "they are the test")


def plan_rewards(plan: Plan, scores: Scores | None, scored_by: Content | None) -> None:
    """The section `scored_by`, else the recorded scores with what can be fitted on them."""
    if scored_by is not None:
        for key, value in scored_by.items():
            plan.put(f"reward.{key}", value, "what scores the rows, and new completions" * (key == "functions"))
        return
    assert scores is not None  # or else there are functions
    recorded: dict[str, Any] = {"type": "column"}
    if not scores.can_fit:
        plan.put("reward.functions", [recorded], "the recorded scores; too few rows to fit what scores new completions")
        plan.notes.append(
            "There are too few scored rows to fit a scorer: new completions get no score, and the report compares "
            "likelihoods. `leftover judge` or a reward function tells more."
        )
        return
    comment = "the recorded scores; new completions are scored by a model of words fitted on them"
    plan.put("reward.functions", [recorded | {"new_completions": scorer(scores)}], comment)
    if scores.can_judge:
        plan.put("data.part", [0.0, JUDGED], "a share of the prompts; the others are the judge's alone")
        own = {key: plan.content["data"][key] for key in _OF_FIT if key in plan.content["data"]}
        fit = own | {"part": [JUDGED, 1.0]}
        judge = {"type": "linear", "name": "judge", "target": scores.target, "features": "both", "fit": fit}
        plan.put(
            "evaluate.judges", [judge], "fitted on rows that nothing else was trained on; reported, never trained on"
        )


_OF_FIT = (
    "path", "format", "columns", "prompts", "labels", "table", "on_bad_row", "hub_config", "hub_data_dir", "hub_split",
)  # fmt: skip


def plan_training(plan: Plan, rows: int, shape: Shape, machine: Machine) -> None:
    """Weights and batches as the model's size alone suggests; `fit_memory` then makes them fit.

    `rows`: training rows that have a score and are not too long.
    """
    parameters = f"{shape.parameters / 1e6:,.1f} million parameters"
    if shape.parameters > (_FULL_ON_GPU if machine.on_gpu else _FULL_ON_CPU):
        _adapter(plan, f"an adapter: the model has {parameters}")
    else:
        plan.comments["model.path"] = f"{parameters}, all of them trained; for an adapter: lora: {{r: 16, alpha: 32}}"
    if machine.bfloat16:
        if "lora" in plan.content["model"]:
            plan.put("model.dtype", "bfloat16", "of the frozen weights")
        for key in ("train.bf16", "reference.train.bf16"):
            plan.put(key, True, "compute in bfloat16")
    of_a_step = rows_a_step(rows)
    slow = not machine.on_gpu and shape.parameters > _SMALL
    number = steps(rows, of_a_step, slow)
    passes = number * of_a_step / max(1, rows)
    few = "; few, for this is a CPU" if slow and passes < 2 else ""
    plan.put(
        "train.max_steps",
        number,
        f"of every policy; {passes:.1f} passes over {rows:,} training rows with a score{few}; A-LoL "
        "draws from those above their value alone",
    )
    _rates(plan, shape.parameters)
    plan.put(
        "reference.train.num_train_epochs", 1 if rows > _MANY_ROWS else 2, "the model learns to write such rows first"
    )
    for key in ("train", "reference.train"):
        plan.put(f"{key}.per_device_train_batch_size", of_a_step, "rows of a step")
    plan.put(
        "policies.a_lol_seq", {"objective": "a_lol_seq"}, "A-LoL: the rows above what their prompt leads to expect"
    )
    plan.put("policies.nll", {"objective": "nll"}, "a control: plain fine-tuning on all rows")
    plan.put("policies.nll_top", {"objective": "nll_top"}, "a control: plain fine-tuning on the best quarter")


def _rates(plan: Plan, parameters: int) -> None:
    kind = "adapter" if "lora" in plan.content["model"] else "small" if parameters < _SMALL else "full"
    reference, policies = _RATES[kind]
    plan.put("train.learning_rate", policies, "usual for an adapter" if kind == "adapter" else "usual for all weights")
    plan.put("reference.train.learning_rate", reference, "higher: it starts from the model itself")


def _adapter(plan: Plan, comment: str) -> None:
    plan.put("model.lora", dict(_LORA), comment)
    plan.comments.pop("model.path", None)


def fit_memory(plan: Plan, rows: Rows, shape: Shape, machine: Machine) -> None:
    """Change batches, then checkpointing, then weights, until the dry run's estimate fits; else a note says so."""
    while True:
        estimate = estimate_run(make_recipe(plan.content), rows=rows)
        if estimate.shape is None:  # of an encoder-decoder
            plan.notes.append("Whether batches fit into memory is not known for this model: lower them where it ends.")
            return
        most = {
            kind: max((_held(m, machine) for m in estimate.memory if m.stage.startswith(stages)), default=0)
            for kind, stages in (("training", "training step"), ("writing", ("validation", "evaluation")))
        }  # a pass over many rows takes as many at once as there is room for
        if max(most.values()) <= machine.room:
            return
        # Halvings that it takes at least, since no more than all of it shrinks with the batch.
        halvings = {kind: math.ceil(math.log2(held / machine.room)) for kind, held in most.items() if held}
        trains = most["training"] > machine.room
        lighter = _lighter_training(plan, shape, machine, halvings["training"]) if trains else None
        if not (_lighter_writing(plan, halvings["writing"]) if lighter is None else lighter):
            plan.notes.append(
                f"This takes about {size_text(max(most.values()))}, and {machine}: take a smaller model, or lower the "
                "limits of data."
            )
            return


def _held(memory: Any, machine: Machine) -> int:
    return (memory.total if machine.on_gpu else memory.process) or 0


def _lighter_training(plan: Plan, shape: Shape, machine: Machine, halvings: int) -> bool:
    """One step towards less memory; False if there is none left."""
    model, trainings = plan.content["model"], _trainings(plan)
    halved = {key: fields for key, fields in trainings.items() if fields["per_device_train_batch_size"] > 1}
    for key, fields in halved.items():
        batch = fields["per_device_train_batch_size"]
        whole = batch * fields.get("gradient_accumulation_steps", 1)
        fewer = max(1, batch // 2**halvings)
        plan.put(f"{key}.per_device_train_batch_size", fewer, "rows that fit into memory at once")
        plan.put(f"{key}.gradient_accumulation_steps", whole // fewer, f"{whole} rows a step")
    if halved:
        return True
    if not all(fields.get("gradient_checkpointing") for fields in trainings.values()):
        for key in trainings:
            plan.put(f"{key}.gradient_checkpointing", True, "takes less memory, and a third more time")
        return True
    if "lora" not in model:
        _adapter(plan, "an adapter: all weights do not fit into memory")
        _rates(plan, shape.parameters)
        return True
    if model.get("dtype") != "bfloat16":
        plan.put("model.dtype", "bfloat16", "of the frozen weights: they do not fit into memory otherwise")
        return True
    if machine.on_gpu and "quantization" not in model and importlib.util.find_spec("bitsandbytes"):
        plan.put("model.quantization", "nf4", "4-bit weights under the adapter: they do not fit into memory otherwise")
        return True
    return False


def _trainings(plan: Plan) -> dict[str, Content]:
    """Key -> settings of the trainings that have a batch; the user may have set them otherwise."""
    sections = {"train": plan.content["train"], "reference.train": plan.content["reference"].get("train", {})}
    return {key: fields for key, fields in sections.items() if "per_device_train_batch_size" in fields}


def _lighter_writing(plan: Plan, halvings: int) -> bool:
    size = plan.content.get("evaluate", {}).get("batch_size", EvaluateSection().batch_size)
    if size <= _LEAST_GENERATED:
        return False
    fewer = max(_LEAST_GENERATED, size // 2**halvings)
    plan.put("evaluate.batch_size", fewer, "completions that are written at a time, as many as fit into memory")
    return True


def in_order(content: Mapping[str, Any]) -> Content:
    """The sections in the order of a recipe."""
    order = ("name", "output_dir", "model", "data", "reward", "reference", "policies", "train", "evaluate")
    return {key: content[key] for key in (*order, *content.keys() - set(order)) if key in content}
