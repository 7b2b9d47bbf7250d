"""ASMG: serving weights generated from a sequence of models by GRUs (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from incrs.errors import Mistake
from incrs.models.base import Backbone
from incrs.module import Move, ScenarioModule, clone
from incrs.period import Period
from incrs.updaters.base import Fit, Updater, Weights
from incrs.updaters.learner import SMALL, Known, Needed, WeightLearner

DENSE = "dense"
"""The name under which all weights outside of tables lie, one behind the other: (models, P)."""
BLOCK = 1 << 14
"""Whole tables are generated in blocks of so many rows."""

CACHED = 1 << 11
"""What one generator makes goes through the GRU so many numbers at a time, which stay in the cache."""

Formula = Callable[..., Tensor]
"""(x (k, G, n), h (G, d, n) or None, the parameters (G, ...) of G generators) -> (S, G, n)."""


def gru_step(x: Tensor, h: Tensor, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gates z and r (G, 2d, n), candidate c (G, d, n), the next state (G, d, n)) of Eq. 4.

    z = sig(x u_z + h w_z), r = sig(x u_r + h w_r), c = tanh(x u_c + (h * r) w_c),
    next = (1 - z) h + z c.  x: (G, n), n numbers for each of G generators.  h: (G, d, n).
    u: (G, 3d) is [u_z, u_r, u_c].  w: (G, d, 3d) is [w_z, w_r, w_c].
    """
    d, add_product, x = h.shape[1], adding(x.shape[1]), x.unsqueeze(1)
    gates, c = u[:, : 2 * d, None] * x, u[:, 2 * d :, None] * x
    add_product(gates, w[:, :, : 2 * d].mT, h)
    z, r = gates.sigmoid_().split(d, 1)
    add_product(c, w[:, :, 2 * d :].mT, h * r)
    return gates, c.tanh_(), torch.lerp(h, c, z)


def adding(numbers: int) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """Return how to add to a tensor (G, i, j), in place, the products a (G, i, m) b (G, m, j).

    numbers: how many each generator works on. With one each, what lies side by side in memory are the
    generators, and the sum over m is taken for all of them at once.
    """
    return Tensor.baddbmm_ if numbers > 1 else _add_by_term


def _add_by_term(to: Tensor, a: Tensor, b: Tensor) -> None:
    for m in range(a.shape[2]):
        to.addcmul_(a[:, :, m : m + 1], b[:, m : m + 1])


