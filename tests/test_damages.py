"""Whatever is wrong with a log or its yaml: read, or refused in a sentence; no store is half done."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from incrs import settings as settings_of
from incrs.data.log import LogSource
from incrs.data.store import Store
from incrs.door import made
from incrs.environment import CONF
from incrs.errors import Mistake
from incrs.explaining import TOLD, explain

OPTIONS: dict[str, Any] = {
    "name": "shop",
    "path": "log",
    "store": "store",
    "files": ["one.csv", "two.csv.gz", "three.parquet", "four.json"],
    "time": "at",
    "label": "click",
    "user": "user",
    "item": "item",
    "categorical": ["brand"],
    "multivalued": {"tags": "|"},
    "numeric": ["price"],
    "scenario": "tab",
    "joins": [{"file": "items.csv", "key": "item"}],
    "history": 3,
    "pretrain": 2,
}
KNOWN = sorted(yaml.safe_load((CONF / "data" / "log.yaml").read_text()))
DAMAGES = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def rows(part: int) -> pl.DataFrame:
    """Return 20 rows of two days, as text."""
    dice = random.Random(part)
    first = 1_600_041_600 + 2 * 86_400 * part
    made = [
        {
            "at": str(first + 8_000 * k + dice.randrange(99)),
            "user": f"u{dice.randrange(6)}",
            "item": f"i{dice.randrange(9)}",
            "tab": dice.choice("ab"),
            "click": dice.choice("01"),
        }
        for k in range(20)
    ]
    return pl.DataFrame(made)


def csv_of(frame: pl.DataFrame) -> bytes:
    return frame.write_csv().encode()


def parquet_of(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out)
    return out.getvalue()


def json_of(frame: pl.DataFrame) -> bytes:
    return frame.write_ndjson().encode()


ITEMS = pl.DataFrame(
    {
        "item": [f"i{k}" for k in range(8)],
        "brand": [f"b{k % 3}" for k in range(8)],
        "tags": ["|".join("xyz"[: k % 4]) for k in range(8)],
        "price": [str(k * k) for k in range(8)],
    }
)
FILES: dict[str, tuple[pl.DataFrame, Callable[[pl.DataFrame], bytes]]] = {
    "one.csv": (rows(0), csv_of),
    "two.csv.gz": (rows(1), csv_of),  # packed once it is damaged, or before
    "three.parquet": (rows(2), parquet_of),
    "four.json": (rows(3), json_of),
    "items.csv": (ITEMS, csv_of),
}
WHOLE = {name: write(frame) for name, (frame, write) in FILES.items()}

Frame = Callable[[pl.DataFrame], pl.DataFrame]
Bytes = Callable[[bytes], bytes]
SCRAPS = [
    *(
        b'"',
        b",",
        b";",
        b"\t",
        b"|",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"\0" * 50,
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(
        "é".encode("latin-1"),
        "é".encode(),
        b"\xff\xfea\0",
        b"1e999",
        b"-1e400",
        b"9" * 400,
        b"nan",
        b"inf",
        b" ",
    ),
    *(
        b"0x1F",
        b"1_000",
        b"-",
        b"--",
        b"''",
        b'""',
        b'"a\nb"',
        b"\\N",
        b"NULL",
        b"#",
        b"=1+1",
        b"\x1a",
        b"\x1f\x8b",
    ),
]
WORDS = [
    "",
    " ",
    "x",
    "0",
    "-1",
    "2",
    "1e999",
    "nan",
    "9" * 40,
    "é",
    "a,b",
    'q"',
    "u1",
    "2020-09-14",
]
PLACE = st.floats(0, 1, exclude_max=True)


@st.composite
def cuts(draw: Any) -> Bytes:
    """Draw a damage of a file's bytes."""
    at, size = draw(PLACE), draw(st.sampled_from([1, 1, 2, 7, 40, 4000]))
    scrap = draw(st.sampled_from(SCRAPS) | st.binary(min_size=1, max_size=9))
    kind = draw(
        st.sampled_from(
            ["flip", "insert", "overwrite", "remove", "truncate", "repeat", "front", "end"]
        )
    )

    def damage(whole: bytes) -> bytes:
        k = int(at * len(whole))
        return {
            "flip": whole[:k] + bytes([whole[k] ^ (1 << size % 8)]) + whole[k + 1 :]
            if whole
            else whole,
            "insert": whole[:k] + scrap + whole[k:],
            "overwrite": whole[:k] + scrap + whole[k + len(scrap) :],
            "remove": whole[:k] + whole[k + size :],
            "truncate": whole[:k],
            "repeat": whole[:k] + whole[k : k + size] + whole[k:],
            "front": scrap + whole,
            "end": whole + scrap,
        }[kind]

    return damage


