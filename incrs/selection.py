"""When gates are searched, what was kept, and serving weights without the rows that nobody keeps.

selection.csv      the share of values kept, by period of the search, scenario and field
selection.png      the same of the last search, fields by scenarios
pruned/period=0007.safetensors       the serving weights without rows that no scenario keeps
pruned/period=0007.rows.safetensors  vocabulary -> which row of the table each row was
"""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from incrs import states, together
from incrs.data.stream import History
from incrs.errors import Mistake
from incrs.models.base import Backbone
from incrs.models.gates import Gates, gates_of
from incrs.module import ScenarioModule
from incrs.period import Batch, Period
from incrs.results import replace_text, replacing
from incrs.selectors.base import Selector, Values
from incrs.selectors.search import Search, gated
from incrs.updaters.base import Fit, Weights

FILE = "selection.csv"
SHARED = "(shared)"
"""Stands in the place of a scenario for the gates that scenarios share."""


class Kept(NamedTuple):
    """How much of a column a search kept: the columns of the file; values: without the unknown's."""

    period: int
    scenario: str
    field: str
    values: int
    kept: int


class Selection:
    """Searches when a selector says so, and puts the gates into the backbone.

    kept: how much every search so far kept.  searched: the period of the last one in this process.
    drift: where there was one before, `drift.<field>.<scenario>` -> the share of values whose gate
    is another one now.
    """

    def __init__(self, selector: Selector, scenarios: Sequence[str]):
        self.selector, self._scenarios = selector, list(scenarios)
        self.kept: list[Kept] = []
        self.drift: dict[str, float] = {}
        self.searched: int | None = None

    def due(self, periods: int, warmup: int) -> bool:
        """Return whether to search before training on the last of so many periods."""
        every = self.selector.every
        return periods == warmup or (every is not None and (periods - warmup) % every == 0)

    def rows(self, history: History, period: Period, warming_up: bool) -> Period:
        """Return the rows to search on: those trained on in the warm-up, the last periods' later."""
        if warming_up or self.selector.every is None:
            return period
        first = max(0, len(history) - self.selector.every)
        return Period.concat([history[i] for i in range(first, len(history))])

    def search(self, module: ScenarioModule, rows: Period, warming_up: bool, fit: Fit) -> None:
        """Search on rows; in the warm-up, training starts from the weights of `rewind_epoch`."""
        backbone = copy.deepcopy(module.backbone)
        for tables, _ in backbone.tables().values():
            tables.sparse = False
        gates = gates_of(module.backbone)
        values = values_of(module.backbone)
        selector = copy.deepcopy(self.selector)
        selector.begin(values._replace(tables=gated(backbone)[0]))
        search = Search(backbone, selector, values, module.make_optimizer)
        held_out = int(len(rows) * selector.held_out)
        if held_out:
            parts = (slice(len(rows) - held_out, None), slice(0, len(rows) - held_out))
            fit(search, *map(rows.take, parts), epochs=selector.epochs, aligned=True)
        else:
            fit(search, rows, epochs=selector.epochs)
        check(search, self.selector.name, rows)
        before = [gates.kept(at).clone() for at in range(len(gates.columns))]
        put(gates, search.kept().split(list(values.sizes)), selector)
        if warming_up:
            state = module.backbone.state_dict()
            module.start_from({**state, **search.rewound})
        self.searched = rows.index
        self.kept += kept_by(gates, rows.index, self._scenarios, selector.shares)
        self.drift = {} if warming_up else drift(gates, before, self._scenarios)

    def go_on(self, folder: Path, period: int) -> None:
        """Take back what was kept up to and including a period of the run that goes on."""
        self.kept = read(folder, period)

    def write(self, folder: Path) -> None:
        """Write selection.csv."""
        write(folder, self.kept)


def values_of(backbone: Backbone) -> Values:
    """Return the values of a backbone's gates."""
    gates = gates_of(backbone)
    sizes = tuple(len(gates.kept(at)) for at in range(len(gates.columns)))
    return Values(
        (*gates.fields, *gates.lists),
        tuple(gates.columns.values()),
        sizes,
        len(gates.fields),
        gates.scenarios,
        gated(backbone)[0],
    )


def check(search: Search, name: str, rows: Period) -> None:
    """Raise Mistake where a loss of the search was not finite."""
    (losses,) = together.summed(torch.stack(search.losses))
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise Mistake(
            f"selector={name}: the loss of the search is not finite on period {rows.index} "
            f"({rows.name}), from step {broken[0] + 1} of {len(losses)} on: a smaller "
            "selector.learning_rate or optimizer.lr may prevent it"
        )


def put(gates: Gates, kept: Sequence[Tensor], selector: Selector) -> None:
    """Fix the gates; `kept`, (rows, S + 1) of each column."""
    gates.scale.fill_(selector.scale)
    gates.fresh.fill_(1)
    for at, one in enumerate(kept):
        gates.kept(at).copy_(one)
        if selector.whole_columns:
            gates.fresh[at] = one[0]


def kept_by(gates: Gates, period: int, scenarios: Sequence[str], shares: bool) -> list[Kept]:
    """Return how much of every column each scenario keeps."""
    names = [*scenarios, SHARED] if shares else list(scenarios)
    found = []
    for at, column in enumerate(gates.columns):
        kept = gates.kept(at)[1:]
        counts = kept.long().sum(0).tolist()
        field = column.partition(".")[2]
        found += [
            Kept(period, name, field, len(kept), count)
            for name, count in zip(names, counts, strict=False)
        ]
    return found


