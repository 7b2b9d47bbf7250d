"""Growing vocabularies: rows come and go with the ids, and what was learnt stays to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.models.base import Backbone
from incrs.models.embedding_mlp import EmbeddingMLP
from incrs.module import ScenarioModule
from incrs.period import Batch, Period
from incrs.results import Row, Run
from incrs.roster import Roster
from incrs.runner import run
from incrs.updaters.base import Updater
from incrs.updaters.batch import BatchWindow
from incrs.updaters.finetune import Finetune
from incrs.updaters.incctr import IncCTR
from incrs.updaters.incmsr import IncMSR
from tests.conftest import CONF

USERS, BORN, LIFE = 30, 4, 6
ABOUT = Run("0", "living", "model", "updater", 0)


class Living(Source):
    """Every day BORN items are born and live LIFE days; users come one a day. 40 rows a day."""

    def __init__(self, periods: int):
        items = (periods + LIFE) * BORN + 1
        self.schema = Schema(
            vocabularies={"user": USERS + periods + 1, "item": items, "word": items},
            fields={"user": "user", "item": "item"},
            lists={"words": ListField("word", 2), "history": ListField("item", 3)},
            numbers=(),
            scenarios=("a", "b"),
            user="user",
            item="item",
        )
        self.name, self.roles = "living", assign_roles(3, 1, None, periods, "data")
        self.fingerprints = [str(t) for t in range(periods)]

    def read(self, t: int) -> Period:
        random = torch.Generator().manual_seed(t)
        live = torch.arange(max(0, t - LIFE + 1) * BORN, (t + 1) * BORN) + 1
        item = live[
            torch.cat([torch.arange(len(live)), torch.randint(len(live), (40,), generator=random)])
        ]
        n = len(item)
        user = torch.randint(1, USERS + t + 1, (n,), generator=random)
        user[0] = USERS + t
        lists = {
            "words": torch.stack([item, item.flip(0)], 1).int(),
            "history": torch.zeros(n, 3).int(),
        }
        lists["history"][:, 0] = live[torch.randint(len(live), (n,), generator=random)]
        rows = Batch(
            torch.stack([user, item], 1).int(),
            lists,
            torch.zeros(n, 0),
            torch.randint(2, (n,), generator=random),
            torch.randint(2, (n,), generator=random).float(),
        )
        return Period(t, str(t), self.roles[t], rows)


class Watch(Updater):
    """Keeps the tables and moments before and after each training's growth."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def starting_weights(self, module, weights):
        named = [name for name, _ in module.backbone.named_parameters()]
        state = module.optimizer_state or {"state": {}}
        found = {name: value.clone() for name, value in weights.items()}
        for index, entry in state["state"].items():
            found |= {
                f"{named[index]}/{key}": entry[key].clone() for key in ("exp_avg", "exp_avg_sq")
            }
        self.seen.append(found | {f"ids.{name}": ids for name, ids in module.ids.items()})
        return weights


def adam() -> partial:
    return instantiate(
        OmegaConf.load(CONF / "optimizer" / "adam.yaml"), _partial_=True, _convert_="all"
    )


def backbone_of(name: str, schema: Schema) -> Backbone:
    made = instantiate(
        OmegaConf.load(CONF / "model" / f"{name}.yaml"), _partial_=True, _convert_="all"
    )
    return made(schema=schema, seed=0)


def go(
    folder: Path,
    roster: Roster,
    updaters: Sequence[Updater] = (),
    backbone: str = "embedding_mlp",
    periods: int = 9,
    unknown_rate: float = 0.05,
) -> tuple[list[Row], ScenarioModule]:
    source = Living(periods)
    named = {str(i): updater for i, updater in enumerate(updaters or [Finetune()])}
    module = ScenarioModule(backbone_of(backbone, source.schema), named, adam(), 2)
    stream = PeriodStream(source, 16, roster, unknown_rate)
    trainer = partial(L.Trainer, accelerator="cpu")
    return run(stream, module, trainer, RunFolder(folder), ABOUT), module