@st.composite
def tears(draw: Any) -> Frame:
    """Draw a damage of a table's columns, rows or values."""
    kind = draw(
        st.sampled_from(
            [
                "drop",
                "rename",
                "twice",
                "order",
                "shuffle",
                "repeat",
                "none",
                "some",
                "value",
                "null",
                "type",
            ]
        )
    )
    a, b, seed = draw(PLACE), draw(PLACE), draw(st.integers(0, 99))
    word = draw(st.sampled_from(WORDS))
    types = [pl.Float64, pl.Int8, pl.Boolean, pl.Binary, pl.Date, pl.Categorical, pl.Duration("us")]
    dtype = draw(
        st.sampled_from([*types, pl.List(pl.String), pl.Struct({"x": pl.String}), pl.Null])
    )

    def damage(frame: pl.DataFrame) -> pl.DataFrame:
        if not frame.width:
            return frame
        column = frame.columns[int(a * frame.width)]
        if kind == "drop":
            return frame.drop(column)
        if kind == "rename":
            return frame if word in frame.columns else frame.rename({column: word})
        if kind == "twice":
            name = f" {column}" if seed % 2 else f"{column}_duplicated_0"
            return frame if name in frame.columns else frame.with_columns(frame[column].alias(name))
        if kind == "order":
            return frame.select(reversed(frame.columns))
        if kind == "shuffle":
            return frame.sample(fraction=1, shuffle=True, seed=seed)
        if kind == "repeat":
            return pl.concat([frame, frame[: int(b * len(frame))]])
        if kind in ("none", "some"):
            return frame[: int(b * len(frame)) if kind == "some" else 0]
        if kind == "type":
            odd = frame[column].cast(pl.String, strict=False)
            if dtype == pl.Struct:
                return frame.with_columns(pl.struct(x=odd).alias(column))
            if dtype == pl.List:
                return frame.with_columns(odd.reshape((-1, 1)).cast(dtype).alias(column))
            if dtype in (pl.Duration, pl.Date, pl.Boolean, pl.Null):
                odd = pl.Series(
                    [None if seed % 2 or dtype == pl.Null else k % 2 for k in range(len(odd))]
                )
            return frame.with_columns(odd.cast(dtype, strict=False).alias(column))
        where = pl.int_range(pl.len()) == int(b * len(frame))
        new = pl.lit(word if kind == "value" else None, pl.String)
        return frame.with_columns(
            pl.when(where).then(new).otherwise(pl.col(column).cast(pl.String)).alias(column)
        )

    return damage


@st.composite
def broken_files(draw: Any) -> dict[str, bytes]:
    """Draw the files of a log of which one is damaged, in one to three ways."""
    name = draw(st.sampled_from(sorted(FILES)))
    frame, write = FILES[name]
    for damage in draw(st.lists(tears(), max_size=2)):
        frame = damage(frame)
    if write is not parquet_of:
        none = pl.Binary | pl.Duration
        none = none if write is json_of else none | pl.List | pl.Struct
        frame = frame.select(c for c, t in frame.schema.items() if not isinstance(t, none))
    content = write(frame) if frame.width else b""
    damages, packed = draw(st.lists(cuts(), max_size=2)), draw(st.booleans())
    for damage in damages if not packed else []:
        content = damage(content)
    if name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    for damage in damages if packed else []:
        content = damage(content)
    return WHOLE | {"two.csv.gz": gzip.compress(WHOLE["two.csv.gz"], mtime=0)} | {name: content}


SCALARS: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        24,
        10_000,
        10**30,
        -(10**30),
        0.5,
        -0.5,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        " ",
        "x",
        "at",
        "item",
        "tab",
        "brand",
        "price",
        "tags",
        "*",
        "**",
        "*.csv",
        "items.csv",
        "a",
        "1",
    ),
    *(
        ",",
        "|",
        "%",
        "%Y",
        "%Q",
        "iso",
        "ms",
        "hours",
        "count",
        "column",
        "pool",
        "all",
        "none",
        "UTC",
        "Mars/Olympus",
    ),
    *(
        "2020-09-15",
        "2020-13-45",
        "user.name",
        "é",
        "a" * 300,
        "\0",
        "${name}",
        "${nothing}",
        "???",
        "_target_",
    ),
]
VALUES = st.recursive(
    st.sampled_from(SCALARS),
    lambda one: (
        st.lists(one, max_size=3)
        | st.dictionaries(
            st.sampled_from(["file", "key", "columns", "x", "tags", "_target_", "1"]),
            one,
            max_size=3,
        )
    ),
    max_leaves=4,
)


