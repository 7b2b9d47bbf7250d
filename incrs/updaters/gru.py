"""Furniture: GRUs that make a number of a sequence of numbers, many at once (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CACHED = 1 << 11
"""What one generator makes goes through the GRU so many numbers at a time, which stay in the cache."""

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
    c.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, which torch takes four times as long for
    return gates, c, torch.lerp(h, c, z)


def adding(numbers: int) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """Return how to add to a tensor (G, i, j), in place, the products a (G, i, m) b (G, m, j).

    numbers: how many each generator works on. With one each, what lies side by side in memory are the
    generators, and the sum over m is taken for all of them at once.
    """
    return Tensor.baddbmm_ if numbers > 1 else _add_by_term


def _add_by_term(to: Tensor, a: Tensor, b: Tensor) -> None:
    for m in range(a.shape[2]):
        to.addcmul_(a[:, :, m : m + 1], b[:, m : m + 1])


class _Sequence(torch.autograd.Function):
    """The outputs of every step of Eq. 4 and 5, with a gradient in a fifth of autograd's memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, u: Tensor, w: Tensor, out: Tensor, bias: Tensor
    ) -> Tensor:
        add_product = adding(x.shape[2])
        kept, outputs = [x, u, w, out, h], []
        with torch.autocast(x.device.type, enabled=False):
            for x_j in x:
                gates, c, h = gru_step(x_j, h, u, w)
                y = bias[:, None, None].expand(-1, 1, x.shape[2]).clone()
                add_product(y, out.unsqueeze(1), h)
                outputs.append(y.squeeze(1))
                kept += [gates, c, h]
        ctx.save_for_backward(*kept)
        return torch.stack(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, u, w, out, *kept = ctx.saved_tensors
        (dy,) = gradients
        d, add_product = out.shape[1], adding(x.shape[2])
        w_gates, w_c = w.split([2 * d, d], 2)
        du_gates, du_c = (torch.zeros_like(part) for part in u.split([2 * d, d], 1))
        dw_gates, dw_c, dout = (torch.zeros_like(part) for part in (w_gates, w_c, out))
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dh: Tensor | None = None
        with torch.autocast(x.device.type, enabled=False):
            for j in reversed(range(len(x))):
                before, gates, c, after = kept[3 * j : 3 * j + 4]
                z, r = gates.split(d, 1)
                add_product(dout.unsqueeze(2), after, dy[j].unsqueeze(2))
                own = out.unsqueeze(2) * dy[j].unsqueeze(1)
                dh = own if dh is None else dh.add_(own)
                dc = torch.ops.aten.tanh_backward(dh * z, c)
                dq = torch.zeros_like(dh)  # of q = h * r
                add_product(dq, w_c, dc)
                dgates = torch.empty_like(gates)
                dz, dr = dgates.split(d, 1)
                slope = torch.sub(c, before).mul_(dh)
                torch.ops.aten.sigmoid_backward.grad_input(slope, z, grad_input=dz)
                torch.ops.aten.sigmoid_backward.grad_input(dq * before, r, grad_input=dr)
                if ctx.needs_input_grad[2]:
                    for du, dw, q, part in (
                        (du_gates, dw_gates, before, dgates),
                        (du_c, dw_c, before * r, dc),
                    ):
                        add_product(du.unsqueeze(2), part, x[j].unsqueeze(2))
                        add_product(dw, q, part.mT)
                if dx is not None:
                    dx[j] = (u[:, : 2 * d, None] * dgates).sum(1) + (u[:, 2 * d :, None] * dc).sum(
                        1
                    )
                if j:
                    dh = torch.addcmul(dh, dh, z, value=-1).addcmul_(dq, r)
                    add_product(dh, w_gates, dgates)
        du, dw = torch.empty_like(u), torch.empty_like(w)  # as they lie in memory, unlike a cat
        du[:, : 2 * d], du[:, 2 * d :] = du_gates, du_c
        dw[:, :, : 2 * d], dw[:, :, 2 * d :] = dw_gates, dw_c
        return dx, None, du, dw, dout, dy.sum((0, 2))


def gru(x: Tensor, h: Tensor | None, u: Tensor, w: Tensor, out: Tensor, bias: Tensor) -> Tensor:
    """Return y_j = h_j out + bias of every step (Eq. 5), h_j being the state after x_1 .. x_j: (k, G, n).

    x: (k, G, n).  h: (G, d, n), the state before; None: zeros.  out: (G, d).  bias: (G,).
    """
    if h is None:
        h = x.new_zeros(out.shape[1], *x.shape[1:]).transpose(0, 1)
    parts = list(zip(x.split(CACHED, 2), h.split(CACHED, 2), strict=True))
    if x.shape[2] > 1:
        parts = [(x.contiguous(), h.contiguous()) for x, h in parts]
    return torch.cat([_Sequence.apply(x, h, u, w, out, bias) for x, h in parts], 2)


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
