"""Furniture of the models room: embeddings, dense layers, and layers that each scenario has its own of.

Everything that is drawn comes from the `seed` given; the global random state is neither read nor moved.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Tables
from incrs.period import Batch

INITIALISATIONS = ("small", "glorot")
BLOCK = 1 << 14
"""Initial rows are drawn in blocks of at most so many."""
JOINED = 1024
"""Tables of at most so many rows are joined for look-up."""


def uniforms(seed: int, name: str, start: int, stop: int, size: int) -> Tensor:
    """Draw rows start .. stop-1 of the endless table (seed, name): (stop-start, size) float64 in (0, 1).

    A row depends on seed, name, size and its own number alone, so a longer table begins with the shorter.
    """
    stream = np.random.Philox(key=np.array([seed % 2**64, zlib.crc32(name.encode())], np.uint64))
    stream.advance(start * size // 4)  # one step of the counter yields four numbers
    spare = start * size % 4
    drawn = np.random.Generator(stream).random(spare + (stop - start) * size)[spare:]
    return torch.from_numpy(drawn.clip(2.0**-54, 1 - 2.0**-53)).view(stop - start, size)


def uniforms_of(seed: int, name: str, ids: Tensor, size: int) -> Tensor:
    """Draw the rows `ids` (n,) of the endless table (seed, name): (n, size)."""
    drawn = torch.empty(len(ids), size, dtype=torch.float64)
    rising, order = ids.sort()
    blocks = torch.div(rising, BLOCK, rounding_mode="floor")
    at = 0
    for count in torch.unique_consecutive(blocks, return_counts=True)[1].tolist():
        wanted, where = rising[at : at + count], order[at : at + count]
        first, last = int(wanted[0]), int(wanted[-1])
        drawn[where] = uniforms(seed, name, first, last + 1, size)[wanted - first]
        at += count
    return drawn


def look_up(table: Tensor, ids: Tensor, sparse: bool = False, padding: int | None = None) -> Tensor:
    """Return the rows of table (n, size) at ids of any shape: (*ids.shape, size).

    sparse: True gives a table of more than JOINED rows a sparse gradient, of the rows at ids but
    for `padding`; not one that was computed from others, as few operations take such a gradient.
    """
    if sparse and table.is_leaf and len(table) > JOINED:
        return F.embedding(ids, table, padding, sparse=True)
    if table.device.type != "cpu":
        return F.embedding(ids, table)
    # The same numbers and gradients as F.embedding, whose backward takes three times as long on a CPU.
    index = ids.reshape(-1, 1).long().expand(-1, table.shape[1])
    return table.gather(0, index).view(*ids.shape, table.shape[1])


def pool(table: Tensor, ids: Tensor, sparse: bool = False, gates: Tensor | None = None) -> Tensor:
    """Average the rows of table (n, size) at ids (B, L), 0 = padding: (B, size); none gives zeros.

    sparse: see `look_up`.  gates: (B, L), what each row is multiplied by; how many there are stays.
    """
    mask = (ids != 0).to(table.dtype)
    share = mask / (mask.sum(1, keepdim=True) + 1e-8)  # (B, L)
    share = share if gates is None else share * gates
    return torch.bmm(share.unsqueeze(1), look_up(table, ids, sparse, padding=0)).squeeze(1)


def pool_nested(
    table: Tensor, ids: Tensor, owners: Tensor, sparse: bool = False, gates: Tensor | None = None
) -> Tensor:
    """Average rows over what belongs to one owner, then over the owners: (B, size).

    table: (n, size).  owners: (B, H), 0 = padding.  ids: (B, H * L), L places for each owner in turn, 0 =
    padding; an owner without any counts as zeros.  sparse: see `look_up`.  gates: (B, H * L), see `pool`.
    """
    mask = (ids != 0).to(table.dtype).view(*owners.shape, -1)  # (B, H, L)
    held = (owners != 0).to(table.dtype)
    share = held / (held.sum(1, keepdim=True) + 1e-8)  # (B, H)
    share = share.unsqueeze(2) * mask / (mask.sum(2, keepdim=True) + 1e-8)
    share = share.flatten(1) if gates is None else share.flatten(1) * gates
    rows = look_up(table, ids, sparse, padding=0)  # (B, H * L, size)
    return torch.bmm(share.unsqueeze(1), rows).squeeze(1)


class Embeddings(Tables):
    """One table per vocabulary, and the input (B, width) that a row's ids and numbers make.

    Columns: fields in the schema's order, lists (averaged) in the schema's order, numbers as they
    are, and last the scenario's embedding where `scenario_field`.
    initialisation: `small` draws N(0, .01^2); `glorot` draws U(-l, l), l = sqrt(6 / (rows + size)).
    Id 0 of a field is *unknown* and has a row like any other; id 0 in a list is padding.
    """

    def __init__(
        self,
        schema: Schema,
        size: int,
        seed: int,
        scenario_field: bool = False,
        initialisation: str = "small",
    ) -> None:
        super().__init__()
        check_widths("embedding_size", [size])
        if initialisation not in INITIALISATIONS:
            raise Mistake(
                f"model.initialisation={initialisation}: choose one of {', '.join(INITIALISATIONS)}"
            )
        self.size, self.seed, self.initialisation = size, seed, initialisation
        self.fields = dict(schema.fields)
        self.lists = {name: field.vocabulary for name, field in schema.lists.items()}
        used = {*self.fields.values(), *self.lists.values()}
        vocabularies = [name for name in schema.vocabularies if name in used]
        self.names = parameter_names(vocabularies)
        self.tables = nn.ParameterDict(
            {
                self.names[v]: self.initial(v, torch.arange(rows), rows)
                for v, rows in schema.vocabularies.items()
                if v in used
            }
        )
        scenarios = len(schema.scenarios)
        self.gates: nn.Module | None = None  # of a selector: see `incrs.models.gates`
        scenario = self.initial(":scenario", torch.arange(scenarios), scenarios)
        self.scenario = nn.Parameter(scenario) if scenario_field else None
        embedded = len(self.fields) + len(self.lists) + scenario_field
        self.width = size * embedded + len(schema.numbers)

    def initial(self, vocabulary: str, ids: Tensor, rows: int) -> Tensor:
        """Return the initial rows of `ids` (n,) in a table of `rows` rows: (n, size)."""
        drawn = uniforms_of(self.seed, vocabulary, ids, self.size)
        if self.initialisation == "glorot":
            return ((2 * drawn - 1) * (6 / (rows + self.size)) ** 0.5).float()
        return (0.01 * torch.special.ndtri(drawn)).float()

    def table(self, vocabulary: str) -> Tensor:
        """Return the table of a vocabulary, (ids, size)."""
        return self.tables[self.names[vocabulary]]

    def forward(self, batch: Batch) -> Tensor:
        """Return the input (B, width). Raises IndexError, on a CPU, for an id outside of its table."""
        gates = None if self.gates is None else self.gates(batch, next(iter(self.tables.values())))
        parts = self.field_rows(batch.fields)
        if gates is not None and parts:
            parts = [torch.cat(parts, 1) * gates.fields.repeat_interleave(self.size, 1)]
        parts += [
            pool(self.table(v), batch.lists[name], self.sparse, gates and gates.lists[name])
            for name, v in self.lists.items()
        ]
        parts.append(batch.numbers)
        if self.scenario is not None:
            parts.append(look_up(self.scenario, batch.scenario))
        return torch.cat(parts, 1)

    def field_rows(self, fields: Tensor) -> list[Tensor]:
        """Look up fields (B, F): parts (B, .) which side by side, in this order, are (B, F * size).

        Small tables are joined for one look-up, large ones not. So the cost grows with the batch and the
        number of fields, never with a table.
        """
        tables = [self.table(vocabulary) for vocabulary in self.fields.values()]
        small = [i for i, table in enumerate(tables) if len(table) <= JOINED]
        runs: list[list[int]] = []  # neighbours of which no table is large, or one large one alone
        for i in range(len(tables)):
            if i in small and i - 1 in small:
                runs[-1].append(i)
            else:
                runs.append([i])
        pieces: Iterator[Tensor] = iter(())
        if small:
            names = [name for i, name in enumerate(self.fields) if i in small]
            joined = joined_rows(names, [tables[i] for i in small], fields[:, small]).flatten(1)
            widths = [self.size * len(run) for run in runs if run[0] in small]
            pieces = iter(joined.split(widths, 1))
        return [
            next(pieces) if i in small else look_up(tables[i], fields[:, i], self.sparse)
            for i, *_ in runs
        ]


def joined_rows(names: Sequence[str], tables: Sequence[Tensor], fields: Tensor) -> Tensor:
    """Look up fields (B, F) in F tables (., size) at once: (B, F, size).

    Raises IndexError, on a CPU, for an id beyond the end of its table.  names: of the fields.
    """
    sizes = torch.tensor([len(table) for table in tables], dtype=fields.dtype)
    if fields.device.type == "cpu":  # elsewhere asking would wait for the device
        beyond = (fields >= sizes).any(0)
        if bool(beyond.any()):
            wrong = [name for name, bad in zip(names, beyond.tolist(), strict=True) if bad]
            raise IndexError(f"fields {wrong} hold ids beyond the end of their tables")
    offsets = (sizes.cumsum(0, dtype=fields.dtype) - sizes).to(fields.device)
    return look_up(torch.cat(list(tables)), fields + offsets)


def parameter_names(vocabularies: Iterable[str]) -> dict[str, str]:
    """Return vocabulary -> a name a parameter may have: no dots, nothing a ParameterDict calls its own."""
    names: dict[str, str] = {}
    for vocabulary in vocabularies:
        name = vocabulary.replace(".", "_") or "_"
        while name in names.values() or hasattr(nn.ParameterDict, name):
            name += "_"
        names[vocabulary] = name
    return names


def check_widths(option: str, widths: Sequence[int]) -> None:
    """Raise Mistake unless every width is at least 1."""
    if any(width < 1 for width in widths):
        raise Mistake(f"model.{option}={list(widths)}: every size must be at least 1")


def randomness(seed: int) -> torch.Generator:
    """Return a source of random numbers of its own, from `seed`."""
    return torch.Generator().manual_seed(seed)


def dense(inputs: int, outputs: int, random: torch.Generator, bias: bool = True) -> nn.Linear:
    """Return a linear layer: weight Xavier uniform, bias, if any, zero."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight, generator=random)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Dense layers, each followed by ReLU: (B, inputs) -> (B, hidden[-1])."""

    def __init__(self, inputs: int, hidden: Sequence[int], random: torch.Generator) -> None:
        check_widths("hidden", hidden)
        layers: list[nn.Module] = []
        for width, following in pairwise([inputs, *hidden]):
            layers += [dense(width, following, random), nn.ReLU()]
        super().__init__(*layers)


