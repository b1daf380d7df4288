"""Results and plans of a judge at the terminal."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from leftover.commands.judge.run import Judgement
from leftover.monitoring.terminal import console
from leftover.report.judge import comparison_view, token_text

_WIDTH = 120


def print_results(results: dict[str, Any], path: Path) -> None:
    """Win, tie and loss by criterion and test set; below them position bias or agreement, lengths and tokens."""
    view, terminal = comparison_view(results), console(width=_WIDTH)
    title = f"{view['title']}, by {view['judge']}: share of prompts"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    header, lines = view["table"]
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < 2 else "right")
    for line in lines:
        table.add_row(*line)
    terminal.print(table)
    terminal.print(*view["notes"], sep="\n")
    terminal.print(f"{results['unended']:.0%} of our completions reach the limit of new tokens.")
    if "tokens_of_this_command" in results:
        terminal.print(f"By this command, {token_text(results['tokens_of_this_command'])}")
    terminal.print(f"Results: {path}", soft_wrap=True)


def print_plan(judgement: Judgement) -> None:
    """What would be asked, and the tokens it would take."""
    terminal, plan = console(width=_WIDTH), judgement.estimate()
    comparison, settings = judgement.comparison, judgement.settings
    criteria = ", ".join(criterion.name for criterion in judgement.criteria)
    terminal.print(f"{comparison.name}, judged by {settings.model} at {settings.url}: {criteria}.")
    identical = sum(pair.identical for pair in comparison.pairs)
    terminal.print(
        f"{comparison.num_prompts} prompts, {len(comparison.pairs)} pairs ({identical} identical, which are not asked "
        f"about); {plan['answered']} questions already answered, {plan['questions']} to ask."
    )
    basis = "as counted for the answers so far" if plan["from_answers"] else "by the policy's tokenizer"
    prompt, completion = plan["prompt_tokens"], plan["completion_tokens"]
    shown = "unknown" if prompt is None else f"about {prompt:,} ({basis})"
    answers = "unknown before the first answer" if completion is None else f"about {completion:,}"
    terminal.print(f"Tokens of questions: {shown}; of answers: {answers}.")
    if "cost" in plan:
        terminal.print(f"Cost: about {plan['cost']:.4f}{' plus that of the answers' if completion is None else ''}.")
