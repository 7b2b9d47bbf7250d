"""SML against references written vector by vector from equations 4 to 10 and algorithms 1 and 2."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.lazy_adam import LazyAdam
from incrs.models.base import Backbone
from incrs.models.embedding_mlp import EmbeddingMLP
from incrs.module import Move, ScenarioModule, clone
from incrs.period import Batch, Period
from incrs.results import Row, Run
from incrs.roster import Roster
from incrs.runner import LEARN_NEXT, run, seed_of
from incrs.updaters import renumbering, transfer
from incrs.updaters.base import Updater, check
from incrs.updaters.finetune import Finetune
from incrs.updaters.incmsr import IncMSR
from incrs.updaters.sml import SML
from tests.conftest import SCHEMA, SmallBackbone, SmallSource
from tests.test_roster import Living, backbone_of, go

PARTS = ("first", "second", "hidden", "hidden_bias", "out", "out_bias")
Weights = Mapping[str, Tensor]


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is done for large tables be done for all."""
    monkeypatch.setattr(renumbering, "SMALL", 0)
    monkeypatch.setattr(transfer, "BLOCK", 5)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def one_vector(p: Weights, previous: Tensor, updated: Tensor) -> Tensor:
    """Return Eq. 4 to 7 for one vector, filter by filter."""
    length = math.sqrt(sum(float(x) ** 2 for x in previous))
    rows = [previous, updated, previous * updated / (length + 1e-15)]
    for name in ("first", "second"):
        if name in p:
            rows = [
                gelu(sum((f * row for f, row in zip(own, rows, strict=True)), torch.zeros(())))
                for own in p[name]
            ]
    z = torch.cat(rows)
    if "hidden" in p:
        z = gelu(p["hidden"].T @ z + p["hidden_bias"])
    return p["out"].T @ z + p["out_bias"]


def by_hand(
    theta: Weights, previous: Weights, updated: Weights, residual: bool
) -> dict[str, Tensor]:
    """Return f(previous, updated), vector by vector."""
    made = dict(updated)
    for name in updated:
        p = {part: theta[f"{name}/{part}"] for part in PARTS if f"{name}/{part}" in theta}
        if p:
            width = len(p["out_bias"])
            vectors = [
                one_vector(p, a, b) + residual * b
                for a, b in zip(
                    previous[name].reshape(-1, width), updated[name].reshape(-1, width), strict=True
                )
            ]
            made[name] = torch.cat(vectors).view_as(updated[name])
    return made


def score(w: Weights, batch: Batch) -> Tensor:
    """Return the logits of `SmallBackbone`, from its definition."""
    user = w["embedding.tables.user"][batch.fields[:, 0].long()]
    item = w["embedding.tables.item"][batch.fields[:, 1].long()]
    x = torch.cat([user, item, batch.numbers], 1) @ w["shared.weight"].T + w["shared.bias"]
    return (torch.tanh(x) * w["specific.weight"][batch.scenario]).sum(1)


def cross_entropy(w: Weights, batch: Batch) -> Tensor:
    p = torch.sigmoid(score(w, batch))
    return -(batch.label * p.log() + (1 - batch.label) * (1 - p).log()).mean()


def roughened(backbone: Backbone, seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 * torch.randn(w.shape, generator=random, dtype=torch.float64)
        for name, w in backbone.state_dict().items()
    }


def at_work(backbone: Backbone, **settings: Any) -> tuple[ScenarioModule, SML]:
    """Return an SML in float64 whose previous weights, updated weights and networks are of any size."""
    updater = SML(filters=(4, 3), hidden=5, dense_filters=(3, 2), dense_hidden=4, **settings)
    module = ScenarioModule(backbone.double(), {"sml": updater}, torch.optim.Adam, 3)
    module.backbone.load_state_dict(roughened(backbone))
    random = torch.Generator().manual_seed(2)
    updater._weights = {
        name: torch.randn(w.shape, generator=random, dtype=torch.float64)
        for name, w in updater.drawn(module).items()
    }
    updater.previous = roughened(backbone, 3)
    return module, updater


def doubled(batch: Batch) -> Batch:
    return batch._replace(numbers=batch.numbers.double(), label=batch.label.double())


def rows(t: int, count: int) -> Batch:
    return doubled(SmallSource().read(t).rows.take(slice(0, count)))


