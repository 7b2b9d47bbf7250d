from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from incrs.data.base import ListField
from incrs.models.nextitnet import NextItNet
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
)

LONG = replace(SCHEMA, lists={**SCHEMA.lists, "history": ListField("item", 30)})


def encoded(w: dict[str, np.ndarray], items: list[np.ndarray], kernel: int, dilations):
    """Return the last position's vector, every layer computed at every position."""
    x, number = items, 0
    for dilation in dilations:
        start = x
        for step in (dilation, 2 * dilation):
            c, n = f"shared.encoder.convolutions.{number}", f"shared.encoder.norms.{number}"
            filters = w[f"{c}.weight"].reshape(4, kernel, 4)  # (out, how far back, in)
            after = []
            for i in range(len(x)):
                y = w[f"{c}.bias"].copy()
                for back in range(kernel):
                    if i - back * step >= 0:
                        y += filters[:, back] @ x[i - back * step]
                after.append(relu(normed(y, w[f"{n}.weight"], w[f"{n}.bias"])))
            x, number = after, number + 1
        x = [before + added for before, added in zip(start, x, strict=True)]
    return x[-1] if x else np.zeros(4)


@pytest.mark.parametrize(
    ("schema", "kernel", "dilations"),
    [(SCHEMA, 3, (1, 4)), (LONG, 3, (1, 4)), (LONG, 2, (3, 1, 2)), (SCHEMA, 9, (1,))],
)
@pytest.mark.parametrize("tower", [(5, 3), None], ids=["tower", "product"])
def test_agrees_with_the_formula_position_by_position(schema, kernel, dilations, tower):
    model = roughen(NextItNet(schema, 0, 4, kernel, dilations, tower))
    batch = doubled(rows(schema, 20))
    w = numpy_weights(model)
    users = [encoded(w, past(w, batch, i), kernel, dilations) for i in range(20)]
    np.testing.assert_allclose(model.encode(batch).detach(), np.array(users), rtol=1e-7, atol=1e-9)
    found = [read(w, "shared", schema, batch, i, users[i]) for i in range(20)]
    logits, shared = zip(*found, strict=True)
    agrees(model(batch, representations=True), list(logits), list(shared), np.zeros((20, 0)))


def test_only_what_the_newest_item_depends_on_is_computed():
    encoder = NextItNet(LONG, 0, 4).shared.encoder
    assert encoder.wanted[-1] == [0]
    assert encoder.wanted[-2] == [0, 8, 16]
    assert encoder.wanted[-3] == [0, 4, 8, 12, 16, 20, 24]
