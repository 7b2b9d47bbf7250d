"""Furniture: the search for gates, on a copy of the backbone, by soft ones that a selector gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from incrs import together
from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Output
from incrs.models.gates import Gates, Multipliers, gates_of, through_shared
from incrs.models.layers import Embeddings
from incrs.period import Batch
from incrs.selectors.base import Selector, Values


class Soft(nn.Module):
    """Stands in the place of `Gates` while a selector searches."""

    def __init__(self, selector: Selector, values: Values):
        super().__init__()
        self.selector, self.values, self.sharing = selector, values, False
        self.met = torch.zeros(
            sum(values.sizes)
        )  # no buffer: processes would make it the first one's

    def forward(self, batch: Batch, like: Tensor) -> Multipliers:
        """Return the multipliers of B rows; remember which values they hold."""
        values, scenario = self.values, batch.scenario
        if self.sharing:
            scenario = torch.full_like(scenario, values.scenarios)
        places = values.places(batch)
        self.met = self.met.to(places.device).index_fill_(0, places.flatten(), 1.0)
        found = self.selector(places, scenario).to(like.dtype)
        sizes = [batch.lists[name].shape[1] for name in values.columns[values.fields :]]
        fields, *lists = found.split([values.fields, *sizes], 1)
        return Multipliers(fields, dict(zip(values.columns[values.fields :], lists, strict=True)))


class Search(L.LightningModule):
    """Trains a backbone and a selector's gates together.

    backbone: a copy, of which nothing stays but the weights at `rewind_epoch`.
    With `held_out` a step has a batch from which the gates learn, the weights being fixed, and one
    from which the weights do, the gates being fixed; both learn at once, to first order.
    """

    def __init__(
        self,
        backbone: Backbone,
        selector: Selector,
        values: Values,
        optimizer: Callable[[Any], Optimizer],
    ):
        super().__init__()
        self.backbone, self.soft = backbone, Soft(selector, values)
        self.selector, self._values, self._make_optimizer = selector, (values,), optimizer
        set_gates(backbone, self.soft)
        names = {name for name, module in backbone.named_modules() if module is self.soft}
        self._gates = f"{names.pop()}."
        self.rewound: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self._idle = False  # whether the gates have nothing to learn from in this step

    def on_train_epoch_start(self) -> None:
        """Keep the weights that training starts again from."""
        if self.current_epoch == self.selector.rewind_epoch:
            self.rewound = {
                name: weight.detach().cpu().clone()
                for name, weight in self.backbone.state_dict().items()
                if not name.startswith(self._gates)
            }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let the selector's schedule go on."""
        steps = int(self.trainer.estimated_stepping_batches)
        self.selector.schedule(self.current_epoch, self.global_step, steps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a step; among several processes its share times their number."""
        if isinstance(batch, Batch):
            loss = self._loss(batch, dict(self.backbone.named_parameters()), True)
        else:
            loss = torch.zeros((), device=self.device)
            for part, learns in zip(batch, ("gates", "weights"), strict=True):
                if part is None:  # several processes average what every parameter has
                    loss = loss + sum(0 * x.sum() for x in self.selector.parameters())
                    continue
                ours = {
                    name: x if name.startswith(self._gates) == (learns == "gates") else x.detach()
                    for name, x in self.backbone.named_parameters()
                }
                loss = loss + self._loss(part, ours, learns == "gates")
            self._idle = batch[0] is None
        self.losses.append(loss.detach())
        return loss if together.alone() else together.processes() * loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave the gates where they are in a step that had no rows for them to learn from."""
        if self._idle:
            for gate in self.selector.parameters():
                gate.grad = None

    def _loss(self, batch: Batch, weights: Mapping[str, Tensor], gates: bool) -> Tensor:
        def score(rows: Batch) -> Output:
            output: Output = functional_call(self.backbone, dict(weights), (rows,))
            return output

        def score_shared(rows: Batch) -> Output:
            with through_shared(self.soft):
                return score(rows)

        loss = self.backbone.loss(batch, score(batch))
        parts = [self.selector.penalty(batch)] if gates else []
        if self.selector.shares:
            scenarios = self.soft.values.scenarios
            parts.append(self.selector.shared_loss(batch, score_shared, scenarios))
        for part in parts:
            loss = loss if part is None else loss + part
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer: gates have a rate of their own and no decay."""
        slow = list(self.selector.slow())
        own = [p for p in self.selector.parameters() if all(p is not s for s in slow)]
        gates = {id(p) for p in self.selector.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.backbone.parameters() if id(p) not in gates]}
        ]
        rate = self.selector.learning_rate
        groups.append({"params": own, "lr": rate, "weight_decay": 0.0})
        groups.append({"params": slow, "lr": rate / 100, "weight_decay": 0.0})
        return self._make_optimizer([group for group in groups if group["params"]])

    def kept(self) -> Tensor:
        """Return which values are kept, bool (n, S + 1); those that no row held are."""
        (met,) = together.summed(self.soft.met)
        kept = self.selector.fixed().cpu()
        return kept if self.selector.whole_columns else kept | (met.cpu() == 0)[:, None]


def gated(backbone: Backbone) -> list[Embeddings]:
    """Return the embeddings that gates belong to."""
    return [module for module in backbone.modules() if isinstance(module, Embeddings)]


def set_gates(backbone: Backbone, gates: nn.Module | None) -> None:
    """Put gates into the backbone: the first of its embeddings owns them, others look them up there."""
    first, *others = gated(backbone)
    first.gates = gates
    for one in others:
        one.__dict__["gates"] = gates  # no submodule, so that it is in the state once


def open_gates(backbone: Backbone, schema: Schema, model: str) -> None:
    """Give a backbone gates that are open.  model: what people call it.

    Raises Mistake where an id reaches the logit but through gates.
    """
    embeddings = gated(backbone)
    if embeddings:
        first = embeddings[0]
        set_gates(backbone, Gates(first.fields, first.lists, len(schema.scenarios)))
    if not embeddings or _leaks(backbone, schema):
        raise Mistake(
            f"selector: model={model} does not read every id through the embeddings that a selector "
            "gates: choose another model, as embedding_mlp, dcn or star, or selector=none"
        )


def _leaks(backbone: Backbone, schema: Schema) -> bool:
    """Return whether a logit has a gradient by a table while all gates are closed."""
    probe = copy.deepcopy(backbone).eval()
    gates, rows, scenarios = gates_of(probe), 3, len(schema.scenarios)
    for tables, vocabulary in probe.tables().values():
        fresh = tables.initial(vocabulary, torch.arange(rows), rows)
        tables.tables[tables.names[vocabulary]] = nn.Parameter(fresh)
    for name in gates.buffers_by_row():
        gates.register_buffer(name, torch.zeros(rows, scenarios + 1).byte())
    count = 2 * scenarios
    lists = {n: torch.full((count, x.length), 2).int() for n, x in schema.lists.items()}
    batch = Batch(
        torch.ones(count, len(schema.fields)).int(),
        lists,
        torch.ones(count, len(schema.numbers)),
        torch.arange(count) % scenarios,
        torch.arange(count) % 2.0,
    )
    logit = probe(batch).logit.sum()
    tables_of = [probe.get_parameter(name) for name in probe.tables()]
    if not logit.requires_grad:
        return False
    found = torch.autograd.grad(logit, tables_of, allow_unused=True)
    return any(g is not None and bool((g.to_dense() != 0).any()) for g in found)
