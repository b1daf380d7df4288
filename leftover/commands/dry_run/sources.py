"""What a recipe reads, and which of it is here: local files, the Hugging Face cache, or still to be downloaded."""

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leftover.commands.dry_run.published_sizes import CLASSIFIERS
from leftover.monitoring.trackers import missing_packages as trackers
from leftover.recipe.sections import DataSection, Recipe

LOCAL, CACHED, DOWNLOAD, MISSING = "here", "in the cache", "to download", "not there: put it there"

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILE_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz", ".zip")
_WEIGHTS = ("*.safetensors", "*.bin")
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
    """Inside, the Hugging Face libraries answer from the cache alone, whatever the environment says."""
    from datasets import config as datasets_config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE = before


def list_sources(recipe: Recipe, judges: bool = True) -> list[Source]:
    """Everything that the recipe names: models, tokenizer, data, rewards and, where they are asked, judges."""
    model, found = recipe.model, []
    if model.path is not None:
        found.append(_model("model", model.path))
    if isinstance(model.tokenizer, str) and model.tokenizer != model.path:
        found.append(_model("tokenizer", model.tokenizer))
    if recipe.reference.path is not None:
        found.append(_model("reference", recipe.reference.path))
    found += [_data_file(path) for path in data_paths(recipe.data)]
    if recipe.data.drop_listed is not None:
        found.append(_data_file(recipe.data.drop_listed))
    asked = recipe.evaluate.judges if judges else []
    for purpose, specs in (("reward", recipe.reward.functions), ("judge", asked)):
        for spec in specs:
            found += reward_models(purpose, spec)
    return found


def reward_models(purpose: str, spec: dict[str, Any]) -> list[Source]:
    """The models that a reward's specification names; nothing is built and nothing loaded."""
    if spec.get("type") == "sum":
        return [source for inner in spec.get("functions") or [] for source in reward_models(purpose, inner)]
    if isinstance(spec.get("new_completions"), dict):
        return reward_models(purpose, spec["new_completions"])
    settings = _preset(spec) | spec
    if spec.get("type") in ("text", "column", "python", "http"):
        return []
    names = [settings[key] for key in _MODEL_SETTINGS if isinstance(settings.get(key), str)]
    return [replace(_model(purpose, name), dtype=str(settings.get("dtype", "float32"))) for name in names]


def data_paths(data: DataSection) -> list[str]:
    return [data.path] if isinstance(data.path, str) else list(data.path)


def on_the_hub(path: str) -> bool:
    """Whether a path that is not there can be the id of a repository on the Hub, rather than a missing file."""
    return not Path(path).exists() and bool(_HUB_ID.fullmatch(path)) and not path.endswith(_FILE_ENDINGS)


def missing_packages(recipe: Recipe) -> list[str]:
    """Packages that the recipe needs and that are not installed."""
    settings = [recipe.train, recipe.reference.train, *recipe.policies.values()]
    optimizers = {str(fields.get("optim", "")) for fields in settings}
    by_bitsandbytes = any(name.startswith("paged_") or "8bit" in name or "bnb" in name for name in optimizers)
    needed = ["bitsandbytes"] if recipe.model.quantization or by_bitsandbytes else []
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return list(dict.fromkeys([*missing, *(p for fields in settings for p in trackers(fields.get("report_to")))]))


def _model(purpose: str, name: str) -> Source:
    published = CLASSIFIERS.get(name)
    parameters = published.parameters if published else None
    if Path(name).exists():
        return Source(purpose, name, LOCAL, _weights_size(Path(name)), parameters)
    if not on_the_hub(name):
        return Source(purpose, name, MISSING, None, parameters)
    snapshot = _snapshot(name)
    if snapshot is not None and (size := _weights_size(snapshot)):
        return Source(purpose, name, CACHED, size, parameters)
    return Source(purpose, name, DOWNLOAD, published.size if published else None, parameters)


def _data_file(path: str) -> Source:
    if Path(path).is_file():
        return Source("data", path, LOCAL, Path(path).stat().st_size)
    if not on_the_hub(path):
        return Source("data", path, MISSING)
    return Source("data", path, CACHED if _snapshot(path, "dataset") else DOWNLOAD)


def _snapshot(repository: str, kind: str = "model") -> Path | None:
    """The newest snapshot of a repository in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind) / "snapshots"
    snapshots = [path for path in folder.glob("*") if any(path.iterdir())] if folder.is_dir() else []
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _weights_size(folder: Path) -> int:
    """Bytes of the weights in a folder; of the two formats that many repositories hold, the first."""
    for pattern in _WEIGHTS:
        if size := sum(path.stat().st_size for path in folder.glob(pattern)):
            return size
    return 0


def _preset(spec: dict[str, Any]) -> dict[str, Any]:
    """The settings that a classifier's preset stands for."""
    if "preset" not in spec or importlib.util.find_spec("leftover.rewards.presets") is None:
        return {}
    presets: dict[str, dict[str, Any]] = importlib.import_module("leftover.rewards.presets").PRESETS
    return presets.get(str(spec["preset"]), {})
