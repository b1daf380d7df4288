"""Write the card of a saved policy or reference, from what its run recorded, or of a trainer without a recipe."""

import json
import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leftover.evaluation.measures import number
from leftover.evaluation.rounds import rounds_grid, rounds_sentence
from leftover.evaluation.tables import escape, markdown_table
from leftover.models.load import is_adapter, is_encoder_decoder, unwrapped
from leftover.objectives import ONLINE
from leftover.prepare.value.described import described
from leftover.publish.card import facts
from leftover.publish.card.method import papers, sentence, settings_of_fields, settings_of_policy, tags
from leftover.publish.card.public import is_hub_id, public_name, without_paths
from leftover.runs.finished import FinishedRun
from leftover.runs.names import ROUNDS_PICTURE, policy_artifact, policy_folder
from leftover.store.files import read_json
from leftover.store.table import equals

log = logging.getLogger(__name__)

NAME, PICTURE = "README.md", "learning_curve.png"
_PACKAGES = ("leftover", "torch", "transformers", "peft", "datasets", "huggingface_hub")
_TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
# The first that was measured is drawn: the checkpoint was chosen by it.
_MEASURES = {
    "eval_reward/mean": "mean reward on the selection prompts",
    "eval_logratio/rank_correlation": "rank correlation on the selection rows",
    "eval_nll": "nats a token on the validation rows",
}


def write_cards(run: FinishedRun, results: dict[str, Any]) -> None:
    """The card of every policy and seed in `results`, and of the reference if the run has fitted one."""
    saved: list[tuple[str | None, int, Path]] = [
        (policy, int(seed), policy_folder(run.folder, policy, int(seed)))
        for policy, seeds in results["training"].items()
        for seed in seeds
    ]
    if run.recipe.reference.source == "fit":
        saved.insert(0, (None, run.recipe.seed, run.folder / "reference"))
    saved = [(policy, seed, folder) for policy, seed, folder in saved if folder.is_dir()]
    for policy, seed, folder in saved:
        write_card(run, results, policy, seed, folder)
    log.info("model cards: %s beside %d models", NAME, len(saved))


def write_card(
    run: FinishedRun,
    results: dict[str, Any] | None,
    policy: str | None,
    seed: int,
    folder: Path,
    hub_id: str | None = None,
) -> None:
    """Write README.md and its picture beside the model in `folder`.

    Args:
        results: the content of results.json or comparison.json; None leaves results out.
        policy: None for the reference.
        hub_id: the model's id on the Hub, for the code that loads it; default: it loads from the folder itself.
    """
    recipe, table = run.recipe, run.table
    results = json.loads(json.dumps(results))  # seeds are texts, whether the results were just made or read
    base, base_id = facts.base_model(recipe)
    files, hub_data = facts.data_files(recipe, table)
    trained = run.manifest.facts("reference" if policy is None else policy_artifact(policy, seed))
    picture = run.folder / ROUNDS_PICTURE
    if run.rounds and picture.is_file():
        shutil.copy(picture, folder)
    values = {
        "name": recipe.name,
        "policy": policy,
        "seed": seed,
        "rounds": run.rounds and {"sentence": rounds_sentence(run.rounds), "table": rounds_grid(run.rounds)},
        "rounds_picture": picture.name if picture.is_file() else None,
        "adapter": is_adapter(folder),
        "architecture": _architecture(_is_encoder_decoder(folder)),
        "base": base,
        "reference": facts.reference_model(recipe),
        "path": hub_id or ".",
        "files": files,
        "hub_data": hub_data,
        "prepared": run.prepared,
        "rewards": facts.reward_rows(recipe.reward),
        "transform": facts.transform_text(recipe.reward.transform),
        "results": facts.results_facts(results, policy or "reference", seed) if results else None,
        "conversational": table.has("rows") and equals(table.open("rows"), "conversational", True).any(),
        "template_options": recipe.model.template_options,
        "sampled": recipe.evaluate.primary == "sampled",
        "temperature": recipe.evaluate.temperature,
        "max_new_tokens": recipe.max_new_tokens,
        "trust_remote_code": recipe.model.trust_remote_code,
        "trained": trained,
        "curve": _draw_curve(trained, folder / PICTURE),
    }
    metadata: dict[str, Any] = {"base_model": base_id, "datasets": hub_data}
    if results:
        name = (hub_id or "").rpartition("/")[2]
        metadata["model_name"] = name or f"{recipe.name} {policy or 'reference'}"
        metadata["eval_results"] = facts.evaluation_results(results, policy or "reference", files, hub_data)
    _write(folder, metadata, values, settings_of_policy(recipe, policy), recipe.model_dump())


