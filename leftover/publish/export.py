"""A trained policy as a plain folder: weights, config, generation config and tokenizer."""

import logging
import shutil
from pathlib import Path

from leftover.data.chat import Chat
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError
from leftover.models.load import align_generation_config, is_adapter, load_model, save_model
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_folder
from leftover.store.manifest import read_json

log = logging.getLogger(__name__)


def export_policy(
    run_folder: str | Path,
    *,
    policy: str | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    merge: bool = False,
    hub_id: str | None = None,
) -> Path:
    """Write the policy of a finished run for `from_pretrained` and vLLM; returns the folder.

    With `merge` an adapter is merged into its base; without it an adapter stays one. The generation config holds
    the end-of-sequence ids that training rows ended in. `hub_id`: where the folder will be pushed to, which the model
    card names; an adapter is then merged also where its base is a folder of this machine.
    """
    run = FinishedRun(run_folder)
    recipe = run.recipe
    source = trained_policy(run, policy, seed)
    merge = merge or (hub_id is not None and _lost_elsewhere(source))
    tokenizer, options = load_tokenizer(str(source)), recipe.model.template_options
    model = load_model(str(source), dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)
    if is_adapter(source) and merge:
        model = model.merge_and_unload()
    of_base = model.generation_config.eos_token_id
    align_generation_config(model, tokenizer, Chat(tokenizer, options, recipe.model.end_tokens).ends)
    if is_adapter(source) and not merge and model.generation_config.eos_token_id != of_base:
        log.warning(
            "from_pretrained reads the generation config of an adapter's base, not the adapter's own: pass "
            "GenerationConfig.from_pretrained(folder) to generate so that it stops at %s, or export with --merge",
            tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id),
        )
    if options:
        log.warning(
            "the policy was trained with the template options %s, which the exported chat template does not hold: pass "
            "them to apply_chat_template (vLLM: chat_template_kwargs)",
            options,
        )
    target = Path(output) if output else run.folder / "export"
    if output is None:
        shutil.rmtree(target, ignore_errors=True)
    elif target.is_dir() and any(target.iterdir()):
        # An adapter left beside merged weights would be applied to them a second time.
        raise UserError(f"--output {target} is not empty: name a new folder")
    save_model(model, tokenizer, target)
    _write_card(run, source, target, hub_id)
    return target


def _lost_elsewhere(source: Path) -> bool:
    """Whether this is an adapter of a base that no other machine can load."""
    from leftover.publish.card.public import is_hub_id

    if not is_adapter(source):
        return False
    base = read_json(source / "adapter_config.json")["base_model_name_or_path"]
    if is_hub_id(base):
        return False
    log.warning("the adapter's base '%s' is not on the Hub: the adapter is merged into it", base)
    return True


def _write_card(run: FinishedRun, source: Path, target: Path, hub_id: str | None) -> None:
    from leftover.publish.card import write_card

    results, policy, seed = run.results(), source.parent.name, source.name.removeprefix("seed-")
    if results and seed not in results["training"].get(policy, {}):
        results = None  # of other policies or seeds
    write_card(run, results, policy, int(seed), target, hub_id)


def trained_policy(run: FinishedRun, policy: str | None, seed: int | None) -> Path:
    """The folder of one trained policy of a run; default: the recipe's first, and of its first seed."""
    policy, seed = policy or run.recipe.main_policy, run.recipe.seeds[0] if seed is None else seed
    folder, source = run.folder, policy_folder(run.folder, policy, seed)
    trained = sorted(path for path in folder.glob("policies/*/seed-*") if _is_trained(path))
    if source not in trained:
        names = ", ".join(str(path.relative_to(folder)) for path in trained) or "none"
        raise UserError(f"no trained policy '{policy}' with seed {seed} in '{folder}' (trained: {names})")
    return source


def _is_trained(folder: Path) -> bool:
    """Whether a policy's training came to its end: only then is its model written."""
    return (folder / "config.json").is_file() or is_adapter(folder)
