"""What a recipe would download, compute and hold: everything that the dry run prints."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from leftover.commands.dry_run.checks import Settings, check_recorded, checked_reward, training_settings
from leftover.commands.dry_run.here import measured_pace
from leftover.commands.dry_run.memory import Holding, Memory, fitting_memory
from leftover.commands.dry_run.pace import DEVICES, HERE, Pace, exchange
from leftover.commands.dry_run.rows import Rows, read
from leftover.commands.dry_run.scorers import Fitting, fittings
from leftover.commands.dry_run.shape import Shape, find_config, measure
from leftover.commands.dry_run.sources import DOWNLOAD, LOCAL, Source, list_sources, missing_packages
from leftover.commands.dry_run.trace import Traced, skeleton
from leftover.commands.dry_run.work import LEFTOVER, Amount, Sizes, Training, estimate_training
from leftover.data.tokenizer import read_chat_template
from leftover.errors import looked_for, not_readable
from leftover.evaluation.frontier import COUNTS
from leftover.models.load import is_encoder_decoder, torch_dtype
from leftover.pipeline import STAGES
from leftover.prepare.checks import needs_value, value_targets
from leftover.prepare.readers import extra_blocks, num_reference_samples, rows_of_a_prompt
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward
from leftover.runs.names import logprob_columns
from leftover.runs.run import Run
from leftover.training.run import VALIDATION_TOKENS
from leftover.trust import no_code

_TWO_TEXTS = "not estimated for an encoder-decoder"


@dataclass(frozen=True)
class Work:
    """What, how much of it, and floating-point operations (None: unknown). `bound`: they are the most there can be."""

    what: str
    amount: str
    operations: float | None
    bound: bool
    seconds: float | None = None  # on one device
    exchange: float = 0.0  # seconds for which several devices exchange gradients
    shared: bool = True  # by several devices
    waits: Callable[[int], float] = lambda devices: 0.0  # those of the seconds that decoding steps take, whatever rows

    def seconds_on(self, devices: int) -> float | None:
        """On several devices that share the same rows."""
        if self.seconds is None or devices == 1 or not self.shared:
            return self.seconds
        work = self.seconds - self.waits(1) + self.exchange  # steps of more rows are fewer
        return work / devices + self.waits(devices)


@dataclass(frozen=True)
class Estimate:
    recipe: Recipe
    sources: list[Source]
    packages: list[str]  # needed and not installed
    rows: Rows | str  # or why they are unknown
    shape: Shape | None
    shape_from: str
    trainings: list[Training]
    work: list[Work]
    memory: list[Memory]
    disk: list[tuple[str, float | None]]
    notes: list[str]
    device: str | None = None  # that the seconds are of; HERE or a name of `pace.DEVICES`


@no_code()
def estimate_run(
    recipe: Recipe,
    until: str = "report",
    rows: Rows | str | None = None,
    num_runs: int | None = None,
    frontier: bool = False,
    with_memory: bool = True,
    device: str | None = None,
) -> Estimate:
    """The estimate of a run up to and including the stage `until`.

    Args:
        rows: the result of `dry_run.rows.read`; default: they are read.
        num_runs: how often every policy is trained; default: once a seed.
        frontier: the policies are the strengths of a frontier, and their checkpoints are compared.
        with_memory: False leaves memory and disk out, which take most of the time.
        device: whose time is told: HERE, which is measured, or a name of `pace.DEVICES`; None: no time is told.

    Raises UserError for a recipe or rows that the run would refuse before it computes anything.
    """
    stages = list(STAGES)
    trains, evaluates = (stages.index(until) >= stages.index(stage) for stage in ("train", "evaluate"))
    section, reward = recipe.model, checked_reward(recipe)
    read_chat_template(section.chat_template)
    settings = training_settings(recipe, policies=trains)
    rows = read(recipe) if rows is None else rows
    check_recorded(recipe, rows)
    sizes, sources = Sizes(recipe, rows), list_sources(recipe, judges=evaluates or frontier)
    trainings = [estimate_training(name, own.args, sizes) for name, own in settings.items()]
    references = [training for training in trainings if training.name == "reference"]
    policies = [replace(t, runs=num_runs or len(recipe.seeds)) for t in trainings if t.name != "reference"]
    config, shape_from = find_config(section)
    judges = Run(recipe).judges if evaluates or frontier else None
    scorers = fittings(recipe, {"reward": reward, "judge": judges}, with_memory, device == HERE)
    if config is not None and is_encoder_decoder(config):  # its two halves read different texts
        config, shape_from = None, _TWO_TEXTS
    shape, memory, disk = None, list[Memory](), list[tuple[str, float | None]]()
    if config is not None:
        named = "model.config" if section.path is None else f"model.path '{section.path}'"
        with not_readable(f"{named}: no {config.model_type} can be made of its config"):
            model = skeleton(config, section.lora, torch_dtype(section.dtype), section.attn_implementation)
            shape = measure(model, config, section.quantization is not None)
    if shape is not None and with_memory:
        saves = {training.name: training.saves for training in trainings}
        holding = Holding(shape, sources, sizes, settings, saves)
        memory = [fitting_memory(scorer) for scorer in scorers if scorer.weight_bytes]
        memory += holding.memory(Traced(model), reward.scores_new_completions, evaluates)
        disk = list(holding.disk(trains))
    pace = None
    if shape is not None and config is not None and device is not None:
        pace = _pace(device, config, shape, sizes, settings)
    costs = _Costs(shape, sources, sizes, pace, scorers, reward)
    costs.fit()
    costs.prepare(references)
    if trains:
        costs.train(policies)
    if evaluates:
        costs.evaluate()
    if frontier:
        costs.frontier(policies)
    trainings, packages = references + policies, missing_packages(recipe)
    notes = [*_around(costs.lines), *_notes(reward, sizes, sources, trainings)]
    if shape_from == _TWO_TEXTS:
        notes.append(
            "Operations, time, memory and disk are not estimated for an encoder-decoder: the run itself tells, from "
            "its first steps on, how long it will take."
        )
    return Estimate(
        recipe, sources, packages, rows, shape, shape_from, trainings, costs.lines, memory, disk, notes, device
    )


def _pace(device: str, config: Any, shape: Shape, sizes: Sizes, settings: dict[str, Settings]) -> Pace:
    """At the batches of the first training, and rows of the mean length."""
    recipe, lengths = sizes.recipe, sizes.lengths("train")
    means = sizes.limits(1) if lengths is None or not len(lengths[0]) else lengths
    prompt, completion = (max(1, round(float(part.mean()))) for part in means)
    if device != HERE:
        return DEVICES[device].pace(shape, prompt + completion)
    args = next(iter(settings.values())).args if settings else None
    return measured_pace(
        config,
        recipe.model,
        shape,
        rows_per_batch=args.per_device_train_batch_size if args else 1,
        prompt=prompt,
        completion=completion,
        generated_at_once=sizes.at_once(recipe.evaluate.batch_size),
        compute_dtype=recipe.compute_dtype,
        checkpointing=bool(args and args.gradient_checkpointing),
    )


def _around(lines: list[Work]) -> Iterator[str]:
    """What surrounds the steps of training, in their own measure."""
    steps = [line.operations for line in lines if line.what.startswith("train ")]
    around = [line.operations for line in lines if re.match(r"validation|test|reference log-prob", line.what)]
    known = [operations for operations in (*steps, *around) if operations is not None]
    if around and sum(filter(None, steps)) and len(known) == len(steps) + len(around):
        share = sum(filter(None, around)) / sum(filter(None, steps))
        yield f"Validation, tests and log-probabilities take {share:.0%} of the operations of the training steps."


def _notes(reward: SumReward, sizes: Sizes, sources: list[Source], trainings: list[Training]) -> Iterator[str]:
    """What a reader has to know of these numbers."""
    if sizes.rows is None and sizes.data.max_rows is None:
        yield "Steps and costs depend on the rows; `--set data.max_rows=N` gives the most that N rows can take."
    if sizes.tokens is None:
        yield "Rows are taken to be as long as the recipe allows: counting tokens needs the data and the tokenizer."
    if any(t.selected == LEFTOVER and t.qualifier == "at most" for t in trainings):
        yield "Leftover: which rows have a positive advantage is known after `prepare`; steps shrink with their share."
    if not reward.scores_new_completions:
        yield "The rewards are recorded: no new completion is scored, and checkpoints are chosen on recorded rewards."
    for source in sources:
        if source.state == DOWNLOAD and Path(source.name).parent.name and Path(source.name).parent.is_dir():
            yield f"'{source.name}' is taken for a Hub id: there is none of that name here{looked_for(source.name)}."
    models = [s for s in sources if s.purpose in ("reward", "judge")]
    if models:
        yield "Reward models are not loaded: whether they load and what they score is not checked here."
    if unknown := sorted({s.name for s in models if s.parameters is None and s.state != LOCAL}):
        yield f"Of unknown size, so not in the totals: {', '.join(unknown)}."


class _Costs:
    """Collects the lines of the cost table: what each stage computes."""

    def __init__(
        self,
        shape: Shape | None,
        sources: list[Source],
        sizes: Sizes,
        pace: Pace | None,
        scorers: list[Fitting],
        reward: SumReward,
    ):
        self.recipe, self.shape, self.sources, self.sizes = sizes.recipe, shape, sources, sizes
        self.pace, self.scorers, self.reward = pace, scorers, reward
        self.lines: list[Work] = []

    def fit(self) -> None:
        for scorer in self.scorers:
            known = scorer.steps is not None
            amount = f"at most {scorer.steps:,} steps over {scorer.rows:,} rows" if known else "unknown"
            seconds = scorer.seconds
            if seconds is None and self.pace is not None and scorer.operations is not None:
                seconds = self.pace.steps(scorer.operations, scorer.steps or 0)
            self.lines.append(Work(f"fit {scorer.name}", amount, scorer.operations, known, seconds, shared=False))

    def prepare(self, references: list[Training]) -> None:
        recipe, sizes, value = self.recipe, self.sizes, self.recipe.value_settings
        rows = sizes.amount(None)
        self._rewards("rewards of the rows", rows)
        for reference in references:
            self._training("reference", [reference])
            validation = sizes.amount("validation", most_tokens=VALIDATION_TOKENS)
            self._passes("validation of the reference", validation, reference.evaluations)
        self._passes("reference log-probabilities", rows)
        if needs_value(recipe) and value_targets(recipe, self.reward) == "reference_samples":
            assert isinstance(value.num_prompts, int)
            prompts = sizes.prompts("train", value.num_prompts)
            self._generation("value: samples of the reference", prompts, value.num_samples)
        blocks, training_rows = extra_blocks(recipe), sizes.amount("train")
        if "quantile" in blocks:
            most = None if training_rows is None else sizes.prompts("train", training_rows.rows)
            self._generation("reward quantiles: samples of the reference", most, num_reference_samples(recipe))
        if "mismatched" in blocks:
            self._passes("mismatched log-probabilities", training_rows)

    def train(self, policies: list[Training]) -> None:
        self._training("policies", policies)
        most = self.recipe.selection_prompts
        evaluations = sum(training.evaluations * training.runs for training in policies)
        self._passes("validation: likelihood", self._held_out("validation", most), evaluations)
        if self.reward.scores_new_completions:
            prompts = self.sizes.prompts("validation", most)
            self._generation("validation: completions", prompts, evaluations)
            self._passes("validation: their KL", self.sizes.generated(prompts), evaluations, "completions")

    def evaluate(self) -> None:
        recipe, sizes, most = self.recipe, self.sizes, self.recipe.test_prompts
        policies, ways = len(recipe.policies) * len(recipe.seeds), len(recipe.decodings)
        prompts = sizes.prompts("test", most)
        self._passes("test: likelihood", self._held_out("test", most), policies)  # the table has the reference's
        self._generation("test: completions", prompts, (1 + policies) * ways, judges=True)
        # Each has its own from the sampling. For the KL at another temperature than 1 the reference reads once more.
        passes = len(logprob_columns(recipe)) - 1 + (recipe.evaluate.temperature != 1)
        self._passes("test: log-probabilities of completions", sizes.generated(prompts * policies * ways), passes)

    def _held_out(self, split: str, most_prompts: int) -> Amount | None:
        """The rows of at most so many prompts that a policy reads."""
        most = rows_of_a_prompt(self.reward.scores_new_completions)
        return self.sizes.amount(split, most_prompts, most_of_a_prompt=most)

    def frontier(self, policies: list[Training]) -> None:
        """Best-of-n of the reference, and the judges of all completions."""
        prompts = self.sizes.prompts("validation", self.recipe.selection_prompts)
        evaluations, written = sum(t.evaluations * t.runs for t in policies), self.sizes.generated(prompts)
        self._generation("frontier: best of n of the reference", prompts, max(COUNTS))
        self._rewards("frontier: judges", written, evaluations + max(COUNTS), ("judge",))

    def _training(self, what: str, trainings: list[Training]) -> None:
        if self.shape is None or any(training.seen is None for training in trainings):
            self.lines.append(Work(f"train {what}", "unknown", None, False))
            return
        operations = sum(training.runs * training.operations(self.shape) for training in trainings)
        steps = sum(training.runs * (training.steps or 0) for training in trainings)
        bound = any(training.seen is not None and training.seen.bound for training in trainings)
        qualifiers = {training.qualifier for training in trainings}
        qualifier = next((word for word in ("at most", "about") if word in qualifiers), "")
        online = [(t.runs * t.rollout_steps, *self._decoding(t.rollouts, t.rollout_batch)) for t in trainings]
        seconds = None
        if self.pace is not None:
            seconds = self.pace.steps(operations, steps) + sum(times * decoding for times, _, decoding in online)
        exchanged = exchange(self.shape, steps)
        amount = f"{qualifier} {steps:,} steps".strip()

        def waits(devices: int) -> float:
            return sum(times * waiting(devices) for times, waiting, _ in online)

        self.lines.append(Work(f"train {what}", amount, operations, bound, seconds, exchanged, waits=waits))
        for training in trainings:
            if written := training.rollouts * training.rollout_steps:
                self._rewards("  rewards of its own completions", self.sizes.generated(written), training.runs)

    def _passes(
        self,
        what: str,
        over: Amount | None,
        times: int = 1,
        unit: str = "rows",
        waits: Callable[[int], float] = lambda devices: 0.0,
        decoding: float = 0.0,
    ) -> None:
        """`times` forward passes, and what decoding takes beside each of them, with its share that waits."""
        if times == 0:
            return
        operations = None if over is None or self.shape is None else times * over.operations(self.shape)
        seconds = None
        if self.pace is not None and operations is not None and over is not None:
            seconds = self.pace.passes(operations, times * over.tokens) + times * decoding
        repeated = "" if times == 1 else f"{times} x "
        amount = "unknown" if over is None else f"{repeated}{over.rows:,} {unit}"
        bound = over is not None and over.bound
        self.lines.append(Work(what, amount, operations, bound, seconds, waits=lambda devices: times * waits(devices)))

    def _decoding(self, rows: int, batch_size: int) -> tuple[Callable[[int], float], float]:
        """Seconds to write `rows` completions that several devices wait for, and those of one device in all."""
        if self.pace is None:
            return (lambda devices: 0.0), 0.0
        pace, tokens, size = self.pace, self.sizes.written(), self.sizes.at_once(batch_size)
        return partial(pace.decode_waits, rows, tokens, size), pace.decoding(rows, tokens, size)

    def _generation(self, what: str, prompts: int | None, times: int, judges: bool = False) -> None:
        """As much as a pass over the completions, and their rewards."""
        written = None if prompts is None else self.sizes.generated(prompts)
        # The pass reads prompts, and texts that go on in another batch.
        waits, decoding = self._decoding(written.rows if written else 0, self.recipe.evaluate.batch_size)
        unit = f"completions of at most {self.recipe.max_new_tokens} tokens"
        self._passes(what, written, times, unit, waits, decoding)
        if written is not None and times > 0:
            purposes = ("reward", "judge") if judges else ("reward",)
            self._rewards("  their rewards" + (" and judges" if judges else ""), written, times, purposes)

    def _rewards(self, what: str, over: Amount | None, times: int = 1, purposes: tuple[str, ...] = ("reward",)) -> None:
        """Two operations a parameter and token, taken to be as many as the policy's own."""
        models = [source.parameters for source in self.sources if source.purpose in purposes]
        if models:
            known = None if over is None or None in models else over.tokens * times
            operations = None if known is None else 2.0 * sum(filter(None, models)) * known
            count = f"{len(models)} model{'s' if len(models) > 1 else ''}"
            measured = [s.row_seconds for s in self.scorers if s.name.split()[0] in purposes and s.row_seconds]
            seconds = None
            if measured and over is not None:
                seconds = sum(measured) * over.rows * times
            elif self.pace is not None and operations is not None and known is not None:
                seconds = self.pace.passes(operations, known)
            self.lines.append(Work(what, count, operations, over is not None and over.bound, seconds))
