"""Furniture: the GRUs of `gru` compiled for a CPU, all of a step's numbers in one call (ASMG, RecSys 2021).

Numbers lie one behind the other, N in all; some hundreds of them at a time go through all their steps while
they and what belongs to them stay in a near cache: numbers of one generator, such as a column of a table,
whose parameters are then numbers, too, or neighbours that each have their own. On the way back the steps
are done again rather than kept. The machine code is kept beside this file, or in the user's cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from incrs.updaters.compiling import compiled
from incrs.updaters.parts import Divided, Parts

OF_ONE = 512
"""So many numbers of one generator are worked on at a time."""
OF_MANY = 320
"""So many numbers that each have a generator are worked on at a time."""
CACHED = 20_000
"""Fewer where more parameters than this would be behind them, which leave the cache; a fifth at least."""

ONE, TWO, FARTHEST = np.float32(1), np.float32(2), np.float32(87)
ROUNDING, LOG2E, LN2 = np.float32(3 * 2.0**22), np.float32(1 / np.log(2)), np.float32(np.log(2))
C2, C3, C4, C5, C6 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720))


@compiled
def _sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x)) to 2e-7 of its value; exp by its series about the nearest power of two."""
    x = -FARTHEST if x < -FARTHEST else x  # what is not a number stays so
    x = FARTHEST if x > FARTHEST else x
    t = ROUNDING - x * LOG2E
    r = -x - (t - ROUNDING) * LN2
    series = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
    power = np.int32((np.float32(t).view(np.int32) + 127) << 23).view(np.float32)
    return ONE / (ONE + series * power)


@compiled
def _add_vectors(to, w, at, row, v, count, lanes):  # type: ignore[no-untyped-def]
    """to[l] += sum_m w[at + m row + l] v[m, l]."""
    fours = count // 4 * 4  # at a time, or `to` would be read and written as often as the others
    for m in range(0, fours, 4):
        a, b = w[at + m * row :][:lanes], w[at + (m + 1) * row :][:lanes]
        c, e = w[at + (m + 2) * row :][:lanes], w[at + (m + 3) * row :][:lanes]
        v_a, v_b, v_c, v_e = v[m], v[m + 1], v[m + 2], v[m + 3]
        for i in range(lanes):
            to[i] += a[i] * v_a[i] + b[i] * v_b[i] + c[i] * v_c[i] + e[i] * v_e[i]
    for m in range(fours, count):
        a, v_a = w[at + m * row :][:lanes], v[m]
        for i in range(lanes):
            to[i] += a[i] * v_a[i]


@compiled
def _add_numbers(to, w, at, row, v, count, lanes):  # type: ignore[no-untyped-def]
    """to[l] += sum_m w[at + m row] v[m, l]."""
    fours = count // 4 * 4
    for m in range(0, fours, 4):
        a, b = w[at + m * row], w[at + (m + 1) * row]
        c, e = w[at + (m + 2) * row], w[at + (m + 3) * row]
        v_a, v_b, v_c, v_e = v[m], v[m + 1], v[m + 2], v[m + 3]
        for i in range(lanes):
            to[i] += a * v_a[i] + b * v_b[i] + c * v_c[i] + e * v_e[i]
    for m in range(fours, count):
        a, v_a = w[at + m * row], v[m]
        for i in range(lanes):
            to[i] += a * v_a[i]


@compiled
def _add_products(to, outs, per_out, w, at, row, v, ins, per_in, lanes, shared):  # type: ignore[no-untyped-def]
    """to[o, l] += sum_m w[p + l] v[m, l], or w[p] if shared, where p = at + (o per_out + m per_in) row."""
    for o in range(outs):
        if shared:
            _add_numbers(to[o], w, at + o * per_out * row, per_in * row, v, ins, lanes)
        else:
            _add_vectors(to[o], w, at + o * per_out * row, per_in * row, v, ins, lanes)


@compiled
def _scale(to, w, at, x, lanes, shared):  # type: ignore[no-untyped-def]
    """to[l] = w[at + l] x[l], or w[at] x[l] if shared."""
    if shared:
        a = w[at]
        for i in range(lanes):
            to[i] = a * x[i]
    else:
        u = w[at:][:lanes]
        for i in range(lanes):
            to[i] = u[i] * x[i]


