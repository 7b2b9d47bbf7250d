"""The next item, from the log to results.csv: for every model and updater, against plain loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.func import functional_call

from incrs.data.base import ListField, Schema
from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.models.base import Backbone, SequenceBackbone
from incrs.module import ScenarioModule
from incrs.next_item import NextItem, Positives, Seeking, Supply, last_of_each, measure, positives
from incrs.period import Batch, Period
from incrs.results import POOLED, Row, Run, headline, title
from incrs.roster import Roster
from incrs.runner import run
from incrs.seeking import DRAWN, SEEN, Seeker, full_loss, sampled_loss, standing
from incrs.updaters.incctr import IncCTR
from incrs.updaters.renumbering import Renumbering
from tests.conftest import CONF
from tests.test_ranking import SCHEMA as SHOP
from tests.test_ranking import Shop
from tests.updaters.test_contract import made

EVENTS = {"history.scenario": 3, "history.behaviour": 17}
SCHEMA = replace(
    SHOP,
    vocabularies={**SHOP.vocabularies, **EVENTS},
    lists={**SHOP.lists, **{name: ListField(name, 3) for name in EVENTS}},
    behaviours=("click", "follow", "like", "share"),
)
EMPTY = replace(SCHEMA, vocabularies=dict.fromkeys(SCHEMA.vocabularies, 1))
ABOUT = Run("0", "log", "model", "updater", 7)
CPU = partial(L.Trainer, accelerator="cpu")
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SMALL = {"embedding_size": 4}


def slow(value: str) -> object:
    return pytest.param(value, marks=pytest.mark.slow)


class Log(Shop):
    """The shop with what the user did, and histories that say so of their steps."""

    def __init__(self, periods: int = 5, noise_from: int = 99, on_disk: bool = False):
        super().__init__(periods, noise_from, on_disk)
        self.schema = SCHEMA

    @staticmethod
    def drawn(t: int, known: dict[int, int], noise: bool, n: int = 70) -> Batch:
        rows, random = Shop.drawn(t, known, noise, n), np.random.default_rng([t, noise, 1])
        held = rows.lists["history"] > 0
        drawn = {k: torch.from_numpy(random.integers(1, v, held.shape)) for k, v in EVENTS.items()}
        lists = {name: (x * held).int() for name, x in drawn.items()}
        outcome = torch.from_numpy(random.integers(0, 2, (n, 4))).to(torch.int8)
        return rows._replace(lists={**rows.lists, **lists}, outcome=outcome)


def backbone(name: str, schema: Schema = SCHEMA, seed: int = 0) -> Backbone:
    config = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    factory = instantiate(config, _partial_=True, _convert_="all")
    found: Backbone = factory(schema=schema, seed=seed, **SMALL)
    if isinstance(found, SequenceBackbone) and config.get("tower"):
        found = factory(schema=schema, seed=seed, tower=None, **SMALL)
    return found


def go(
    folder: Path,
    model: str = "gru4rec",
    updater: str = "finetune",
    task: NextItem | None = None,
    source: Log | None = None,
    vocabulary: str = "growing",
) -> list[Row]:
    """Run the task over the log."""
    task = task or NextItem(negatives=5, cutoffs=[3, 20])
    log = Positives(source or Log())
    roster = Roster(SCHEMA, vocabulary)  # type: ignore[arg-type]
    stream = PeriodStream(log, 16, roster, unknown_rate=0.05)
    seeker = task.seeker(backbone(model, SCHEMA if vocabulary == "fixed" else EMPTY), SCHEMA)
    seeking = Seeking(task, Supply(task, seeker, SCHEMA, roster, log.everything), stream)
    adam = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(seeker, made((updater,)), adam, 2)
    return run(stream, module, CPU, RunFolder(folder), ABOUT, seeking=seeking)


def test_places_are_those_of_a_sorted_list():
    random = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, 3, generator=random).round() for n in (40, 30))
    target = torch.arange(40) % 31
    found = standing(users, items, target).tolist()
    for user, wanted, place in zip(users, target.tolist(), found, strict=True):
        scores = [float(user @ item) for item in items]
        own = scores[wanted - 1]
        above, level = sum(s > own for s in scores), sum(s == own for s in scores) - 1
        assert place == ([above, level] if wanted else [30, 0])
    users[3, 0] = math.nan
    broken = standing(users, items, target)
    assert broken[3].tolist() == [-1, -1]
    assert broken[4:].tolist() == found[4:]
    assert (standing(users[4:5], items / 0, target[:1]) == -1).all()


def test_losses_are_the_cross_entropy_of_what_counts():
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 5, generator=random, dtype=torch.float64)
    there = torch.rand(6, 5, generator=random) < 0.6
    there[:, 0] = True
    for loss, row, held in zip(sampled_loss(scores, there), scores, there, strict=True):
        odds = row[held].exp()
        assert float(loss) == pytest.approx(-math.log(odds[0] / odds.sum()))
    users, items = torch.randn(6, 2, generator=random), torch.randn(9, 2, generator=random)
    target = torch.tensor([1, 2, 3, 4, 5, 8])
    for seen in (None, torch.tensor(6)):
        found = full_loss(users, items, target, seen)
        for user, own, loss in zip(users, target, found, strict=True):
            counted = {*range(1, 9 if seen is None else 6), int(own)}
            odds = {i: math.exp(float(items[i] @ user)) for i in counted}
            share = odds[int(own)] / sum(odds.values())
            assert float(loss) == pytest.approx(-math.log(share), abs=1e-5)


def test_only_a_users_last_row_is_the_last():
    user = np.array([3, 0, 5, 3, 0, 5, 2])
    assert last_of_each(user).tolist() == [False, True, False, True, True, True, True]


def supplied(model: str, task: NextItem, vocabulary: str = "fixed") -> tuple[Seeker, Batch]:
    """Return a seeker and a batch of training for it."""
    log, roster = Positives(Log()), Roster(SCHEMA, vocabulary)  # type: ignore[arg-type]
    for t in range(3):
        roster.see(log.read(t))
    roster.admit()
    stream = PeriodStream(log, 24, roster, 0.3)
    seeker = task.seeker(backbone(model), SCHEMA)
    supply = Supply(task, seeker, SCHEMA, roster, log.everything)
    supply.catch_up(3)
    Seeking(task, supply, stream)
    return seeker, next(iter(stream.loader(log.read(2), 5)))


def test_drawn_items_bring_what_follows_them_and_are_none_that_is_new():
    _, batch = supplied("star", NextItem(negatives=50))
    shown = [positives(rows, 2) for rows in Log().rows[:3]]
    drawn, seen = batch.lists[DRAWN].long(), max(int(r.fields[:, 2].max()) for r in shown)
    assert int(drawn.min()) > 0
    assert seen >= int(drawn.max()) > 30
    assert (drawn != batch.fields[:, 2:]).all()
    assert torch.equal(batch.lists["drawn.kind"].long(), drawn % 5)
    tags = torch.stack([drawn % 6, drawn % 3], 2).flatten(1)
    assert torch.equal(batch.lists["drawn.tags"].long(), tags)
    torch.testing.assert_close(batch.lists["drawn.:numbers"], drawn / 50)
    assert (batch.fields[:, 1] == batch.fields[:, 2] % 5).all()  # never read as unknown,
    assert (batch.fields[:, 0] == 0).sum() > 3  # as users are
    assert (batch.lists[SEEN] == seen + 1).all()


@pytest.mark.parametrize("model", ["star", "din"])
def test_a_model_of_pairs_judges_each_item_in_the_rows_place(model: str):
    seeker, batch = supplied(model, NextItem(negatives=3))
    seeker.eval()
    output = seeker(batch, representations=True)
    plain = batch._replace(lists={k: v for k, v in batch.lists.items() if DRAWN not in k})
    scores = []
    for n in range(4):
        rows = plain.take(slice(None))
        rows = rows._replace(
            fields=rows.fields.clone(), lists=dict(rows.lists), numbers=rows.numbers.clone()
        )
        if n:
            drawn = batch.lists[DRAWN][:, n - 1].long()
            rows.fields[:, 1:] = torch.stack([drawn % 5, drawn], 1)
            rows.lists["tags"] = torch.stack([drawn % 6, drawn % 3], 1).int()
            rows.numbers[:, 1] = drawn / 50
        scores.append(seeker.inner(rows).logit)
    expected = -torch.stack(scores, 1).logsumexp(1) + scores[0]
    torch.testing.assert_close(output.logit, expected)
    torch.testing.assert_close(output.shared, seeker.inner(plain, True).shared)


@pytest.mark.parametrize("loss", ["sampled", "full"])
def test_rows_counted_anew_lose_the_same(loss: str):
    seeker, batch = supplied("sasrec", NextItem(loss, negatives=6))
    batch.fields[3, 2] = 0
    renumbered = Renumbering(seeker)
    assert ("embedding.tables.item" in renumbered.tables) == (loss == "sampled")
    (other,), rows, _ = renumbered([batch])
    state = seeker.state_dict()
    few = {**state, **{name: state[name][ids] for name, ids in rows.items()}}
    ours = seeker(batch)
    theirs = functional_call(seeker, few, (other,))
    torch.testing.assert_close(ours.logit, theirs.logit)
    torch.testing.assert_close(seeker.loss(batch, ours), seeker.loss(other, theirs))
    kept = torch.arange(len(ours.logit)) != 3
    torch.testing.assert_close(seeker.loss(batch, ours), -ours.logit[kept].mean())


@pytest.mark.parametrize("model", ["star", "sasrec", "ruie"])
def test_a_copy_stands_on_its_own_and_no_rows_lose_nothing(model: str):
    seeker, batch = supplied(model, NextItem(negatives=3))
    twin = copy.deepcopy(seeker).eval()
    assert not twin.inner.training
    assert seeker.inner.training
    torch.manual_seed(0)
    before = twin(batch).logit
    with torch.no_grad():
        for weight in seeker.parameters():
            weight.add_(1)
    torch.manual_seed(0)
    assert torch.equal(before, twin(batch).logit)
    none = batch.take(slice(0, 0))
    loss = seeker.loss(none, seeker(none, representations=True))
    loss.backward()
    assert float(loss.detach()) == 0


def brute_force(seeker: Seeker, rows: Batch, items: int) -> list[list[int]]:
    """Return the places of the rows' items among 1 .. items - 1, each put into its row."""
    found, inner = [], seeker.inner.eval()
    for i in range(len(rows.label)):
        row, own = rows.take(torch.tensor([i])), int(rows.fields[i, 2])
        every = torch.arange(1, items)
        copies = row.take(torch.zeros(items - 1, dtype=torch.int64))
        copies.fields[:, 1], copies.fields[:, 2] = every % 5, every
        copies.lists["tags"][:] = torch.stack([every % 6, every % 3], 1)
        copies.numbers[:, 1] = every / 50
        if isinstance(inner, SequenceBackbone):
            scores = (inner.catalogue(every) * inner.encode(copies)).sum(1)
        else:
            scores = inner(copies).logit
        if own >= items:
            found.append([items - 1, 0])
            continue
        mine = scores[own - 1]
        found.append([int((scores > mine).sum()), int((scores == mine).sum()) - 1])
    return found


