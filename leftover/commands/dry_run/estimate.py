"""A recipe -> its plan: everything that the dry run prints."""

from collections.abc import Iterator
from dataclasses import dataclass

from leftover.commands.dry_run.cost import Costs, Work
from leftover.commands.dry_run.holding import Holding
from leftover.commands.dry_run.memory import Memory
from leftover.commands.dry_run.recorded import check_recorded
from leftover.commands.dry_run.rows import Rows, read
from leftover.commands.dry_run.settings import checked_run, training_settings
from leftover.commands.dry_run.shape import Shape, find_config, measure
from leftover.commands.dry_run.sources import LOCAL, Source, list_sources, missing_packages
from leftover.commands.dry_run.trace import Traced, skeleton
from leftover.commands.dry_run.work import LEFTOVER, Sizes, Training, plan_training
from leftover.data.tokenizer import read_chat_template
from leftover.models.load import torch_dtype
from leftover.prepare.checks import check_recipe
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward

STAGES = ("prepare", "train", "evaluate", "report")


@dataclass(frozen=True)
class Plan:
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


def build_plan(
    recipe: Recipe, until: str = "report", rows: Rows | str | None = None, num_runs: int | None = None
) -> Plan:
    """The plan of a run up to and including the stage `until`.

    Args:
        rows: what `plan.rows.read` says, where it is known already.
        num_runs: how often every policy is trained; default: once a seed.

    Raises UserError for a recipe or rows that the run would refuse before it computes anything.
    """
    trains, evaluates = (STAGES.index(until) >= STAGES.index(stage) for stage in ("train", "evaluate"))
    run = checked_run(recipe)
    check_recipe(recipe, run.reward)
    read_chat_template(recipe.model.chat_template)
    settings = training_settings(recipe, policies=trains)
    rows = read(recipe) if rows is None else rows
    check_recorded(recipe, rows)
    sizes = Sizes(recipe, rows if isinstance(rows, Rows) else None)
    sources = list_sources(recipe, judges=evaluates)
    trainings = [
        plan_training(name, args, sizes, 1 if name == "reference" else num_runs or len(recipe.seeds))
        for name, args in settings.items()
    ]
    config, shape_from = find_config(recipe.model)
    shape, held, disk = None, list[Memory](), list[tuple[str, float | None]]()
    if config is not None:
        section = recipe.model
        model = skeleton(config, section.lora, torch_dtype(section.dtype), section.attn_implementation)
        shape = measure(model, config, section.quantization is not None)
        holding = Holding(recipe, run.reward, shape, sources, sizes, settings)
        held, disk = list(holding.memory(Traced(model), evaluates)), list(holding.disk(trains))
    costs = Costs(recipe, run.reward, shape, sources, sizes)
    costs.prepare(trainings, settings)
    if trains:
        costs.train(trainings, settings)
    if evaluates:
        costs.evaluate()
    notes = list(_notes(recipe, run.reward, sizes, sources, trainings))
    packages = missing_packages(recipe)
    return Plan(recipe, sources, packages, rows, shape, shape_from, trainings, costs.lines, held, disk, notes)


def _notes(
    recipe: Recipe, reward: SumReward, sizes: Sizes, sources: list[Source], trainings: list[Training]
) -> Iterator[str]:
    """What a reader has to know of this plan's numbers."""
    if sizes.rows is None and recipe.data.max_rows is None:
        yield "Steps and costs follow from the rows; `--set data.max_rows=N` gives their bounds for N rows before that."
    if not sizes.lengths_known:
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
