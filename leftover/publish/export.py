"""A trained policy as a plain folder: weights, config, generation config and tokenizer."""

import logging
from pathlib import Path

from filelock import FileLock

from leftover.data.chat import Chat
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError
from leftover.models.load import align_generation_config, is_adapter, load_model, save_model
from leftover.publish.card import write_card
from leftover.publish.card.public import is_hub_id
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_folder
from leftover.store.folders import give_back, hold, make_folder, remove
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

    The generation config holds the end-of-sequence ids that training rows ended in.

    Args:
        merge: merge an adapter into its base.
        hub_id: where the folder will be pushed to; an adapter is then merged if its base is not on the Hub.
    """
    run = FinishedRun(run_folder)
    section = run.recipe.model
    policy, seed = run.trained_policy(policy, seed)
    source = policy_folder(run.folder, policy, seed)
    target, lock = _claim(run, output)
    merge = merge or (hub_id is not None and _lost_elsewhere(source))
    tokenizer, options = load_tokenizer(str(source)), section.template_options
    model = load_model(str(source), dtype=section.dtype, trust_remote_code=section.trust_remote_code)
    if is_adapter(source) and merge:
        model = model.merge_and_unload()
    of_base = model.generation_config.eos_token_id
    align_generation_config(model, tokenizer, Chat(tokenizer, options, section.end_tokens).ends)
    if is_adapter(source) and not merge and model.generation_config.eos_token_id != of_base:
        log.warning(
            "from_pretrained reads the generation config of an adapter's base, not the adapter's own: pass "
            "GenerationConfig.from_pretrained(folder) to generate so that it stops at %s, or export with --merge",
            tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id),
        )
    if options:
        log.warning(
            "the policy was trained with the template options %s, which the exported chat template does not contain: "
            "pass them to apply_chat_template (vLLM: chat_template_kwargs)",
            options,
        )
    save_model(model, tokenizer, target)
    results = run.results()
    if results and str(seed) not in results["training"].get(policy, {}):
        results = None  # they are about other policies or seeds
    write_card(run, results, policy, seed, target, hub_id)
    give_back(lock)
    return target


def _claim(run: FinishedRun, output: str | Path | None) -> tuple[Path, FileLock | None]:
    """The folder to export to, empty: a new one, or the run's own with the lock of the run.

    An adapter that was left beside merged weights would be applied to them a second time.
    """
    if output is None:
        lock = hold(run.folder)
        remove(run.folder / "export", run.folder)
        return run.folder / "export", lock
    target = Path(output)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--output {target} is {'not empty' if target.is_dir() else 'a file'}: name a new folder")
    make_folder(target, "--output")
    return target, None


def _lost_elsewhere(source: Path) -> bool:
    """Whether this is an adapter whose base no other machine can load."""
    if not is_adapter(source):
        return False
    base = read_json(source / "adapter_config.json")["base_model_name_or_path"]
    if is_hub_id(base):
        return False
    log.warning("the adapter's base '%s' is not on the Hub: the adapter is merged into it", base)
    return True