@partial(compiled, sums=True)
def _add_sums(dw, at, row, per_out, da, outs, v, ins, per_in, lanes):  # type: ignore[no-untyped-def]
    """dw[p] += sum_l da[o, l] v[m, l], p as in `_add_products`."""
    zero = np.float32(0)
    for m in range(ins):
        v_m = v[m]
        fours = outs // 4 * 4
        for o in range(0, fours, 4):
            da_0, da_1, da_2, da_3 = da[o], da[o + 1], da[o + 2], da[o + 3]
            s_0, s_1, s_2, s_3 = zero, zero, zero, zero
            for i in range(lanes):
                s_0 += da_0[i] * v_m[i]
                s_1 += da_1[i] * v_m[i]
                s_2 += da_2[i] * v_m[i]
                s_3 += da_3[i] * v_m[i]
            to, step = at + (o * per_out + m * per_in) * row, per_out * row
            dw[to] += s_0
            dw[to + step] += s_1
            dw[to + 2 * step] += s_2
            dw[to + 3 * step] += s_3
        for o in range(fours, outs):
            da_0, s_0 = da[o], zero
            for i in range(lanes):
                s_0 += da_0[i] * v_m[i]
            dw[at + (o * per_out + m * per_in) * row] += s_0


@compiled
def _add_gradients(dw, at, row, per_out, da, outs, v, ins, per_in, lanes, shared):  # type: ignore[no-untyped-def]
    """dw[p + l] += da[o, l] v[m, l], p as in `_add_products`, or dw[p] += their sum if shared."""
    if shared:
        _add_sums(dw, at, row, per_out, da, outs, v, ins, per_in, lanes)
        return
    for o in range(outs):
        da_o = da[o]
        for m in range(ins):
            own, v_m = dw[at + (o * per_out + m * per_in) * row :][:lanes], v[m]
            for i in range(lanes):
                own[i] += v_m[i] * da_o[i]


@compiled
def _steps(n, x, h, gates, q, w, at, row, d, lanes, shared):  # type: ignore[no-untyped-def]
    """Fill h[1:] (., d, lanes) and gates (., 3d, lanes), z, r and c of Eq. 4, for n steps."""
    for j in range(n):
        for g in range(2 * d):
            _scale(gates[j, g], w, at + g * row, x[j], lanes, shared)
        _add_products(gates[j], 2 * d, 1, w, at + 3 * d * row, row, h[j], d, 3 * d, lanes, shared)
        for g in range(2 * d):
            a = gates[j, g]
            for i in range(lanes):
                a[i] = _sigmoid(a[i])
        for m in range(d):
            q_m, r, before = q[m], gates[j, d + m], h[j, m]
            for i in range(lanes):
                q_m[i] = before[i] * r[i]
            _scale(gates[j, 2 * d + m], w, at + (2 * d + m) * row, x[j], lanes, shared)
        _add_products(gates[j, 2 * d :], d, 1, w, at + 5 * d * row, row, q, d, 3 * d, lanes, shared)
        for m in range(d):
            a, z, before, after = gates[j, 2 * d + m], gates[j, m], h[j, m], h[j + 1, m]
            for i in range(lanes):
                c = TWO * _sigmoid(TWO * a[i]) - ONE  # tanh
                a[i] = c
                after[i] = before[i] + z[i] * (c - before[i])


@compiled
def _load(start, stride, n, lanes, all_x, all_h, x, h, d):  # type: ignore[no-untyped-def]
    for j in range(n):
        for i in range(lanes):
            x[j, i] = all_x[j, start + i * stride]
    if len(all_h):
        for i in range(lanes):
            for m in range(d):
                h[0, m, i] = all_h[start + i * stride, m]
    else:
        h[0, :, :lanes] = 0