def drift(gates: Gates, before: Sequence[Tensor], scenarios: Sequence[str]) -> dict[str, float]:
    """Return, by column and scenario, the share of values whose gate is another than before."""
    found = {}
    for at, column in enumerate(gates.columns):
        moved = (gates.kept(at)[1:] != before[at][1:]).float()
        field = column.partition(".")[2]
        for s, scenario in enumerate(scenarios):
            found[f"drift.{field}.{scenario}"] = float(moved[:, s].mean()) if len(moved) else 0.0
    return found


def write(folder: Path, rows: Sequence[Kept]) -> None:
    """Write the rows into a run's folder, whole or not at all; nothing where there is none."""
    if rows:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*Kept._fields, "share"])
        writer.writerows([*row, row.kept / row.values if row.values else ""] for row in rows)
        replace_text(folder / FILE, out.getvalue())


def read(folder: Path, until: int | None = None) -> list[Kept]:
    """Read back what `write` wrote, up to and including the period `until`."""
    if not (folder / FILE).exists():
        return []
    with (folder / FILE).open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        rows = [Kept(int(t), s, field, int(n), int(k)) for t, s, field, n, k, _ in lines]
    return [row for row in rows if until is None or row.period <= until]


def draw(folder: Path) -> None:
    """Draw the last search, where there was one: fields by scenarios."""
    rows = read(folder)
    rows = [row for row in rows if row.period == rows[-1].period]
    if not rows:
        return
    fields = list(dict.fromkeys(row.field for row in rows))
    names = list(dict.fromkeys(row.scenario for row in rows))
    shares = torch.full((len(fields), len(names)), torch.nan)
    for row in rows:
        if row.values:
            at = (fields.index(row.field), names.index(row.scenario))
            shares[at] = row.kept / row.values
    figure = Figure(
        figsize=(2.5 + 0.7 * len(names), 1.2 + 0.28 * len(fields)), layout="constrained"
    )
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(fields)), fields)
    for (i, j), share in zip(
        torch.cartesian_prod(torch.arange(len(fields)), torch.arange(len(names))).tolist(),
        shares.flatten().tolist(),
        strict=True,
    ):
        if share == share:
            colour = "white" if share < 0.6 else "black"
            axis.text(j, i, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xlabel("scenario")
    axis.set_title(f"values kept, period {rows[0].period}", fontsize=10)
    figure.colorbar(image, label="share of the field's values")
    with replacing(folder / "selection.png") as partial:
        figure.savefig(partial, dpi=150, format="png")


def pruned(backbone: Backbone, weights: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights without the rows that no scenario keeps, and vocabulary -> which row each was.

    Row 0, the unknown's, stays the first. The last row of every table stands for all that were
    dropped, whose gates are closed, so whatever it holds is never seen.
    """
    tables, gates = backbone.tables(), backbone.gates()
    rows: dict[str, Tensor] = {}
    for name, (_, vocabulary) in gates.items():
        used = weights[name].any(1).cpu()
        rows[vocabulary] = rows.get(vocabulary, torch.zeros_like(used)) | used
    for vocabulary, used in rows.items():
        used[0] = True
        rows[vocabulary] = torch.cat([used.nonzero().flatten(), torch.tensor([-1])])
    by_row = {name: v for name, (_, v) in (*tables.items(), *gates.items()) if v in rows}
    found = {}
    for name, value in weights.items():
        if name not in by_row:
            found[name] = value.cpu()
            continue
        at = rows[by_row[name]]
        found[name] = value.cpu()[at[:-1]]
        found[name] = torch.cat([found[name], torch.zeros_like(found[name][:1])])
    return found, rows


def export(folder: Path, backbone: Backbone) -> tuple[int, int]:
    """Write the last serving weights pruned; return the bytes of the tables before and after."""
    file = max((folder / "serving").glob("period=????.safetensors"))
    weights = states.load(file)
    small, rows = pruned(backbone, weights)
    (folder / "pruned").mkdir(exist_ok=True)
    for name, tensors in ((file.name, small), (f"{file.stem}.rows.safetensors", rows)):
        with replacing(folder / "pruned" / name) as partial:
            states.save(tensors, partial)
    before, after = (
        sum(some[name].nbytes for name in backbone.tables()) for some in (weights, small)
    )
    return before, after


def translate(batch: Batch, values: Values, rows: Mapping[str, Tensor]) -> Batch:
    """Return the batch with rows of pruned tables in place of those of the whole ones."""

    def moved(ids: Tensor, vocabulary: str) -> Tensor:
        held = rows[vocabulary]
        at = torch.searchsorted(held[:-1], ids.long()).clamp(max=len(held) - 2)
        return torch.where(held[at] == ids, at, len(held) - 1).int()

    named = list(zip(values.columns, values.vocabularies, strict=True))
    fields = [moved(batch.fields[:, j], v) for j, (_, v) in enumerate(named[: values.fields])]
    lists = {name: moved(batch.lists[name], v) for name, v in named[values.fields :]}
    return batch._replace(
        fields=torch.stack(fields, 1) if fields else batch.fields, lists={**batch.lists, **lists}
    )