@pytest.mark.parametrize("dense", ["rows", "tensor", "none"])
@pytest.mark.parametrize(
    ("variant", "output"),
    [("full", "direct"), ("full", "residual"), ("no_cnn", "direct"), ("no_fc", "residual")],
)
def test_the_transfer_and_its_gradient_agree_with_the_formula(
    all_large: None, variant: str, output: str, dense: str
) -> None:
    module, updater = at_work(SmallBackbone(), variant=variant, output=output, dense=dense)
    names = [name for name, _ in module.backbone.named_parameters()]
    updated = {n: module.backbone.get_parameter(n).detach().requires_grad_() for n in names}
    known = {name: (updater.previous[name], updated[name]) for name in names}
    (found,) = updater.transfer().requires_grad_(False)(known)
    expected = by_hand(updater._weights, updater.previous, updated, output == "residual")
    assert found.keys() == expected.keys() == set(names)
    random = torch.Generator().manual_seed(0)
    pull = {n: torch.randn(w.shape, generator=random).double() for n, w in updated.items()}
    gradients = []
    for made in (found, expected):
        total = torch.stack([(pull[name] * made[name]).sum() for name in names]).sum()
        gradients.append(torch.autograd.grad(total, list(updated.values())))
    for i, name in enumerate(names):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(gradients[0][i], gradients[1][i], rtol=0, atol=1e-6)
    if dense == "none":
        assert found["shared.weight"] is updated["shared.weight"]
    for name, weight in updater.serving_weights(module, updated).items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=0, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_loss(all_large: None) -> None:
    module, updater = at_work(SmallBackbone())
    batch = rows(2, 9)
    gradients = step(module, updater, batch)
    state = module.backbone.state_dict()
    seen = 0
    for name, where in {
        "embedding.tables.item": (int(batch.fields[0, 1]), 1),
        "shared.weight": (2, 3),
        "shared.bias": (1,),
    }.items():
        ends = []
        for change in (1e-5, -1e-5):
            moved = clone(state)
            moved[name][where] += change
            made = by_hand(updater._weights, updater.previous, moved, True)
            ends.append(cross_entropy(made, batch).item())
        slope = (ends[0] - ends[1]) / 2e-5
        assert gradients[f"backbone.{name}"][where].item() == pytest.approx(slope, abs=1e-6)
        seen += abs(slope) > 1e-5
    assert seen == 3