@pytest.mark.parametrize("model", ["gru4rec", slow("star")])
def test_a_run_measures_places_by_the_weights_that_serve(model: str, tmp_path: Path):
    rows = go(tmp_path, model, task=NextItem(negatives=5, cutoffs=[3]))
    weights = load_file(tmp_path / "serving/period=0003.safetensors")
    seeker = NextItem().seeker(backbone(model, EMPTY), SCHEMA)
    for name, (table, vocabulary) in seeker.tables().items():
        table.tables[table.names[vocabulary]] = torch.nn.Parameter(weights[name])
    seeker.load_state_dict(weights)
    items, users = (
        len(weights[f"embedding.tables.{n}"]) if f"embedding.tables.{n}" in weights else 99
        for n in ("item", "user")
    )
    batch = positives(Log().rows[3], 2)
    own, batch = batch.fields[:, 2], batch.take(slice(None))
    batch.fields[:, 0][batch.fields[:, 0] >= users] = 0
    with torch.no_grad():
        ranks = np.array([a + b / 2 for a, b in brute_force(seeker, batch, items)])
    value = {r.metric: r[-3:] for r in rows if (r.period, r.scenario) == (3, POOLED)}
    assert (own >= items).any()
    assert value["hr_3"] == (pytest.approx(100 * (ranks < 3).mean()), len(ranks), len(ranks))
    gains = np.where(ranks < 3, 1 / np.log2(ranks + 2), 0)
    assert value["ndcg_3"][0] == pytest.approx(100 * gains.mean())
    assert value["hr_3_new_items"][0] == 0
    assert value["collapsed"][0] == 0
    assert {r.scenario for r in rows} == {POOLED, "home", "search"}
    assert not any(r.metric in ("auc", "logloss") for r in rows)
    assert headline(rows) == ("hr_3", "ndcg_3")
    assert title("hr_3_new_users") == "HR@3 new users"


