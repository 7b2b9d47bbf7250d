"""What follows the item: said by the declaration, kept by the store, read back for every item."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from incrs.catalogue import Catalogue
from incrs.data.log import LogSource
from incrs.errors import Mistake
from incrs.period import Batch
from incrs.ranking import Ranking
from tests.data.shop import ITEMS, declare, made_up, write


def shop(folder: Path, **changes) -> LogSource:
    write(folder / "log.csv", made_up())
    write(folder / "items.csv", ITEMS)
    options = {
        "categorical": ["brand"],
        "multivalued": {"genre": "|"},
        "joins": [{"file": "items.csv", "key": "item"}],
        **changes,
    }
    source = declare(folder, **options)
    source.prepare()
    return source


def same(rows: Batch) -> Batch:
    return rows


def test_columns_joined_by_the_item_follow_it_and_others_when_they_are_said_to(
    tmp_path: Path,
) -> None:
    assert shop(tmp_path / "a").schema.of_item == ["brand", "genre"]
    source = shop(tmp_path / "b", categorical=["brand", "tab"], item_columns=["tab"])
    assert source.schema.of_item == ["tab", "brand", "genre"]


def test_the_catalogue_holds_every_item_as_its_last_row_and_a_new_one_as_its_first(
    tmp_path: Path,
) -> None:
    source = shop(tmp_path, categorical=["brand", "tab"], item_columns=["tab"])
    schema = source.schema
    catalogue = Catalogue(schema)
    item, tab = schema.column("item"), schema.column("tab")
    expected: dict[int, torch.Tensor] = {}
    for t in range(3):
        catalogue.see(source.read(t))
        for row in source.read(t).rows.fields:
            expected[int(row[item])] = row
    following = source.read(3)
    for row in following.rows.fields:
        expected.setdefault(int(row[item]), row)
    found = catalogue.with_new_of(following).items(torch.empty(0), same)
    assert found.columns == (item, schema.column("brand"), tab)
    assert found.fields[:, 0].tolist() == list(range(len(found.fields)))
    for one in expected:
        if one > 0:
            assert found.fields[one].tolist() == expected[one][list(found.columns)].tolist()
    rows = following.rows
    assert torch.equal(found.lists["genre"][rows.fields[:, item].long()], rows.lists["genre"])
    before = catalogue.items(torch.empty(0), same)
    assert len(before.fields) <= len(found.fields)


def test_a_store_of_an_earlier_version_is_as_good_for_clicks_and_refused_for_ranking(
    tmp_path: Path,
) -> None:
    source = shop(tmp_path)
    Ranking().check(source.schema)
    file = source.folder / "schema.json"
    content = json.loads(file.read_text())
    del content["of_item"], content["sampled"]
    file.write_text(json.dumps(content))
    again = shop(tmp_path)
    assert again.fingerprints == source.fingerprints
    with pytest.raises(Mistake, match="prepared by an earlier version"):
        Ranking().check(again.schema)


def test_rows_that_were_sampled_are_told_from_those_logged(tmp_path: Path) -> None:
    source = shop(tmp_path, label=None, negatives=2)
    assert source.schema.sampled
    label = source.read(0).rows.label.numpy()
    assert np.isclose(label.mean(), 1 / 3, atol=0.05)
