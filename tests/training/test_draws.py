"""The order of the data: what is drawn how often, and how it is cut into batches."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from leftover.metrics import effective_sample_size
from leftover.training.draws import draw_batches


def batches_of(*arguments, **options) -> list[list[int]]:
    order = draw_batches(*arguments, **options)
    assert order.indices.dtype == order.offsets.dtype == np.int64
    assert order.offsets[0] == 0 and order.offsets[-1] == len(order.indices)
    return [order.batch(i).tolist() for i in range(order.num_batches)]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


WEIGHTS = np.array([0, 1, 2, 3, 4, 5, 0.5, 0, 2.5, 7])
# The heaviest rows are the longest, so that a bias of the bucketing would meet them.
LENGTHS = np.array([3, 5, 9, 14, 20, 33, 4, 8, 11, 64])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lengths": LENGTHS},
        {"lengths": LENGTHS, "max_tokens": 256},
        {"lengths": LENGTHS, "max_tokens": 256, "batch_size": None},
    ],
    ids=["plain", "bucketed", "max_tokens", "max_tokens alone"],
)
def test_rows_are_drawn_in_proportion_to_their_weight(options):
    # 20,003 draws are no multiple of the batch; the seed is fixed, so the p-value is one number.
    drawn = flat(batches_of(WEIGHTS, 20_003, **{"batch_size": 8, "seed": 3} | options))
    counts = np.bincount(drawn, minlength=len(WEIGHTS))
    assert counts.sum() == 20_003 and (counts[WEIGHTS == 0] == 0).all()
    positive = WEIGHTS > 0
    expected = 20_003 * WEIGHTS[positive] / WEIGHTS.sum()
    assert stats.chisquare(counts[positive], expected).pvalue > 0.01


def test_the_chi_square_test_would_see_one_row_drawn_a_tenth_too_often():
    tilted = WEIGHTS.copy()
    tilted[-1] *= 1.1
    counts = np.bincount(flat(batches_of(tilted, 20_003, batch_size=8, seed=3)), minlength=10)
    positive = WEIGHTS > 0
    expected = 20_003 * WEIGHTS[positive] / WEIGHTS.sum()
    assert stats.chisquare(counts[positive], expected).pvalue < 0.01


@pytest.mark.parametrize("options", [{}, {"max_tokens": 100}])
def test_bucketing_draws_the_very_rows_that_a_plain_order_draws(options):
    plain = batches_of(WEIGHTS, 1001, batch_size=8, seed=5)
    bucketed = batches_of(WEIGHTS, 1001, batch_size=8, seed=5, lengths=LENGTHS, **options)
    assert Counter(flat(bucketed)) == Counter(flat(plain)) and bucketed != plain


def test_bucketing_puts_rows_of_like_length_together():
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    spread = lambda batches: np.mean([np.ptp(lengths[batch]) for batch in batches])  # noqa: E731
    plain = batches_of(None, 1000, batch_size=10, replacement=False, lengths=None, groups=np.arange(1000))
    bucketed = batches_of(None, 1000, batch_size=10, replacement=False, lengths=lengths)
    assert spread(bucketed) < spread(plain) / 10


def test_bucketed_batches_do_not_come_in_order_of_length():
    lengths = np.arange(640)
    means = [np.mean(batch) for batch in batches_of(None, 640, batch_size=10, replacement=False, lengths=lengths)]
    assert abs(stats.spearmanr(means, range(64)).statistic) < 0.3


def test_the_incomplete_batch_is_not_always_that_of_the_longest_rows():
    lengths = np.arange(21)
    short = set()
    for seed in range(40):
        (batch,) = [
            b for b in batches_of(None, 21, batch_size=5, replacement=False, lengths=lengths, seed=seed) if len(b) == 1
        ]
        short |= set(batch)
    # Sorted by length, a single row can stand before any of four full batches or after the last.
    assert short == {0, 5, 10, 15, 20}


def test_without_replacement_every_row_comes_once_an_epoch():
    batches = batches_of(np.ones(10), 30, batch_size=4, replacement=False)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3, "epochs do not share batches"
    for epoch in range(3):
        assert sorted(flat(batches[3 * epoch : 3 * epoch + 3])) == list(range(10))


def test_without_replacement_epochs_are_shuffled_anew():
    drawn = flat(batches_of(np.ones(10), 20, batch_size=4, replacement=False))
    assert drawn[:10] != drawn[10:] and drawn[:10] != list(range(10))


def test_without_replacement_the_last_epoch_may_be_a_part():
    drawn = flat(batches_of(np.ones(10), 14, batch_size=4, replacement=False))
    assert sorted(drawn[:10]) == list(range(10)) and len(set(drawn[10:])) == 4


def test_without_replacement_rows_of_weight_zero_never_come():
    drawn = flat(batches_of(WEIGHTS, 16, batch_size=4, replacement=False))
    assert Counter(drawn) == dict.fromkeys(np.flatnonzero(WEIGHTS), 2)


def test_without_replacement_the_first_row_is_drawn_by_weight():
    weights = np.array([1.0, 2.0, 5.0])
    first = [flat(batches_of(weights, 3, batch_size=3, replacement=False, seed=s))[0] for s in range(2000)]
    assert stats.chisquare(np.bincount(first), 2000 * weights / 8).pvalue > 0.01


@pytest.mark.parametrize("replacement", [True, False])
def test_no_weights_draw_all_rows_alike(replacement):
    counts = np.bincount(flat(batches_of(None, 5000, batch_size=7, lengths=np.ones(5), replacement=replacement)))
    assert stats.chisquare(counts).pvalue > 0.01


GROUPS = np.array([7, 3, 7, 9, 3, 7])  # rows 1 4 | 0 2 5 | 3


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"max_tokens": 40}, {"batch_size": 2, "max_tokens": 40}])
def test_groups_stay_whole(options):
    lengths = np.array([5, 9, 3, 4, 2, 6])
    for batch in batches_of(None, 30, groups=GROUPS, lengths=lengths, **options):
        times = Counter(batch)
        for members in ([1, 4], [0, 2, 5], [3]):
            assert len({times[row] for row in members}) == 1


def test_a_group_weighs_the_sum_of_its_rows():
    weights = np.array([1.0, 2.0, 0.0, 5.0, 1.0, 1.0])  # groups 3: 3, 7: 2, 9: 5
    drawn = flat(batches_of(weights, 6000, groups=GROUPS, batch_size=5))
    counts = [drawn.count(row) for row in (1, 0, 3)]
    assert stats.chisquare(counts, [1800, 1200, 3000]).pvalue > 0.01
    assert drawn.count(2) == drawn.count(0), "a row of weight 0 comes with its group"


def test_num_units_counts_groups():
    batches = batches_of(None, 3, groups=GROUPS, batch_size=2, replacement=False)
    assert sorted(flat(batches)) == list(range(6)) and len(batches) == 2


@pytest.mark.parametrize("batch_size", [None, 6])
def test_padded_batches_stay_within_max_tokens(batch_size):
    lengths = np.random.default_rng(1).integers(1, 90, 300)
    batches = batches_of(None, 3000, lengths=lengths, max_tokens=256, batch_size=batch_size)
    sizes = [len(batch) * lengths[batch].max() for batch in batches]
    assert max(sizes) <= 256 and max(map(len, batches)) <= (batch_size or 256)
    assert np.mean(sizes) > (128 if batch_size is None else 64), "and they are not needlessly small"


def test_padded_groups_stay_within_max_tokens():
    groups = np.arange(300) // 3
    lengths = np.random.default_rng(1).integers(1, 30, 300)
    batches = batches_of(None, 1000, lengths=lengths, groups=groups, max_tokens=256)
    assert max(len(batch) * lengths[batch].max() for batch in batches) <= 256


def test_a_row_beyond_max_tokens_is_a_batch_of_its_own():
    batches = batches_of(None, 4, lengths=np.array([3, 300, 4, 500]), max_tokens=100, replacement=False)
    assert sorted(map(sorted, batches)) == [[0, 2], [1], [3]]
    batches = batches_of(None, 2, lengths=np.array([300, 500]), max_tokens=100, replacement=False)
    assert sorted(batches) == [[0], [1]], "and none is empty"


def test_one_seed_gives_one_order_and_another_seed_another():
    options = {"lengths": LENGTHS, "batch_size": 4}
    first, again, other = (draw_batches(WEIGHTS, 100, seed=seed, **options) for seed in (1, 1, 2))
    assert (first.indices == again.indices).all() and (first.offsets == again.offsets).all()
    assert (first.indices != other.indices).any()


def test_the_batch_size_is_respected():
    # A defect of the released code: priority sampling had a literal 4 for the batch size.
    assert [len(batch) for batch in batches_of(WEIGHTS, 10, batch_size=3)] == [3, 3, 3, 1]


def test_the_global_generator_plays_no_part():
    np.random.seed(0)
    first = batches_of(WEIGHTS, 20, batch_size=4)
    np.random.seed(1)
    assert batches_of(WEIGHTS, 20, batch_size=4) == first


def test_nothing_asked_for_is_nothing_drawn():
    assert batches_of(WEIGHTS, 0, batch_size=4) == []


@pytest.mark.parametrize("weights", [[1, -1], [1, float("nan")], [1, float("inf")], [0, 0]])
def test_weights_that_cannot_be_drawn_by_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        draw_batches(np.array(weights, float), 4, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": np.ones(2)}, "batch_size, max_tokens or both"),
        ({"weights": np.ones(2), "max_tokens": 9}, "max_tokens needs lengths"),
        ({"weights": None, "batch_size": 2}, "at least one of"),
        ({"weights": np.ones(2), "lengths": np.ones(3), "batch_size": 2}, "all of one length"),
    ],
)
def test_contradictory_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_batches(num_units=4, **options)


def test_effective_sample_size_of_equal_weights_is_their_number():
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)


def test_effective_sample_size_by_hand():
    # (3 + 1)^2 / (9 + 1); zeros do not count.
    assert effective_sample_size(np.array([3, 0, 1, 0])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.array([5, 0, 0])) == 1
    assert effective_sample_size(np.zeros(3)) == effective_sample_size(np.empty(0)) == 0