class ByScenario:
    """A batch's rows sorted by scenario, so that a layer of one scenario sees one slice.

    order: (B,) int64 positions, scenario by scenario.  sizes: how many rows each of the S scenarios has.
    A scenario without rows has a slice of none: its layers cost nothing and get a gradient of zero.
    """

    def __init__(self, scenario: Tensor, scenarios: int) -> None:
        self.order = torch.argsort(scenario, stable=True)
        # The one number an accelerator must wait for: a small copy per forward.
        self.sizes: list[int] = torch.bincount(scenario, minlength=scenarios).tolist()
        if len(self.sizes) != scenarios:
            raise IndexError(
                f"scenario {len(self.sizes) - 1} in a batch, but there are {scenarios}"
            )

    def split(self, rows: Tensor) -> list[Tensor]:
        """Cut sorted rows (B, ...) into one slice per scenario."""
        return list(rows.split(self.sizes))

    def restore(self, rows: Tensor) -> Tensor:
        """Put sorted rows (B, ...) back into the batch's order."""
        return rows.index_select(0, torch.argsort(self.order))


class ScenarioLinear(nn.Module):
    """A linear layer per scenario: weight (S, outputs, inputs) Xavier uniform, bias (S, outputs) zero."""

    def __init__(self, scenarios: int, inputs: int, outputs: int, random: torch.Generator) -> None:
        super().__init__()
        layers = [dense(inputs, outputs, random).weight.detach() for _ in range(scenarios)]
        self.weight = nn.Parameter(torch.stack(layers))
        self.bias = nn.Parameter(torch.zeros(scenarios, outputs))

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Apply each scenario's layer to its slice: (b_s, inputs) -> (b_s, outputs)."""
        return list(map(F.linear, parts, self.weight.unbind(), self.bias.unbind()))


class Towers(nn.Module):
    """A tower per scenario, ReLU layers and a logit: slices (b_s, inputs) -> logit (B,), hidden (B, K)."""

    def __init__(
        self, scenarios: int, inputs: int, hidden: Sequence[int], random: torch.Generator
    ) -> None:
        super().__init__()
        check_widths("tower", hidden)
        widths = [inputs, *hidden]
        self.hidden = nn.ModuleList(
            ScenarioLinear(scenarios, width, following, random)
            for width, following in pairwise(widths)
        )
        self.logit = ScenarioLinear(scenarios, widths[-1], 1, random)

    def forward(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (logit, last hidden layer) of the sorted rows."""
        for layer in self.hidden:
            parts = [F.relu(part) for part in layer(parts)]
        return torch.cat(self.logit(parts)).squeeze(1), torch.cat(list(parts))
