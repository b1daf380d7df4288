"""What a recipe would download, compute and hold: everything that the dry run prints."""

from collections.abc import Iterator
from dataclasses import dataclass

from leftover.commands.dry_run.checks import check_recorded, checked_reward, training_settings
from leftover.commands.dry_run.cost import Costs, Work
from leftover.commands.dry_run.memory import Holding, Memory
from leftover.commands.dry_run.rows import Rows, read
from leftover.commands.dry_run.shape import Shape, find_config, measure
from leftover.commands.dry_run.sources import LOCAL, Source, list_sources, missing_packages
from leftover.commands.dry_run.trace import Traced, skeleton
from leftover.commands.dry_run.work import LEFTOVER, Sizes, Training, estimate_training
from leftover.data.tokenizer import read_chat_template
from leftover.models.load import torch_dtype
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward

STAGES = ("prepare", "train", "evaluate", "report")


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


def estimate_run(
    recipe: Recipe, until: str = "report", rows: Rows | str | None = None, num_runs: int | None = None
) -> Estimate:
    """The estimate of a run up to and including the stage `until`.

    Args:
        rows: the result of `dry_run.rows.read`, where it is known already.
        num_runs: how often every policy is trained; default: once a seed.

    Raises UserError for a recipe or rows that the run would refuse before it computes anything.
    """
    trains, evaluates = (STAGES.index(until) >= STAGES.index(stage) for stage in ("train", "evaluate"))
    section, reward = recipe.model, checked_reward(recipe)
    read_chat_template(section.chat_template)
    settings = training_settings(recipe, policies=trains)
    rows = read(recipe) if rows is None else rows
    check_recorded(recipe, rows)
    sizes, sources = Sizes(recipe, rows), list_sources(recipe, judges=evaluates)
    runs = {"reference": 1} | dict.fromkeys(recipe.policies, num_runs or len(recipe.seeds))
    trainings = {name: estimate_training(name, own.args, sizes, runs[name]) for name, own in settings.items()}
    config, shape_from = find_config(section)
    shape, memory, disk = None, list[Memory](), list[tuple[str, float | None]]()
    if config is not None:
        model = skeleton(config, section.lora, torch_dtype(section.dtype), section.attn_implementation)
        shape = measure(model, config, section.quantization is not None)
        holding = Holding(recipe, shape, sources, sizes, settings)
        memory = list(holding.memory(Traced(model), reward.scores_new_completions, evaluates))
        disk = list(holding.disk(trains))
    costs = Costs(recipe, shape, sources, sizes)
    costs.prepare(reward, trainings.get("reference"), settings)
    if trains:
        policies = [training for name, training in trainings.items() if name != "reference"]
        costs.train(policies, settings, reward.scores_new_completions)
    if evaluates:
        costs.evaluate()
    trained, packages = list(trainings.values()), missing_packages(recipe)
    notes = list(_notes(recipe, reward, sizes, sources, trained))
    return Estimate(recipe, sources, packages, rows, shape, shape_from, trained, costs.lines, memory, disk, notes)


def _notes(
    recipe: Recipe, reward: SumReward, sizes: Sizes, sources: list[Source], trainings: list[Training]
) -> Iterator[str]:
    """What a reader has to know of these numbers."""
    if sizes.rows is None and recipe.data.max_rows is None:
        yield "Steps and costs follow from the rows; `--set data.max_rows=N` gives their bounds for N rows before that."
    if sizes.tokens is None:
        yield "Rows are taken to be as long as the recipe allows: their tokens are unknown without data and tokenizer."
    if any(t.selected == LEFTOVER and t.qualifier == "at most" for t in trainings):
        yield "Leftover: which rows have a positive advantage is known after `prepare`; steps shrink with their share."
    if not reward.scores_new_completions:
        yield "The rewards are recorded: no completion is scored, and checkpoints are chosen on recorded rewards."
    models = [s for s in sources if s.purpose in ("reward", "judge")]
    if models:
        yield "Reward models are named, not loaded: whether they load and what they score is not checked here."
    unknown = sorted({s.name for s in models if s.parameters is None and s.state != LOCAL})
    if unknown:
        yield f"Of unknown size, and so in no sum: {', '.join(unknown)}."
