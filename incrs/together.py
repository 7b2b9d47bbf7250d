"""Several processes that train as one: sums over them, and nothing at all where there is one process.

Every batch is cut into slices, one for each process; a slice may have no rows. What is said of a batch
is said of the whole of it, and a loss is a process's *share*: over the processes the shares add up to
the loss of the whole batch. So a share is a sum over the process's own rows, divided by what belongs to
the batch (a count of rows, or what `summed` returns); alone, it is the loss. Where gradients are
averaged over W processes, each multiplies its share by W.

`summed` and `mean` are collective: all processes must call them equally often and in the same order, and
use the results in their losses alike, for the gradients are summed on the way back. So no branch around
them may hang on the rows of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many processes train together: 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return 0 if processes() == 1 else dist.get_rank()


def alone() -> bool:
    """Return whether this is the only process."""
    return processes() == 1


def first() -> bool:
    """Return whether this is the process that speaks for all."""
    return rank() == 0


class _Sum(torch.autograd.Function):
    """Tensors of one dtype, each summed over the processes, all in one go."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        joined = torch.cat([x.reshape(-1) for x in tensors])
        dist.all_reduce(joined)
        parts = joined.split([x.numel() for x in tensors])
        return tuple(part.reshape(x.shape) for part, x in zip(parts, tensors, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        # What one process put in reaches the shares of all of them.
        return _Sum.apply(*gradients)


def summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return each tensor's sum over the processes, equal in all of them; differentiable.

    tensors: of one dtype, with the same shapes in all processes.  Alone they are returned as they are.
    """
    return tensors if alone() else _Sum.apply(*tensors)


def mean(loss: Callable[..., Tensor], value: Tensor, target: Tensor) -> Tensor:
    """Return this process's share of the mean of a loss over all processes' rows; a scalar.

    loss: one of torch.nn.functional, with a `reduction`.  value, target: (B,), B = 0 gives 0.
    """
    if alone():
        return loss(value, target)
    (count,) = summed(torch.full((), len(value), device=value.device))
    return loss(value, target, reduction="sum") / count


def averaged(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients' means over the processes, equal in all of them; not differentiable.

    gradients: each (n, ...) of one dtype, dense in all processes or sparse in all; the mean of a
    sparse one is sparse, and costs what it holds.
    """
    dense = [g.detach() / processes() for g in gradients if not g.is_sparse]
    means = iter(summed(*dense) if dense else ())
    return [_sparse_mean(g) if g.is_sparse else next(means) for g in gradients]


def _sparse_mean(gradient: Tensor) -> Tensor:
    rows, parts = _gathered(gradient._indices()[0]), _gathered(gradient._values())
    parts = parts / processes()
    return torch.sparse_coo_tensor(rows[None], parts, gradient.shape, check_invariants=False)


def _gathered(x: Tensor) -> Tensor:
    """Return x (n, ...) of all processes, one after the other; n may differ."""
    sizes = torch.zeros(processes(), dtype=torch.int64, device=x.device)
    sizes[dist.get_rank()] = len(x)
    dist.all_reduce(sizes)
    counts = sizes.tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
