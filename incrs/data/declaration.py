"""The options of a declared log, and which of them go together; `log.yaml` explains each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from incrs.data.base import ListField, assign_roles
from incrs.data.scan import PER_SECOND
from incrs.errors import Mistake
from incrs.period import Role

HISTORY = "history"  # the list field of that name
EVENTS = (f"{HISTORY}.scenario", f"{HISTORY}.behaviour")  # of its steps
BEHAVIOURS = 6  # at most: each doubles a vocabulary
ALLOWED: dict[str, tuple[str | None, ...]] = {
    "scenario_rest": ("drop", "pool"),
    "numeric_transform": ("log", "none"),
    "negatives_from": ("seen", "all"),
    "period": ("day", "hours", "count", "column", "random"),
    "format": (None, "csv", "json", "parquet"),
}
TIME_FIELDS = ("hour", "weekday")
YEARS = ("%Y", "%y", "%C", "%G", "%D", "%F", "%c", "%x", "%v", "%s", "%+")  # in a pattern of times
FILTERS = ("top", "at_least", "sample")
MOST = 10_000  # values of a row in one list


def counted(one: dict[str, Any]) -> str:
    """Return the column that a filter is about."""
    return str(next(one[name] for name in FILTERS if name in one))


@dataclass(kw_only=True, eq=False)
class Declaration:
    """What a log's yaml says. Units, defaults and meaning of the options are those of `log.yaml`."""

    name: str
    path: str
    store: str
    files: str | Sequence[str]
    time: str | None
    file_columns: Sequence[dict[str, Any]] = ()
    format: str | None = None
    separator: str = ","
    null_values: Sequence[str] = ("", "NULL", "null", "NaN", "nan", "\\N")
    time_unit: str = "s"
    time_year: int | None = None
    timezone: str = "UTC"
    day: str | None = None
    day_format: str = "%Y-%m-%d"
    start: str | None = None
    end: str | None = None
    keep: dict[str, Any] = field(default_factory=dict)
    required: Sequence[str] = ()
    filters: Sequence[dict[str, Any]] = ()
    label: str | None = None
    label_threshold: float | None = None
    scenario: str | None = None
    scenarios: Sequence[str | int] | None = None
    scenario_rest: str = "drop"
    user: str | None = None
    item: str | None = None
    categorical: Sequence[str] = ()
    missing: str | None = None
    time_fields: Sequence[str] = ()
    multivalued: dict[str, str] = field(default_factory=dict)
    multivalued_length: int = 8
    numeric: Sequence[str] = ()
    numeric_transform: str = "log"
    joins: Sequence[dict[str, Any]] = ()
    item_columns: Sequence[str] = ()
    history: int = 0
    history_of: Sequence[str] = ()
    history_events: bool = False
    behaviours: Sequence[str] = ()
    negatives: int = 0
    negatives_from: str = "seen"
    negatives_seed: int = 0
    period: str = "day"
    period_hours: Sequence[int] | None = None
    period_count: int | None = None
    period_column: str | None = None
    period_shares: Sequence[float] | None = None
    period_seed: int = 0
    pretrain: int = 7
    tune: int = 1
    test: int | None = None
    memory_rows: int | None = None
    variant: str | None = None
    variants: dict[str, Any] = field(default_factory=dict)
    download: bool = False
    archives: Sequence[dict[str, Any]] = ()
    help: str = ""

    @property
    def single_fields(self) -> list[str]:
        """The single-valued fields: user and item first, each once."""
        names = [self.user, self.item, *self.categorical, *self.time_fields]
        return [name for name in dict.fromkeys(names) if name is not None]

    def list_fields(self) -> dict[str, ListField]:
        """Return the lists of a row: the history first, then what is known of its items."""
        own = {name: ListField(name, self.multivalued_length) for name in self.multivalued}
        if not (self.history and self.item):
            return own
        lists = {name: ListField(name, self.history) for name in (HISTORY, *self.events)}
        lists |= {HISTORY: ListField(self.item, self.history), **own}
        for column in self.history_of:
            each = own[column].length if column in own else 1
            lists[f"{HISTORY}.{column}"] = ListField(column, self.history * each)
        return lists

    @property
    def events(self) -> tuple[str, ...]:
        """The lists that say more of the history's steps than their items."""
        if not (self.history_events and self.history):
            return ()
        return EVENTS if self.behaviours else EVENTS[:1]

    def assign(self, periods: int) -> list[Role]:
        """Return the role of each period, given how many there are."""
        return assign_roles(self.pretrain, self.tune, self.test, periods, "data")

    def check(self) -> None:
        """Raise Mistake when options have unknown values or do not go together."""
        for option, allowed in ALLOWED.items():
            if getattr(self, option) not in allowed:
                one_of = ", ".join(value or "null" for value in allowed)
                raise Mistake(f"data.{option}={getattr(self, option)} is not one of {one_of}")
        if len(self.separator.encode()) != 1:
            raise Mistake(
                f"data.separator={self.separator!r} must be one character such as ',', ';' or '\\t'"
            )
        units = (*PER_SECOND, "iso")
        if self.time_unit not in units and "%" not in self.time_unit:
            one_of = ", ".join(units)
            raise Mistake(
                f"data.time_unit={self.time_unit} is not one of {one_of}, nor a pattern like %Y%m%d"
            )
        for name in self.time_fields:
            if name not in TIME_FIELDS:
                raise Mistake(f"data.time_fields: {name} is not one of {', '.join(TIME_FIELDS)}")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise Mistake(
                f"data.timezone={self.timezone} is no time zone such as UTC or Europe/Oslo"
            ) from error
        for option in ("start", "end"):
            try:
                date.fromisoformat(str(getattr(self, option) or "2000-01-01"))
            except ValueError as error:
                raise Mistake(
                    f"data.{option}={getattr(self, option)} is no date such as 2022-04-25"
                ) from error
        for option, least in (("history", 0), ("negatives", 0), ("multivalued_length", 1)):
            if not least <= getattr(self, option) <= MOST:
                raise Mistake(
                    f"data.{option}={getattr(self, option)} must be at least {least} and at most {MOST}"
                )
        if self.name in ("", ".", "..") or "/" in self.name:
            raise Mistake(f"data.name={self.name!r} names a folder: give a word without slashes")
        if self.memory_rows is not None and self.memory_rows < 1:
            raise Mistake(
                f"data.memory_rows={self.memory_rows}: give a number of rows from 1, or null for any"
            )
        self._check_joins()
        self._check_rows()
        self._check_time()
        self._check_period()
        self._check_label()
        self._check_items()
        self._check_events()
        names = [*self.single_fields, *self.multivalued, *self.numeric]
        of_past = [HISTORY, *(f"{HISTORY}.{column}" for column in self.history_of)]
        names += [*of_past, *self.events] if self.history else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise Mistake(
                f"data: {', '.join(twice)} is declared twice among user, item, categorical, "
                "time_fields, multivalued, numeric and history"
            )
        if not self.single_fields:
            raise Mistake("data: declare at least one of user, item, categorical or time_fields")

    def _check_joins(self) -> None:
        for join in self.joins:
            file = join.get("file")
            parts = [*file, *file.values()] if isinstance(file, dict) else [file]
            texts = [join.get("key"), join.get("file_key", ""), *parts]
            known = {"file", "key"} <= set(join) <= {"file", "key", "file_key", "columns", "header"}
            known = known and (len(parts) == 1 or (len(parts) == 2 and bool(parts[0])))
            listed = isinstance(join.get("columns") or [], list | tuple)
            if not known or not listed or not all(isinstance(one, str) for one in texts):
                raise Mistake(
                    f"data.joins: {join} must have file and key, and may have file_key, columns and header; "
                    "file is a name or a glob, or {PART: OTHER}, the parts that differ in the names of each "
                    "of the log's files and of its table"
                )
            self._check_header("joins", join)

    def _check_header(self, option: str, entry: dict[str, Any]) -> None:
        names = entry.get("header") or []
        marks = (self.separator, '"', "\n", "\r")
        plain = isinstance(names, list | tuple) and all(
            isinstance(name, str) and name and not any(mark in name for mark in marks)
            for name in names
        )
        if not plain or len(set(names)) != len(names):
            raise Mistake(
                f"data.{option}: header={names} must be a list of the columns' names, each once, such as "
                "[user_id, age]"
            )

    def _check_time(self) -> None:
        if self.time is not None:
            return
        for option in ("day", "start", "end", "time_fields", "history"):
            if getattr(self, option):
                raise Mistake(
                    f"data.time=null: a log without times has no data.{option}={getattr(self, option)}: "
                    "name the column of the time, or take that away"
                )
        if self.period not in ("column", "random"):
            raise Mistake(
                f"data.time=null: data.period={self.period} cuts by the time: name its column, or set "
                "data.period to column or random"
            )

    def _check_rows(self) -> None:
        unit = self.time_unit
        without_year = "%" in unit and not any(part in unit for part in YEARS)
        if without_year != (self.time_year is not None):
            raise Mistake(
                f"data.time_unit={unit}, data.time_year={self.time_year}: a pattern without a "
                "year, such as %m%d, needs data.time_year, and nothing else takes it"
            )
        for column, values in self.keep.items():
            if not isinstance(values, list | tuple) or not values:
                raise Mistake(
                    f"data.keep: {column}: {values} must be a list of one value or more, such as "
                    "{action: [click, buy]}"
                )
        for one in self.filters:
            kind = next((name for name in FILTERS if name in one), None)
            n = one.get("n")
            if (
                kind is None
                or set(one) != {kind, "n"}
                or type(n) is not int
                or n < 1
                or not isinstance(one[kind], str)
            ):
                raise Mistake(
                    f"data.filters: {one} must be {{top: COLUMN, n: 50000}}, {{at_least: COLUMN, n: 20}} "
                    "or {sample: COLUMN, n: 10000}, n a whole number from 1"
                )
        for one in self.file_columns:
            known = "files" in one and set(one) <= {"files", "columns", "values", "header"}
            if not known or not all(
                isinstance(one.get(k) or {}, dict) for k in ("columns", "values")
            ):
                raise Mistake(
                    f"data.file_columns: {one} must have `files`, a glob, and may have `columns: {{NAME: "
                    "COLUMN}`, `values: {NAME: VALUE}` and `header: [COLUMN, ...]`"
                )
            self._check_header("file_columns", one)

    def _check_items(self) -> None:
        if self.history_of and not self.history:
            raise Mistake(
                f"data.history_of={list(self.history_of)} is about the items of the history: set "
                "data.history to its length"
            )
        for option in ("history_of", "item_columns"):
            for column in getattr(self, option):
                declared = column in (*self.categorical, *self.multivalued)
                if not declared or self.item in (None, column):
                    raise Mistake(
                        f"data.{option}: {column!r} must be one of data.categorical or data.multivalued, and "
                        "a column about the items of data.item"
                    )

    def _check_events(self) -> None:
        if type(self.history_events) is not bool:
            raise Mistake(f"data.history_events={self.history_events}: give true or false")
        if self.history_events and not self.history:
            raise Mistake(
                "data.history_events=true is about the steps of the history: set data.history to its length"
            )
        if len(set(self.behaviours)) != len(self.behaviours) or len(self.behaviours) > BEHAVIOURS:
            raise Mistake(
                f"data.behaviours={list(self.behaviours)}: name at most {BEHAVIOURS} columns, each once"
            )
        inputs = [*self.single_fields, *self.multivalued, *self.numeric]
        for column in self.behaviours:
            if column in inputs:
                raise Mistake(
                    f"data.behaviours: {column!r} tells what the user did with the row's item, which no "
                    "model may be told: take it out of data.categorical, multivalued and numeric"
                )

    def _check_period(self) -> None:
        hours = list(self.period_hours or [])
        if self.period == "hours" and not (
            hours and hours[0] == 0 and hours == sorted(set(hours)) and hours[-1] < 24
        ):
            raise Mistake(
                f"data.period_hours={self.period_hours} must be rising hours from 0 to 23, the first 0, "
                "such as [0, 10, 17]"
            )
        if self.period == "hours" and self.day:
            raise Mistake("data.period=hours cuts by the time column: set data.day=null")
        if self.period == "count" and (self.period_count or 0) < 1:
            raise Mistake(
                f"data.period_count={self.period_count}: period=count needs a number of periods"
            )
        if self.period == "column" and not self.period_column:
            raise Mistake("data.period_column=null: period=column needs the name of a column")
        if self.period_seed < 0:
            raise Mistake(f"data.period_seed={self.period_seed}: give a whole number from 0")
        shares = list(self.period_shares or [])
        if self.period == "random" and not (
            shares and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
        ):
            raise Mistake(
                f"data.period_shares={self.period_shares} must be shares above 0 that are 1 in all, one for "
                "each period, such as [0.7, 0.15, 0.15]"
            )

    def _check_label(self) -> None:
        if self.label is None and self.negatives == 0:
            raise Mistake(
                "data.label=null makes every row a positive: name the label's column, or sample "
                "negatives with data.negatives=1 or more"
            )
        if self.label is not None and self.negatives:
            raise Mistake(
                f"data.negatives={self.negatives} is for logs of positives alone: set data.label=null "
                "or data.negatives=0"
            )
        if self.negatives and self.item is None:
            raise Mistake(
                "data.negatives are drawn among items: name the item's column in data.item"
            )
        if self.history and (self.user is None or self.item is None):
            raise Mistake(f"data.history={self.history} needs the columns data.user and data.item")
        if self.scenario_rest == "pool" and not (self.scenario and self.scenarios):
            raise Mistake(
                "data.scenario_rest=pool pools the values that data.scenarios does not list: set both "
                "data.scenario and data.scenarios"
            )
        if self.scenarios is not None and not self.scenario:
            raise Mistake("data.scenarios lists values of data.scenario: name that column")
