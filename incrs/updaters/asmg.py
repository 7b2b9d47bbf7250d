"""ASMG: serving weights generated from a sequence of models by GRUs (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from incrs.errors import Mistake
from incrs.module import Move, ScenarioModule, clone
from incrs.period import Period
from incrs.updaters.base import Fit, Updater, Weights
from incrs.updaters.generator import NEAR, Generator, Layout, glorot
from incrs.updaters.gru import DIRECT, FIRST_STATE, MEAN, RESIDUAL, last
from incrs.updaters.learner import WeightLearner

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
        self._influence: dict[str, list[float]] = {}  # of the models the generator last learnt from

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
        self._influence = {}
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
            self._influence = generator.cpu().influence(self.known(generator))
        if self.variant == "full":
            return
        if self._weights and self.variant in ("multi", "single", "uniform"):
            found = generator.cpu().whole(FIRST_STATE, self.known(generator))
            self.state = generator.layout.states(found)
        del self.models[0]

    def findings(self) -> dict[str, float]:
        """Return how far a generated weight moves with the same weight of each model.

        `embedding.user.model-2`: the root mean square of the derivative by the model two periods before
        the newest, over the weights of a group; see `Generator.influence`.
        """
        return {
            f"{group}.model-{age}": value
            for group, oldest_first in self._influence.items()
            for age, value in enumerate(reversed(oldest_first))
        }

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
        known = {name: tuple(model[name] for model in self.models) for name in layout.far}
        if layout.near:
            known[NEAR] = (torch.stack([layout.flat(model) for model in self.models]),)
        if not self.state:
            return known
        before = {name: self.state[name] for name in layout.far}
        if layout.near:
            before[NEAR] = layout.flat_state(self.state)
        return {name: (*x, before[name]) for name, x in known.items()}

    def generator(self, module: ScenarioModule) -> Generator:
        """Return the generator as it was last trained, or, from the seed of now, as it starts."""
        layout = Layout(module.backbone, self.share)
        formula = MEAN if self.variant == "linear" else RESIDUAL if self.residual else DIRECT
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
        if self._optimizer_state.keys() - {0}:
            raise Mistake(
                "updater asmg: the checkpoint is of an earlier version of incrs, which kept the optimizer's "
                "state of the GRUs in parts: start a new run"
            )


def shares(steps: int, weight: str) -> list[float]:
    """Return the weight of every step's loss, oldest first; they sum to 1."""
    weights = [1.0] * steps if weight == "uniform" else [float(j + 1) for j in range(steps)]
    return [w / sum(weights) for w in weights]
