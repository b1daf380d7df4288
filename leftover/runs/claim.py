"""Opening a run for its stages: its folder is claimed, and its recipe checked, before any row is read."""

from pathlib import Path
from typing import TYPE_CHECKING

from leftover.errors import UserError, first_line
from leftover.models.load import is_adapter, max_positions
from leftover.models.vocabulary import check_vocabulary, check_vocabulary_at
from leftover.objectives import ONLINE
from leftover.recipe.files import dump_recipe, load_yaml, make_recipe
from leftover.recipe.optional_packages import check_optimizer, check_quantization
from leftover.recipe.sections import ModelSection, Recipe, TokenizerSection
from leftover.rewards import ColumnReward
from leftover.runs.names import slug
from leftover.runs.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_run(recipe: Recipe) -> Run:
    """The run of a recipe, its folder claimed and its recipe checked.

    Raises UserError if the folder belongs to another recipe or holds no run, and for what the recipe alone shows
    to be impossible.
    """
    run = Run(recipe)
    claim(run)
    check_packages(recipe)
    check_rewards(run)
    check_limits(recipe, model_positions(recipe.model))
    check_tokenizer(run)
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


def check_tokenizer(run: Run) -> None:
    """Refuse a tokenizer that is larger than the embeddings of the model or of the reference."""
    model, reference = run.recipe.model, run.recipe.reference
    if isinstance(model.tokenizer, TokenizerSection):  # it is trained on the rows
        return
    options = {"trust_remote_code": model.trust_remote_code}
    for path in filter(None, (model.path, reference.path)):
        check_vocabulary_at(path, run.models.tokenizer, key="model.tokenizer", **options)
    check_random_weights(model, run.models.tokenizer)


def check_random_weights(model: ModelSection, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that is larger than the recipe's own `vocab_size`."""
    rows = (model.config or {}).get("vocab_size")
    check_vocabulary(tokenizer, rows, "model.config", remedy="leave vocab_size out of model.config, or raise it")


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
            f"model.path '{path}' is a run, which holds several models: name {path}/reference, one of "
            f"{path}/policies, or what `leftover export` writes"
        )
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no model at '{path}' (key model.path): {first_line(error)}") from error
    return max_positions(found)
