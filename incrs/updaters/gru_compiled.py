"""Furniture: the GRUs of `gru` compiled for a CPU, all of a step's numbers in one call (ASMG, RecSys 2021).

Numbers lie one behind the other, N in all; so many of them at a time (LANES) go through all their steps
while they and what belongs to them stay in the nearest cache. On the way back the steps are done again
rather than kept. The machine code is kept beside this file, or in the user's cache, after the first use.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from incrs.updaters.compiling import compiled

LANES = 320
"""So many numbers are worked on at a time, or one row of a table where it is longer."""
CACHED = 20_000
"""Fewer where more parameters than this would be behind them, which leave the cache; a fifth at least."""

CHUNK = 1 << 12
"""What has more numbers than this is divided among threads."""

Array = np.ndarray[Any, np.dtype[Any]]
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
def _add_products(to, w, at, row, v, count, lanes):  # type: ignore[no-untyped-def]
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
def _steps(n, x, h, gates, q, w, at, row, d, lanes):  # type: ignore[no-untyped-def]
    """Fill h[1:] (., d, lanes) and gates (., 3d, lanes), z, r and c of Eq. 4, for n steps."""
    for j in range(n):
        x_j = x[j]
        for g in range(2 * d):
            a, u = gates[j, g], w[at + g * row :][:lanes]
            for i in range(lanes):
                a[i] = u[i] * x_j[i]
            _add_products(a, w, at + (3 * d + g) * row, 3 * d * row, h[j], d, lanes)
            for i in range(lanes):
                a[i] = _sigmoid(a[i])
        for m in range(d):
            q_m, r, before = q[m], gates[j, d + m], h[j, m]
            for i in range(lanes):
                q_m[i] = before[i] * r[i]
        for m in range(d):
            a, u = gates[j, 2 * d + m], w[at + (2 * d + m) * row :][:lanes]
            for i in range(lanes):
                a[i] = u[i] * x_j[i]
            _add_products(a, w, at + (5 * d + m) * row, 3 * d * row, q, d, lanes)
            z, before, after = gates[j, m], h[j, m], h[j + 1, m]
            for i in range(lanes):
                c = TWO * _sigmoid(TWO * a[i]) - ONE  # tanh
                a[i] = c
                after[i] = before[i] + z[i] * (c - before[i])


@compiled
def _load(start, n, lanes, all_x, all_h, x, h, d):  # type: ignore[no-untyped-def]
    for j in range(n):
        for i in range(lanes):
            x[j, i] = all_x[j, start + i]
    if len(all_h):
        for i in range(lanes):
            for m in range(d):
                h[0, m, i] = all_h[start + i, m]
    else:
        h[0, :, :lanes] = 0


@compiled
def _repeat(w, first, dim, count, rows, width, row, to):  # type: ignore[no-untyped-def]
    """Write the parameters of `dim` generators into `to`, over and over: `rows` rows of `width`."""
    for i in range(rows):
        own = to[i * row :][:width]
        own[:dim] = w[i * count + first :][:dim]
        filled = dim
        while filled < width:
            more = min(filled, width - filled)
            own[filled : filled + more] = own[:more]
            filled += more


@compiled
def _add_up(dw, first, dim, count, rows, width, row, own):  # type: ignore[no-untyped-def]
    """Sum in `own`, as `_repeat` fills it, what belongs to one parameter, into dw; `own` is used up."""
    for i in range(rows):
        one = own[i * row :][:width]
        held = width // dim
        while held > 1:
            half = held // 2
            to, of = one[: half * dim], one[(held - half) * dim : held * dim]
            for j in range(half * dim):
                to[j] += of[j]
            held -= half
        dw[i * count + first :][:dim] = one[:dim]


@compiled
def _width(rows, dim, most):  # type: ignore[no-untyped-def]
    """Return how many numbers of a part are worked on at a time."""
    return min(dim, most) if rows == 1 else max(1, min(rows, most // dim)) * dim


@compiled
def _do(  # type: ignore[no-untyped-def]
    parts, ends, w, count, d, all_x, all_h, all_y, states, all_dy, all_dw, all_dx, residual, most
):
    """Fill the outputs and the states after x_1, or, where dy is given, the gradients; those are not empty.

    w, dw: (R * P,), P generators, `count` of them.  most: numbers to work on at a time.
    """
    k, size, learning = len(all_x), 3 * d + 3 * d * d + d + 1, len(all_dy) > 0
    widest = 1
    for s in range(len(parts)):
        widest = max(widest, _width(parts[s, 1], parts[s, 2], most))
    x, h = np.empty((k, widest), np.float32), np.empty((k + 1, d, widest), np.float32)
    gates, q = np.empty((k, 3 * d, widest), np.float32), np.empty((d, widest), np.float32)
    dh, dbefore = np.empty((d, widest), np.float32), np.empty((d, widest), np.float32)
    dgates, dq = np.empty((3 * d, widest), np.float32), np.empty(widest, np.float32)
    repeated, added = np.empty(size * widest, np.float32), np.empty(size * widest, np.float32)
    for s in range(len(parts)):
        start, rows, dim, first = parts[s]
        wide, width = rows == 1, _width(rows, dim, most)
        own, dw, at, row = w, all_dw, first, count
        if not wide:
            own, dw, at, row = repeated, added, 0, widest
            _repeat(w, first, dim, count, size, width, row, own)
            for i in range(size if learning else 0):
                dw[i * row :][:width] = 0
        for done in range(0, rows * dim, width):
            lanes, here, n = min(width, rows * dim - done), start + done, 0
            for j in range(k):
                if ends[s, j] * dim > done:
                    n = j + 1
            if wide:
                at = first + done
            _load(here, n, lanes, all_x, all_h, x, h, d)
            _steps(n, x, h, gates, q, own, at, row, d, lanes)
            if len(states):
                for i in range(lanes):
                    for m in range(d):
                        states[here + i, m] = h[1, m, i]
            for j in range(n if len(all_y) else 0):
                y, bias = all_y[j, here : here + lanes], own[at + (size - 1) * row :][:lanes]
                for i in range(lanes):
                    y[i] = bias[i] + x[j, i] if residual else bias[i]
                _add_products(y, own, at + (size - 1 - d) * row, row, h[j + 1], d, lanes)
            if not learning:
                continue
            if wide:
                for i in range(size):
                    dw[at + i * row :][:lanes] = 0
            dh[:, :lanes] = 0
            for j in range(n - 1, -1, -1):
                x_j, dy = x[j], all_dy[j, here : here + lanes]
                dbias = dw[at + (size - 1) * row :][:lanes]
                for i in range(lanes):
                    dbias[i] += dy[i]
                for m in range(d):
                    at_m = at + (size - 1 - d + m) * row
                    out, dout, dh_m, db_m = own[at_m:][:lanes], dw[at_m:][:lanes], dh[m], dbefore[m]
                    before, after, z, c = h[j, m], h[j + 1, m], gates[j, m], gates[j, 2 * d + m]
                    dz, dc = dgates[m], dgates[2 * d + m]
                    for i in range(lanes):
                        dout[i] += after[i] * dy[i]
                        dh_m[i] += out[i] * dy[i]
                    for i in range(lanes):
                        dz[i] = dh_m[i] * (c[i] - before[i]) * z[i] * (ONE - z[i])
                        dc[i] = dh_m[i] * z[i] * (ONE - c[i] * c[i])
                        db_m[i] = dh_m[i] * (ONE - z[i])
                for m in range(d):  # of q = h * r
                    dq[:lanes] = 0
                    at_m = at + (3 * d + m * 3 * d) * row
                    _add_products(dq, own, at_m + 2 * d * row, row, dgates[2 * d :], d, lanes)
                    q_m, r, before = q[m], gates[j, d + m], h[j, m]
                    dr, db_m = dgates[d + m], dbefore[m]
                    for i in range(lanes):
                        q_m[i] = before[i] * r[i]
                        dr[i] = dq[i] * q_m[i] * (ONE - r[i])
                        db_m[i] += dq[i] * r[i]
                for m in range(d):
                    at_m = at + (3 * d + m * 3 * d) * row
                    _add_products(dbefore[m], own, at_m, row, dgates, 2 * d, lanes)
                for g in range(3 * d):
                    da, du = dgates[g], dw[at + g * row :][:lanes]
                    for i in range(lanes):
                        du[i] += da[i] * x_j[i]
                    for m in range(d):
                        dw_m = dw[at + (3 * d + m * 3 * d + g) * row :][:lanes]
                        v = h[j, m] if g < 2 * d else q[m]
                        for i in range(lanes):
                            dw_m[i] += v[i] * da[i]
                if len(all_dx):
                    dx = all_dx[j, here : here + lanes]
                    for i in range(lanes):
                        dx[i] = dy[i] if residual else 0
                    _add_products(dx, own, at, row, dgates, 3 * d, lanes)
                dh, dbefore = dbefore, dh
        if learning and not wide:
            _add_up(all_dw, first, dim, count, size, width, row, dw)


@partial(compiled, parallel=True)
def _do_together(  # type: ignore[no-untyped-def]
    bounds, parts, ends, w, count, d, x, h, y, states, dy, dw, dx, residual, most
):
    for t in numba.prange(len(bounds) - 1):
        mine = slice(bounds[t], bounds[t + 1])
        _do(parts[mine], ends[mine], w, count, d, x, h, y, states, dy, dw, dx, residual, most)


class Parts(NamedTuple):
    """Which generator makes which of N numbers; no generator is named twice.

    parts: (S, 4) int64: the first number of a part, its rows, the numbers in a row, and the generator of
    the first of them; the generators of a row follow each other.
    ends: (S, k) int64: how many of a part's rows, in front, go through which step.
    """

    parts: Array
    ends: Array

    def repeated(self, values: Tensor) -> Tensor:
        """Return the parameters behind each number, (R, N), of those of the generators (R, P)."""
        found: list[Tensor] = []
        run = 0  # generators that each make as many numbers, one after the other
        for s, (_, rows, dim, first) in enumerate(self.parts.tolist()):
            following = self.parts[s + 1, 1:].tolist() if s + 1 < len(self.parts) else None
            if dim == 1 and following == [rows, 1, first + 1]:
                run += 1
            elif run:
                found.append(values[:, first - run : first + 1].repeat_interleave(rows, 1))
                run = 0
            else:
                found.append(values[:, first : first + dim].repeat(1, rows))
        return torch.cat(found, 1)


class Shared(NamedTuple):
    """`Parts` by threads: those of thread t begin at bounds[t] (threads + 1,).

    What comes out does not depend on which thread does what.
    """

    bounds: Array
    parts: Array
    ends: Array

    @staticmethod
    def of(given: Parts, learning: bool) -> Shared:
        """Share parts out among as many threads as PyTorch has, in parts of CHUNK numbers where they can be.

        learning: False cuts by rows, too, so that generators are named again, and there is no gradient.
        """
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if threads < 2:
            return Shared(np.array([0, len(given.parts)]), *given)
        rows, dim = given.parts[:, 1], given.parts[:, 2]
        wide = rows == 1
        length = np.where(wide, dim, rows)  # of what is cut: numbers, or rows
        each = np.where(wide, CHUNK, rows if learning else np.maximum(1, CHUNK // dim))
        pieces = -(-length // each)
        which = np.repeat(np.arange(len(pieces)), pieces)
        at = (np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * each[which]
        parts, ends, wide = given.parts[which], given.ends[which], wide[which]
        size = np.minimum(each[which], length[which] - at)
        parts[:, 0] += np.where(wide, at, at * dim[which])
        parts[:, 1], parts[:, 2] = np.where(wide, 1, size), np.where(wide, size, dim[which])
        parts[:, 3] += np.where(wide, at, 0)
        ends = np.where(wide[:, None], ends, ends - at[:, None])
        owner = _owners(parts[:, 1] * parts[:, 2], threads)
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(threads + 1))
        return Shared(bounds, parts[order], ends[order])


@compiled
def _owners(sizes, threads):  # type: ignore[no-untyped-def]
    """Return which thread does each part: the one with the least to do so far."""
    loads, owner = np.zeros(threads, np.int64), np.zeros(len(sizes), np.int64)
    for s in range(len(sizes)):
        t = np.argmin(loads)
        owner[s], loads[t] = t, loads[t] + sizes[s]
    return owner


NONE = torch.empty(0, 0)


def _work(
    parts: Shared,
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
    most = max(-(-LANES // 5), min(LANES, CACHED // len(w)))
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
        own, y = Shared.of(parts, any(ctx.needs_input_grad)), torch.zeros_like(x)
        _work(own, values, x, h, y=y, residual=residual)
        ctx.save_for_backward(x, h, values)
        ctx.given = (own, residual)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, h, values), (parts, residual) = ctx.saved_tensors, ctx.given
        all_named = parts.parts[:, 2].sum() == values.shape[1]
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
    first = Shared.of(parts._replace(ends=parts.ends[:, :1]), learning=False)
    _work(first, values, x[:1], h, states=states)
    return states.T
