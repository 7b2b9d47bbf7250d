"""The contract of the selectors room.

THIS ROOM finds out which values of the log matter in which scenario, and gates the rest away.
YOU WRITE a `Selector`: soft gates for a search (`begin`, `forward`), what is added to the loss, and
`fixed`, the gates that stay; one file, one yaml in `conf/selector/`, one test.
YOU GET the search on the warm-up, a schedule, retraining from rewound weights with the gates fixed,
gates in the backbone's buffers, so every updater, resume, served weights, shares kept, and pruning.
YOU MAY NOT see rows but those searched on, or keep gates anywhere but in what `fixed` returns.

A value is an id in a column (a field or a list); with S scenarios it has S + 1 gates, the last one
being what the scenarios share. Values that no searched row held stay open, and so do ids that come
later, unless `whole_columns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from incrs.errors import Mistake
from incrs.models.base import Output, Tables
from incrs.period import Batch


class Values(NamedTuple):
    """The values that are gated, one behind the other: n in all.

    columns: of fields, then of lists.  vocabularies, sizes: each column's, and its rows.
    fields: how many of the columns are fields.  scenarios: S.
    tables: the embeddings that are gated, while the search trains them.
    """

    columns: tuple[str, ...]
    vocabularies: tuple[str, ...]
    sizes: tuple[int, ...]
    fields: int
    scenarios: int
    tables: Tables

    @property
    def column(self) -> Tensor:
        """The column of each value, (n,) int64."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    def places(self, batch: Batch) -> Tensor:
        """Return which values B rows hold: (B, F + all lists' places)."""
        at, parts = 0, []
        for j, (name, size) in enumerate(zip(self.columns, self.sizes, strict=True)):
            ids = batch.fields[:, j : j + 1] if j < self.fields else batch.lists[name]
            parts.append(ids.long() + at)
            at += size
        return torch.cat(parts, 1)


class Selector(nn.Module, ABC):
    """Gates for the embedding of every value in every scenario, found by a search.

    epochs: of the search.  rewind_epoch: after so many of them the weights are kept from which
    training starts again with the gates fixed; 0: the initial ones.
    every: None searches in the warm-up alone; a number, again after so many periods, on their rows.
    learning_rate: of the gates, above 0; their optimizer is otherwise the run's, without decay.
    """

    shares: ClassVar[bool] = False
    """True where the shared gates mean something, and `shared_loss` is asked for."""

    whole_columns: ClassVar[bool] = False
    """True where a column is kept or dropped as one, ids that come later included."""

    scale: float = 1.0
    """What a value that is kept is multiplied by, once the gates are fixed."""

    held_out: float = 0.0
    """Share of the searched rows, the last ones, from which the gates alone learn; 0: all from all."""

    def __init__(
        self, name: str, epochs: int, rewind_epoch: int, every: int | None, learning_rate: float
    ):
        super().__init__()
        self.name = name
        whole("epochs", epochs, 1)
        if every is not None:
            whole("every", every, 1)
        if type(rewind_epoch) is not int or not 0 <= rewind_epoch < epochs:
            raise Mistake(
                f"selector.rewind_epoch={rewind_epoch}: give a whole number from 0 to below "
                f"selector.epochs={epochs}"
            )
        above("learning_rate", learning_rate)
        self.epochs, self.rewind_epoch, self.every = epochs, rewind_epoch, every
        self.learning_rate = learning_rate

    @abstractmethod
    def begin(self, values: Values) -> None:
        """Make the parameters of a search."""

    @abstractmethod
    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return what values at `places` (B, P) are multiplied by; scenario (B,), S: the shared gate."""

    @abstractmethod
    def fixed(self) -> Tensor:
        """Return which values are kept, bool (n, S + 1)."""

    def schedule(self, epoch: int, step: int, steps: int) -> None:
        """Set what changes as the search goes on; step: so many were made, of `steps` in all."""

    def penalty(self, batch: Batch) -> Tensor | None:
        """Return what a step of the search adds to the loss, or None; this process's share."""
        return None

    def shared_loss(
        self, batch: Batch, score: Callable[[Batch], Output], scenarios: int
    ) -> Tensor | None:
        """Return what every step, of the search and later, adds; score: through the shared gates."""
        return None

    def slow(self) -> Sequence[nn.Parameter]:
        """Return parameters that learn at a hundredth of the rate."""
        return ()


def whole(option: str, value: Any, least: int) -> None:
    """Raise Mistake unless a setting is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise Mistake(f"selector.{option}={value}: give a whole number from {least}")


def above(option: str, value: float, least: float = 0.0) -> None:
    """Raise Mistake unless a setting is above `least`."""
    if not isinstance(value, int | float) or not value > least:
        raise Mistake(f"selector.{option}={value}: give a number above {least:g}")


def not_below(option: str, value: float) -> None:
    """Raise Mistake unless a setting is at least 0."""
    if not isinstance(value, int | float) or not value >= 0:
        raise Mistake(f"selector.{option}={value}: give a number from 0")


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    """Raise Mistake unless a setting is one of those allowed."""
    if value not in allowed:
        *most, last = allowed
        raise Mistake(f"selector.{option}={value}: give {', '.join(most)} or {last}")


def flat(gates: Tensor, places: Tensor, column: Tensor | int) -> Tensor:
    """Return gates (n, S + 1) at places (B, P), of one column (B,) or all of the same: (B, P)."""
    if isinstance(column, Tensor):
        column = column[:, None]
    index = places * gates.shape[1] + column
    return gates.reshape(-1).gather(0, index.reshape(-1)).view(places.shape)


def everywhere(kept: Tensor, scenarios: int) -> Tensor:
    """Return what is kept (n,) as the gates of every scenario alike, (n, S + 1)."""
    return kept[:, None].expand(-1, scenarios + 1)
