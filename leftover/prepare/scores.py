"""The score stage: every component of the reward for every row, each in its own block, then their sum."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from leftover.data.rows import as_prompt
from leftover.monitoring.ranks import alone, is_main_process, shared, told
from leftover.monitoring.terminal import progress_bar
from leftover.objectives.advantage import differ
from leftover.prepare.checks import check_rewards
from leftover.prepare.fitted_in import FittedIn, reward_state
from leftover.prepare.readers import training_mask
from leftover.rewards import ColumnReward, Reward, learner, text_lengths
from leftover.rewards.facts import component_facts, show_facts
from leftover.rewards.independence import dependent_judges, facts_text, idle_scorers
from leftover.rewards.python import check_finite
from leftover.rewards.sum import as_array
from leftover.rewards.unfinished import settled
from leftover.runs.names import REWARD_STATE, score_block, slug
from leftover.runs.run import Run
from leftover.store.sealed import write_sealed
from leftover.store.table import SHARD_ROWS, column, equals

log = logging.getLogger(__name__)

# Rows between two saves of a component's scores, and so the most that a killed run scores again. A reward may set
# another number in its attribute `batch_rows`.
BATCH_ROWS = 256


def score(run: Run) -> None:
    """Blocks `score-<name>`: a component's scores as they are; block `reward`: their transformed sum."""
    fit_rewards(run)
    for name in run.reward.components:
        score_component(run, name)
    sum_rewards(run)
    check_rewards(run.recipe, run.reward, run.table)


def fit_rewards(run: Run) -> None:
    """Let rewards and judges that learn from rows learn, or load what they learnt before."""
    for judge in dependent_judges(run.recipe):
        log.warning("%s: its score is no independent judgement", judge)
    source = FittedIn(run) if run.recipe.reward.fitted_in else None
    for kind, functions in (("reward", run.reward), ("judge", run.judges)):
        for name, component in functions.components.items() if functions else ():
            reward = learner(component)
            if reward is None:
                continue
            key: dict[str, Any] = {"identity": reward.identity(), "seed": run.seed}
            if reward.reads_rows:
                key["from"] = {block: run.table.digest(block) for block in ("rows", "split")}
            folder = run.folder / "rewards" / f"{kind}-{slug(name)}"
            artifact = f"{kind} {name}"
            if source:
                key, facts, folder = source.fitted(artifact, reward.identity())
                if not run.manifest.begin(artifact, key).finished:
                    run.manifest.finish(artifact, facts=facts)
                reward.load(folder)
                continue
            if not run.manifest.begin(artifact, key, partial(run.discard, folder)).finished:
                folder.mkdir(parents=True, exist_ok=True)
                found: dict[str, Any] = {}
                if is_main_process():
                    with alone():
                        found = reward.fit(folder, run.table.open("rows", "split"))
                run.manifest.finish(artifact, wrote=[folder], facts=found)
                facts = run.manifest.facts(artifact)["facts"]
                log.info("%s: %s", artifact, facts_text(facts))
                for doubt in idle_scorers({artifact: facts}):
                    log.warning("%s", doubt)
            reward.load(folder)


def score_component(run: Run, name: str) -> None:
    """Block `score-<name>`: the scores of one component, NaN if it has none; saved every BATCH_ROWS rows.

    With `reward.fitted_in` only rows that have no score there are scored, by the stand-in where scores are recorded.
    """
    reward, rows = run.reward.components[name], run.table.open("rows")
    batch_rows = getattr(reward, "batch_rows", BATCH_ROWS)
    key: dict[str, Any] = {"from": {"rows": run.table.digest("rows")}, "function": reward.identity()}
    if learner(reward):
        key["from"]["fit"] = run.manifest.digest(f"reward {name}")
    source = FittedIn(run) if run.recipe.reward.fitted_in else None
    if source and isinstance(reward, ColumnReward):
        key["new_rows"] = "scored"

    def compute(shard: Dataset, scratch: Path, _: int) -> dict[str, Any]:
        if isinstance(reward, ColumnReward) and (source is None or reward.stand_in is None):
            return {f"reward/{name}": as_array(shard["recorded_reward"][:])}
        done = [told(_scored_before(scratch)[: len(shard)] if is_main_process() else None)]
        if 0 < len(done[0]) < len(shard):
            log.info("score %s: continues at %s", name, shard[len(done[0])]["where"])
        known = source.known_scores(name, reward.identity()) if source else {}
        with progress_bar(len(shard), f"score {name}", "row") as bar:
            bar.update(len(done[0]))
            for start in range(len(done[0]), len(shard), batch_rows):
                done.append(as_array(_scores(name, reward, shard[start : start + batch_rows], known)))
                if is_main_process():
                    with scratch.open("ab") as file:
                        file.write(done[-1].tobytes())
                bar.update(len(done[-1]))
        return {f"reward/{name}": np.concatenate(done)}

    run.table.manifest.names[score_block(name)] = f"score-{name}"
    run.table.write_columns(score_block(name), key, rows, compute, description=f"score {name}")


