"""SML: serving weights transferred from those of t-1 and those just trained (Zhang et al., SIGIR 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor, nn

from incrs import together
from incrs.errors import Mistake
from incrs.models.base import Backbone, Output
from incrs.module import Move, ScenarioModule, clone
from incrs.period import Batch, Period, Role
from incrs.updaters.base import Fit, Updater, Weights
from incrs.updaters.learner import Known, WeightLearner
from incrs.updaters.renumbering import Renumbering, rows_of_gates
from incrs.updaters.transfer import ROWS, Shape, Transfer, widths

VARIANTS = ("full", "no_cnn", "no_fc")


class SML(Updater):
    """Serves f(W_{t-1}, U_t), f being networks that learn from D_{t+1} once it has been scored.

    U_t (the paper's W-hat) starts at W_{t-1} and is trained on D_t through the fixed f, so that
    f(W_{t-1}, U_t) does well there (Eq. 8). After D_{t+1} was scored, f is trained on it with U_t
    fixed, to first order (Eq. 10); both steps take turns `repetitions` times. What the last f makes,
    W_t, is where the next period starts (Algorithms 1 and 2). A table has a network for all its rows.
    The warm-up is the paper's initial training and goes through no f; its weights are the first
    W_{t-1}.

    filters: n1 and n2, of the convolutions over a table's row.  hidden: d_f of Eq. 6.
    dense: how the weights outside of tables are transferred: `rows`, each row of a tensor (the weights
    of one unit) by a network for all of them; `tensor`, a network that takes and returns the whole
    tensor, as ASMG's authors have it: with hidden 20 that is 80 numbers for every weight; `none`: as
    they were trained.
    dense_filters, dense_hidden: of those networks.
    variant: `no_cnn` without convolutions (SML-CNN), `no_fc` without the layer of Eq. 6 (SML-FC).
    output: `residual` adds U_t to what the networks return, whose last layer starts at zero: so it
    begins as fine-tuning. `direct`, the paper's, serves what they return alone, and begins as noise.
    learning_rate: of f, above 0; its authors have .001. Its optimizer is otherwise the run's, which is
    also that of U_t, with the run's `incremental_lr`.
    epochs: of f over D_{t+1} in every repetition; of U_t over D_t the run's `epochs` in the first.
    epochs_again: of U_t over D_t in the others.
    repetitions: how often the two steps take turns; the paper's stop condition, of which it says no
    more than that it tunes this number from 5 to 10. Only the first is before D_{t+1} is scored.
    w_hat: `continue`, U_t goes on in the next repetition; `restart`, it does so from f(W_{t-1}, U_t),
    as the paper's program does.
    l2, transfer_l2: lambda_1 and lambda_2, times the sum of squares of U_t and of f's weights, beside
    losses that are means over a batch. l2 moves every row of every table in every step.
    next_period: False trains f on D_t in the place of D_{t+1} (SML-N).
    freeze_transfer: True leaves f as it is from when the test periods begin, and U_t too once it was
    trained (SML-S, at the cost that the paper measures).
    forward: False trains U_t as if there were no f (SML-FP).
    carry_optimizer: False starts the optimizer of f cold in every fit.

    Buffers, which nobody trains, serve as training on D_t left them. The weights of t-1 are kept on the
    CPU. In training f, no value is read as unknown.
    """

    rests_in_warmup: ClassVar[bool] = True

    def __init__(
        self,
        filters: Sequence[int] = (10, 5),
        hidden: int = 20,
        dense: Literal["rows", "tensor", "none"] = "rows",
        dense_filters: Sequence[int] = (5, 3),
        dense_hidden: int = 20,
        variant: Literal["full", "no_cnn", "no_fc"] = "full",
        output: Literal["direct", "residual"] = "residual",
        learning_rate: float = 0.0001,
        epochs: int = 1,
        epochs_again: int = 1,
        repetitions: int = 1,
        w_hat: Literal["continue", "restart"] = "continue",
        l2: float = 0.0,
        transfer_l2: float = 0.0,
        next_period: bool = True,
        freeze_transfer: bool = False,
        forward: bool = True,
        carry_optimizer: bool = True,
    ):
        whole = {
            "hidden": hidden,
            "dense_hidden": dense_hidden,
            "epochs": epochs,
            "epochs_again": epochs_again,
            "repetitions": repetitions,
        }
        for name, number in whole.items():
            if type(number) is not int or number < 1:
                raise Mistake(f"updater.sml.{name}={number}: give a whole number from 1")
        for name, pair in {"filters": filters, "dense_filters": dense_filters}.items():
            if len(pair) != 2 or any(type(x) is not int or x < 1 for x in pair):
                raise Mistake(f"updater.sml.{name}={list(pair)}: give two whole numbers from 1")
        if not learning_rate > 0:
            raise Mistake(f"updater.sml.learning_rate={learning_rate}: give a number above 0")
        for name, weight in {"l2": l2, "transfer_l2": transfer_l2}.items():
            if not weight >= 0:
                raise Mistake(f"updater.sml.{name}={weight}: give a number from 0")
        choices = {
            "dense": (dense, ("rows", "tensor", "none")),
            "variant": (variant, VARIANTS),
            "output": (output, ("direct", "residual")),
            "w_hat": (w_hat, ("continue", "restart")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                *most, last = allowed
                raise Mistake(f"updater.sml.{name}={value}: give {', '.join(most)} or {last}")
        convolutions, layer = variant != "no_cnn", variant != "no_fc"
        self._tables = (tuple(filters) * convolutions, hidden * layer)
        self._others = (tuple(dense_filters) * convolutions, dense_hidden * layer)
        self.dense, self.residual = dense, output == "residual"
        self.learning_rate, self.epochs, self.epochs_again = learning_rate, epochs, epochs_again
        self.repetitions, self.restart = repetitions, w_hat == "restart"
        self.l2, self.transfer_l2 = l2, transfer_l2
        self.next_period, self.freeze = next_period, freeze_transfer
        self.forward, self.carry = forward, carry_optimizer
        self.previous: dict[str, Tensor] = {}  # W_{t-1}; empty in the warm-up
        self._weights: dict[str, Tensor] = {}  # f's
        self._optimizer_state: dict[int, dict[str, Tensor]] = {}
        self._made: Weights = {}  # what serves, until anything that it was made of is trained again
        self._transfer: Transfer | None = None  # on the device, while training on D_t
        self._near: dict[str, Tensor] = {}  # W_{t-1}, there
        self._renumbered: Renumbering | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring f and W_{t-1} to the device."""
        assert isinstance(pl_module, ScenarioModule)
        if self.previous and self.forward:
            self._transfer = self.transfer().to(pl_module.device).requires_grad_(False)
            self._near = {
                name: self.previous[name].to(pl_module.device)
                for name, _ in pl_module.backbone.named_parameters()
            }
            self._renumbered = Renumbering(pl_module.backbone)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what is on the device."""
        self._transfer, self._near, self._renumbered = None, {}, None

    def training_weights(
        self, module: ScenarioModule, weights: Weights, batch: Batch
    ) -> tuple[Weights, Batch]:
        """Return f(W_{t-1}, U_t), of large tables the rows of the batch alone, and the batch so numbered."""
        if self._transfer is None or self._renumbered is None:
            return weights, batch
        (found,), rows, _ = self._renumbered([batch])
        assert found is not None
        known: dict[str, tuple[Tensor, ...]] = {}
        for name, before in self._near.items():
            if name in rows:
                ids = rows[name]
                known[name] = (before.index_select(0, ids), module.rows(weights[name], ids))
            else:
                known[name] = (before, weights[name])
        (made,) = self._transfer(known)
        at = rows_of_gates(module.backbone, self._renumbered.tables, rows)
        gates = {name: weights[name].index_select(0, ids) for name, ids in at.items()}
        return {**weights, **made, **gates}, found

    def penalty(self, module: ScenarioModule, batch: Batch, output: Output) -> Tensor | None:
        """Return lambda_1 ||U_t||^2 of Eq. 8; nothing in the warm-up."""
        if not self.l2 or not self.previous:
            return None
        squares = torch.stack([w.square().sum() for w in module.backbone.parameters()]).sum()
        return self.l2 / together.processes() * squares

    def serving_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        """Return f(W_{t-1}, U_t); after the warm-up the weights themselves."""
        if not self.previous:
            return weights
        self._made = self.transferred(module, weights)
        return self._made

    def learn_next(
        self, module: ScenarioModule, history: Sequence[Period], following: Period, fit: Fit
    ) -> None:
        """Train f on D_{t+1} and U_t on D_t in turns; then make W_t what the module goes on from."""
        if not self.previous:
            self._weights = self.drawn(module)
        elif not (self.freeze and following.role is Role.TEST):
            if module.previous is None:  # after a resume other updaters may ask for it
                trained = clone(module.backbone.state_dict())
                module.go_on_from(self.previous)
                module.remember()
                module.go_on_from(trained)
            rows, self._made = following if self.next_period else history[-1], {}
            for repetition in range(self.repetitions):
                if repetition and len(history[-1]):
                    if self.restart:
                        module.go_on_from(self.transferred(module))
                    fit(module, history[-1], epochs=self.epochs_again)
                if len(rows):
                    self.learn(module, rows, fit)
        if self.previous:
            module.go_on_from(self._made or self.transferred(module))
        self.previous, self._made = clone(module.backbone.state_dict()), {}

    def learn(self, module: ScenarioModule, rows: Period, fit: Fit) -> None:
        """Train f on a period's rows, U_t being fixed (Eq. 10)."""
        own = clone(module.backbone.state_dict())
        transfer = self.transfer()
        names = [name for name, _ in module.backbone.named_parameters()]
        learner = WeightLearner(
            module.backbone,
            transfer,
            {name: (self.previous[name], own[name]) for name in names},
            [1.0],
            [{name: value for name, value in own.items() if name not in names}],
            lambda parameters: self.optimizer(module, parameters),
            self._optimizer_state if self.carry else {},
            self.transfer_l2,
        )
        fit(learner, rows, epochs=self.epochs, aligned=True)
        learner.check("sml", rows)
        self._weights, self._optimizer_state = clone(transfer.weights), learner.state

    def rows_move(self, module: ScenarioModule, moves: Mapping[str, Move]) -> None:
        """Move the rows of the weights of t-1, fresh ones to their initial value."""
        for name, move in moves.items():
            if self.previous:
                self.previous[name] = move(self.previous[name], move.fresh)

    def findings(self) -> Mapping[str, float]:
        """Return the first convolution's filters of every table (the paper's Figure 7)."""
        found = {}
        for key, weight in self._weights.items():
            name, _, piece = key.rpartition("/")
            if piece == "first" and ".tables." in name:
                for j, own in enumerate(weight.tolist()):
                    for row, value in zip(ROWS, own, strict=True):
                        found[f"{name.rpartition('.')[2]}.filter{j}.{row}"] = value
        return found

    def transferred(self, module: ScenarioModule, weights: Weights | None = None) -> Weights:
        """Return f(W_{t-1}, weights), by default the module's; buffers as they are."""
        weights = module.backbone.state_dict() if weights is None else weights
        names = [name for name, _ in module.backbone.named_parameters()]
        known: Known = {name: (self.previous[name], weights[name].detach()) for name in names}
        return {**weights, **self.transfer().whole(known)}

    def transfer(self) -> Transfer:
        """Return f as it is now."""
        return Transfer(self._weights, self.residual)

    def drawn(self, module: ScenarioModule) -> dict[str, Tensor]:
        """Draw f from the seed of now."""
        random = torch.Generator().manual_seed(torch.initial_seed())
        backbone: Backbone = module.backbone
        tables = backbone.tables()
        found: dict[str, Tensor] = {}
        for name, width in widths(backbone, self.dense).items():
            pieces = Shape(width, *(self._tables if name in tables else self._others)).drawn(random)
            if self.residual:
                pieces |= {part: torch.zeros_like(pieces[part]) for part in ("out", "out_bias")}
            own = backbone.get_parameter(name)
            found |= {f"{name}/{part}": piece.to(own.dtype) for part, piece in pieces.items()}
        return found

    def optimizer(
        self, module: ScenarioModule, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Return the run's optimizer with the learning rate of f."""
        optimizer = module.make_optimizer(parameters)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next period depends on, flat."""
        state: dict[str, Any] = {f"previous.{name}": w for name, w in self.previous.items()}
        state |= {f"transfer.{name}": w for name, w in self._weights.items()}
        for number, entry in self._optimizer_state.items() if self.carry else ():
            state |= {f"optimizer.{number}.{name}": value for name, value in entry.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

        def under(prefix: str) -> dict[str, Tensor]:
            at = f"{prefix}."
            return {k.removeprefix(at): v for k, v in state_dict.items() if k.startswith(at)}

        self.previous, self._weights, self._optimizer_state = (
            under("previous"),
            under("transfer"),
            {},
        )
        for key, value in under("optimizer").items():
            number, name = key.split(".", 1)
            self._optimizer_state.setdefault(int(number), {})[name] = value
