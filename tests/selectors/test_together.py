"""Processes that search together find the gates of one: real processes, gloo and DDP, for every selector."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from incrs import together
from incrs.models.gates import gates_of
from incrs.module import ScenarioModule
from incrs.period import Batch
from incrs.selection import put, values_of
from incrs.selectors.search import Search, gated, open_gates
from tests.commands import at_once
from tests.conftest import SCHEMA
from tests.models.toy import doubled, roughen, rows
from tests.selectors.toy import SELECTORS, SOONER, backbone_of, selector
from tests.test_together import PARTS, cut

EPOCHS = 2
FORMS = {
    "multifs program": {"shared_form": "program"},
    "multifs poster": {"penalty_form": "poster", "final_form": "poster"},
}
CASES = [f"shared_bottom {name}" for name in [*SELECTORS, *FORMS]]
CASES += ["star multifs", "star autofield"]


def batches() -> Iterator[tuple[Batch, int | None]]:
    for seed, (scenario, without) in enumerate(PARTS.values()):
        batch = rows(SCHEMA, len(scenario), seed=seed, scenario=scenario)
        yield doubled(batch), without


class Step(nn.Module):
    """A module's training step, in the place where DDP looks for it."""

    def __init__(self, module: Search | ScenarioModule):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch | tuple[Batch | None, ...]) -> Tensor:
        return self.module.training_step(batch, 0)


def train(module: Search | ScenarioModule, rank: int, world: int) -> Tensor:
    """Train on this process's slices of every batch; return the losses."""
    step: nn.Module = Step(module)
    if world > 1:
        step = DistributedDataParallel(step, broadcast_buffers=False, bucket_cap_mb=0.05)
    optimizer = module.configure_optimizers()
    searching = isinstance(module, Search)
    for epoch in range(EPOCHS if searching else 1):
        for at, (whole, without) in enumerate(batches()):
            part = cut(whole, without, rank, world)
            if searching:
                count = len(PARTS)
                module.selector.schedule(epoch, epoch * count + at, EPOCHS * count)
            if searching and module.selector.held_out:
                idle = at == 2  # the rows held out are not enough for every step
                loss = step((None if idle else part, part))
            else:
                loss = step(part)
            optimizer.zero_grad()
            loss.backward()
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
    (losses,) = together.summed(torch.stack(module.losses))
    return losses


def trained(case: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Search, then train through what was found; return all numbers."""
    model, name, *_ = case.split()
    backbone = backbone_of(model)
    choice = selector(name, **SOONER[name] | FORMS.get(case.partition(" ")[2], {}))
    open_gates(backbone, SCHEMA, model)
    make = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(backbone, {}, make, len(SCHEMA.scenarios), selector=choice)
    module.follow({v: torch.arange(size) for v, size in SCHEMA.vocabularies.items()})
    gates, values, random = gates_of(roughen(backbone)), values_of(backbone), torch.manual_seed(0)
    gates.scale.fill_(1)
    searched = copy.deepcopy(backbone)
    choice.begin(values._replace(tables=gated(searched)[0]))
    search = Search(searched, choice, values, make).double()
    with torch.no_grad():
        for gate in choice.parameters():  # some are closed from the first, some near
            gate += 0.5 * torch.randn(gate.shape, generator=random, dtype=gate.dtype)
    found = {"losses of the search": train(search, rank, world), "kept": search.kept()}
    put(gates, found["kept"].split(list(values.sizes)), choice)
    found["losses"] = train(module, rank, world)
    return {**found, **choice.state_dict(), **backbone.state_dict()}


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("error")
    # Its successor's name is younger than the oldest torch allowed.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.save({case: trained(case, rank, 2) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


pytestmark = pytest.mark.xdist_group("together")  # one fixture for all


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes came to."""
    folder = tmp_path_factory.mktemp("together")
    at_once(work, folder, 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_find_the_gates_and_weights_of_one(
    found: list[dict[str, dict[str, Tensor]]], case: str
) -> None:
    expected = trained(case)
    assert 0 < expected["kept"].double().mean() < 1
    for process in found:
        assert process[case].keys() == expected.keys()
        for name, value in expected.items():
            ours, first = process[case][name], found[0][case][name]
            assert torch.equal(ours, first), f"{name} differs between processes"
            torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-9, msg=f"{case}: {name}")
