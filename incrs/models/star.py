"""STAR: a centre network that each scenario scales and shifts as its own (Sheng et al., CIKM 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs import together
from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import MLP, ByScenario, Embeddings, check_widths, dense, randomness
from incrs.period import Batch


def normalise(x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale (x - mean) / sqrt(variance) + shift; x (n, D), the rest (D,)."""
    return torch.addcmul(shift, x - mean, scale * variance.rsqrt())


class ScenarioNorm(nn.Module):
    """What a scenario has of its own in partitioned normalisation, and that normalisation.

    z' = gamma gamma_p (z - mean_p) / sqrt(variance_p + eps) + beta + beta_p, the moments over the
    scenario's own rows: of the batch in training, running ones in evaluation and where the batch has
    fewer than two rows of the scenario. The first batches of a scenario are averaged plainly (weight
    1/n) until that is less than `momentum`: inputs of .01 would otherwise meet a running variance that
    still remembers its start at 1. Where several processes train together the batch is that of all of
    them, and the running moments are equal in all.
    gamma, beta, mean, variance: (S, width).  batches: (S,), how many batches the running moments saw.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, scenarios: int, width: int, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.gamma = nn.Parameter(torch.ones(scenarios, width))
        self.beta = nn.Parameter(torch.zeros(scenarios, width))
        self.register_buffer("mean", torch.zeros(scenarios, width))
        self.register_buffer("variance", torch.ones(scenarios, width))
        self.register_buffer("batches", torch.zeros(scenarios, dtype=torch.int64))

    def forward(self, parts: Sequence[Tensor], gamma: Tensor, beta: Tensor) -> list[Tensor]:
        """Normalise slices (b_s, width); gamma, beta (width,) are what all scenarios share."""
        scales, shifts = (gamma * self.gamma).unbind(), (beta + self.beta).unbind()
        if self.training and not together.alone():
            mean, variance = self.by_batches(parts)
            moments = mean.unbind(), (variance + self.eps).unbind()
            return list(map(normalise, parts, *moments, scales, shifts))
        out = []
        for p, (part, scale, shift) in enumerate(zip(parts, scales, shifts, strict=True)):
            if self.training and len(part) > 1:
                out.append(self.by_batch(p, part, scale, shift))
            else:
                variance = self.variance[p] + self.eps
                out.append(normalise(part, self.mean[p], variance, scale, shift))
        return out

    def by_batch(self, p: int, part: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise scenario p's rows with their own moments, and remember these."""
        # With momentum 1 batch_norm leaves the batch's moments (variance over n - 1) in its buffers.
        mean, variance = torch.zeros_like(self.mean[p]), torch.ones_like(self.variance[p])
        out = F.batch_norm(part, mean, variance, scale, shift, True, 1.0, self.eps)
        with torch.no_grad():
            self.batches[p] += 1
            weight = self.batches[p].to(mean.dtype).reciprocal().clamp(min=self.momentum)
            self.mean[p].lerp_(mean, weight)
            self.variance[p].lerp_(variance, weight)
        return out

    def by_batches(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the moments (S, width) that all processes' rows are normalised with, and remember them."""
        sizes = self.mean.new_tensor([[len(part)] for part in parts])  # (S, 1)
        total, count = together.summed(torch.stack([part.sum(0) for part in parts]), sizes)
        mean = total / count.clamp(min=1)
        squares = [(part - m).square().sum(0) for part, m in zip(parts, mean.unbind(), strict=True)]
        (square,) = together.summed(torch.stack(squares))
        variance, enough = square / count.clamp(min=1), count > 1
        with torch.no_grad():
            self.batches.add_(enough.squeeze(1))
            weight = self.batches.to(mean.dtype).reciprocal().clamp(min=self.momentum).unsqueeze(1)
            weight = torch.where(enough, weight, 0)
            self.mean.lerp_(mean, weight)
            self.variance.lerp_(square / (count - 1).clamp(min=1), weight)
        return torch.where(enough, mean, self.mean), torch.where(enough, variance, self.variance)


class Centre(nn.Module):
    """What all scenarios share: gamma, beta, W (outputs, inputs), b (outputs,), the auxiliary network."""

    def __init__(
        self,
        widths: Sequence[int],
        inputs: int,
        auxiliary: Sequence[int],
        gamma: float,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((widths[0],), gamma))
        self.beta = nn.Parameter(torch.zeros(widths[0]))
        layers = [dense(width, following, random) for width, following in pairwise(widths)]
        self.weights = nn.ParameterList(layer.weight for layer in layers)
        self.biases = nn.ParameterList(layer.bias for layer in layers)
        self.auxiliary = nn.Sequential(
            MLP(inputs, auxiliary, random), dense([inputs, *auxiliary][-1], 1, random)
        )


class Own(nn.Module):
    """What a scenario has of its own: its normalisation, W_p (S, outputs, inputs), b_p (S, outputs)."""

    def __init__(self, scenarios: int, widths: Sequence[int], norm: ScenarioNorm) -> None:
        super().__init__()
        self.norm = norm
        self.weights = nn.ParameterList(
            torch.ones(scenarios, outputs, inputs) for inputs, outputs in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(scenarios, width) for width in widths[1:])


class STAR(Backbone):
    """Partitioned normalisation -> star network `hidden` and logit, plus an auxiliary network's logit.

    Each layer of the star has weight W * W_p (by element) and bias b + b_p, ReLU between layers; the
    products are formed once per forward. W starts Xavier, W_p and gamma_p at 1, b_p and beta_p at 0.
    gamma: where the shared scale of the normalisation starts. At 1, as usual, embeddings that start at
    .01 enter the network at 1, and the random start of rare ids is learnt by heart; .1 keeps them small.
    The auxiliary network reads the embeddings, not normalised, and the scenario's embedding.
    momentum, eps: of the normalisation, see ScenarioNorm. An input that is constant for a day, as the
    embedding of its weekday is, has no variance there; eps is what keeps its next value from being
    blown up on the next day, and 1e-5 is too little for that.

    shared: the last hidden layer (B, hidden[-1]) of a second pass of the same rows through the centre
    network alone, W and b: STAR has no layer that all rows share, and this is the part of the star
    that they do. Its input is normalised as the row's (gamma_p and beta_p included, W_p and b_p not).
    specific: the last hidden layer (B, hidden[-1]) of the star itself, W * W_p and b + b_p.
    """

    shared: Centre
    specific: Own

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        hidden: Sequence[int] = (128, 64, 32),
        auxiliary: Sequence[int] = (32,),
        gamma: float = 0.1,
        momentum: float = 0.1,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        check_widths("hidden", hidden)
        check_widths("auxiliary", auxiliary)
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed, scenario_field=True)
        self.scenarios = len(schema.scenarios)
        # The star's input; the scenario's embedding is behind it.
        self.width = embedding.width - embedding_size
        widths = [self.width, *hidden, 1]
        norm = ScenarioNorm(self.scenarios, self.width, momentum, eps)
        self.embedding = embedding
        self.shared = Centre(widths, embedding.width, auxiliary, gamma, random)
        self.specific = Own(self.scenarios, widths, norm)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        centre, own = self.shared, self.specific
        groups = ByScenario(batch.scenario, self.scenarios)
        x = self.embedding(batch.take(groups.order))  # (B, width + E), sorted
        extra = centre.auxiliary(x).squeeze(1)

        inputs = own.norm(groups.split(x[:, : self.width]), centre.gamma, centre.beta)
        weights = [(w * w_p).unbind() for w, w_p in zip(centre.weights, own.weights, strict=True)]
        biases = [(b + b_p).unbind() for b, b_p in zip(centre.biases, own.biases, strict=True)]
        hidden = inputs
        for layer in range(len(weights) - 1):
            hidden = [F.relu(h) for h in map(F.linear, hidden, weights[layer], biases[layer])]
        main = torch.cat(list(map(F.linear, hidden, weights[-1], biases[-1]))).squeeze(1)

        logit = groups.restore(main + extra)
        if not representations:
            return Output(logit)
        alone = torch.cat(inputs)
        for w, b in zip(centre.weights[:-1], centre.biases[:-1], strict=True):
            alone = F.relu(F.linear(alone, w, b))
        return Output(logit, groups.restore(alone), groups.restore(torch.cat(hidden)))