def step(module: ScenarioModule, updater: SML, batch: Batch) -> dict[str, Tensor]:
    """Return the gradients of a training step."""
    module.zero_grad()
    updater.on_train_start(None, module)  # type: ignore[arg-type]
    module.training_step(batch, 0).backward()
    updater.on_train_end(None, module)  # type: ignore[arg-type]
    return {n: p.grad.to_dense() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("output", ["direct", "residual"])
def test_the_rows_of_the_batch_give_the_gradient_of_whole_tables(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for small in (0, 25, 1000):
        monkeypatch.setattr(renumbering, "SMALL", small)
        module, updater = at_work(EmbeddingMLP(SCHEMA, 0, 3, (4,)), output=output)
        found.append(step(module, updater, rows(1, 12)))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=1e-9)
    assert all(gradient.any() for gradient in found[0].values())


def test_penalties_see_the_batch_as_it_was(all_large: None) -> None:
    class Watching(Updater):
        def penalty(self, module, batch, output):
            assert batch is given
            assert len(output.logit) == 5
            return 7 * output.logit.sum() ** 0

    given = rows(1, 5)
    module, updater = at_work(SmallBackbone())
    both = {"watching": Watching(), "sml": updater}
    other = ScenarioModule(module.backbone, both, torch.optim.Adam, 3)
    updater.on_train_start(None, other)  # type: ignore[arg-type]
    losses = [one.training_step(given, 0).item() for one in (module, other)]
    assert losses[1] == pytest.approx(losses[0] + 7)


def test_the_penalties_are_sums_of_squares() -> None:
    module, updater = at_work(SmallBackbone(), l2=0.3, transfer_l2=0.2)
    given = rows(1, 5)
    expected = 0.3 * sum((w**2).sum().item() for w in module.backbone.parameters())
    penalty = updater.penalty(module, given, module.backbone(given))
    assert penalty is not None
    assert penalty.item() == pytest.approx(expected)
    updater.previous = {}
    assert updater.penalty(module, given, module.backbone(given)) is None


def run_with(
    folder: Path,
    updaters: Mapping[str, Updater],
    periods: int = 7,
    backbone: Backbone | None = None,
    optimizer: Any = partial(torch.optim.Adam, lr=0.01),  # noqa: B008
    precision: str = "32-true",
    **settings: Any,
) -> tuple[list[Row], ScenarioModule]:
    module = ScenarioModule(backbone or SmallBackbone(), updaters, optimizer, 3, **settings)
    stream = PeriodStream(SmallSource(periods=periods), 32)
    trainer = partial(L.Trainer, accelerator="cpu", precision=precision)
    about = Run("0", "small", "small", "sml", 0)
    return run(stream, module, trainer, RunFolder(folder), about), module


def serving(folder: Path, period: int) -> dict[str, Tensor]:
    return load_file(folder / f"serving/period={period:04d}.safetensors")


class Watched(SML):
    """Keeps the networks it begins with."""

    begin: dict[str, Tensor]

    def learn_next(self, module, history, following, fit):
        first = not self.previous
        super().learn_next(module, history, following, fit)
        if first:
            self.begin = clone(self._weights)


def batches_of(period: Period, seed: int, size: int) -> Iterator[Batch]:
    content = period.rows
    order = torch.randperm(
        len(content.label), generator=torch.Generator().manual_seed(seed % 2**63)
    )
    for where in order.split(size):
        yield doubled(content.take(where))


def descend(weights: dict[str, Tensor], loss: Any, batches: Iterator[Batch], lr: float) -> None:
    """Take a step of plain gradient descent for every batch, in place."""
    for batch in batches:
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        gradients = torch.autograd.grad(loss(leaves, batch), list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            weights[name] = leaves[name].detach() - lr * gradient


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        ({}, "direct"),
        ({"repetitions": 2, "transfer_l2": 0.01, "l2": 0.003}, "residual"),
        ({"repetitions": 2, "w_hat": "restart"}, "direct"),
        ({"next_period": False, "forward": False}, "direct"),
    ],
    ids=str,
)
def test_two_periods_are_the_algorithms_of_the_paper(
    settings: dict[str, Any], output: str, tmp_path: Path
) -> None:
    lr, transfer_lr = 0.1, 0.05
    updater = Watched(
        filters=(2, 2),
        hidden=3,
        dense_filters=(2, 2),
        dense_hidden=3,
        output=output,  # type: ignore[arg-type]
        learning_rate=transfer_lr,
        **settings,
    )
    optimizer = partial(torch.optim.SGD, lr=lr)
    found, module = run_with(
        tmp_path, {"sml": updater}, 5, optimizer=optimizer, precision="64-true"
    )
    source, residual = SmallSource(periods=5), output == "residual"
    forward, repetitions = settings.get("forward", True), settings.get("repetitions", 1)
    l2, transfer_l2 = settings.get("l2", 0), settings.get("transfer_l2", 0)
    names = [name for name, _ in module.backbone.named_parameters()]
    previous = {name: w for name, w in serving(tmp_path, 2).items() if name in names}
    theta = dict(updater.begin)

    def made(theta: Weights, updated: Weights) -> dict[str, Tensor]:
        return by_hand(theta, previous, updated, residual)

    def on_weights(w: Weights, batch: Batch) -> Tensor:
        own = l2 * torch.stack([(x**2).sum() for x in w.values()]).sum()
        return cross_entropy(made(theta, w) if forward else w, batch) + own

    def on_transfer(theta: Weights, batch: Batch) -> Tensor:
        own = transfer_l2 * torch.stack([(x**2).sum() for x in theta.values()]).sum()
        return cross_entropy(made(theta, updated), batch) + own

    for t in (2, 3):
        updated = dict(previous)
        descend(updated, on_weights, batches_of(source.read(t), seed_of(0, t), 32), lr)
        served = made(theta, updated)
        for name, weight in serving(tmp_path, t + 1).items():
            torch.testing.assert_close(weight, served[name], rtol=0, atol=1e-6)
        (logloss,) = (
            row.value
            for row in found
            if (row.period, row.metric, row.scenario) == (t + 1, "logloss", "all")
        )
        expected = cross_entropy(served, doubled(source.read(t + 1).rows)).item()
        assert logloss == pytest.approx(expected, abs=1e-6)
        seed = seed_of(0, t, LEARN_NEXT)
        learnt = source.read(t + 1 if settings.get("next_period", True) else t)
        for repetition in range(repetitions):
            if repetition:
                if settings.get("w_hat") == "restart":
                    updated = made(theta, updated)
                descend(updated, on_weights, batches_of(source.read(t), seed, 32), lr)
                seed = seed_of(seed, 1)
            descend(theta, on_transfer, batches_of(learnt, seed, 30), transfer_lr)
            seed = seed_of(seed, 1)
        previous = made(theta, updated)
    for name, weight in updater.previous.items():
        torch.testing.assert_close(weight, previous[name], rtol=0, atol=1e-6)


