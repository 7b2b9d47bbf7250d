"""Raw text rows into ids and numbers, one period after the other.

Ids are given in order of first appearance, so all ids known by the end of period t are a prefix of
every vocabulary. What is carried from period to period grows with the ids, not with the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from incrs.data.columns import SideTable
from incrs.data.declaration import EVENTS, HISTORY
from incrs.data.past import History, Negatives
from incrs.data.profile import Profiles
from incrs.data.scan import LABEL, SCENARIO, TIME
from incrs.errors import Mistake

Ids = NDArray[np.int32]
ITEM, SPAN, SCENARIO_AT, BEHAVIOUR_AT = (1 << 31) - 1, (1 << 15) - 1, 32, 47
"""Where a history's step has its item, scenario and behaviours among its 64 bits."""


class Rows(NamedTuple):
    """The encoded rows of one period, in time order.

    time: (n,) int64 microseconds UTC.  fields: (n, F) int32.  lists: name -> (n, L) int32.
    numbers: (n, N) float64, transformed but not standardised, NaN = missing.
    scenario: (n,) int32.  label: (n,) int8.  outcome: (n, K) int8, 0 or 1.
    """

    time: NDArray[np.int64]
    fields: Ids
    lists: dict[str, Ids]
    numbers: NDArray[np.float64]
    scenario: Ids
    label: NDArray[np.int8]
    outcome: NDArray[np.int8]


class Vocabulary:
    """Text values and their ids, 0 = unknown.  known: the values of the ids 1, 2, ... so far."""

    def __init__(self, known: pl.Series | None = None) -> None:
        self.values = pl.Series("value", [None], dtype=pl.String)
        if known is not None:
            self.values = pl.concat([self.values, known.alias("value")], rechunk=True)

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, values: pl.Series) -> Ids:
        """Return the ids of (n,) text values, null = 0; new values get the next ids in their order."""
        codes, distinct = factorise(values)
        table = pl.DataFrame({"value": self.values, "id": np.arange(len(self), dtype=np.int32)})
        asked = pl.DataFrame({"value": distinct})
        found = asked.join(table, on="value", how="left", maintain_order="left")["id"]
        new = (found.is_null() & distinct.is_not_null()).to_numpy()
        ids = found.fill_null(0).to_numpy().copy()
        if new.any():
            fresh = distinct.filter(new)
            ids[new] = np.arange(len(self), len(self) + len(fresh))
            self.values = pl.concat([self.values, fresh.alias("value")], rechunk=True)
        return ids[codes]

    def encode_parts(self, values: pl.Series, length: int, nothing: Sequence[str]) -> Ids:
        """Return (n, length) ids of lists of text: the first `length` parts, 0 = padding.

        nothing: the spellings of `unknown`; such parts are left out.
        """
        part = pl.element().str.strip_chars()
        kept = pl.when(~part.is_in([*nothing, ""])).then(part)
        parts = values.list.eval(kept).list.drop_nulls().list.head(length)
        sizes = parts.list.len().fill_null(0).to_numpy().astype(np.int64)
        out = np.zeros((len(values), length), np.int32)
        if sizes.any():
            flat = self.encode(parts.filter(sizes > 0).explode())
            row = np.repeat(np.arange(len(values)), sizes)
            out[row, np.arange(len(flat)) - np.repeat(sizes.cumsum() - sizes, sizes)] = flat
        return out


