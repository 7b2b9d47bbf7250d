"""Ranking, from the log to results.csv, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.models.base import Backbone
from incrs.models.embedding_mlp import EmbeddingMLP
from incrs.module import ScenarioModule
from incrs.period import Batch, Period, Stored, joined
from incrs.ranking import Ranked, Ranker, Ranking, places
from incrs.results import POOLED, Row, Run
from incrs.roster import Roster
from incrs.runner import rank, run
from incrs.updaters.finetune import Finetune
from incrs.updaters.incctr import IncCTR

SCHEMA = Schema(
    vocabularies={"user": 13, "item": 200, "kind": 5, "tag": 6},
    fields={"user": "user", "kind": "kind", "item": "item"},
    lists={"tags": ListField("tag", 2), "history": ListField("item", 3)},
    numbers=("hour", "price"),
    scenarios=("home", "search"),
    user="user",
    item="item",
    of_item=("kind", "tags", "price"),
)
ABOUT = Run("0", "log", "mlp", "test", 7)
CPU = partial(L.Trainer, accelerator="cpu")


class Shop(Source):
    """Items come with every period, by first appearance; kind, tags and price are the item's."""

    def __init__(self, periods: int = 5, noise_from: int = 99, on_disk: bool = False):
        self.name, self.schema, self.on_disk = "log", SCHEMA, on_disk
        self.roles = assign_roles(2, 1, None, periods, "data")
        self.fingerprints = [str(t) for t in range(periods)]
        known: dict[int, int] = {}
        self.rows = [self.drawn(t, known, t >= noise_from) for t in range(periods)]

    @staticmethod
    def drawn(t: int, known: dict[int, int], noise: bool, n: int = 70) -> Batch:
        random = np.random.default_rng([t, noise])
        raw = np.where(random.random(n) < 0.05, -1, random.integers(8 * t, 40 + 8 * t, n))
        known.setdefault(-1, 0)
        item = np.array([known.setdefault(one, len(known)) for one in raw.tolist()])
        user = random.integers(0, 13, n)
        fields = np.stack([user, item % 5, item], 1)
        lists = {
            "tags": np.stack([item % 6, item % 3], 1),
            "history": random.integers(0, 30, (n, 3)),
        }
        numbers = np.stack([random.random(n), item / 50], 1)
        return Batch(
            torch.from_numpy(fields).int(),
            {name: torch.from_numpy(ids).int() for name, ids in lists.items()},
            torch.from_numpy(numbers).float(),
            torch.from_numpy(random.integers(0, 2, n)),
            torch.from_numpy((random.random(n) < 0.3 + 0.4 * (item % 2)).astype(np.float32)),
        )

    def read(self, t: int) -> Period:
        rows: Batch | Stored = self.rows[t]
        if self.on_disk:
            parts = [self.rows[t].take(slice(i, i + 20)) for i in range(0, 70, 20)]
            rows = Stored([len(part.label) for part in parts], parts.__getitem__, 40)
        return Period(t, f"day {t}", self.roles[t], rows)


def model(seed: int = 0) -> Backbone:
    return EmbeddingMLP(SCHEMA, seed, 4, (8,))


def module_of(backbone: Backbone) -> ScenarioModule:
    return ScenarioModule(backbone, {"one": Finetune()}, torch.optim.Adam, 2)


def ranked(
    task: Ranking,
    source: Shop | None = None,
    seed: int = 7,
    schema: Schema = SCHEMA,
    size: int = 16,
) -> tuple[Ranker, PeriodStream, Period]:
    """Return what ranks the fourth period of a log, knowing the three before it."""
    source = source or Shop()
    source.schema = schema
    stream = PeriodStream(source, size, Roster(schema, "fixed"))
    ranker = Ranker(task, stream, seed)
    ranker.catch_up([source.read(t) for t in range(3)])
    return ranker, stream, source.read(3)


def swapped(rows: Batch, i: int, item: int) -> Batch:
    """Return row i with an item in it, by what the items of this log are."""
    row = rows.take(torch.tensor([i]))
    row.fields[0, 1:] = torch.tensor([item % 5, item])
    row.lists["tags"][0] = torch.tensor([item % 6, item % 3])
    row.numbers[0, 1] = item / 50
    return row


