"""Caser: the newest items as an image, under horizontal and vertical filters (Tang and Wang, WSDM 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Items, Output
from incrs.models.layers import check_widths, dense, look_up, randomness
from incrs.models.sequences import PastEmbeddings, Reader
from incrs.period import Batch


class Encoder(nn.Module):
    """The image (B, L, D) of the L newest items to z = relu(W [o, o'] + b), (B, D).

    o: of each horizontal filter, (h, D) for each height h = 1 .. L, the largest of its relu'd responses;
    places where it covers no item are passed over.  o': of each vertical filter, (L, 1), its D responses.
    """

    def __init__(
        self,
        size: int,
        length: int,
        horizontal: int,
        vertical: int,
        dropout: float,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        heights = range(1, length + 1)
        self.horizontal = nn.ModuleList(dense(h * size, horizontal, random) for h in heights)
        self.vertical = dense(length, vertical, random, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.joined = dense(length * horizontal + vertical * size, size, random)

    def forward(self, rows: Tensor, held: Tensor) -> Tensor:
        """Return z (B, D) for the items (B, L, D), newest first, of which (B, L) are held."""
        length, features = rows.shape[1], []
        for height, filters in enumerate(self.horizontal, 1):
            places = range(length - height + 1)
            windows = torch.stack([rows[:, p : p + height].flatten(1) for p in places], 1)
            # A window begins with its newest item: where that is padding, so is all of it.
            found = F.relu(filters(windows)) * held[:, : len(places)].unsqueeze(2)  # (B, P, N)
            features.append(found.amax(1))
        columns = rows.transpose(1, 2).contiguous()  # (B, D, L)
        features.append(self.vertical(columns).flatten(1))
        return F.relu(self.joined(self.dropout(torch.cat(features, 1))))


class Shared(nn.Module):
    """What all rows go through: `Reader`, and the output W' [z, P_u] + b' (None without users)."""

    def __init__(self, reader: Reader, output: nn.Linear | None) -> None:
        super().__init__()
        self.reader, self.output = reader, output


class Caser(Backbone):
    """The `window` newest items -> filters -> z, and with the user's P_u -> u; then `Reader`.

    horizontal: filters of each height 1 .. window.  vertical: filters over the whole window.
    user: True joins the embedding of the user: u = W' [z, P_u] + b'; False: u = z.
    dropout: on what enters z's layer; the paper: .5.
    Reading: the paper multiplies [z, P_u] by an output vector of each item's, twice as long; here that
    is W'' e with the item's one vector e and one matrix W'' for all, which lies in W'.

    shared: what the logit is made of, (B, embedding_size + tower[-1]), see `Reader`.
    specific: (B, 0), as no scenario has anything of its own.
    """

    embedding: PastEmbeddings
    shared: Shared

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 64,
        window: int = 5,
        horizontal: int = 16,
        vertical: int = 4,
        user: bool = True,
        dropout: float = 0.0,
        tower: Sequence[int] | None = (64, 32),
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        counts = {"window": window, "horizontal": horizontal, "vertical": vertical}
        for option, count in counts.items():
            check_widths(option, [count])
        random = randomness(seed)
        only = None if tower is not None else [schema.item, *([schema.user] if user else [])]
        embedding = PastEmbeddings(schema, embedding_size, seed, "caser", scenario_field, only)
        if user and schema.user is None:
            raise Mistake("model.user=true, but the log names no user: set data.user, or false")
        self.window = min(window, embedding.length)
        self.user = schema.user if user else None
        size = embedding_size
        encoder = Encoder(size, self.window, horizontal, vertical, dropout, random)
        output = dense(2 * size, size, random) if user else None
        self.embedding = embedding
        self.shared = Shared(Reader(encoder, embedding, tower, random), output)
        self.specific = nn.Identity()
        self.column = 0 if self.user is None else schema.column(self.user)

    def encode(self, batch: Batch) -> Tensor:
        """Return the users' vectors (B, embedding_size), from their histories and, if `user`, their ids."""
        z = self.shared.reader.encoder(*self.embedding.past(batch, self.window))
        if self.shared.output is None or self.user is None:
            return z
        table = self.embedding.table(self.embedding.fields[self.user])
        own = look_up(table, batch.fields[:, self.column], self.embedding.sparse)
        return self.shared.output(torch.cat([z, own], 1))

    def catalogue(self, items: Tensor) -> Tensor:
        """Return the vectors of items (I,): (I, embedding_size)."""
        return self.embedding.items(items)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        return self.shared.reader(self.encode(batch), batch, self.embedding, representations)

    def score(self, batch: Batch, items: Items) -> Tensor:
        """Return (B, C), the logit of every row with each candidate in its item's place."""
        return self.shared.reader.score(self.encode(batch), batch, self.embedding, items)
