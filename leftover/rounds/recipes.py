"""The recipe of a round: that of the whole run, with the rows, reference and rewards from which the round goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.objectives import ONLINE
from leftover.prepare.checks import needs_value, value_targets
from leftover.publish.hub import HUB_KEYS, targets
from leftover.recipe.data_section import ColumnsSection
from leftover.recipe.files import make_recipe
from leftover.recipe.needs import policy_objective
from leftover.recipe.sections import Recipe, RoundsSection, TokenizerSection
from leftover.runs.names import policy_folder, reference_folder, round_folder, tokenizer_folder
from leftover.runs.run import Run

BEST_OF_N, PPO = "best_of_n", "ppo"
_BUDGET = ("max_steps", "num_train_epochs", "total_episodes")
# Of the first round's rows, as later rounds read them.
FIRST_ROWS, HELD_OUT = "rows.jsonl", "held_out.jsonl"
COLUMNS = ColumnsSection(answer="answer")
# A completion that the chat template refuses ends no run; rejected_rows.jsonl has it.
_AS_WRITTEN = {"columns": COLUMNS.model_dump(), "on_bad_row": "skip"}


def rounds_of(recipe: Recipe) -> RoundsSection:
    """The section `rounds`, which the recipe has."""
    assert recipe.rounds is not None
    return recipe.rounds


def check(recipe: Recipe) -> None:
    """Refuse, before anything is computed, a recipe that cannot go on from its own completions."""
    main, where = recipe.main_policy, f"{recipe.where}: rounds"
    if recorded := Run(recipe).reward.only_recorded:
        raise UserError(
            f"{where}: new completions are scored, and the scores of '{recorded[0]}' are recorded: set its "
            "new_completions, or take a reward function (text, classifier, linear, python)"
        )
    if len(recipe.seeds) > 1:
        raise UserError(
            f"{where}: each goes on from one policy, and seeds has {len(recipe.seeds)}: give one, and every further "
            "seed an output_dir of its own"
        )
    if recipe.policies[main].get("objective") in ONLINE:
        raise UserError(f"{where}: '{main}' writes its own completions: put a policy that trains on rows first")
    if main in rounds_of(recipe).controls:
        raise UserError(f"{where}.controls: '{main}' is the first policy itself: leave it out there")
    if others := [target.policy for target in targets(recipe) if target.policy != main]:
        raise UserError(f"{where}: only the policy of the last one is pushed: take push_to_hub from '{others[0]}'")


def first_round(recipe: Recipe, num_prompts: int | None = None) -> Recipe:
    """The first round: the recipe with its controls, PPO among them once the number of training prompts is known."""
    controls = rounds_of(recipe).controls
    policies = {name: fields for name, fields in recipe.policies.items() if name not in controls}
    if BEST_OF_N in controls:
        policies[BEST_OF_N] = {"objective": "nll", "rows": "best"} | recipe.policies.get(BEST_OF_N, {})
    if PPO in controls and num_prompts is not None:
        own = {name: of for name, of in recipe.policies.get(PPO, {}).items() if name not in _BUDGET}
        policies[PPO] = {"objective": "ppo"} | own | {"total_episodes": num_completions(recipe, num_prompts)}
    return _made(recipe, policies, round_folder(Path(recipe.output_dir), 1))


def num_completions(recipe: Recipe, num_prompts: int) -> int:
    """How many completions the first policy's rounds sample for training: for later rounds, and for V in every one."""
    rounds, value = rounds_of(recipe), recipe.value_settings
    sampled = (rounds.number - 1) * rounds.completions_per_prompt * num_prompts
    alone = recipe.model_copy(update={"policies": {recipe.main_policy: recipe.policies[recipe.main_policy]}})
    if needs_value(alone) and value_targets(recipe, Run(recipe).reward) == "reference_samples":
        assert isinstance(value.num_prompts, int)
        sampled += rounds.number * value.num_samples * min(value.num_prompts, num_prompts)
    return sampled


def later_round(recipe: Recipe, first: Run, before: Run, policy: str, number: int, samples: Sequence[Path]) -> Recipe:
    """Round `number` of a policy, on the samples of the rounds so far.

    Args:
        before: its round before this one, whose policy is the reference.
    """
    folder = Path(recipe.output_dir)
    rows = [first.folder / HELD_OUT, samples[-1]]
    if rounds_of(recipe).keep == "all":
        rows = [first.folder / FIRST_ROWS, *samples]
    kept = recipe.data.model_dump(include={"max_prompt_tokens", "max_completion_tokens", "long_completions"})
    model = recipe.model.model_dump()
    if isinstance(recipe.model.tokenizer, TokenizerSection):
        model["tokenizer"] = tokenizer_folder(first.recipe, first.folder)
    return _made(
        recipe,
        {policy: first.recipe.policies[policy]},
        round_folder(folder, number, None if policy == recipe.main_policy else policy),
        model=model,
        data=kept | {"path": [str(path) for path in rows], "format": "jsonl"} | _AS_WRITTEN,
        reward=recipe.reward.model_dump() | {"fitted_in": str(before.folder)},
        reference={
            "source": "path",
            "path": str(policy_folder(before.folder, policy, recipe.seeds[0])),
            "origin": reference_folder(first.recipe, first.folder),
        },
        value=recipe.value.model_dump() | {"targets": value_targets(recipe, first.reward)},
    )


def trains_on(recipe: Recipe) -> str:
    """all, or chosen where the first policy trains on the chosen completions of pairs alone."""
    unit = policy_objective(recipe, recipe.main_policy)[0].unit
    return recipe.data.train_on if unit == "completion" else "all"


def _made(recipe: Recipe, policies: dict[str, dict[str, Any]], folder: Path, **sections: Any) -> Recipe:
    """One round's recipe. It pushes nothing: the last policy is pushed when all rounds are done."""

    def local(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in HUB_KEYS}

    own = {"policies": {name: local(fields) for name, fields in policies.items()}, "train": local(recipe.train)}
    content = recipe.model_dump() | own | {"rounds": None, "output_dir": str(folder)} | sections
    # Its names were checked when it was read.
    return make_recipe(content, where=recipe.where, saved=True).marked(recipe.is_of_folder)
