"""What stands for a run's models and tokenizer in the keys of what is computed from them."""

from pathlib import Path

from leftover.data.tokenizer import read_chat_template
from leftover.models.reference import model_identity
from leftover.recipe.sections import TokenizerSection
from leftover.runs.names import tokenizer_folder
from leftover.runs.run import Run
from leftover.store.manifest import Key

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


def tokenizer_key(run: Run) -> Key:
    """The tokenizer's files, and the recipe's templates and end tokens."""
    model = run.recipe.model
    if isinstance(model.tokenizer, TokenizerSection):
        files: Key | str = {"fit": run.manifest.digest("tokenizer")}
    else:
        path = tokenizer_folder(run.recipe, run.folder)
        folder = Path(path)
        found = {name: run.hashes.of(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()}
        files = found or path
    return {
        "files": files,
        "chat_template": read_chat_template(model.chat_template),
        "template_options": model.template_options,
        "end_tokens": model.end_tokens,
    }


def base_key(run: Run) -> Key | str:
    """The model before the reference is fitted."""
    model = run.recipe.model
    if model.path:
        return model_identity(model.path, run.hashes)
    return {"config": model.config, "tokenizer": tokenizer_key(run), "seed": run.seed}


def logprobs_key(run: Run) -> Key:
    """All that log-probabilities under the reference depend on, except the tokens."""
    return {
        "reference": model_identity(run.reference_path, run.hashes),
        "dtype": run.recipe.model.dtype,
        "compute_dtype": run.recipe.compute_dtype,
        "attention": run.recipe.model.attn_implementation,
    } | run.recipe.quantization_key
