"""Furniture: GRUs that make a number of a sequence of numbers, many at once (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CACHED = 1 << 15
"""So many numbers at a time go through their GRUs, which stay in the cache."""

Formula = Callable[..., Tensor]
"""(x (k, G, n), h (G, d, n) or None, the parameters (G, ...) of G generators) -> (S, G, n)."""


def gru_step(x: Tensor, h: Tensor, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gates z and r (G, 2d, n), candidate c (G, d, n), the next state (G, d, n)) of Eq. 4.

    z = sig(x u_z + h w_z), r = sig(x u_r + h w_r), c = tanh(x u_c + (h * r) w_c),
    next = (1 - z) h + z c.  x: (G, n), n numbers for each of G generators.  h: (G, d, n).
    u: (G, 3d) is [u_z, u_r, u_c].  w: (G, d, 3d) is [w_z, w_r, w_c].
    """
    d, add_product, x = h.shape[1], adding(x.shape[1]), x.unsqueeze(1)
    gates, c = u[:, : 2 * d, None] * x, u[:, 2 * d :, None] * x
    add_product(gates, w[:, :, : 2 * d].mT, h)
    z, r = gates.sigmoid_().split(d, 1)
    add_product(c, w[:, :, 2 * d :].mT, h * r)
    # tanh, which torch takes four times as long for
    torch.add(c.new_full((), -1.0), c.mul_(2).sigmoid_(), alpha=2, out=c)
    return gates, c, torch.lerp(h, c, z)


def adding(numbers: int) -> Callable[..., Any]:
    """Return how to add to a tensor (G, i, j), in place, the products a (G, i, m) b (G, m, j).

    With `beta=0` they are written over what was there. numbers: how many each generator works on. With
    one each, what lies side by side in memory are the generators, and the sum over m is taken for all of
    them at once.
    """
    return Tensor.baddbmm_ if numbers > 1 else _add_by_term


def _add_by_term(to: Tensor, a: Tensor, b: Tensor, beta: int = 1) -> None:
    for m, (a_m, b_m) in enumerate(zip(a.split(1, 2), b.split(1, 1), strict=True)):
        if m or beta:
            to.addcmul_(a_m, b_m)
        else:
            torch.mul(a_m, b_m, out=to)


def outputs(
    x: Tensor, h: Tensor, u: Tensor, w: Tensor, out: Tensor, bias: Tensor, kept: list[Tensor] | None
) -> Tensor:
    """Return the outputs of every step of Eq. 4 and 5, and add to `kept` what a gradient needs."""
    made, alone = torch.empty_like(x), x.shape[2] == 1
    with torch.autocast(x.device.type, enabled=False):
        for own in blocks(x):
            h_j, out_own = h[own], out[own].unsqueeze(2)
            for x_j, y_j in zip(x[:, own], made[:, own], strict=True):
                gates, c, h_j = gru_step(x_j, h_j, u[own], w[own])
                if alone:
                    _add_by_term(y_j.copy_(bias[own, None]).unsqueeze(1), out_own.mT, h_j)
                else:  # a product of a row and a matrix takes three times as long
                    torch.sum(out_own * h_j, 1, out=y_j).add_(bias[own, None])
                if kept is not None:
                    kept += [gates, c, h_j]
    return made