def brute_force(backbone: Backbone, schema: Schema = SCHEMA) -> list[tuple[int, int, int]]:
    """Return (row, above, level) of every positive among all items it may be ranked against."""
    rows, seen, taken, found = Shop().rows[:4], set(), set(), []
    for t, part in enumerate(rows):
        for i, (user, _, item) in enumerate(part.fields.tolist()):
            clicked = bool(part.label[i] == 1)
            if schema.sampled and not clicked:
                continue
            seen |= set(range(1, item + 1))  # ids are given by first appearance
            taken |= {(user, item)} if user else set()
            if t == 3 and clicked and item:
                may = [x for x in seen if x != item and (user, x) not in taken]
                each = joined([swapped(part, i, x) for x in (item, *sorted(may))])
                own, *others = backbone(each).logit.tolist()
                found.append((i, sum(x > own for x in others), sum(x == own for x in others)))
    return found


@pytest.mark.parametrize("sampled", [False, True])
def test_all_candidates_rank_as_by_brute_force(sampled: bool) -> None:
    schema = replace(SCHEMA, sampled=sampled)
    ranker, _, following = ranked(Ranking("all"), schema=schema)
    backbone = model().double()
    found = rank(module_of(backbone), partial(CPU, precision="64-true"), ranker, following)
    with torch.no_grad():
        expected = brute_force(backbone.double(), schema)
    assert found.tolist() == [[above, level] for _, above, level in expected]


def test_every_updater_and_every_model_ranks_the_same_lists(tmp_path: Path) -> None:
    lists = []
    for updater, lr in ((Finetune(), 0.01), (IncCTR(0.1), 0.1)):
        seen: list[torch.Tensor] = []

        class Recording(EmbeddingMLP):
            def score(self, batch, items):
                seen.append(items.at)  # noqa: B023
                return super().score(batch, items)

        module = ScenarioModule(
            Recording(SCHEMA, int(lr * 100), 4, (8,)),
            {"x": updater},
            partial(torch.optim.Adam, lr=lr),
            2,
        )
        stream = PeriodStream(Shop(), 16, Roster(SCHEMA, "fixed"))
        run(stream, module, CPU, RunFolder(tmp_path / str(lr)), ABOUT, ranking=Ranking(9))
        lists.append(seen)
    assert all(torch.equal(a, b) for a, b in zip(*lists, strict=True))
    assert len(lists[0]) == 3


def test_later_rows_change_no_place_before_them() -> None:
    module, task = module_of(model()), Ranking(9)
    ranker, _, following = ranked(task)
    whole = rank(module, CPU, ranker, following)
    ranker, _, following = ranked(task)
    other = Shop(noise_from=3).rows[3].take(slice(40, None))
    other.fields[:, 2] += following.rows.fields[:, 2].max()
    rows = joined([following.rows.take(slice(0, 40)), other])
    changed = rank(module, CPU, ranker, replace(following, content=rows))
    before = int(((rows.label == 1) & (rows.fields[:, 2] > 0))[:40].sum())
    assert whole[:before].tolist() == changed[:before].tolist()
    assert whole[before:].tolist() != changed[before:].tolist()


def test_periods_on_disk_rank_as_those_in_memory() -> None:
    found = []
    for on_disk in (False, True):
        ranker, _, following = ranked(Ranking(9), Shop(on_disk=on_disk))
        found.append(rank(module_of(model()), CPU, ranker, following).tolist())
    assert found[0] == found[1]


def test_a_dead_model_is_at_chance_and_a_broken_one_has_no_places() -> None:
    ranker, _, following = ranked(Ranking(9))
    dead = model()
    torch.nn.init.zeros_(dead.shared["logit"].weight)
    found = rank(module_of(dead), CPU, ranker, following)
    assert (found[:, 0] == 0).all()
    assert (found[:, 1] > 5).all()
    torch.nn.init.constant_(dead.shared["logit"].weight, math.nan)
    assert (rank(module_of(dead), CPU, ranker, following) == -1).all()


def test_items_served_as_unknown_tie_whatever_rounding_says() -> None:
    source = Shop()
    for rows in source.rows:
        rows.fields[:, 1] = rows.numbers[:, 1] = 0
        rows.lists["tags"][:] = 0
    ranker, stream, following = ranked(Ranking("all"), source)
    stream.roster = Roster(SCHEMA, "growing")  # which has seen nothing
    for batch, items, twin in ranker.loader(following):
        assert (twin[items.at[:, 0]] == twin[0]).all()
        noise = torch.rand(items.at.shape)
        above, level = places(noise, Ranked(batch, items, twin)).T
        assert (above == 0).all()
        assert (level == (items.at > 0).sum(1) - 1).all()


