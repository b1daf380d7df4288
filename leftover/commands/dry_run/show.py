"""`--dry-run`: what a recipe would download, compute and cost, printed without the network and without a run folder."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from leftover.commands.dry_run.checks import check_here
from leftover.commands.dry_run.estimate import Estimate, estimate_run
from leftover.commands.dry_run.pace import HERE, device_name
from leftover.commands.dry_run.rows import Rows
from leftover.commands.dry_run.sources import DOWNLOAD, Source, offline
from leftover.data.checks import SPLITS
from leftover.monitoring.terminal import clock, console, size_text
from leftover.recipe.sections import Recipe
from leftover.trust import no_code

MEANING = (
    "Floating-point operations: two a multiply-add, without padding.",
    "Times are without starting, loading and saving. This machine is timed on the recipe's models, with random weights"
    " and few layers; another device (`--device h100`) is told by its published numbers, at 40 % of its arithmetic in"
    " training, 50 % in passes and 60 % of its bandwidth. Several devices share the same rows.",
    "Memory is approximate: tensors alone, without the device's context, its kernels' workspaces and what its allocator"
    " leaves unused; reward models count with their weights. Of small models on a CPU it was 1 to 7 % below the peak of"
    " the tensors, and the process, which keeps freed memory, held 1.3 to 3.4 times as much.",
)

_LONG_WORD = 24
_DEVICE_COUNTS = [1, 8, 64]


@no_code()
def dry_run(recipe: Recipe, until: str, device: str | None = None) -> None:
    """Print the estimate of a run up to the stage `until`, with its time on a device; by default on this machine.

    Raises UserError if the run would refuse the recipe.
    """
    device = HERE if device is None else device_name(device)
    with offline():
        show(estimate_run(recipe, until, device=device), console(width=140))
    check_here(recipe)  # last, since one may ask what a run costs before its files are here


def show(estimate: Estimate, terminal: Console) -> None:
    """The tables, in the order in which the numbers are needed."""
    disk = plain_table("Disk, approximate", "", "size", rows=[(name, _size(size)) for name, size in estimate.disk])
    tables = [_needed(estimate), _data(estimate), _model(estimate), _trainings(estimate)]
    tables += [work_table(estimate), memory_table(estimate), disk]
    print_tables(terminal, tables, [*estimate.notes, *MEANING])


def plain_table(title: str, *columns: str, left: int = 1, rows: Iterable[tuple[str, ...]]) -> Table:
    """A table, the first `left` columns of text and the others of numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_tables(terminal: Console, tables: Iterable[Table], notes: Iterable[str] = ()) -> None:
    """The tables that have rows, and the notes. Columns are as wide as their words, except long ones such as paths."""
    for table in (table for table in tables if table.rows):
        for column in table.columns:
            words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
            column.min_width = max((len(word) for word in words if len(word) <= _LONG_WORD), default=1)
        terminal.print(table)
    for note in notes:
        terminal.print(f"- {note}")


def _needed(estimate: Estimate) -> Table:
    rows = [(source.purpose, source.name, source.state, _source_size(estimate, source)) for source in estimate.sources]
    rows += [("package", package, "not installed", "") for package in estimate.packages]
    return plain_table("Needed", "for", "what", "where", "size", left=3, rows=rows)


def _source_size(estimate: Estimate, source: Source) -> str:
    """Of a download of unknown size a range: repositories hold 2 or 4 bytes a parameter."""
    if source.size is not None:
        return size_text(source.size)
    if source.state != DOWNLOAD:
        return ""
    parameters = source.parameters
    if source.purpose == "model" and estimate.shape is not None:
        parameters = estimate.shape.parameters - estimate.shape.adapter
    return "unknown" if parameters is None else f"{size_text(2 * parameters)} to {size_text(4 * parameters)}"


def _data(estimate: Estimate) -> Table:
    rows = estimate.rows
    if not isinstance(rows, Rows):
        lines = [("rows", rows, "")]
    else:
        lines = [(split, f"{int(rows.where(split).sum()):,}", f"{rows.prompts(split):,}") for split in SPLITS]
        counts = {f"dropped: {reason}": count for reason, count in rows.dropped.items()}
        if estimate.recipe.data.train_on == "chosen":
            counts = {"of train, chosen": int(rows.where("train", True).sum())} | counts
        counts |= {"prompt families": int(rows.family.max()) + 1, "with a recorded score": int(rows.scored.sum())}
        lines += [(name, f"{count:,}", "") for name, count in counts.items()]
    return plain_table("Data", "", "rows", "unique prompts", rows=lines)


