"""A small log and a small network that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # these models are small: threads only wait for each other

os.environ.setdefault("INCRS_SHARE", "false")  # a test computes what it looks at

import pytest
import torch
from torch import Tensor, nn

from incrs.data.base import ListField, Schema, Source, assign_roles
from incrs.models.base import Backbone, Output
from incrs.models.layers import Embeddings, look_up
from incrs.period import Batch, Period

CONF = Path(__file__).parent.parent / "conf"

SCHEMA = Schema(
    vocabularies={"user": 21, "item": 31, "tag": 8},
    fields={"user": "user", "item": "item"},
    lists={"tags": ListField("tag", 3), "history": ListField("item", 4)},
    numbers=("price",),
    scenarios=("home", "search", "feed"),
    user="user",
    item="item",
)


class SmallSource(Source):
    """Random rows that can be learnt from; from period `noise_from` on, everything is noise."""

    def __init__(self, rows: int = 60, periods: int = 6, noise_from: int | None = None):
        self.name, self.schema = "small", SCHEMA
        self.roles = assign_roles(2, 1, None, periods, "data")
        self.fingerprints = [str(t) for t in range(periods)]
        self.rows, self.noise_from = rows, noise_from

    def read(self, t: int) -> Period:
        noise = self.noise_from is not None and t >= self.noise_from
        random = torch.Generator().manual_seed(t + 1000 * noise)

        def ids(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=random, dtype=torch.int32)

        n = self.rows
        fields = torch.stack([ids(21, n), ids(31, n)], 1)
        lists = {"tags": ids(8, n, 3), "history": ids(31, n, 4)}
        numbers = torch.randn(n, 1, generator=random)
        scenario = ids(3, n).long()
        truth = torch.sigmoid(fields[:, 1] / 10 - 1.5 + numbers[:, 0] + scenario).double()
        label = (torch.rand(n, generator=random) < (0.5 if noise else truth)).float()
        rows = Batch(fields, lists, numbers, scenario, label)
        return Period(t, f"day {t}", self.roles[t], rows, truth)


class SmallBackbone(Backbone):
    """Item and user vectors, a shared layer and a vector per scenario."""

    def __init__(self, schema: Schema = SCHEMA, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = Embeddings(schema, 4, seed)
        self.shared = nn.Linear(9, 5)
        self.specific = nn.Embedding(len(schema.scenarios), 5)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        user = look_up(self.embedding.table("user"), batch.fields[:, 0])
        item = look_up(self.embedding.table("item"), batch.fields[:, 1])
        shared = torch.tanh(self.shared(torch.cat([user, item, batch.numbers], 1)))
        specific = shared * self.specific(batch.scenario)
        if representations:
            return Output(specific.sum(1), shared, specific)
        return Output(specific.sum(1))


@pytest.fixture
def small_source() -> SmallSource:
    return SmallSource()
