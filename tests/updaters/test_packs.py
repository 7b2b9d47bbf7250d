"""Packs: rows go to their places and come back, and so do their gradients."""

from __future__ import annotations

import pytest
import torch

from incrs.updaters.packs import Packs


@pytest.mark.parametrize(
    ("rows", "needed", "steps"),
    [
        ((1,), (), 1),
        ((5, 1, 12), (), 1),
        ((5, 1, 12), ((), (), (12, 7, 2)), 3),
        ((6, 9), ((6, 6, 3), (9, 0, 0)), 3),
    ],
)
def test_rows_come_back_and_lie_with_those_of_their_table_and_step(
    rows: tuple[int, ...], needed: tuple[tuple[int, ...], ...], steps: int
) -> None:
    packs = Packs.of(rows, 2, needed, steps)
    x = torch.arange(2.0 * sum(rows) * 3).view(2, -1, 3).add_(1).requires_grad_()
    packed = packs.packed(x)
    assert packed.shape == (2, len(packs.owners), packs.size, 3)
    assert sum(packs.counts) == len(packs.owners)
    assert torch.equal(packs.unpacked(packed), x)
    for j in range(steps):
        counts = [own[j] if own else rows[i] for i, own in enumerate(needed or [()] * len(rows))]
        assert packs.ways[j].rows == tuple(counts)
        some = packed[:, : sum(packs.counts[: steps - j])].detach().requires_grad_()
        found = packs.unpacked(some, j)
        parts = x.split(rows, 1)
        expected = [part[:, :count] for part, count in zip(parts, counts, strict=True)]
        assert torch.equal(found, torch.cat(expected, 1))
        weights = torch.rand_like(found)
        (gradient,) = torch.autograd.grad((weights * found).sum(), some)
        assert torch.equal(packs.unpacked(gradient, j), weights)
        assert torch.allclose(gradient.sum(), weights.sum())  # nothing goes to empty places
    weights = torch.rand_like(packed)
    (gradient,) = torch.autograd.grad((weights * packed).sum(), x)
    assert torch.equal(gradient, packs.unpacked(weights))

    table = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    number = torch.cat([torch.arange(count) for count in rows])
    where = packs.packed(torch.stack([table, number], 1)[None].float() + 1)[0].long() - 1
    step = torch.repeat_interleave(
        torch.arange(steps, 0, -1), torch.tensor(packs.counts)
    )  # the last that needs a pack
    for pack, owner, last in zip(where, packs.owners, step, strict=True):
        pack = pack[pack[:, 0] >= 0]
        assert len(pack)
        assert (pack[:, 0] == owner).all()
        ends = needed[owner] if needed else ()
        stop = ends[last - 1] if ends else rows[owner]
        start = ends[last] if ends and last < steps else 0
        assert ((pack[:, 1] >= start) & (pack[:, 1] < stop)).all()
