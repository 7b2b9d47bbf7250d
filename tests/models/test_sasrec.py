from __future__ import annotations

import numpy as np
import pytest
import torch

from incrs.errors import Mistake
from incrs.models.sasrec import SASRec
from tests.models.toy import (
    SCHEMA,
    agrees,
    doubled,
    normed,
    numpy_weights,
    past,
    read,
    relu,
    roughen,
    rows,
    softmax,
)


def encoded(w: dict[str, np.ndarray], items: list[np.ndarray], blocks: int, heads: int):
    """Return the last position's vector, every position computed by itself."""
    if not items:
        return np.zeros(4)
    e = "shared.encoder"
    ages = range(len(items) - 1, -1, -1)
    x = [item + w[f"{e}.positions"][age] for item, age in zip(items, ages, strict=True)]
    for block in range(blocks):
        b = f"{e}.blocks.{block}"
        z = [normed(p, w[f"{b}.norms.0.weight"], w[f"{b}.norms.0.bias"]) for p in x]
        q, k, v = ([w[f"{b}.{name}.weight"] @ p for p in z] for name in ("query", "key", "value"))
        after = []
        for i in range(len(x)):
            mixed = []
            for head in range(heads):
                part = slice(head * 4 // heads, (head + 1) * 4 // heads)
                scores = [q[i][part] @ k[j][part] / np.sqrt(4 / heads) for j in range(i + 1)]
                weights = softmax(np.array(scores))
                mixed.append(sum(weights[j] * v[j][part] for j in range(i + 1)))
            y = x[i] + np.concatenate(mixed)
            inner = normed(y, w[f"{b}.norms.1.weight"], w[f"{b}.norms.1.bias"])
            inner = relu(w[f"{b}.inner.weight"] @ inner + w[f"{b}.inner.bias"])
            after.append(y + w[f"{b}.outer.weight"] @ inner + w[f"{b}.outer.bias"])
        x = after
    return normed(x[-1], w[f"{e}.norm.weight"], w[f"{e}.norm.bias"])


@pytest.mark.parametrize(("blocks", "heads"), [(1, 1), (2, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("tower", [(5, 3), None], ids=["tower", "product"])
def test_agrees_with_the_formula_position_by_position(blocks, heads, tower):
    model = roughen(SASRec(SCHEMA, 0, 4, blocks, heads, tower=tower))
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    users = [encoded(w, past(w, batch, i), blocks, heads) for i in range(20)]
    np.testing.assert_allclose(model.encode(batch).detach(), np.array(users), rtol=1e-7, atol=1e-9)
    found = [read(w, "shared", SCHEMA, batch, i, users[i]) for i in range(20)]
    logits, shared = zip(*found, strict=True)
    agrees(model(batch, representations=True), list(logits), list(shared), np.zeros((20, 0)))


def test_dropout_changes_what_is_trained_and_not_what_is_served():
    model, plain = SASRec(SCHEMA, 0, dropout=0.5), SASRec(SCHEMA, 0)
    batch = rows(SCHEMA, 20)
    torch.manual_seed(0)
    assert not torch.equal(model(batch).logit, plain(batch).logit)
    assert torch.equal(model.eval()(batch).logit, plain(batch).logit)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(Mistake, match=r"model\.heads=3: model\.embedding_size=64 must be"):
        SASRec(SCHEMA, 0, heads=3)
