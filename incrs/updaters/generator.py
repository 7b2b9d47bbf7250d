"""Furniture: `Generator` makes every weight of a backbone of a sequence of models, by one formula."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Size, Tensor, nn

from incrs.models.base import Backbone
from incrs.updaters.base import Weights
from incrs.updaters.gru import Formula
from incrs.updaters.learner import Known
from incrs.updaters.packs import Packs
from incrs.updaters.renumbering import Needed

DENSE = "dense"
"""The name under which all weights outside of tables lie, one behind the other: (models, P)."""
BLOCK = 1 << 14
"""Whole tables are generated in blocks of so many rows."""
MINIMUM = 32
"""Packs of rows have at least so many places."""
SAMPLE = 1 << 9
"""Of a larger table so many rows, evenly spread, stand for all of them in `Generator.influence`."""


class Layout:
    """Which generator makes which weight of a backbone.

    tables: name -> numbers in a row, each with its generator.  dense: name -> shape, in the order in
    which they lie in DENSE.  groups: (generators, numbers that each of them makes), which together
    make DENSE.  sizes: how many generators each table and each group has, P in all.
    fields: (P,) how many generators the tensor has that a generator works for.
    which: name of a table -> (dim,) which of all the tables' generators are its own.
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
        numbered = torch.arange(sum(self.tables.values())).split(list(self.tables.values()))
        self.which = dict(zip(self.tables, numbered, strict=True))
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
        self.names, count = list(weights), sum(layout.tables.values())
        # Apart, as of the gradients of two parts of one parameter a copy would be made in every step.
        parts = {"tables": slice(0, count), "dense": slice(count, None)}
        self.parts = nn.ParameterDict(
            {
                f"{part}_{name}": weights[name][..., own].clone()
                for part, own in parts.items()
                for name in self.names
                if weights[name][..., own].numel()
            }
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The generators' parameters as they were given."""
        parts = [self.of(part) for part in ("tables", "dense")]
        whole = [torch.cat(both, -1) for both in zip(*filter(None, parts), strict=True)]
        return dict(zip(self.names, whole, strict=True))

    def of(self, part: str) -> list[Tensor]:
        """Return the parameters of the generators of `tables` or of those that make DENSE."""
        return [x for key in self.names if (x := self.parts.get(f"{part}_{key}")) is not None]

    def forward(self, known: Known, needed: Needed | None = None) -> list[dict[str, Tensor]]:
        """Return the S models that the formula makes, of the rows that are known.

        known: under a table's name the models' rows (n, ...) and, where there is one, the state before
        them (n, dim, d); under DENSE (models, P) and, where there is one, the state (d, P).
        needed: of tables a model has the rows that its batch or a later one needs.
        """
        return self.named(self.each(self.formula, known, needed or {}))

    def named(self, found: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Tensor]]:
        """Return what `each` found as S models: name -> weight in its own shape."""
        made: list[dict[str, Tensor]] = []
        sizes = [shape.numel() for shape in self.layout.dense.values()]
        for j in range(len(next(iter(found.values())))):
            one: dict[str, Tensor] = {}
            for name, values in found.items():
                if name == DENSE:
                    parts = zip(self.layout.dense.items(), values[j].split(sizes), strict=True)
                    one |= {dense: part.view(shape) for (dense, shape), part in parts}
                elif len(shape := self.layout.rows[name]) == 1:
                    one[name] = values[j]
                else:
                    one[name] = values[j].reshape(-1, *shape)
            made.append(one)
        return made

    def each(self, formula: Formula, known: Known, needed: Needed) -> dict[str, Sequence[Tensor]]:
        """Return what a formula makes of what is known, S of each: of tables (n, dim), of DENSE (P,)."""
        layout = self.layout
        found: dict[str, Sequence[Tensor]] = {}
        for dim in sorted(set(layout.tables.values())):
            some = {n: known[n] for n in layout.tables if n in known and layout.tables[n] == dim}
            if some:
                found |= self.of_tables(formula, some, needed)
        if DENSE in known:
            sequence, *state = known[DENSE]
            at, dense = 0, []
            pieces: list[Sequence[Tensor]] = [self.of("dense")]
            if len(layout.groups) > 1:
                sizes = [count for count, _ in layout.groups]
                pieces = list(zip(*(p.split(sizes, -1) for p in pieces[0]), strict=True))
            for (count, each), mine in zip(layout.groups, pieces, strict=True):
                stop = at + count * each
                x = sequence[:, at:stop].unflatten(1, (count, each))
                h = None
                if state:
                    h = state[0][:, at:stop].unflatten(1, (count, each)).transpose(0, 1)
                parameters = [piece.movedim(-1, 0) for piece in mine]
                if each > 1:
                    parameters = [piece.contiguous() for piece in parameters]
                    h = None if h is None else h.contiguous()
                dense.append(formula(x.contiguous(), h, *parameters).flatten(1))
                at = stop
            found[DENSE] = torch.cat(dense, 1).unbind() if len(dense) > 1 else dense[0].unbind()
        return found

    def of_tables(
        self, formula: Formula, known: Known, needed: Needed
    ) -> dict[str, Sequence[Tensor]]:
        """Return what a formula makes of tables with rows of equal length: of a step the rows needed."""
        k, names, first = self.models, list(known), next(iter(known.values()))
        dim, counts = first[0][0].numel(), [len(known[name][0]) for name in names]
        steps = max((len(needed[name]) for name in names if name in needed), default=1)
        packs = Packs.of(
            tuple(counts), MINIMUM, tuple(tuple(needed.get(name, ())) for name in names), steps
        )
        models = torch.cat([known[name][i].flatten(1) for i in range(k) for name in names])
        x = packs.packed(models.view(k, -1, dim))
        x = x.transpose(2, 3).flatten(1, 2).contiguous()  # (k, packs * dim, size)
        h = None
        if len(first) > k:
            states = packs.packed(torch.cat([known[name][-1] for name in names]).flatten(1)[None])
            h = states.unflatten(3, (dim, -1)).permute(0, 1, 3, 4, 2).flatten(0, 2).contiguous()
        own = [parameter.movedim(-1, 0) for parameter in self.of("tables")]
        shapes = [parameter.shape[1:] for parameter in own]
        joined = torch.cat([parameter.reshape(len(parameter), -1) for parameter in own], 1)
        which = torch.stack([self.layout.which[name] for name in names])[packs.owners].flatten()
        joined = joined.index_select(0, which.to(joined.device))
        pieces = joined.split([shape.numel() for shape in shapes], 1)
        made: defaultdict[int, list[Tensor]] = defaultdict(list)
        at = 0
        for late, count in enumerate(packs.counts):  # so many steps before the last
            some, at = slice(at * dim, (at + count) * dim), at + count
            if count:
                mine = [
                    p[some].reshape(-1, *shape) for p, shape in zip(pieces, shapes, strict=True)
                ]
                parts = formula(x[: k - late, some], None if h is None else h[some], *mine)
                for j, part in enumerate(parts.unbind()):
                    made[j].append(part.unflatten(0, (-1, dim)).transpose(1, 2))
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for j, packed in made.items():
            step = j if steps > 1 else 0
            rows = packs.unpacked(torch.cat(packed)[None], step)[0]
            for name, part in zip(names, rows.split(packs.ways[step].rows), strict=True):
                found[name].append(part)
        return dict(found)

    @torch.no_grad()
    def whole(self, formula: Formula, known: Known) -> dict[str, Sequence[Tensor]]:
        """Return what a formula makes of all rows, as `each` does, in blocks."""
        tables = self.layout.tables
        large = [name for name in tables if len(known[name][0]) > BLOCK // 8]
        found = self.each(formula, {n: x for n, x in known.items() if n not in large}, {})
        for name in large:
            blocks = zip(*(x.split(BLOCK) for x in known[name]), strict=True)
            parts = [self.of_table(formula, name, block) for block in blocks]
            found[name] = [torch.cat(same) for same in zip(*parts, strict=True)]
        return found

    def of_table(self, formula: Formula, name: str, known: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what a formula makes of many rows of one table."""
        x = torch.stack([rows.flatten(1).T for rows in known[: self.models]])
        h = known[-1].permute(1, 2, 0).contiguous() if len(known) > self.models else None
        which = self.layout.which[name].to(x.device)
        own = [p.index_select(-1, which).movedim(-1, 0).contiguous() for p in self.of("tables")]
        return [made.T for made in formula(x, h, *own)]

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
