"""A declaration that does not fit is refused in one sentence that says where to change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from incrs.errors import Mistake
from tests.data.shop import declare, made_up, write

ITEMS = [{"item": "i1", "brand": "b"}, {"item": "i2", "brand": "b"}]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write(folder / "log.csv", [row | {"word": "many"} for row in made_up(60)])
    write(folder / "items.csv", ITEMS)
    write(folder / "twice.csv", ITEMS + ITEMS[:1])
    (folder / "empty.csv").write_text("ts,user,item,click\n")
    (folder / "nothing.csv").write_text("")
    return folder


CASES: dict[str, tuple[dict, list[str]]] = {
    "missing folder": (
        {"path": "/nowhere", "help": "Get it at x.org"},
        ["data.path=/nowhere", "x.org"],
    ),
    "no file": ({"files": "*.parquet", "help": "Get it"}, ["data.files", "*.parquet", "Get it"]),
    "no side file": (
        {"joins": [{"file": "users.csv", "key": "user"}]},
        ["data.joins", "users.csv"],
    ),
    "only side files": (
        {"files": "items*", "joins": [{"file": "items.csv", "key": "item"}]},
        ["data.files"],
    ),
    "time column": ({"time": "tss"}, ["data.time", "'tss'", "log.csv", "did you mean ts?"]),
    "label column": ({"label": "clicks"}, ["data.label", "did you mean click?"]),
    "user column": ({"user": "person"}, ["data.user", "columns: ts, user, item"]),
    "field column": ({"categorical": ["prize"]}, ["data.categorical", "did you mean price?"]),
    "number column": ({"numeric": ["x"]}, ["data.numeric", "'x'"]),
    "period column": (
        {"period": "column", "period_column": "week"},
        ["data.period_column", "'week'"],
    ),
    "join key": ({"joins": [{"file": "items.csv", "key": "product"}]}, ["data.joins", "'product'"]),
    "join's column": (
        {"joins": [{"file": "items.csv", "key": "item", "columns": ["brnd"]}]},
        ["data.joins", "items.csv", "did you mean brand?"],
    ),
    "join's own key": (
        {
            "categorical": ["brand"],
            "joins": [{"file": "items.csv", "key": "item", "file_key": "id"}],
        },
        ["data.joins", "'id'"],
    ),
    "join's options": ({"joins": [{"table": "items.csv"}]}, ["data.joins", "file and key"]),
    "key twice": (
        {"categorical": ["brand"], "joins": [{"file": "twice.csv", "key": "item"}]},
        ["twice.csv", "'i1' comes 2 times"],
    ),
    "column twice": (
        {
            "categorical": ["brand"],
            "joins": [{"file": "items.csv", "key": "item"}, {"file": "twice.csv", "key": "item"}],
        },
        ["brand", "items.csv and twice.csv"],
    ),
    "label values": ({"label": "price"}, ["data.label", "an empty value", "data.label_threshold"]),
    "label words": ({"label": "word"}, ["data.label", "'many'"]),
    "rating missing": ({"label": "price", "label_threshold": 3}, ["data.label", "an empty value"]),
    "time values": ({"time": "item"}, ["data.time", "60 values", "'i", "data.time_unit"]),
    "time unit values": ({"time_unit": "iso"}, ["read as iso"]),
    "day values": ({"day": "word"}, ["data.day", "data.day_format"]),
    "number values": ({"numeric": ["word"]}, ["data.numeric", "'many'", "data.categorical"]),
    "scenario values": (
        {"scenario": "tab", "scenarios": ["x", "q"]},
        ["data.scenarios", "'q'", "it has"],
    ),
    "scenarios alone": ({"scenarios": [1]}, ["data.scenarios", "data.scenario"]),
    "pool of what": ({"scenario": "tab", "scenario_rest": "pool"}, ["data.scenario_rest"]),
    "too few days": ({"pretrain": 7}, ["7 periods", "data.pretrain=7"]),
    "empty log": ({"files": "empty.csv"}, ["empty.csv", "no row"]),
    "empty file": ({"files": "nothing.csv"}, ["nothing.csv", "cannot be read"]),
    "empty span": ({"start": "2030-01-01"}, ["no row", "data.start=2030-01-01"]),
    "start": ({"start": "May"}, ["data.start=May", "2022-04-25"]),
    "timezone": ({"timezone": "Oslo"}, ["data.timezone=Oslo", "Europe/Oslo"]),
    "period": ({"period": "week"}, ["data.period=week", "day, hours, count, column"]),
    "hours": ({"period": "hours", "period_hours": [10, 17]}, ["data.period_hours=[10, 17]"]),
    "hours of a day column": (
        {"period": "hours", "period_hours": [0], "day": "word"},
        ["data.day"],
    ),
    "count": ({"period": "count"}, ["data.period_count=None"]),
    "count above rows": ({"period": "count", "period_count": 99}, ["0 periods"]),
    "no period column": ({"period": "column"}, ["data.period_column"]),
    "time unit": ({"time_unit": "seconds"}, ["data.time_unit=seconds", "s, ms, us, ns"]),
    "rest": ({"scenario_rest": "keep"}, ["data.scenario_rest=keep", "drop, pool"]),
    "negatives from": ({"negatives_from": "top"}, ["data.negatives_from=top", "seen, all"]),
    "transform": ({"numeric_transform": "sqrt"}, ["data.numeric_transform=sqrt", "log, none"]),
    "time fields": ({"time_fields": ["minute"]}, ["minute", "hour, weekday"]),
    "positives alone": ({"label": None}, ["data.label=null", "data.negatives=1"]),
    "label and negatives": ({"negatives": 2}, ["data.negatives=2", "data.label=null"]),
    "negatives of what": ({"label": None, "negatives": 1, "item": None}, ["data.item"]),
    "history of whom": ({"history": 3, "user": None}, ["data.history=3", "data.user"]),
    "history length": ({"history": -1}, ["data.history=-1", "at least 0"]),
    "declared twice": ({"categorical": ["tab"], "numeric": ["tab"]}, ["tab", "declared twice"]),
    "no field": ({"user": None, "item": None}, ["at least one"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(shop: Path, tmp_path: Path, case: str):
    changes, words = CASES[case]
    source = declare(shop, **({"files": "log.csv", "store": str(tmp_path)} | changes))
    with pytest.raises(Mistake) as caught:
        source.prepare()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix != ".lock"]


def test_a_later_part_without_a_column_is_named(shop: Path, tmp_path: Path):
    write(tmp_path / "log1.csv", made_up(9))
    write(tmp_path / "log2.csv", [{"ts": 1, "user": "a", "item": "i"}])
    with pytest.raises(Mistake, match=r"'click' in log2\.csv"):
        declare(tmp_path).prepare()


def test_a_store_that_cannot_be_written_is_named(shop: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match=r"data\.store"):
        declare(shop, files="log.csv", store=str(tmp_path / "file")).prepare()
