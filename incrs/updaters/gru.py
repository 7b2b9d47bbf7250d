"""Furniture: GRUs that make a number of a sequence of numbers, many at once (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from incrs.updaters import gru_compiled


class Formula(NamedTuple):
    """What makes S numbers of each of N sequences of k numbers: (S, N).

    plain: of x (k, N), h (N, d) or None, and the parameters behind each number (R, N).
    compiled: for a CPU in single precision, of x, h, the parameters of P generators (R, P) and the
    `parts.Parts` that say which generator makes which number; None: there is no such form.
    """

    plain: Callable[..., Tensor]
    compiled: Callable[..., Tensor] | None = None


def gru_step(x: Tensor, h: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Return the next states (d, N) of Eq. 4, from a number each x (N,) and the states h (d, N).

    z = sig(x u_z + h w_z), r = sig(x u_r + h w_r), c = tanh(x u_c + (h * r) w_c),
    next = (1 - z) h + z c.  u: (3d, N) is [u_z, u_r, u_c].  w: (d, 3d, N) is [w_z, w_r, w_c].
    """
    d = len(h)
    z, r = (u[: 2 * d] * x + (h.unsqueeze(1) * w[:, : 2 * d]).sum(0)).sigmoid().split(d)
    c = (u[2 * d :] * x + ((h * r).unsqueeze(1) * w[:, 2 * d :]).sum(0)).tanh()
    return torch.lerp(h, c, z)


def states(x: Tensor, h: Tensor | None, parameters: Tensor) -> list[Tensor]:
    """Return the states after x_1, x_1 and x_2, ..: k times (d, N); see `gru`."""
    d = gru_compiled.hidden_size(len(parameters))
    u, w = parameters[: 3 * d], parameters[3 * d : 3 * d * (1 + d)].unflatten(0, (d, 3 * d))
    found = [x.new_zeros(d, x.shape[1]) if h is None else h.T]
    for x_j in x:
        found.append(gru_step(x_j, found[-1], u, w))
    return found[1:]


def gru(x: Tensor, h: Tensor | None, parameters: Tensor) -> Tensor:
    """Return y_j = h_j out + bias of every step (Eq. 5), h_j being the state after x_1 .. x_j: (k, N).

    x: (k, N).  h: (N, d), the state before; None: zeros.
    parameters: (R, N), the rows of u (3d), w (d 3d), out (d) and bias (1): R = 3 d^2 + 4 d + 1.
    """
    with torch.autocast(x.device.type, enabled=False):
        found = torch.stack(states(x, h, parameters))  # (k, d, N)
        return (parameters[-1 - found.shape[1] : -1] * found).sum(1) + parameters[-1]


def newest(x: Tensor, h: Tensor | None, parameters: Tensor) -> Tensor:
    """Return what `gru` adds to the models themselves: y_j + x_j, (k, N)."""
    return gru(x, h, parameters) + x


def first_state(x: Tensor, h: Tensor | None, parameters: Tensor) -> Tensor:
    """Return the state after x_1 alone, (d, N); see `gru`."""
    return states(x[:1], h, parameters)[0]


def combine(x: Tensor, h: Tensor | None, logits: Tensor) -> Tensor:
    """Return the models' mean by softmax(logits), (1, N).  x: (k, N), logits: (k, N)."""
    return (x * logits.softmax(0)).sum(0, keepdim=True)


def last(formula: Formula) -> Formula:
    """Return the formula that makes the last of what `formula` makes."""
    plain, compiled = formula
    return Formula(lambda *x: plain(*x)[-1:], compiled and (lambda *x: compiled(*x)[-1:]))


DIRECT = Formula(gru, partial(gru_compiled.sequence, residual=False))
RESIDUAL = Formula(newest, partial(gru_compiled.sequence, residual=True))
FIRST_STATE = Formula(first_state, gru_compiled.first_states)
MEAN = Formula(combine)
