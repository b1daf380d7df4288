"""The lines of the cost table: what each stage computes."""

from dataclasses import dataclass

from leftover.commands.dry_run.checks import Settings
from leftover.commands.dry_run.shape import Shape
from leftover.commands.dry_run.sources import Source
from leftover.commands.dry_run.work import Amount, Sizes, Training
from leftover.prepare.checks import needs_value, value_targets
from leftover.prepare.readers import extra_blocks, num_reference_samples
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward
from leftover.runs.names import DECODINGS, logprob_columns
from leftover.training.run import MAX_LIKELIHOOD_ROWS


@dataclass(frozen=True)
class Work:
    """What, how much of it, and floating-point operations (None: unknown). `bound`: they are the most there can be."""

    what: str
    amount: str
    operations: float | None
    bound: bool


class Costs:
    """Collects the lines of one estimate."""

    def __init__(self, recipe: Recipe, shape: Shape | None, sources: list[Source], sizes: Sizes):
        self.recipe, self.shape, self.sources, self.sizes = recipe, shape, sources, sizes
        self.lines: list[Work] = []

    def prepare(self, reward: SumReward, reference: Training | None, settings: dict[str, Settings]) -> None:
        recipe, sizes, value = self.recipe, self.sizes, self.recipe.value
        rows = sizes.amount(None)
        self._rewards("rewards of the rows", rows)
        if reference is not None:
            self._training("reference", [reference], settings)
            validation = sizes.amount("validation", most_rows=MAX_LIKELIHOOD_ROWS)
            self._passes("validation of the reference", validation, reference.evaluations)
        self._passes("reference log-probabilities", rows)
        if needs_value(recipe) and value_targets(recipe, reward) == "reference_samples":
            prompts = sizes.prompts("train", value.num_prompts)
            self._generation("value: samples of the reference", prompts, value.num_samples)
        blocks, training_rows = extra_blocks(recipe), sizes.amount("train")
        if "quantile" in blocks:
            most = None if training_rows is None else sizes.prompts("train", training_rows.rows)
            self._generation("reward quantiles: samples of the reference", most, num_reference_samples(recipe))
        if "mismatched" in blocks:
            self._passes("mismatched log-probabilities", training_rows)

    def train(self, policies: list[Training], settings: dict[str, Settings], scores_new_completions: bool) -> None:
        self._training("policies", policies, settings)
        most = self.recipe.evaluate.max_selection_prompts
        evaluations = sum(training.evaluations * training.runs for training in policies)
        self._passes("validation: likelihood", self.sizes.amount("validation", most), evaluations)
        if scores_new_completions:
            self._generation("validation: completions", self.sizes.prompts("validation", most), evaluations)

    def evaluate(self) -> None:
        recipe, sizes, most = self.recipe, self.sizes, self.recipe.evaluate.max_prompts
        subjects = 1 + len(recipe.policies) * len(recipe.seeds)
        prompts, times = sizes.prompts("test", most), subjects * len(DECODINGS)
        self._passes("test: likelihood", sizes.amount("test", most), subjects)
        self._generation("test: completions", prompts, times, judges=True)
        written = sizes.generated(prompts * times)
        self._passes("test: log-probabilities of completions", written, len(logprob_columns(recipe)))

    def _training(self, what: str, trainings: list[Training], settings: dict[str, Settings]) -> None:
        operations, steps, bound = 0.0, 0, False
        for training in trainings:
            one = training.operations(self.shape, bool(settings[training.name].args.gradient_checkpointing))
            if one is None or training.steps is None or training.seen is None:
                self.lines.append(Work(f"train {what}", "unknown", None, False))
                return
            operations, steps = operations + one * training.runs, steps + training.steps * training.runs
            bound = bound or training.seen.bound
        qualifiers = {training.qualifier for training in trainings}
        qualifier = next((word for word in ("at most", "about") if word in qualifiers), "")
        self.lines.append(Work(f"train {what}", f"{qualifier} {steps:,} steps".strip(), operations, bound))

    def _passes(self, what: str, over: Amount | None, times: int = 1) -> None:
        if times == 0:
            return
        operations = None if over is None or self.shape is None else times * over.operations(self.shape)
        rows = "unknown" if over is None else f"{_times(times)}{over.rows:,} rows"
        self.lines.append(Work(what, rows, operations, over is not None and over.bound))

    def _generation(self, what: str, prompts: int | None, times: int, judges: bool = False) -> None:
        if prompts is None:
            self.lines.append(Work(what, "unknown", None, False))
        elif times > 0:
            written = self.sizes.generated(prompts * times)
            operations = None if self.shape is None else written.operations(self.shape)
            longest = f"{_times(times)}{prompts:,} completions of at most {self.sizes.max_new_tokens} tokens"
            self.lines.append(Work(what, longest, operations, True))
            self._rewards("  their rewards" + (" and judges" if judges else ""), written, judges)

    def _rewards(self, what: str, over: Amount | None, judges: bool = False) -> None:
        """Two operations a parameter and token, taken to be as many as the policy's own."""
        purposes = ("reward", "judge") if judges else ("reward",)
        parameters = [source.parameters for source in self.sources if source.purpose in purposes]
        if not parameters:
            return
        known = over is not None and None not in parameters
        operations = 2.0 * sum(filter(None, parameters)) * over.tokens if known and over is not None else None
        count = f"{len(parameters)} model{'s' if len(parameters) > 1 else ''}"
        self.lines.append(Work(what, count, operations, over is not None and over.bound))


def _times(times: int) -> str:
    return "" if times == 1 else f"{times} x "
