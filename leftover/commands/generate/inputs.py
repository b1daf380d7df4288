"""The inputs of `leftover generate`: model, tokenizer, prompts and rewards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leftover.data.chat import Chat
from leftover.data.formats import check_files, read_rows
from leftover.data.missing import no_column
from leftover.data.records import Located
from leftover.data.rows import Rejects, check_rows, text_hash
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError
from leftover.models.load import base_path, is_adapter, reads_two_texts
from leftover.models.reference import model_identity
from leftover.models.vocabulary import check_vocabulary_at
from leftover.prepare.reread import reread_prompts
from leftover.prepare.rows import read, split, tokens
from leftover.prepare.scores import fit_rewards, score_component, sum_rewards
from leftover.recipe.data_section import ColumnsSection, DataSection
from leftover.recipe.files import load_recipe, make_recipe
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward, learner, load_reward
from leftover.rewards.sum import fitted_parts, fresh_reward, reads_scores
from leftover.runs.claim import open_run
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_folder
from leftover.runs.run import Run
from leftover.store.manifest import FileHashes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompt(NamedTuple):
    """A unique prompt with what its rows carry along, by the names of the table's columns."""

    prompt: str  # of a conversation the messages as JSON
    conversational: bool
    family: str | None  # None: the prompt itself
    split: str | None
    tools: str | None
    answer: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any], split: str | None) -> "Prompt":
        """The prompt of a checked row."""
        family = None if row["family"] == row["prompt"] else row["family"]
        return cls(row["prompt"], row["conversational"], family, split, row["tools"], row["answer"])


@dataclass
class Source:
    """A model to sample from, and all that turns its samples into rows."""

    path: str
    recipe: Recipe  # the user's, or one made of the command's arguments
    tokenizer: "PreTrainedTokenizerBase"
    prompts: list[Prompt]
    reward: SumReward | None
    compute_dtype: str | None = None
    hashes: FileHashes | None = None
    learnt: dict[str, str] = field(default_factory=dict)  # keys of what reward functions learnt from rows

    @cached_property
    def chat(self) -> Chat:
        model = self.recipe.model
        two_texts = reads_two_texts(model.model_copy(update={"path": self.path, "config": None}))
        return Chat(self.tokenizer, model.template_options, model.end_tokens, two_texts=two_texts)

    def identity(self) -> dict[str, Any]:
        """What samples and scores depend on, besides the decoding, for the key of the rows."""
        model, reward = self.recipe.model, self.reward
        scores = [reward.identity(), reward.weights, reward.missing, reward.state, self.learnt] if reward else None
        texts = "\0".join(f"{p.prompt}\0{p.tools}\0{p.family}\0{p.split}\0{p.answer}" for p in self.prompts)
        return (
            {
                "model": model_identity(self.path, self.hashes),
                "weights": model.model_dump(include={"dtype", "quantization", "attn_implementation"}),
                "compute_dtype": self.compute_dtype,
                "tokenizer": [self.tokenizer.name_or_path, len(self.tokenizer), self.tokenizer.chat_template],
                "prompts": {"number": len(self.prompts), "hash": text_hash(texts)},
                "columns": self.recipe.data.columns.model_dump(),
                "reward": scores,
            }
            | self.recipe.engine.key
            | reread_prompts(self.chat, [p.prompt for p in self.prompts if not p.conversational])
        )


def open_source(
    model: str,
    prompts: str | None,
    rejects: Path,
    *,
    recipe: str | None,
    overrides: Sequence[str],
    policy: str | None,
    policy_seed: int | None,
    reward: str | None,
    splits: bool,
) -> Source:
    """What the arguments of `leftover generate` mean.

    A run's folder as `model` stands for its trained policy, and for its recipe if no other is given. A recipe gives
    tokenizer, limits, rewards (with what they learnt) and, without `prompts`, its own prompts. Raises UserError for a
    model, a policy, prompts or rewards that do not exist.
    """
    path, folder = model, Path(model)
    if (folder / "recipe.yaml").is_file():
        trained = FinishedRun(folder)
        path = str(policy_folder(trained.folder, *trained.trained_policy(policy, policy_seed)))
        recipe = recipe or str(trained.folder)
    elif policy is not None or policy_seed is not None:
        raise UserError(f"--policy and --policy-seed need a run, and '{model}' is no run's folder")
    given = load_reward(reward) if reward else None
    if recipe is None:
        if prompts is None:
            raise UserError("give a file of PROMPTS, or a recipe with --recipe, whose prompts are taken")
        content = {"name": "generate", "output_dir": ".", "model": {"path": path}, "data": {"path": prompts}}
        made = make_recipe(content, where="leftover generate", overrides=overrides)
        tokenizer = load_tokenizer(
            made.model.tokenizer if isinstance(made.model.tokenizer, str) else _tokenizer_path(path),
            chat_template=made.model.chat_template,
            trust_remote_code=made.model.remote_code,
        )
        check_vocabulary_at(path, tokenizer, trust_remote_code=made.model.remote_code, key="model.tokenizer")
        return Source(path, made, tokenizer, read_prompts(made.data, rejects), fresh_reward(given or Run(made).reward))
    # `overrides` hold for this command alone: the run, whose rows and rewards are used, keeps its recipe.
    saved, settings = load_recipe(recipe), load_recipe(recipe, overrides)
    run = open_run(saved)
    try:
        return _of_recipe(path, run, settings, prompts, rejects, given, splits)
    finally:
        run.close()


