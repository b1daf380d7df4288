"""Rows of a user's own data set, without a recipe."""

import pytest

from leftover.errors import UserError
from leftover.prepare.in_memory import checked_rows


def test_without_a_recipe_no_key_of_one_is_named():
    with pytest.raises(UserError) as refused:
        checked_rows([{"Question": "Why?", "answer": "So."}, {"Question": "How?", "answer": "Thus.", "reward": 1.0}])
    message = str(refused.value)
    assert message.count("no column 'prompt'") == 1
    assert "train_dataset[0]: no column 'prompt' (found: Question, answer" in message
    assert "rename" in message and "data." not in message


def test_rows_that_a_rule_drops_leave_the_options_of_the_others_in_place():
    options = {"enable_thinking": False}
    pairs = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "So."},  # says nothing
        {"prompt": "How?", "chosen": "Thus.", "rejected": "No.", "chat_template_kwargs": options},
    ]
    rows = checked_rows(pairs)
    assert [row["completion"] for row in rows] == ["Thus.", "No."]
    assert [row["chat_template_kwargs"] for row in rows] == [options, options]
