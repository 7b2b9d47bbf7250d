"""What is known of single items: their values at the row where they appear first.

Items are static here. What a later row says of an item counts for that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
CHUNK = 1 << 16  # rows looked up at once: bounds the memory of wide histories


class Profiles:
    """Column -> (items, L) int32 ids, by the item's id; row 0, of the unknown item, is zeros.

    lengths: column -> L, 1 for a single-valued one.
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        self.tables = {name: np.zeros((1, length), np.int32) for name, length in lengths.items()}

    def learn(self, column: str, items: Ids, values: Ids) -> None:
        """Take the (n,) or (n, L) values that new ones among the (n,) items have where they come first."""
        table = self.tables[column]
        ids, first = np.unique(items, return_index=True)
        fresh = values[first[ids >= len(table)]]  # ids have no gaps
        self.tables[column] = np.concatenate([table, fresh.reshape(-1, table.shape[1])])

    def of(self, column: str, items: Ids) -> Ids:
        """Return the values of items (n, H), in their order: (n, H * L)."""
        table = self.tables[column]
        out = np.empty((len(items), items.shape[1] * table.shape[1]), np.int32)
        for at in range(0, len(items), CHUNK):
            part = items[at : at + CHUNK]
            out[at : at + CHUNK] = table[part].reshape(len(part), -1)
        return out

    def state(self) -> dict[str, NDArray[np.int64]]:
        """Return column -> (items, L), the unknown left out."""
        return {name: table[1:].astype(np.int64) for name, table in self.tables.items()}

    def restore(self, state: Mapping[str, NDArray[np.int64]]) -> None:
        """Know what `state` returned once."""
        for name, table in self.tables.items():
            values = np.asarray(state[name]).reshape(-1, table.shape[1])
            self.tables[name] = np.concatenate([table[:1], values.astype(np.int32)])
