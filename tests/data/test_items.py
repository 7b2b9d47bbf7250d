"""What is known of items follows them: into the history, and with the negatives; by a slow reading."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from incrs.data.log import LogSource
from incrs.data.profile import Profiles
from incrs.errors import Mistake
from tests.data.shop import ITEMS, declare, made_up, read_all, same, write
from tests.data.test_growing import by_day, contents, put

JOINED = {
    "categorical": ["brand"],
    "multivalued": {"genre": "|"},
    "multivalued_length": 3,
    "joins": [{"file": "items.csv", "key": "item"}],
    "history": 4,
    "history_of": ["genre", "brand"],
}
OWN = JOINED | {"joins": [], "label": None, "negatives": 2}


def words(source: LogSource, name: str) -> list[str | None]:
    return [None, *pl.read_parquet(source.folder / "vocab" / f"{name}.parquet")["value"]]


def with_columns(rows: list[dict]) -> list[dict]:
    """The same log with the items' columns in itself."""
    table = {row["item"]: row for row in ITEMS}
    empty = {"genre": "", "brand": ""}
    return [row | {k: table.get(row["item"], empty)[k] for k in empty} for row in rows]


def check(source: LogSource) -> None:
    """Compare every list about the history with the table of items."""
    periods = read_all(source)
    assert list(source.schema.lists) == ["history", "genre", "history.genre", "history.brand"]
    assert source.schema.lists["history.genre"].length == 12
    assert source.schema.lists["history.genre"].vocabulary == "genre"
    item, genre, brand = (words(source, name) for name in ("item", "genre", "brand"))
    table = {row["item"]: row for row in ITEMS}
    empty = {"genre": "", "brand": ""}
    held = 0
    for period in periods:
        lists = period.rows.lists
        for k in range(len(period)):
            history = lists["history"][k].tolist()
            genres = lists["history.genre"][k].view(4, 3).tolist()
            brands = lists["history.brand"][k].tolist()
            for i, some, one in zip(history, genres, brands, strict=True):
                row = table.get(item[i], empty)
                assert [genre[g] for g in some if g] == [x for x in row["genre"].split("|") if x][
                    :3
                ]
                assert (brand[one] or "") == row["brand"]
                held += i > 0
            row = table.get(item[period.rows.fields[k, 1]], empty)
            assert (brand[period.rows.fields[k, 2]] or "") == row["brand"]
            assert [genre[g] for g in lists["genre"][k].tolist() if g] == [
                x for x in row["genre"].split("|") if x
            ][:3]
    assert held > 100


def test_the_historys_items_bring_what_the_table_says_of_them(tmp_path: Path):
    write(tmp_path / "log.csv", made_up())
    write(tmp_path / "items.csv", ITEMS)
    check(declare(tmp_path, **JOINED))


@pytest.mark.parametrize("choice", ["seen", "all"])
def test_the_logs_own_columns_of_an_item_follow_negatives_and_history(tmp_path: Path, choice: str):
    write(tmp_path / "log.csv", with_columns(made_up()))
    check(declare(tmp_path, **OWN, negatives_from=choice))


def test_columns_that_are_not_the_items_stay_with_the_positive(tmp_path: Path):
    write(tmp_path / "log.csv", with_columns(made_up()))
    options = OWN | {"history_of": [], "item_columns": ["genre"]}
    source = declare(tmp_path, **options)
    genre, table = words(read_all(source) and source, "genre"), {row["item"]: row for row in ITEMS}
    item, stays = words(source, "item"), 0
    for period in read_all(source):
        last = 0
        for k, label in enumerate(period.rows.label.tolist()):
            row = table.get(item[period.rows.fields[k, 1]], {"genre": ""})
            held = [genre[g] for g in period.rows.lists["genre"][k].tolist() if g]
            assert held == [x for x in row["genre"].split("|") if x][:3]
            last = period.rows.fields[k, 2] if label else last
            assert period.rows.fields[k, 2] == last
            stays += not label
    assert stays > 100


def test_an_item_keeps_the_values_of_its_first_row(tmp_path: Path):
    rows = [
        {"ts": 86_400 * k + 40_000, "user": "a", "item": "i", "click": 1, "brand": f"b{k}"}
        for k in range(4)
    ]
    write(tmp_path / "log.csv", rows)
    source = declare(tmp_path, categorical=["brand"], history=2, history_of=["brand"])
    got = [period.rows.lists["history.brand"].tolist() for period in read_all(source)]
    assert got == [[[0, 0]], [[1, 0]], [[1, 1]], [[1, 1]]]


@pytest.mark.parametrize("options", [JOINED, OWN])
def test_days_that_are_added_give_the_store_made_at_once(tmp_path: Path, options: dict):
    rows = made_up(200)
    days = by_day(rows if options["joins"] else with_columns(rows))
    write(tmp_path / "items.csv", ITEMS)
    grown = declare(tmp_path, **options, store=str(tmp_path / "grown"))
    put(tmp_path, days, *list(days)[:2])
    for name in list(days)[2:]:
        grown.prepare()
        put(tmp_path, days, name)
    once = declare(tmp_path, **options, store=str(tmp_path / "once"))
    both = read_all(grown), read_all(once)
    assert all(same(a, b) for a, b in zip(*both, strict=True))
    assert contents(grown.folder) == contents(once.folder)


def test_a_log_without_them_keeps_its_prepared_store(tmp_path: Path):
    write(tmp_path / "log.csv", made_up(40))
    plain, other = declare(tmp_path, history=2), declare(tmp_path, history=2, history_of=["tab"])
    other.categorical = ["tab"]
    plain.categorical = ["tab"]
    for source in (plain, other):
        source.prepare()
    assert plain.folder != other.folder
    assert set(other.schema.lists) - set(plain.schema.lists) == {"history.tab"}
    assert torch.equal(plain.read(0).rows.lists["history"], other.read(0).rows.lists["history"])


def test_profiles_of_one_and_many():
    profiles = Profiles({"kind": 1, "tags": 2})
    items = torch.tensor([2, 1, 2, 3]).int().numpy()
    profiles.learn("kind", items, torch.tensor([7, 8, 9, 5]).int().numpy())
    profiles.learn("tags", items, torch.tensor([[1, 2], [3, 0], [4, 4], [0, 0]]).int().numpy())
    again = Profiles({"kind": 1, "tags": 2})
    again.restore(profiles.state())
    asked = torch.tensor([[3, 2], [0, 1]]).int().numpy()
    for each in (profiles, again):
        assert each.of("kind", asked).tolist() == [[5, 7], [0, 8]]
        assert each.of("tags", asked).tolist() == [[0, 0, 1, 2], [0, 0, 3, 0]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"history_of": ["tab"], "categorical": ["tab"]}, r"data\.history_of.*data\.history"),
        ({"history": 2, "history_of": ["tab"]}, r"data\.history_of: 'tab' must be one of"),
        (
            {"history": 2, "history_of": ["item"], "categorical": ["item"]},
            r"data\.history_of: 'item'",
        ),
        ({"item_columns": ["price"], "numeric": ["price"]}, r"data\.item_columns: 'price'"),
        (
            {"history": 2, "history_of": ["tab"], "categorical": ["tab", "history.tab"]},
            r"history\.tab is declared twice",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, changes: dict, said: str):
    write(tmp_path / "log.csv", made_up(9))
    with pytest.raises(Mistake, match=said):
        declare(tmp_path, **changes).prepare()