class _Sequence(torch.autograd.Function):
    """What `outputs` returns, with a gradient in a fifth of autograd's memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, u: Tensor, w: Tensor, out: Tensor, bias: Tensor
    ) -> Tensor:
        kept = [x, u, w, out, h]
        made = outputs(x, h, u, w, out, bias, kept)
        ctx.save_for_backward(*kept)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, u, w, out, h, *kept = ctx.saved_tensors
        (dy,) = gradients
        d, add_product, rest = out.shape[1], adding(x.shape[2]), iter(kept)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        du, dw, dout = (torch.empty_like(part) for part in (u, w, out))
        alone = x.shape[2] == 1
        with torch.autocast(x.device.type, enabled=False):
            for own in blocks(x):
                states, steps, dh = [h[own]], [], None
                for _ in x:
                    gates, c, after = next(rest), next(rest), next(rest)
                    steps.append((gates, c))
                    states.append(after)
                ends = [du[own].unsqueeze(1), dw[own, :, : 2 * d], dw[own, :, 2 * d :]]
                # Matrices are multiplied faster into tensors without gaps.
                sums = ends if alone else [torch.empty_like(end) for end in ends]
                parts = torch.empty_like(u[own]).unsqueeze(2)
                if not alone:
                    parts = parts.new_empty(*parts.shape[:2], x.shape[2])
                dgates, (dz, dr, dc) = parts[:, : 2 * d], parts.split(d, 1)
                (w_gates, w_c), out_own = w[own].split([2 * d, d], 2), out[own].unsqueeze(2)
                for j in reversed(range(len(x))):
                    (gates, c), before, beta = steps[j], states[j], int(j + 1 < len(x))
                    z, r = gates.split(d, 1)
                    dy_j = dy[j, own].unsqueeze(1)
                    if alone:
                        _add_by_term(dout[own].unsqueeze(2), states[j + 1], dy_j, beta=beta)
                    else:
                        moved = (states[j + 1] * dy_j).sum(2)
                        dout[own] = dout[own] + moved if beta else moved
                    dh = out_own * dy_j if dh is None else dh.addcmul_(out_own, dy_j)
                    torch.ops.aten.tanh_backward.grad_input(dh * z, c, grad_input=dc)
                    dq = torch.empty_like(dh)  # of q = h * r
                    add_product(dq, w_c, dc, beta=0)
                    slope = torch.sub(c, before).mul_(dh)
                    torch.ops.aten.sigmoid_backward.grad_input(slope, z, grad_input=dz)
                    torch.mul(dq, before, out=slope)
                    torch.ops.aten.sigmoid_backward.grad_input(slope, r, grad_input=dr)
                    if ctx.needs_input_grad[2]:
                        q = torch.mul(before, r, out=slope)
                        add_product(sums[0], x[j, own].unsqueeze(1), parts.mT, beta=beta)
                        add_product(sums[1], before, dgates.mT, beta=beta)
                        add_product(sums[2], q, dc.mT, beta=beta)
                    if dx is not None:
                        dx[j, own] = (u[own, :, None] * parts).sum(1)
                    if j:
                        dh = torch.addcmul(dh, dh, z, value=-1).addcmul_(dq, r)
                        add_product(dh, w_gates, dgates)
                if not alone:
                    for end, total in zip(ends, sums, strict=True):
                        end.copy_(total)
        return dx, None, du, dw, dout, dy.sum((0, 2))


def blocks(x: Tensor) -> list[slice]:
    """Return which generators work at a time on x (k, G, n)."""
    each = max(1, CACHED // max(1, x.shape[2]))
    return [slice(at, at + each) for at in range(0, x.shape[1], each)]


def gru(x: Tensor, h: Tensor | None, u: Tensor, w: Tensor, out: Tensor, bias: Tensor) -> Tensor:
    """Return y_j = h_j out + bias of every step (Eq. 5), h_j being the state after x_1 .. x_j: (k, G, n).

    x: (k, G, n).  h: (G, d, n), the state before; None: zeros.  out: (G, d).  bias: (G,).
    """
    if h is None:
        h = x.new_zeros(out.shape[1], *x.shape[1:]).transpose(0, 1)
    if not torch.is_grad_enabled():
        return outputs(x, h, u, w, out, bias, None)
    made: Tensor = _Sequence.apply(x, h, u, w, out, bias)
    return made


def newest(x: Tensor, h: Tensor | None, *parameters: Tensor) -> Tensor:
    """Return what `gru` adds to the models themselves: y_j + x_j, (k, G, n)."""
    return gru(x, h, *parameters) + x


def first_state(x: Tensor, h: Tensor | None, u: Tensor, w: Tensor, *_: Tensor) -> Tensor:
    """Return the state after x_1 alone, (d, G, n); see `gru`."""
    if h is None:
        h = x.new_zeros(w.shape[1], *x.shape[1:]).transpose(0, 1)
    return gru_step(x[0], h, u, w)[2].transpose(0, 1)


def combine(x: Tensor, h: Tensor | None, logits: Tensor) -> Tensor:
    """Return the models' mean by softmax(logits), (1, G, n).  x: (k, G, n), logits: (G, k)."""
    return (x * logits.softmax(1).T.unsqueeze(2)).sum(0, keepdim=True)


def last(formula: Formula) -> Formula:
    """Return the formula that makes the last of what `formula` makes, (1, G, n)."""
    return lambda *given: formula(*given)[-1:]