def test_a_period_without_positives_ranks_nothing() -> None:
    ranker, _, following = ranked(Ranking(9))
    none = following.rows._replace(label=torch.zeros(70))
    found = rank(module_of(model()), CPU, ranker, replace(following, content=none))
    assert found.shape == (0, 2)


def go(
    folder: Path, periods: int = 5, noise_from: int = 99, candidates: int | str = 9
) -> list[Row]:
    stream = PeriodStream(Shop(periods, noise_from), 16, Roster(SCHEMA))
    task = Ranking(candidates, [1, 5])
    module = ScenarioModule(
        EmbeddingMLP(
            replace(SCHEMA, vocabularies=dict.fromkeys(SCHEMA.vocabularies, 1)), 0, 4, (8,)
        ),
        {"one": Finetune()},
        partial(torch.optim.Adam, lr=0.01),
        2,
    )
    return run(stream, module, CPU, RunFolder(folder), ABOUT, ranking=task)


def test_a_run_measures_ranks_by_the_weights_that_serve(tmp_path: Path) -> None:
    stream = PeriodStream(Shop(), 16, Roster(SCHEMA, "fixed"))
    module = module_of(model())
    rows = run(stream, module, CPU, RunFolder(tmp_path), ABOUT, ranking=Ranking("all", [3]))
    served = model()
    served.load_state_dict(load_file(tmp_path / "serving/period=0003.safetensors"))
    with torch.no_grad():
        ranks = [above + level / 2 for _, above, level in brute_force(served)]
    value = {r.metric: r[-3:] for r in rows if (r.period, r.scenario) == (3, POOLED)}
    hits = [float(r < 3) for r in ranks]
    gains = [(r < 3) / math.log2(r + 2) for r in ranks]
    assert value["recall_3"] == (pytest.approx(np.mean(hits), abs=1e-6), len(ranks), len(ranks))
    assert value["ndcg_3"] == (pytest.approx(np.mean(gains), abs=1e-6), len(ranks), len(ranks))
    assert value["auc"][0] is not None
    cells = [
        value[f"recall_3_{u}_users_{i}_items"] for u in ("new", "known") for i in ("new", "known")
    ]
    assert 0 < cells[0][1] + cells[2][1] <= value["recall_3_new_items"][1]


def test_a_day_that_came_later_is_ranked_to_the_same_bytes(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    for periods in (2, 3, 3, 5):
        rows = go(tmp_path / "daily", periods)
    assert rows == whole
    assert any(row.metric == "ndcg_5_known_users" for row in rows)
    ours, theirs = ((tmp_path / name / "results.csv").read_bytes() for name in ("whole", "daily"))
    assert ours == theirs


def test_noise_in_later_periods_changes_no_rank_before_them(tmp_path: Path) -> None:
    plain, noisy = go(tmp_path / "plain"), go(tmp_path / "noisy", noise_from=4)
    assert [r for r in plain if r.period < 4] == [r for r in noisy if r.period < 4]
    assert [r for r in plain if r.period == 4] != [r for r in noisy if r.period == 4]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"candidates": 0}, "task.candidates=0: give a whole number from 1, or all"),
        ({"candidates": "some"}, "task.candidates=some"),
        ({"candidates": True}, "task.candidates=True"),
        ({"cutoffs": []}, "task.cutoffs="),
        ({"cutoffs": [5, 0]}, "task.cutoffs=.5, 0.: give one or more whole numbers from 1"),
        ({"cutoffs": [5, 5]}, "each once"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(options: dict, sentence: str) -> None:
    with pytest.raises(Mistake, match=sentence):
        Ranking(**options)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user": None}, "the log has no data.user: name the column there, or choose task=click"),
        ({"user": None, "item": None}, "no data.user and no data.item"),
        ({"of_item": None}, "prepared by an earlier version"),
    ],
)
def test_a_log_that_does_not_say_who_takes_what_is_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(Mistake, match=sentence):
        Ranking().check(replace(SCHEMA, **changes))
