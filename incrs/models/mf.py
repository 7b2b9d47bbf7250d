"""MF: a user's vector times an item's, the base model of SML (Zhang et al., SIGIR 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Items, Output, Tables
from incrs.models.layers import check_widths, look_up, parameter_names, uniforms_of
from incrs.period import Batch

DEVIATIONS = {"small": 0.01, "standard": 1.0}
CATALOGUE = 32
"""A catalogue of at most so many times as many items as a row has candidates is scored whole."""
BLOCK = 1 << 23
"""`MF.score` makes at most so many numbers at once."""


def sides(user: Tensor, item: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Return two vectors whose inner product is <p, q>, or <p, q> + b + c with biases.

    user, item: (..., E), the vectors p and q, or (..., E + 1), a vector and behind it its bias b or c.
    """
    if not bias:
        return user, item
    users_one, items_one = (x.new_ones(*x.shape[:-1], 1) for x in (user, item))
    return torch.cat([user, users_one], -1), torch.cat(
        [item[..., :-1], items_one, item[..., -1:]], -1
    )


class Vectors(Tables):
    """A table of vectors for the users' vocabulary and one for the items', with the biases behind them.

    initialisation: of the vectors, `small` draws N(0, .01^2), `standard` N(0, 1). Biases start at 0.
    """

    def __init__(
        self, schema: Schema, columns: tuple[int, int], size: int, bias: bool, seed: int, start: str
    ) -> None:
        super().__init__()
        self.size, self.bias, self.seed, self.deviation = size, bias, seed, DEVIATIONS[start]
        self.fields, self.lists = dict(schema.fields), {}
        self.columns, of = columns, list(schema.fields.values())
        vocabularies = [of[column] for column in columns]
        self.names = parameter_names(dict.fromkeys(vocabularies))
        self.keys = [self.names[vocabulary] for vocabulary in vocabularies]
        self.tables = nn.ParameterDict()
        for vocabulary, key in self.names.items():
            rows = schema.vocabularies[vocabulary]
            self.tables[key] = nn.Parameter(self.initial(vocabulary, torch.arange(rows), rows))

    def initial(self, vocabulary: str, ids: Tensor, rows: int) -> Tensor:
        """Return the initial rows of `ids` (n,): (n, size), or (n, size + 1) with biases."""
        drawn = torch.special.ndtri(uniforms_of(self.seed, vocabulary, ids, self.size))
        vectors = (self.deviation * drawn).float()
        return torch.cat([vectors, vectors.new_zeros(len(ids), 1)], 1) if self.bias else vectors

    def table(self, side: int) -> Tensor:
        """Return the users' table (side 0) or the items' (side 1)."""
        return self.tables[self.keys[side]]

    def users(self, batch: Batch) -> Tensor:
        """Return the users' rows, (B, .)."""
        return look_up(self.table(0), batch.fields[:, self.columns[0]], self.sparse)

    def items(self, ids: Tensor) -> Tensor:
        """Return the rows of items (n,): (n, .)."""
        return look_up(self.table(1), ids, self.sparse)


class MF(Backbone):
    """The inner product of the user's and the item's vectors; nothing else of a row is read.

    bias: True adds a number for each user and one for each item, as ASMG's SML-MF does; then a table's
    row is the vector with its bias behind it.
    initialisation: `small` (vectors N(0, .01^2)) or `standard` (N(0, 1), as SML's program); biases 0.

    shared: the products that the logit is the sum of, (B, embedding_size) and, with biases, both of
    them: where in the plane of users and items the row lies, whatever the scenario.
    specific: (B, 0), as no scenario has anything of its own.
    Raises Mistake for a log that does not say which fields are the user and the item.
    """

    embedding: Vectors

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 64,
        bias: bool = False,
        initialisation: str = "small",
    ) -> None:
        super().__init__()
        if schema.user is None or schema.item is None:
            missing = " and no ".join(n for n in ("user", "item") if getattr(schema, n) is None)
            raise Mistake(
                f"model=mf multiplies a user's vector by an item's, but the log names no {missing}: "
                "name its columns in data.user and data.item, or choose another model"
            )
        check_widths("embedding_size", [embedding_size])
        if type(bias) is not bool:
            raise Mistake(f"model.bias={bias}: give true or false")
        if initialisation not in DEVIATIONS:
            raise Mistake(
                f"model.initialisation={initialisation}: choose one of {', '.join(DEVIATIONS)}"
            )
        columns = schema.column(schema.user), schema.column(schema.item)
        self.embedding = Vectors(schema, columns, embedding_size, bias, seed, initialisation)
        self.shared, self.specific = nn.Identity(), nn.Identity()

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        item = self.embedding.items(batch.fields[:, self.embedding.columns[1]])
        user, item = sides(self.embedding.users(batch), item, self.embedding.bias)
        products = user * item
        logit = products.sum(1)
        if not representations:
            return Output(logit)
        return Output(logit, products, products[:, :0])

    def score(self, batch: Batch, items: Items) -> Tensor:
        """Return (B, C), the logit of every row with each candidate in its item's place."""
        embedding, catalogue = self.embedding, items.fields[:, 0]
        users, count = embedding.users(batch), items.at.shape[1]
        if len(catalogue) <= CATALOGUE * count:
            users, vectors = sides(users, embedding.items(catalogue), embedding.bias)
            rows = max(1, BLOCK // max(1, len(catalogue)))
            parts = zip(users.split(rows), items.at.split(rows), strict=True)
            return torch.cat([(user @ vectors.T).gather(1, at) for user, at in parts])
        found = []
        rows = max(1, BLOCK // max(1, count * users.shape[1]))
        for part, at in zip(users.split(rows), items.at.split(rows), strict=True):
            user, vectors = sides(
                part, F.embedding(catalogue[at], embedding.table(1)), embedding.bias
            )
            found.append(torch.bmm(vectors, user.unsqueeze(2)).squeeze(2))
        return torch.cat(found)
