"""A declaration that does not fit is refused in one sentence that says where to change it."""

from __future__ import annotations

import errno
import gzip
import io
import resource
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from incrs.data import publish
from incrs.errors import Mistake
from tests.data.shop import ITEMS as TABLE
from tests.data.shop import declare, made_up, read_all, same, write

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
    "time values": (
        {"time": "item"},
        ["data.time", "60 values", "'i", "log.csv", "data.time_unit"],
    ),
    "time unit values": ({"time_unit": "iso"}, ["read as iso"]),
    "day values": ({"day": "word"}, ["data.day", "data.day_format"]),
    "number values": ({"numeric": ["word"]}, ["data.numeric", "'many'", "data.categorical"]),
    "scenario values": (
        {"scenario": "tab", "scenarios": ["x", "q"]},
        ["data.scenarios", "'q'", "it has"],
    ),
    "scenarios alone": ({"scenarios": [1]}, ["data.scenarios", "data.scenario"]),
    "pool of what": ({"scenario": "tab", "scenario_rest": "pool"}, ["data.scenario_rest"]),
    "too few days": ({"pretrain": 8}, ["7 periods", "data.pretrain=8"]),
    "empty log": ({"files": "empty.csv"}, ["empty.csv", "no row"]),
    "empty file": ({"files": "nothing.csv"}, ["nothing.csv", "empty"]),
    "empty span": ({"start": "2030-01-01"}, ["no row", "data.start=2030-01-01"]),
    "start": ({"start": "May"}, ["data.start=May", "2022-04-25"]),
    "separator": ({"separator": "||"}, ["data.separator='||'"]),
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
    "no time": ({"time": None}, ["data.time=null", "data.period=day", "column or random"]),
    "no time for a history": (
        {"time": None, "period": "random", "period_shares": [1], "history": 3},
        ["data.time=null", "data.history=3"],
    ),
    "no time for a start": (
        {"time": None, "period": "column", "period_column": "tab", "start": "2021-03-27"},
        ["data.time=null", "data.start=2021-03-27"],
    ),
    "shares": (
        {"period": "random", "period_shares": [0.7, 0.2]},
        ["data.period_shares=[0.7, 0.2]", "1 in all"],
    ),
    "seed of the drawing": ({"period_seed": -1}, ["data.period_seed=-1", "from 0"]),
    "no name beside": (
        {"joins": [{"file": {"log.csv": "a/b"}, "key": "item"}]},
        ["data.joins", "no file's name of log.csv"],
    ),
    "no shares": ({"period": "random"}, ["data.period_shares=None"]),
    "more shares than rows": (
        {"period": "random", "period_shares": [0.01] * 100, "pretrain": 99},
        ["periods but data.pretrain=99"],
    ),
    "scenario nowhere": (
        {"scenario": "brnd", "joins": [{"file": "items.csv", "key": "item"}]},
        ["data.scenario", "'brnd'", "log.csv, items.csv", "did you mean brand?"],
    ),
    "label in a table": (
        {"label": "brand", "joins": [{"file": "items.csv", "key": "item"}]},
        ["data.label", "'brand' in log.csv;"],
    ),
    "item's columns in a table": (
        {
            "categorical": ["brand"],
            "item_columns": ["brand"],
            "joins": [{"file": "items.csv", "key": "item"}],
        },
        ["data.item_columns", "'brand' in log.csv;"],
    ),
    "join's header": (
        {"joins": [{"file": "items.csv", "key": "item", "header": ["item", "item"]}]},
        ["data.joins", "header=['item', 'item']"],
    ),
    "a header of other width": (
        {"files": "empty.csv", "file_columns": [{"files": "*", "header": ["ts", "user", "item"]}]},
        ["data.label", "'click' in empty.csv"],
    ),
    "a header with a comma": (
        {"file_columns": [{"files": "*", "header": ["ts,user"]}]},
        ["data.file_columns", "ts,user"],
    ),
    "a line wider than the declared header": (
        {"file_columns": [{"files": "*", "header": ["ts", "user", "item", "click"]}]},
        ["log.csv", "line 1 has 7 values but the declared header has 4"],
    ),
    "two parts of names": (
        {"joins": [{"file": {"log": "users", "a": "b"}, "key": "item"}]},
        ["data.joins", "{PART: OTHER}"],
    ),
    "no table beside": (
        {"joins": [{"file": {"log": "users"}, "key": "item"}], "help": "Get it at x.org"},
        ["data.joins", "log.csv has no table users.csv beside it", "x.org"],
    ),
    "a file whose table has no name": (
        {"joins": [{"file": {"_item_": "_user_"}, "key": "item"}]},
        ["data.joins", "log.csv has no '_item_' in it"],
    ),
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


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pl.DataFrame(rows).write_parquet(out)
    return out.getvalue()


