"""What a row may know of the past: its user's earlier positives, and items the user has not taken.

Both look at strictly (history) or not later (negatives) rows only, and carry what later periods need:
what they carry can be taken out (`state`) and put back in another process (`restore`).
Users and items are int ids, 0 = unknown: an unknown user has no past.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
CHUNK = 1 << 18  # rows looked up at once: bounds the memory of wide histories
TRIES = 32  # rounds of rejection before the rest is drawn from the exact list


class History:
    """The ids of each user's last `length` positives before a row's time.

    wide: True where what is remembered of a positive is more than its id, and needs 64 bits.
    """

    def __init__(self, length: int, wide: bool = False) -> None:
        self.length, self._kind = length, np.int64 if wide else np.int32
        self._user, self._time, self._item = (np.empty(0, np.int64) for _ in range(3))

    def look_back(
        self, user: Ints, time: Ints, item: Ints, positive: NDArray[np.bool_], keep_from: int
    ) -> NDArray[np.int32] | Ints:
        """Return (n, length) item ids with a strictly smaller time, most recent first, 0 = none.

        user, time, item, positive: (n,) the period's rows in time order. They then join the past.
        keep_from: of the positives before this time, all but the user's last `length` are then
        forgotten, so a row of a later period that is older than this may see a shorter history.
        """
        clock, tick = _ticks(time)
        new = np.flatnonzero(positive & (user > 0) & (item > 0))
        new = new[np.argsort(user[new], kind="stable")]  # by user, then time
        old = np.zeros(len(self._time), np.int64)  # 2 i + 1 at tick i, even between two ticks
        late = np.flatnonzero(self._time >= clock[0])
        for side in ("left", "right"):
            old[late] += np.searchsorted(clock, self._time[late], side=side)
        users = np.concatenate([self._user, user[new]])
        events = users << 32 | np.concatenate([old, 2 * tick[new] + 1])
        order = np.argsort(events, kind="stable")  # two sorted runs: a merge
        events, users = events[order], users[order]
        times = np.concatenate([self._time, time[new]])[order]
        items = np.concatenate([self._item, item[new]])[order]

        out = np.zeros((len(user), self.length), self._kind)
        if len(events):
            back = np.arange(1, self.length + 1)
            for at in range(0, len(user), CHUNK):
                who = user[at : at + CHUNK] << 32
                first = np.searchsorted(events, who)
                end = np.searchsorted(events, who | 2 * tick[at : at + CHUNK] + 1)
                where = end[:, None] - back  # (chunk, L)
                ids = items[np.maximum(where, 0)]
                out[at : at + CHUNK] = np.where(where >= first[:, None], ids, 0)

        borders = users << 1 | (times >= keep_from)
        keep = np.arange(len(users)) >= np.searchsorted(borders, users << 1 | 1) - self.length
        self._user, self._time, self._item = users[keep], times[keep], items[keep]
        return out

    def state(self) -> dict[str, Ints]:
        """Return what is remembered, by user, then time."""
        return {"user": self._user, "time": self._time, "item": self._item}

    def restore(self, state: Mapping[str, Ints]) -> None:
        """Remember what `state` returned once."""
        self._user, self._time, self._item = state["user"], state["time"], state["item"]


class Negatives:
    """Items drawn uniformly from the candidates, with the user's own items rejected."""

    def __init__(self, per_positive: int, seed: int) -> None:
        self.per_positive, self.seed = per_positive, seed
        self._taken = np.empty(0, np.int64)  # sorted user << 32 | item of earlier periods

    def draw(
        self, t: int, user: Ints, time: Ints, item: Ints, candidates: Ints
    ) -> tuple[Ints, Ints]:
        """Return (m,) positions of positives and (m,) the item drawn for each; then remember the rows.

        user, time, item, candidates: (n,) the period's positives in time order; the candidates of row
        k are the ids 1 .. candidates[k], which hold every item its user took up to then. Each positive
        gets `per_positive` draws, independent of each other, or none where its user took every
        candidate. The draws depend on the seed, t and the arguments alone.
        """
        known = (user > 0) & (item > 0)
        keys, first = np.unique((user << 32 | item)[known], return_index=True)
        since = time[known][first]
        fresh = ~_within(self._taken, keys)
        keys, since = keys[fresh], since[fresh]

        took = np.searchsorted(self._taken, user + 1 << 32) - np.searchsorted(
            self._taken, user << 32
        )
        clock, _ = _ticks(time)
        events = np.sort((keys >> 32) << 32 | np.searchsorted(clock, since))
        when = np.searchsorted(clock, time, side="right")
        took += np.searchsorted(events, user << 32 | when) - np.searchsorted(events, user << 32)

        free = np.flatnonzero(candidates > np.where(user > 0, took, 0))
        owner = np.repeat(free, self.per_positive)
        drawn = np.zeros(len(owner), np.int64)
        random = np.random.default_rng([self.seed, t])
        pending = np.arange(len(owner))
        for _ in range(TRIES):
            if not len(pending):
                break
            rows = owner[pending]
            drawn[pending] = random.integers(1, candidates[rows], endpoint=True)
            key = user[rows] << 32 | drawn[pending]
            place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            refused = _within(self._taken, key)
            if len(keys):
                refused |= (keys[place] == key) & (since[place] <= time[rows])
            pending = pending[refused]
        for one in pending:
            row = owner[one]
            mine = keys[(keys >> 32 == user[row]) & (since <= time[row])]
            low, high = np.searchsorted(self._taken, [user[row] << 32, user[row] + 1 << 32])
            own = np.concatenate([mine, self._taken[low:high]]) & 0xFFFFFFFF
            drawn[one] = random.choice(np.setdiff1d(np.arange(1, candidates[row] + 1), own))
        self._taken = np.sort(np.concatenate([self._taken, keys]), kind="stable")
        return owner, drawn

    def state(self) -> dict[str, Ints]:
        """Return the pairs of user and item that were taken."""
        return {"user": self._taken >> 32, "item": self._taken & 0xFFFFFFFF}

    def restore(self, state: Mapping[str, Ints]) -> None:
        """Remember what `state` returned once."""
        self._taken = state["user"] << 32 | state["item"]


def _ticks(time: Ints) -> tuple[Ints, Ints]:
    """Return the distinct values of sorted times, and (n,) which of them each time is."""
    fresh = np.diff(time, prepend=time[:1] - 1) > 0
    return time[fresh], np.cumsum(fresh) - 1


def _within(sorted_keys: Ints, keys: Ints) -> NDArray[np.bool_]:
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[place] == keys
