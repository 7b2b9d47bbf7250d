"""Furniture: `Generator` makes every weight of a backbone of a sequence of models, by one formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Size, Tensor, nn

from incrs.models.base import Backbone
from incrs.updaters import renumbering
from incrs.updaters.base import Weights
from incrs.updaters.gru import Formula
from incrs.updaters.learner import Known
from incrs.updaters.parts import Parts
from incrs.updaters.renumbering import Needed

DENSE = "dense"
"""The name under which the states of all weights outside of tables are kept: (d, P)."""
NEAR = "near"
"""The name of what every step needs whole, one behind the other: small tables, and all outside of tables."""
BLOCK = 1 << 14
"""Whole tables are generated in blocks of so many rows."""
SAMPLE = 1 << 9
"""Of a larger table so many rows, evenly spread, stand for all of them in `Generator.influence`."""


class Layout:
    """Which generator makes which weight of a backbone.

    tables: name -> numbers in a row, each with its generator.  dense: name -> shape, of the weights
    outside of tables.  near: name -> shape, of small tables and of those, in the order in which they
    lie in NEAR.  far: name of each other table -> shape of a row.  sizes: how many generators each table
    and each group of weights has, P in all.  fields: (P,) how many generators the tensor has that a
    generator works for.  first: name of a table -> the number of its first generator.
    """

    def __init__(self, backbone: Backbone, share: str):
        state, tables = backbone.state_dict(), backbone.tables()
        self.tables = {name: state[name][0].numel() for name in tables}
        small = {name for name in tables if len(state[name]) <= renumbering.SMALL}
        self.far = {name: state[name].shape[1:] for name in tables if name not in small}
        shapes = {name: x.shape for name, x in backbone.named_parameters() if name not in tables}
        made = {name: numbers_each(shape, share) for name, shape in shapes.items()}
        self.dense = {name: shapes[name] for name in sorted(made, key=lambda name: made[name])}
        self.near = {name: state[name].shape for name in tables if name in small} | self.dense
        generators = {name: shape.numel() // made[name] for name, shape in self.dense.items()}
        groups = [  # (generators, numbers that each of them makes)
            (sum(count for name, count in generators.items() if made[name] == numbers), numbers)
            for numbers in sorted(set(made.values()))
        ]
        self.sizes = [*self.tables.values(), *(count for count, _ in groups)]
        counts = torch.tensor([*self.tables.values(), *generators.values()])
        self.fields = counts.repeat_interleave(counts)
        starts = accumulate(self.tables.values(), initial=0)
        self.first = dict(zip(self.tables, starts, strict=False))
        at, first = 0, sum(self.tables.values())
        found: list[np.ndarray] = [np.empty((0, 4), np.int64)]
        for name in self.tables:
            if name in small:
                rows, dim = len(state[name]), self.tables[name]
                found.append(np.array([[at, rows, dim, self.first[name]]]))
                at += rows * dim
        for count, numbers in groups:  # one row, or one number in each of a generator's rows
            each = np.arange(count if numbers > 1 else 1)[:, None] * [numbers, 0, 0, 1]
            shape = (numbers, 1) if numbers > 1 else (1, count)
            found.append(np.array([[at, *shape, first]]) + each)
            at, first = at + count * numbers, first + count
        self._near = np.concatenate(found)

    def parts(self, rows: Mapping[str, int], needed: Needed, steps: int, near: bool) -> Parts:
        """Return which generator makes which number, of so many rows of tables and of NEAR behind them.

        needed: see `Generator.forward`; where it has one number, all steps need as many.
        """
        at, listed, through = 0, [], []
        for name, count in rows.items():
            dim = self.tables[name]
            listed.append((at, count, dim, self.first[name]))
            own = needed.get(name, (count,))
            through.append(own if len(own) == steps else [own[0]] * steps)
            at += count * dim
        parts = np.array(listed, np.int64).reshape(-1, 4)
        ends = np.array(through, np.int64).reshape(-1, steps)
        if near:
            parts = np.concatenate([parts, self._near + np.array([at, 0, 0, 0])])
            ends = np.concatenate([ends, np.repeat(self._near[:, 1:2], steps, 1)])
        return Parts(parts, ends)

    def flat(self, weights: Weights) -> Tensor:
        """Return the weights as they lie in NEAR, (N,)."""
        return torch.cat([weights[name].flatten() for name in self.near])

    def flat_state(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the states as the weights lie in NEAR, (N, d), of (rows, dim, d) and of DENSE (d, P)."""
        parts = [state[name].flatten(0, 1) for name in self.near if name in self.tables]
        return torch.cat([*parts, *([state[DENSE].T] if self.dense else [])])

    def states(self, found: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return what `first_state` made of everything as `flat_state` takes it: name -> (rows, dim, d)."""
        state = {name: torch.stack(tuple(x), -1) for name, x in found.items()}
        if NEAR in state:
            sizes = [shape.numel() for shape in self.near.values()]
            parts = dict(zip(self.near, state.pop(NEAR).split(sizes), strict=True))
            for name in self.near.keys() & self.tables.keys():
                state[name] = parts.pop(name).unflatten(0, (-1, self.tables[name]))
            if parts:
                state[DENSE] = torch.cat(list(parts.values())).T.contiguous()
        return state


def numbers_each(shape: Size, share: str) -> int:
    """Return how many of a dense tensor's numbers one generator makes."""
    each = {"per_weight": 1, "per_output": shape[-1] if len(shape) > 1 else 1}
    return each.get(share, max(1, shape.numel()))


class Generator(nn.Module):
    """Applies a formula to every coordinate of a sequence of `models` models.

    weights: the generators' parameters (..., P), in the order in which the formula takes them.
    values: the same, one behind the other, (R, P).
    """

    def __init__(
        self, layout: Layout, models: int, formula: Formula, weights: Mapping[str, Tensor]
    ):
        super().__init__()
        self.layout, self.models, self.formula = layout, models, formula
        self._shapes = {name: x.shape[:-1] for name, x in weights.items()}
        self.values = nn.Parameter(
            torch.cat([x.reshape(-1, x.shape[-1]) for x in weights.values()])
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The generators' parameters as they were given."""
        rows = self.values.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), rows, strict=True)
        return {name: own.view(*shape, -1) for (name, shape), own in named}

    def forward(self, known: Known, needed: Needed | None = None) -> list[dict[str, Tensor]]:
        """Return the S models that the formula makes, of the rows that are known.

        known: under a table's name the models' rows (n, ...) and, where there is one, the state before
        them (n, dim, d); under NEAR (models, N) and, where there is one, the state (N, d).
        needed: of tables a model has the rows that its batch or a later one needs.
        """
        return self.named(self.each(self.formula, known, needed or {}))

    def named(self, found: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Tensor]]:
        """Return what `each` found as S models: name -> weight in its own shape."""
        near, far = self.layout.near, self.layout.far
        sizes = [shape.numel() for shape in near.values()]
        made: list[dict[str, Tensor]] = []
        for j in range(len(next(iter(found.values())))):
            one: dict[str, Tensor] = {}
            for name, values in found.items():
                if name != NEAR:
                    plain = len(far[name]) == 1
                    one[name] = values[j] if plain else values[j].reshape(-1, *far[name])
                    continue
                for (own, shape), part in zip(near.items(), values[j].split(sizes), strict=True):
                    one[own] = part.view(shape)
            made.append(one)
        return made

    def each(self, formula: Formula, known: Known, needed: Needed) -> dict[str, Sequence[Tensor]]:
        """Return what a formula makes of what is known, S of each: of tables (n, dim), of NEAR (N,)."""
        layout, k, values = self.layout, self.models, self.values
        rows = {name: len(known[name][0]) for name in layout.far if name in known}
        models, *state = known.get(NEAR, ((),))
        pieces = [
            x
            for i in range(k)
            for x in (*(known[name][i].flatten() for name in rows), *models[i : i + 1])
        ]
        states = [known[name][k].flatten(0, -2) for name in rows if len(known[name]) > k] + state
        x, h = torch.cat(pieces).view(k, -1), torch.cat(states) if states else None
        parts = layout.parts(rows, needed, k, NEAR in known)
        single = x.dtype == values.dtype == torch.float32
        if formula.compiled and single and x.device.type == "cpu":
            made = formula.compiled(x, h, values, parts)
        else:
            made = formula.plain(x, h, parts.repeated(values))
        found: dict[str, list[Tensor]] = {name: [] for name in known}
        for j, y in enumerate(made):
            sizes = []
            for name, count in rows.items():
                some, dim = needed[name][j] if name in needed else count, layout.tables[name]
                sizes += [some * dim, (count - some) * dim]
            split = y.split([*sizes, len(y) - sum(sizes)])
            for i, name in enumerate(rows):
                found[name].append(split[2 * i].view(-1, layout.tables[name]))
            if NEAR in known:
                found[NEAR].append(split[-1])
        return dict(found)

    @torch.no_grad()
    def whole(self, formula: Formula, known: Known) -> dict[str, Sequence[Tensor]]:
        """Return what a formula makes of all rows, as `each` does, tables in blocks."""
        found = self.each(formula, {NEAR: known[NEAR]}, {}) if NEAR in known else {}
        for name in self.layout.far:
            blocks = zip(*(x.split(BLOCK) for x in known[name]), strict=True)
            parts = [self.each(formula, {name: block}, {})[name] for block in blocks]
            found[name] = [torch.cat(same) for same in zip(*parts, strict=True)]
        return found

    def influence(self, known: Known) -> dict[str, list[float]]:
        """Return by how much a made weight moves with the same weight of each model, oldest first.

        Of a weight y it is |d y / d theta_j|, theta_j being the same weight of model j, and of a group
        the root of the mean of its square. Groups are tables, of which some rows are looked at, and
        the weights outside of tables that have the first two parts of their name in common.
        Afterwards the generator trains no more.
        """
        self.requires_grad_(False)
        layout = self.layout
        models: dict[str, tuple[Tensor, ...]] = {}
        given: dict[str, tuple[Tensor, ...]] = {}
        for name, tensors in known.items():
            steps, parts = 1, list(tensors)
            if name != NEAR:
                held, steps = len(parts[0]), self.models
                some = torch.arange(min(held, SAMPLE)) * held // min(held, SAMPLE)
                parts = [part[some] for part in parts]
            models[name] = tuple(part.detach().requires_grad_() for part in parts[:steps])
            given[name] = (*models[name], *parts[steps:])
        made = self.each(self.formula, given, {})
        total = torch.stack([values[-1].sum() for values in made.values()]).sum()
        moved = iter(torch.autograd.grad(total, [x for own in models.values() for x in own]))
        squares: dict[str, list[Tensor]] = {}
        rows: dict[str, float] = {}
        for name, own in models.items():
            gradient = torch.stack([next(moved) for _ in own]).view(self.models, -1)
            moves = {name: gradient}
            if name == NEAR:
                sizes = [shape.numel() for shape in layout.near.values()]
                moves = dict(zip(layout.near, gradient.split(sizes, 1), strict=True))
            for one, move in moves.items():
                table = one in layout.tables
                group = one.replace(".tables.", ".") if table else ".".join(one.split(".")[:2])
                squares.setdefault(group, []).append(move)
                count = len(known[one][0]) if one in layout.far else layout.near[one][0]
                rows[group] = count if table else float("inf")
        return {
            group: torch.cat(squares[group], 1).square().mean(1).sqrt().tolist()
            for group in sorted(squares, key=lambda group: -rows[group])
        }


def glorot(layout: Layout, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
    """Draw GRUs, (..., P): [P, a, b] in the paper's program is uniform within sqrt(6 / (P (a + b))).

    P: how many generators the tensor has that they make; so it is for the output's bias too, a = b = 1.
    """
    count, d = len(layout.fields), hidden
    shapes: dict[str, tuple[int, ...]] = {"u": (3 * d,), "w": (d, 3 * d), "out": (d,), "bias": ()}
    spans = {"u": 1 + d, "w": d + d, "out": d + 1, "bias": 2}
    drawn = {}
    for name, shape in shapes.items():
        limit = (6 / (layout.fields * spans[name])).sqrt()
        drawn[name] = limit * (2 * torch.rand(*shape, count, generator=random) - 1)
    return drawn