@pytest.mark.parametrize("model", [m if m == "star" else slow(m) for m in MODELS])
def test_every_model_runs_and_is_trained_in_all_its_parameters(model: str, tmp_path: Path):
    rows = go(tmp_path, model)
    assert sum(row.metric == "hr_20" and row.scenario == POOLED for row in rows) == 3
    seeker, batch = supplied(model, NextItem(negatives=4))
    seeker.loss(batch, seeker(batch)).backward()
    assert all(w.grad is not None for w in seeker.parameters())
    assert set(seeker.state_dict()) == set(seeker.inner.state_dict())


@pytest.mark.parametrize("model", ["sasrec", slow("star")])
@pytest.mark.parametrize("updater", ["sml", *map(slow, ("batch", "incmsr", "asmg", "spmf"))])
def test_every_updater_runs(model: str, updater: str, tmp_path: Path):
    plain, other = (
        go(tmp_path / name, model, name, source=Log(6)) for name in ("finetune", updater)
    )
    assert [r.metric for r in plain] == [r.metric for r in other]
    assert plain != other
    assert all(r.value is not None for r in other if r.metric == "hr_20" and r.rows)


@pytest.mark.parametrize("updater", list(map(slow, ("finetune", "asmg", "sml"))))
def test_a_full_softmax_is_trained_by_every_updater(updater: str, tmp_path: Path):
    for vocabulary in ("growing", "fixed"):
        task = NextItem("full", cutoffs=[3])
        rows = go(tmp_path / vocabulary, "sasrec", updater, task, vocabulary=vocabulary)
        assert any(row.metric == "hr_3" for row in rows)


