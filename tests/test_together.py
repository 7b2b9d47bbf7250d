"""Processes that train together get the numbers of one process: real processes, gloo and DDP."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace

import hydra
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from incrs import together
from incrs.models.base import Backbone
from incrs.period import Batch
from incrs.updaters.base import Updater
from incrs.updaters.incctr import IncCTR
from incrs.updaters.incmsr import IncMSR
from tests.commands import at_once
from tests.conftest import CONF
from tests.models.toy import SCHEMA, doubled, roughen, rows

UPDATERS: dict[str, Callable[[], Updater]] = {
    "none": Updater,
    "incmsr": lambda: IncMSR(0.1),
    "incmsr scalar": lambda: IncMSR(0.1, squeeze="scalar"),
    "incmsr margin": lambda: IncMSR(0.1, margin=2.0),
    "incmsr normalize": lambda: IncMSR(0.1, margin=1.0, normalize=True),
    "incmsr time alone": lambda: IncMSR(0.1, scenario=False, time_scenario=False),
    "incctr convex": lambda: IncCTR(0.3, "convex"),
    "incctr additive": lambda: IncCTR(0.3, "additive"),
}
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
LISTS = [
    *itertools.product([*MODELS, "din activation=dice", "sasrec tower=null"], ["none"]),
    *itertools.product(["star", "shared_bottom"], list(UPDATERS)[1:]),
]
CASES = [f"{model}, {updater}, float64" for model, updater in LISTS]
CASES += ["star, incmsr margin, float32", "shared_bottom, incctr convex, float32"]

PARTS = {
    "rows of every scenario everywhere": ([0, 1, 2] * 6, None),
    "a scenario in one process alone": ([0] * 5 + [1] * 4 + [2] * 4, None),
    "a single row of a scenario": ([0, 2, 0, 0, 1, 2, 0, 0, 0, 2, 0, 0, 2], None),
    "two rows of a scenario, in two processes": ([2, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 2], None),
    "a single row": ([1], None),
    "two rows": ([1, 1], None),
    "no rows in the first process": ([0, 1, 1, 2, 0, 0, 1], 0),
}
"""Each step's scenarios, and which process has no rows; None: the last ones, where rows are too few."""


def batches(dtype: torch.dtype) -> Iterator[tuple[Batch, int | None]]:
    for seed, (scenario, without) in enumerate(PARTS.values()):
        batch = rows(SCHEMA, len(scenario), seed=seed, scenario=scenario)
        yield doubled(batch) if dtype == torch.float64 else batch, without


def cut(batch: Batch, without: int | None, rank: int, world: int) -> Batch:
    """Return one process's slice: consecutive, and as long as the others' or one row longer."""
    if world > 1 and without is not None:
        if rank == without:
            return batch.take(slice(0, 0))
        rank, world = rank - (rank > without), world - 1
    where = torch.arange(len(batch.label)).tensor_split(world)[rank]
    return batch.take(where)


class Step(nn.Module):
    """A step's loss, times the number of processes, as gradients are averaged over them."""

    def __init__(self, backbone: Backbone, previous: Backbone, updater: Updater):
        super().__init__()
        self.backbone, self.updater = backbone, updater
        self.module = SimpleNamespace(
            backbone=backbone,
            scenarios=len(SCHEMA.scenarios),
            previous_output=lambda batch: previous(batch, representations=True),
        )

    def forward(self, batch: Batch) -> Tensor:
        output = self.backbone(batch, representations=True)
        loss = self.backbone.loss(batch, output)
        penalty = self.updater.penalty(self.module, batch, output)  # type: ignore[arg-type]
        return together.processes() * (loss if penalty is None else loss + penalty)