def _scored_before(scratch: Path) -> np.ndarray:
    """The scores of an unfinished shard; earlier versions kept those of its later rows too."""
    scratch.touch()
    done = np.fromfile(scratch, np.float64)
    done.tofile(scratch)  # a killed write may have left a part of a number
    return done


def _scores(name: str, reward: Reward, part: dict[str, list], known: dict[tuple[str, str], float]) -> list:
    """The scores of rows: recorded ones, or those that are known; the function gives the rest."""
    scores = [known.get(row) for row in zip(part["prompt"], part["completion"], strict=True)]
    if isinstance(reward, ColumnReward):
        scores = [one if given is None else given for one, given in zip(scores, part["recorded_reward"], strict=True)]
    rest = [i for i, score in enumerate(scores) if score is None]
    if rest:
        prompts = [as_prompt(part["prompt"][i], part["conversational"][i]) for i in rest]
        found = shared(reward, prompts, [part["completion"][i] for i in rest])
        check_finite(f"reward function '{name}'", found, [part["where"][i] for i in rest])
        for i, score in zip(rest, found, strict=True):
            scores[i] = score
    return scores


def sum_rewards(run: Run) -> None:
    """Block `reward`, and the state (normalisations, means, transform) that new completions are scored with."""
    blocks = {name: score_block(name) for name in run.reward.components}
    settings = run.recipe.reward
    needed = [*blocks.values(), "split", *(["tokens"] if settings.length else [])]
    key = {
        "from": {block: run.table.digest(block) for block in needed},
        "weights": run.reward.weights,
        "normalise": run.reward.normalise,
        "missing": settings.missing,
        "transform": settings.transform,
    } | ({"length": settings.length.model_dump()} if settings.length else {})
    unended = _unended(run)
    if unended.any():
        key |= run.recipe.unfinished_key
    fitted = None
    if settings.fitted_in:
        own = {name: value for name, value in key.items() if name not in ("from", "unfinished")}
        key["fitted_in"], fitted = FittedIn(run).reward_state(own)

    def total() -> dict[str, Any]:
        table = run.table.open(*needed)
        scores = {name: column(table, f"reward/{name}") for name in blocks}
        # A line through rows that are dropped as too long would fit the others badly.
        train = training_mask(table) if settings.length else equals(table, "split", "train")
        lengths = _lengths(run) if settings.length else np.empty(0)
        run.reward.state = fitted or run.reward.fit(scores, train, lengths)
        write_sealed(run.folder / REWARD_STATE, run.reward.state)
        counted = run.reward.without_length(scores, lengths)
        reward = settled(run.reward.total(counted), ~unended, run.recipe.evaluate.unfinished)
        facts = component_facts(run.reward, {n: s[train] for n, s in counted.items()}, reward[train])
        run.note(reward=facts)
        show_facts(facts, run.reward)
        return {"reward": reward}

    if run.table.write_whole("reward", key, total):
        reward = column(run.table.open("reward"), "reward")
        found = reward[np.isfinite(reward)]
        if len(found) == 0:
            log.warning("reward: no row has a score; only the reference can be trained from these rows")
        elif not differ(found):
            log.warning("reward: all rewards are equal (%g); no row can be better than its value", found[0])
    run.reward.state = reward_state(run.folder)


def _unended(run: Run) -> np.ndarray:
    """[N] bool: rows that a model wrote up to the limit, without an end; `evaluate.unfinished` holds for them too."""
    rows = run.table.open("rows")
    has_it = "ended" in rows.column_names  # tables of earlier versions have not
    return equals(rows, "ended", False) if has_it else np.zeros(len(rows), bool)


def _lengths(run: Run) -> np.ndarray:
    """[N] of the completions of all rows, some thousand texts in memory at a time."""
    parts = run.table.open("rows").select_columns(["completion"]).iter(batch_size=SHARD_ROWS)
    return np.concatenate([text_lengths(part["completion"]) for part in parts])
