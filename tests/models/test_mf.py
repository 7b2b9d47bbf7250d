from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from incrs.errors import Mistake
from incrs.models.base import Backbone, Items
from incrs.models.mf import MF
from tests.models.toy import BARE, SCHEMA, agrees, doubled, numpy_weights, roughen, rows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_agrees_with_the_formula(bias, swapped):
    schema = SCHEMA
    if swapped:  # the columns are found by name
        schema = replace(SCHEMA, fields=dict(reversed(SCHEMA.fields.items())))
    model = roughen(MF(schema, 0, 5, bias=bias))
    batch = doubled(rows(schema, 20))
    w, order = numpy_weights(model), list(schema.fields)
    logits, products = [], []
    for ids in batch.fields.tolist():
        p = w["embedding.tables.user"][ids[order.index("user")]]
        q = w["embedding.tables.item"][ids[order.index("item")]]
        logits.append(sum(p[k] * q[k] for k in range(5)) + (p[5] + q[5] if bias else 0))
        products.append([*(p[:5] * q[:5]), *([p[5], q[5]] if bias else [])])
    agrees(model(batch, representations=True), logits, products, np.zeros((20, 0)))


def test_it_has_two_tables_and_nothing_else():
    shapes = {name: tuple(w.shape) for name, w in MF(SCHEMA, 0, bias=True).state_dict().items()}
    assert shapes == {"embedding.tables.user": (30, 65), "embedding.tables.item": (20, 65)}
    assert len(MF(SCHEMA, 0).state_dict()["embedding.tables.user"][0]) == 64


@pytest.mark.parametrize(("initialisation", "deviation"), [("small", 0.01), ("standard", 1.0)])
def test_vectors_start_with_their_deviation_and_biases_at_zero(initialisation, deviation):
    model = MF(SCHEMA, 0, 400, bias=True, initialisation=initialisation)
    for table in model.parameters():
        assert table[:, :400].std().item() == pytest.approx(deviation, rel=0.03)
        assert abs(table[:, :400].mean().item()) < 0.05 * deviation
        assert torch.equal(table[:, 400], torch.zeros(len(table)))


@pytest.mark.parametrize("catalogue", [7, 1000], ids=["whole", "candidates alone"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_candidates_score_as_if_they_were_in_the_row(bias, catalogue, block, monkeypatch):
    monkeypatch.setattr("incrs.models.mf.BLOCK", block)
    model, random = roughen(MF(SCHEMA, 0, 5, bias=bias)), torch.Generator().manual_seed(0)
    ids = torch.randint(20, (catalogue, 1), generator=random, dtype=torch.int32)
    at = torch.randint(catalogue, (9, 4), generator=random)
    items = Items(at, ids, (1,), {}, torch.zeros(catalogue, 0).double(), ())
    batch = doubled(rows(SCHEMA, 9))
    ours, by_rows = model.score(batch, items), Backbone.score(model, batch, items)
    torch.testing.assert_close(ours, by_rows, rtol=1e-12, atol=1e-12)


def test_one_vocabulary_for_users_and_items_is_one_table():
    schema = replace(BARE, vocabularies={"person": 12}, fields={"user": "person", "item": "person"})
    model = roughen(MF(schema, 0, 3))
    table = model.state_dict()["embedding.tables.person"]
    batch = doubled(rows(schema, 8))
    expected = (table[batch.fields[:, 0].long()] * table[batch.fields[:, 1].long()]).sum(1)
    torch.testing.assert_close(model(batch).logit, expected)


@pytest.mark.parametrize(
    ("missing", "names"), [({"user": None}, "no user"), ({"user": None, "item": None}, "no item")]
)
def test_a_log_without_user_or_item_is_refused(missing, names):
    with pytest.raises(Mistake, match=rf"{names}.*data\.user and data\.item"):
        MF(replace(SCHEMA, **missing), 0)


@pytest.mark.parametrize(
    "options", [{"bias": 1}, {"initialisation": "large"}, {"embedding_size": 0}]
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(options):
    with pytest.raises(Mistake, match=rf"model\.{next(iter(options))}="):
        MF(SCHEMA, 0, **options)
