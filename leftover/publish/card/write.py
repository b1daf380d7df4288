"""Write the card of a saved policy, or of the reference, from what its run recorded."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leftover.evaluation.markdown import escape, table
from leftover.models.load import is_adapter
from leftover.publish.card import facts
from leftover.publish.card.curve import draw_curve
from leftover.publish.card.papers import papers
from leftover.publish.card.public import without_paths
from leftover.publish.card.settings import settings_of_policy
from leftover.recipe.sections import Recipe
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_artifact, policy_folder

log = logging.getLogger(__name__)

NAME, PICTURE = "README.md", "learning_curve.png"
_TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
_TAGS = {"ppo": ["online-rl", "ppo"], "nll": ["behaviour-cloning"]}  # of objectives that are no offline RL


def write_cards(run: FinishedRun, results: dict[str, Any]) -> None:
    """The card of every policy and seed that `results` are of, and of the reference where the run has fitted one."""
    count = 0
    for policy, seed, folder in _saved(run, results):
        write_card(run, results, policy, seed, folder)
        count += 1
    log.info("cards: %s beside %d models", NAME, count)


def _saved(run: FinishedRun, results: dict[str, Any]) -> Iterator[tuple[str | None, int, Path]]:
    if run.recipe.reference.source == "fit" and (run.folder / "reference").is_dir():
        yield None, run.recipe.seed, run.folder / "reference"
    for policy, seeds in results["training"].items():
        for seed in map(int, seeds):
            folder = policy_folder(run.folder, policy, seed)
            if folder.is_dir():
                yield policy, seed, folder


def write_card(
    run: FinishedRun,
    results: dict[str, Any] | None,
    policy: str | None,
    seed: int,
    folder: Path,
    hub_id: str | None = None,
) -> Path:
    """Write README.md and its picture beside the model in `folder`; returns the card's path.

    Args:
        results: of its evaluation, the content of results.json or comparison.json; None leaves them out.
        policy: None for the reference.
        hub_id: where the model will be on the Hub; the code that loads it names this, or else the folder itself.
    """
    results = json.loads(json.dumps(results))  # seeds are texts, whether the results were just made or read
    artifact = "reference" if policy is None else policy_artifact(policy, seed)
    trained = run.manifest.facts(artifact)
    adapter = is_adapter(folder)
    values = _values(run, results, policy, seed, trained) | {
        "adapter": adapter,
        "hub_id": hub_id,
        "path": hub_id or ".",
        "curve": draw_curve(trained, folder / PICTURE),
        "picture": PICTURE,
    }
    card = render(_metadata(run.recipe, results, policy, values), values)
    card.content = without_paths(card.content, run.recipe.model_dump())
    card.save(folder / NAME)
    return folder / NAME


def _values(
    run: FinishedRun, results: dict[str, Any] | None, policy: str | None, seed: int, trained: dict[str, Any]
) -> dict[str, Any]:
    """All that the template shows but for where the model is and its picture."""
    recipe = run.recipe
    settings = settings_of_policy(recipe, policy)
    objective = settings.pop("objective")
    files, hub_data = facts.data_files(recipe, run.table)
    return {
        "name": recipe.name,
        "policy": policy,
        "seed": seed,
        "objective": objective,
        "method": method(objective),
        "base": facts.base_model(recipe)[0],
        "reference": facts.reference_model(recipe),
        "files": files,
        "hub_data": hub_data,
        "data": facts.data_facts(run.prepared) if run.prepared else [],
        "rewards": facts.reward_rows(recipe.reward),
        "transform": facts.reward_transform(recipe.reward),
        "settings": settings,
        "trained": trained,
        "results": facts.results_facts(results, policy or "reference", seed) if results else None,
        "conversational": facts.is_conversational(run.table),
        "template_options": recipe.model.template_options,
        "sampled": recipe.evaluate.primary == "sampled",
        "temperature": recipe.evaluate.temperature,
        "max_new_tokens": recipe.max_new_tokens,
        "trust_remote_code": recipe.model.trust_remote_code,
        "papers": papers(objective),
        "versions": facts.versions(),
    }


def method(objective: str) -> str:
    """An objective in one sentence: the first of its docstring."""
    from leftover.objectives import OBJECTIVES

    if objective not in OBJECTIVES:
        return "Proximal policy optimisation on completions that the policy itself writes, scored by the reward."
    return str(OBJECTIVES[objective].loss.__doc__).strip().splitlines()[0]


def _metadata(
    recipe: Recipe, results: dict[str, Any] | None, policy: str | None, values: dict[str, Any]
) -> dict[str, Any]:
    from huggingface_hub import EvalResult

    hub_data, name = values["hub_data"], (values["hub_id"] or "").rpartition("/")[2]
    found: dict[str, Any] = {"base_model": facts.base_model(recipe)[1], "datasets": hub_data or None}
    if results:
        found["model_name"] = name or f"{recipe.name} {policy or 'reference'}"
        found["eval_results"] = [
            EvalResult(
                task_type="text-generation",
                dataset_type=hub_data[0] if hub_data else "custom",
                dataset_name=", ".join(file for file, _ in values["files"]),
                dataset_split="test",
                metric_type=kind,
                metric_name=f"{words} ({results['primary']} completions)",
                metric_value=float(f"{number:.5g}"),
            )
            for kind, words, number in facts.measures(results, policy or "reference")
        ]
    return found


def render(further: dict[str, Any], values: dict[str, Any]) -> Any:
    """A `huggingface_hub.ModelCard` of our template; `further`: metadata beside that which every card has."""
    from huggingface_hub import ModelCard, ModelCardData

    objective, further = values["objective"], dict(further)
    own = further.pop("tags", [])
    tags = ["leftover", *_TAGS.get(objective, ["offline-rl", objective.replace("_", "-")])]
    data = ModelCardData(
        library_name="peft" if values["adapter"] else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys([*tags, *([own] if isinstance(own, str) else own)])),
        **{name: value for name, value in further.items() if value},
    )
    template = _TEMPLATE.read_text(encoding="utf-8")
    return ModelCard.from_template(data, template_str=template, q=escape, table=table, **values)