def write_trainer_card(trainer: Any, folder: Path, **metadata: Any) -> None:
    """Write README.md and its picture for a trainer's model; `metadata`: further fields of its header, as `license`."""
    args, model = trainer.args, trainer.model
    inner = unwrapped(model)
    base = str(inner.config.name_or_path or "")
    prompts = getattr(trainer, "prompts", None)  # the unique ones that an online trainer draws from
    rows = prompts or trainer.train_dataset or []
    state = trainer.state
    trained = {
        "evaluations": [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)],
        "steps": state.global_step,
        "best_step": state.best_global_step,
    }
    if rows:
        trained["selected_rows"] = trainer.num_selected
        trained["effective_sample_size"] = trainer.effective_sample_size
    settings = settings_of_fields({name: getattr(args, name) for name in vars(args)})
    kind = "prompts" if settings["objective"] in ONLINE else "rows"
    values = {
        "name": metadata.get("model_name") or (args.hub_model_id or "").rpartition("/")[2] or Path(folder).name,
        "policy": "",
        "seed": args.seed,
        "adapter": hasattr(model, "peft_config"),
        "architecture": _architecture(is_encoder_decoder(inner)),
        "base": public_name(base) if base else "a model made in code",
        "reference": "the model as it was given to the trainer",
        "path": args.hub_model_id or ".",
        "sampled": args.eval_decoding == "sample",
        "temperature": 1.0,
        "max_new_tokens": args.max_completion_length,
        "training_rows": f"{len(rows):,} training {kind}." if rows else "",
        "conversational": any(row.get("conversational", False) for row in rows),
        "template_options": args.chat_template_kwargs,
        "trained": trained if state.global_step else {},
        "curve": _draw_curve(trained, folder / PICTURE),
    }
    metadata = {"base_model": base if is_hub_id(base) else None} | metadata
    _write(folder, metadata, values, settings, [base, str(args.output_dir)])


def _write(
    folder: Path,
    metadata: Mapping[str, Any],
    values: Mapping[str, Any],
    settings: dict[str, str],
    private: object,
) -> None:
    """Render the template into `folder`; paths in the nested settings `private` are shortened to names."""
    from huggingface_hub import ModelCard, ModelCardData

    header = {name: value for name, value in metadata.items() if value}
    own = header.pop("tags", [])
    objective = settings.pop("objective")
    data = ModelCardData(
        library_name="peft" if values["adapter"] else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys([*tags(objective), *([own] if isinstance(own, str) else own)])),
        **header,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        q=escape,
        table=markdown_table,
        number=number,
        described=described,
        objective=objective,
        method=sentence(objective),
        settings=settings,
        picture=PICTURE,
        papers=papers(objective),
        versions={name: version(name) for name in _PACKAGES},
        **values,
    )
    card.content = without_paths(card.content, private)
    card.save(folder / NAME)


def _is_encoder_decoder(folder: Path) -> bool:
    """Whether the model or adapter in a folder is an encoder-decoder, as its config says."""
    if is_adapter(folder):
        return read_json(folder / "adapter_config.json").get("task_type") == "SEQ_2_SEQ_LM"
    return bool(read_json(folder / "config.json").get("is_encoder_decoder"))


def _architecture(encoder_decoder: bool) -> str:
    """How the names of the classes end that load a model, of transformers and of peft."""
    return "ForSeq2SeqLM" if encoder_decoder else "ForCausalLM"


def _draw_curve(facts: dict[str, Any], path: Path) -> str | None:
    """Draw the evaluations in a policy's `facts`; returns the measure in words, None if there are none."""
    points = facts.get("evaluations", [])
    measured = [name for name in _MEASURES if any(name in point for point in points)]
    if not measured:
        return None
    words, curve = _MEASURES[measured[0]], {p["step"]: p[measured[0]] for p in points if measured[0] in p}
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axis.plot(list(curve), list(curve.values()), marker="o", ms=3.5, lw=1.8)
    best = facts.get("best_step", -1)
    if best in curve:
        axis.plot(best, curve[best], marker="o", ms=10, mfc="none", color="C0", ls="", label="the checkpoint kept")
        axis.legend(frameon=False, fontsize=9)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel(words, fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return words