def test_while_the_networks_add_nothing_it_is_fine_tuning(all_large: None, tmp_path: Path) -> None:
    held = SML(learning_rate=1e-40, freeze_transfer=True)
    ours, module = run_with(tmp_path / "ours", {"sml": held})
    plain, other = run_with(tmp_path / "plain", {"finetune": Finetune()})
    assert ours == plain
    for name, weight in module.backbone.state_dict().items():
        assert torch.equal(weight, other.backbone.state_dict()[name])


class SecondRow(SML):
    """Its networks return the second row, as GELU(x) - GELU(-x) = x, and learn nothing."""

    def drawn(self, module):
        found = {key: torch.zeros_like(w) for key, w in super().drawn(module).items()}
        for key, weight in found.items():
            name, _, part = key.rpartition("/")
            if part == "first":
                weight[:2, 1] = torch.tensor([1.0, -1.0])
            elif part == "second":
                weight[:2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
            elif part in ("hidden", "out"):
                eye = torch.eye(len(found[f"{name}/out_bias"]))
                both = torch.cat([eye, -eye])
                weight[:] = both @ both.T if part == "hidden" else both
        return found

    def learn(self, module, rows, fit):
        pass


def test_networks_held_at_the_second_row_are_fine_tuning(tmp_path: Path) -> None:
    both = {"filters": (2, 2), "dense_filters": (2, 2), "dense": "none"}
    held = SecondRow(hidden=8, output="direct", **both)  # type: ignore[arg-type]
    optimizer = partial(torch.optim.SGD, lr=0.1)
    settings: dict[str, Any] = {"optimizer": optimizer, "precision": "64-true"}
    _, module = run_with(tmp_path / "ours", {"sml": held}, **settings)
    _, other = run_with(tmp_path / "plain", {"finetune": Finetune()}, **settings)
    for name, weight in other.backbone.state_dict().items():
        ours = module.backbone.state_dict()[name]
        torch.testing.assert_close(ours, weight, rtol=0, atol=1e-6)


SETTINGS: list[dict[str, Any]] = [
    {"output": "direct"},
    {"repetitions": 2, "epochs": 2, "dense": "tensor"},
    {"repetitions": 2, "w_hat": "restart", "carry_optimizer": False},
    {"variant": "no_cnn", "next_period": False, "forward": False},
    {"variant": "no_fc", "freeze_transfer": True, "dense": "none"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: "-".join(map(str, x.values())))
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(
    all_large: None, settings: dict[str, Any], tmp_path: Path
) -> None:
    def updaters() -> dict[str, Updater]:
        return {"incmsr": IncMSR(), "sml": SML(**settings)}

    run_with(tmp_path / "whole", updaters())
    for periods in (3, 5, 6, 7):  # a log that grows: every period is saved before the next one came
        run_with(tmp_path / "daily", updaters(), periods)
    for name in ("results.csv", "serving/period=0007.safetensors", "findings.csv"):
        if (tmp_path / "whole" / name).exists():
            ours, theirs = (tmp_path / which / name for which in ("daily", "whole"))
            assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_frozen_transfer_stays_as_the_tune_periods_left_it(tmp_path: Path) -> None:
    kept = []

    class Kept(SML):
        def learn_next(self, module, history, following, fit):
            super().learn_next(module, history, following, fit)
            kept.append((following.role.value, clone(self._weights)))

    run_with(tmp_path, {"sml": Kept(freeze_transfer=True, repetitions=2)})
    assert [role for role, _ in kept] == ["tune", "test", "test", "test", "test"]
    for (_, one), (_, other) in itertools.pairwise(kept):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_that_come_are_in_the_weights_before() -> None:
    module, updater = at_work(SmallBackbone())
    name = "embedding.tables.item"
    before = dict(updater.previous)
    fresh = torch.full((2, 4), 0.25, dtype=torch.float64)
    updater.rows_move(module, {name: Move(torch.tensor([0, 4, -1, 2, -1]), fresh)})
    expected = torch.stack([before[name][0], before[name][4], fresh[0], before[name][2], fresh[1]])
    assert torch.equal(updater.previous[name], expected)
    assert all(torch.equal(updater.previous[n], w) for n, w in before.items() if n != name)


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({}, id="growing", marks=pytest.mark.slow),
        pytest.param({"admission": 2, "expiry": 2}, id="admission", marks=pytest.mark.slow),
    ],
)
def test_tables_that_follow_the_log_go_on_to_the_same_bytes(
    all_large: None, chosen: dict[str, int], tmp_path: Path
) -> None:
    def one(folder: str, periods: int) -> ScenarioModule:
        roster = Roster(Living(periods).schema, **chosen)
        return go(tmp_path / folder, roster, [SML(repetitions=2)], periods=periods)[1]

    module = one("whole", 9)
    for periods in (4, 5, 7, 9):
        one("daily", periods)
    for name in ("results.csv", "serving/period=0009.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "daily" / name).read_bytes()
    updater = module.updaters["0"]
    assert isinstance(updater, SML)
    for name, weight in module.backbone.named_parameters():
        assert updater.previous[name].shape == weight.shape


def test_buffers_serve_as_training_left_them(tmp_path: Path) -> None:
    backbone = backbone_of("star", SCHEMA)
    _, module = run_with(tmp_path, {"sml": SML()}, 4, backbone=backbone)
    served, own = serving(tmp_path, 4), module.backbone.state_dict()
    for name in ("mean", "variance", "batches"):
        assert torch.equal(served[f"specific.norm.{name}"], own[f"specific.norm.{name}"])
    assert served["specific.norm.batches"].any()


def test_an_optimizer_of_sparse_gradients_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from incrs.models import layers

    monkeypatch.setattr(layers, "JOINED", 20)
    monkeypatch.setattr(renumbering, "SMALL", 20)
    backbone, batch = SmallBackbone(), rows(1, 6)
    module, updater = at_work(backbone)
    expected = step(module, updater, batch)
    sparse = ScenarioModule(backbone, {"sml": updater}, LazyAdam, 3)
    found = step(sparse, updater, batch)
    assert backbone.get_parameter("embedding.tables.item").grad.is_sparse  # type: ignore[union-attr]
    assert not backbone.get_parameter("embedding.tables.tag").is_sparse
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_findings_are_the_filters_of_the_tables() -> None:
    _, updater = at_work(SmallBackbone())
    found = updater.findings()
    weight = updater._weights["embedding.tables.item/first"]
    assert found["item.filter2.previous"] == weight[2, 0].item()
    assert found["item.filter3.product"] == weight[3, 2].item()
    assert len(found) == 3 * 4 * 3
    assert not SML().findings()


def test_a_transfer_that_runs_away_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"sml: the loss of the generated weights is not finite"):
        run_with(tmp_path, {"sml": SML(learning_rate=1e30)})


def test_it_stands_beside_what_composes_and_not_beside_a_rival() -> None:
    check({"incmsr": IncMSR(), "sml": SML()})
    with pytest.raises(Mistake, match="sml and other both"):
        check({"sml": SML(), "other": SML()})


@pytest.mark.parametrize(
    "settings",
    [
        {"filters": (10,)},
        {"dense_filters": (0, 1)},
        {"hidden": 0},
        {"dense_hidden": 1.5},
        {"dense": "layers"},
        {"variant": "cnn"},
        {"output": "tanh"},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"epochs": 0},
        {"epochs_again": 0},
        {"repetitions": 0},
        {"w_hat": "stop"},
        {"l2": -1},
        {"transfer_l2": float("nan")},
    ],
    ids=lambda x: next(iter(x)),
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match=f"updater.sml.{next(iter(settings))}=.*: give "):
        SML(**settings)
