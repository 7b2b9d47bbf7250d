"""Logs of one JSON object a line: the same periods as from CSV, and damaged lines in a sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from incrs.data import raw
from incrs.data.raw import columns_of, pieces
from incrs.errors import Mistake
from tests.data.shop import ITEMS, declare, made_up, read_all, same, write

FIELDS = {"categorical": ["brand"], "numeric": ["price"], "scenario": "tab", "history": 3}
JOIN = {"key": "item", "columns": ["brand"]}
LINE = b'{"ts": 1616799600, "user": "a", "item": "i1", "tab": "x", "click": 1, "price": 3}\n'


def spell(row: dict) -> str:
    """A row as JSON: numbers and text, and no key where the CSV has nothing."""
    typed = {k: float(v) if k == "price" else v for k, v in row.items() if v != ""}
    return json.dumps(typed | {"nested": {"price": [1, "x"]}})


def lines(rows: list[dict]) -> bytes:
    return "".join(spell(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["log.json", "log.jsonl", "log.ndjson.gz", "log_2021"])
def test_json_lines_are_the_same_log_as_csv(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    rows = made_up(120)
    write(tmp_path / "a" / "log.csv", rows)
    write(tmp_path / "a" / "items.csv", ITEMS)
    (tmp_path / "b").mkdir()
    content = lines(rows)
    packed = gzip.compress(content) if name.endswith("gz") else content
    (tmp_path / "b" / name).write_bytes(packed)
    (tmp_path / "b" / "items.json").write_bytes(lines([r | {"ts": 0} for r in ITEMS]))
    plain = read_all(declare(tmp_path / "a", **FIELDS, joins=[JOIN | {"file": "items.csv"}]))
    options = FIELDS | {"joins": [JOIN | {"file": "items.json"}]}
    if "." not in name:
        options |= {"format": "json"}
    for block, piece in ((1 << 20, 8 << 20), (37, 200)):
        monkeypatch.setattr(raw, "BLOCK", block)
        monkeypatch.setattr(raw, "PIECE", piece)
        other = read_all(declare(tmp_path / "b", **options, store=str(tmp_path / str(block))))
        assert all(same(a, b) for a, b in zip(plain, other, strict=True))


def test_a_key_that_comes_late_is_found_and_one_that_never_comes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(raw, "BLOCK", 100)
    monkeypatch.setattr(raw, "PIECE", 300)
    (tmp_path / "log.json").write_bytes(LINE * 30 + LINE.replace(b'"price"', b'"late"'))
    file = tmp_path / "log.json"
    assert "late" not in columns_of(file, ",")
    assert "late" in columns_of(file, ",", None, ["late"])
    assert "never" not in columns_of(file, ",", None, ["never"])
    read = [value for piece in pieces(file, ",", ["late"]) for value in piece["late"]]
    assert read == [None] * 30 + ["3"]
    source = declare(tmp_path, categorical=["never"])
    with pytest.raises(
        Mistake, match=r"data\.categorical: there is no column 'never' in log\.json"
    ):
        source.prepare()


BAD: dict[str, tuple[bytes, str]] = {
    "half a line at the end": (LINE * 3 + LINE[:30], "line 4"),
    "half a line in between": (LINE * 2 + LINE[:30] + b"\n" + LINE * 3, "line 3"),
    "two objects in a line": (LINE + LINE[:-1] + LINE, "line 2"),
    "no object": (LINE * 4 + b"[1, 2]\n", "line 5"),
    "an array of objects": (b"[" + LINE + b"," + LINE + b"]\n", "line 1"),
    "an open quote": (LINE + b'{"user": "a}\n' + LINE, "line 2"),
    "words": (LINE * 40 + b"hello\n", "line 41"),
    "not a number": (LINE + b'{"ts": NaN}\n', "line 2"),
    "latin-1": (LINE + LINE.replace(b'"a"', b'"\xe5"') + LINE, "line 2"),
    "a nul": (LINE + LINE.replace(b'"a"', b'"\0"'), "line 2"),
    "nothing": (b"", "line 1"),
    "a time that is none": (LINE + LINE.replace(b"1616799600", b'"noon"'), "data.time: 1 values"),
    "no time": (LINE + LINE.replace(b'"ts"', b'"when"'), "data.time: 1 values"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("piece", [8 << 20, 150])
def test_a_damaged_line_is_named_and_leaves_nothing(
    tmp_path: Path, case: str, piece: int, monkeypatch: pytest.MonkeyPatch
):
    content, words = BAD[case]
    monkeypatch.setattr(raw, "PIECE", piece)
    monkeypatch.setattr(raw, "BLOCK", min(piece, 1 << 20))
    (tmp_path / "log1.json").write_bytes(lines(made_up(20)))
    (tmp_path / "log2.json").write_bytes(content)
    with pytest.raises(Mistake) as caught:
        declare(tmp_path).prepare()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "log2.json" in sentence
    assert words in sentence
    assert not [f for f in (tmp_path / "store").rglob("*") if f.is_file() and f.suffix != ".lock"]


def test_half_a_gzip_is_named(tmp_path: Path):
    (tmp_path / "log.json.gz").write_bytes(gzip.compress(LINE * 99)[:-9])
    with pytest.raises(Mistake, match=r"log\.json\.gz cannot be read"):
        declare(tmp_path).prepare()


def test_line_ends_a_mark_and_blank_lines_are_no_damage(tmp_path: Path):
    rows = made_up(30)
    for name, content in (
        ("a", lines(rows)),
        ("b", b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n").rstrip()),
        ("c", lines(rows).replace(b"\n", b"\n\n")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.json").write_bytes(content)
    one, two, three = (read_all(declare(tmp_path / name)) for name in "abc")
    assert sum(map(len, one)) == 30
    assert all(same(a, b) and same(a, c) for a, b, c in zip(one, two, three, strict=True))