def trained(case: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Train a few steps; return losses, weights, running moments and what the updater keeps."""
    model, name, precision = case.split(", ")
    dtype = getattr(torch, precision)
    model, *settings = model.split()
    config = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    config.merge_with_dotlist(settings)
    factory = hydra.utils.instantiate(config, _partial_=True, _convert_="all")
    backbone = factory(schema=SCHEMA, seed=0)
    if dtype == torch.float64:
        roughen(backbone)
    previous = factory(schema=SCHEMA, seed=1).to(dtype).eval().requires_grad_(False)
    updater = UPDATERS[name]()
    step: nn.Module = Step(backbone, previous, updater)
    if world > 1:
        # Small buckets, so that gradients are averaged in the midst of the backward pass; buffers are
        # left alone, so that they show whether they stay equal by themselves.
        step = DistributedDataParallel(step, broadcast_buffers=False, bucket_cap_mb=0.05)
    # Adam steps as far for a gradient of 1e-9 as for one of 1, and in float32 that is rounding.
    double = dtype == torch.float64
    optimizer = (torch.optim.Adam if double else torch.optim.SGD)(backbone.parameters(), lr=0.01)
    losses = []
    for batch, without in batches(dtype):
        loss = step(cut(batch, without, rank, world))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach() / world)
    (total,) = together.summed(torch.stack(losses))
    updater.on_train_end(None, None)  # type: ignore[arg-type]
    kept = [torch.tensor(value or 0.0) for value in updater.state_dict().values()]
    return {"losses": total, **backbone.state_dict(), "kept": torch.stack([*kept, torch.zeros(())])}


def meet(rank: int, world: int) -> dict[str, Tensor]:
    """Return what the functions themselves say in this process."""
    one = torch.arange(6.0, dtype=torch.float64).view(2, 3).add(rank).requires_grad_()
    two = torch.full((), 10.0 * (rank + 1), dtype=torch.float64, requires_grad=True)
    a, b = together.summed(one.t(), two)
    share = (a**2).sum() * (rank + 1) + b * rank
    gradients = torch.autograd.grad(share, [one, two], create_graph=True)
    (again,) = torch.autograd.grad(gradients[0].sum(), one)
    logit = torch.randn(5, generator=torch.manual_seed(0))[rank * 2 : rank * 2 + 2]
    return {
        "sums": torch.cat([a.detach().flatten(), b.detach().view(1)]),
        "gradients": torch.cat([gradient.detach().flatten() for gradient in gradients]),
        "again": again,
        "mean": together.mean(F.mse_loss, logit[: 2 - rank], torch.zeros(2 - rank)),
        "who": torch.tensor([together.processes(), together.alone(), together.first()]),
    }


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("error")
    # Its successor's name is younger than the oldest torch allowed.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    torch.set_num_threads(1)
    for world in (3, 2):
        if rank < world:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/{world}",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=60),
            )
            found = {case: trained(case, rank, world) for case in CASES}
            if world == 2:
                found["meet"] = meet(rank, world)
            torch.save(found, f"{folder}/{world}-{rank}.pt")
            dist.destroy_process_group()


Found = dict[int, list[dict[str, dict[str, Tensor]]]]


pytestmark = pytest.mark.xdist_group("together")  # one fixture for all


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every process of two, and of three, came to."""
    folder = tmp_path_factory.mktemp("together")
    at_once(work, folder, 3)
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in (2, 3)
    }


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes_train_to_the_numbers_of_one(found: Found, case: str, world: int) -> None:
    tolerance = 1e-5 if case.endswith("float32") else 1e-10
    expected = trained(case)
    for process in found[world]:
        assert process[case].keys() == expected.keys()
        for name, value in expected.items():
            ours, first = process[case][name], found[world][0][case][name]
            assert torch.equal(ours, first), f"{name} differs between processes"
            torch.testing.assert_close(ours, value, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_sum_is_over_the_processes_and_so_is_its_gradient(found: Found) -> None:
    processes = [process["meet"] for process in found[2]]
    total = torch.tensor([0 + 1, 6 + 1, 2 + 1, 8 + 1, 4 + 1, 10 + 1, 30]).double()
    gradient = torch.tensor([1.0, 3, 5, 7, 9, 11]) * 2 * (1 + 2)
    for rank, process in enumerate(processes):
        assert torch.equal(process["sums"], total)
        assert torch.equal(process["gradients"], torch.cat([gradient, torch.ones(1)]).double())
        # The gradient is 6 a in both processes, so what both ask for is 12 a.
        assert torch.equal(process["again"], torch.full((2, 3), 12.0).double())
        assert process["who"].tolist() == [2, 0, rank == 0]
    logit = torch.randn(5, generator=torch.manual_seed(0))[:3]
    shares = [process["mean"] for process in processes]
    torch.testing.assert_close(sum(shares), logit.square().mean())


def test_one_process_is_alone_and_pays_nothing() -> None:
    x = torch.randn(3, requires_grad=True)
    assert together.summed(x)[0] is x
    assert together.processes() == 1
    assert together.alone()
    assert together.first()


def test_alone_a_mean_is_that_of_torch_to_the_last_digit() -> None:
    label = (torch.rand(37) < 0.4).float()
    logits = [torch.linspace(-3, 3, 37).requires_grad_() for _ in range(2)]
    ours = together.mean(F.binary_cross_entropy_with_logits, logits[0], label)
    theirs = F.binary_cross_entropy_with_logits(logits[1], label)
    assert torch.equal(ours, theirs)
    ours.backward()
    theirs.backward()
    assert logits[0].grad is not None
    assert logits[1].grad is not None
    assert torch.equal(logits[0].grad, logits[1].grad)
