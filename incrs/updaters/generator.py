"""Furniture: `Generator` makes every weight of a backbone of a sequence of models, by one formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from incrs.models.base import Backbone
from incrs.updaters.base import Weights
from incrs.updaters.gru import CACHED, Formula
from incrs.updaters.learner import SMALL, Known, Needed

DENSE = "dense"
"""The name under which all weights outside of tables lie, one behind the other: (models, P)."""
BLOCK = 1 << 14
"""Whole tables are generated in blocks of so many rows."""
SAMPLE = 1 << 9
"""Of a larger table so many rows, evenly spread, stand for all of them in `Generator.influence`."""


class Layout:
    """Which generator makes which weight of a backbone.

    tables: name -> numbers in a row, each with its generator.  dense: name -> shape, in the order in
    which they lie in DENSE.  groups: (generators, numbers that each of them makes), which together
    make DENSE.  sizes: how many generators each table and each group has, P in all.
    fields: (P,) how many generators the tensor has that a generator works for.
    """

    def __init__(self, backbone: Backbone, share: str):
        state, tables = backbone.state_dict(), backbone.tables()
        self.tables = {name: state[name][0].numel() for name in tables}
        self.rows = {name: state[name].shape[1:] for name in tables}
        shapes = {name: x.shape for name, x in backbone.named_parameters() if name not in tables}
        made = {name: numbers_each(shape, share) for name, shape in shapes.items()}
        self.dense = {name: shapes[name] for name in sorted(made, key=lambda name: made[name])}
        generators = {name: shape.numel() // made[name] for name, shape in self.dense.items()}
        self.groups = [
            (sum(count for name, count in generators.items() if made[name] == numbers), numbers)
            for numbers in sorted(set(made.values()))
        ]
        self.sizes = [*self.tables.values(), *(count for count, _ in self.groups)]
        counts = torch.tensor([*self.tables.values(), *generators.values()])
        self.fields = counts.repeat_interleave(counts)

    def flat(self, weights: Weights) -> Tensor:
        """Return the weights outside of tables as they lie in DENSE, (P,)."""
        return torch.cat([weights[name].flatten() for name in self.dense])


def numbers_each(shape: Size, share: str) -> int:
    """Return how many of a dense tensor's numbers one generator makes."""
    each = {"per_weight": 1, "per_output": shape[-1] if len(shape) > 1 else 1}
    return each.get(share, max(1, shape.numel()))


