"""Numbers of networks trained several times: false alarms, power and intervals where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from datakit.errors import NotComparable
from evalkit import seeds

NUM_CLIPS = 177


def trained(
    random: np.random.Generator, clips: NDArray[np.float64], num_seeds: int, *, better: float, seed_spread: float
) -> NDArray[np.bool_]:
    """Networks of one recipe: clips are easy or hard for all, a seed is lucky or not, the rest is chance."""
    luck = random.normal(0, seed_spread, (num_seeds, 1))
    return np.asarray(clips + luck + random.normal(0, 1, (num_seeds, len(clips))) + better > 0)


def share_found(*, better: float, seed_spread: float, num_seeds: int = 3, tries: int = 300) -> float:
    random = np.random.default_rng(1)
    found = 0
    for _ in range(tries):
        clips = random.normal(0, 1.5, NUM_CLIPS)
        a, b = (trained(random, clips, num_seeds, better=one, seed_spread=seed_spread) for one in (0.0, better))
        (one,) = seeds.compare_all({"a": a, "b": b})
        found += one.differs
    return found / tries


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "NUM_RESAMPLES", 200)


@pytest.mark.parametrize("seed_spread", [0.0, 0.1, 0.3])
def test_no_difference_is_found_where_there_is_none(seed_spread: float) -> None:
    """A/A: at most 1 of 20, and what 300 tries may differ from that."""
    assert share_found(better=0.0, seed_spread=seed_spread) < 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_a_real_difference_is_found_and_more_seeds_find_it_more_often() -> None:
    three, six = (share_found(better=0.4, seed_spread=0.1, num_seeds=count, tries=100) for count in (3, 6))
    assert three > 0.4
    assert six > 0.85


def test_resampling_clips_alone_would_be_too_sure() -> None:
    """Networks of one seed each: with much luck in a seed, clips alone find a difference that is none."""
    assert share_found(better=0.0, seed_spread=0.5, num_seeds=1, tries=100) > 0.2


def test_intervals_cover_the_truth() -> None:
    random, covered = np.random.default_rng(2), 0
    for _ in range(200):
        clips = random.normal(0, 1.5, NUM_CLIPS)
        found = seeds.mean(trained(random, clips, 3, better=0.0, seed_spread=0.2))
        covered += found.low <= 0.5 <= found.high
    assert covered >= 186


def test_the_smallest_difference_is_one_that_is_found() -> None:
    random = np.random.default_rng(3)
    clips = random.normal(0, 1.5, NUM_CLIPS)
    a, b = (trained(random, clips, 3, better=0.0, seed_spread=0.1) for _ in range(2))
    (alone,) = seeds.compare_all({"a": a, "b": b})
    three = seeds.compare_all({"a": a, "b": b, "c": a})
    assert 0.04 < alone.smallest < 0.2
    assert three[0].smallest > alone.smallest  # Holm asks for more
    assert three[0].names == ("a", "b")
    assert three[1].difference.value == 0
    assert all(one.p_holm >= one.p for one in three)


def test_hundred_identical_answers_leave_the_bound_of_what_was_not_seen() -> None:
    right = np.ones((3, 100))
    found = seeds.difference(right, right)
    assert (found.value, found.se) == (0, 0)
    assert found.high == pytest.approx(1 - 0.05**0.01)
    assert seeds.compare_all({"a": right, "b": right})[0].p == 1


def test_clips_of_one_video_count_as_one() -> None:
    random = np.random.default_rng(4)
    videos = random.normal(0, 1.5, 30)
    units = np.repeat(np.arange(30), 6)
    right = trained(random, videos[units], 3, better=0.0, seed_spread=0.0)
    alone, together = seeds.mean(right), seeds.mean(right, units)
    assert together.value == pytest.approx(alone.value)
    assert together.se > 1.5 * alone.se


def test_halves_of_an_even_number_are_counted_once() -> None:
    random = np.random.default_rng(5)
    right = trained(random, random.normal(0, 1.5, 50), 6, better=0.0, seed_spread=0.1)
    assert len(seeds.halves(right)) == 10
    assert len(seeds.halves(right[:3])) == 3
    with pytest.raises(NotComparable, match="50 clips against 49"):
        seeds.difference(right, right[:, 1:])


def test_an_interval_holds_no_share_that_cannot_be() -> None:
    all_right, all_wrong = np.ones((1, 12)), np.zeros((1, 12))
    assert (seeds.mean(all_right).high, seeds.mean(all_wrong).low) == (1.0, 0.0)
    assert seeds.mean(all_right).low < 1.0
    assert seeds.difference(all_wrong, all_right).high == 1.0


def test_two_equal_rows_do_not_see_every_difference() -> None:
    right = np.array([[1.0, 0.0] * 6])
    (one,) = seeds.compare_all({"a": right, "b": right})
    assert (one.difference.value, one.p) == (0.0, 1.0)
    assert one.smallest == pytest.approx(1 - 0.05 ** (1 / 12))