@pytest.mark.parametrize("backbone", ["shared_bottom", "star"])
@pytest.mark.parametrize(
    "updater",
    [Finetune, IncCTR, IncMSR, partial(BatchWindow, 2)],
    ids=["finetune", "incctr", "incmsr", "batch"],
)
def test_growing_and_fixed_score_rows_of_known_ids_the_same(backbone, updater, tmp_path):
    source = Living(9)
    for vocabulary in ("growing", "fixed"):
        go(tmp_path / vocabulary, Roster(source.schema, vocabulary), [updater()], backbone)
    compared = 0
    for t in range(3, 9):
        logits, rosters = {}, {}
        for vocabulary in ("growing", "fixed"):
            rosters[vocabulary] = roster = Roster(source.schema, vocabulary)
            for earlier in range(t):
                roster.see(source.read(earlier))
            roster.admit()
            model = backbone_of(backbone, source.schema).eval()
            weights = load_file(tmp_path / vocabulary / f"serving/period={t:04d}.safetensors")
            module = ScenarioModule(model, {}, adam(), 2)
            module.restore({name: w.clone() for name, w in weights.items()}, None, {})
            with torch.no_grad():
                logits[vocabulary] = model(roster.translate(source.read(t).rows)).logit
        rows, sizes = source.read(t).rows, {v: len(i) for v, i in rosters["growing"].ids.items()}
        known = (rows.fields < torch.tensor([sizes["user"], sizes["item"]])).all(1)
        known &= (rows.lists["words"] < sizes["word"]).all(1)
        known &= (rows.lists["history"] < sizes["item"]).all(1)
        assert 0 < known.sum() < len(known)
        compared += int(known.sum())
        assert torch.equal(logits["growing"][known], logits["fixed"][known])
        assert not torch.equal(logits["growing"][~known], logits["fixed"][~known])
    assert compared > 100


@pytest.mark.parametrize("chosen", [{}, {"admission": 2, "expiry": 3}], ids=["all", "admission"])
def test_a_table_that_grew_keeps_old_rows_and_their_moments_to_the_last_bit(chosen, tmp_path):
    source, watch = Living(9), Watch()
    go(tmp_path, Roster(source.schema, **chosen), [watch])
    roster = Roster(source.schema, **chosen)
    for t in range(3):
        roster.see(source.read(t))
    held = {name: ids.clone() for name, ids in roster.admit().items()}
    grew = shrank = 0
    for t, seen in enumerate(watch.seen[1:], start=3):
        before = load_file(tmp_path / f"serving/period={t:04d}.safetensors")
        for name in ("user", "item", "word"):
            table, ids = f"embedding.tables.{name}", seen[f"ids.{name}"]
            stayed = torch.isin(ids, held[name])
            old = (held[name][None] == ids[stayed][:, None]).int().argmax(1)
            assert torch.equal(seen[table][stayed], before[table][old])
            fresh = EmbeddingMLP(source.schema, 0).embedding.initial(name, ids[~stayed], len(ids))
            assert torch.equal(seen[table][~stayed], fresh)
            for moment in ("exp_avg", "exp_avg_sq"):
                assert len(seen[f"{table}/{moment}"]) == len(ids)
                assert not seen[f"{table}/{moment}"][~stayed].any()
                assert seen[f"{table}/{moment}"][stayed].any()
            grew, shrank = grew + int((~stayed).sum()), shrank + int(len(held[name]) - stayed.sum())
            held[name] = ids.clone()
    assert grew > 0
    assert (shrank > 0) == bool(chosen)


def test_moments_of_rows_that_stay_move_with_them():
    source = Living(5)
    model = EmbeddingMLP(source.schema, 0)
    module = ScenarioModule(model, {}, adam(), 2)
    module.follow(
        {"user": torch.arange(4), "item": torch.tensor([0, 3, 5, 6]), "word": torch.arange(3)}
    )
    optimizer = module.configure_optimizers()
    model(
        Batch(
            torch.tensor([[1, 1], [3, 2]]),
            {n: torch.ones(2, k).int() for n, k in (("words", 2), ("history", 3))},
            torch.zeros(2, 0),
            torch.zeros(2).long(),
            torch.ones(2),
        )
    ).logit.sum().backward()
    optimizer.step()
    module.optimizer_state = optimizer.state_dict()
    table = model.embedding.table("item").detach().clone()
    index = [name for name, _ in model.named_parameters()].index("embedding.tables.item")
    moment = module.optimizer_state["state"][index]["exp_avg"].clone()
    module.follow({**module.ids, "item": torch.tensor([0, 5, 6, 2, 9])})
    assert torch.equal(model.embedding.table("item")[:3], table[[0, 2, 3]])
    after = module.optimizer_state["state"][index]["exp_avg"]
    assert torch.equal(after[:3], moment[[0, 2, 3]])
    assert not after[3:].any()
    assert module.optimizer_state["state"][index]["step"] == 1


def test_with_admission_and_expiry_the_tables_follow_the_live_ids_over_fifty_periods(tmp_path):
    periods, n = 50, 2
    source = Living(periods)
    roster = Roster(source.schema, admission=2, expiry=n)
    sizes: list[dict[str, int]] = []

    class Size(Updater):
        def serving_weights(self, module, weights):
            sizes.append({v: len(weights[f"embedding.tables.{v}"]) for v in ("item", "word")})
            return weights

    go(tmp_path, roster, [Size()], periods=periods)
    for t, size in zip(range(2, periods), sizes, strict=True):
        count: dict[int, int] = {}
        last: dict[int, int] = {}
        for s in range(t + 1):  # row by row, from the definition
            for item in source.read(s).rows.fields[:, 1].tolist():
                count[item] = count.get(item, 0) + 1
                last[item] = s
            count = {i: c for i, c in count.items() if s - last[i] < n}
        assert size["item"] == 1 + sum(c >= 2 for c in count.values())
    most = (LIFE + n) * BORN + 1
    assert len(source.schema.vocabularies) == 3
    assert all(LIFE * BORN - BORN < size["item"] <= most for size in sizes[LIFE:])
    assert source.schema.vocabularies["item"] > 5 * most
    assert (tmp_path / f"serving/period={periods:04d}.ids.safetensors").exists()
    ids = load_file(tmp_path / f"serving/period={periods:04d}.ids.safetensors")["item"]
    assert len(ids) == sizes[-1]["item"]
    assert ids[1:].min() > (periods - LIFE - n) * BORN