@pytest.mark.parametrize("model", ["ruie", slow("gru4rec"), slow("star")])
@pytest.mark.parametrize("vocabulary", ["growing", slow("fixed")])
def test_noise_in_later_periods_changes_nothing_before_it(
    model: str, vocabulary: str, tmp_path: Path
):
    plain, noisy = (
        go(tmp_path / str(t), model, source=Log(noise_from=t), vocabulary=vocabulary)
        for t in (99, 4)
    )
    assert [r for r in plain if r.period < 4] == [r for r in noisy if r.period < 4]
    assert [r for r in plain if r.period == 4] != [r for r in noisy if r.period == 4]


@pytest.mark.parametrize("model", [slow("gru4rec"), slow("star"), "ruie"])
def test_a_day_that_came_later_is_sought_to_the_same_bytes(model: str, tmp_path: Path):
    whole = go(tmp_path / "whole", model)
    for periods in (2, 4, 5):
        rows = go(tmp_path / "daily", model, source=Log(periods))
    assert rows == whole


@pytest.mark.parametrize("model", ["sasrec", "ruie"])
def test_periods_on_disk_are_sought_as_those_in_memory(model: str):
    found, task = [], NextItem(negatives=5)
    for on_disk in (False, True):
        log, roster = Positives(Log(on_disk=on_disk)), Roster(SCHEMA, "fixed")
        stream = PeriodStream(log, 16, roster)
        seeker = task.seeker(backbone(model), SCHEMA)
        seeking = Seeking(task, Supply(task, seeker, SCHEMA, roster, log.everything), stream)
        roster.see(log.read(0))
        asked = [seeker.places(sought) for sought in seeking.loader(log.read(1))]
        rows = Period.concat([seeking.supply.marked(log.read(0))]).rows
        found.append(
            (torch.cat(asked).tolist(), None if rows.outcome is None else rows.outcome.tolist())
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("model", MODELS)
def test_no_model_is_told_what_became_of_the_row(model: str):
    """Not of the row that is scored: only a loss reads it, and the label."""
    log, told = Positives(Log()), backbone(model).eval()
    rows = log.read(1).rows
    flipped = rows._replace(outcome=1 - rows.outcome, label=1 - rows.label)
    with torch.no_grad():
        assert torch.equal(told(rows).logit, told(flipped).logit)
        if isinstance(told, SequenceBackbone):
            other = flipped._replace(fields=flipped.fields.clone(), scenario=1 - rows.scenario)
            other.fields[:, 1:] = 1
            assert torch.equal(told.encode(rows), told.encode(other))


def test_a_dead_model_is_marked(tmp_path: Path):
    log = Positives(Log())
    places = np.tile([[0, 9]], (len(log.read(3)), 1))
    args = (ABOUT, SCHEMA, log.read(3))
    known = dict.fromkeys(SCHEMA.vocabularies, 5)
    rows = {r.metric: r.value for r in measure(*args, places, known, [5]) if r.scenario == POOLED}
    assert rows["collapsed"] == 1
    assert rows["hr_5"] == pytest.approx(50)
    rows = {r.metric: r.value for r in measure(*args, 0 * places - 1, known, [5])}
    assert rows["hr_5"] is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: NextItem("soft"), "task.loss=soft: give full or sampled"),
        (lambda: NextItem(negatives=0), "task.negatives=0: give a whole number from 1"),
        (lambda: NextItem(cutoffs=[5, 5]), "task.cutoffs="),
        (lambda: NextItem().check(replace(SCHEMA, item=None), {}), "no data.item"),
        (
            lambda: NextItem().check(SCHEMA, {"incctr": IncCTR()}),
            "updater=incctr keeps probabilities",
        ),
        (lambda: NextItem("full").seeker(backbone("star"), SCHEMA), "task.loss=full is for models"),
        (
            lambda: NextItem().seeker(backbone("star"), replace(SCHEMA, of_item=None)),
            "prepared by an earlier version",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, sentence: str):
    with pytest.raises(Mistake, match=sentence):
        call()
