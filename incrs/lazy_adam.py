"""LazyAdam: Adam that moves, of a large table, the rows of the batch alone (TensorFlow Addons' optimizer).

It is another algorithm than Adam. With Adam every row moves in every step, one that no row of the batch
held by its momentum, and its moments decay; here such a row stands still and so do its moments. So a
step costs what the batch costs, however many rows the table has. Large are tables of more than 1024
rows (`models.layers.JOINED`); all else is trained by Adam itself, and so is a table until it has grown
so large: there `vocabulary=growing` and `fixed` differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam


def summed_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that a sparse gradient (n, ...) holds, (k,) rising, and their sums (k, ...).

    Equal gradients give equal bits: what a row got is added up in the order it came in.
    """
    if gradient.device.type != "cpu":
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    # The same sums as coalesce's, which takes four times as long on a CPU.
    parts = gradient._values()
    rows, place = torch.unique(gradient._indices()[0], return_inverse=True)
    return rows, parts.new_zeros(len(rows), *parts.shape[1:]).index_add_(0, place, parts)


class LazyAdam(Optimizer):
    """Adam on the rows that a sparse gradient holds; plain Adam where the gradient is dense.

    lr: at least 0.  betas: in [0, 1), of the first and second moment.  eps: at least 0, added as
    Adam's. Raises ValueError otherwise.
    The formula is Adam's, and so is its correction of the moments' start: by the number of steps in
    which the parameter had a gradient, one number for all its rows. If every row is held in every
    step, it is Adam. There is no weight decay: rows that stand still do not decay.
    """

    wants_sparse_gradients: ClassVar[bool] = True
    """The module gives large tables sparse gradients because of this."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        if not lr >= 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps >= 0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; return what the closure, called first, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        moving: list[tuple[Tensor, ...]] = []  # parameter, moments, gradient: whole, or some rows
        counts: list[Tensor] = []
        parts: list[tuple[Tensor, Tensor, Tensor]] = []  # a tensor, rows of it, their numbers
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            counts.append(state["step"])
            held = (parameter, state["exp_avg"], state["exp_avg_sq"])
            if gradient.is_sparse:
                rows, gradient = summed_rows(gradient)
                whole, held = held, tuple(x.index_select(0, rows) for x in held)
                parts += [(x, rows, part) for x, part in zip(whole, held, strict=True)]
            moving.append((*held, gradient))
        if not moving:
            return
        parameters, first, second, gradients = map(list, zip(*moving, strict=True))
        adam(
            parameters,
            gradients,
            first,
            second,
            [],
            counts,
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0,
            eps=group["eps"],
            maximize=False,
        )
        for x, rows, part in parts:
            x.index_copy_(0, rows, part)