def test_a_run_with_admission_and_expiry_goes_on_to_the_same_bytes(tmp_path):
    def roster(periods: int) -> Roster:
        return Roster(Living(periods).schema, admission=2, expiry=2)

    go(tmp_path / "whole", roster(9), periods=9)
    for periods in (4, 5, 7, 9):
        go(tmp_path / "daily", roster(periods), periods=periods)
    for name in (
        "results.csv",
        "serving/period=0009.safetensors",
        "serving/period=0009.ids.safetensors",
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "daily" / name).read_bytes()


def test_fixed_takes_in_a_day_with_new_ids_as_well(tmp_path):
    go(tmp_path / "whole", Roster(Living(9).schema, "fixed"), periods=9)
    for periods in (4, 6, 9):
        go(tmp_path / "daily", Roster(Living(periods).schema, "fixed"), periods=periods)
    for name in ("results.csv", "serving/period=0009.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "daily" / name).read_bytes()


def test_an_id_without_a_row_is_read_as_unknown_and_in_a_list_as_padding():
    source = Living(9)
    roster = Roster(source.schema)
    roster.see(source.read(0))
    roster.admit()
    rows = source.read(6).rows
    translated = roster.translate(rows)
    limits = torch.tensor([len(roster.ids["user"]), len(roster.ids["item"])])
    assert torch.equal(translated.fields, torch.where(rows.fields < limits, rows.fields, 0))
    assert not translated.lists["words"].any()
    assert roster.translate(source.read(0).rows).fields.equal(source.read(0).rows.fields)


def test_the_unknown_row_is_trained_by_a_share_of_the_values(tmp_path):
    for rate in (0.0, 0.2):
        _, module = go(tmp_path / str(rate), Roster(Living(9).schema), unknown_rate=rate)
        fresh = module.initial_weights["embedding.tables.user"][0]
        moved = not torch.equal(module.backbone.state_dict()["embedding.tables.user"][0], fresh)
        assert moved == (rate > 0)
    stream = PeriodStream(Living(9), 16, unknown_rate=0.2)
    period = Living(9).read(0)
    for name, ids in [(v, torch.arange(200)) for v in ("user", "item", "word")]:
        stream.roster.ids[name] = ids
    for batch in stream.loader(period, seed=1):
        cells = batch.fields.numel()
        assert 0.5 * 0.2 * cells < (batch.fields == 0).sum() <= round(0.2 * cells)
    assert not any((batch.fields == 0).any() for batch in stream.loader(period))
    assert not (period.rows.fields == 0).any()  # the period itself is never changed


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocabulary": "shrinking"}, "vocabulary=shrinking: give growing or fixed"),
        ({"admission": 0}, "admission=0: give a whole number from 1"),
        ({"expiry": 0}, "expiry=0: give a whole number from 1, or null for never"),
        ({"vocabulary": "fixed", "expiry": 3}, "set vocabulary=growing for admission=1, expiry=3"),
    ],
)
def test_a_wrong_setting_is_said(settings, sentence):
    with pytest.raises(Mistake, match=sentence):
        Roster(Living(9).schema, **settings)


def test_what_the_historys_items_bring_counts_as_no_appearance():
    words = {"words": ListField("word", 1), "history": ListField("item", 2)}
    lists = words | {"history.words": ListField("word", 2)}
    schema = Schema({"item": 9, "word": 9}, {"item": "item"}, lists, [], ["all"])
    roster = Roster(schema, admission=2)
    ids = {"words": [[1], [2]], "history": [[0, 0], [3, 3]], "history.words": [[0, 0], [1, 1]]}
    held = {name: torch.tensor(rows, dtype=torch.int32) for name, rows in ids.items()}
    fields = torch.tensor([[3], [3]], dtype=torch.int32)
    rows = Batch(fields, held, torch.zeros(2, 0), torch.zeros(2).long(), torch.ones(2))
    roster.see(Period(0, "0", assign_roles(1, 0, None, 1, "data")[0], rows))
    admitted = roster.admit()
    assert admitted["item"].tolist() == [0, 3]
    assert admitted["word"].tolist() == [0]
    assert not roster.translate(rows).lists["history.words"].any()