def _model(estimate: Estimate) -> Table:
    lines = list(_token_lines(estimate.rows)) if isinstance(estimate.rows, Rows) else []
    shape = estimate.shape
    if shape is None:
        lines.append(("model", estimate.shape_from))
    else:
        lines += [
            ("parameters", f"{shape.parameters:,} (from {estimate.shape_from})"),
            ("trained", f"{shape.trainable:,} ({shape.trainable / shape.parameters:.1%})"),
            ("layers, hidden size, vocabulary", f"{shape.layers}, {shape.hidden:,}, {shape.vocabulary:,}"),
            ("weights in memory", size_text(shape.weight_bytes)),
        ]
    return plain_table("Model and tokens", "", "", left=2, rows=lines)


def _token_lines(rows: Rows) -> Iterator[tuple[str, str]]:
    lengths = rows.lengths
    if lengths is None:
        yield "tokens", "unknown until the tokenizer is downloaded; the recipe's limits are used instead"
        return
    for name, values in (("prompt", lengths.prompts), ("completion", lengths.completions)):
        total, error = lengths.total(values)
        margin = "" if lengths.exact else f" ± {error:,.0f} (95 %, {len(values):,} rows sampled)"
        mean = values[lengths.kept].mean()
        yield f"{name} tokens", f"{total:,.0f}{margin}; mean {mean:.1f}, longest found {values.max():,}"
    if lengths.kept_share < 1:
        yield "dropped as too long", f"{1 - lengths.kept_share:.1%} of rows"
    if lengths.share_cut:
        yield "cut, without an end", f"{lengths.share_cut:.1%} of rows (data.long_completions: cut)"


def _trainings(estimate: Estimate) -> Table:
    lines = []
    for training in estimate.trainings:
        steps, evaluations = "unknown", "unknown"
        if training.steps is not None:
            steps, evaluations = f"{training.qualifier} {training.steps:,}".strip(), str(training.evaluations)
        runs = "" if training.name == "reference" else str(training.runs)
        lines.append((training.name, training.selected, steps, str(training.rows_per_step), runs, evaluations))
    columns = ("", "drawn from", "steps", "rows a step", "seeds", "evaluations a run")
    return plain_table("Training", *columns, left=2, rows=lines)


def work_table(estimate: Estimate) -> Table:
    """Floating-point operations of every stage, and together; and their time, on one device and on several."""
    work = estimate.work
    counts = [] if estimate.device is None else [1] if estimate.device == HERE else _DEVICE_COUNTS
    named = "this machine" if estimate.device == HERE else str(estimate.device)
    titles = [named if count == 1 else f"{count} x {named}" for count in counts]
    lines = [
        (
            line.what,
            line.amount,
            operations_text(line.operations, line.bound),
            *(_time(line.seconds_on(count)) for count in counts),
        )
        for line in work
    ]
    table = plain_table("Work", "", "how much", "floating-point operations", *titles, left=2, rows=lines)
    table.add_section()
    known = [line for line in work if line.operations is not None]
    name = "together" if len(known) == len(work) else "together, without the unknown"
    total = sum(line.operations or 0.0 for line in known)
    times = [_time(sum(line.seconds_on(count) or 0.0 for line in work)) for count in counts]
    table.add_row(name, "", operations_text(total, any(line.bound for line in known)), *times)
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.2g} s" if seconds < 10 else clock(seconds)


def operations_text(operations: float | None, bound: bool) -> str:
    if operations is None:
        return "unknown"
    return "0" if operations == 0 else f"{'at most ' if bound else ''}{operations:.2g}"


def memory_table(estimate: Estimate) -> Table:
    """What every stage holds at once; empty if the model is unknown."""
    columns = ("", "weights", "optimizer", "passing", "reward models", "together", "process, on a CPU")
    parts = ((m.stage, m.weights, m.optimizer, m.passing, m.rewards, m.total, m.process) for m in estimate.memory)
    lines = [(stage, *map(_size, sizes)) for stage, *sizes in parts]
    return plain_table("Memory on the device, approximate", *columns, rows=lines)


def _size(size: float | None) -> str:
    return "unknown" if size is None else size_text(size)
