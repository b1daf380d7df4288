"""One run: its recipe, its folder, its table, and the models that its stages share."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from leftover.data.chat import Chat
from leftover.data.rows import Rejects
from leftover.data.tokenizer import load_tokenizer, read_chat_template
from leftover.errors import UserError, first_line
from leftover.models.load import align_generation_config, build_model, is_adapter, load_with, max_positions
from leftover.models.reference import model_identity
from leftover.objectives.online import ONLINE
from leftover.recipe.files import dump_recipe, load_yaml
from leftover.recipe.sections import Recipe, TokenizerSection
from leftover.rewards import ColumnReward, SumReward
from leftover.store.manifest import FileHashes, Manifest, read_json, write_json
from leftover.store.table import Table

log = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


class Run:
    """The folder of one recipe. Raises UserError where the folder belongs to another recipe or to no run."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self._claim_folder()
        self.table = Table(self.folder / "table")
        self.manifest = Manifest(self.folder, shared=True)
        self.hashes = FileHashes(self.folder)
        self.rejects = Rejects(self.folder / "rejected_rows.jsonl")
        reward = recipe.reward
        self.reward = SumReward(reward.functions, reward.transform, reward.missing)
        # Held-out scorers: reported, never trained on.
        self.judges = SumReward(recipe.evaluate.judges) if recipe.evaluate.judges else None
        self.check_packages()
        self.check_rewards()
        self.check_limits()

    def _claim_folder(self) -> None:
        saved = self.folder / "recipe.yaml"
        temporary = self.folder / "recipe.yaml.tmp"  # what a full disk may leave behind
        if saved.is_file():
            name = str(load_yaml(saved.read_text(encoding="utf-8")).get("name"))
            if name != self.recipe.name:
                raise UserError(
                    f"{self.folder} holds the run '{name}', this recipe is '{self.recipe.name}': choose another "
                    "output_dir, or remove the folder"
                )
        elif self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} (key output_dir) is a file: choose another output_dir")
        elif self.folder.exists() and set(self.folder.iterdir()) - {temporary}:
            raise UserError(f"{self.folder} is not empty and holds no run: choose another output_dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(dump_recipe(self.recipe), encoding="utf-8")
        temporary.replace(saved)

    @cached_property
    def tokenizer(self) -> Any:
        model = self.recipe.model
        return load_tokenizer(
            self.tokenizer_path,
            chat_template=model.chat_template,
            trust_remote_code=model.trust_remote_code,
        )

    @cached_property
    def chat(self) -> Chat:
        """The chat template with the recipe's options, and the tokens that end a completion."""
        return Chat(self.tokenizer, self.recipe.model.template_options, self.recipe.model.end_tokens)

    @property
    def tokenizer_path(self) -> str:
        model = self.recipe.model
        if isinstance(model.tokenizer, TokenizerSection):
            return str(self.folder / "tokenizer")
        return model.tokenizer or str(model.path)

    @property
    def tokenizer_key(self) -> dict[str, Any]:
        model = self.recipe.model
        if isinstance(model.tokenizer, TokenizerSection):
            files: Any = {"fit": self.manifest.digest("tokenizer")}
        else:
            folder = Path(self.tokenizer_path)
            found = {name: self.hashes.of(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()}
            files = found or self.tokenizer_path
        return {
            "files": files,
            "chat_template": read_chat_template(model.chat_template),
            "template_options": model.template_options,
            "end_tokens": model.end_tokens,
        }

    @cached_property
    def base_key(self) -> Any:
        """What stands for the model before the reference is fitted."""
        model = self.recipe.model
        if model.path:
            return model_identity(model.path, self.hashes)
        return {"config": model.config, "tokenizer": self.tokenizer_key, "seed": self.seed}

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def load_base(self) -> Any:
        """The untouched model: pretrained, or with random weights from the recipe's config."""
        model = self.recipe.model
        if model.path is None:
            assert model.config is not None
            return build_model(model.config, self.tokenizer, seed=self.seed, dtype=model.dtype)
        return self.load(model.path)

    def load(self, path: str | Path) -> Any:
        """A model or adapter at `path` as the section `model` says, with the chat.s ends; on a GPU where one is."""
        model = load_with(self.recipe.model, str(path), self.compute_dtype)
        align_generation_config(model, self.tokenizer, self.chat.ends)
        return model

    @property
    def reference_path(self) -> str:
        reference = self.recipe.reference
        if reference.source == "path":
            return str(reference.path)
        if reference.source == "as_is":
            return str(self.recipe.model.path)
        return str(self.folder / "reference")

    def load_reference(self) -> Any:
        return self.load(self.reference_path)

    def lora_config(self) -> Any:
        """The peft config for a new adapter; None for full fine-tuning or where the reference is an adapter."""
        lora = self.recipe.model.lora
        if lora is None or is_adapter(self.reference_path):
            return None
        from peft import LoraConfig

        return LoraConfig(
            r=lora.r,
            lora_alpha=int(lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        )

    def check_packages(self) -> None:
        """Refuse what needs a package or a GPU that is not there, before any row is read."""
        from leftover.recipe.optional_packages import check_optimizer, check_quantization

        recipe = self.recipe
        if recipe.model.quantization:
            check_quantization()
        settings = {"train": recipe.train, "reference.train": recipe.reference.train}
        for section, fields in (settings | {f"policies.{n}": f for n, f in recipe.policies.items()}).items():
            check_optimizer(str(fields.get("optim")), f"{section}.optim")

    def check_rewards(self) -> None:
        """Refuse a column that the table cannot give, or a policy that it cannot serve, before any row is read."""
        online = [name for name, fields in self.recipe.policies.items() if fields.get("objective") in ONLINE]
        recorded = self.reward.only_recorded
        if online and recorded:
            raise UserError(
                f"policy '{online[0]}' trains on its own completions, and the reward '{recorded[0]}' cannot score new "
                "ones: its scores are recorded; take a reward function (text, classifier, python), or drop the policy"
            )
        column = self.recipe.data.columns.reward
        for name, reward in self.reward.components.items():
            if isinstance(reward, ColumnReward) and reward.column not in (None, column):
                raise UserError(
                    f"reward function '{name}' reads the column '{reward.column}', but recorded scores are read from "
                    f"'{column}': set data.columns.reward"
                )

    def check_limits(self) -> None:
        """Refuse lengths beyond the model's positions before any row is read."""
        model, data = self.recipe.model, self.recipe.data
        if model.path is None:
            config = model.config or {}
            positions = config.get("max_position_embeddings", config.get("n_positions"))
        else:
            positions = self._positions(model.path)
        lengths = {"data.max_completion_tokens": data.max_completion_tokens}
        lengths["evaluate.max_new_tokens"] = self.recipe.evaluate.max_new_tokens or 0
        for key, length in lengths.items():
            needed = data.max_prompt_tokens + length
            if positions is not None and needed > positions:
                raise UserError(
                    f"data.max_prompt_tokens + {key} = {needed} exceeds the model's {positions} positions: lower one "
                    "of them"
                )

    def _positions(self, path: str) -> int | None:
        from transformers import AutoConfig

        if is_adapter(path):
            raise UserError(
                f"model.path '{path}' is an adapter: name its base there, and the adapter as reference.path"
            )
        if (Path(path) / "table").is_dir() and (Path(path) / "recipe.yaml").is_file():
            raise UserError(
                f"model.path '{path}' is a run, which holds several models: name {path}/reference, one of "
                f"{path}/policies, or what `leftover export` writes"
            )
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=self.recipe.model.trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(f"no model at '{path}' (key model.path): {first_line(error)}") from error
        return max_positions(config)

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype that the recipe's training uses; the reference pass shares it."""
        train = self.recipe.train
        return "bfloat16" if train.get("bf16") else "float16" if train.get("fp16") else None

    @property
    def quantization_key(self) -> dict[str, Any]:
        """What quantised weights add to the keys of numbers that come from a model; nothing where none are."""
        kind = self.recipe.model.quantization
        return {"quantization": [kind, self.compute_dtype or "bfloat16"]} if kind else {}

    @property
    def max_new_tokens(self) -> int:
        """How long generated completions may be."""
        return self.recipe.evaluate.max_new_tokens or self.recipe.data.max_completion_tokens

    @property
    def value_targets(self) -> str:
        """The kind of value targets: the recipe's, or samples where the measure of the rows' rewards scores them."""
        targets = self.recipe.value.targets
        if targets == "auto":
            return "recorded" if self.reward.has_recorded_scores else "reference_samples"
        if targets == "reference_samples" and not self.reward.scores_new_completions:
            raise UserError(
                "value.targets: reference_samples scores new completions, but the rewards are a recorded column; use "
                "recorded or group_loo"
            )
        return targets

    def note(self, **facts: Any) -> None:
        """Remember counts of the preparation, for the report, in `prepare.json`."""
        path = self.folder / "prepare.json"
        write_json(path, (read_json(path) if path.is_file() else {}) | facts)
