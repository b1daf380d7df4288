"""What a card says about a run: its model, data, reward and results, as plain texts and numbers."""

import math
from typing import TYPE_CHECKING, Any

from leftover.evaluation.caveats import caveats
from leftover.evaluation.measures import MEASURES, interval, part_names
from leftover.evaluation.tables import explanation, result_grid
from leftover.evaluation.verdict import outcome
from leftover.publish.card.public import base_name, is_hub_id, public_name
from leftover.recipe.forms import Transform
from leftover.recipe.sections import Recipe, RewardSection
from leftover.rewards.sum import component_name
from leftover.store.table import Table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def base_model(recipe: Recipe) -> tuple[str, str | None]:
    """The model before any training, in words; and its id on the Hub if it has one."""
    path = recipe.model.path
    if path is None:
        return f"random weights ({(recipe.model.config or {}).get('model_type')})", None
    return public_name(path), path if is_hub_id(path) else None


def reference_model(recipe: Recipe) -> str:
    """The reference, in words."""
    if recipe.reference.source == "path":
        return public_name(str(recipe.reference.path))
    fitted = recipe.reference.source == "fit"
    return "the base, fine-tuned by the likelihood of the training completions" if fitted else "the base as it is"


def data_files(recipe: Recipe, table: Table) -> tuple[list[tuple[str, str | None]], list[str]]:
    """(file or Hub id, start of a file's SHA-256) of all data, and which of them are Hub ids."""
    recorded = table.manifest.entries.get("rows", {}).get("key", {}).get("files", {})
    paths = [recipe.data.path] if isinstance(recipe.data.path, str) else recipe.data.path
    # What was a file when it was read has a hash, wherever the run lies now.
    hub = [path for path in paths if path not in recorded and is_hub_id(path)]
    return [(path if path in hub else base_name(path), recorded.get(path)) for path in paths], hub


def reward_rows(reward: RewardSection) -> list[tuple[str, str, str, str]]:
    """(name, kind, weight, normalisation) of every component; further settings may name services, and stay out."""
    return [
        (
            component_name(spec),
            str(spec.get("type", "")),
            f"{spec.get('weight', 1.0):g}",
            transform_text(spec.get("normalise")),
        )
        for spec in reward.functions
    ]


def transform_text(spec: Transform | None) -> str:
    """The transform of a reward or of a component, in words."""
    if isinstance(spec, dict):
        return ", ".join(f"{name} {value:g}" for name, value in spec.items())
    return spec or "none"


def results_facts(results: dict[str, Any], policy: str, seed: int) -> dict[str, Any]:
    """The verdict on one policy, its caveats, and its column of the result table beside reference and data."""
    primary, columns = results["primary"], (policy, "reference", "data")
    own, mine = results[primary], results | {"main": policy}
    row = own["table"][policy]
    header, cells = result_grid(results, primary)
    shown = sorted((line for line in cells if line[0] in columns), key=lambda line: columns.index(line[0]))
    names = ["" if name == "policy" else name for name in header]
    table = [list(column) for column in zip(names, *shown, strict=True)]
    parts = part_names(row, "reward/")
    if len(parts) > 1:
        table += [[name, *(interval(own["table"][line[0]].get(name)) for line in shown)] for name in parts]
    is_policy = policy != "reference"
    return {
        "decoding": primary,
        "prompts": row["prompts"],
        "verdict": outcome(results, policy) if is_policy else "",
        "caveats": caveats(mine) if is_policy else results.get("scoring_caveats", []),
        "table": [line for line in table if any(cell != "–" for cell in line[1:])],
        "seeds": row["seeds"] if len(row["seeds"]) > 1 else [],
        "own_reward": row.get("reward_by_seed", {}).get(str(seed)),
        "glossary": explanation(results),
    }


# Measure -> the type of metric on the Hub, and its name without a glossary beside it.
_METRICS = {
    "reward": ("reward", "mean reward"),
    "win_rate": ("win_rate", "win rate by reward against the reference"),
    "kl": ("kl", "KL to the reference, nats a completion"),
    "distinct_2": ("distinct-2", "distinct-2"),
    "perplexity_of_test_completions": ("perplexity", "perplexity of the test completions"),
    "logratio/rank_correlation": ("rank_correlation", "rank correlation of log-ratio and reward"),
}
_AGAINST_REFERENCE = ("win_rate", "kl", "logratio/rank_correlation")


def evaluation_results(
    results: dict[str, Any], policy: str, files: list[tuple[str, str | None]], hub_data: list[str]
) -> "list[EvalResult]":
    """The numbers in the card's metadata; those that were not measured are left out."""
    from huggingface_hub import EvalResult

    row = results[results["primary"]]["table"][policy]
    names = [name for name in _METRICS if policy != "reference" or name not in _AGAINST_REFERENCE]
    found = [(*_METRICS[name], MEASURES[name].value(row)) for name in names]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_data[0] if hub_data else "custom",
            dataset_name=", ".join(file for file, _ in files),
            dataset_split="test",
            metric_type=kind,
            metric_name=f"{title} ({results['primary']} completions)",
            metric_value=float(f"{number:.5g}"),
        )
        for kind, title, number in found
        if number is not None and math.isfinite(number)
    ]
