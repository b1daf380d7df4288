"""A trained policy as a plain folder: weights, config, generation config and tokenizer."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from leftover.data.chat import Chat
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError
from leftover.models.load import align_generation_config, base_path, is_adapter, load_model, merged, save_model
from leftover.models.reference import reference_pass
from leftover.models.trunk import texts
from leftover.publish.card import write_card
from leftover.publish.card.public import is_hub_id
from leftover.recipe.sections import ModelSection
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_folder
from leftover.store.folders import held, make_folder, remove

log = logging.getLogger(__name__)

# By these an export is compared with its policy; by how many nats a token it may differ, in the mean.
_ROWS = 4
_TOLERANCE, _TOLERANCE_16_BIT = 1e-4, 0.05


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

    The generation config holds the end-of-sequence ids that training rows ended in. What was written is loaded back
    and scores a few rows; UserError, and no folder, if the policy scores them otherwise.

    Args:
        merge: merge an adapter into its base.
        hub_id: where the folder will be pushed to; an adapter is then merged if its base is not on the Hub.
    """
    run = FinishedRun(run_folder)
    policy, seed = run.trained_policy(policy, seed)
    # The run's own folder is written under its lock.
    with held(run.folder) if output is None else nullcontext():
        return _export(run, policy, seed, _target(run, output), merge, hub_id)


def _export(run: FinishedRun, policy: str, seed: int, target: Path, merge: bool, hub_id: str | None) -> Path:
    section = run.recipe.model
    source = policy_folder(run.folder, policy, seed)
    merge = merge or (hub_id is not None and _lost_elsewhere(source))
    tokenizer, options = load_tokenizer(str(source)), section.template_options
    model = load_model(str(source), dtype=section.dtype, trust_remote_code=section.remote_code)
    rows = _few_rows(run, model)
    expected = _logprobs(model, tokenizer, rows)
    if is_adapter(source) and merge:
        model = merged(model)
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
    del model  # before it is loaded once more
    _compare(target, section, rows, expected, rounded=is_adapter(source) and merge)
    results = run.results()
    if results and str(seed) not in results["training"].get(policy, {}):
        results = None  # they are about other policies or seeds
    write_card(run, results, policy, seed, target, hub_id)
    return target


def _few_rows(run: FinishedRun, model: Any) -> list[dict[str, Any]]:
    """Token ids of prompts and completions of the run; of a folder without its table, made-up ones."""
    rows = []
    if run.table.has("tokens"):
        tokens = run.table.open("tokens")
        rows = [row for row in tokens.select(range(min(len(tokens), 10 * _ROWS))) if row["kept"]][:_ROWS]
    return rows or [{"prompt_ids": ids[:1], "completion_ids": ids[1:]} for ids in texts(model).tolist()]


def _logprobs(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    """Of every completion token of the rows, one after the other."""
    return np.concatenate(reference_pass(model, tokenizer, rows, features=False)[0])


def _compare(
    target: Path, section: ModelSection, rows: list[dict[str, Any]], expected: np.ndarray, *, rounded: bool
) -> None:
    """Load an export back; remove it, and raise UserError, unless it gives the rows the expected log-probabilities."""
    model = load_model(str(target), dtype=section.dtype, trust_remote_code=section.remote_code)
    found = _logprobs(model, load_tokenizer(str(target)), rows)
    difference = float(np.abs(found - expected).mean())
    # Merging rounds to the dtype of the weights.
    if not difference <= (_TOLERANCE_16_BIT if rounded and section.dtype != "float32" else _TOLERANCE):
        remove(target, target.parent)
        remedy = "export without --merge" if rounded else "its files may be damaged: train it again"
        raise UserError(
            f"{target}: the export gives {len(rows)} rows other log-probabilities than the policy (by {difference:.2g} "
            f"nats a token), and was removed: {remedy}"
        )


def _target(run: FinishedRun, output: str | Path | None) -> Path:
    """The folder to export to, empty: a new one, or the run's own.

    An adapter that was left beside merged weights would be applied to them a second time.
    """
    if output is None:
        remove(run.folder / "export", run.folder)
        return run.folder / "export"
    target = Path(output)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--output {target} is {'not empty' if target.is_dir() else 'a file'}: name a new folder")
    make_folder(target, "--output")
    return target


def _lost_elsewhere(source: Path) -> bool:
    """Whether this is an adapter whose base no other machine can load."""
    if not is_adapter(source):
        return False
    base = base_path(str(source))
    if is_hub_id(base):
        return False
    log.warning("the adapter's base '%s' is not on the Hub: the adapter is merged into it", base)
    return True
