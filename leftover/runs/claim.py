"""Opening a run for its stages: its folder is claimed, and its recipe checked, before any row is read."""

from pathlib import Path

from leftover.errors import UserError, first_line, located, looked_for
from leftover.models.load import is_adapter, max_positions
from leftover.objectives import ONLINE
from leftover.recipe.files import dump_recipe, load_yaml, make_recipe
from leftover.recipe.optional_packages import check_optimizer, check_quantization
from leftover.recipe.sections import ModelSection, Recipe
from leftover.rewards import ColumnReward, learner
from leftover.rewards.fitted import RowsReward
from leftover.runs.names import slug, trained_policies
from leftover.runs.run import Run


def open_run(recipe: Recipe) -> Run:
    """The run of a recipe, its folder claimed and its recipe checked.

    Raises UserError if the folder belongs to another recipe or holds no run, and for what the recipe alone shows
    to be impossible.
    """
    run = Run(recipe)
    claim(run)
    check_packages(recipe)
    check_rewards(run)
    check_fitted(run)
    check_limits(recipe, model_positions(recipe.model))
    return run


def claim(run: Run) -> None:
    """Make the run's folder if there is none, and write its recipe there.

    Raises UserError if the folder belongs to another recipe or holds no run: a recipe.yaml of the user's is kept.
    """
    saved = run.folder / "recipe.yaml"
    temporary = run.folder / "recipe.yaml.tmp"  # what a full disk may leave behind
    if saved.is_file():
        text = saved.read_text(encoding="utf-8")
        name = str(load_yaml(text).get("name"))
        if name != run.recipe.name:
            raise UserError(
                f"{run.folder} holds the run '{name}', this recipe is '{run.recipe.name}': choose another output_dir, "
                "or remove the folder"
            )
        if not (run.manifest.path.is_file() or run.table.folder.is_dir() or _was_saved_here(saved, text)):
            raise UserError(
                f"{run.folder} (key output_dir) holds a recipe.yaml of your own, which the run would overwrite: choose "
                "another output_dir"
            )
    elif run.folder.exists() and not run.folder.is_dir():
        raise UserError(f"{run.folder} (key output_dir) is a file: choose another output_dir")
    elif run.folder.exists() and set(run.folder.iterdir()) - {temporary}:
        raise UserError(f"{run.folder} is not empty and holds no run: choose another output_dir")
    run.folder.mkdir(parents=True, exist_ok=True)
    temporary.write_text(dump_recipe(run.recipe), encoding="utf-8")
    temporary.replace(saved)


def _was_saved_here(saved: Path, text: str) -> bool:
    """Whether a run wrote this recipe, with every default written out, and came no further."""
    try:
        return text == dump_recipe(make_recipe(load_yaml(text), str(saved)))
    except UserError:
        return False


def check_packages(recipe: Recipe) -> None:
    """Refuse what needs a missing package or a missing GPU."""
    if recipe.model.quantization:
        check_quantization()
    for section, fields in recipe.training_sections.items():
        check_optimizer(str(fields.get("optim")), f"{section}.optim")


def check_rewards(run: Run) -> None:
    """Refuse faulty rewards and judges, rewards of another column, and online policies that they cannot score."""
    recipe, reward, _ = run.recipe, run.reward, run.judges
    online = [name for name, fields in recipe.policies.items() if fields.get("objective") in ONLINE]
    recorded = reward.only_recorded
    if online and recorded:
        raise UserError(
            f"policy '{online[0]}' trains on its own completions, and the reward '{recorded[0]}' cannot score new "
            "ones: its scores are recorded; take a reward function (text, classifier, python), or drop the policy"
        )
    column, named = recipe.data.columns.reward, dict[str, str]()
    for name, component in reward.components.items():
        if (other := named.setdefault(slug(name), name)) != name:
            raise UserError(f"reward functions '{other}' and '{name}' would share the file {slug(name)}: rename one")
        if isinstance(component, ColumnReward) and component.column not in (None, column):
            raise UserError(
                f"reward function '{name}' reads the column '{component.column}', but recorded scores are read from "
                f"'{column}': set data.columns.reward"
            )


def check_fitted(run: Run) -> None:
    """Refuse rewards and judges whose rows to be fitted on, or what was fitted before, are not there."""
    for scorers in (run.reward, run.judges):
        for name, component in scorers.components.items() if scorers else ():
            fitted = learner(component)
            if isinstance(fitted, RowsReward):
                with located(f"'{name}'"):
                    fitted.check()


def check_limits(recipe: Recipe, positions: int | None) -> None:
    """Refuse lengths beyond the model's positions; None: they are unknown or unlimited."""
    data = recipe.data
    lengths = {
        "data.max_completion_tokens": data.max_completion_tokens,
        "evaluate.max_new_tokens": recipe.evaluate.max_new_tokens or 0,
    }
    for key, length in lengths.items():
        needed = data.max_prompt_tokens + length
        if positions is not None and needed > positions:
            raise UserError(
                f"data.max_prompt_tokens + {key} = {needed} exceeds the model's {positions} positions: lower one of "
                "them"
            )


def model_positions(model: ModelSection) -> int | None:
    """How many positions the recipe's model has; None where it has no limit. UserError where there is no model."""
    path = model.path
    if path is None:
        config = model.config or {}
        return config.get("max_position_embeddings", config.get("n_positions"))
    from transformers import AutoConfig

    if is_adapter(path):
        raise UserError(f"model.path '{path}' is an adapter: name its base there, and the adapter as reference.path")
    if (Path(path) / "table").is_dir() and (Path(path) / "recipe.yaml").is_file():
        raise UserError(
            f"model.path '{path}' is a run, which holds several models: name {', '.join(_models_in(Path(path)))}, or "
            "what `leftover export` writes"
        )
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        looked = "" if Path(path).exists() else looked_for(path)
        raise UserError(f"no model at '{path}' (key model.path{looked}): {first_line(error)}") from error
    return max_positions(found)


def _models_in(folder: Path) -> list[str]:
    """The reference and the policies, with their seeds, that a run's folder holds; of a new one where it will be."""
    reference = folder / "reference"
    return [str(path) for path in (reference, *trained_policies(folder)) if path.is_dir()] or [str(reference)]