class _Sequence(torch.autograd.Function):
    """The outputs of every step of Eq. 4 and 5, with a gradient in a fifth of autograd's memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, u: Tensor, w: Tensor, out: Tensor, bias: Tensor
    ) -> Tensor:
        add_product = adding(x.shape[2])
        kept, outputs = [x, u, w, out, h], []
        with torch.autocast(x.device.type, enabled=False):
            for x_j in x:
                gates, c, h = gru_step(x_j, h, u, w)
                y = bias[:, None, None].expand(-1, 1, x.shape[2]).clone()
                add_product(y, out.unsqueeze(1), h)
                outputs.append(y.squeeze(1))
                kept += [gates, c, h]
        ctx.save_for_backward(*kept)
        return torch.stack(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, u, w, out, *kept = ctx.saved_tensors
        (dy,) = gradients
        d, add_product = out.shape[1], adding(x.shape[2])
        w_gates, w_c = w.split([2 * d, d], 2)
        du_gates, du_c = (torch.zeros_like(part) for part in u.split([2 * d, d], 1))
        dw_gates, dw_c, dout = (torch.zeros_like(part) for part in (w_gates, w_c, out))
        dh: Tensor | None = None
        with torch.autocast(x.device.type, enabled=False):
            for j in reversed(range(len(x))):
                before, gates, c, after = kept[3 * j : 3 * j + 4]
                z, r = gates.split(d, 1)
                add_product(dout.unsqueeze(2), after, dy[j].unsqueeze(2))
                own = out.unsqueeze(2) * dy[j].unsqueeze(1)
                dh = own if dh is None else dh.add_(own)
                dc = torch.ops.aten.tanh_backward(dh * z, c)
                dq = torch.zeros_like(dh)  # of q = h * r
                add_product(dq, w_c, dc)
                dgates = torch.empty_like(gates)
                dz, dr = dgates.split(d, 1)
                slope = torch.sub(c, before).mul_(dh)
                torch.ops.aten.sigmoid_backward.grad_input(slope, z, grad_input=dz)
                torch.ops.aten.sigmoid_backward.grad_input(dq * before, r, grad_input=dr)
                for du, dw, q, part in (
                    (du_gates, dw_gates, before, dgates),
                    (du_c, dw_c, before * r, dc),
                ):
                    add_product(du.unsqueeze(2), part, x[j].unsqueeze(2))
                    add_product(dw, q, part.mT)
                if j:
                    dh = torch.addcmul(dh, dh, z, value=-1).addcmul_(dq, r)
                    add_product(dh, w_gates, dgates)
        du, dw = torch.empty_like(u), torch.empty_like(w)  # as they lie in memory, unlike a cat
        du[:, : 2 * d], du[:, 2 * d :] = du_gates, du_c
        dw[:, :, : 2 * d], dw[:, :, 2 * d :] = dw_gates, dw_c
        return None, None, du, dw, dout, dy.sum((0, 2))


def gru(x: Tensor, h: Tensor | None, u: Tensor, w: Tensor, out: Tensor, bias: Tensor) -> Tensor:
    """Return y_j = h_j out + bias of every step (Eq. 5), h_j being the state after x_1 .. x_j: (k, G, n).

    x: (k, G, n).  h: (G, d, n), the state before; None: zeros.  out: (G, d).  bias: (G,).
    """
    if h is None:
        h = x.new_zeros(out.shape[1], *x.shape[1:]).transpose(0, 1)
    parts = list(zip(x.split(CACHED, 2), h.split(CACHED, 2), strict=True))
    if x.shape[2] > 1:
        parts = [(x.contiguous(), h.contiguous()) for x, h in parts]
    return torch.cat([_Sequence.apply(x, h, u, w, out, bias) for x, h in parts], 2)


def newest(x: Tensor, h: Tensor | None, *parameters: Tensor) -> Tensor:
    """Return what `gru` adds to the models themselves: y_j + x_j, (k, G, n)."""
    return gru(x, h, *parameters) + x


def first_state(x: Tensor, h: Tensor | None, u: Tensor, w: Tensor, *_: Tensor) -> Tensor:
    """Return the state after x_1 alone, (d, G, n); see `gru`."""
    if h is None:
        h = x.new_zeros(w.shape[1], *x.shape[1:]).transpose(0, 1)
    return gru_step(x[0], h, u, w)[2].transpose(0, 1)


def combine(x: Tensor, h: Tensor | None, logits: Tensor) -> Tensor:
    """Return the models' mean by softmax(logits), (1, G, n).  x: (k, G, n), logits: (G, k)."""
    return (x * logits.softmax(1).T.unsqueeze(2)).sum(0, keepdim=True)


def last(formula: Formula) -> Formula:
    """Return the formula that makes the last of what `formula` makes, (1, G, n)."""
    return lambda *given: formula(*given)[-1:]