@compiled
def _do(  # type: ignore[no-untyped-def]
    parts, ends, w, count, d, all_x, all_h, all_y, states, all_dy, all_dw, all_dx, residual, most
):
    """Fill the outputs and the states after x_1, or, where dy is given, the gradients; those are not empty.

    w, dw: (R * P,), P generators, `count` of them.  most: how many numbers to work on at a time, of one
    generator and of several. A part of several rows goes by columns, each of which is one generator's.
    """
    k, size, learning = len(all_x), 3 * d + 3 * d * d + d + 1, len(all_dy) > 0
    widest = 1
    for s in range(len(parts)):
        widest = max(widest, min(most[0], parts[s, 1]), min(most[1], parts[s, 2]))
    x, h = np.empty((k, widest), np.float32), np.empty((k + 1, d, widest), np.float32)
    gates, q = np.empty((k, 3 * d, widest), np.float32), np.empty((d, widest), np.float32)
    dh, dbefore = np.empty((d, widest), np.float32), np.empty((d, widest), np.float32)
    dgates, dq = np.empty((3 * d, widest), np.float32), np.empty((d, widest), np.float32)
    y, dx = np.empty((1, widest), np.float32), np.empty((1, widest), np.float32)
    ones = np.ones((1, widest), np.float32)
    taken, added = np.empty(size, np.float32), np.empty(size, np.float32)
    for s in range(len(parts)):
        start, rows, dim, first = parts[s]
        shared = rows != 1
        length, columns, width, own, dw, row = dim, 1, most[1], w, all_dw, count
        if shared:
            length, columns, width, own, dw, row = rows, dim, most[0], taken, added, 1
        out = size - 1 - d
        for block, column in np.ndindex(-(-length // width), columns):
            done, n = block * width, 0
            lanes = min(width, length - done)
            for j in range(k):
                if ends[s, j] > (done if shared else 0):
                    n = j + 1
            if shared:
                here, at = start + done * dim + column, 0
                for i in range(size):
                    taken[i] = w[first + column + i * count]
                    added[i] = 0
            else:
                here, at = start + done, first + done
                for i in range(size if learning else 0):
                    dw[at + i * row :][:lanes] = 0
            _load(here, columns, n, lanes, all_x, all_h, x, h, d)
            _steps(n, x, h, gates, q, own, at, row, d, lanes, shared)
            if len(states):
                for i in range(lanes):
                    for m in range(d):
                        states[here + i * columns, m] = h[1, m, i]
            for j in range(n if len(all_y) else 0):
                _scale(y[0], own, at + (size - 1) * row, ones[0], lanes, shared)
                _add_products(y, 1, 1, own, at + out * row, row, h[j + 1], d, 1, lanes, shared)
                for i in range(lanes):
                    all_y[j, here + i * columns] = y[0, i] + x[j, i] if residual else y[0, i]
            if not learning:
                continue
            dh[:, :lanes] = 0
            for j in range(n - 1, -1, -1):
                for i in range(lanes):
                    y[0, i] = all_dy[j, here + i * columns]
                _add_gradients(dw, at + (size - 1) * row, row, 1, y, 1, ones, 1, 1, lanes, shared)
                _add_gradients(dw, at + out * row, row, 1, y, 1, h[j + 1], d, 1, lanes, shared)
                _add_products(dh, d, 1, own, at + out * row, row, y, 1, 1, lanes, shared)
                for m in range(d):
                    dh_m, db_m = dh[m], dbefore[m]
                    before, z, c = h[j, m], gates[j, m], gates[j, 2 * d + m]
                    dz, dc = dgates[m], dgates[2 * d + m]
                    for i in range(lanes):
                        dz[i] = dh_m[i] * (c[i] - before[i]) * z[i] * (ONE - z[i])
                        dc[i] = dh_m[i] * z[i] * (ONE - c[i] * c[i])
                        db_m[i] = dh_m[i] * (ONE - z[i])
                dq[:, :lanes] = 0  # of q = h * r
                _add_products(
                    dq, d, 3 * d, own, at + 5 * d * row, row, dgates[2 * d :], d, 1, lanes, shared
                )
                for m in range(d):
                    q_m, r, before = q[m], gates[j, d + m], h[j, m]
                    dr, db_m, dq_m = dgates[d + m], dbefore[m], dq[m]
                    for i in range(lanes):
                        q_m[i] = before[i] * r[i]
                        dr[i] = dq_m[i] * q_m[i] * (ONE - r[i])
                        db_m[i] += dq_m[i] * r[i]
                at_w = at + 3 * d * row
                _add_products(dbefore, d, 3 * d, own, at_w, row, dgates, 2 * d, 1, lanes, shared)
                _add_gradients(dw, at, row, 1, dgates, 3 * d, x[j : j + 1], 1, 1, lanes, shared)
                _add_gradients(dw, at_w, row, 1, dgates, 2 * d, h[j], d, 3 * d, lanes, shared)
                at_c = at_w + 2 * d * row
                _add_gradients(dw, at_c, row, 1, dgates[2 * d :], d, q, d, 3 * d, lanes, shared)
                if len(all_dx):
                    dx[0, :lanes] = 0
                    _add_products(dx, 1, 1, own, at, row, dgates, 3 * d, 1, lanes, shared)
                    for i in range(lanes):
                        all_dx[j, here + i * columns] = dx[0, i] + y[0, i] if residual else dx[0, i]
                dh, dbefore = dbefore, dh
            if shared:
                for i in range(size):
                    to = first + column + i * count
                    all_dw[to] = added[i] + all_dw[to] if done else added[i]


@partial(compiled, parallel=True)
def _do_together(  # type: ignore[no-untyped-def]
    bounds, parts, ends, w, count, d, x, h, y, states, dy, dw, dx, residual, most
):
    for t in numba.prange(len(bounds) - 1):
        mine = slice(bounds[t], bounds[t + 1])
        _do(parts[mine], ends[mine], w, count, d, x, h, y, states, dy, dw, dx, residual, most)


NONE = torch.empty(0, 0)


def _work(
    parts: Divided,
    values: Tensor,
    x: Tensor,
    h: Tensor,
    y: Tensor = NONE,
    states: Tensor = NONE,
    dy: Tensor = NONE,
    dvalues: Tensor = NONE,
    dx: Tensor = NONE,
    residual: bool = False,
) -> None:
    given = [t.detach().contiguous().numpy() for t in (x, h, y, states, dy)]
    w, dw, gradient = values.detach().numpy(), dvalues.numpy(), dx.numpy()
    most = OF_ONE, max(-(-OF_MANY // 5), min(OF_MANY, CACHED // len(w)))
    own = (w.ravel(), w.shape[1], h.shape[1], *given, dw.ravel(), gradient, residual, most)
    if len(parts.bounds) == 2:
        _do(*parts[1:], *own)
    else:
        threads = torch.get_num_threads()
        numba.set_num_threads(len(parts.bounds) - 1)
        if torch.get_num_threads() != threads:  # they may share a pool, whose size it sets at first
            torch.set_num_threads(threads)
        _do_together(*parts, *own)


class _Sequence(torch.autograd.Function):
    """What `sequence` returns, with a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, values: Tensor, parts: Parts, residual: bool
    ) -> Tensor:
        own, y = Divided.of(parts, any(ctx.needs_input_grad)), torch.zeros_like(x)
        _work(own, values, x, h, y=y, residual=residual)
        ctx.save_for_backward(x, h, values)
        ctx.given = (own, residual)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, h, values), (parts, residual) = ctx.saved_tensors, ctx.given
        all_named = parts.parts[parts.parts[:, 1] > 0, 2].sum() == values.shape[1]
        dvalues = torch.empty_like(values) if all_named else torch.zeros_like(values)
        dx = torch.zeros_like(x) if ctx.needs_input_grad[0] else NONE
        _work(parts, values, x, h, dy=gradients[0], dvalues=dvalues, dx=dx, residual=residual)
        return dx if ctx.needs_input_grad[0] else None, None, dvalues, None, None


def hidden_size(parameters: int) -> int:
    """Return d of a GRU that has so many parameters: 3 d^2 + 4 d + 1."""
    return round(((1 + 3 * parameters) ** 0.5 - 2) / 3)


def _started(x: Tensor, h: Tensor | None, values: Tensor) -> Tensor:
    return x.new_empty(0, hidden_size(len(values))) if h is None else h


def sequence(x: Tensor, h: Tensor | None, values: Tensor, parts: Parts, residual: bool) -> Tensor:
    """Return the outputs of every step of Eq. 4 and 5, (k, N) float32; see `gru.gru`.

    x: (k, N).  h: (N, d), the state before; None: zeros.  values: (3 d + 3 d^2 + d + 1, P), the rows of
    u, w, out and bias, one generator a column.  residual: adds x.  What a step makes of numbers that do
    not go through it means nothing.  Differentiable in `values` and x.
    """
    made: Tensor = _Sequence.apply(x, _started(x, h, values), values, parts, residual)
    return made


def first_states(x: Tensor, h: Tensor | None, values: Tensor, parts: Parts) -> Tensor:
    """Return the state after x_1 alone, (d, N); see `sequence`."""
    h = _started(x, h, values)
    states = x.new_empty(x.shape[1], h.shape[1])
    first = Divided.of(parts._replace(ends=parts.ends[:, :1]), learning=False)
    _work(first, values, x[:1], h, states=states)
    return states.T
