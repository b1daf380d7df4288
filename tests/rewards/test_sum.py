"""Rewards: each type from its specification, weighted sums, and what they refuse."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leftover.errors import UserError
from leftover.rewards import load_reward
from leftover.rewards.facts import show_facts
from leftover.rewards.python import summed

PROMPTS = ["How do you do?", "Again?", "And now?"]
COMPLETIONS = ["a b a b", "one two three", ""]


# text


def test_length_counts_white_space_tokens():
    assert load_reward({"type": "text", "function": "length"})(PROMPTS, COMPLETIONS) == [4.0, 3.0, 0.0]


def test_ngram_diversity_is_distinct_over_all_ngrams_of_a_completion():
    # "a b a b" has the bigrams ab, ba, ab: 2 of 3; its unigrams a, b, a, b: 2 of 4.
    assert load_reward({"type": "text", "function": "ngram_diversity"})(PROMPTS, COMPLETIONS) == [
        2 / 3,
        1.0,
        0.0,
    ]
    assert load_reward({"type": "text", "function": "ngram_diversity", "n": 1})(PROMPTS[:1], COMPLETIONS[:1]) == [0.5]


def test_vader_prefers_kind_words():
    kind, flat, rude = load_reward({"type": "text", "function": "vader"})(
        PROMPTS, ["What a wonderful, happy day!", "The table is here.", "I hate this horrible mess."]
    )
    assert kind > 0.5 > flat == 0.0 > rude


# column


def test_a_recorded_column_refuses_new_completions():
    with pytest.raises(UserError, match=r"'score' holds recorded scores.*set its `new_completions`"):
        load_reward({"type": "column", "column": "score"})(PROMPTS, COMPLETIONS)


# python


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`module(source)` writes an importable module and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"reward_{random.randrange(10**9)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_a_python_function_gets_prompts_completions_and_its_settings(module):
    name = module("def f(prompts, completions, scale):\n    return [scale * len(p) for p in prompts]\n")
    reward = load_reward({"type": "python", "function": f"{name}:f", "scale": 2})
    assert reward(PROMPTS, COMPLETIONS) == [28.0, 12.0, 16.0]


def test_the_identity_of_a_python_reward_changes_with_its_source(module, tmp_path):
    name = module("def f(prompts, completions):\n    return [1] * len(prompts)\n")
    spec = {"type": "python", "function": f"{name}:f"}
    first = load_reward(spec).identity()
    assert load_reward(spec).identity() == first
    (tmp_path / f"{name}.py").write_text("def f(prompts, completions):\n    return [2] * len(prompts)\n")
    assert load_reward(spec).identity() != first


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [1.0]", "returned 1 scores for 3 completions"),
        ("return None", r"must return one number \(or None\) per completion, got None"),
        ("return ['good'] * 3", r"must return one number \(or None\) per completion, got \['good'"),
        ("return [1 / 0]", "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_python_function_that_fails_is_named_with_the_reason(body, expected, module):
    name = module(f"def f(prompts, completions):\n    {body}\n")
    with pytest.raises(UserError, match=f"'{name}:f' {expected}"):
        load_reward({"type": "python", "function": f"{name}:f"})(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    "source", ["def f(:\n", "raise RuntimeError('x')\n", "g = 1\n", "import nothing_of_this_name\n"]
)
def test_a_python_module_that_cannot_be_loaded_is_named(source, module):
    name = module(source)
    with pytest.raises(UserError, match=f"'{name}:f' cannot be loaded"):
        load_reward({"type": "python", "function": f"{name}:f"})


def test_a_python_reward_without_a_colon_or_that_is_no_function_is_refused(module):
    with pytest.raises(UserError, match="not of the form module:function"):
        load_reward({"type": "python", "function": "json.dumps"})
    with pytest.raises(UserError, match="is not a function"):
        load_reward({"type": "python", "function": f"{module('f = 3')}:f"})


# sum


def test_a_weighted_sum_adds_its_components_and_keeps_them_apart():
    reward = load_reward(
        {
            "type": "sum",
            "functions": [
                {"type": "text", "function": "length", "weight": 0.5},
                {"type": "text", "function": "ngram_diversity", "weight": -3, "name": "variety"},
            ],
        }
    )
    # 4 / 2 - 3 * 2/3 = 0; 3 / 2 - 3 = -1.5; 0.
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx([0.0, -1.5, 0.0])
    assert reward.score_components(PROMPTS, COMPLETIONS) == {
        "length": [4.0, 3.0, 0.0],
        "variety": [2 / 3, 1.0, 0.0],
    }
    assert reward.scores_new_completions


def test_a_sum_with_a_recorded_column_cannot_score_new_completions():
    reward = load_reward({"type": "sum", "functions": [{"type": "column"}, {"type": "text", "function": "length"}]})
    assert not reward.scores_new_completions


def test_a_recorded_column_with_a_stand_in_scores_new_completions_by_it():
    column = {"type": "column", "new_completions": {"type": "text", "function": "length"}}
    reward = load_reward({"type": "sum", "functions": [column | {"name": "score"}]})
    assert reward.scores_new_completions and reward.has_recorded_scores
    assert reward(PROMPTS, COMPLETIONS) == [4.0, 3.0, 0.0]
    assert (
        reward.identity() != load_reward({"type": "sum", "functions": [{"type": "column", "name": "score"}]}).identity()
    )
    with pytest.raises(UserError, match="cannot be a column"):
        load_reward({"type": "column", "new_completions": {"type": "column"}})
    with pytest.raises(UserError, match="set its `new_completions`"):
        load_reward({"type": "column"})(PROMPTS, COMPLETIONS)


def test_the_identity_of_a_sum_leaves_the_weights_out():
    spec = {"type": "text", "function": "length"}
    one, two = (load_reward({"type": "sum", "functions": [spec | {"weight": w}]}).identity() for w in (1, 2))
    assert one == two


# What every type refuses.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"type": "clasifier", "model": "x"}, "unknown reward type 'clasifier'; did you mean 'classifier'?"),
        (
            {"function": "vader"},
            "missing key 'type': the reward type, one of column, text, classifier, linear",
        ),
        ({"type": "text", "function": "vadr"}, "unknown text reward 'vadr'; did you mean 'vader'?"),
        ({"type": "text", "function": "length", "n": 3}, "text reward 'length': unknown key 'n'"),
        ({"type": "text", "function": "ngram_diversity", "size": 3}, "unknown key 'size'"),
        ({"type": "text", "function": "ngram_diversity", "n": "2"}, "n: Input should be a valid integer"),
        ({"type": "text"}, "missing key 'function': the text reward, one of length, ngram_diversity"),
        ({"type": "classifier"}, "missing key 'model'"),
        ({"type": "classifier", "model": "x", "lable": 1}, "unknown key 'lable'; did you mean 'label'?"),
        ({"type": "column", "name_of_column": "x"}, "unknown key 'name_of_column'"),
        ({"type": "sum", "functions": []}, "functions: List should have at least 1 item"),
        (
            {"type": "sum", "functions": [{"type": "text", "function": "length", "weight": "heavy"}]},
            "functions[0]: weight: Input should be a valid number (got 'heavy')",
        ),
        (
            {"type": "sum", "functions": [{"type": "text", "function": "length"}] * 2},
            "functions[1]: 'length' is the name of another function: give each a `name`",
        ),
    ],
)
def test_an_unknown_or_missing_setting_is_refused_by_name(spec, expected):
    with pytest.raises(UserError) as error:
        load_reward(spec)
    assert expected in str(error.value)


def test_a_python_function_of_other_argument_names_is_told_how_it_is_called(module):
    name = module("def f(texts):\n    return [0.0] * len(texts)\n")
    with pytest.raises(UserError, match=r"called as f\(prompts=\[...\], completions=\[...\]\)"):
        load_reward({"type": "python", "function": f"{name}:f"})(["a"], ["b"])


LINES = [
    "raise SystemExit(0)",
    "import sys; sys.exit()",
    "raise MemoryError",
    "import os; os._exit(0)",
    "from os import _exit; _exit(0)",
]


@pytest.mark.parametrize("line", LINES)
def test_a_function_that_ends_the_program_is_an_error(line, module):
    inside, outside = module(f"def f(prompts, completions):\n    {line}\n"), module(f"{line}\n")
    with pytest.raises(UserError, match="failed: "):
        load_reward({"type": "python", "function": f"{inside}:f"})(["a"], ["b"])
    with pytest.raises(UserError, match="cannot be loaded: "):
        load_reward({"type": "python", "function": f"{outside}:f"})


@pytest.mark.parametrize("line", [*LINES, "raise __import__('asyncio').CancelledError"])
def test_a_generator_that_ends_the_program_is_an_error(line, module):
    name = module(f"def f(prompts, completions):\n    yield 1.0\n    {line}\n")
    with pytest.raises(UserError, match="failed: "):
        load_reward({"type": "python", "function": f"{name}:f"})(["a", "b"], ["c", "d"])


def test_a_function_may_fork_and_os_exit_is_as_it_was_behind_it(module):
    before = os._exit
    source = "import os\ndef f(prompts, completions):\n    child = os.fork()\n    if child == 0:\n        os._exit(7)\n"
    name = module(source + "    return [float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))]\n")
    assert load_reward({"type": "python", "function": f"{name}:f"})(["a"], ["b"]) == [7.0]
    assert os._exit is before


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        ("itertools.repeat(1.0)", "more than 2 scores for 2"),
        ("(float(i) for i in itertools.count())", "more than 2 scores for 2"),
        ("[1.0] * 5", "5 scores for 2"),
        ("iter([1.0])", "1 scores for 2"),
        ("{'0': 1.0, '1': 2.0}", "must return one number"),
    ],
)
def test_returns_that_are_no_list_of_scores_are_refused(returned, fault, module):
    name = module(f"import itertools\ndef f(prompts, completions):\n    return {returned}\n")
    with pytest.raises(UserError, match=fault):
        load_reward({"type": "python", "function": f"{name}:f"})(["a", "b"], ["c", "d"])


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_score_that_is_not_finite_is_named_with_its_completion(number, module):
    name = module(f"def f(prompts, completions):\n    return [0.0, float('{number}')]\n")
    reward = load_reward({"type": "sum", "functions": [{"type": "python", "function": f"{name}:f", "name": "mine"}]})
    with pytest.raises(UserError, match=f"'mine' gave {number} for the completion 'bad one'"):
        reward(["a", "b"], ["fine", "bad one"])


def test_a_transform_that_needs_rows_is_refused_before_it_has_seen_any():
    reward = load_reward({"type": "sum", "functions": [{"type": "text", "function": "length"}], "transform": "minmax"})
    with pytest.raises(UserError, match=r"sum is normalised by minmax.*recipe"):
        reward(PROMPTS, COMPLETIONS)


def test_a_function_of_other_names_and_any_keyword_gets_the_texts_by_place(module):
    name = module("def f(questions, answers, **more):\n    return [len(a) + more['plus'] for a in answers]\n")
    assert load_reward({"type": "python", "function": f"{name}:f", "plus": 1})(["a"], ["bc"]) == [3.0]


@pytest.mark.parametrize("other", [None, "", 0, "length"])
def test_what_is_no_function_is_refused_with_the_way_to_make_one(other):
    with pytest.raises(UserError, match=r"reward_funcs takes functions.*load_reward"):
        summed([lambda prompts, completions: [0.0], other])


@pytest.mark.parametrize(
    "signature",
    [
        "prompts, completions", "completions, prompts", "completions, prompts, /", "completion, prompt",
        "*, completions, prompts", "response, prompt", "completions, prompts=None", "completions, prompts, plus=0",
        "xs, ys", "questions, completions", "prompts, answers", "prompts, completions, /, **more", "*texts", "**texts",
    ],
)  # fmt: skip
def test_a_function_gets_the_texts_by_the_names_of_its_parameters(signature, module):
    body = "def f({}):\n    given = dict(locals())\n    given = given.get('texts', given)\n"
    body += "    given = dict(zip(('prompts', 'completions'), given)) if isinstance(given, tuple) else given\n"
    body += "    given = {{n.rstrip('s'): v for n, v in given.items()}}\n"
    body += "    prompts = next(given[n] for n in ('prompt', 'x', 'question') if n in given)\n"
    body += "    completions = next(given[n] for n in ('completion', 'response', 'y', 'answer') if n in given)\n"
    body += "    assert prompts == ['a', 'b'], prompts\n    return [len(c) for c in completions]\n"
    name = module(body.format(signature))
    assert load_reward({"type": "python", "function": f"{name}:f"})(["a", "b"], ["c", "def"]) == [1.0, 3.0]


def test_a_function_of_completions_alone_gets_them_and_its_settings(module):
    name = module("def f(completions, scale):\n    return [scale * len(c) for c in completions]\n")
    assert load_reward({"type": "python", "function": f"{name}:f", "scale": 2})(["a"], ["xyz"]) == [6.0]


@pytest.mark.parametrize("signature", ["completions, answers", "completions, questions", "answers, prompts"])
def test_a_parameter_that_nobody_fills_is_named_and_gets_no_other_text(signature, module):
    name = module(f"def f({signature}):\n    return [0.0]\n")
    with pytest.raises(UserError, match="missing 1 required positional argument"):
        load_reward({"type": "python", "function": f"{name}:f"})(["a"], ["b"])


@pytest.mark.parametrize(
    ("missing", "functions", "named", "not_named"),
    [
        ("drop", 1, ["impute"], ["renormalise"]),
        ("drop", 2, ["impute", "renormalise"], []),
        ("renormalise", 1, ["impute"], ["renormalise"]),
        ("renormalise", 2, ["impute"], ["renormalise"]),
        ("impute", 1, [], ["impute", "renormalise"]),
    ],
)
def test_a_rule_for_missing_scores_is_no_remedy_where_it_is_set(missing, functions, named, not_named, module):
    name = module("def f(prompts, completions):\n    return [None] * len(prompts)\n")
    specs = [{"type": "python", "function": f"{name}:f", "name": str(i)} for i in range(functions)]
    reward = load_reward({"type": "sum", "functions": specs, "missing": missing})
    if missing == "impute":
        reward.fit({name: np.array([np.nan]) for name in reward.components}, np.array([True]))
    with pytest.raises(UserError) as refused:
        reward(["a"], ["b"])
    message = str(refused.value)
    assert all(rule in message for rule in named) and not any(rule in message for rule in not_named)


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, ["normalise", "or weights"], []),
        ({"normalise": "standardise"}, ["Set weights"], ["Set normalise"]),
        ({"weight": 50.0}, ["Set normalise"], ["or weights"]),
        ({"normalise": "standardise", "weight": 50.0}, ["change them"], ["Set "]),
    ],
)
def test_a_component_that_dominates_is_told_with_what_is_not_set_yet(settings, said, unsaid, caplog):
    other = {"type": "text", "function": "ngram_diversity"} | {k: v for k, v in settings.items() if k == "normalise"}
    reward = load_reward([{"type": "text", "function": "length"} | settings, other])
    scores = {"length": np.arange(40.0), "ngram_diversity": np.tile([0.9, 1.0], 20)}
    reward.fit(scores, np.ones(40, bool))
    facts = {"components": {"length": {"share_of_variance": 0.99}}, "missing": 0, "rows": 40, "correlation": {}}
    facts["components"]["ngram_diversity"] = {"share_of_variance": 0.01}
    with caplog.at_level("WARNING", "leftover"):
        show_facts(facts, reward)
    assert all(part in caplog.text for part in said) and not any(part in caplog.text for part in unsaid)


def test_scores_that_no_statistic_holds_are_refused(module):
    # The squares of 1e308 are infinite: means cancel, spreads do not.
    name = module("def score(prompts, completions): return [1e308 * (-1) ** i for i in range(len(completions))]\n")
    reward = load_reward([{"type": "python", "function": f"{name}:score", "name": "huge"}])
    with pytest.raises(UserError, match=r"'huge' gave 1e\+308 for the completion 'a'.*2 of 2 .*rescale"):
        reward(["p", "p"], ["a", "b"])


def test_a_weight_that_takes_a_reward_out_of_range_is_refused():
    reward = load_reward([{"type": "text", "function": "length", "weight": 1e300}])
    with pytest.raises(UserError, match=r"rewards reach 2e\+300 .*weight"):
        reward(["p"], ["two words"])
