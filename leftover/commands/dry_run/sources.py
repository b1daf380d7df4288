"""What a recipe reads, and where each of it is: local files, the Hugging Face cache, or still to be downloaded."""

import contextlib
import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leftover.commands.dry_run.published_sizes import CLASSIFIERS
from leftover.data.formats import data_files
from leftover.monitoring.trackers import missing_packages as missing_trackers
from leftover.recipe.optional_packages import BITSANDBYTES_OPTIMIZERS
from leftover.recipe.sections import Recipe
from leftover.rewards.presets import PRESETS

LOCAL, CACHED, DOWNLOAD, MISSING = "here", "in the cache", "to download", "missing: put it there"

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILE_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz", ".zip")
# Settings of a reward that may name a model.
_MODEL_SETTINGS = ("model", "path", "base", "base_model")


@dataclass(frozen=True)
class Source:
    purpose: str
    name: str
    state: str
    size: int | None = None  # bytes; of a download an estimate
    parameters: int | None = None
    dtype: str = "float32"  # that a reward model is loaded in


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Inside, the Hugging Face libraries use the cache alone, whatever the environment variables."""
    from datasets import config as datasets_config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE = before


def list_sources(recipe: Recipe, judges: bool) -> list[Source]:
    """Everything that the recipe names: models, tokenizer, data, rewards and, with `judges`, judges."""
    model = recipe.model
    tokenizer = model.tokenizer if isinstance(model.tokenizer, str) and model.tokenizer != model.path else None
    named = {"model": model.path, "tokenizer": tokenizer, "reference": recipe.reference.path}
    found = [_locate(purpose, name) for purpose, name in named.items() if name is not None]
    found += [_locate("data", path) for path in data_files(recipe.data)]
    scorers = {"reward": recipe.reward.functions, "judge": recipe.evaluate.judges if judges else []}
    return found + [model for purpose, specs in scorers.items() for spec in specs for model in _models(purpose, spec)]


def _models(purpose: str, spec: dict[str, Any]) -> list[Source]:
    """The models that a reward's specification names; nothing is built or loaded."""
    if spec.get("type") == "sum":
        return [model for inner in spec.get("functions") or [] for model in _models(purpose, inner)]
    if isinstance(spec.get("new_completions"), dict):
        return _models(purpose, spec["new_completions"])
    if spec.get("type") in ("text", "column", "python", "http"):
        return []
    if isinstance(fit := spec.get("fit"), dict) and fit.get("path"):
        paths = [fit["path"]] if isinstance(fit["path"], str) else fit["path"]
        return [_locate("data", path) for path in paths] + _start(purpose, spec)
    if fit is not None:
        return _start(purpose, spec)
    settings = PRESETS.get(str(spec.get("preset")), {}) | spec
    names = [settings[key] for key in _MODEL_SETTINGS if isinstance(settings.get(key), str)]
    return [_locate(purpose, name, str(settings.get("dtype", Source.dtype))) for name in names]


def _start(purpose: str, spec: dict[str, Any]) -> list[Source]:
    """The model that a fitted reward starts from."""
    return [_locate(purpose, spec["model"])] if isinstance(spec.get("model"), str) else []


def on_the_hub(path: str) -> bool:
    """Whether a path that does not exist can be the id of a repository on the Hub, rather than a missing file."""
    return not Path(path).exists() and bool(_HUB_ID.fullmatch(path)) and not path.endswith(_FILE_ENDINGS)


def missing_packages(recipe: Recipe) -> list[str]:
    """Packages that the recipe needs and that are not installed."""
    settings = recipe.training_sections.values()
    optimizers = {str(fields.get("optim")) for fields in settings}
    needs_bitsandbytes = bool(recipe.model.quantization or optimizers & BITSANDBYTES_OPTIMIZERS)
    missing = ["bitsandbytes"] if needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None else []
    missing += [package for fields in settings for package in missing_trackers(fields.get("report_to"))]
    return list(dict.fromkeys(missing))


def _locate(purpose: str, name: str, dtype: str = Source.dtype) -> Source:
    is_data, path = purpose == "data", Path(name)
    parameters, width = CLASSIFIERS.get(name, (None, None))
    state, size = DOWNLOAD, parameters * width if parameters and width else None
    if path.is_file() if is_data else path.exists():
        state, size = LOCAL, path.stat().st_size if is_data else _weights_size(path)
        parameters = parameters if is_data else parameters or _stored_parameters(path)
    elif not on_the_hub(name):
        state, size = MISSING, None
    elif snapshot := _snapshot(name, "dataset" if is_data else "model"):
        weights = _weights_size(snapshot)
        if is_data or weights:
            state, size = CACHED, None if is_data else weights
    return Source(purpose, name, state, size, parameters, dtype)


def _snapshot(repository: str, kind: str) -> Path | None:
    """The newest snapshot of a repository in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind) / "snapshots"
    snapshots = [path for path in folder.glob("*") if any(path.iterdir())]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _stored_parameters(folder: Path) -> int | None:
    """Numbers in the safetensors files of a folder; None if there are none."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except SafetensorError:  # the run names a damaged file
            return None
    return total or None


def _weights_size(folder: Path) -> int:
    """Bytes of the weights in a folder; if a repository holds both formats, of the safetensors."""
    sizes = (sum(path.stat().st_size for path in folder.glob(f"*.{ending}")) for ending in ("safetensors", "bin"))
    return next(filter(None, sizes), 0)
