"""What every log in conf/data must keep: packed tensors, ids by first appearance, past statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from incrs.data.base import Source
from incrs.period import Batch, Period, Role
from tests.conftest import CONF
from tests.data.test_declared import (
    PARTS,
    adressa,
    kuairand,
    load,
    movielens,
    sobazaar,
    tmall,
    yelp,
)
from tests.data.test_kuaisar import kuaisar
from tests.data.test_originals import aliexpress, taobao

MADE: dict[str, Callable[[Path], Source]] = {}
"""How each log is made small here: a new yaml in conf/data adds its own."""


def made(name: str) -> Callable:
    def register(make: Callable[[Path], Source]) -> Callable[[Path], Source]:
        MADE[name] = make
        return make

    return register


@made("synthetic")
def _synthetic(folder: Path) -> Source:
    return load("synthetic", "rows_per_period=300", "users=60", "items=50")  # type: ignore[return-value]


@made("kuairand")
def _kuairand(folder: Path) -> Source:
    kuairand(folder, "pure", PARTS["pure"])
    return load("kuairand", f"path={folder}", f"store={folder}/store")


@made("movielens")
def _movielens(folder: Path) -> Source:
    movielens(folder)
    return load("movielens", f"path={folder}", f"store={folder}/store")


@made("sobazaar")
def _sobazaar(folder: Path) -> Source:
    sobazaar(folder)
    return load("sobazaar", f"path={folder}", f"store={folder}/store")


@made("tmall")
def _tmall(folder: Path) -> Source:
    tmall(folder)
    return load("tmall", f"path={folder}", f"store={folder}/store")


@made("yelp")
def _yelp(folder: Path) -> Source:
    yelp(folder)
    return load("yelp", f"path={folder}", f"store={folder}/store")


@made("adressa")
def _adressa(folder: Path) -> Source:
    adressa(folder)
    return load("adressa", f"path={folder}", f"store={folder}/store", "end=2017-01-21")


@made("kuaisar")
def _kuaisar(folder: Path) -> Source:
    kuaisar(folder)
    return load("kuaisar", f"path={folder}", f"store={folder}/store")


@made("taobao")
def _taobao(folder: Path) -> Source:
    taobao(folder)
    return load("taobao", f"path={folder}", f"store={folder}/store")


@made("aliexpress")
def _aliexpress(folder: Path) -> Source:
    aliexpress(folder)
    return load("aliexpress", f"path={folder}", f"store={folder}/store")


NAMES = sorted({path.stem for path in (CONF / "data").glob("*.yaml")} - {"log"})
every_log = pytest.mark.parametrize("log", NAMES, indirect=True)
Log = tuple[str, Path, Source, list[Period]]


def periods_of(name: str, folder: Path) -> tuple[Source, list[Period]]:
    source = MADE[name](folder)
    source.prepare()
    return source, [source.read(t) for t in range(len(source.roles))]


@pytest.fixture(scope="module")
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A log made small, prepared once for all tests of this file."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, *periods_of(request.param, folder)


@every_log
def test_periods_are_packed_tensors_that_fit_the_schema(log: Log) -> None:
    _, _, source, periods = log
    schema = source.schema
    for t, period in enumerate(periods):
        rows, n = period.rows, len(period)
        assert (period.index, period.role) == (t, source.roles[t])
        assert (rows.fields.dtype, rows.fields.shape) == (torch.int32, (n, len(schema.fields)))
        assert (rows.numbers.dtype, rows.numbers.shape) == (torch.float32, (n, len(schema.numbers)))
        assert (rows.scenario.dtype, rows.label.dtype) == (torch.int64, torch.float32)
        assert rows.fields.is_contiguous()
        assert set(rows.label.tolist()) <= {0.0, 1.0}
        assert 0 <= rows.scenario.min() <= rows.scenario.max() < len(schema.scenarios)
        assert torch.isfinite(rows.numbers).all()
        for column, vocabulary in enumerate(schema.fields.values()):
            assert rows.fields[:, column].min() >= 0
            assert rows.fields[:, column].max() < schema.vocabularies[vocabulary]
        assert set(rows.lists) == set(schema.lists)
        for what, field in schema.lists.items():
            assert rows.lists[what].dtype == torch.int32
            assert rows.lists[what].shape == (n, field.length)
            assert rows.lists[what].max() < schema.vocabularies[field.vocabulary]
        if schema.behaviours:
            assert rows.outcome is not None
            assert rows.outcome.dtype == torch.int8
            assert rows.outcome.shape == (n, len(schema.behaviours))
        else:
            assert rows.outcome is None
    assert {schema.user, schema.item} <= {*schema.fields, None}


@every_log
def test_ids_are_given_in_order_of_first_appearance(log: Log) -> None:
    _, _, source, periods = log
    for column, vocabulary in enumerate(source.schema.fields.values()):
        if any(field.vocabulary == vocabulary for field in source.schema.lists.values()):
            continue  # a list may show an id first
        ids = torch.cat([period.rows.fields[:, column] for period in periods])
        new = torch.cat([torch.tensor([0]), ids.cummax(0).values])
        assert (ids <= new[:-1] + 1).all()


@every_log
def test_numbers_are_standard_on_the_warm_up(log: Log) -> None:
    _, _, source, periods = log
    if source.schema.numbers:
        warm_up = torch.cat([p.rows.numbers for p in periods if p.role is Role.PRETRAIN])
        assert torch.allclose(warm_up.mean(0), torch.zeros(warm_up.shape[1]), atol=0.05)
        spread = warm_up.std(0)
        assert ((spread - 1).abs().lt(0.1) | (spread == 0)).all()


@every_log
def test_a_log_reads_the_same_twice(log: Log) -> None:
    name, folder, source, periods = log
    other, again = periods_of(name, folder)
    assert source.fingerprint == other.fingerprint

    def tensors(rows: Batch) -> list[torch.Tensor]:
        return [rows.fields, *rows.lists.values(), rows.numbers, rows.scenario, rows.label]

    for one, two in zip(periods, again, strict=True):
        pairs = zip(tensors(one.rows), tensors(two.rows), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
