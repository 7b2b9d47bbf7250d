from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from incrs.errors import Mistake
from incrs.models.caser import Caser
from tests.models.toy import (
    SCHEMA,
    agrees,
    doubled,
    numpy_weights,
    past,
    read,
    relu,
    roughen,
    rows,
)


def encoded(w: dict[str, np.ndarray], items: list[np.ndarray], window: int, user):
    e = "shared.reader.encoder"
    image = [np.zeros(4)] * window + items
    image = image[::-1][:window]  # newest first, zeros behind the oldest
    held = min(window, len(items))
    features = []
    for height in range(1, window + 1):
        filters = w[f"{e}.horizontal.{height - 1}.weight"].reshape(-1, height, 4)
        bias = w[f"{e}.horizontal.{height - 1}.bias"]
        for one, b in zip(filters, bias, strict=True):
            found = [0.0]  # what relu leaves, and what no item at all gives
            for start in range(window - height + 1):
                if start < held:
                    part = np.array(image[start : start + height])
                    found.append(max(0.0, (one * part).sum() + b))
            features.append(max(found))
    for dimension in range(4):
        for one in w[f"{e}.vertical.weight"]:
            features.append(sum(one[age] * image[age][dimension] for age in range(window)))
    z = relu(w[f"{e}.joined.weight"] @ np.array(features) + w[f"{e}.joined.bias"])
    if user is None:
        return z
    return w["shared.output.weight"] @ np.concatenate([z, user]) + w["shared.output.bias"]


@pytest.mark.parametrize("window", [1, 3, 6])
@pytest.mark.parametrize("user", [True, False])
@pytest.mark.parametrize("tower", [(5, 3), None], ids=["tower", "product"])
def test_agrees_with_the_formula_filter_by_filter(window, user, tower):
    model = roughen(Caser(SCHEMA, 0, 4, window, 3, 2, user, tower=tower))
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    own = [w["embedding.tables.user"][k] for k in batch.fields[:, 0]] if user else [None] * 20
    users = [encoded(w, past(w, batch, i), window, own[i]) for i in range(20)]
    np.testing.assert_allclose(model.encode(batch).detach(), np.array(users), rtol=1e-9, atol=1e-9)
    found = [read(w, "shared.reader", SCHEMA, batch, i, users[i]) for i in range(20)]
    logits, shared = zip(*found, strict=True)
    agrees(model(batch, representations=True), list(logits), list(shared), np.zeros((20, 0)))


def test_a_window_longer_than_the_history_is_as_long_as_it():
    assert Caser(SCHEMA, 0, window=50).window == 6
    batch = rows(SCHEMA, 5)
    assert torch.equal(
        Caser(SCHEMA, 0, window=50)(batch).logit, Caser(SCHEMA, 0, window=6)(batch).logit
    )


def test_a_log_without_users_is_refused_by_the_option_that_needs_them():
    with pytest.raises(Mistake, match=r"model\.user=true, but the log names no user"):
        Caser(replace(SCHEMA, user=None), 0)
    Caser(replace(SCHEMA, user=None), 0, user=False)
