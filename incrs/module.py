"""`ScenarioModule`: the one LightningModule. It wraps any backbone and asks the updaters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from incrs import together
from incrs.errors import Mistake
from incrs.models.base import Backbone, Items, Output
from incrs.models.gates import gates_of, through_shared
from incrs.models.layers import look_up
from incrs.period import Batch
from incrs.ranking import Ranked, places
from incrs.seeking import Places, Sought
from incrs.selectors.base import Selector
from incrs.updaters.base import Updater, Weights, overrides

OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]


class ScenarioModule(L.LightningModule):
    """Trains a backbone on a period and scores the next one, through what the updaters say.

    backbone: the weights of now.  ids: vocabulary -> (rows,) the id behind each row of its tables,
    as of the last `follow`.
    updaters: by name, in the order they compose.  scenarios: S.
    optimizer: makes an optimizer from parameters; one whose `wants_sparse_gradients` is true gets
    sparse gradients of the large tables.
    carry_optimizer: True lets the optimizer's state run on from one fit to the next, False starts it
    cold in every fit.
    selector: whose gates the backbone has, if any.
    """

    def __init__(
        self,
        backbone: Backbone,
        updaters: Mapping[str, Updater],
        optimizer: OptimizerMaker,
        scenarios: int,
        carry_optimizer: bool = True,
        selector: Selector | None = None,
    ):
        super().__init__()
        self.backbone, self.scenarios = backbone, scenarios
        self.updaters = dict(updaters)
        self.ids: dict[str, Tensor] = {}
        tables = backbone.tables()
        by_row = {*tables, *backbone.gates()}
        dense = {name: w for name, w in backbone.state_dict().items() if name not in by_row}
        self._initial_dense: Weights = clone(dense)
        self.optimizer_state: dict[str, Any] | None = None
        self.learning_rate: float | None = None  # of the next fit; None: the optimizer's own
        self.losses: list[Tensor] = []  # one scalar a step, on the device, of the last fit
        self.make_optimizer, self._carry = optimizer, carry_optimizer
        tried = optimizer([nn.Parameter(torch.zeros(1))])
        self._sparse: bool = getattr(tried, "wants_sparse_gradients", False)
        for table, _ in tables.values():
            table.sparse = self._sparse
        if self._sparse:  # DDP averages dense gradients alone: see on_before_optimizer_step
            names = [f"backbone.{name}" for name in tables]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)
        self._representations = any(u.wants_representations for u in self.updaters.values())
        self._selector = (selector,)  # in a tuple: what it searches by is no part of the state
        self._through = [u for u in self.updaters.values() if overrides(u, "training_weights")]
        self._penalties = [u for u in self.updaters.values() if overrides(u, "penalty")]
        self._previous: tuple[Backbone, ...] = ()  # in a tuple: no submodule, in no state_dict
        self._remembered: tuple[Batch, Output] | None = None
        self._serving: Weights | None = None
        self._own: Weights = {}  # parameters and buffers, while a fit goes on

    @property
    def previous(self) -> Backbone | None:
        """The model of t-1: frozen, in evaluation mode; None in the warm-up."""
        return self._previous[0] if self._previous else None

    @property
    def initial_weights(self) -> Weights:
        """The weights that a training from scratch starts from, with the rows of now."""
        drawn = {
            name: tables.initial(vocabulary, self.ids[vocabulary], len(self.ids[vocabulary]))
            for name, (tables, vocabulary) in self.backbone.tables().items()
        }
        gates = {name: self.backbone.get_buffer(name) for name in self.backbone.gates()}
        start = {**self._initial_dense, **drawn, **clone(gates)}
        return {name: start[name] for name in self.backbone.state_dict()}

    def follow(self, ids: Mapping[str, Tensor]) -> None:
        """Give the tables the rows of these ids, in their order: in the model of now and of t-1.

        A row that stays moves as it is, with what the optimizer knows of it; a new one has its
        initial value, and zeros in the optimizer's state.  ids: vocabulary -> (rows,), ids[0] = 0.
        """
        moves: dict[str, Move] = {}
        for name, (tables, vocabulary) in self.backbone.tables().items():
            before, now = self.ids.get(vocabulary), ids[vocabulary]
            if before is None or not torch.equal(before, now):
                moves[name] = Move.between(before, now, partial(tables.initial, vocabulary))
        for name, (gates, vocabulary) in self.backbone.gates().items():
            before, now = self.ids.get(vocabulary), ids[vocabulary]
            if before is None or not torch.equal(before, now):
                initial = partial(gates.initial, name.rpartition(".")[2])
                moves[name] = Move.between(before, now, initial)
        for backbone in (self.backbone, *self._previous):
            for name, (tables, vocabulary) in backbone.tables().items():
                if name in moves:
                    key = tables.names[vocabulary]
                    table = tables.tables[key]
                    moved = moves[name](table.detach(), moves[name].fresh)
                    tables.tables[key] = nn.Parameter(moved, table.requires_grad)
            for name, (gates, _) in backbone.gates().items():
                if name in moves:
                    kept = moves[name](backbone.get_buffer(name), moves[name].fresh)
                    gates.register_buffer(name.rpartition(".")[2], kept)
        if self.optimizer_state is not None:
            names = [name for name, _ in self.backbone.named_parameters()]
            for index, entry in self.optimizer_state["state"].items():
                if names[int(index)] in moves:
                    move = moves[names[int(index)]]
                    for key, value in entry.items():
                        if value.ndim:
                            entry[key] = move(value, value.new_zeros(()))
        self.ids = dict(ids)
        for updater in self.updaters.values():
            updater.rows_move(self, moves)

    def remember(self) -> None:
        """Make the weights of now those of the previous model, if any updater asks for it."""
        if any(u.wants_previous for u in self.updaters.values()):
            self._previous = (copy.deepcopy(self.backbone).eval().requires_grad_(False),)

    def start_from(self, weights: Weights) -> None:
        """Put weights into the backbone; the optimizer starts cold with them."""
        self.backbone.load_state_dict(weights)
        self.optimizer_state = None

    def go_on_from(self, weights: Weights) -> None:
        """Put weights into the backbone; the optimizer goes on with what it knows."""
        self.backbone.load_state_dict(weights)

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return the rows `ids` (n,) of a table, whose gradient is such as the optimizer asks for."""
        return look_up(table, ids, self._sparse)

    def restore(
        self, weights: Weights, optimizer_state: dict[str, Any] | None, ids: Mapping[str, Tensor]
    ) -> None:
        """Go on from weights and optimizer state that were saved with the rows of these ids."""
        for name, (tables, vocabulary) in self.backbone.tables().items():
            tables.tables[tables.names[vocabulary]] = nn.Parameter(weights[name])
        for name, (gates, _) in self.backbone.gates().items():
            gates.register_buffer(name.rpartition(".")[2], weights[name])
        self.backbone.load_state_dict(weights, assign=True)  # in their own precision
        self.optimizer_state, self.ids = optimizer_state, dict(ids)

    def previous_output(self, batch: Batch) -> Output | None:
        """Return the previous model's output on a batch, computed once a step; None in the warm-up."""
        if self.previous is None:
            return None
        if self._remembered is None or self._remembered[0] is not batch:
            with torch.no_grad():
                output = self.previous(batch, representations=self._representations)
            self._remembered = (batch, output)
        return self._remembered[1]

    def serve(self, weights: Weights | None) -> None:
        """Score through these weights from now on; None: through the backbone's own."""
        self._serving = weights

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch with every updater's penalty added.

        Among several processes each returns its share times their number, for what they do with the
        gradients is to average them; `losses` keeps the share.
        """
        weights: Weights = {}
        scored = batch
        if self._through:
            weights = self._own or self._named()
            for updater in self._through:
                weights, scored = updater.training_weights(self, weights, scored)
            output = functional_call(self.backbone, dict(weights), (scored, self._representations))
        else:
            output = self.backbone(batch, self._representations)
        loss = self.backbone.loss(batch, output)
        (selector,) = self._selector
        if selector is not None and selector.shares:

            def shared(rows: Batch) -> Output:
                with through_shared(gates_of(self.backbone)):
                    found: Output = functional_call(self.backbone, dict(weights), (rows,))
                    return found

            added = selector.shared_loss(scored, shared, self.scenarios)
            loss = loss if added is None else loss + added
        for updater in self._penalties:
            penalty = updater.penalty(self, batch, output)
            if penalty is not None:
                loss = loss + penalty
        self.losses.append(loss.detach())
        return loss if together.alone() else together.processes() * loss

    def _named(self) -> Weights:
        """Return the backbone's own parameters and buffers."""
        return {**dict(self.backbone.named_parameters()), **dict(self.backbone.named_buffers())}

    def predict_step(self, batch: Batch | Ranked | Sought, batch_idx: int) -> Tensor:
        """Return what the serving weights say of a batch: logits (B,), or of ranked rows `places` (B, 2)."""
        weights = self._serving or {}
        named = {f"backbone.{name}": weight for name, weight in weights.items()}
        if isinstance(batch, Sought):
            return functional_call(Places(self.backbone), named, (batch,))
        if isinstance(batch, Ranked):
            scorer = _Scorer(self.backbone)
            return places(functional_call(scorer, named, (batch.batch, batch.items)), batch)
        if self._serving is None:
            return self.backbone(batch).logit
        return functional_call(self.backbone, dict(self._serving), (batch,)).logit

    def on_predict_start(self) -> None:
        """Bring the serving weights to the device."""
        if self._serving is not None:
            self._serving = {name: w.to(self.device) for name, w in self._serving.items()}

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer of this fit, and load the state carried over from the last one."""
        optimizer = self.make_optimizer(self.backbone.parameters())
        rates = [group["lr"] for group in optimizer.param_groups]
        if self._carry and self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        for group, own in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = own if self.learning_rate is None else self.learning_rate
        return optimizer

    def on_train_start(self) -> None:
        """Bring the previous model to the device; start the record of losses."""
        if self._sparse and self.trainer.gradient_clip_val is not None:
            raise Mistake(
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val}: the gradients that this "
                "optimizer works with are sparse, and PyTorch clips dense ones alone: leave it out, or "
                "choose another optimizer"
            )
        if self.previous is not None:
            self.previous.to(self.device)
        self.losses, self._own = [], self._named()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the tables' gradients over the processes where DDP was told to leave them alone."""
        if self._sparse and not together.alone():
            tables = [self.backbone.get_parameter(name) for name in self.backbone.tables()]
            held = {table: table.grad for table in tables if table.grad is not None}
            for table, mean in zip(held, together.averaged(list(held.values())), strict=True):
                table.grad = mean

    def on_train_end(self) -> None:
        """Keep the optimizer's state for the next fit, and drop what belonged to the last step."""
        if self._carry:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, Optimizer)
            self.optimizer_state = optimizer.state_dict()
        self._remembered, self._own = None, {}


