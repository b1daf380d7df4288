"""Opening a run for its stages: its folder is claimed, and its recipe checked, before any row is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leftover.data.formats import check_files
from leftover.errors import UserError, located, looked_for, not_readable
from leftover.models.load import is_adapter, max_positions
from leftover.models.vocabulary import check_vocabulary, check_vocabulary_at
from leftover.monitoring.ranks import is_main_process, join, parted_by, wait
from leftover.objectives import ONLINE
from leftover.recipe.files import dump_recipe, dump_saved, load_recipe, make_recipe, read_yaml, without_sum
from leftover.recipe.optional_packages import check_engine, check_optimizer, check_quantization
from leftover.recipe.sections import ModelSection, Recipe, TokenizerSection
from leftover.rewards import ColumnReward, learner
from leftover.rewards.fitted import RowsReward
from leftover.runs.finished import FinishedRun
from leftover.runs.names import PREPARED, REWARD_STATE, is_run, round_folder, slug, trained_policies
from leftover.runs.run import Run
from leftover.store.files import write_text
from leftover.store.folders import LOCK, hold, make_folder, refuse_links
from leftover.store.sealed import mend_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_run(recipe: Recipe) -> Run:
    """The run of a recipe, which is checked first and whose folder is then claimed; `Run.close` gives it back.

    Raises UserError if the folder belongs to another recipe, holds no run or is being written by another process, and
    for what the recipe alone shows to be impossible.
    """
    check_one_round(recipe)
    check_launch(recipe)
    join()
    run = Run(recipe)
    _check_folder(run)
    check_packages(recipe)
    check_rewards(run)
    check_fitted(run)
    check_limits(recipe, model_positions(recipe.model), two_texts=run.models.two_texts)
    check_encoder_decoder(recipe, run.models.two_texts)
    check_files(recipe.data)
    check_tokenizer(run)
    try:
        claim(run)
    except BaseException:
        run.close()
        raise
    return run


def check_one_round(recipe: Recipe) -> None:
    """Refuse a recipe of several rounds, each of which is a run of its own."""
    if recipe.rounds is not None:
        raise UserError(f"{recipe.where}: rounds are for `leftover run` alone: leave them out here (--set rounds=null)")


def check_launch(recipe: Recipe) -> None:
    """Refuse 4-bit weights in parts: bitsandbytes packs them in a form that neither FSDP nor ZeRO-3 can part."""
    if recipe.model.quantization and (kind := parted_by()):
        raise UserError(
            f"{recipe.where}: model.quantization: {kind} cannot part 4-bit weights: launch whole models "
            "(recipes/accelerate/ddp.yaml or zero2.yaml), or remove model.quantization"
        )


def claim(run: Run) -> None:
    """Make the run's folder if there is none, hold it, and write its recipe there.

    Raises UserError if the folder belongs to another recipe, holds no run (a recipe.yaml of the user's is kept), or is
    being written by another process.
    """
    _check_folder(run)
    run.made += make_folder(run.folder, "output_dir")
    if run.lock is None:
        run.lock = hold(run.folder)
        for name in ("manifest.json", "table/manifest.json", PREPARED, REWARD_STATE):
            mend_sealed(run.folder / name)
    write_text(run.folder / "recipe.yaml", dump_saved(run.recipe))
    wait()


def _check_folder(run: Run) -> None:
    """UserError unless the folder is new, empty, or holds this run; of several processes the first looks."""
    if not is_main_process():  # which may be writing there already
        return
    try:
        there = run.folder.is_dir()
    except OSError as error:
        raise UserError(f"output_dir {run.folder} cannot be made ({error.strerror}): name one of your own") from error
    if there:
        refuse_links(run.folder)
    saved = run.folder / "recipe.yaml"
    # A full disk may leave the temporary file, and a process that was killed the lock.
    left = {run.folder / name for name in ("recipe.yaml.tmp", LOCK)}
    if saved.is_file():
        content = read_yaml(saved)
        first = round_folder(run.folder, 1)
        ours, name = is_run(run.folder) or is_run(first), content.get("name") if isinstance(content, dict) else None
        if name != run.recipe.name:
            raise UserError(
                f"{run.folder} holds the run '{name}', this recipe is '{run.recipe.name}': choose another output_dir"
                + (", or remove the folder" if ours else "")
            )
        if ours and first.is_dir() != (run.recipe.rounds is not None):
            kind = "with" if first.is_dir() else "without"
            raise UserError(f"{run.folder} holds a run {kind} rounds: choose another output_dir")
        if not (ours or _was_saved_here(saved, content)):
            raise UserError(
                f"{run.folder} (key output_dir) holds a recipe.yaml of your own, which the run would overwrite: choose "
                "another output_dir"
            )
    elif run.folder.exists() and not run.folder.is_dir():
        raise UserError(f"{run.folder} (key output_dir) is a file: choose another output_dir")
    elif run.folder.exists() and set(run.folder.iterdir()) - left:
        raise UserError(f"{run.folder} is not empty and holds no run: choose another output_dir")


def _was_saved_here(saved: Path, content: Any) -> bool:
    """Whether a run wrote this recipe, with every default written out, and came no further."""
    try:
        return without_sum(saved.read_text("utf-8")) == dump_recipe(make_recipe(content, str(saved), saved=True))
    except UserError:
        return False


def check_packages(recipe: Recipe) -> None:
    """Refuse what needs a missing package or a missing GPU."""
    if recipe.model.quantization:
        check_quantization()
    check_engine(recipe.engine)
    for section, fields in recipe.training_sections.items():
        check_optimizer(str(fields.get("optim")), f"{section}.optim")


def check_quick(recipe: Recipe) -> None:
    """Refuse to replace the policies of a full run by those of a first look (`--quick`)."""
    folder = Path(recipe.output_dir)
    if not (folder / "recipe.yaml").is_file() or not trained_policies(folder):
        return
    if load_recipe(folder).train.get("eval_steps") != recipe.train.get("eval_steps"):
        raise UserError(
            f"--quick: {folder} holds policies of a full run, which a first look would replace; give it another: "
            f"--set output_dir={folder}-quick"
        )


def check_rewards(run: Run) -> None:
    """Refuse faulty rewards and judges, rewards of another column, and online policies that they cannot score."""
    recipe, reward, judges = run.recipe, run.reward, run.judges
    online = [name for name, fields in recipe.policies.items() if fields.get("objective") in ONLINE]
    recorded = reward.only_recorded
    if online and recorded:
        raise UserError(
            f"policy '{online[0]}' trains on its own completions, and the reward '{recorded[0]}' cannot score new "
            "ones: its scores are recorded; take a reward function (text, classifier, python), or drop the policy"
        )
    column = recipe.data.columns.reward
    for what, functions in (("reward functions", reward), ("judges", judges)):
        named = dict[str, str]()
        for name in functions.components if functions else ():
            # Some file systems hold names that differ in case for one.
            if (other := named.setdefault(slug(name).lower(), name)) != name:
                raise UserError(f"{what} '{other}' and '{name}' would share the file {slug(name)}: rename one")
    for name, component in reward.components.items():
        if isinstance(component, ColumnReward) and component.column not in (None, column):
            raise UserError(
                f"reward function '{name}' reads the column '{component.column}', but recorded scores are read from "
                f"'{column}': set data.columns.reward"
            )


def check_fitted(run: Run) -> None:
    """Refuse rewards and judges whose rows to be fitted on, or what was fitted before, are not there."""
    if (folder := run.recipe.reward.fitted_in) is not None:
        with located(f"{run.recipe.where}: reward.fitted_in"):
            FinishedRun(folder)
    for scorers in (run.reward, run.judges):
        for name, component in scorers.components.items() if scorers else ():
            fitted = learner(component)
            if isinstance(fitted, RowsReward):
                with located(f"'{name}'"):
                    fitted.check()


def check_encoder_decoder(recipe: Recipe, two_texts: bool) -> None:
    """Refuse what no encoder-decoder (`two_texts`) can do here."""
    if two_texts and recipe.evaluate.engine == "vllm":
        raise UserError(
            f"{recipe.where}: evaluate.engine: vLLM serves no encoder-decoders, and the recipe's model is one: set "
            "evaluate.engine: transformers, or leave it out"
        )


def check_limits(recipe: Recipe, positions: int | None, *, two_texts: bool = False) -> None:
    """Refuse lengths beyond the model's positions; None: they are unknown or unlimited.

    `two_texts`: of an encoder-decoder, which has as many for prompts and as many for completions.
    """
    data = recipe.data
    if two_texts:
        _check_each_length(recipe, positions)
        return
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


def _check_each_length(recipe: Recipe, positions: int | None) -> None:
    data = recipe.data
    lengths = {
        "data.max_prompt_tokens": data.max_prompt_tokens,
        "data.max_completion_tokens": data.max_completion_tokens,
        "evaluate.max_new_tokens": recipe.evaluate.max_new_tokens or 0,
    }
    for key, length in lengths.items():
        if positions is not None and length > positions:
            raise UserError(f"{key} = {length} exceeds the model's {positions} positions: lower it")


def check_tokenizer(run: Run) -> None:
    """Refuse a tokenizer that is larger than the embeddings of the model or of the reference."""
    model, reference = run.recipe.model, run.recipe.reference
    if isinstance(model.tokenizer, TokenizerSection):  # it is trained on the rows
        return
    options = {"trust_remote_code": model.remote_code}
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
    if run := _run_around(Path(path)):
        inside = "is" if run == Path(path) else "is no model, but in"
        raise UserError(
            f"model.path '{path}' {inside} a run, which holds several models: name {', '.join(_models_in(run))}, or "
            "what `leftover export` writes"
        )
    looked = "" if Path(path).exists() else looked_for(path)
    with not_readable(f"no model at '{path}' (key model.path{looked})"):
        return max_positions(AutoConfig.from_pretrained(path, trust_remote_code=model.remote_code))


def _run_around(folder: Path) -> Path | None:
    """The run that a folder is, or that it is a part of without being a model (`policies`, a policy without a seed)."""
    if (folder / "config.json").is_file():
        return None
    found = (folder, *list(folder.parents)[:2])
    return next((run for run in found if (run / "table").is_dir() and (run / "recipe.yaml").is_file()), None)


def _models_in(folder: Path) -> list[str]:
    """The reference and the policies, with their seeds, that a run's folder holds; of a new one where it will be."""
    reference = folder / "reference"
    return [str(path) for path in (reference, *trained_policies(folder)) if path.is_dir()] or [str(reference)]
