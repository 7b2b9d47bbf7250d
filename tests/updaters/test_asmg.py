"""ASMG against references written coordinate by coordinate from equations 4, 5 and 7."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.models.base import Backbone
from incrs.models.embedding_mlp import EmbeddingMLP
from incrs.models.star import STAR
from incrs.module import Move, ScenarioModule, clone
from incrs.period import Batch
from incrs.results import Row, Run
from incrs.roster import Roster
from incrs.runner import Fit, run
from incrs.updaters import gru_compiled
from incrs.updaters.asmg import ASMG, VARIANTS, shares
from incrs.updaters.base import Updater, check
from incrs.updaters.batch import BatchWindow
from incrs.updaters.finetune import Finetune
from incrs.updaters.generator import DENSE, Generator, Layout, glorot
from incrs.updaters.gru import DIRECT, FIRST_STATE, RESIDUAL, first_state, gru
from incrs.updaters.incmsr import IncMSR
from incrs.updaters.learner import WeightLearner
from incrs.updaters.parts import Parts
from tests.conftest import SCHEMA, SmallBackbone, SmallSource
from tests.test_roster import Living, backbone_of, go

Arrays = Mapping[str, np.ndarray]


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is done for large tables be done for all."""
    monkeypatch.setattr("incrs.updaters.renumbering.SMALL", 0)
    monkeypatch.setattr("incrs.updaters.gru_compiled.OF_ONE", 3)
    monkeypatch.setattr("incrs.updaters.gru_compiled.OF_MANY", 7)
    monkeypatch.setattr("incrs.updaters.generator.BLOCK", 5)


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def one_gru(sequence: Sequence[float], h: np.ndarray, p: Arrays) -> list[tuple[float, np.ndarray]]:
    """Return (output, state) of every step of one coordinate's GRU."""
    d = len(h)
    u_z, u_r, u_c = p["u"][:d], p["u"][d : 2 * d], p["u"][2 * d :]
    w_z, w_r, w_c = p["w"][:, :d], p["w"][:, d : 2 * d], p["w"][:, 2 * d :]
    found = []
    for x in sequence:
        z = sigmoid(x * u_z + h @ w_z)
        r = sigmoid(x * u_r + h @ w_r)
        candidate = np.tanh(x * u_c + (h * r) @ w_c)
        h = (1 - z) * h + z * candidate
        found.append((float(h @ p["out"] + p["bias"]), h))
    return found


