import numpy as np

from leftover.demo.thumbs import score_replies, thumb_rows


def test_thumbs_follow_the_rule_but_for_a_tenth() -> None:
    rows = thumb_rows(2000, seed=0)
    scores = score_replies([row["prompt"] for row in rows], [row["completion"][0]["content"] for row in rows])
    right = (np.array(scores) >= 3) == np.array([row["label"] for row in rows])
    assert abs(right.mean() - 0.9) < 0.02
    assert rows == thumb_rows(2000, seed=0) != thumb_rows(2000, seed=1)


def test_a_reply_is_scored_by_its_last_question() -> None:
    asked = [{"role": "user", "content": "Ada writes: my kettle leaks on the table. Any idea?"}]
    good = "Thank you for writing, Ada. For the kettle, replace the seal, and please write again on Monday at ten."
    assert score_replies([asked, [*asked, *asked]], [good, "Stop complaining."]) == [4.0, -1.0]