def factorise(values: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """Return (n,) positions in the distinct values, and those in order of first appearance."""
    distinct = values.unique(maintain_order=True)
    table = pl.DataFrame({"value": distinct, "code": np.arange(len(distinct))})
    asked = pl.DataFrame({"value": values})
    found = asked.join(table, on="value", how="left", nulls_equal=True, maintain_order="left")
    return found["code"].to_numpy(), distinct


def number(values: pl.Series, transform: str) -> NDArray[np.float64]:
    """Return text as float64, NaN = missing or not finite; `log` is sign(x) log(1 + |x|).

    Raises Mistake when a value is no number.
    """
    parsed = values.cast(pl.Float64, strict=False)
    wrong = values.filter(parsed.is_null() & values.is_not_null())
    if len(wrong):
        raise Mistake(
            f"data.numeric: column {values.name!r} holds {wrong[0]!r}, which is no number: move it to "
            "data.categorical, or add that value to data.null_values"
        )
    x = parsed.fill_null(np.nan).to_numpy().copy()
    x[~np.isfinite(x)] = np.nan
    return np.sign(x) * np.log1p(np.abs(x)) if transform == "log" else x


def did(raw: pl.DataFrame, behaviours: Sequence[str]) -> NDArray[np.int8]:
    """Return (n, K) 0 or 1, whether each behaviour's column holds a number above 0; no value is none.

    Raises Mistake when a value is no number.
    """
    found = np.zeros((len(raw), len(behaviours)), np.int8)
    for k, column in enumerate(behaviours):
        parsed = raw[column].cast(pl.Float64, strict=False)
        wrong = raw[column].filter(parsed.is_null() & raw[column].is_not_null())
        if len(wrong):
            raise Mistake(
                f"data.behaviours: column {column!r} holds {wrong[0]!r}, which is no number: name columns "
                "of 0 and 1, or of counts"
            )
        found[:, k] = (parsed.fill_null(0) > 0).to_numpy()
    return found


def combinations(behaviours: Sequence[str]) -> pl.Series:
    """Return a name for each combination of behaviours, the one without any first: `is_click+is_like`."""
    names = [
        "+".join(name for k, name in enumerate(behaviours) if bits >> k & 1) or "none"
        for bits in range(1 << len(behaviours))
    ]
    return pl.Series(names, dtype=pl.String)


class Encoder:
    """Encodes the periods of a log in order; see `Declaration` for what the settings mean.

    fields: every single-valued field.  lists: multi-valued column -> separator.
    events: the lists that say more of the history's steps, of EVENTS.  scenarios: their names.
    candidates: every item of the log, in order of appearance, and its `item_columns`, or None to draw
    from those seen so far.  missing: field -> what an empty value of it is read as.
    """

    def __init__(
        self,
        fields: Sequence[str],
        lists: Mapping[str, str],
        length: int,
        numbers: Sequence[str],
        transform: str,
        side_tables: Sequence[SideTable],
        null_values: Sequence[str],
        user: str | None,
        item: str | None,
        history: int,
        history_of: Sequence[str],
        item_columns: Sequence[str],
        negatives: int,
        seed: int,
        candidates: pl.DataFrame | None,
        behaviours: Sequence[str] = (),
        events: Sequence[str] = (),
        scenarios: Sequence[str] = (),
        missing: Mapping[str, str] | None = None,
    ) -> None:
        self.fields, self.lists, self.numbers = list(fields), dict(lists), list(numbers)
        self.length, self.transform, self.null_values = length, transform, null_values
        self.side_tables, self.user, self.item = side_tables, user, item
        self.vocabularies = {name: Vocabulary() for name in (*fields, *lists)}
        self.behaviours, self.events, self.missing = list(behaviours), list(events), missing or {}
        known = zip(EVENTS, (pl.Series(scenarios), combinations(behaviours)), strict=True)
        self.vocabularies |= {name: Vocabulary(x) for name, x in known if name in self.events}
        self._history = History(history, bool(events)) if history else None
        self._negatives = Negatives(negatives, seed) if negatives else None
        self._history_of = list(history_of)
        self._item_columns = list(item_columns) if negatives else []  # of the log itself
        followed = dict.fromkeys([*self._history_of, *self._item_columns])
        lengths = {name: length if name in lists else 1 for name in followed}
        self._profiles = Profiles(lengths) if lengths else None
        self._candidates, self._catalogue = candidates, Vocabulary()
        if candidates is not None and item:
            self._catalogue.encode(candidates[item])

    def state(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """Return what later periods need besides the vocabularies: name -> column -> values."""
        parts = {"history": self._history, "taken": self._negatives, "items": self._profiles}
        return {name: part.state() for name, part in parts.items() if part is not None}

    def restore(
        self,
        vocabularies: Mapping[str, pl.Series],
        state: Mapping[str, Mapping[str, NDArray[np.int64]]],
    ) -> None:
        """Go on where another encoder of the same settings stopped: after its last period."""
        self.vocabularies = {name: Vocabulary(vocabularies[name]) for name in self.vocabularies}
        if self._history:
            self._history.restore(state["history"])
        if self._negatives:
            self._negatives.restore(state["taken"])
        if self._profiles:
            self._profiles.restore(state["items"])

    def encode(self, t: int, raw: pl.DataFrame) -> Rows:
        """Return the rows of period t with their negatives; `raw` is in time order, not empty."""
        time = raw[TIME].to_numpy()
        scenario = raw[SCENARIO].to_numpy()
        label = raw[LABEL].to_numpy().astype(np.int8)
        lists: dict[str, Ids] = {}
        user = item = np.zeros(len(raw), np.int64)
        seen = 0
        if self.user:
            user = self.vocabularies[self.user].encode(raw[self.user]).astype(np.int64)
        if self.item:
            seen = len(self.vocabularies[self.item]) - 1
            item = self.vocabularies[self.item].encode(raw[self.item]).astype(np.int64)
        outcome = did(raw, self.behaviours)
        if self._history:
            step = item + (item > 0) * self._steps(scenario, outcome)
            past = self._history.look_back(user, time, step, label == 1, int(time[0]))
            lists[HISTORY] = (past & ITEM).astype(np.int32)
            for name, low in zip(self.events, (SCENARIO_AT, BEHAVIOUR_AT), strict=False):
                lists[name] = (past >> low & SPAN).astype(np.int32)
        if self._negatives and self.item:
            raw, origin, label = self._with_negatives(t, raw, user, item, seen)
            time, scenario = time[origin], scenario[origin]
            lists = {name: ids[origin] for name, ids in lists.items()}
            outcome = outcome[origin] * label[:, None]

        fields = np.zeros((len(raw), len(self.fields)), np.int32)
        numbers = np.zeros((len(raw), len(self.numbers)), np.float64)
        codes: NDArray[np.int64] | slice = slice(None)
        for table in (None, *self.side_tables):
            frame = raw
            if table is not None:
                codes, keys = factorise(raw[table.key])
                frame = table.of(keys).drop(table.key)
            for column in frame.columns:
                if column in self.fields:
                    text = frame[column]
                    if column in self.missing:
                        text = text.fill_null(self.missing[column])
                    ids = self.vocabularies[column].encode(text)[codes]
                    fields[:, self.fields.index(column)] = ids
                elif column in self.lists:
                    lists[column] = self._parts(frame[column])[codes]
                elif column in self.numbers:
                    x = number(frame[column], self.transform)[codes]
                    numbers[:, self.numbers.index(column)] = x
        if self._profiles and self.item:
            ids = fields[:, self.fields.index(self.item)]
            for column in self._profiles.tables:
                single = column in self.fields
                values = fields[:, self.fields.index(column)] if single else lists[column]
                self._profiles.learn(column, ids, values)
            for column in self._history_of:
                lists[f"{HISTORY}.{column}"] = self._profiles.of(column, lists[HISTORY])
        return Rows(time, fields, lists, numbers, scenario, label, outcome)

    def _steps(
        self, scenario: NDArray[np.int32], outcome: NDArray[np.int8]
    ) -> NDArray[np.int64] | int:
        """Return (n,) what the history keeps of a row beside its item, above the item's bits."""
        if not self.events:
            return 0
        bits = (outcome.astype(np.int64) << np.arange(len(self.behaviours))).sum(1)
        return (scenario.astype(np.int64) + 1 << SCENARIO_AT) | (bits + 1 << BEHAVIOUR_AT)

    def _parts(self, values: pl.Series) -> Ids:
        codes, distinct = factorise(values)
        split = distinct.str.split(self.lists[values.name])
        return self.vocabularies[values.name].encode_parts(split, self.length, self.null_values)[
            codes
        ]

    def _with_negatives(
        self, t: int, raw: pl.DataFrame, user: NDArray[np.int64], item: NDArray[np.int64], seen: int
    ) -> tuple[pl.DataFrame, NDArray[np.int64], NDArray[np.int8]]:
        """Return the rows with each positive's negatives after it, their origins, their labels."""
        assert self._negatives is not None
        assert self.item is not None
        time = raw[TIME].to_numpy()
        if self._candidates is None:
            catalogue = self.vocabularies[self.item]
            fresh = item > seen
            _, first = np.unique(item[fresh], return_index=True)
            candidates = seen + np.searchsorted(time[fresh][first], time, side="right")
            followed = self._followed(raw[np.flatnonzero(fresh)[first]])
        else:
            catalogue = self._catalogue
            item = catalogue.encode(raw[self.item]).astype(np.int64)
            candidates = np.full(len(raw), len(catalogue) - 1)
            followed = {name: self._candidates[name] for name in self._item_columns}
        owner, drawn = self._negatives.draw(t, user, time, item, candidates)
        origin = np.concatenate([np.arange(len(raw)), owner])
        followed[self.item] = catalogue.values[1:]
        order = np.argsort(origin, kind="stable")
        raw = raw[origin[order]].with_columns(
            pl.concat([raw[name], values.gather(drawn - 1).alias(name)]).gather(order)
            for name, values in followed.items()
        )
        return raw, origin[order], (order < len(time)).astype(np.int8)

    def _followed(self, new: pl.DataFrame) -> dict[str, pl.Series]:
        """Return the text of the item's own columns by id - 1; `new`: the first rows of new items."""
        found: dict[str, pl.Series] = {}
        for name in self._item_columns:
            assert self._profiles is not None
            values, table = self.vocabularies[name].values, self._profiles.tables[name][1:]
            known = pl.DataFrame(
                [values.gather(part).alias(str(k)) for k, part in enumerate(table.T)]
            ).select(pl.concat_str(pl.all(), separator=self.lists.get(name, ""), ignore_nulls=True))
            text = known.to_series().replace("", None) if len(table) else values[:0]
            found[name] = pl.concat([text, new[name]])
        return found