class _Scorer(nn.Module):
    """A backbone whose forward is its `score`, so that weights can be put in its place."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, items: Items) -> Tensor:
        """See `Backbone.score`."""
        return self.backbone.score(batch, items)


class Move(NamedTuple):
    """Where the rows of a table go when its ids change.

    source: (rows,) the old row of each new one, -1 where it is fresh.  fresh: the fresh ones' values.
    """

    source: Tensor
    fresh: Tensor

    @staticmethod
    def between(before: Tensor | None, now: Tensor, initial: Callable[..., Tensor]) -> Move:
        """Return the move from the ids of the rows before (None: there were none) to those of now."""
        source = torch.full_like(now, -1)
        if before is not None:
            row_of = torch.full((max(int(before.max()), int(now.max())) + 1,), -1)
            row_of[before] = torch.arange(len(before))
            source = row_of[now]
        return Move(source, initial(now[source < 0], len(now)))

    def __call__(self, table: Tensor, fresh: Tensor) -> Tensor:
        """Return the table (old rows, ...) as it is after the move, with `fresh` in the fresh rows."""
        source = self.source.to(table.device)
        moved = table.new_empty(len(source), *table.shape[1:])
        moved[source >= 0] = table[source[source >= 0]]
        moved[source < 0] = fresh.to(moved)
        return moved


def clone(weights: Weights) -> dict[str, Tensor]:
    """Return a copy of the weights that nothing else writes into, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in weights.items()}
