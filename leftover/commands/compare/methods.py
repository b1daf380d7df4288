"""The methods that can be compared: their settings, where those come from, and which others are tried."""

from dataclasses import dataclass
from typing import Any

from leftover.errors import UserError, nearest
from leftover.objectives import OBJECTIVES, ONLINE
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.names import check_distinct
from leftover.recipe.sections import Recipe

Knob = tuple[str, tuple[float, ...]]
_RATE: Knob = ("learning_rate_factor", (0.3, 3.0))
_BETA: Knob = ("objective_settings.beta", (0.03, 0.3))
_TEMPERATURE: Knob = ("objective_settings.temperature", (0.3, 3.0))


class Method:
    """Where a method comes from, what is tried of it, and its fields of LoLConfig beyond `train`.

    Without fields it is the objective of its name. What no field sets has the objective's default.

    Args:
        own_trial: of the declared grid.
        knob: the setting that decides how far it goes from the reference, and the values of a frontier beside its own.
    """

    def __init__(self, source: str, own_trial: dict[str, Any] | None = None, knob: Knob = _RATE, **fields: Any):
        self.source, self.own_trial, self.knob, self.fields = source, own_trial, knob, fields


_A_LOL = "arXiv 2305.14718"
_CLIP = {"objective_settings.clip": 0.2}

METHODS = {
    "nll": Method(f"behaviour cloning; {_A_LOL}, section 4"),
    "wbc": Method(f"weighted behaviour cloning; {_A_LOL}, section 4", {"draw": "priority_unweighted"}),
    "r_gold": Method(f"{_A_LOL}, section 4, after arXiv 2009.07839", {"objective_settings.floor": 0.01}),
    "r_lol": Method(f"{_A_LOL}, equation 3", _CLIP),
    "a_lol": Method(f"{_A_LOL}, equation 4", _CLIP),
    "a_lol_ref_free": Method(f"{_A_LOL}, section 3", {"draw": "priority_unweighted"}),
    "a_lol_seq": Method(f"{_A_LOL}, section 3", _CLIP),
    "a_lol_kl": Method(f"{_A_LOL}, section 3", {"objective_settings.beta": 0.01}, _BETA),
    "dpo": Method("arXiv 2305.18290", {"objective_settings.beta": 0.3}, _BETA),
    "dpo_ref_free": Method(
        "arXiv 2305.18290, the reference-free form",
        {"objective_settings.beta": 0.3},
        _BETA,
        objective="dpo",
        objective_settings={"reference_free": True},
    ),
    "pro": Method("arXiv 2306.17492"),
    "ppo": Method("arXiv 1707.06347, with a KL penalty (1909.08593)", knob=("kl_coef", (0.01, 0.2))),
    "nll_top10": Method("filtered behaviour cloning", objective="nll", rows="top", top_percent=10.0),
    "nll_top25": Method("filtered behaviour cloning", objective="nll", rows="top", top_percent=25.0),
    "nll_leftover": Method("filtered behaviour cloning: the rows of A-LoL", objective="nll", rows="leftover"),
    "awr": Method("arXiv 1910.00177", {"objective_settings.temperature": 0.3}, _TEMPERATURE),
    "kto": Method("arXiv 2402.01306", {"objective_settings.beta": 0.3}, _BETA),
    "dro": Method("arXiv 2405.19107", {"objective_settings.tau": 0.3}, ("objective_settings.tau", (0.3, 3.0))),
    "qrpo": Method("arXiv 2507.08068", {"objective_settings.beta": 0.03}, _BETA),
    "grpo_offline": Method("arXiv 2402.03300, on fixed completions", {"objective_settings.clip": 0.5}),
    "var": Method("arXiv 2502.11026", {"objective_settings.temperature": 0.3}, _TEMPERATURE),
    # The same objective under other samplers.
    "a_lol_seq_good_random": Method(
        f"{_A_LOL}: leftover rows, drawn alike", objective="a_lol_seq", rows="leftover", draw="uniform"
    ),
    "a_lol_seq_all_rows": Method("all rows, drawn alike", objective="a_lol_seq", rows="all", draw="uniform"),
}

