"""`--dry-run`: what a recipe would download, compute and cost, printed without the network and without a run folder."""

from typing import Any

from rich.table import Table

from leftover.commands.dry_run.build import Plan, build_plan
from leftover.commands.dry_run.rows import Rows, left_out
from leftover.commands.dry_run.sources import DOWNLOAD, offline
from leftover.monitoring.terminal import console, size_text
from leftover.recipe.sections import Recipe

MEANING = (
    "Floating-point operations: two a multiply-add, without padding. Hours = operations / (the rate that your device "
    "sustains a second x 3,600).",
    "Memory is approximate: tensors alone, without the device's context, its kernels' workspaces and what its allocator"
    " leaves unused; reward models count with their weights. Of small models on a CPU it was 1 to 7 % below the peak of"
    " the tensors, and the process, which keeps freed memory, held 1.3 to 3.4 times as much.",
)

_LONG_WORD = 24


def dry_run(recipe: Recipe, until: str = "report") -> None:
    """Print the plan of a run up to the stage `until`. Raises UserError where the run would refuse the recipe."""
    with offline():
        show(build_plan(recipe, until), console(width=140))


def show(plan: Plan, terminal: Any) -> None:
    """The tables, in the order in which the numbers are needed."""
    before = (_needed(plan), _data(plan), _model(plan), _trainings(plan))
    print_tables(terminal, *before, work_table(plan), memory_table(plan), _disk(plan))
    for note in (*plan.notes, *MEANING):
        terminal.print(f"- {note}")


def plain_table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table, the first `left` columns of text and the others of numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return table


def print_tables(terminal: Any, *tables: Table | None) -> None:
    """Those that are there; a word is not broken for want of width, but for long ones such as paths."""
    for table in (table for table in tables if table is not None):
        for column in table.columns:
            words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
            column.min_width = max((len(word) for word in words if len(word) <= _LONG_WORD), default=1)
        terminal.print(table)


def _needed(plan: Plan) -> Table:
    table = plain_table("Needed", "for", "what", "where", "size", left=3)
    for source in plan.sources:
        size = "" if source.size is None else size_text(source.size)
        if source.state == DOWNLOAD and not size:
            size = _download_size(plan, source)
        table.add_row(source.purpose, source.name, source.state, size)
    for package in plan.packages:
        table.add_row("package", package, "not installed", "")
    return table


def _download_size(plan: Plan, source: Any) -> str:
    """A range: repositories hold 2 or 4 bytes a parameter."""
    parameters = source.parameters
    if source.purpose == "model" and plan.shape is not None:
        adapter = plan.shape.trainable if plan.recipe.model.lora else 0
        parameters = plan.shape.parameters - adapter
    return "unknown" if parameters is None else f"{size_text(2 * parameters)} to {size_text(4 * parameters)}"


def _data(plan: Plan) -> Table:
    table = plain_table("Data", "", "rows", "unique prompts")
    rows = plan.rows
    if not isinstance(rows, Rows):
        table.add_row("rows", rows, "")
        return table
    for split in ("train", "validation", "test"):
        table.add_row(split, f"{int(rows.where(split).sum()):,}", f"{rows.prompts(split):,}")
    if plan.recipe.data.rows == "chosen":
        table.add_row("of train, chosen", f"{int(rows.where('train', True).sum()):,}", "")
    for reason, count in left_out(rows.stats).items():
        table.add_row(f"left out: {reason}", f"{count:,}", "")
    table.add_row("prompt families", f"{int(rows.family.max()) + 1:,}", "")
    table.add_row("with a recorded score", f"{int(rows.scored.sum()):,}", "")
    return table


def _token_lines(rows: Rows) -> list[tuple[str, str]]:
    lengths = rows.lengths
    if lengths is None:
        return [("tokens", "unknown until the tokenizer is downloaded; the recipe's limits are taken instead")]
    lines = []
    for name, values in (("prompt", lengths.prompts), ("completion", lengths.completions)):
        total, error = lengths.total(values)
        margin = "" if lengths.exact else f" ± {error:,.0f} (95 %, {len(values):,} rows sampled)"
        mean = values[lengths.kept].mean()
        lines.append((f"{name} tokens", f"{total:,.0f}{margin}; mean {mean:.1f}, longest found {values.max():,}"))
    if lengths.kept_share < 1:
        lines.append(("dropped as too long", f"{1 - lengths.kept_share:.1%} of rows"))
    return lines


def _model(plan: Plan) -> Table:
    table = plain_table("Model and tokens", "", "", left=2)
    if isinstance(plan.rows, Rows):
        for line in _token_lines(plan.rows):
            table.add_row(*line)
    if plan.shape is None:
        table.add_row("model", plan.shape_from)
        return table
    shape = plan.shape
    table.add_row("parameters", f"{shape.parameters:,} (from {plan.shape_from})")
    table.add_row("trained", f"{shape.trainable:,} ({shape.trainable / shape.parameters:.1%})")
    table.add_row("layers, hidden size, vocabulary", f"{shape.layers}, {shape.hidden:,}, {shape.vocabulary:,}")
    table.add_row("weights in memory", size_text(shape.weight_bytes))
    return table


def _trainings(plan: Plan) -> Table | None:
    if not plan.trainings:
        return None
    table = plain_table("Training", "", "drawn from", "steps", "rows a step", "seeds", "evaluations a run", left=2)
    for training in plan.trainings:
        known = training.steps is not None
        steps = f"{training.qualifier} {training.steps:,}".strip() if known else "unknown"
        runs = "" if training.name == "reference" else str(training.runs)
        evaluations = str(training.evaluations) if known else "unknown"
        table.add_row(training.name, training.selected, steps, str(training.rows_per_step), runs, evaluations)
    return table


def work_table(plan: Plan) -> Table:
    """Floating-point operations of every stage, and together."""
    table = plain_table("Work", "", "how much", "floating-point operations", left=2)
    for work in plan.work:
        table.add_row(work.what, work.amount, _operations(work.operations, work.bound))
    known = [work for work in plan.work if work.operations is not None]
    total = sum(work.operations or 0.0 for work in known)
    table.add_section()
    name = "together" if len(known) == len(plan.work) else "together, as far as known"
    table.add_row(name, "", _operations(total, any(work.bound for work in known)))
    return table


def _operations(operations: float | None, bound: bool) -> str:
    if operations is None:
        return "unknown"
    return "0" if operations == 0 else f"{'at most ' if bound else ''}{operations:.2g}"


def memory_table(plan: Plan) -> Table | None:
    """What every stage holds at once; None where the model is unknown."""
    if plan.shape is None:
        return None
    table = plain_table(
        "Memory on the device, approximate", "", "weights", "optimizer", "passing", "reward models", "together"
    )
    for line in plan.memory:
        parts = (line.weights, line.optimizer, line.passing, line.rewards, line.total)
        table.add_row(line.stage, *("unknown" if part is None else size_text(part) for part in parts))
    return table


def _disk(plan: Plan) -> Table | None:
    if plan.shape is None:
        return None
    table = plain_table("Disk, approximate", "", "size")
    for name, size in plan.disk:
        table.add_row(name, "unknown" if size is None else size_text(size))
    return table
