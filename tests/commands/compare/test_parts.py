"""The parts of a comparison that need no training: methods, grids, marks, and what stands against the data."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import leftover.commands.compare.run as compare_run
from leftover.commands.compare import trials as trials_module
from leftover.commands.compare.gather import marks, training_cost
from leftover.commands.compare.jobs import Job, _tail, threads_each
from leftover.commands.compare.methods import (
    METHODS,
    SETS,
    Entry,
    declared_strengths,
    declared_trials,
    resolve,
    with_trial,
)
from leftover.commands.compare.run import seeds_of
from leftover.commands.compare.trials import choose, make_trials, read_grid
from leftover.commands.compare.write import draw_reward_diversity
from leftover.errors import UserError
from leftover.evaluation.statistics import against_data, describe_data
from leftover.monitoring.memory import peak_memory
from leftover.objectives import OBJECTIVES
from leftover.recipe.files import make_recipe
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.training_fields import check_policy
from leftover.store.manifest import Manifest
from tests.evaluation.test_results import make_records

POLICIES = {"mine": {"objective": "nll", "rows": "top"}, "a_lol_seq": {"objective": "a_lol_seq", "weight_decay": 0.1}}


def recipe(**sections):
    content = {"name": "r", "output_dir": "o", "model": {"path": "m"}, "data": {"path": "d"}, "policies": POLICIES}
    return make_recipe(content | sections)


def entries(*names):
    return [Entry(name, {"objective": name}, "") for name in names]


def compared(low, *by_seed):
    interval = {"mean": low + 0.1, "low": low, "high": low + 0.2}
    return {"difference": interval, "by_seed": dict(enumerate(by_seed or (low + 0.1,)))}


def differences(**lows):
    """`a_b=0.1`: the interval of a minus b starts at 0.1."""
    return lambda name, other: compared(lows[f"{name}_{other}"])


MEANS = {"b": 2.0, "a": 3.0, "c": 1.0}


def test_best_and_second_are_marked_where_their_intervals_exclude_zero():
    assert marks(MEANS, differences(a_b=0.01, b_c=0.01)) == {"a": "best", "b": "second"}


def test_an_interval_that_holds_zero_marks_nothing():
    assert marks(MEANS, differences(a_b=-0.01, b_c=0.5)) == {}
    assert marks(MEANS, differences(a_b=0.0, b_c=0.5)) == {}


def test_a_seed_that_disagrees_marks_nothing():
    assert marks({"a": 1.0, "b": 0.5}, lambda *names: compared(0.1, 0.5, -0.1)) == {}
    assert marks({"a": 1.0, "b": 0.5}, lambda *names: compared(0.1, 0.5, 0.1)) == {"a": "best"}


def test_the_second_needs_an_interval_of_its_own():
    assert marks(MEANS, differences(a_b=0.01, b_c=-0.01)) == {"a": "best"}


def test_one_method_alone_and_the_last_of_two_are_not_marked():
    assert marks({"a": 1.0}, differences()) == {}
    assert marks({"a": 1.0, "b": 0.5}, differences(a_b=0.2)) == {"a": "best"}


def test_of_too_few_families_nothing_is_marked():
    few = {"difference": {"mean": 1, "low": 0.5, "high": 1.5, "families": 7}, "by_seed": {0: 1.0}, "win_rate": 1.0}
    assert marks(MEANS, lambda name, other: few) == {}
    assert marks(MEANS, lambda name, other: few | {"difference": {"mean": 1, "low": 0.5, "high": 1.5}})


def test_what_was_not_compared_is_not_marked():
    assert marks(MEANS, lambda name, other: None) == {}


SEEDS = {0: make_records([1.0, 2.0, 3.0, 0.0]), 7: make_records([3.0, 2.0, 3.0, 2.0])}


def test_the_win_rate_against_the_data_counts_a_prompt_once_and_a_tie_one_half():
    # Prompt 2 has two completions, prompt 3 none that is scored.
    data = {0: [1.0], 1: [3.0], 2: [3.0, 1.0], 3: []}
    found = against_data(SEEDS, data, "greedy")
    seed_0, seed_7 = 0.5 + 0 + (0.5 + 1) / 2, 1 + 0 + (0.5 + 1) / 2
    assert found["win_rate_against_data"] == pytest.approx((seed_0 / 3 + seed_7 / 3) / 2)
    assert found["prompts_with_data_reward"] == 3
    # Seeds averaged 2, 2, 3; the data's means 1, 3, 2. Families: a has 1 and -1, b has 1.
    assert (
        found["difference_from_data"]["mean"] == pytest.approx(1 / 3) and found["difference_from_data"]["families"] == 2
    )


def test_nothing_stands_against_data_without_scores():
    assert against_data(SEEDS, {0: [], 1: []}, "greedy") == {}
    assert against_data(SEEDS, {0: [1.0]}, "sampled") == {}


def test_the_data_has_a_row_of_its_own():
    rows = [
        {"text": "a b", "tokens": 2, "family": "f", "rewards": [1.0, 3.0]},
        {"text": "a a", "tokens": 4, "family": "g", "rewards": []},
    ]
    row = describe_data(rows)
    assert row["reward"]["mean"] == 2 and row["length"] == 3 and row["prompts"] == 2
    assert (row["distinct_1"], row["distinct_2"]) == (2 / 4, 2 / 2)


def test_policies_of_the_recipe_keep_their_settings():
    found = {entry.name: entry for entry in resolve("a_lol_seq,nll", recipe())}
    assert found["a_lol_seq"].fields == POLICIES["a_lol_seq"] and found["a_lol_seq"].source == "the recipe"
    assert found["nll"].fields == {"objective": "nll"} and "2305.14718" in found["nll"].source


def test_without_names_the_policies_of_the_recipe_are_compared():
    assert [entry.name for entry in resolve(None, recipe())] == ["mine", "a_lol_seq"]


def test_sets_stand_for_their_methods_and_only_names_count_as_named():
    found = {entry.name: entry for entry in resolve("nll_top,nll", recipe())}
    assert list(found) == [*SETS["nll_top"], "nll"]
    assert found["nll"].named and not found["nll_top10"].named
    assert found["nll_top10"].fields == {"objective": "nll", "rows": "top", "top_percent": 10.0}


def test_all_holds_every_objective_and_the_recipes_policies():
    found = {entry.name for entry in resolve("all", recipe())}
    assert {"mine", "a_lol_seq"} <= found
    reached = {METHODS[name].fields.get("objective", name) if name in METHODS else name for name in found - {"mine"}}
    assert set(OBJECTIVES) - {"nll_top"} <= reached


def test_a_method_of_an_objective_that_is_not_here_has_a_reason(monkeypatch):
    monkeypatch.delitem(OBJECTIVES, "r_gold")
    found = {entry.name: entry for entry in resolve("paper", recipe())}
    assert "no objective 'r_gold'" in found["r_gold"].reason and found["nll"].reason is None


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no method 'a_lol_sec'; did you mean 'a_lol_seq'\?"):
        resolve("nll,a_lol_sec", recipe())


def test_every_method_names_fields_that_exist():
    fields = set(LoLConfig.__dataclass_fields__)
    for name, method in METHODS.items():
        assert set(method.fields) <= fields, name
        objective = OBJECTIVES.get(method.fields.get("objective", name))
        for key in method.own_trial or {}:
            section, _, setting = key.partition(".")
            assert section in fields
            if objective and section == "objective_settings":
                assert setting in objective.settings.__dataclass_fields__, name


def test_every_knob_is_a_setting_of_its_method():
    for entry in resolve("all", recipe()):
        own, *others = declared_strengths(entry)
        assert own == {} and len(others) in (2, 3)
        for trial in others:
            check_policy(with_trial(entry, trial, {}), {}, "here")


def test_the_declared_grid_gives_every_method_as_many_trials_without_repeats():
    for entry in resolve("all", recipe()):
        trials = declared_trials(entry)
        assert len(trials) == 4 and trials[0] == {}
        assert all(trials.count(trial) == 1 for trial in trials)


def test_a_grid_of_options_is_their_product_for_every_method():
    grid = read_grid(("learning_rate=1e-4,1e-3", "objective_settings.clip=0.2,null"), recipe())
    trials = make_trials(entries("r_lol", "a_lol"), grid)
    assert trials["r_lol"] == trials["a_lol"]
    assert trials["a_lol"] == [
        {"learning_rate": rate, "objective_settings.clip": clip} for rate in (1e-4, 1e-3) for clip in (0.2, None)
    ]


@pytest.mark.parametrize("option", ["learning_rate", "learning_rate=", "declared,none"])
def test_a_faulty_grid_option_is_refused(option):
    with pytest.raises(UserError, match=r"--grid .*none, declared, .*KEY=VALUE"):
        read_grid((option,), recipe())


def test_unequal_numbers_of_trials_are_refused():
    grid = {"nll": [{}, {"learning_rate": 1e-3}], "a_lol": [{}]}
    with pytest.raises(UserError, match=r"compare\.grid: .*nll 2, a_lol 1"):
        make_trials(entries("nll", "a_lol"), read_grid((), recipe(compare={"grid": grid})))


def test_a_trial_changes_what_it_names_and_leaves_the_rest():
    entry = Entry("a", {"objective": "a_lol_kl", "objective_settings": {"beta": 0.2}, "learning_rate": 1e-3}, "")
    trial = {"learning_rate_factor": 3, "objective_settings.kl_estimator": "k3", "draw": "uniform"}
    fields = with_trial(entry, trial, {"learning_rate": 1.0})
    assert fields["learning_rate"] == pytest.approx(3e-3) and fields["draw"] == "uniform"
    assert fields["objective_settings"] == {"beta": 0.2, "kl_estimator": "k3"}
    assert entry.fields["learning_rate"] == 1e-3 and entry.fields["objective_settings"] == {"beta": 0.2}


def test_a_learning_rate_factor_is_of_the_shared_rate_and_else_of_the_default():
    (entry,) = entries("nll")
    factor = {"learning_rate_factor": 0.5}
    assert with_trial(entry, factor, {"learning_rate": 4e-3})["learning_rate"] == 2e-3
    assert with_trial(entry, factor, {})["learning_rate"] == LoLConfig.learning_rate / 2


@pytest.mark.parametrize(("higher", "chosen"), [(True, 1), (False, 0)])
def test_the_trial_of_the_best_selection_score_is_chosen_and_a_tie_goes_to_the_earlier(higher, chosen, monkeypatch):
    scores = {0: 0.1, 1: 0.5, 2: 0.5, 3: None}
    facts = {f"policy nll/trial-{i}, seed 7": {"best_metric": score, "best_step": i} for i, score in scores.items()}
    run = SimpleNamespace(manifest=SimpleNamespace(facts=lambda name: facts[name]))
    monkeypatch.setattr(trials_module, "training_args", lambda *_: SimpleNamespace(greater_is_better=higher))
    number, record = choose(run, "nll", [{"learning_rate": i} for i in scores], 7)
    assert number == chosen
    assert [trial["selection"] for trial in record] == list(scores.values())


def test_seeds_are_the_recipes_then_the_integers_after_them():
    assert seeds_of(recipe(), None) == [0, 1, 2]
    assert seeds_of(recipe(seeds=[5, 3]), None) == [5, 3]
    assert seeds_of(recipe(seeds=[5, 6]), 4) == [5, 6, 7, 8]
    assert seeds_of(recipe(seeds=[5, 3, 1]), 1) == [5]


def test_writers_of_one_manifest_lose_no_entry(tmp_path):
    Manifest(tmp_path).begin("first", {})

    def write(writer):
        manifest = Manifest(tmp_path, shared=True)
        for i in range(10):
            manifest.begin(f"{writer}-{i}", {"i": i})
            manifest.finish(f"{writer}-{i}", fact=writer)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Manifest(tmp_path).entries
    assert len(entries) == 41
    assert all(entries[f"{n}-{i}"]["complete"] for n in range(4) for i in range(10))


def test_a_manifest_takes_up_what_others_wrote(tmp_path):
    ours, theirs = Manifest(tmp_path), Manifest(tmp_path)
    theirs.begin("theirs", {})
    theirs.finish("theirs", fact=1)
    assert not ours.is_complete("theirs")
    ours.reload()
    assert ours.facts("theirs") == {"fact": 1}


def test_peak_memory_is_what_was_held_inside_and_starts_anew():
    size = 96 * 2**20
    with peak_memory() as small:
        pass
    with peak_memory() as large:
        held = bytearray(size)
        held[::4096] = b"x" * len(held[::4096])
        del held
    with peak_memory() as after:
        pass
    assert large["peak_memory"] - small["peak_memory"] > 0.9 * size
    if large["peak_memory_of"] == "process":
        assert large["peak_memory"] - after["peak_memory"] > 0.9 * size


def test_runs_of_a_method_cost_their_mean_of_time_and_tokens_and_their_most_of_memory():
    runs = {
        0: {"steps": 10, "seconds": 2.0, "trained_tokens": 100, "peak_memory": 7},
        1: {"steps": 10, "seconds": 4.0, "trained_tokens": 300, "peak_memory": 5, "resumed_at": 3},
    }
    assert training_cost(runs) == {
        "updates": 10, "seconds": 3, "trained_tokens": 200, "peak_memory_bytes": 7, "resumed": 1
    }  # fmt: skip


def test_processes_share_the_cores_and_get_no_more_than_was_given(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert (threads_each(1), threads_each(3), threads_each(100)) == (8, 2, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_each(2) == 1


def test_of_a_log_the_last_lines_are_told(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("".join(f"line {i}\n\n" for i in range(20)))
    assert _tail(log, 1).splitlines() == [f"line {i}" for i in range(15, 20)]
    log.write_text("")
    assert "status -9" in _tail(log, -9)


def test_a_method_whose_trials_all_fail_is_told_its_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(recipe=SimpleNamespace(seeds=[0], train={}))
    entries = [Entry(name, {"objective": name}, "") for name in ("nll", "wbc", "dpo")]
    trials: Any = {entry.name: [{}] for entry in entries}
    failed = {Job(f"{name}/trial-0", 0, evaluate=False): f"of {name}" for name in ("nll", "wbc")}
    monkeypatch.setattr(compare_run, "take", lambda *arguments: None)
    monkeypatch.setattr(compare_run, "run_jobs", lambda *arguments: failed)
    monkeypatch.setattr(compare_run, "choose", lambda *arguments: (None, [{"settings": {}, "selection": None}]))
    assert compare_run._tune(run, entries, trials, 1) == {}
    assert [entry.reason and entry.reason.rpartition(": ")[2] for entry in entries] == [
        "of nll", "of wbc", "none was scored",
    ]  # fmt: skip


def test_the_picture_of_equal_results_is_the_same_file(tmp_path):
    def row(mean):
        reward = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        return {"reward": reward, "distinct_2_relative": mean, "reward_by_seed": {0: mean, 1: mean + 0.05}}

    results = {"name": "r", "primary": "sampled", "sampled": {"table": {"reference": row(0.1), "nll": row(0.5)}}}
    pictures = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        draw_reward_diversity(folder, results)
        pictures.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2
    assert b"<dc:date>" not in pictures[0][1]
