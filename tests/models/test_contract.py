"""What every backbone promises, for every yaml in conf/model."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch.func import functional_call

from incrs.data.base import Schema
from incrs.models.base import Backbone
from tests.models.toy import BARE, SCHEMA, doubled, fitting, roughen, rows
from tests.test_imports import BORROWED

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def build(request):
    """Return a function that makes the yaml's backbone for a schema and a seed."""

    def make(schema: Schema = SCHEMA, seed: int = 0) -> Backbone:
        config = OmegaConf.load(request.param)
        # partial: hydra would turn a dataclass among the arguments into a dict
        factory = hydra.utils.instantiate(config, _partial_=True, _convert_="all")
        return factory(schema=schema, seed=seed)

    make.config, make.name = OmegaConf.load(request.param), request.param.stem
    return make


def test_yaml_shows_every_option_with_the_class_own_default(build):
    module, name = build.config["_target_"].rsplit(".", 1)
    options = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
    defaults = {
        key: list(option.default) if isinstance(option.default, tuple) else option.default
        for key, option in options.items()
        if key not in ("schema", "seed")
    }
    shown = OmegaConf.to_container(build.config)
    assert set(shown) == {"_target_", *defaults}
    if build.name not in BORROWED:
        assert shown == {"_target_": f"{module}.{name}", **defaults}


def test_output_has_its_shapes_and_representations_only_when_asked(build):
    model = build()
    plain, full = model(rows(SCHEMA, 7)), model(rows(SCHEMA, 7), representations=True)
    assert plain.logit.shape == full.logit.shape == (7,)
    assert plain.shared is None
    assert plain.specific is None
    assert full.shared.ndim == full.specific.ndim == 2
    assert len(full.shared) == len(full.specific) == 7
    assert full.shared.shape[1] > 0


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_representations_does_not_change_the_logit(build, training):
    model = roughen(build()).train(training)
    batch = doubled(rows(SCHEMA, 40))
    with torch.no_grad():
        twin = copy.deepcopy(model)
        assert torch.equal(model(batch).logit, twin(batch, representations=True).logit)


def test_parameters_live_under_embedding_shared_and_specific(build):
    state = build().state_dict()
    assert {name.split(".")[0] for name in state} <= {"embedding", "shared", "specific"}
    for name, weight in state.items():
        if name.startswith("specific."):
            assert len(weight) == len(SCHEMA.scenarios), f"{name}: scenarios come first"


@pytest.mark.parametrize("scenario", [[1] * 9, [2, 0, 0, 0, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("training", [True, False])
def test_every_parameter_gets_a_gradient_when_a_scenario_is_absent(build, scenario, training):
    model = build().train(training)
    batch = rows(SCHEMA, 9, scenario=scenario)
    model.loss(batch, model(batch)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_specific_parameters_of_a_scenario_leave_the_other_scenarios_alone(build):
    model = roughen(build()).eval()
    batch = doubled(rows(SCHEMA, 60))
    with torch.no_grad():
        before = model(batch).logit
        own = [w for name, w in model.state_dict().items() if name.startswith("specific.")]
        random = torch.Generator().manual_seed(1)
        for weight in own:
            if weight.is_floating_point():
                weight[1] += torch.randn(weight[1].shape, generator=random, dtype=weight.dtype)
        after = model(batch).logit
    here = batch.scenario == 1
    assert torch.equal(before[~here], after[~here])
    assert bool((before[here] != after[here]).all()) == bool(own)


def test_rows_are_scored_one_by_one_in_evaluation(build):
    model = roughen(build()).eval()
    batch = doubled(rows(SCHEMA, 30))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(batch, representations=True)
        mixed = model(batch.take(order), representations=True)
        alone = [model(batch.take(slice(i, i + 1))).logit for i in range(30)]
    for ours, theirs in zip(whole, mixed, strict=True):
        torch.testing.assert_close(ours[order], theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.logit, torch.cat(alone), rtol=1e-10, atol=1e-10)


def test_functional_call_scores_through_the_weights_given(build):
    model, other = roughen(build(), 1).eval(), roughen(build(), 2).eval()
    batch = doubled(rows(SCHEMA, 12))
    with torch.no_grad():
        ours = functional_call(model, other.state_dict(), (batch,), {"representations": True})
        theirs = other(batch, representations=True)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two)


def test_gradients_reach_weights_given_to_functional_call(build):
    model = build()
    weights = {name: w.detach().clone() for name, w in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        weights[name].requires_grad_()
    batch = rows(SCHEMA, 12)
    loss = model.loss(batch, functional_call(model, weights, (batch,)))
    gradients = torch.autograd.grad(loss, [weights[name] for name in names])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_deepcopy_stands_on_its_own(build):
    model = build()
    batch = rows(SCHEMA, 12)
    twin = copy.deepcopy(model).eval()
    before = twin(batch).logit
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert torch.equal(before, twin(batch).logit)


def test_state_dict_round_trip(build):
    model, other = roughen(build(seed=0)).eval(), build(seed=1).double().eval()
    other.load_state_dict(model.state_dict())
    batch = doubled(rows(SCHEMA, 12))
    assert torch.equal(model(batch).logit, other(batch).logit)


def test_weights_depend_on_the_seed_and_not_on_the_global_random_state(build):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = build(seed=3).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    two, three = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_a_longer_vocabulary_begins_with_the_same_rows(build):
    longer = replace(SCHEMA, vocabularies={**SCHEMA.vocabularies, "item": 53, "user": 31})
    short, long = build().state_dict(), build(longer).state_dict()
    assert long["embedding.tables.item"].shape[0] == 53
    for name, weight in short.items():
        assert torch.equal(weight, long[name][: len(weight)] if weight.ndim else long[name]), name


def test_gradients_repeat_to_the_last_digit(build):
    batch = rows(SCHEMA, 500)

    def gradients() -> list[torch.Tensor]:
        model = build()
        model.loss(batch, model(batch)).backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients(), gradients()))


@pytest.mark.parametrize("schema", [SCHEMA, BARE], ids=["full", "bare"])
def test_a_few_steps_lower_the_loss(build, schema):
    schema = fitting(build, schema)
    model, batch = build(schema), rows(schema, 100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    losses = []
    for _ in range(30):
        output = model(batch)
        loss = model.loss(batch, output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert output.logit.dtype == torch.float32
    assert losses[-1] < losses[0] - 0.1
    assert model.eval()(batch).logit.isfinite().all()


def test_a_scenario_that_does_not_exist_is_refused_by_who_reads_the_scenario(build):
    model = roughen(build()).eval()
    homes, searches = (model(doubled(rows(SCHEMA, 9, scenario=[s] * 9))).logit for s in (0, 1))
    if torch.equal(homes, searches):
        pytest.skip("it does not read the scenario")
    with pytest.raises((IndexError, RuntimeError), match=r"scenario 3|index 3"):
        build()(rows(SCHEMA, 2, scenario=[0, 3]))
