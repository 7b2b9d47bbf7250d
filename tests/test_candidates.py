"""Candidates, against a definition that goes through the log row by row."""

from __future__ import annotations

import numpy as np
import pytest

from incrs.candidates import Asked, Taken, distinct, draw

Log = tuple[np.ndarray, np.ndarray, np.ndarray]


def log(seed: int, rows: int = 300, users: int = 12, items: int = 60) -> Log:
    """Draw users, some of them unknown, items by first appearance, some unknown, and positives."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, items, rows)
    order = {value: i + 1 for i, value in enumerate(dict.fromkeys(raw[raw > 3].tolist()))}
    item = np.array([order.get(value, 0) for value in raw.tolist()])
    return random.integers(0, users, rows), item, random.random(rows) < 0.5


def cut(rows: Log, start: int, end: int) -> Log:
    user, item, positive = (column[start:end] for column in rows)
    return user, item, positive


def candidates(
    past: Log, new: Log, count: int | None, seeds: tuple[int, int] = (0, 5), size: int = 16
) -> list[np.ndarray]:
    taken = Taken()
    for half in np.array_split(np.arange(len(past[0])), 2):
        taken.add(past[0][half], past[1][half])
    asked, pairs = taken.ask(*new)
    found = []
    for block in range(-(-len(asked.item) // size)):
        where = np.arange(block * size, min(block * size + size, len(asked.item)))
        some = Asked(*(column[where] for column in asked))
        place = where - block * size
        drawn = draw(seeds, block, size, place, some, taken.of(some, pairs), count)
        found += [row[row > 0] for row in drawn]
    return found


def allowed(past: Log, new: Log) -> list[set[int]]:
    """Return, for each positive, the items that have appeared and that its user has not taken."""
    seen, taken, found = set(), set(), []
    for count, rows in enumerate((past, new)):
        for user, item, positive in zip(*(column.tolist() for column in rows), strict=True):
            seen |= {item} - {0}
            taken |= {(user, item)} if user else set()
            if count and positive and item:
                found.append({i for i in seen if i != item and (user, i) not in taken})
    return found


@pytest.mark.parametrize("count", [1, 4, 9, 30, 200])
@pytest.mark.parametrize("seed", range(3))
def test_candidates_are_distinct_items_seen_so_far_that_the_user_never_took(
    seed: int, count: int
) -> None:
    rows = log(seed)
    past, new = cut(rows, 0, 200), cut(rows, 200, 300)
    found, may = candidates(past, new, count), allowed(past, new)
    assert len(found) == len(may)
    for items, allowed_items in zip(found, may, strict=True):
        assert len(set(items.tolist())) == len(items) == min(count, len(allowed_items))
        assert set(items.tolist()) <= allowed_items


def test_all_candidates_are_all_that_may_be() -> None:
    rows = log(7)
    past, new = cut(rows, 0, 150), cut(rows, 150, 300)
    found = candidates(past, new, None)
    assert [set(items.tolist()) for items in found] == allowed(past, new)
    assert all((np.diff(items) > 0).all() for items in found)


def test_candidates_differ_by_seed_and_period_and_are_the_same_again() -> None:
    rows = log(1, items=500)
    past, new = cut(rows, 0, 250), cut(rows, 250, 300)
    several = [candidates(past, new, 9, seeds) for seeds in ((0, 5), (0, 5), (1, 5), (0, 6))]
    texts = [str([sorted(items.tolist()) for items in found]) for found in several]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("count", [3, 9, 40])
def test_later_rows_of_the_period_change_no_candidate_before_them(count: int) -> None:
    rows, other = log(2, items=400), log(3, items=400)
    past, new = cut(rows, 0, 200), cut(rows, 200, 300)
    middle = 50
    theirs = [other[0][:middle], other[1][:middle] + new[1].max() + 1, other[2][:middle]]
    changed = tuple(np.concatenate([a[:middle], b]) for a, b in zip(new, theirs, strict=True))
    count_before = int((new[2][:middle] & (new[1][:middle] > 0)).sum())
    ours, theirs = candidates(past, new, count), candidates(past, changed, count)
    for one, two in zip(ours[:count_before], theirs[:count_before], strict=True):
        assert set(one.tolist()) == set(two.tolist())
    assert str(ours[count_before:]) != str(theirs[count_before:])


@pytest.mark.parametrize("below", [10, 40])
def test_every_number_is_drawn_as_often_as_any_other(below: int) -> None:
    streams = [np.random.default_rng(i) for i in range(2)]
    found = distinct(streams, np.full(20_000, below), 4)
    counts = np.bincount(found.ravel(), minlength=below)
    share = 4 / below
    assert len(counts) == below
    assert (abs(counts / 20_000 - share) < 5 * np.sqrt(share * (1 - share) / 20_000)).all()
    pairs = np.bincount(found.min(1) * below + found.max(1))
    assert pairs[9] > 0  # 0 and the largest of ten come together, too


def test_a_log_of_millions_takes_a_moment() -> None:
    random, taken = np.random.default_rng(0), Taken()
    for _ in range(3):
        taken.add(*random.integers(1, 10**5, (2, 500_000)))
    asked, pairs = taken.ask(*random.integers(1, 10**5, (2, 512)), np.ones(512, bool))
    drawn = draw((0, 1), 0, 512, np.arange(512), asked, taken.of(asked, pairs), 999)
    assert drawn.shape == (512, 999)
