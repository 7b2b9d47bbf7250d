"""A drifting click log with known truth: four scenarios, shares and click rates as on KuaiRand.

`world.py` says what happens; here it becomes a log: labels, ids, histories, periods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import torch
from scipy.special import expit

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.past import History
from incrs.data.world import FIELDS, RATES, SHARES, Day, Floats, Ints, World, calibrated
from incrs.errors import Mistake
from incrs.period import Batch, Period


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
        self._world = World(
            seed=seed,
            users=users,
            items=items,
            rows_per_period=rows_per_period,
            interest_walk=interest_walk,
            item_churn=item_churn,
            weekly_rhythm=weekly_rhythm,
            shift=shift,
            shift_at=shift_at,
            scenario_taste=scenario_taste,
        )
        self._pretrain, self._length = pretrain, history
        self._kept = [scenario for scenario in SHARES if scenario in kept]

    def prepare(self) -> None:
        """Make the whole log in memory. Raises Mistake when a period keeps no row at all."""
        days = self._world.days()
        warmup = list(islice(days, self._pretrain))
        where = np.concatenate([day.raw["scenario"] for day in warmup])
        logit = np.concatenate([day.logit for day in warmup])
        rates = enumerate(RATES.values())
        bias = np.array([calibrated(logit[where == s], rate) for s, rate in rates])
        later = islice(days, len(self.roles) - self._pretrain)
        self._periods = self._encoded(chain(warmup, later), bias)
        meaning = replace(self.schema, vocabularies=dict.fromkeys(self.schema.vocabularies, 0))
        digest, self.fingerprints = hashlib.sha256(repr(meaning).encode()), []
        for rows, truth in ((period.rows, period.truth) for period in self._periods):
            for column in (*rows[:1], *rows.lists.values(), *rows[2:5], truth):
                digest.update(np.ascontiguousarray(column).data)
            self.fingerprints.append(digest.hexdigest()[:32])

    def read(self, t: int) -> Period:
        """Return period t, 0 <= t < len(roles), with the true click probabilities as `truth`."""
        return self._periods[t]

    def _encoded(self, days: Iterable[Day], bias: Floats) -> list[Period]:
        """Draw labels, keep the rows of the scenarios asked for, turn numbers into features."""
        kept = [list(SHARES).index(scenario) for scenario in self._kept]
        known = {name: np.zeros(1, dtype=np.int64) for name in (*FIELDS, "tags")}
        past, clock = History(self._length), 0
        seen = np.zeros(self._world.users)  # rows of each user on earlier days
        periods: list[Period] = []
        numbers: list[Floats] = []
        for t, day in enumerate(days):
            keep = np.flatnonzero(np.isin(day.raw["scenario"], kept))
            if len(keep) == 0:
                raise Mistake(
                    f"data.rows_per_period={self._world.rows_per_period}: day {t:02d} has no row of the "
                    f"scenarios {', '.join(self._kept)}; ask for more rows"
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
            seen += np.bincount(raw["user_id"], minlength=self._world.users)
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
            of_item=["category", "author", "tags", "item_age"],
        )
        warmup = np.concatenate(numbers[: self._pretrain])
        mean, scale = warmup.mean(0), warmup.std(0)
        scale[scale == 0] = 1
        scaled = [torch.from_numpy((values - mean) / scale).float() for values in numbers]
        return [
            replace(period, content=period.rows._replace(numbers=values))
            for period, values in zip(periods, scaled, strict=True)
        ]