LIKELY = [
    *SCALARS,
    *([one] for one in SCALARS),
    *([one, other] for one, other in zip(SCALARS[4:], SCALARS[3:], strict=False)),
    *({"tags": one} for one in SCALARS),
    *([{"file": one, "key": "item"}] for one in SCALARS),
    *([{"file": "items.csv", "key": one}] for one in SCALARS),
    *([{"url": one}] for one in SCALARS),
    *([{"top": "user", "n": one}] for one in SCALARS),
    *([{"at_least": one, "n": 2}] for one in SCALARS),
    *({"tab": [one]} for one in SCALARS),
]


@cache
def likely(option: str) -> list[Any]:
    """Return values of the types that the option takes."""
    found = []
    for value in LIKELY:
        with suppress(Mistake):
            settings_of.check(LogSource, {option: value}, "data")
            found.append(value)
    return found


@st.composite
def broken_yamls(draw: Any) -> bytes:
    """Draw the yaml of a log with wrong or unknown options, or with damaged text."""
    options = dict(OPTIONS)
    if draw(st.integers(0, 4)):
        changed = draw(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=2))
        for name in changed:
            if name not in ("_target_", "_convert_"):
                options[name] = draw(
                    st.sampled_from(likely(name)) if draw(st.booleans()) else VALUES
                )
        for name in draw(
            st.lists(st.sampled_from(["labell", "_partial_", "1", "x y"]), max_size=1)
        ):
            options[name] = draw(VALUES)
        for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=1)):
            del options[name]
        return text_of(options)
    return draw(cuts())(text_of(options))


def text_of(options: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump({"defaults": ["log"], **options}, allow_unicode=True).encode()


def composed(folder: Path) -> Any:
    """Compose `data=shop` as the doors do, from the yaml in `folder`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(None, ["+data=shop", f"hydra.searchpath=[file://{folder}]"]).data


@contextmanager
def at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def outcome(make: Callable[[], Any]) -> str:
    """Prepare and read the log of a configuration; return what is said, empty where all went well."""
    try:
        source = made(make(), "data")
        source.prepare()
        for t in range(len(source.roles)):
            source.read(t)
    except (*TOLD, ValueError) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return sentence
    return ""


def check_stores(folder: Path) -> None:
    """Assert that below a folder there are whole stores, or none, and nothing half done."""
    written = {
        file.parent for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"
    }
    stores = [file.parent for file in folder.rglob("manifest.json")]
    for place in written - {folder / "log", folder / "conf" / "data"}:
        assert any(place.is_relative_to(store) for store in stores), f"{place} is in no store"
    for place in stores:
        store = Store.open(place)
        assert store
        scale = store.scale(1)
        for t in range(len(store.periods)):
            assert len(store.read(t, *scale).label) == store.periods[t]["rows"]


def tried(files: Mapping[str, bytes], declared: bytes, make: Callable[[], Any] | None) -> str:
    """Return what comes of files and a yaml, in a folder of their own; `make` in place of the yaml."""
    folder = Path(tempfile.mkdtemp())
    try:
        for name, content in {f"log/{k}": v for k, v in files.items()}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / "conf" / "data").mkdir(parents=True)
        (folder / "conf" / "data" / "shop.yaml").write_bytes(declared)
        with at(folder):
            said = outcome(make or (lambda: composed(folder / "conf")))
        assert "\n" not in said and "Traceback" not in said
        check_stores(folder)
        return said
    finally:
        shutil.rmtree(folder)


GOOD = WHOLE | {"two.csv.gz": gzip.compress(WHOLE["two.csv.gz"], mtime=0)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "data").mkdir()
    (folder / "data" / "shop.yaml").write_bytes(text_of(OPTIONS))
    return composed(folder)


def test_the_whole_log_is_read(config: Any) -> None:
    assert tried(GOOD, text_of(OPTIONS), None) == ""
    assert tried(GOOD, b"", lambda: config) == ""


@pytest.mark.slow
def test_a_damaged_file_is_read_or_refused_in_a_sentence(config: Any, capfd: Any) -> None:
    said: dict[bool, int] = {True: 0, False: 0}

    @DAMAGES
    @given(broken_files())
    def damaged(files: dict[str, bytes]) -> None:
        said[bool(tried(files, b"", lambda: config))] += 1

    damaged()
    assert min(said.values()) > 20
    assert not capfd.readouterr().err


@pytest.mark.slow
def test_a_damaged_yaml_is_read_or_refused_in_a_sentence(capfd: Any) -> None:
    said: dict[bool, int] = {True: 0, False: 0}

    @DAMAGES
    @given(broken_yamls())
    def damaged(declared: bytes) -> None:
        said[bool(tried(GOOD, declared, None))] += 1

    damaged()
    assert min(said.values()) > 10
    assert not capfd.readouterr().err
