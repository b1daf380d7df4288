"""Results and plans of a judge at the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leftover.monitoring.terminal import console


def print_results(results: dict[str, Any], path: Any) -> None:
    """Win, tie and loss of every criterion and test set; position bias, lengths, tokens and cost below."""
    console = _console()
    console.print(_table(results))
    for name, found in results["criteria"].items():
        if found["first_preferred"]:
            console.print(
                f"{escape(name)}: the completion shown first is preferred in {_share(found['first_preferred'])} of the "
                f"verdicts that are no tie; both orders agree on {found['orders_agree']:.0%} of the pairs."
            )
        left_out = {
            "questions without an answer": found["unanswered"],
            "answers without a verdict": found["without_verdict"],
            "pairs left out for that": found["pairs_without_outcome"],
            "identical pairs, tied without asking": found["identical_pairs"],
        }
        said = [f"{count} {what}" for what, count in left_out.items() if count]
        if said:
            console.print(f"{escape(name)}: {'; '.join(said)}.")
    _print_lengths(console, results)
    tokens, now = results["tokens"], results["tokens_of_this_command"]
    console.print(f"All {tokens['answers']} answers: {_tokens(tokens)}. By this command: {_tokens(now)}.")
    console.print(f"Results: {escape(str(path))}", soft_wrap=True)


def print_ratings(results: dict[str, Any], path: Any) -> None:
    """Win, tie and loss by the people who rated, and how far they agree."""
    console = _console()
    console.print(_table(results))
    for name, found in results["criteria"].items():
        alpha = "n/a" if found["krippendorff_alpha"] is None else f"{found['krippendorff_alpha']:.2f}"
        console.print(f"{escape(name)}: Krippendorff's alpha {alpha} over {found['ratings']} ratings.")
        for pair in found["cohen_kappa"]:
            kappa = "n/a" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
            names = escape(" and ".join(pair["raters"]))
            console.print(f"  {names}: Cohen's kappa {kappa}, equal on {pair['equal']:.0%} of {pair['items']}.")
    _print_lengths(console, results)
    console.print(f"Results: {escape(str(path))}", soft_wrap=True)


def print_plan(plan: dict[str, Any]) -> None:
    """What would be asked, and what it would take."""
    console = _console()
    console.print(escape(f"{plan['comparison']}, judged by {plan['judge']}: {', '.join(plan['criteria'])}."))
    console.print(
        f"{plan['prompts']} prompts, {plan['pairs']} pairs ({plan['identical_pairs']} identical, which are not asked "
        f"about); {plan['answered']} questions answered already, {plan['questions']} to ask."
    )
    basis = "as counted for the answers so far" if plan["from_answers"] else "by the policy's tokenizer"
    prompt, completion = plan["prompt_tokens"], plan["completion_tokens"]
    shown = "unknown" if prompt is None else f"about {prompt:,} ({basis})"
    answers = "unknown before the first answer" if completion is None else f"about {completion:,}"
    console.print(f"Tokens of questions: {shown}; of answers: {answers}.")
    if "cost" in plan:
        console.print(f"Cost: about {plan['cost']:.4f}{' and that of the answers' if completion is None else ''}.")


def _table(results: dict[str, Any]) -> Table:
    title = f"{results['comparison']}: share of prompts [95 %]"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("criterion", "test set", "prompts", "win", "tie", "loss", "win rate"):
        table.add_column(name, justify="left" if name in ("criterion", "test set") else "right")
    for name, found in results["criteria"].items():
        for source, row in {"all": found, **found["by_source"]}.items():
            shares = [_share(row.get(measure)) for measure in ("win", "tie", "loss", "win_rate")]
            table.add_row(escape(name), escape(source or "none"), str(row["prompts"]), *shares)
    return table


def _print_lengths(console: Console, results: dict[str, Any]) -> None:
    words = results["words"]
    console.print(
        f"Mean length: {words['ours']:.1f} words, theirs {words['theirs']:.1f}; {results['unended']:.0%} of our "
        "completions reach the limit of new tokens."
    )


def _tokens(tokens: dict[str, Any]) -> str:
    text = f"{tokens['prompt_tokens']:,} tokens of questions, {tokens['completion_tokens']:,} of answers"
    if "cost" in tokens:
        text += f", cost {tokens['cost']:.4f}"
    if tokens["answers_without_count"]:
        text += f" ({tokens['answers_without_count']} answers were not counted by the service: it is more)"
    return text


def _share(interval: dict[str, float] | None) -> str:
    return "–" if interval is None else f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _console() -> Console:
    return console(width=120, markup=True)
