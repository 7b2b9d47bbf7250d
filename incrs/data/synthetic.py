"""A drifting click log with known truth: four scenarios, shares and click rates as on KuaiRand.

A row's true click probability is sigmoid(bias of its scenario + appeal of the item + readiness of the
user to click + <taste, topics of the item>); `true_logit` is the whole formula. Every kind of drift
has a strength of its own, 0 = off, and period t draws only from random streams of periods 0..t.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.past import History
from incrs.errors import Mistake
from incrs.period import Batch, Period

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


class _Items(NamedTuple):
    """The I items born so far: topics (I, K), tags (I, 3) where -1 is none, the others (I,)."""

    topics: Floats
    appeal: Floats
    popularity: Floats
    birth: Ints  # the day
    category: Ints
    author: Ints
    tags: Ints


class _Day(NamedTuple):
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


def numbered(known: Ints, raw: Ints) -> Ints:
    """Return `known` (raw value -> id, 0 = not seen yet) with the new values of `raw` added.

    raw: (n,) in time order, values from 0; below 0 is no value. New values get the next ids in
    order of appearance.
    """
    raw = raw[raw >= 0]
    known = np.pad(known, (0, max(0, int(raw.max(initial=-1)) + 1 - len(known))))
    first = np.full(len(known), len(raw))
    first[raw[::-1]] = np.arange(len(raw))[::-1]  # written last, hence kept: the first place
    new = np.flatnonzero((known == 0) & (first < len(raw)))
    known[new[np.argsort(first[new])]] = known.max(initial=0) + 1 + np.arange(len(new))
    return known


def _check_whole(settings: dict[str, int], least: int) -> None:
    for key, value in settings.items():
        if not isinstance(value, int) or value < least:
            raise Mistake(f"data.{key}={value}: a whole number of at least {least} is needed")


def _check_strength(settings: dict[str, float], most: float) -> None:
    for key, value in settings.items():
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise Mistake(f"data.{key}={value}: a strength from 0 (off) to {most:g} is needed")


class SyntheticSource(Source):
    """A drifting multi-scenario click log made from `seed`; one period is one day, day 0 a Monday.

    seed: of the log, >= 0; nothing to do with the seed of a training run.
    users, items: how many users there are, and how many items are alive on any day.
    rows_per_period: rows of a day, before the weekly rhythm changes it.
    periods, pretrain, tune, test: days, and how many have which role (test null: the rest).
    interest_walk: daily step of the interests of communities and of users (their variance is 1).
    item_churn: share of the items that die every day, replaced by new ones, in [0, 1]; items lose
    popularity and appeal with age at the same pace.
    weekly_rhythm: how much the day of the week moves volume, click rate and tastes.
    shift: size of the one jump of all interests and tastes, at the start of period `shift_at`.
    scenario_taste: how much the scenarios differ in taste; this is no drift.
    history: length L of the list of the user's last positive items.
    scenarios: those to keep, of 0, 1, 2 and 4 (null: all); other rows are as if never logged.

    A row shows its user, item, the item's category, author and tags, the user's age band and cluster
    (a noisy guess of the community), weekday and hour; the age of the item (log of days) and the
    user's rows per day so far (log) as numbers; and a history. Biases of the scenarios are such that
    the mean true click rate of the pretrain periods is that of the table.

    Raises Mistake when a setting is out of its range.
    """

    def __init__(
        self,
        name: str = "synthetic",
        seed: int = 0,
        users: int = 2000,
        items: int = 1000,
        rows_per_period: int = 8000,
        periods: int = 14,
        pretrain: int = 7,
        tune: int = 1,
        test: int | None = None,
        interest_walk: float = 0.25,
        item_churn: float = 0.08,
        weekly_rhythm: float = 1.0,
        shift: float = 1.0,
        shift_at: int = 10,
        scenario_taste: float = 1.0,
        history: int = 10,
        scenarios: Sequence[int | str] | int | str | None = None,
    ) -> None:
        _check_whole({"seed": seed, "tune": tune, "test": 0 if test is None else test}, 0)
        _check_whole({"users": users, "items": items, "rows_per_period": rows_per_period}, 1)
        _check_whole({"periods": periods, "pretrain": pretrain, "shift_at": shift_at}, 1)
        _check_whole({"history": history}, 1)
        _check_strength({"item_churn": item_churn}, 1)
        _check_strength({"weekly_rhythm": weekly_rhythm, "scenario_taste": scenario_taste}, 5)
        _check_strength({"interest_walk": interest_walk, "shift": shift}, 100)
        asked = [scenarios] if isinstance(scenarios, int | str) else scenarios
        kept = list(SHARES) if asked is None else [str(scenario) for scenario in asked]
        if not kept or not set(kept) <= set(SHARES):
            raise Mistake(
                f"data.scenarios={scenarios}: keep one or more of {', '.join(SHARES)}, "
                "or give null for all of them"
            )
        self.name = name
        self.roles = assign_roles(pretrain, tune, test, periods, "data")
        self._seed, self._users, self._items, self._rows = seed, users, items, rows_per_period
        self._walk, self._churn, self._rhythm = interest_walk, item_churn, weekly_rhythm
        self._shift, self._shift_at, self._taste = shift, shift_at, scenario_taste
        self._pretrain, self._length = pretrain, history
        self._kept = [scenario for scenario in SHARES if scenario in kept]

    def prepare(self) -> None:
        """Make the whole log in memory. Raises Mistake when a period keeps no row at all."""
        days = self._days()
        warmup = list(islice(days, self._pretrain))
        where = np.concatenate([day.raw["scenario"] for day in warmup])
        logit = np.concatenate([day.logit for day in warmup])
        rates = enumerate(RATES.values())
        bias = np.array([calibrated(logit[where == s], rate) for s, rate in rates])
        later = islice(days, len(self.roles) - self._pretrain)
        self._periods = self._encoded(chain(warmup, later), bias)
        digest = hashlib.sha256(repr(self.schema).encode())
        for rows, truth in ((period.rows, period.truth) for period in self._periods):
            for column in (*rows[:1], *rows.lists.values(), *rows[2:], truth):
                digest.update(np.ascontiguousarray(column).data)
        self.fingerprint = digest.hexdigest()

    def read(self, t: int) -> Period:
        """Return period t, 0 <= t < len(roles), with the true click probabilities as `truth`."""
        return self._periods[t]

    def _rng(self, t: int, purpose: int) -> np.random.Generator:
        sequence = np.random.SeedSequence([self._seed, t, purpose])
        return np.random.Generator(np.random.Philox(sequence))

    def _days(self) -> Iterator[_Day]:
        """Yield day 0, 1, ... without end: what is shown to whom, and how much it is liked."""
        rng, shares = self._rng(0, WORLD), list(SHARES.values())
        week, centre, tag, community, taste, gate = (
            rng.standard_normal((n, TOPICS))
            for n in (2, CATEGORIES, TAGS, COMMUNITIES, len(shares), len(shares))
        )
        gate = np.exp(0.5 * self._taste * gate)  # how much a topic counts in a scenario
        gate /= np.sqrt((gate**2).mean(1, keepdims=True))
        authors = max(1, self._items // 5)
        speciality, skill = rng.integers(CATEGORIES, size=authors), rng.standard_normal(authors)
        member = rng.integers(COMMUNITIES, size=self._users)
        stranger = rng.integers(COMMUNITIES, size=self._users)
        cluster = np.where(rng.random(self._users) < 0.15, stranger, member)
        ready, habit, years = rng.standard_normal((3, self._users))
        age_band = np.searchsorted(AGE_BANDS, math.sqrt(0.5) * (ready + years))
        activity = np.exp(0.4 * ready + 0.7 * habit)
        personal = rng.standard_normal((self._users, TOPICS))

        def born(n: int, t: int) -> _Items:
            rng = self._rng(t, BIRTH)
            author, roams = rng.integers(authors, size=n), rng.random(n) < 0.2
            category = np.where(roams, rng.integers(CATEGORIES, size=n), speciality[author])
            topics = 0.8 * centre[category] + 0.6 * rng.standard_normal((n, TOPICS))
            quality = math.sqrt(0.5) * (skill[author] + rng.standard_normal(n))
            popularity = np.exp(0.5 * quality + 0.5 * rng.standard_normal(n))
            tags = np.argsort(-topics @ tag.T + rng.standard_normal((n, TAGS)))[:, :3]
            tags[np.arange(3) >= rng.integers(1, 4, size=(n, 1))] = -1
            life = 1 / max(self._churn, 1 / 60)  # mean, in days
            before = np.floor(life * rng.exponential(size=n)).astype(np.int64)
            birth = np.full(n, t) if t else -before
            return _Items(topics, 0.5 * quality, popularity, birth, category, author, tags)

        items, live = born(self._items, 0), np.arange(self._items)
        for t in count():
            if t:
                rng = self._rng(t, WALK)
                community = moved(community, self._walk, rng)
                personal = moved(personal, self._walk, rng)
                deaths = round(self._churn * self._items)
                slots = self._rng(t, DEATH).permutation(self._items)[:deaths]
                live[slots] = len(items.birth) + np.arange(deaths)
                columns = zip(items, born(deaths, t), strict=True)
                items = _Items._make(np.concatenate(column) for column in columns)
            if t == self._shift_at:
                rng = self._rng(t, SHIFT)
                community = moved(community, self._shift, rng)
                personal = moved(personal, self._shift, rng)
                taste = moved(taste, self._shift, rng)
            rng = self._rng(t, ROWS)
            volume = math.exp(0.25 * self._rhythm * week_wave(t + 0.5))
            n = max(1, round(self._rows * volume))
            hour = drawn(HOURS, np.sort(rng.random(n)))
            scenario = drawn(shares, rng.random(n))
            user = drawn(activity, rng.random(n))
            fresh = freshness(t - items.birth, self._churn)
            shown = items.popularity * (0.1 + fresh)
            item = live[drawn(shown[live], rng.random(n))]
            now = t + hour / 24
            trend = np.stack([week_wave(now), week_wave(now, peak=1.0)], 1) @ week  # (n, K)
            interest = 0.8 * community[member] + 0.6 * personal  # (users, K)
            wanted = interest[user] * gate[scenario] + 0.6 * self._taste * taste[scenario]
            wanted += 0.4 * self._rhythm * trend
            mood = 0.5 * ready[user] + 0.2 * self._rhythm * week_wave(now)
            logit = true_logit(wanted, items.topics[item], (items.appeal + fresh)[item], mood)
            raw = {"user_id": user, "item_id": item, "category": items.category[item]}
            raw |= {"author": items.author[item], "age_band": age_band[user]}
            raw |= {"cluster": cluster[user], "weekday": np.full(n, t % 7), "hour": hour}
            raw |= {"tags": items.tags[item], "scenario": scenario}
            yield _Day(raw, t - items.birth[item], logit, rng.random(n))

    def _encoded(self, days: Iterable[_Day], bias: Floats) -> list[Period]:
        """Draw labels, keep the rows of the scenarios asked for, turn numbers into features."""
        kept = [list(SHARES).index(scenario) for scenario in self._kept]
        known = {name: np.zeros(1, dtype=np.int64) for name in (*FIELDS, "tags")}
        past, clock = History(self._length), 0
        seen = np.zeros(self._users)  # rows of each user on earlier days
        periods: list[Period] = []
        numbers: list[Floats] = []
        for t, day in enumerate(days):
            keep = np.flatnonzero(np.isin(day.raw["scenario"], kept))
            if len(keep) == 0:
                raise Mistake(
                    f"data.rows_per_period={self._rows}: day {t:02d} has no row of the scenarios "
                    f"{', '.join(self._kept)}; ask for more rows"
                )
            raw = {name: values[keep] for name, values in day.raw.items()}
            truth = expit(day.logit[keep] + bias[raw["scenario"]])
            label = (day.luck[keep] < truth).astype(np.int64)
            for name in known:
                known[name] = numbered(known[name], raw[name].ravel())
            fields = np.stack([known[name][raw[name]] for name in FIELDS], 1)
            tags = np.append(known["tags"], 0)[raw["tags"]]  # -1 reads the 0 at the end
            user, item, time = fields[:, 0], fields[:, 1], clock + np.arange(len(keep))
            clock += len(keep)
            history = past.look_back(user, time, item, label == 1, keep_from=clock)
            activity = seen[raw["user_id"]] / max(t, 1)  # rows a day
            seen += np.bincount(raw["user_id"], minlength=self._users)
            numbers.append(np.log1p([day.age[keep], activity]).T)
            rows = Batch(
                fields=torch.from_numpy(fields).int(),
                lists={"history": torch.from_numpy(history), "tags": torch.from_numpy(tags).int()},
                numbers=torch.empty(0),  # comes below, standardised
                scenario=torch.from_numpy(np.searchsorted(kept, raw["scenario"])),
                label=torch.from_numpy(label).float(),
            )
            periods.append(Period(t, f"day {t:02d}", self.roles[t], rows, torch.from_numpy(truth)))
        self.schema = Schema(
            vocabularies={name: int(ids.max()) + 1 for name, ids in known.items()},
            fields={name: name for name in FIELDS},
            lists={"history": ListField("item_id", self._length), "tags": ListField("tags", 3)},
            numbers=["item_age", "user_activity"],
            scenarios=self._kept,
            user="user_id",
            item="item_id",
        )
        warmup = np.concatenate(numbers[: self._pretrain])
        mean, scale = warmup.mean(0), warmup.std(0)
        scale[scale == 0] = 1
        scaled = [torch.from_numpy((values - mean) / scale).float() for values in numbers]
        return [
            replace(period, rows=period.rows._replace(numbers=values))
            for period, values in zip(periods, scaled, strict=True)
        ]
