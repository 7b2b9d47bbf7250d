"""Every backbone scores a candidate as it scores a row that holds the candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from incrs.catalogue import Catalogue
from incrs.models import base
from incrs.models.base import Backbone
from incrs.period import Batch, Period, Role
from tests.models.toy import BARE, SCHEMA, doubled, fitting, roughen, rows

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
FOLLOWS = replace(SCHEMA, of_item=["kind", "box", "tags", "length"])


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def factory(request):
    config = OmegaConf.load(request.param)
    return hydra.utils.instantiate(config, _partial_=True, _convert_="all")


@pytest.fixture(params=[FOLLOWS, BARE], ids=["wide", "bare"])
def schema(request, factory):
    return fitting(factory, request.param)


@pytest.fixture
def model(factory, schema) -> Backbone:
    return roughen(factory(schema=schema, seed=0)).eval()


def by_hand(batch: Batch, last: dict[int, tuple[Batch, int]], schema, i: int, item: int) -> Batch:
    """Return row i with an item in it, column by column."""
    row = batch.take(torch.tensor([i]))
    seen, at = last[item]
    for j, name in enumerate(schema.fields):
        if name in (schema.item, *schema.of_item):
            row.fields[0, j] = seen.fields[at, j]
    for j, name in enumerate(schema.numbers):
        if name in schema.of_item:
            row.numbers[0, j] = seen.numbers[at, j]
    for name in schema.lists:
        if name in schema.of_item:
            row.lists[name][0] = seen.lists[name][at]
    return row


@pytest.mark.parametrize("pairs", [5, 10_000])
def test_a_candidate_scores_as_the_row_with_the_item_swapped_by_hand(
    model, schema, pairs, monkeypatch
):
    monkeypatch.setattr(base, "PAIRS", pairs)
    catalogue, last = Catalogue(schema), {}
    for t in range(3):
        seen = rows(schema, 25, seed=10 + t)
        catalogue.see(Period(t, "", Role.TEST, seen))
        last |= {int(item): (seen, i) for i, item in enumerate(seen.fields[:, 1])}
    known = torch.tensor(sorted(set(last) - {0}))
    at = known[torch.randint(len(known), (6, 4), generator=torch.Generator().manual_seed(0))]
    batch = doubled(rows(schema, 6, seed=3))
    items = catalogue.items(at, lambda rows: rows)
    with torch.no_grad():
        ours = model.score(batch, items)
        theirs = [
            [model(by_hand(batch, last, schema, i, int(at[i, c]))).logit.item() for c in range(4)]
            for i in range(6)
        ]
    torch.testing.assert_close(
        ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_no_rows_have_no_scores(model, schema):
    catalogue = Catalogue(schema)
    catalogue.see(Period(0, "", Role.TEST, rows(schema, 25)))
    items = catalogue.items(torch.empty(0, 3, dtype=torch.int64), lambda rows: rows)
    with torch.no_grad():
        assert model.score(doubled(rows(schema, 0)), items).shape == (0, 3)