class Generator(nn.Module):
    """Applies a formula to every coordinate of a sequence of `models` models.

    weights: the generators' parameters (..., P), in the order in which the formula takes them.
    """

    def __init__(
        self, layout: Layout, models: int, formula: Formula, weights: Mapping[str, Tensor]
    ):
        super().__init__()
        self.layout, self.models, self.formula = layout, models, formula
        ordered = [(name, x.clone()) for name, x in weights.items()]  # a dict would be sorted
        self.weights = nn.ParameterDict(ordered)

    def forward(self, known: Known, needed: Needed | None = None) -> list[dict[str, Tensor]]:
        """Return the S models that the formula makes, of the rows that are known.

        known: under a table's name the models' rows (n, ...) and, where there is one, the state before
        them (n, dim, d); under DENSE (models, P) and, where there is one, the state (d, P).
        needed: of tables, what is not needed is 0.
        """
        return self.named(self.each(self.formula, known, needed or {}))

    def named(self, found: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what `each` found as S models: name -> weight in its own shape."""
        made: list[dict[str, Tensor]] = []
        sizes = [shape.numel() for shape in self.layout.dense.values()]
        for j in range(len(next(iter(found.values())))):
            one = {}
            for name, values in found.items():
                if name in self.layout.tables:
                    one[name] = values[j].reshape(-1, *self.layout.rows[name])
                else:
                    parts = zip(self.layout.dense.items(), values[j].split(sizes), strict=True)
                    one |= {dense: part.view(shape) for (dense, shape), part in parts}
            made.append(one)
        return made

    def each(self, formula: Formula, known: Known, needed: Needed) -> dict[str, Tensor]:
        """Return what a formula makes of what is known: of tables (S, n, dim), of DENSE (S, P)."""
        layout = self.layout
        split = [parameter.split(layout.sizes, -1) for parameter in self.weights.values()]
        pieces = list(zip(*split, strict=True))  # of each table, then of each group
        numbers = {name: i for i, name in enumerate(layout.tables)}
        found: dict[str, Tensor] = {}
        for names in made_together(known, needed, layout):
            # Shorter tables are padded to the longest: (tables, n, models, dim).
            rows = pad_sequence(
                [
                    torch.stack([m.flatten(1) for m in known[name][: self.models]], 1)
                    for name in names
                ],
                batch_first=True,
            )
            x = rows.permute(2, 0, 3, 1).flatten(1, 2)  # (models, tables * dim, n)
            h = None
            if len(known[names[0]]) > self.models:
                states = pad_sequence([known[name][-1] for name in names], batch_first=True)
                h = states.permute(0, 2, 3, 1).flatten(0, 1)  # (tables * dim, d, n)
            mine = [
                torch.cat(same, -1).movedim(-1, 0).contiguous()
                for same in zip(*(pieces[numbers[name]] for name in names), strict=True)
            ]
            made = self.as_needed(formula, x, h, mine, needed.get(names[0], ()))
            made = made.unflatten(1, (len(names), -1)).transpose(2, 3)
            for i, name in enumerate(names):
                found[name] = made[:, i, : len(known[name][0])]
        if DENSE in known:
            sequence, *state = known[DENSE]
            at, dense = 0, []
            for (count, each), own in zip(layout.groups, pieces[len(numbers) :], strict=True):
                stop = at + count * each
                x = sequence[:, at:stop].unflatten(1, (count, each))
                h = None
                if state:
                    h = state[0][:, at:stop].unflatten(1, (count, each)).transpose(0, 1)
                mine = [piece.movedim(-1, 0) for piece in own]
                if each > 1:
                    mine = [piece.contiguous() for piece in mine]
                made = formula(x, h, *mine)
                dense.append(made.flatten(1))
                at = stop
            found[DENSE] = torch.cat(dense, 1)
        return found

    def as_needed(
        self,
        formula: Formula,
        x: Tensor,
        h: Tensor | None,
        parameters: Sequence[Tensor],
        needed: Sequence[int],
    ) -> Tensor:
        """Return what the formula makes, but of numbers that no later step needs those steps as 0."""
        if not needed or needed[0] < CACHED:  # of few, all is made at once
            return formula(x, h, *parameters)
        parts, at = [], 0
        for steps in range(len(needed), 0, -1):
            own = slice(at, needed[steps - 1])
            if own.start < own.stop:
                some = x[: self.models - len(needed) + steps, :, own]
                made = formula(some, None if h is None else h[:, :, own], *parameters)
                parts.append(F.pad(made, (0, 0, 0, 0, 0, len(needed) - steps)))
            at = own.stop
        return torch.cat(parts, 2)

    @torch.no_grad()
    def whole(self, formula: Formula, known: Known) -> dict[str, Tensor]:
        """Return what a formula makes of all rows, as `each` does, in blocks."""
        found = self.each(formula, {n: x for n, x in known.items() if n == DENSE}, {})
        for name in self.layout.tables:
            parts = zip(*(x.split(BLOCK) for x in known[name]), strict=True)
            found[name] = torch.cat(
                [self.each(formula, {name: part}, {})[name] for part in parts], 1
            )
        return found

    def influence(self, known: Known) -> dict[str, list[float]]:
        """Return by how much a made weight moves with the same weight of each model, oldest first.

        Of a weight y it is |d y / d theta_j|, theta_j being the same weight of model j, and of a group
        the root of the mean of its square. Groups are tables, of which some rows are looked at, and
        the weights outside of tables that have the first two parts of their name in common.
        Afterwards the generator trains no more.
        """
        self.requires_grad_(False)
        models: dict[str, tuple[Tensor, ...]] = {}
        given: dict[str, tuple[Tensor, ...]] = {}
        tables = sorted(self.layout.tables, key=lambda name: -len(known[name][0]))
        for name in ([DENSE] if self.layout.dense else []) + tables:
            parts, steps = known[name], 1
            if name in self.layout.tables:
                rows, steps = len(parts[0]), self.models
                some = torch.arange(min(rows, SAMPLE)) * rows // min(rows, SAMPLE)
                parts = [part[some] for part in parts]
            models[name] = tuple(part.detach().requires_grad_() for part in parts[:steps])
            given[name] = (*models[name], *parts[steps:])
        made = self.each(self.formula, given, {})
        total = torch.stack([values[-1].sum() for values in made.values()]).sum()
        moved = iter(torch.autograd.grad(total, [x for own in models.values() for x in own]))
        squares: dict[str, list[Tensor]] = {}
        for name, own in models.items():
            gradients = [next(moved) for _ in own]
            if name in self.layout.tables:
                squares[name.replace(".tables.", ".")] = [torch.stack(gradients).flatten(1)]
                continue
            sizes = [shape.numel() for shape in self.layout.dense.values()]
            for dense, part in zip(self.layout.dense, gradients[0].split(sizes, 1), strict=True):
                squares.setdefault(".".join(dense.split(".")[:2]), []).append(part)
        return {
            group: torch.cat(parts, 1).square().mean(1).sqrt().tolist()
            for group, parts in squares.items()
        }


def made_together(known: Known, needed: Needed, layout: Layout) -> list[list[str]]:
    """Return the names of the tables in `known`, in one list small ones of like size."""
    lists: dict[Any, list[str]] = {}
    for name, dim in layout.tables.items():
        if name in known:
            rows = len(known[name][0])
            small = rows <= SMALL and name not in needed
            alike = (dim, (rows.bit_length() + 1) // 2) if small else name
            lists.setdefault(alike, []).append(name)
    return list(lists.values())


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
