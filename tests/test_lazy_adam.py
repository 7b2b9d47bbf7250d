"""LazyAdam: the batch's rows of a large table move as in Adam, the others stand still, at no cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from incrs.data.base import ListField, Schema
from incrs.data.stream import PeriodStream
from incrs.door import maker
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.lazy_adam import LazyAdam, summed_rows
from incrs.models import layers
from incrs.models.layers import JOINED, look_up, pool
from incrs.module import ScenarioModule
from incrs.period import Batch
from incrs.roster import Roster
from incrs.runner import Fit, run
from incrs.updaters.base import Updater
from incrs.updaters.batch import BatchWindow
from incrs.updaters.finetune import Finetune
from incrs.updaters.incctr import IncCTR
from incrs.updaters.incmsr import IncMSR
from tests.commands import at_once
from tests.conftest import CONF
from tests.models.toy import doubled, rows
from tests.test_roster import ABOUT, Living, backbone_of

N, SIZE = JOINED + 476, 3
LARGE = Schema(
    vocabularies={"user": 3 * JOINED, "item": 2 * JOINED, "kind": 4, "tag": 8},
    fields={"user": "user", "item": "item", "last": "item", "kind": "kind"},
    lists={"history": ListField("item", 6), "tags": ListField("tag", 3)},
    numbers=["age"],
    scenarios=["home", "search", "live"],
    user="user",
    item="item",
)
"""Two tables whose gradients are sparse, one of them looked up by two fields and a list."""


def lazy_adam() -> Callable[..., LazyAdam]:
    config = OmegaConf.load(CONF / "optimizer" / "lazy_adam.yaml")
    return instantiate(config, _partial_=True, _convert_="all")  # type: ignore[no-any-return]


def module_of(
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schema: Schema = LARGE,
    backbone: str = "shared_bottom",
) -> ScenarioModule:
    return ScenarioModule(backbone_of(backbone, schema), {}, optimizer or lazy_adam(), 3)


def train(module: ScenarioModule, batches: Sequence[Batch]) -> torch.optim.Optimizer:
    optimizer = module.configure_optimizers()
    for i, batch in enumerate(batches):
        loss = module.training_step(batch, i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer


def batches(count: int = 4, size: int = 40) -> list[Batch]:
    return [rows(LARGE, size, seed) for seed in range(count)]


def table_and_weight(dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        nn.Parameter(torch.randn(*shape, generator=random, dtype=dtype))
        for shape in ((N, SIZE), (SIZE, 2))
    )


def loss_of(
    table: Tensor, weight: Tensor, ids: Tensor, lists: Tensor, sparse: bool = True
) -> Tensor:
    """A loss whose gradient of the table is small in some rows and large in others."""
    x = look_up(table, ids, sparse) + pool(table, lists, sparse)
    return ((x @ weight).sin() * torch.logspace(-6, 1, len(ids)).to(x).unsqueeze(1)).sum()


def draws(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):  # some rows often, and several times in a step; most of them never
        yield (
            torch.randint(60, (30,), generator=random).int() * 7,
            torch.randint(40, (30, 4), generator=random).int() * 11,
        )


def test_touched_rows_follow_the_formula_and_the_others_keep_their_bits():
    lr, b1, b2, eps, steps = 0.05, 0.8, 0.95, 1e-6, 12
    table, weight = table_and_weight()
    before = table.detach().clone()
    optimizer = LazyAdam([table, weight], lr=lr, betas=(b1, b2), eps=eps)
    x, m, v = before.numpy().copy(), np.zeros((N, SIZE)), np.zeros((N, SIZE))
    touched: set[int] = set()
    for t, (ids, lists) in enumerate(draws(steps), start=1):
        dense = torch.from_numpy(x.copy()).requires_grad_()
        loss_of(dense, weight.detach(), ids, lists, sparse=False).backward()
        held = {*ids.tolist(), *lists.flatten().tolist()} - ({0} - {*ids.tolist()})
        touched |= held
        for row in held:
            for j in range(SIZE):
                g = float(dense.grad[row, j])
                m[row, j] = b1 * m[row, j] + (1 - b1) * g
                v[row, j] = b2 * v[row, j] + (1 - b2) * g * g
                first, second = m[row, j] / (1 - b1**t), v[row, j] / (1 - b2**t)
                x[row, j] -= lr * first / (np.sqrt(second) + eps)
        optimizer.zero_grad()
        loss_of(table, weight, ids, lists).backward()
        assert table.grad.is_sparse
        optimizer.step()
        np.testing.assert_allclose(table.detach().numpy(), x, rtol=1e-9, atol=1e-11)
    state = optimizer.state[table]
    np.testing.assert_allclose(state["exp_avg"].numpy(), m, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state["exp_avg_sq"].numpy(), v, rtol=1e-9, atol=1e-12)
    assert state["step"] == steps
    still = [row for row in range(N) if row not in touched]
    assert 50 < len(touched) < len(still)
    assert torch.equal(table[still], before[still])
    assert not state["exp_avg"][still].any()
    assert not state["exp_avg_sq"][still].any()


def test_a_row_that_left_the_batch_stands_still_where_adam_moves_it():
    for optimizer, moves in ((LazyAdam, False), (torch.optim.Adam, True)):
        table, weight = table_and_weight()
        made = optimizer([table, weight])
        for ids in (torch.arange(5), torch.arange(5, 10)):
            before = table.detach().clone()
            made.zero_grad()
            loss_of(table, weight, ids, torch.zeros(5, 1).int(), sparse=not moves).backward()
            made.step()
        assert torch.equal(table[:5], before[:5]) != moves
        assert not torch.equal(table[5:10], before[5:10])


def test_with_every_row_in_every_step_it_is_adam():
    found = []
    for optimizer, sparse in ((LazyAdam, True), (torch.optim.Adam, False)):
        table, weight = table_and_weight(torch.float32)
        made = optimizer([table, weight], lr=0.01)
        ids = torch.arange(N)
        for shift in range(10):
            made.zero_grad()
            loss_of(table, weight, ids.roll(shift), torch.ones(N, 2).int(), sparse).backward()
            made.step()
        found.append((table, weight))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_where_gradients_are_dense_it_is_adam_to_the_last_bit():
    found = []
    for optimizer in (LazyAdam, partial(torch.optim.Adam, foreach=True)):
        table, weight = table_and_weight(torch.float32)
        made = optimizer([{"params": [table]}, {"params": [weight], "lr": 0.1}], lr=0.01)
        for ids, lists in draws(10):
            made.zero_grad()
            loss_of(table, weight, ids, lists, sparse=False).backward()
            made.step()
        found.append([table, weight, *made.state[table].values(), *made.state[weight].values()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_table_may_have_a_sparse_gradient_in_one_step_and_a_dense_one_in_the_next():
    table, weight = table_and_weight()
    optimizer = LazyAdam([table, weight], lr=0.01)
    x = table.detach().clone().requires_grad_()
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, (ids, lists) in enumerate(draws(9), start=1):
        sparse = t % 3 > 0
        x.grad = None
        loss_of(x, weight.detach(), ids, lists, sparse=False).backward()
        with torch.no_grad():
            here = torch.ones(N, dtype=torch.bool)
            if sparse:
                here[:] = False
                here[ids.long()] = here[lists[lists > 0].long()] = True
            m[here] = 0.9 * m[here] + 0.1 * x.grad[here]
            v[here] = 0.999 * v[here] + 0.001 * x.grad[here] ** 2
            x[here] -= 0.01 * m[here] / (1 - 0.9**t) / ((v[here] / (1 - 0.999**t)).sqrt() + 1e-8)
        optimizer.zero_grad()
        loss_of(table, weight, ids, lists, sparse).backward()
        assert table.grad.is_sparse == sparse
        optimizer.step()
        torch.testing.assert_close(table.detach(), x.detach(), rtol=1e-9, atol=1e-11)


def test_rows_of_a_sparse_gradient_are_summed():
    ids = torch.tensor([[5, 2, 5, 0, 2, 5]])
    values = torch.arange(12.0).view(6, 2)
    gradient = torch.sparse_coo_tensor(ids, values, (9, 2), check_invariants=True)
    found, sums = summed_rows(gradient)
    assert found.tolist() == [0, 2, 5]
    assert torch.equal(sums, gradient.to_dense()[found])


def test_a_batch_without_an_id_in_its_lists_moves_nothing():
    table = nn.Parameter(torch.randn(N, SIZE))
    before = table.detach().clone()
    optimizer = LazyAdam([table])
    pool(table, torch.zeros(4, 3).int(), sparse=True).sum().backward()
    optimizer.step()
    assert torch.equal(table, before)
    assert optimizer.state[table]["step"] == 1


def test_sparse_look_up_gives_the_bits_of_the_dense_one_and_the_rows_alone():
    table = torch.randn(N, SIZE, requires_grad=True)
    ids = torch.randint(N, (30, 4), generator=torch.manual_seed(0), dtype=torch.int32)
    ids[:, 2:] = 0
    assert torch.equal(look_up(table, ids, True), look_up(table, ids))
    assert torch.equal(pool(table, ids, True), pool(table, ids))
    for function in (look_up, pool):
        dense = torch.autograd.grad(function(table, ids).sin().sum(), table)[0]
        sparse = torch.autograd.grad(function(table, ids, True).sin().sum(), table)[0]
        torch.testing.assert_close(sparse.to_dense(), dense)
        assert (0 in summed_rows(sparse)[0]) == (function is look_up)  # in a list 0 is padding
    small = torch.randn(JOINED, SIZE, requires_grad=True)
    assert not torch.autograd.grad(look_up(small, ids % JOINED, True).sum(), small)[0].is_sparse
    computed = look_up(table * 2, ids, True)  # as an updater's weights are
    assert not torch.autograd.grad(computed.sum(), table)[0].is_sparse


@pytest.mark.parametrize("backbone", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_the_module_gives_large_tables_sparse_gradients(backbone):
    module = module_of(backbone=backbone)
    train(module, batches(1))
    sparse = {n for n, p in module.backbone.named_parameters() if p.grad.is_sparse}
    large = {"embedding.tables.user", "embedding.tables.item"}
    assert sparse == large & set(module.backbone.tables()) != set()
    module = module_of(torch.optim.Adam, backbone=backbone)
    train(module, batches(1))
    assert not any(p.grad.is_sparse for p in module.backbone.parameters())


def test_the_same_batches_give_the_same_bits():
    found = []
    for _ in range(2):
        module = module_of(backbone="star")
        train(module, batches(6, size=700))
        found.append(module.backbone.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


class Longest(TorchDispatchMode):
    """Keeps the operations that wrote or made as much as the table holds."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.found = size, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, list | tuple) else [out]) if torch.is_tensor(x)]
        if any(not x.is_sparse and x.numel() >= self.size for x in made):
            self.found.add(str(func))
        return out