def middle(content: bytes, new: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + new + content[at + len(new) :]


HEADER = b"ts,user,item,tab,click,price\n"
LINE = b"1616799600,a,i1,x,1,3\n"
BAD: dict[str, tuple[str, bytes, list[str]]] = {
    "no byte": (".csv", b"", ["empty"]),
    "no row": (".csv", HEADER, ["has no row, only a header"]),
    "half a header": (".csv", b"ts,us", ["'click'"]),
    "no row in parquet": (".parquet", parquet(made_up(9))[:0], ["cannot be read"]),
    "no row, gzipped": (".csv.gz", gzip.compress(HEADER), ["has no row"]),
    "a broken last line": (
        ".csv",
        HEADER + LINE * 3 + b"16167",
        ["last line, line 5", "whole file"],
    ),
    "a last line broken in a quote": (
        ".csv",
        HEADER + LINE + b'1616799600,a,i1,x,1,"3,',
        ["last line, line 3"],
    ),
    "a last line broken after a line in quotes": (
        ".csv",
        HEADER + b'1616799600,"a\nb",i1,x,1,3\n1616799600,"a\nb",i1,x',
        ["last line, line 5"],
    ),
    "a short line": (
        ".csv",
        HEADER + LINE + b"1616799600,a,i1\n" + LINE,
        ["line 3 has 3 values", "6"],
    ),
    "a long line": (".csv", HEADER + LINE + b"1616799600,a,b,i1,x,1,3\n", ["line 3 has 7 values"]),
    "a long last line": (
        ".csv",
        HEADER + LINE + b"1616799600,a,b,i1,x,1,3",
        ["line 3 has 7 values"],
    ),
    "an empty line": (".csv", HEADER + LINE + b"\n" + LINE, ["line 3 has 1 values"]),
    "latin-1": (".csv", HEADER + LINE + LINE.replace(b"a", b"\xe5"), ["line 3 is not UTF-8"]),
    "half a letter": (".csv", HEADER + LINE[:-1] + b"\xc3", ["cannot be read"]),
    "half a gzip": (".csv.gz", gzip.compress(HEADER + LINE * 9)[:-9], ["cannot be read", "end"]),
    "a flipped byte in gzip": (
        ".csv.gz",
        gzip.compress(HEADER + LINE * 9)[:-6] + b"\0" * 6,
        ["cannot be read"],
    ),
    "half a parquet file": (".parquet", parquet(made_up(9))[:300], ["cannot be read"]),
    "a corrupt parquet file": (
        ".parquet",
        middle(parquet(made_up(999)), b"\x7f" * 500),
        ["cannot be read"],
    ),
    "a time that is none": (
        ".csv",
        HEADER + LINE + LINE.replace(b"1616799600", b"noon"),
        ["data.time: 1 values", "'noon'"],
    ),
    "a label that is none": (".csv", HEADER + LINE.replace(b",1,", b",2,"), ["data.label", "'2'"]),
    "a missing column": (".csv", b"ts,user,item,tab,price\n" + LINE[2:], ["'click'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_in_one_sentence_and_leaves_nothing(tmp_path: Path, case: str):
    kind, content, words = BAD[case]
    write(tmp_path / "log1.csv", made_up(60))
    (tmp_path / f"log2{kind}").write_bytes(content)
    with pytest.raises(Mistake) as caught:
        declare(tmp_path).prepare()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in (f"log2{kind}", *words):
        assert word in sentence
    assert not [f for f in (tmp_path / "store").rglob("*") if f.is_file() and f.suffix != ".lock"]


@pytest.mark.parametrize(
    "hurt",
    [
        lambda whole: whole[:-4],
        lambda whole: whole.replace(b"b1", b"b1,b2", 1),
        lambda whole: whole.replace(b"b1", b"\xff\xfe", 1),
        lambda whole: b"",
    ],
)
def test_a_damaged_side_table_is_named(tmp_path: Path, hurt: Callable[[bytes], bytes]):
    write(tmp_path / "log.csv", made_up(60))
    write(tmp_path / "items.csv", TABLE)
    whole = (tmp_path / "items.csv").read_bytes().replace(b"\r\n", b"\n")
    (tmp_path / "items.csv").write_bytes(hurt(whole))
    joins = [{"file": "items.csv", "key": "item"}]
    with pytest.raises(Mistake, match=r"items\.csv cannot be read"):
        declare(tmp_path, categorical=["genre"], joins=joins).prepare()


def test_quotes_line_ends_and_a_missing_last_newline_are_no_damage(tmp_path: Path):
    rows = [row | {"user": f'{row["user"]}, "the\nfirst"'} for row in made_up(60)]
    write(tmp_path / "a" / "log.csv", rows)  # ends lines with \\r\\n
    (tmp_path / "b").mkdir()
    text = (tmp_path / "a" / "log.csv").read_bytes()
    (tmp_path / "b" / "log.csv").write_bytes(text.replace(b"\r\n", b"\n").rstrip(b"\n"))
    one, two = (read_all(declare(tmp_path / name)) for name in "ab")
    assert sum(map(len, one)) == 60
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_pieces_of_any_size_are_the_same_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [row | {"user": f'{row["user"]}å, "the\nfirst"'} for row in made_up(90)]
    write(tmp_path / "log1.csv", rows[:50])
    (tmp_path / "log2.parquet").write_bytes(
        parquet([row | {"ts": str(row["ts"])} for row in rows[50:]])
    )
    whole = read_all(declare(tmp_path, history=2))
    for block, piece, count in ((30, 1, 1), (41, 1, 9), (100, 300, 13), (5000, 1, 99)):
        for name, size in (("BLOCK", block), ("PIECE", piece), ("ROWS", count)):
            monkeypatch.setattr(f"incrs.data.raw.{name}", size)
        again = read_all(declare(tmp_path, history=2, store=str(tmp_path / f"s{block}")))
        assert all(same(a, b) for a, b in zip(whole, again, strict=True))


FULL = pl.exceptions.ComputeError(
    "parquet: underlying IO error: No space left on device (os error 28)"
)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (pl.DataFrame, "write_parquet"),
        (publish.Path, "write_text"),
        (publish.Path, "rename"),
        (publish.tempfile, "mkdtemp"),
        (publish, "_sync"),
    ],
)
@pytest.mark.parametrize("error", [FULL, OSError(errno.ENOSPC, "No space left on device")])
def test_a_full_disk_is_blamed_on_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place, name: str, error: Exception
):
    write(tmp_path / "log.csv", made_up(60))

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(place, name, full)
    with pytest.raises(Mistake, match=r"data\.store=.*disk is full.*No space left") as caught:
        declare(tmp_path).prepare()
    assert "\n" not in str(caught.value)
    assert not [f for f in (tmp_path / "store").rglob("*") if f.is_file() and f.suffix != ".lock"]


@pytest.mark.parametrize("most", [100, 1000, 1700, 3000])
def test_a_file_too_large_for_the_disk_is_blamed_on_the_store(tmp_path: Path, most: int):
    write(tmp_path / "log.csv", made_up(400))
    whole = read_all(declare(tmp_path, store=str(tmp_path / "whole")))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(Mistake, match=r"data\.store=.*disk is full.*File too large"):
            declare(tmp_path).prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not [f for f in (tmp_path / "store").rglob("*") if f.is_file() and f.suffix != ".lock"]
    again = read_all(declare(tmp_path))
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("time", ["9" * 18, "-" + "9" * 18, "9" * 30, "nan", "inf", "1e300", "é"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "iso", "%Y%m%d"])
def test_a_time_beyond_all_years_does_not_read(tmp_path: Path, time: str, unit: str):
    rows = [row | {"ts": time} for row in made_up(5)]
    write(tmp_path / "log.csv", rows)
    with pytest.raises(
        Mistake, match=rf"data\.time: 5 values of column 'ts' in log\.csv .* {unit}"
    ):
        declare(tmp_path, time_unit=unit).prepare()
