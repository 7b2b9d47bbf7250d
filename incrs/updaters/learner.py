"""`WeightLearner`: trains a generator of weights by how well they do on rows of the log."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from incrs import together
from incrs.errors import Mistake
from incrs.models.base import Backbone, Output
from incrs.period import Batch, Period
from incrs.updaters.base import Weights
from incrs.updaters.renumbering import Batches, Needed, Renumbering, rows_of_gates

Known = Mapping[str, Sequence[Tensor]]
"""What a generator is given, by name; under a table's name tensors (rows, ...), one row an id."""


class Asked(NamedTuple):
    """What a step takes to the device: its batches, renumbered, and what is known of their rows."""

    batches: tuple[Batch | None, ...]
    known: dict[str, tuple[Tensor, ...]]
    needed: Needed
    gates: tuple[dict[str, Tensor], ...]


class Stand:
    """A copy of a backbone, in evaluation mode, that scores rows by the weights it was last given.

    As `torch.func.functional_call` does, without a look for each weight at every call.
    """

    def __init__(self, backbone: Backbone):
        own = [*backbone.named_parameters(), *backbone.named_buffers()]
        self.backbone = copy.deepcopy(backbone, {id(x): x for _, x in own}).eval()
        self._own: Weights = dict(own)
        places: list[tuple[int, dict[str, Any], str]] = [
            (id(x), held, key)
            for module in self.backbone.modules()
            for held in (module._parameters, module._buffers)
            for key, x in held.items()
        ]
        self._places = {name: [p[1:] for p in places if p[0] == id(x)] for name, x in own}

    def __call__(self, weights: Weights, batch: Batch) -> Output:
        """Score rows by these weights, and where one is missing by the last one given."""
        self._put(weights)
        output: Output = self.backbone(batch)
        return output

    def clear(self) -> None:
        """Let go of the weights that were given."""
        self._put(self._own)

    def _put(self, weights: Weights) -> None:
        for name, weight in weights.items():
            for held, key in self._places[name]:
                held[key] = weight


class WeightLearner(L.LightningModule):
    """Trains `generator` alone: loss = sum over j of shares[j] * backbone.loss(batch j, weights j).

    A step's batches are a tuple, as an aligned fit has them.  backbone: how weights score rows; its own
    are not used.  generator: `generator(known, needed)` returns the parameters j = 0, 1, ..., tables with
    the rows in front that batch j or a later one needs, or with all that it was given.
    known: what it is given, on the CPU. Of large tables a step brings the rows of its batches to the
    device, which gives the gradient of generating all of them, for the rows of a table are generated
    each for itself; the rest of `known` is brought there once.
    buffers: of every j, what else a backbone needs.
    optimizer: makes the optimizer; PyTorch's Adam takes all its steps fused, which is the same to
    rounding: conf/optimizer has it otherwise for the sake of tables that grow.
    state: what it goes on from, a parameter's number -> name -> tensor, None or
    empty: cold; after a fit, what it came to.
    l2: times the sum of squares of the generator's parameters is added to every step's loss.
    Scores are those of evaluation mode, as when the weights serve.
    """

    def __init__(
        self,
        backbone: Backbone,
        generator: nn.Module,
        known: Known,
        shares: Sequence[float],
        buffers: Sequence[Weights],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        state: dict[int, dict[str, Tensor]] | None = None,
        l2: float = 0.0,
    ):
        super().__init__()
        self.generator = generator
        self.state = state or {}
        self.losses: list[Tensor] = []  # one scalar a step, of the last fit
        self._known, self._shares = known, tuple(shares)
        self._renumbered = Renumbering(backbone)
        self._large = self._renumbered.tables
        renumbered = {vocabulary for _, vocabulary in self._large.values()}
        by_row = {name for name, (_, v) in backbone.gates().items() if v in renumbered}
        self._fixed = [{n: x for n, x in some.items() if n not in by_row} for some in buffers]
        self._gates = [{n: x for n, x in some.items() if n in by_row} for some in buffers]
        self._stand = Stand(backbone)
        self._make_optimizer, self._l2 = optimizer, l2
        self._near: dict[str, tuple[Tensor, ...]] = {}

    def on_train_start(self) -> None:
        """Bring to the device what every step needs."""
        self._near = {
            name: tuple(x.to(self.device) for x in some)
            for name, some in self._known.items()
            if name not in self._large
        }
        self._fixed = [
            {name: x.to(self.device) for name, x in some.items()} for some in self._fixed
        ]

    def on_before_batch_transfer(self, batch: Batches, dataloader_idx: int) -> Asked:
        """Return the batches with what is known of their rows."""
        batches, rows, needed = self._renumbered(batch)
        known = {
            name: tuple(x.index_select(0, ids) for x in self._known[name])
            for name, ids in rows.items()
        }
        at = rows_of_gates(self._stand.backbone, self._large, rows)
        gates = tuple({n: some[n][ids] for n, ids in at.items()} for some in self._gates)
        return Asked(batches, known, needed, gates)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Bring what a step takes to the device; a CPU has it, and a look at each tensor costs time."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, asked: Asked, batch_idx: int) -> Tensor:
        """Return the loss of a step; among several processes its share times their number."""
        generated = self.generator({**self._near, **asked.known}, asked.needed)
        buffers = [a | b for a, b in zip(self._fixed, asked.gates, strict=True)]
        steps = zip(self._shares, generated, buffers, asked.batches, strict=True)
        loss = torch.zeros((), device=self.device)
        for share, weights, fixed, batch in steps:
            if batch is not None:
                output = self._stand({**weights, **fixed}, batch)
                loss = loss + share * self._stand.backbone.loss(batch, output)
        if self._l2:
            squares = sum(w.square().sum() for w in self.generator.parameters())
            loss = loss + self._l2 / together.processes() * squares
        self.losses.append(loss.detach())
        return loss if together.alone() else together.processes() * loss

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer, and load the state carried over."""
        optimizer = self._make_optimizer(self.generator.parameters())
        if type(optimizer) is torch.optim.Adam and self.device.type in ("cpu", "cuda"):
            for (
                group
            ) in optimizer.param_groups:  # the same in a third of the time: no tensor grows here
                group.update(foreach=False, fused=not group["differentiable"])
        if self.state:
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self.state, "param_groups": groups})
        return optimizer

    def on_train_end(self) -> None:
        """Keep the optimizer's state, and drop what is on the device."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        self.state = {
            number: {name: torch.as_tensor(x).detach().cpu().clone() for name, x in entry.items()}
            for number, entry in optimizer.state_dict()["state"].items()
        }
        self._near = {}
        self._stand.clear()

    def check(self, name: str, period: Period) -> None:
        """Raise Mistake where a loss of the last fit was not finite.  name: of the updater."""
        (losses,) = together.summed(torch.stack(self.losses))
        broken = (~losses.isfinite()).nonzero().flatten().tolist()
        if broken:
            raise Mistake(
                f"{name}: the loss of the generated weights is not finite on period {period.index} "
                f"({period.name}), from step {broken[0] + 1} of {len(losses)} on: a smaller "
                f"updater.{name}.learning_rate may prevent it, or a smaller optimizer.lr; the periods "
                "before are kept"
            )
