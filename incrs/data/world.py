"""The world behind the synthetic log: what is shown to whom, how much it is liked, and how that drifts.

A row's true click probability is sigmoid(bias of its scenario + appeal of the item + readiness of the
user to click + <taste, topics of the item>); `true_logit` is the whole formula. Every kind of drift
has a strength of its own, 0 = off, and day t draws only from random streams of days 0..t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Table 1 of the IncMSR paper, KuaiRand: each scenario's share of the rows, and click rate.
SHARES = {"0": 0.1364, "1": 0.7592, "2": 0.0357, "4": 0.0687}
RATES = {"0": 0.0920, "1": 0.5297, "2": 0.4800, "4": 0.6196}
TOPICS, COMMUNITIES, CATEGORIES, TAGS = 8, 12, 20, 40
HOURS = (3, 2, 1, 1, 1, 1, 2, 3, 4, 4, 4, 5, 7, 6, 5, 5, 5, 6, 7, 9, 10, 11, 9, 6)  # volume
AGE_BANDS = (-1.07, -0.57, -0.18, 0.18, 0.57, 1.07)  # edges, for a standard normal number
FIELDS = ("user_id", "item_id", "category", "author", "age_band", "cluster", "weekday", "hour")
WORLD, BIRTH, DEATH, WALK, SHIFT, ROWS = range(6)  # what a random stream is for


class Items(NamedTuple):
    """The I items born so far: topics (I, K), tags (I, 3) where -1 is none, the others (I,)."""

    topics: Floats
    appeal: Floats
    popularity: Floats
    birth: Ints  # the day
    category: Ints
    author: Ints
    tags: Ints


class Day(NamedTuple):
    """The n rows of one day in time order, before they have labels and ids."""

    raw: dict[str, Ints]  # FIELDS and scenario (n,), tags (n, 3), numbered by the world
    age: Ints  # (n,) of the item, in days
    logit: Floats  # (n,) of the true click probability, but for the scenario's bias
    luck: Floats  # (n,) uniform in [0, 1): a click where it is below the true probability


def moved(x: Floats, step: float, rng: np.random.Generator) -> Floats:
    """Return x after one random step of size `step`; unit variance stays unit variance."""
    return (x + step * rng.standard_normal(x.shape)) / math.sqrt(1 + step * step)


def freshness(age: Ints | Floats, churn: float) -> Floats:
    """Return how new items of `age` days are, in (0, 1]: 1 at birth, 1/e after a mean life."""
    return np.exp(-churn * age)


def week_wave(day: Floats | float, peak: float = 5.5) -> Floats:
    """Return in [-1, 1] how near `day` (0.0 = the first Monday, midnight) is to `peak` in its week."""
    return np.cos(2 * np.pi * (np.asarray(day) - peak) / 7)


def drawn(weights: Floats | Sequence[float], uniform: Floats) -> Ints:
    """Return indices (n,) drawn in proportion to `weights` (W,); they rise with `uniform` (n,)."""
    edges = np.cumsum(weights)
    return np.searchsorted(edges[:-1], edges[-1] * uniform, side="right")


def true_logit(taste: Floats, topics: Floats, appeal: Floats, mood: Floats) -> Floats:
    """Return (n,) logits, but for the bias, of taste and topics (n, K), appeal and mood (n,)."""
    match = np.einsum("nk,nk->n", taste, topics) / math.sqrt(topics.shape[1])
    return 0.75 * match + appeal + mood


def calibrated(logit: Floats, rate: float) -> float:
    """Return the bias b with mean(sigmoid(logit + b)) == rate, by bisection; 0 < rate < 1."""
    if len(logit) == 0:
        return math.log(rate / (1 - rate))
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(logit + middle).mean() < rate else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class World:
    """Users, items and scenarios that drift from day to day; the settings are SyntheticSource's."""

    seed: int
    users: int
    items: int
    rows_per_period: int
    interest_walk: float
    item_churn: float
    weekly_rhythm: float
    shift: float
    shift_at: int
    scenario_taste: float

    def _rng(self, t: int, purpose: int) -> np.random.Generator:
        sequence = np.random.SeedSequence([self.seed, t, purpose])
        return np.random.Generator(np.random.Philox(sequence))

    def days(self) -> Iterator[Day]:
        """Yield day 0, 1, ... without end: what is shown to whom, and how much it is liked."""
        rng, shares = self._rng(0, WORLD), list(SHARES.values())
        week, centre, tag, community, taste, gate = (
            rng.standard_normal((n, TOPICS))
            for n in (2, CATEGORIES, TAGS, COMMUNITIES, len(shares), len(shares))
        )
        gate = np.exp(0.5 * self.scenario_taste * gate)  # how much a topic counts in a scenario
        gate /= np.sqrt((gate**2).mean(1, keepdims=True))
        authors = max(1, self.items // 5)
        speciality, skill = rng.integers(CATEGORIES, size=authors), rng.standard_normal(authors)
        member = rng.integers(COMMUNITIES, size=self.users)
        stranger = rng.integers(COMMUNITIES, size=self.users)
        cluster = np.where(rng.random(self.users) < 0.15, stranger, member)
        ready, habit, years = rng.standard_normal((3, self.users))
        age_band = np.searchsorted(AGE_BANDS, math.sqrt(0.5) * (ready + years))
        activity = np.exp(0.4 * ready + 0.7 * habit)
        personal = rng.standard_normal((self.users, TOPICS))

        def born(n: int, t: int) -> Items:
            rng = self._rng(t, BIRTH)
            author, roams = rng.integers(authors, size=n), rng.random(n) < 0.2
            category = np.where(roams, rng.integers(CATEGORIES, size=n), speciality[author])
            topics = 0.8 * centre[category] + 0.6 * rng.standard_normal((n, TOPICS))
            quality = math.sqrt(0.5) * (skill[author] + rng.standard_normal(n))
            popularity = np.exp(0.5 * quality + 0.5 * rng.standard_normal(n))
            tags = np.argsort(-topics @ tag.T + rng.standard_normal((n, TAGS)))[:, :3]
            tags[np.arange(3) >= rng.integers(1, 4, size=(n, 1))] = -1
            life = 1 / max(self.item_churn, 1 / 60)  # mean, in days
            before = np.floor(life * rng.exponential(size=n)).astype(np.int64)
            birth = np.full(n, t) if t else -before
            return Items(topics, 0.5 * quality, popularity, birth, category, author, tags)

        items, live = born(self.items, 0), np.arange(self.items)
        for t in count():
            if t:
                rng = self._rng(t, WALK)
                community = moved(community, self.interest_walk, rng)
                personal = moved(personal, self.interest_walk, rng)
                deaths = round(self.item_churn * self.items)
                slots = self._rng(t, DEATH).permutation(self.items)[:deaths]
                live[slots] = len(items.birth) + np.arange(deaths)
                columns = zip(items, born(deaths, t), strict=True)
                items = Items._make(np.concatenate(column) for column in columns)
            if t == self.shift_at:
                rng = self._rng(t, SHIFT)
                community = moved(community, self.shift, rng)
                personal = moved(personal, self.shift, rng)
                taste = moved(taste, self.shift, rng)
            rng = self._rng(t, ROWS)
            volume = math.exp(0.25 * self.weekly_rhythm * week_wave(t + 0.5))
            n = max(1, round(self.rows_per_period * volume))
            hour = drawn(HOURS, np.sort(rng.random(n)))
            scenario = drawn(shares, rng.random(n))
            user = drawn(activity, rng.random(n))
            fresh = freshness(t - items.birth, self.item_churn)
            shown = items.popularity * (0.1 + fresh)
            item = live[drawn(shown[live], rng.random(n))]
            now = t + hour / 24
            trend = np.stack([week_wave(now), week_wave(now, peak=1.0)], 1) @ week  # (n, K)
            interest = 0.8 * community[member] + 0.6 * personal  # (users, K)
            wanted = interest[user] * gate[scenario] + 0.6 * self.scenario_taste * taste[scenario]
            wanted += 0.4 * self.weekly_rhythm * trend
            mood = 0.5 * ready[user] + 0.2 * self.weekly_rhythm * week_wave(now)
            logit = true_logit(wanted, items.topics[item], (items.appeal + fresh)[item], mood)
            raw = {"user_id": user, "item_id": item, "category": items.category[item]}
            raw |= {"author": items.author[item], "age_band": age_band[user]}
            raw |= {"cluster": cluster[user], "weekday": np.full(n, t % 7), "hour": hour}
            raw |= {"tags": items.tags[item], "scenario": scenario}
            yield Day(raw, t - items.birth[item], logit, rng.random(n))
