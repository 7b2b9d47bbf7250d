"""The contract of the data room.

THIS ROOM turns logs into periods: D_0, D_1, ... in time order, as packed tensors.
YOU WRITE a `Source`: a schema, a name and a role for every period, and `read(t)`.
YOU GET a stream that hands periods out in order, loaders that gather batches from packed rows, and
a contract test that finds your yaml in `conf/data/`.
YOU MAY NOT let period t depend on any row of a later period: ids are given in order of first
appearance, histories come from strictly earlier rows, statistics from the pretrain periods alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from incrs.errors import Mistake
from incrs.period import Period, Role


@dataclass(frozen=True)
class ListField:
    """A multi-valued field: which vocabulary its ids belong to, and the most it holds (L)."""

    vocabulary: str
    length: int


@dataclass(frozen=True)
class Schema:
    """What the columns of a `Batch` mean.

    vocabularies: name -> number of ids, the unknown id 0 included.
    fields: field name -> vocabulary, in the order of `Batch.fields`' columns.
    lists: list name -> ListField; a history shares the item's vocabulary. `history.<column>` holds what
    a column says of the history's items, in their order, as many places for each. `history.scenario` and
    `history.behaviour` hold of each step the scenario, as s + 1, and what the user did, as 1 + the sum of
    2^k over the behaviours k; both are of vocabularies of their own.
    numbers: names of `Batch.numbers`' columns.
    scenarios: what people call scenario 0, 1, ..., S-1.
    user, item: the names of the fields that identify them, or None where the log has none.
    of_item: the fields, lists and numbers that follow the item, the item's own field aside; None where
    the log does not say, as one prepared by an earlier version.
    sampled: whether rows of label 0 were sampled for the positives, so that nobody was shown them.
    behaviours: names of `Batch.outcome`'s columns, at most 6.
    """

    vocabularies: Mapping[str, int]
    fields: Mapping[str, str]
    lists: Mapping[str, ListField]
    numbers: Sequence[str]
    scenarios: Sequence[str]
    user: str | None = None
    item: str | None = None
    of_item: Sequence[str] | None = ()
    sampled: bool = False
    behaviours: Sequence[str] = field(default=(), repr=False)

    def column(self, field: str) -> int:
        """Return the column of `Batch.fields` that holds `field`."""
        return list(self.fields).index(field)

    def closed(self) -> list[str]:
        """Return the vocabularies all of whose ids are known from the start: those of a step's events."""
        return [v for v in ("history.scenario", "history.behaviour") if v in self.vocabularies]

    def of_history(self) -> dict[str, str]:
        """Return the lists that hold a column of the history's items: list -> that column's name."""
        names = {f"history.{name}": name for name in (*self.fields, *self.lists)}
        return {
            name: names[name] for name in self.lists if name in names and "history" in self.lists
        }


class Source(ABC):
    """A log cut into periods. `prepare` is called once before anything else is asked.

    name: what results call this log.  schema: see Schema.  roles: one Role for each period.
    fingerprints: a hexadecimal digest for each period, of its rows, of all before them and of what
    they mean: two logs have the same fingerprints[t] where they agree up to period t, whatever
    comes later.
    """

    name: str
    schema: Schema
    roles: Sequence[Role]
    fingerprints: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """The digest of the whole log."""
        return self.fingerprints[-1]

    def prepare(self) -> None:  # noqa: B027 - nothing to prepare is a fine answer
        """Make the log ready to be read: reuse what is prepared already, else do the work.

        Raises Mistake when the declaration does not fit the files.
        """

    @abstractmethod
    def read(self, t: int) -> Period:
        """Load period t, 0 <= t < len(roles): called when it is needed, maybe more than once."""


def assign_roles(
    pretrain: int, tune: int, test: int | None, periods: int, where: str
) -> list[Role]:
    """Return the role of each period: `pretrain` first, then `tune`, then `test` (None: the rest).

    Periods beyond the three are left out. With None a log may begin with its warm-up alone and be
    fed period by period. `where` names the setting in an error message.
    Raises Mistake when there are fewer periods than the roles ask for.
    """
    if pretrain < 1:
        raise Mistake(f"{where}.pretrain={pretrain}: at least one period is needed for the warm-up")
    if tune < 0 or (test is not None and test < 0):
        raise Mistake(f"{where}.tune={tune}, {where}.test={test}: neither may be negative")
    asked = pretrain if test is None else pretrain + tune + test
    if periods < asked:
        most = "null" if test is None else test
        raise Mistake(
            f"the log has {periods} periods but {where}.pretrain={pretrain}, {where}.tune={tune} and "
            f"{where}.test={most} ask for at least {asked}: lower one of them or give more of the log"
        )
    end = periods if test is None else asked
    return ([Role.PRETRAIN] * pretrain + [Role.TUNE] * min(tune, periods) + [Role.TEST] * periods)[
        :end
    ]