def test_no_operation_of_a_step_is_as_long_as_the_table():
    module = module_of()
    optimizer = train(module, batches(1))
    for lazy in (True, False):
        for tables, _ in module.backbone.tables().values():
            tables.sparse = lazy
        with Longest(len(module.backbone.embedding.table("item")) * 10) as mode:
            loss = module.training_step(batches(2)[1], 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # index_copy_ writes some rows and returns the whole
        assert (mode.found <= {"aten.index_copy_.default", "aten.detach.default"}) == lazy


def test_a_table_that_grew_and_a_restored_one_go_on_with_their_moments(tmp_path):
    module = module_of()
    ids = {name: torch.arange(size) for name, size in LARGE.vocabularies.items()}
    fewer = {name: these[: JOINED + 100] for name, these in ids.items()}
    module.follow(fewer)
    few = [
        batch._replace(
            fields=batch.fields % JOINED, lists={n: x % JOINED for n, x in batch.lists.items()}
        )
        for batch in batches()
    ]
    module.optimizer_state = train(module, few).state_dict()
    state = module.optimizer_state["state"]
    before = {i: entry["exp_avg"].clone() for i, entry in state.items()}
    roster = Roster(LARGE, "fixed")
    RunFolder(tmp_path).save(3, False, module, roster)
    again = module_of()
    RunFolder(tmp_path).restore(again, roster)
    for one in (module, again):
        one.follow(ids)
        names = [name for name, _ in one.backbone.named_parameters()]
        for i, entry in one.configure_optimizers().state_dict()["state"].items():
            assert entry["step"] == 4
            held = before[i]
            assert torch.equal(entry["exp_avg"][: len(held)], held)
            grew = names[i] in ("embedding.tables.user", "embedding.tables.item")
            assert (len(entry["exp_avg"]) > len(held)) == grew
        train(one, batches())
    ours, theirs = module.backbone.state_dict(), again.backbone.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


UPDATERS = pytest.mark.parametrize(
    "updater",
    [Finetune, IncCTR, IncMSR, partial(BatchWindow, 2)],
    ids=["finetune", "incctr", "incmsr", "batch"],
)


def go(folder: Path, updater: Updater, periods: int, **roster: object) -> ScenarioModule:
    source = Living(periods)
    backbone = backbone_of("shared_bottom", source.schema)
    module = ScenarioModule(backbone, {"one": updater}, lazy_adam(), 2)
    rows = Roster(source.schema, **roster)  # type: ignore[arg-type]
    stream = PeriodStream(source, 16, rows, 0.05)
    run(stream, module, partial(L.Trainer, accelerator="cpu"), RunFolder(folder), ABOUT)
    return module


@pytest.mark.parametrize("roster", [{}, {"admission": 2, "expiry": 2}], ids=["all", "admission"])
@UPDATERS
def test_a_run_that_was_cut_goes_on_to_the_same_bytes(updater, roster, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "JOINED", 20)  # tables pass it in the course of the run
    module = go(tmp_path / "whole", updater(), 9, **roster)
    assert any(p.grad.is_sparse for p in module.backbone.parameters())
    for periods in (4, 6, 9):
        go(tmp_path / "daily", updater(), periods, **roster)
    for name in ("results.csv", "serving/period=0009.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "daily" / name).read_bytes()


@UPDATERS
def test_growing_and_fixed_tables_above_the_limit_learn_the_same(updater, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "JOINED", 0)
    weights = []
    for vocabulary in ("growing", "fixed"):
        go(tmp_path / vocabulary, updater(), 9, vocabulary=vocabulary)
        weights.append(load_file(tmp_path / vocabulary / "serving/period=0009.safetensors"))
    for name, value in weights[0].items():
        assert torch.equal(
            value, weights[1][name][: len(value)] if value.ndim else weights[1][name]
        )


def test_wrong_settings_are_refused_as_torch_refuses_them():
    parameter = [nn.Parameter(torch.zeros(1))]
    lazy_adam()(parameter)
    for wrong in ({"lr": -1}, {"eps": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}):
        with pytest.raises(ValueError, match="Invalid") as ours:
            LazyAdam(parameter, **wrong)
        with pytest.raises(ValueError, match="Invalid") as theirs:
            torch.optim.Adam(parameter, **wrong)
        assert str(ours.value) == str(theirs.value)
    config = OmegaConf.load(CONF / "optimizer" / "lazy_adam.yaml")
    config.weight_decay = 0.1
    with pytest.raises(Mistake, match=r"optimizer\.weight_decay: there is no such setting"):
        maker(OmegaConf.create({"optimizer": config}), "optimizer")


def test_clipping_is_refused_in_a_sentence():
    source = Living(4)
    module = ScenarioModule(backbone_of("shared_bottom", source.schema), {}, lazy_adam(), 2)
    clipping = partial(L.Trainer, accelerator="cpu", gradient_clip_val=1.0)
    with pytest.raises(Mistake, match=r"trainer\.gradient_clip_val=1\.0: "):
        Fit(clipping, PeriodStream(source, 16), [])(module, source.read(0))


def trained(rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Train in float64 on this process's slices, the second of which is empty in one process."""
    module = module_of().double()
    step: nn.Module = module
    if world > 1:
        module.forward = lambda batch: module.training_step(batch, 0)  # type: ignore[method-assign]
        step = DistributedDataParallel(module)
    else:
        step = partial(module.training_step, batch_idx=0)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()
    for batch in [doubled(rows(LARGE, size, size)) for size in (40, 1, 41)]:
        where = torch.arange(len(batch.label)).tensor_split(world)[rank]
        loss = step(batch.take(where))
        optimizer.zero_grad()
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
    return module.backbone.state_dict()


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.save(trained(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.xdist_group("together")  # with others that fork from one process
def test_two_processes_train_to_the_numbers_of_one(tmp_path):
    at_once(work, tmp_path, 2)
    expected = trained()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], value, rtol=1e-10, atol=1e-10)
