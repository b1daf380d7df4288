"""The lines of the cost table: what each stage computes."""

from dataclasses import dataclass
from typing import Any

from leftover.commands.dry_run.shape import Shape
from leftover.commands.dry_run.sources import Source
from leftover.commands.dry_run.work import Amount, Sizes, Training
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward

# Sampled and greedy completions (`leftover.runs.names.DECODINGS`).
_DECODINGS = 2
# Validation rows whose likelihood chooses the reference's checkpoint (`leftover.training.run`).
_LIKELIHOOD_ROWS = 2000


@dataclass(frozen=True)
class Work:
    """What, how much of it, and floating-point operations (None: unknown). `bound`: they are the most there can be."""

    what: str
    amount: str
    operations: float | None
    bound: bool


class Costs:
    """Collects the lines of one plan."""

    def __init__(self, recipe: Recipe, reward: SumReward, shape: Shape | None, sources: list[Source], sizes: Sizes):
        self.recipe, self.reward, self.shape, self.sources, self.sizes = recipe, reward, shape, sources, sizes
        self.scores = reward.scores_new_completions
        self.lines: list[Work] = []

    def prepare(self, trainings: list[Training], settings: dict[str, Any]) -> None:
        from leftover.prepare.checks import needs_value, value_targets
        from leftover.prepare.readers import extra_blocks, num_reference_samples

        recipe, sizes, value = self.recipe, self.sizes, self.recipe.value
        rows = sizes.amount(None)
        self._rewards("rewards of the rows", rows)
        for training in trainings:
            if training.name == "reference":
                self._training("reference", [training], settings)
                some = sizes.amount("validation", most_rows=_LIKELIHOOD_ROWS)
                self._passes("validation of the reference", some, training.evaluations)
        self._passes("reference log-probabilities", rows)
        if needs_value(recipe) and value_targets(recipe, self.reward) == "reference_samples":
            prompts, _ = sizes.prompts("train", value.num_prompts)
            repeats = value.samples_per_prompt if value.decoding == "sample" else 1
            self._generation("value: samples of the reference", prompts, repeats)
        blocks = extra_blocks(recipe)
        if "quantile" in blocks:
            what, most = "reward quantiles: samples of the reference", sizes.amount("train")
            if most is None:
                self.lines.append(Work(what, "unknown", None, False))
            else:
                prompts, _ = sizes.prompts("train", most.rows)
                self._generation(what, prompts, num_reference_samples(recipe))
        if "mismatched" in blocks:
            self._passes("mismatched log-probabilities", sizes.amount("train"))

    def train(self, trainings: list[Training], settings: dict[str, Any]) -> None:
        policies = [training for training in trainings if training.name != "reference"]
        self._training("policies", policies, settings)
        most = self.recipe.evaluate.max_selection_prompts
        evaluations = sum(training.evaluations * training.runs for training in policies)
        self._passes("validation: likelihood", self.sizes.amount("validation", most), evaluations)
        if self.scores:
            prompts, _ = self.sizes.prompts("validation", most)
            self._generation("validation: completions", prompts, evaluations)

    def evaluate(self) -> None:
        recipe, sizes = self.recipe, self.sizes
        subjects = 1 + len(recipe.policies) * len(recipe.seeds)
        prompts, _ = sizes.prompts("test", recipe.evaluate.max_prompts)
        self._passes("test: likelihood", sizes.amount("test", recipe.evaluate.max_prompts), subjects)
        self._generation("test: completions", prompts, subjects * _DECODINGS, judges=True)
        # Each is scored by the policy itself, the reference, and the base where there is one.
        scorers = 3 if recipe.model.path is not None else 2
        written = sizes.generated(prompts * subjects * _DECODINGS)
        self._passes("test: log-probabilities of completions", written, scorers)

    def _training(self, what: str, trainings: list[Training], settings: dict[str, Any]) -> None:
        operations, steps, bound = 0.0, 0, False
        for training in trainings:
            checkpointing = settings[training.name].gradient_checkpointing
            one = None if self.shape is None else training.operations(self.shape, checkpointing)
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
        rows = "unknown" if over is None else f"{over.rows:,} rows" if times == 1 else f"{times} x {over.rows:,} rows"
        self.lines.append(Work(what, rows, operations, over is not None and over.bound))

    def _generation(self, what: str, prompts: int, times: int, judges: bool = False) -> None:
        if times == 0:
            return
        made = self.sizes.generated(prompts * times)
        operations = None if self.shape is None else made.operations(self.shape)
        count = f"{prompts:,}" if times == 1 else f"{times} x {prompts:,}"
        longest = f"{count} completions of at most {self.sizes.max_new_tokens} tokens"
        self.lines.append(Work(what, longest, operations, True))
        self._rewards("  their rewards" + (" and judges" if judges else ""), made, judges)

    def _rewards(self, what: str, over: Amount | None, judges: bool = False) -> None:
        """Two operations a parameter and token, taken to be as many as the policy's own."""
        purposes = ("reward", "judge") if judges else ("reward",)
        models = [source for source in self.sources if source.purpose in purposes]
        if not models:
            return
        sizes = [model.parameters for model in models]
        known = over is not None and None not in sizes
        operations = 2.0 * sum(size or 0 for size in sizes) * over.tokens if known and over is not None else None
        count = f"{len(models)} model{'s' if len(models) > 1 else ''}"
        self.lines.append(Work(what, count, operations, over is not None and over.bound))
