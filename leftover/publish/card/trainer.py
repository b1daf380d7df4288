"""The card of a model that a trainer trained without a recipe: what the trainer knows, and no results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.objectives import ONLINE
from leftover.publish.card.curve import draw_curve
from leftover.publish.card.facts import versions
from leftover.publish.card.papers import papers
from leftover.publish.card.public import is_hub_id, public_name, without_paths
from leftover.publish.card.settings import settings_of_fields
from leftover.publish.card.write import NAME, PICTURE, method, render


def write_trainer_card(trainer: Any, folder: Path, **metadata: Any) -> Path:
    """Write README.md (and the learning curve, where there is one) for the model of a trainer; returns its path.

    `metadata`: fields of the card's header, as `license` or `language`, beside those that the trainer gives.
    """
    args = trainer.args
    settings = settings_of_fields({name: getattr(args, name) for name in vars(args)})
    objective = settings.pop("objective")
    base = str(_base(trainer.model))
    evaluations = [entry for entry in trainer.state.log_history if any(name.startswith("eval_") for name in entry)]
    trained: dict[str, Any] = {"evaluations": evaluations, "steps": trainer.state.global_step}
    trained["best_step"] = trainer.state.best_global_step
    rows = _rows(trainer)
    if rows:
        trained |= {"selected_rows": trainer.num_selected, "effective_sample_size": trainer.effective_sample_size}
    values: dict[str, Any] = {
        "name": metadata.get("model_name") or (args.hub_model_id or "").rpartition("/")[2] or Path(folder).name,
        "policy": "",
        "seed": args.seed,
        "objective": objective,
        "method": method(objective),
        "adapter": hasattr(trainer.model, "peft_config"),
        "base": public_name(base) if base else "a model made in code",
        "reference": "the model as it was given to the trainer",
        "path": args.hub_model_id or ".",
        "settings": settings,
        "trained": trained if trained["steps"] else {},
        "curve": draw_curve(trained, folder / PICTURE),
        "picture": PICTURE,
        "sampled": args.eval_decoding == "sample",
        "temperature": 1.0,
        "max_new_tokens": args.max_completion_length,
        "data": [f"{len(rows):,} training {'prompts' if objective in ONLINE else 'rows'}."] if rows else [],
        "conversational": any(row["conversational"] for row in rows),
        "template_options": args.chat_template_kwargs,
        "papers": papers(objective),
        "versions": versions(),
    }
    card = render({"base_model": base if is_hub_id(base) else None} | metadata, values)
    card.content = without_paths(card.content, [base, str(args.output_dir)])
    card.save(folder / NAME)
    return folder / NAME


def _rows(trainer: Any) -> Sequence[dict[str, Any]]:
    """What the trainer draws from: unique prompts online, else rows."""
    rows = getattr(trainer, "prompts", None) or trainer.train_dataset
    return [] if rows is None else [{"conversational": row.get("conversational", False)} for row in rows]


def _base(model: Any) -> str:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.config.name_or_path or ""