def which(layout: Layout, share: str) -> dict[str, np.ndarray]:
    """Return the number of the generator behind each weight: of a table's (dim,), else in its shape."""
    found, at = {}, 0
    for name, dim in layout.tables.items():
        found[name], at = np.arange(at, at + dim), at + dim
    for name, shape in layout.dense.items():
        size = math.prod(shape)
        each = {"per_weight": 1, "per_tensor": size}.get(share, shape[-1] if len(shape) > 1 else 1)
        found[name] = (at + np.arange(size) // each).reshape(shape)
        at += size // each
    assert at == sum(layout.sizes)
    return found


def generated(
    models: Sequence[Arrays],
    states: Arrays,
    parameters: Arrays,
    numbers: Arrays,
    residual: bool,
    only: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Return the weights of every step, each coordinate for itself; of tables the rows `only`, else 0."""
    made = [{name: np.zeros_like(models[0][name]) for name in numbers} for _ in models]
    for name, number in numbers.items():
        shape = models[0][name].shape
        places = itertools.product(*map(range, shape))
        if only is not None and name in only:
            places = itertools.product(only[name], range(shape[1]))
        for where in places:
            own = number[where[-1:]] if number.ndim < len(shape) else number[where]
            p = {key: value[own] for key, value in parameters.items()}
            found = one_gru([float(m[name][where]) for m in models], states[name][where], p)
            for j, (y, _) in enumerate(found):
                made[j][name][where] = y + (models[j][name][where] if residual else 0)
    return made


def roughened(backbone: Backbone, count: int, seed: int = 1) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    state = backbone.state_dict()
    return [
        {
            n: 0.5 * torch.randn(w.shape, generator=random, dtype=torch.float64)
            for n, w in state.items()
        }
        for _ in range(count)
    ]


def gradients_of(generator: Generator) -> dict[str, Tensor]:
    """Return the gradients of a generator's parameters, by name as `weights` has them."""
    gradient, at, found = cast(Tensor, generator.values.grad), 0, {}
    for name, weight in generator.weights.items():
        count = weight[..., 0].numel()
        found[name], at = gradient[at : at + count].view_as(weight), at + count
    return found


def at_work(share: str, output: str, k: int = 3) -> tuple[ScenarioModule, ASMG]:
    """Return an ASMG in float64 that has k models, a state before them and a generator of any size."""
    updater = ASMG(k=k, hidden_size=2, share=share, output=output)  # type: ignore[arg-type]
    backbone = EmbeddingMLP(SCHEMA, 0, 3, (4,), initialisation="glorot").double()
    module = ScenarioModule(backbone, {"asmg": updater}, torch.optim.Adam, 3)
    updater.models = roughened(backbone, k)
    layout, random = Layout(backbone, share), torch.Generator().manual_seed(2)
    updater._weights = {
        name: torch.randn(w.shape, generator=random, dtype=torch.float64)
        for name, w in glorot(layout, 2, random).items()
    }
    shapes = {name: (*updater.models[0][name].shape, 2) for name in layout.tables}
    dense = sum(math.prod(shape) for shape in layout.dense.values())
    for name, shape in {**shapes, DENSE: (2, dense)}.items():
        updater.state[name] = 2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1
    return module, updater


def named_states(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    sizes = [shape.numel() for shape in layout.dense.values()]
    parts = zip(layout.dense.items(), state[DENSE].split(sizes, 1), strict=True)
    dense = {name: part.T.reshape(*shape, -1).numpy() for (name, shape), part in parts}
    return dense | {name: state[name].numpy() for name in layout.tables}


def by_generator(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the generators' parameters in float64, each (P, ...)."""
    return {name: w.movedim(-1, 0).double().numpy().copy() for name, w in weights.items()}


def score(w: Arrays, batch: Batch, i: int) -> float:
    """Return the logit of row i, from the definition of the network."""

    def table(name: str) -> np.ndarray:
        return w[f"embedding.tables.{name}"]

    parts = [table("user")[batch.fields[i, 0]], table("item")[batch.fields[i, 1]]]
    for name, of in (("tags", "tag"), ("history", "item")):
        held = [table(of)[k] for k in batch.lists[name][i].tolist() if k != 0]
        parts.append(sum(held) / (len(held) + 1e-8) if held else 0 * parts[0])
    parts += [batch.numbers[i].numpy(), w["embedding.scenario"][batch.scenario[i]]]
    x = np.concatenate(parts)
    x = np.maximum(w["shared.hidden.0.weight"] @ x + w["shared.hidden.0.bias"], 0)
    return float((w["shared.logit.weight"] @ x + w["shared.logit.bias"])[0])


def cross_entropy(w: Arrays, batch: Batch) -> float:
    total = 0.0
    for i, label in enumerate(batch.label.tolist()):
        p = sigmoid(np.array(score(w, batch, i)))
        total -= np.log(p) if label else np.log(1 - p)
    return total / len(batch.label)


def rows(t: int, count: int) -> Batch:
    batch = SmallSource().read(t).rows.take(slice(0, count))
    return batch._replace(numbers=batch.numbers.double(), label=batch.label.double())


def test_the_recurrence_and_its_gradient_agree_with_the_formula() -> None:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x, h, p = drawn(4, 5), drawn(5, 2), drawn(21, 5).requires_grad_()
    found = gru(x, h, p)
    with torch.no_grad():
        state = first_state(x, h, p)
    for i in range(5):
        own = p[:, i].detach().numpy()
        parts = {"u": own[:6], "w": own[6:18].reshape(2, 6), "out": own[18:20], "bias": own[20]}
        steps = one_gru(x[:, i].tolist(), h[i].numpy(), parts)
        np.testing.assert_allclose(found[:, i].detach(), [y for y, _ in steps], atol=1e-9)
        np.testing.assert_allclose(state[:, i], steps[0][1], atol=1e-9)
    assert torch.autograd.gradcheck(partial(gru, x, h), (p,))
    assert torch.equal(gru(x, None, p), gru(x, torch.zeros_like(h), p))


@pytest.mark.parametrize("lanes", [1, 7, 64])
@pytest.mark.parametrize("hidden", [1, 3, 4, 6])
def test_what_is_compiled_agrees_with_the_formula(
    hidden: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gru_compiled, "OF_ONE", lanes)
    monkeypatch.setattr(gru_compiled, "OF_MANY", lanes)
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    # Two tables, of 3 and of 2 numbers a row, weights of their own, two generators of 5 weights each, and
    # a table of no rows.
    rows = [(0, 7, 3, 0), (21, 30, 2, 3), (81, 1, 50, 5), (131, 5, 1, 55), (136, 5, 1, 56)]
    rows += [(141, 0, 2, 57)]
    ends = [(7, 5, 2), (30, 20, 20), (1, 1, 1), (5, 5, 5), (5, 5, 5), (0, 0, 0)]
    parts = Parts(np.array(rows), np.array(ends))
    needed = torch.zeros(3, 141)
    for (start, _, dim, _), own in zip(rows, ends, strict=True):
        for j, end in enumerate(own):
            needed[j, start : start + end * dim] = 1
    size = 3 * hidden**2 + 4 * hidden + 1
    dy, h, single = drawn(3, 141) * needed, drawn(141, hidden), {}
    single = {"x": 3 * drawn(3, 141), "values": drawn(size, 59)}
    double = {name: value.double().requires_grad_() for name, value in single.items()}
    for value in single.values():
        value.requires_grad_()
    for start, state in ((h, h.double()), (None, None)):
        for formula in (DIRECT, RESIDUAL):
            for own in (*single.values(), *double.values()):
                own.grad = None
            assert formula.compiled is not None
            found = formula.compiled(single["x"], start, single["values"], parts)
            expected = formula.plain(double["x"], state, parts.repeated(double["values"]))
            close = partial(torch.testing.assert_close, check_dtype=False)
            close(found * needed, expected * needed, rtol=1e-6, atol=2e-6)
            found.backward(dy)
            expected.backward(dy.double())
            for name, value in single.items():
                scale = double[name].grad.abs().max().item()  # type: ignore[union-attr]
                close(value.grad, double[name].grad, rtol=1e-5, atol=1e-6 * scale)
        assert FIRST_STATE.compiled is not None
        found = FIRST_STATE.compiled(single["x"], start, single["values"], parts)
        expected = FIRST_STATE.plain(double["x"], state, parts.repeated(double["values"]))
        close(found, expected, rtol=1e-6, atol=1e-6)


def test_what_is_no_number_stays_so_and_what_is_large_saturates() -> None:
    parts = Parts(np.array([(0, 1, 3, 0)]), np.array([(1,)]))
    values = torch.full((8, 3), 1e30)
    x = torch.tensor([[1.0, float("nan"), -1.0]])
    assert DIRECT.compiled is not None
    found = DIRECT.compiled(x, None, values, parts)[0]
    assert found[0] > 1e30
    assert found[1].isnan()
    assert found[2].isfinite()


@pytest.mark.parametrize("output", ["direct", "residual"])
@pytest.mark.parametrize("share", ["per_weight", "per_output", "per_tensor"])
def test_all_weights_of_all_steps_agree_with_the_formula(share: str, output: str) -> None:
    module, updater = at_work(share, output)
    generator = updater.generator(module)
    models = [{name: w.numpy() for name, w in model.items()} for model in updater.models]
    parameters = by_generator(updater._weights)
    expected = generated(
        models,
        named_states(generator.layout, updater.state),
        parameters,
        which(generator.layout, share),
        output == "residual",
    )
    found = generator(updater.known(generator))
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() == models[0].keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name].detach(), value, atol=1e-6)
    updater.models.pop()
    updater._periods = 5
    served = updater.serving_weights(module, {n: torch.tensor(w) for n, w in models[-1].items()})
    assert list(served) == list(models[-1])
    for name, value in expected[-1].items():
        np.testing.assert_allclose(served[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "output", "weight"),
    [("per_weight", "direct", "linear"), ("per_output", "residual", "uniform")],
)
def test_the_multi_step_loss_and_its_gradient_agree_with_the_formula(
    all_large: None, share: str, output: str, weight: str
) -> None:
    module, updater = at_work(share, output)
    generator = updater.generator(module)
    batches = [rows(1, 3), rows(2, 4), rows(3, 2)]
    given = updater.known(generator)
    one = WeightLearner(
        module.backbone, generator, given, shares(3, weight), [{}] * 3, torch.optim.Adam
    )
    one.on_train_start()
    loss = one.training_step(one.on_before_batch_transfer(batches, 0), 0)
    loss.backward()

    models = [{name: w.numpy() for name, w in model.items()} for model in updater.models]
    states = named_states(generator.layout, updater.state)
    numbers = which(generator.layout, share)
    used: dict[str, set[int]] = {"user": {0}, "item": {0}, "tag": {0}}
    for batch in batches:
        used["user"] |= set(batch.fields[:, 0].tolist())
        used["item"] |= {*batch.fields[:, 1].tolist(), *batch.lists["history"].flatten().tolist()}
        used["tag"] |= set(batch.lists["tags"].flatten().tolist())
    only = {f"embedding.tables.{name}": np.array(sorted(ids)) for name, ids in used.items()}
    weights = [1 / 6, 2 / 6, 3 / 6] if weight == "linear" else [1 / 3] * 3

    def total(parameters: Arrays) -> float:
        made = generated(models, states, parameters, numbers, output == "residual", only)
        parts = zip(weights, made, batches, strict=True)
        return sum(share * cross_entropy(w, batch) for share, w, batch in parts)

    parameters = by_generator(updater._weights)
    assert loss.item() == pytest.approx(total(parameters), abs=1e-6)
    kernel = int(numbers["shared.hidden.0.weight"].flatten()[2])
    item = int(numbers["embedding.tables.item"][1])
    seen = 0
    for number, (name, gradient) in itertools.product(
        (item, kernel), gradients_of(generator).items()
    ):
        gradient = gradient.movedim(-1, 0)
        where = (number, *(size // 2 for size in gradient.shape[1:]))
        ends = []
        for change in (1e-5, -1e-5):
            moved = copy.deepcopy(parameters)
            moved[name][where] += change
            ends.append(total(moved))
        expected = (ends[0] - ends[1]) / 2e-5
        assert gradient[where].item() == pytest.approx(expected, abs=1e-6)
        seen += abs(expected) > 1e-5
    assert seen >= 4


def test_generators_start_with_the_limits_of_the_paper_program() -> None:
    backbone = EmbeddingMLP(SCHEMA, 0, 8, (288 // 41 + 1,), scenario_field=False)
    layout = Layout(backbone, "per_weight")
    drawn = glorot(layout, 4, torch.Generator().manual_seed(0))
    assert sum(x[..., 0].numel() for x in drawn.values()) == 65
    for name, limit in {"u": 0.387, "w": 0.306, "out": 0.387, "bias": 0.612}.items():
        largest = drawn[name][..., : 8 * 3].abs().max().item()  # three tables of 8 dimensions
        assert 0.75 * limit < largest <= limit + 5e-4
    kernel = drawn["u"][:, layout.fields == 8 * 33]
    limit = math.sqrt(6 / (8 * 33 * 5))
    assert kernel.shape == (12, 8 * 33)
    assert 0.95 * limit < kernel.abs().max() <= limit


@pytest.mark.parametrize(
    ("share", "output"), [("per_weight", "direct"), ("per_output", "residual")]
)
def test_the_influence_of_a_model_is_how_far_it_moves_what_is_made(share: str, output: str) -> None:
    module, updater = at_work(share, output)
    generator = updater.generator(module)
    updater._influence = generator.influence(updater.known(generator))
    found = updater.findings()
    models = [{name: w.numpy() for name, w in model.items()} for model in updater.models]
    states = named_states(generator.layout, updater.state)
    numbers = which(generator.layout, share)
    parameters = by_generator(updater._weights)
    groups = {
        "embedding.item": ["embedding.tables.item"],
        "shared.logit": ["shared.logit.weight", "shared.logit.bias"],
    }
    for age, (group, names) in itertools.product((0, 2), groups.items()):
        made = []
        for change in (1e-5, -1e-5):
            moved = copy.deepcopy(models)
            for name in names:
                moved[len(models) - 1 - age][name] += change
            weights = generated(moved, states, parameters, numbers, output == "residual")[-1]
            made.append(np.concatenate([weights[name].ravel() for name in names]))
        expected = np.sqrt(np.mean(((made[0] - made[1]) / 2e-5) ** 2))
        assert found[f"{group}.model-{age}"] == pytest.approx(expected, rel=1e-6)
        assert expected > 1e-3
    assert {name.rpartition(".")[2] for name in found} == {"model-0", "model-1", "model-2"}


def run_with(
    folder: Path,
    updaters: Mapping[str, Updater],
    periods: int = 7,
    backbone: Backbone | None = None,
    source: SmallSource | None = None,
) -> tuple[list[Row], ScenarioModule]:
    module = ScenarioModule(
        backbone or SmallBackbone(), updaters, partial(torch.optim.Adam, lr=0.01), 3
    )
    stream = PeriodStream(source or SmallSource(periods=periods), 32)
    about = Run("0", "small", "small", "asmg", 0)
    return run(
        stream, module, partial(L.Trainer, accelerator="cpu"), RunFolder(folder), about
    ), module


def serving(folder: Path, period: int) -> dict[str, Tensor]:
    return load_file(folder / f"serving/period={period:04d}.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


SETTINGS: list[dict[str, Any]] = [
    *({"variant": variant} for variant in VARIANTS[1:]),
    {"share": "per_output", "output": "direct"},
    {"share": "per_tensor", "carry_optimizer": False, "epochs": 2},
]
CASES = [{"variant": "multi"}, *(pytest.param(x, marks=pytest.mark.slow) for x in SETTINGS)]


@pytest.mark.parametrize("settings", CASES, ids=lambda x: "-".join(map(str, x.values())))
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(
    all_large: None, settings: dict[str, Any], tmp_path: Path
) -> None:
    def updaters() -> dict[str, Updater]:
        return {"incmsr": IncMSR(), "asmg": ASMG(k=2, **settings)}

    run_with(tmp_path / "whole", updaters())
    plain = run_with(tmp_path / "plain", {"incmsr": IncMSR()})[0]
    for periods in (4, 5, 6, 7):  # a log that grows: every period is saved before the next one came
        rows, _ = run_with(tmp_path / "daily", updaters(), periods)
    for name in ("results.csv", "findings.csv", "serving/period=0007.safetensors"):
        ours, theirs = (tmp_path / which / name for which in ("daily", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    first = 4 if settings.get("variant") == "full" else 5  # of the periods that are served anew
    values = [[r.value for r in x if r.period == first - 1] for x in (rows, plain)]
    assert values[0] == values[1]
    values = [[r.value for r in x if r.period == first] for x in (rows, plain)]
    assert values[0] != values[1]
    for which in ("backbone", "optimizer"):  # it never feeds back into the models
        name = f"checkpoint/period=0006/{which}.safetensors"
        assert (tmp_path / "daily" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_full_equals_multi_with_all_models_and_a_start_of_zeros() -> None:
    found = []
    for updater in (ASMG(variant="full"), ASMG(variant="multi", k=4), ASMG(variant="zero", k=4)):
        backbone = SmallBackbone()
        make = partial(torch.optim.Adam, lr=0.01)
        module = ScenarioModule(backbone, {"asmg": updater}, make, 3)
        stream = PeriodStream(SmallSource(periods=7), 16)
        fit = Fit(partial(L.Trainer, accelerator="cpu"), stream, [])
        *_, (history, following), _ = stream.pairs()
        torch.manual_seed(0)
        for weights in roughened(backbone, 5):  # the first one is the warm-up's
            updater.serving_weights(module, {name: w.float() for name, w in weights.items()})
        updater.learn_next(module, history, following, fit)
        found.append(updater)
    full, *others = found
    for other in others:
        assert same(full._weights, other._weights)
        assert len(full.models) == 4
        assert len(other.models) == 3


def test_linear_with_one_model_serves_that_model_itself(tmp_path: Path) -> None:
    updaters = {"finetune": Finetune(), "asmg": ASMG(k=1, variant="linear")}
    ours, module = run_with(tmp_path / "ours", updaters)
    plain, _ = run_with(tmp_path / "plain", {"finetune": Finetune()})
    assert ours == plain
    assert module.updaters["asmg"]._weights  # type: ignore[attr-defined]
    for period in range(2, 8):
        name = f"serving/period={period:04d}.safetensors"
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_linear_begins_as_the_plain_mean_of_the_models() -> None:
    module, updater = at_work("per_weight", "direct")
    updater = ASMG(variant="linear")
    updater.models = roughened(module.backbone, 3)
    (found,) = updater.generator(module)(updater.known(updater.generator(module)))
    for name, value in found.items():
        mean = sum(model[name] for model in updater.models) / 3
        torch.testing.assert_close(value.detach(), mean, rtol=0, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("share", ["per_weight", "per_output", "per_tensor"])
def test_residual_begins_as_fine_tuning(share: str) -> None:
    backbone = EmbeddingMLP(SCHEMA, 0)
    updater = ASMG(k=2, share=share)  # type: ignore[arg-type]
    module = ScenarioModule(backbone, {"asmg": updater}, torch.optim.Adam, 3)
    updater.models = [{n: w.float() for n, w in x.items()} for x in roughened(backbone, 1)]
    updater._periods, updater._weights = 2, clone(dict(updater.generator(module).weights))
    assert not updater._weights["out"].any()
    assert updater._weights["u"].any()
    weights = {name: w.float() for name, w in roughened(backbone, 1, seed=3)[0].items()}
    served = updater.serving_weights(module, weights)
    assert served is not weights
    assert same(weights, served)


def test_the_state_carried_is_what_the_newly_trained_generator_makes(
    all_large: None, tmp_path: Path
) -> None:
    checked = []

    class Watched(ASMG):
        def learn_next(self, module, history, following, fit):
            models, before = list(self.models), dict(self.state)
            super().learn_next(module, history, following, fit)
            if len(models) < self.k:
                assert not self.state
                return
            assert len(self.models) == self.k - 1
            layout = Layout(module.backbone, self.share)
            numbers = which(layout, self.share)
            parameters = by_generator(self._weights)
            after = named_states(layout, self.state)
            zeros = {name: np.zeros_like(x) for name, x in after.items()}
            start = named_states(layout, before) if before else zeros
            for name in ("embedding.tables.item", "shared.weight", "shared.bias"):
                shape = models[0][name].shape
                for where in list(itertools.product(*map(range, shape)))[::7]:
                    number = numbers[name]
                    own = number[where[-1:]] if name in layout.tables else number[where]
                    p = {key: value[own] for key, value in parameters.items()}
                    ((_, h),) = one_gru([float(models[0][name][where])], start[name][where], p)
                    np.testing.assert_allclose(after[name][where], h, atol=1e-6)
            checked.append(bool(before))

    run_with(tmp_path, {"asmg": Watched(k=2)})
    assert checked == [False, True, True]


def test_rows_that_come_are_in_the_models_before_and_their_state_is_zero() -> None:
    module, updater = at_work("per_weight", "residual", k=2)
    name = "embedding.tables.item"
    models, states = copy.deepcopy(updater.models), copy.deepcopy(updater.state)
    fresh = torch.full((2, 3), 0.25, dtype=torch.float64)
    source = torch.tensor([0, 4, -1, 2, -1])
    updater.rows_move(module, {name: Move(source, fresh)})
    stayed = source >= 0
    for before, after in zip(models, updater.models, strict=True):
        assert torch.equal(after[name][stayed], before[name][[0, 4, 2]])
        assert torch.equal(after[name][~stayed], fresh)
        assert all(torch.equal(after[n], w) for n, w in before.items() if n != name)
    assert torch.equal(updater.state[name][stayed], states[name][[0, 4, 2]])
    assert not updater.state[name][~stayed].any()
    assert torch.equal(updater.state[DENSE], states[DENSE])


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({}, marks=pytest.mark.slow, id="growing"),
        pytest.param({"admission": 2, "expiry": 2}, id="admission"),
    ],
)
def test_tables_that_follow_the_log_go_on_to_the_same_bytes(
    all_large: None, chosen: dict[str, int], tmp_path: Path
) -> None:
    def one(folder: str, periods: int) -> ScenarioModule:
        roster = Roster(Living(periods).schema, **chosen)
        return go(tmp_path / folder, roster, [ASMG(k=2)], periods=periods)[1]

    module = one("whole", 9)
    for periods in (4, 5, 7, 9):
        one("daily", periods)
    for name in ("results.csv", "serving/period=0009.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "daily" / name).read_bytes()
    updater = module.updaters["0"]
    assert isinstance(updater, ASMG)
    size = len(module.backbone.get_parameter("embedding.tables.item"))
    assert {len(m["embedding.tables.item"]) for m in updater.models} == {size}
    assert updater.state["embedding.tables.item"].shape == (size, 10, 4)


def test_buffers_serve_as_the_newest_model_has_them(tmp_path: Path) -> None:
    backbone = backbone_of("star", SCHEMA)
    _, module = run_with(tmp_path, {"asmg": ASMG(k=2, share="per_output")}, backbone=backbone)
    served, own = serving(tmp_path, 7), module.backbone.state_dict()
    assert isinstance(module.backbone, STAR)
    for name in ("mean", "variance", "batches"):
        assert torch.equal(served[f"specific.norm.{name}"], own[f"specific.norm.{name}"])
    assert not torch.equal(served["shared.gamma"], own["shared.gamma"])


def test_a_folder_gives_back_what_it_was_given(tmp_path: Path) -> None:
    _, module = run_with(tmp_path, {"asmg": ASMG(k=2)})
    kept = module.updaters["asmg"].state_dict()
    again, fresh = ASMG(k=2), SmallBackbone()
    other = ScenarioModule(fresh, {"asmg": again}, torch.optim.Adam, 3)
    RunFolder(tmp_path).restore(other, PeriodStream(SmallSource(), 32).roster)
    assert again.state_dict().keys() == kept.keys()
    for key, value in again.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(kept[key]))
    assert any(key.startswith("optimizer.0.exp_avg") for key in kept)


def test_a_checkpoint_that_kept_the_optimizer_in_parts_is_refused_in_a_sentence() -> None:
    state = {"periods": 3, "models": 0, "optimizer.0.step": torch.ones(())}
    ASMG().load_state_dict(state)
    with pytest.raises(Mistake, match="of an earlier version of incrs"):
        ASMG().load_state_dict({**state, "optimizer.1.step": torch.ones(())})


def test_of_the_models_no_more_than_the_sequence_is_kept(tmp_path: Path) -> None:
    for settings, count in (
        ({"k": 2}, 2),
        ({"k": 3, "variant": "zero"}, 3),
        ({"variant": "full"}, 5),
    ):
        _, module = run_with(tmp_path / str(count), {"asmg": ASMG(**settings)})  # type: ignore[arg-type]
        assert len(module.updaters["asmg"].models) == count  # type: ignore[attr-defined]


def test_a_generator_that_runs_away_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"asmg: the loss of the generated weights is not finite"):
        run_with(tmp_path, {"asmg": ASMG(k=1, learning_rate=1e30)})


def test_it_stands_beside_what_composes_and_not_beside_a_rival() -> None:
    check({"incmsr": IncMSR(), "asmg": ASMG(), "batch": BatchWindow()})
    with pytest.raises(Mistake, match="asmg and other both generate the serving weights"):
        check({"asmg": ASMG(), "other": ASMG()})


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0},
        {"k": 2.5},
        {"hidden_size": 0},
        {"epochs": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"variant": "exp"},
        {"loss_weight": "exp"},
        {"output": "tanh"},
        {"share": "per_layer"},
    ],
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match=f"updater.asmg.{next(iter(settings))}=.*: give "):
        ASMG(**settings)