_PAPER = ("nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl")
_SAMPLERS = ("a_lol_seq_good_random", "a_lol_seq_all_rows")
SETS: dict[str, tuple[str, ...]] = {
    "paper": (*_PAPER, "dpo", "dpo_ref_free", "pro", "ppo"),
    "nll_top": ("nll_top10", "nll_top25", "nll_leftover"),
    "samplers": ("a_lol_seq", *_SAMPLERS),
    "all": tuple(name for name in METHODS if name not in _SAMPLERS),
}


@dataclass
class Entry:
    """One method of a comparison."""

    name: str
    fields: dict[str, Any]  # of LoLConfig, as a policy of the recipe
    source: str
    named: bool = True  # by the user, not by a set
    reason: str | None = None  # why it is not applicable

    @property
    def objective(self) -> str:
        return str(self.fields.get("objective", "a_lol_seq"))


def resolve(asked: str | None, recipe: Recipe) -> list[Entry]:
    """The methods that `asked` names (comma-separated: methods, policies of the recipe, sets), each once.

    None: the policies of the recipe. A policy of the recipe keeps its settings even under a method's name.
    Raises UserError for an unknown name.
    """
    if asked is None:
        return [_entry(name, recipe, True) for name in recipe.policies]
    entries: dict[str, Entry] = {}
    for name in filter(None, (part.strip() for part in asked.split(","))):
        if name in SETS and name not in recipe.policies:
            members = SETS[name]
            if name == "all":
                members = (*recipe.policies, *members, *(o for o in OBJECTIVES if o not in METHODS | SETS))
            for member in members:
                entries.setdefault(member, _entry(member, recipe, False))
        else:
            entries[name] = _entry(name, recipe, True)
    if not entries:
        raise UserError("--methods names no method")
    check_distinct("--methods", entries)
    return list(entries.values())


def _entry(name: str, recipe: Recipe, named: bool) -> Entry:
    if name in recipe.policies:
        return Entry(name, dict(recipe.policies[name]), "the recipe", named)
    if name not in METHODS and name not in OBJECTIVES:
        known = list(dict.fromkeys((*recipe.policies, *METHODS, *OBJECTIVES, *SETS)))
        raise UserError(f"--methods: no method '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    method = METHODS.get(name, Method("defaults of the objective"))
    entry = Entry(name, {"objective": name} | method.fields, method.source, named)
    if entry.objective not in OBJECTIVES and entry.objective not in ONLINE:
        entry.reason = f"this version of Leftover has no objective '{entry.objective}'"
    return entry


def _method(entry: Entry) -> Method:
    method = METHODS.get(entry.name)
    if method is None or method.fields.get("objective", entry.name) != entry.objective:
        method = METHODS.get(entry.objective)  # a policy of the recipe may have the name of another method
    return method or Method(entry.source)


def declared_trials(entry: Entry) -> list[dict[str, Any]]:
    """The grid of a method: three learning rates, and its own trial or a fourth rate; as many for all."""
    own_trial = _method(entry).own_trial or {"learning_rate_factor": 10.0}
    return [{}, {"learning_rate_factor": 1 / 3}, {"learning_rate_factor": 3.0}, own_trial]


def declared_strengths(entry: Entry) -> list[dict[str, Any]]:
    """The strengths of a method's frontier: as it is, and by its knob."""
    key, values = _method(entry).knob
    return [{}, *({key: value} for value in values)]


def with_trial(entry: Entry, trial: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The method's fields with one trial's in their place; `shared`: the recipe's `train`."""
    fields = dict(entry.fields)
    for key, value in trial.items():
        own = shared | fields
        if key == "learning_rate_factor":
            if not isinstance(value, (int, float)):
                raise UserError(f"compare: the grid of '{entry.name}': {key} is a number, got {value!r}")
            fields["learning_rate"] = own.get("learning_rate", LoLConfig.learning_rate) * value
        elif key.startswith("objective_settings."):
            setting = {key.removeprefix("objective_settings."): value}
            fields["objective_settings"] = own.get("objective_settings", {}) | setting
        else:
            fields[key] = value
    return fields