def _of_recipe(
    path: str, run: Run, settings: Recipe, prompts: str | None, rejects: Path, given: SumReward | None, splits: bool
) -> Source:
    """The source of a recipe whose run is opened: what its rows and rewards need is computed in its folder."""
    saved, tokenizer = run.recipe, run.models.tokenizer
    check_vocabulary_at(path, tokenizer, trust_remote_code=saved.model.remote_code, key="model.tokenizer")
    same_path = settings.data.path == saved.data.path
    if prompts is not None:
        # The recipe's format is that of its own file.
        kind = "auto" if same_path and settings.data.format == saved.data.format else settings.data.format
        update = {"path": prompts, "format": kind, "drop_listed": None, "max_rows": None, "part": (0.0, 1.0)}
        found = read_prompts(settings.data.model_copy(update=update), rejects)
    elif same_path:
        found = recipe_prompts(run, splits)
    else:
        raise UserError("--set data.path: give the file as PROMPTS instead")
    if given is None and settings.reward == saved.reward:
        scores, learnt = recipe_reward(run)
    else:
        scores, learnt = fresh_reward(given or Run(settings).reward), {}
    return Source(path, settings, tokenizer, found, scores, saved.compute_dtype, run.hashes, learnt)


_NAME_PROMPT = "; name yours with --set data.columns.prompt=COLUMN"


def read_prompts(data: DataSection, rejects: Path) -> list[Prompt]:
    """The unique prompts of a file, each from its first row; its completions and scores are not read."""
    check_files(data)
    if "{" in data.columns.completion:  # a template over columns that prompts need not have
        columns = data.columns.model_copy(update={"completion": ColumnsSection().completion})
        data = data.model_copy(update={"columns": columns})
    columns = data.columns

    def located() -> Iterator[Located]:
        for number, (where, row) in enumerate(read_rows(data)):
            if number == 0 and columns.prompt not in row:
                raise UserError(f"{where}: {no_column([columns.prompt], row, remedy=_NAME_PROMPT)}")
            known = {k: v for k, v in row.items() if k not in (columns.reward, "is_chosen")}
            yield where, known | {columns.completion: "-"}  # a row is checked as a whole

    found: dict[tuple[str, str | None], Prompt] = {}
    for row in check_rows(located(), data, Rejects(rejects), {}):
        found.setdefault((row["prompt"], row["tools"]), Prompt.of(row, row["user_split"]))
    return list(found.values())


def recipe_prompts(run: Run, splits: bool) -> list[Prompt]:
    """The unique prompts of a recipe's rows, each with its split, so that the next run keeps it.

    `splits` False leaves out the splits that the recipe assigned: such rows can be mixed with rows that have none.
    """
    read(run)
    split(run)
    table = run.table.open("rows", "split")
    _, first = np.unique(np.asarray(table["group"][:]), return_index=True)
    return [Prompt.of(row, row["split"] if splits else row["user_split"]) for row in table.select(np.sort(first))]


def recipe_reward(run: Run) -> tuple[SumReward | None, dict[str, str]]:
    """The recipe's reward, fitted on its rows (in the run's folder), and keys of that; None for recorded scores."""
    reward = run.reward
    if not reward.scores_new_completions:
        return None, {}
    if fitted_parts(reward):
        read(run)
        split(run)
        fit_rewards(run)
    if reward.length:
        tokens(run)
    if reads_scores(reward):
        for name in reward.components:
            score_component(run, name)
        sum_rewards(run)
    learnt = [name for name, function in reward.components.items() if learner(function)]
    return reward, {name: run.manifest.digest(f"reward {name}") for name in learnt}


def _tokenizer_path(path: str) -> str:
    """An adapter's folder may hold no tokenizer: its base has one."""
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        return base_path(path)
    return path