class Layout:
    """Which generator makes which weight of a backbone.

    tables: name -> numbers in a row, each with its generator.  dense: name -> shape, in the order in
    which they lie in DENSE.  groups: (generators, numbers that each of them makes), which together
    make DENSE.  sizes: how many generators each table and each group has, P in all.
    fields: (P,) how many generators the tensor has that a generator works for.
    """

    def __init__(self, backbone: Backbone, share: str):
        state, tables = backbone.state_dict(), backbone.tables()
        self.tables = {name: state[name][0].numel() for name in tables}
        self.rows = {name: state[name].shape[1:] for name in tables}
        shapes = {name: x.shape for name, x in backbone.named_parameters() if name not in tables}
        made = {name: numbers_each(shape, share) for name, shape in shapes.items()}
        self.dense = {name: shapes[name] for name in sorted(made, key=lambda name: made[name])}
        generators = {name: shape.numel() // made[name] for name, shape in self.dense.items()}
        self.groups = [
            (sum(count for name, count in generators.items() if made[name] == numbers), numbers)
            for numbers in sorted(set(made.values()))
        ]
        self.sizes = [*self.tables.values(), *(count for count, _ in self.groups)]
        counts = torch.tensor([*self.tables.values(), *generators.values()])
        self.fields = counts.repeat_interleave(counts)

    def flat(self, weights: Weights) -> Tensor:
        """Return the weights outside of tables as they lie in DENSE, (P,)."""
        return torch.cat([weights[name].flatten() for name in self.dense])


def numbers_each(shape: Size, share: str) -> int:
    """Return how many of a dense tensor's numbers one generator makes."""
    each = {"per_weight": 1, "per_output": shape[-1] if len(shape) > 1 else 1}
    return each.get(share, max(1, shape.numel()))


class Generator(nn.Module):
    """Applies a formula to every coordinate of a sequence of `models` models.

    weights: the generators' parameters (..., P), in the order in which the formula takes them.
    """

    def __init__(
        self, layout: Layout, models: int, formula: Formula, weights: Mapping[str, Tensor]
    ):
        super().__init__()
        self.layout, self.models, self.formula = layout, models, formula
        ordered = [(name, x.clone()) for name, x in weights.items()]  # a dict would be sorted
        self.weights = nn.ParameterDict(ordered)

    def forward(self, known: Known, needed: Needed | None = None) -> list[dict[str, Tensor]]:
        """Return the S models that the formula makes, of the rows that are known.

        known: under a table's name the models' rows (n, ...) and, where there is one, the state before
        them (n, dim, d); under DENSE (models, P) and, where there is one, the state (d, P).
        needed: of tables, what is not needed is 0.
        """
        return self.named(self.each(self.formula, known, needed or {}))

    def named(self, found: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what `each` found as S models: name -> weight in its own shape."""
        made: list[dict[str, Tensor]] = []
        sizes = [shape.numel() for shape in self.layout.dense.values()]
        for j in range(len(next(iter(found.values())))):
            one = {}
            for name, values in found.items():
                if name in self.layout.tables:
                    one[name] = values[j].reshape(-1, *self.layout.rows[name])
                else:
                    parts = zip(self.layout.dense.items(), values[j].split(sizes), strict=True)
                    one |= {dense: part.view(shape) for (dense, shape), part in parts}
            made.append(one)
        return made

    def each(self, formula: Formula, known: Known, needed: Needed) -> dict[str, Tensor]:
        """Return what a formula makes of what is known: of tables (S, n, dim), of DENSE (S, P)."""
        layout = self.layout
        split = [parameter.split(layout.sizes, -1) for parameter in self.weights.values()]
        pieces = list(zip(*split, strict=True))  # of each table, then of each group
        numbers = {name: i for i, name in enumerate(layout.tables)}
        found: dict[str, Tensor] = {}
        for names in made_together(known, needed, layout):
            # Shorter tables are padded to the longest: (tables, n, models, dim).
            rows = pad_sequence(
                [
                    torch.stack([m.flatten(1) for m in known[name][: self.models]], 1)
                    for name in names
                ],
                batch_first=True,
            )
            x = rows.permute(2, 0, 3, 1).flatten(1, 2)  # (models, tables * dim, n)
            h = None
            if len(known[names[0]]) > self.models:
                states = pad_sequence([known[name][-1] for name in names], batch_first=True)
                h = states.permute(0, 2, 3, 1).flatten(0, 1)  # (tables * dim, d, n)
            mine = [
                torch.cat(same, -1).movedim(-1, 0).contiguous()
                for same in zip(*(pieces[numbers[name]] for name in names), strict=True)
            ]
            made = self.as_needed(formula, x, h, mine, needed.get(names[0], ()))
            made = made.unflatten(1, (len(names), -1)).transpose(2, 3)
            for i, name in enumerate(names):
                found[name] = made[:, i, : len(known[name][0])]
        if DENSE in known:
            sequence, *state = known[DENSE]
            at, dense = 0, []
            for (count, each), own in zip(layout.groups, pieces[len(numbers) :], strict=True):
                stop = at + count * each
                x = sequence[:, at:stop].unflatten(1, (count, each))
                h = None
                if state:
                    h = state[0][:, at:stop].unflatten(1, (count, each)).transpose(0, 1)
                mine = [piece.movedim(-1, 0) for piece in own]
                if each > 1:
                    mine = [piece.contiguous() for piece in mine]
                made = formula(x, h, *mine)
                dense.append(made.flatten(1))
                at = stop
            found[DENSE] = torch.cat(dense, 1)
        return found

    def as_needed(
        self,
        formula: Formula,
        x: Tensor,
        h: Tensor | None,
        parameters: Sequence[Tensor],
        needed: Sequence[int],
    ) -> Tensor:
        """Return what the formula makes, but of numbers that no later step needs those steps as 0."""
        if not needed or needed[0] < CACHED:  # of few, all is made at once
            return formula(x, h, *parameters)
        parts, at = [], 0
        for steps in range(len(needed), 0, -1):
            own = slice(at, needed[steps - 1])
            if own.start < own.stop:
                some = x[: self.models - len(needed) + steps, :, own]
                made = formula(some, None if h is None else h[:, :, own], *parameters)
                parts.append(F.pad(made, (0, 0, 0, 0, 0, len(needed) - steps)))
            at = own.stop
        return torch.cat(parts, 2)

    @torch.no_grad()
    def whole(self, formula: Formula, known: Known) -> dict[str, Tensor]:
        """Return what a formula makes of all rows, as `each` does, in blocks."""
        found = self.each(formula, {DENSE: known[DENSE]}, {})
        for name in self.layout.tables:
            parts = zip(*(x.split(BLOCK) for x in known[name]), strict=True)
            found[name] = torch.cat(
                [self.each(formula, {name: part}, {})[name] for part in parts], 1
            )
        return found


def made_together(known: Known, needed: Needed, layout: Layout) -> list[list[str]]:
    """Return the names of the tables in `known`, in one list small ones of like size."""
    lists: dict[Any, list[str]] = {}
    for name, dim in layout.tables.items():
        if name in known:
            rows = len(known[name][0])
            small = rows <= SMALL and name not in needed
            alike = (dim, (rows.bit_length() + 1) // 2) if small else name
            lists.setdefault(alike, []).append(name)
    return list(lists.values())


def glorot(layout: Layout, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
    """Draw GRUs, (..., P): [P, a, b] in the paper's program is uniform within sqrt(6 / (P (a + b))).

    P: how many generators the tensor has that they make; so it is for the output's bias too, a = b = 1.
    """
    count, d = len(layout.fields), hidden
    shapes: dict[str, tuple[int, ...]] = {"u": (3 * d,), "w": (d, 3 * d), "out": (d,), "bias": ()}
    spans = {"u": 1 + d, "w": d + d, "out": d + 1, "bias": 2}
    drawn = {}
    for name, shape in shapes.items():
        limit = (6 / (layout.fields * spans[name])).sqrt()
        drawn[name] = limit * (2 * torch.rand(*shape, count, generator=random) - 1)
    return drawn


VARIANTS = ("multi", "single", "full", "zero", "uniform", "linear")


class ASMG(Updater):
    """Serves weights that GRUs make of the last k models; the models themselves are fine-tuned as ever.

    After D_{t+1} was scored, the GRUs learn: what they make of the models up to Theta_i is scored on
    rows of D_{i+1}, for each of the k steps i = t-k+1 .. t at once (Eq. 7). Each weight outside of
    tables has a GRU of its own, each of a table's dimensions one that all ids share. The state before
    the sequence is what the GRUs, newly trained, make of the models before it (section 3.4.1), and no
    gradient flows into it.

    The sequence begins with the first model after the warm-up (the paper's Theta_1; Theta_0 is no part
    of it). Until there are k models and the GRUs have learnt from them for the first time, the newest
    model serves: Algorithm 1 deploys them only once they are trained. Its training before deployment
    falls into the periods after the warm-up: the first k of them give models, and as many tune periods
    as there are besides train the GRUs before the test begins.

    k: models in a sequence, at least 1.  hidden_size: d of Eq. 4, at least 1.
    variant: `multi` as above; `single` trains on the last step alone, D_{t+1} (Eq. 6); `zero` starts
    from a state of zeros in every period; `full` too, with all models since the warm-up, of which none
    is forgotten; `uniform` weighs the steps alike; `linear`, the paper's ASMG-Linear, serves a mean of
    the k models whose weights (a softmax for each GRU that there would be) are trained on D_{t+1}.
    loss_weight: of step j of k: `linear` j / (1 + .. + k), `uniform` 1 / k.
    learning_rate: of the GRUs, above 0; their optimizer is otherwise the run's.
    epochs: over D_{t+1} in every period, at least 1.
    output: `residual` serves the newest model plus what the GRUs return, whose output layer starts at
    zero: so it begins as fine-tuning. `direct`, the paper's, serves what they return alone, and begins
    as noise; small networks may die of it and do not come back. `linear` has no output layer.
    share: how many weights of a tensor outside of tables a GRU makes: `per_weight`, one, the paper's;
    `per_output`, those along the tensor's last dimension, as the weights of one unit are;
    `per_tensor`, all. With hidden_size 4 a GRU has 65 numbers.
    carry_optimizer: False starts the optimizer of the GRUs cold in every period.

    Buffers, which nobody trains, are served as the newest model has them, and a step is scored with
    those of its own model. A row that a table gains is in the models before it too, with its initial
    value, and its state before the sequence is zeros. No value is read as unknown in training (the
    fields' unknown row is generated as any other). The models are kept on the CPU.
    """

    def __init__(
        self,
        k: int = 3,
        hidden_size: int = 4,
        variant: Literal["multi", "single", "full", "zero", "uniform", "linear"] = "multi",
        loss_weight: Literal["linear", "uniform"] = "linear",
        learning_rate: float = 0.01,
        epochs: int = 1,
        output: Literal["direct", "residual"] = "residual",
        share: Literal["per_weight", "per_output", "per_tensor"] = "per_weight",
        carry_optimizer: bool = True,
    ):
        for name, number in (("k", k), ("hidden_size", hidden_size), ("epochs", epochs)):
            if type(number) is not int or number < 1:
                raise Mistake(f"updater.asmg.{name}={number}: give a whole number from 1")
        if not learning_rate > 0:
            raise Mistake(f"updater.asmg.learning_rate={learning_rate}: give a number above 0")
        choices = {
            "variant": (variant, VARIANTS),
            "loss_weight": (loss_weight, ("linear", "uniform")),
            "output": (output, ("direct", "residual")),
            "share": (share, ("per_weight", "per_output", "per_tensor")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                *most, last = allowed
                raise Mistake(f"updater.asmg.{name}={value}: give {', '.join(most)} or {last}")
        self.k, self.hidden_size, self.variant, self.share = k, hidden_size, variant, share
        self.loss_weight = "uniform" if variant == "uniform" else loss_weight
        self.learning_rate, self.epochs, self.carry = learning_rate, epochs, carry_optimizer
        self.residual = output == "residual"
        self.models: list[dict[str, Tensor]] = []  # oldest first
        self.state: dict[str, Tensor] = {}  # before the oldest; empty: zeros
        self._periods = 0  # learnt so far, the warm-up included
        self._weights: dict[str, Tensor] = {}  # the generator's; empty: it has learnt nothing yet
        self._optimizer_state: dict[int, dict[str, Tensor]] = {}

    @property
    def ready(self) -> bool:
        """Whether there is a sequence of models to learn from."""
        return len(self.models) >= (1 if self.variant == "full" else self.k)

    def serving_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        """Remember the weights as the newest model; return what is generated once that has been learnt."""
        self._periods += 1
        if self._periods == 1:
            return weights
        self.models.append(clone(weights))
        if not self._weights or not self.ready:
            return weights
        generator = self.generator(module)
        made = generator.whole(last(generator.formula), self.known(generator))
        (one,) = generator.named(made)
        return {name: one.get(name, value) for name, value in weights.items()}

    def learn_next(
        self, module: ScenarioModule, history: Sequence[Period], following: Period, fit: Fit
    ) -> None:
        """Train the generator on D_{t-k+2} .. D_{t+1}, or D_{t+1} alone; then let the oldest model go."""
        if not self.ready:
            return
        steps = 1 if self.variant in ("single", "linear") else len(self.models)
        generator = self.generator(module)
        if len(following):
            parameters = {name for name, _ in module.backbone.named_parameters()}
            buffers = [
                {name: value for name, value in model.items() if name not in parameters}
                for model in self.models[-steps:]
            ]
            learner = WeightLearner(
                module.backbone,
                generator,
                self.known(generator),
                shares(steps, self.loss_weight),
                buffers,
                lambda given: self.optimizer(module, given),
                self._optimizer_state if self.carry else {},
            )
            earlier = history[len(history) - steps + 1 :]
            fit(learner, *earlier, following, epochs=self.epochs, aligned=True)
            learner.check("asmg", following)
            self._weights, self._optimizer_state = clone(dict(generator.weights)), learner.state
        if self.variant == "full":
            return
        if self._weights and self.variant in ("multi", "single", "uniform"):
            found = generator.cpu().whole(first_state, self.known(generator))
            self.state = {
                name: x if name == DENSE else x.movedim(0, -1).contiguous()
                for name, x in found.items()
            }
        del self.models[0]

    def rows_move(self, module: ScenarioModule, moves: Mapping[str, Move]) -> None:
        """Move the models' rows, fresh ones to their initial value, and their states, fresh ones to 0."""
        for name, move in moves.items():
            for model in self.models:
                model[name] = move(model[name], move.fresh)
            if name in self.state:
                self.state[name] = move(self.state[name], self.state[name].new_zeros(()))

    def known(self, generator: Generator) -> dict[str, tuple[Tensor, ...]]:
        """Return what the generator is given: the models and the state before them."""
        layout = generator.layout
        known = {name: tuple(model[name] for model in self.models) for name in layout.tables}
        known[DENSE] = (torch.stack([layout.flat(model) for model in self.models]),)
        before = {name: (state,) for name, state in self.state.items()}
        return {name: (*x, *before.get(name, ())) for name, x in known.items()}

    def generator(self, module: ScenarioModule) -> Generator:
        """Return the generator as it was last trained, or, from the seed of now, as it starts."""
        layout = Layout(module.backbone, self.share)
        formula = combine if self.variant == "linear" else newest if self.residual else gru
        weights = self._weights
        if not weights and self.variant == "linear":
            weights = {"logits": torch.zeros(self.k, len(layout.fields))}
        elif not weights:
            random = torch.Generator().manual_seed(torch.initial_seed())
            weights = glorot(layout, self.hidden_size, random)
            if self.residual:
                weights |= {name: torch.zeros_like(weights[name]) for name in ("out", "bias")}
        ordered = ("logits",) if self.variant == "linear" else ("u", "w", "out", "bias")
        formula = last(formula) if self.variant == "single" else formula
        return Generator(layout, len(self.models), formula, {n: weights[n] for n in ordered})

    def optimizer(
        self, module: ScenarioModule, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Return the run's optimizer with the generator's learning rate."""
        optimizer = module.make_optimizer(parameters)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next period depends on, flat."""
        state: dict[str, Any] = {"periods": self._periods, "models": len(self.models)}
        for i, model in enumerate(self.models):
            state |= {f"model.{i}.{name}": value for name, value in model.items()}
        state |= {f"state.{name}": value for name, value in self.state.items()}
        state |= {f"generator.{name}": value for name, value in self._weights.items()}
        for number, entry in self._optimizer_state.items() if self.carry else ():
            state |= {f"optimizer.{number}.{name}": value for name, value in entry.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

        def under(prefix: str) -> dict[str, Tensor]:
            at = f"{prefix}."
            return {k.removeprefix(at): v for k, v in state_dict.items() if k.startswith(at)}

        self._periods = state_dict["periods"]
        self.models = [under(f"model.{i}") for i in range(state_dict["models"])]
        self.state, self._weights = under("state"), under("generator")
        self._optimizer_state = {}
        for key, value in under("optimizer").items():
            number, name = key.split(".", 1)
            self._optimizer_state.setdefault(int(number), {})[name] = value


def shares(steps: int, weight: str) -> list[float]:
    """Return the weight of every step's loss, oldest first; they sum to 1."""
    weights = [1.0] * steps if weight == "uniform" else [float(j + 1) for j in range(steps)]
    return [w / sum(weights) for w in weights]
