"""A small made-up shop log, and its declaration, for the tests of this folder."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from zoneinfo import ZoneInfo

import torch

from incrs.data.log import LogSource
from incrs.period import Period

OSLO = ZoneInfo("Europe/Oslo")
MIDNIGHT = 1_616_799_600  # 2021-03-27 in Oslo; the clocks go forward in the night of the 28th
DAY = 86_400


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def made_up(n: int = 400, days: int = 6, seed: int = 0) -> list[dict]:
    """Rows in no order, with ties in time (a coarse clock), unknown users and missing prices."""
    dice = random.Random(seed)
    return [
        {
            "ts": MIDNIGHT + 600 * dice.randrange(days * 144),
            "user": dice.choice(["", *"abcdefghij"]),
            "item": f"i{dice.randrange(25)}",
            "tab": dice.choice("xxxyyz"),
            "click": dice.randrange(2),
            "price": dice.choice(["", "3", "0.5", "-7", "120"]),
        }
        for _ in range(n)
    ]


ITEMS = [
    {
        "item": f"i{k}",
        "genre": "|".join("ABCDE"[: 1 + k % 4]),
        "brand": f"b{k % 3}" if k % 5 else "",
    }
    for k in range(20)  # items 20 .. 24 are in no table
]


def declare(folder: Path, **changes) -> LogSource:
    options = {
        "name": "shop",
        "path": str(folder),
        "store": str(folder / "store"),
        "files": "log*",
        "time": "ts",
        "timezone": "Europe/Oslo",
        "label": "click",
        "user": "user",
        "item": "item",
        "pretrain": 2,
    }
    return LogSource(**(options | changes))


def read_all(source: LogSource) -> list[Period]:
    source.prepare()
    return [source.read(t) for t in range(len(source.roles))]


def same(a: Period, b: Period) -> bool:
    lists = a.rows.lists.keys() == b.rows.lists.keys() and all(
        torch.equal(a.rows.lists[name], b.rows.lists[name]) for name in a.rows.lists
    )
    tensors = ("fields", "numbers", "scenario", "label")
    return lists and all(torch.equal(getattr(a.rows, k), getattr(b.rows, k)) for k in tensors)
