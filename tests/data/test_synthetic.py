"""The embedded log: rates as promised, drift that can be switched off, no look into the future."""

from __future__ import annotations

import inspect
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from incrs.data.synthetic import SyntheticSource, numbered
from incrs.data.world import RATES, SHARES, calibrated, drawn, moved
from incrs.errors import Mistake
from incrs.metrics import auc
from incrs.period import Period, Role

CONF = Path(__file__).parents[2] / "conf/data/synthetic.yaml"
STILL = {"interest_walk": 0.0, "item_churn": 0.0, "weekly_rhythm": 0.0, "shift": 0.0}


def made(**settings) -> SyntheticSource:
    source = SyntheticSource(**settings)
    source.prepare()
    return source


def days(source: SyntheticSource) -> list[Period]:
    return [source.read(t) for t in range(len(source.roles))]


def narrow(**settings) -> list[Period]:
    """Few users and items, so that the same user meets the same item on many days."""
    return days(made(users=40, items=20, rows_per_period=2000, **(STILL | settings)))


def drift(periods: list[Period]) -> float:
    """Mean absolute change of the true logit of a (user, item, scenario) from the first of its rows."""
    rows = Period.concat(periods)
    key = torch.cat([rows.rows.fields[:, :2], rows.rows.scenario[:, None].int()], 1).numpy()
    _, first, where = np.unique(key, axis=0, return_index=True, return_inverse=True)
    logit = torch.logit(rows.truth).numpy()
    again = np.setdiff1d(np.arange(len(key)), first)
    assert len(again) > 1000
    return float(np.abs(logit - logit[first][where.ravel()])[again].mean())


@pytest.fixture(scope="module")
def log() -> SyntheticSource:
    return made()


@pytest.fixture(scope="module")
def whole(log: SyntheticSource) -> Period:
    return Period.concat(days(log))


def test_yaml_repeats_the_defaults():
    settings = OmegaConf.to_container(OmegaConf.load(CONF))
    assert settings.pop("_target_") == "incrs.data.synthetic.SyntheticSource"
    parameters = inspect.signature(SyntheticSource).parameters
    assert settings == {key: parameter.default for key, parameter in parameters.items()}


def test_shares_are_those_of_the_table(whole):
    n = len(whole)
    for s, share in enumerate(SHARES.values()):
        error = (share * (1 - share) / n) ** 0.5
        assert abs((whole.rows.scenario == s).double().mean() - share) < 4 * error


def test_true_click_rate_of_the_warm_up_is_that_of_the_table(log):
    warmup = Period.concat(days(log)[:7])
    for s, rate in enumerate(RATES.values()):
        assert warmup.truth[warmup.rows.scenario == s].mean().item() == pytest.approx(
            rate, abs=1e-9
        )


def test_labels_are_as_frequent_as_their_probabilities_say(whole):
    p, label = whole.truth, whole.rows.label
    for s in range(4):
        for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1)):
            some = (whole.rows.scenario == s) & (p >= low) & (p < high)
            error = (p * (1 - p))[some].sum().sqrt() / some.sum()
            assert abs(label[some].double().mean() - p[some].mean()) < 4 * error


def test_truth_ranks_realistically_and_better_than_stale_features(log):
    warmup, test = Period.concat(days(log)[:7]), Period.concat(days(log)[8:])
    label = test.rows.label.numpy()
    ceiling = auc(test.truth.numpy(), label).value
    assert 0.78 < ceiling < 0.83
    for s in range(4):
        some = (test.rows.scenario == s).numpy()
        assert 0.72 < auc(test.truth.numpy()[some], label[some]).value < 0.81
    size = max(log.schema.vocabularies.values())
    for column in range(test.rows.fields.shape[1]):
        ids = warmup.rows.fields[:, column]
        shown = torch.bincount(ids, minlength=size)
        clicks = torch.bincount(ids, warmup.rows.label.double(), minlength=size)
        rate = ((clicks + 1) / (shown + 2))[test.rows.fields[:, column].long()]
        assert 0.47 < auc(rate.numpy(), label).value < ceiling - 0.05
    for column in range(2):
        number = test.rows.numbers[:, column].numpy()
        assert abs(auc(number, label).value - 0.5) < ceiling - 0.55


def test_without_drift_the_same_pair_is_as_likely_on_every_day():
    assert drift(narrow()) < 1e-9


@pytest.mark.parametrize("knob", ["interest_walk", "weekly_rhythm", "item_churn", "shift"])
def test_each_kind_of_drift_alone_is_seen_and_grows_with_its_strength(knob):
    weak, strong = (drift(narrow(**{knob: strength})) for strength in (0.02, 0.2))
    assert 1e-3 < weak < strong


def test_the_shift_comes_at_once_and_once():
    periods = narrow(shift=1.0, shift_at=4)
    assert drift(periods[:4]) < 1e-9
    assert drift(periods[4:]) < 1e-9
    assert drift(periods[3:5]) > 0.1


def test_a_shift_after_the_last_period_never_comes():
    assert drift(narrow(shift=1.0, shift_at=14)) < 1e-9


@pytest.mark.parametrize(("taste", "differ"), [(0.0, False), (1.0, True)])
def test_without_scenario_taste_scenarios_differ_by_their_bias_alone(taste, differ):
    rows = Period.concat(narrow(scenario_taste=taste))
    logit = defaultdict(dict)
    keys = zip(rows.rows.fields[:, :2].tolist(), rows.rows.scenario.tolist(), strict=True)
    for (pair, scenario), value in zip(keys, torch.logit(rows.truth).tolist(), strict=True):
        logit[tuple(pair)][scenario] = value
    gaps = [seen[1] - seen[0] for seen in logit.values() if {0, 1} <= seen.keys()]
    assert len(gaps) > 100
    assert (np.std(gaps) > 0.1) == differ


def test_without_churn_no_item_is_ever_new(log):
    last = made(**STILL).read(13)
    assert last.rows.fields[:, 1].max() <= 1000
    assert log.schema.vocabularies["item_id"] > 1900


def test_dead_items_are_not_shown_and_new_ones_are_shown_most():
    periods = days(
        made(items=50, item_churn=0.1, users=100, rows_per_period=5000, weekly_rhythm=0.0)
    )
    items = [period.rows.fields[:, 1] for period in periods]
    assert all(len(ids.unique()) <= 50 for ids in items)
    assert np.intersect1d(items[0], items[13]).size < 30
    for before, now, after in zip(items, items[1:], items[2:], strict=False):
        gone = np.setdiff1d(before, now)
        assert np.intersect1d(gone, after).size <= 2  # all but the rarest: not shown by chance
    late = Period.concat(periods[3:])
    age, ids = late.rows.numbers[:, 0], late.rows.fields[:, 1]
    young, old = age < age.median(), age > age.median()
    ages = torch.stack([ids.double(), age.double()], 1)  # an item on a day
    per_day = [some.sum() / len(ages[some].unique(dim=0)) for some in (young, old)]
    assert per_day[0] > 1.3 * per_day[1]


def test_the_week_has_a_rhythm_and_none_where_it_is_off():
    week = days(made(rows_per_period=20000, **(STILL | {"weekly_rhythm": 1.0})))[:7]
    saturday, tuesday = week[5], week[1]
    assert len(saturday) > 1.4 * len(tuesday)
    assert saturday.truth.mean() > tuesday.truth.mean() + 0.04
    assert saturday.rows.fields[:, 6].unique().tolist() == [6]
    flat = days(made(**STILL))
    assert {len(period) for period in flat} == {8000}
    rates = torch.stack([period.truth.mean() for period in flat])
    assert rates.max() - rates.min() < 0.02


def test_more_periods_leave_the_first_ones_as_they_are(log):
    longer = made(periods=20)
    for t, short in enumerate(days(log)):
        long = longer.read(t)
        assert torch.equal(short.truth, long.truth)
        assert torch.equal(short.rows.fields, long.rows.fields)
        assert torch.equal(short.rows.numbers, long.rows.numbers)
        assert torch.equal(short.rows.label, long.rows.label)
        assert torch.equal(short.rows.scenario, long.rows.scenario)
        for name, ids in short.rows.lists.items():
            assert torch.equal(ids, long.rows.lists[name])


def test_the_log_depends_on_its_own_seed_alone(log):
    state = torch.get_rng_state()
    torch.manual_seed(5)
    np.random.seed(5)
    assert made().fingerprint == log.fingerprint
    torch.set_rng_state(state)
    assert made(seed=1).fingerprint != log.fingerprint


def test_ids_are_given_in_order_of_first_appearance(log, whole):
    columns = dict(zip(log.schema.fields, whole.rows.fields.unbind(1), strict=True))
    tags = whole.rows.lists["tags"].flatten()
    for name, ids in {**columns, "tags": tags[tags > 0]}.items():
        seen, first = np.unique(ids, return_index=True)
        assert seen.tolist() == list(range(1, log.schema.vocabularies[name]))
        assert (np.diff(first) > 0).all()


def test_histories_hold_the_last_positives_before_the_row(whole):
    clicks = defaultdict(lambda: deque(maxlen=10))
    users, items = whole.rows.fields[:, 0].tolist(), whole.rows.fields[:, 1].tolist()
    expected = np.zeros((len(users), 10), dtype=np.int32)
    for row, (user, item, label) in enumerate(
        zip(users, items, whole.rows.label.tolist(), strict=True)
    ):
        past = clicks[user]
        expected[row, : len(past)] = list(past)[::-1]
        if label:
            past.append(item)
    assert np.array_equal(whole.rows.lists["history"].numpy(), expected)


def test_rows_of_a_day_are_in_order_of_time(log):
    hour = log.read(0).rows.fields[:, 7]  # ids in order of appearance: of midnight, one, ...
    assert (hour.diff() >= 0).all()
    assert log.schema.vocabularies["hour"] == 25


def test_numbers_are_standardised_on_the_warm_up(log):
    numbers = torch.cat([period.rows.numbers for period in days(log)[:7]]).double()
    assert numbers.mean(0).abs().max() < 1e-5
    assert (numbers.std(0) - 1).abs().max() < 1e-3


def test_a_subset_of_scenarios_is_the_log_without_the_other_rows(log):
    some = made(scenarios=[4, "0"])
    assert list(some.schema.scenarios) == ["0", "4"]
    for t, period in enumerate(days(log)):
        kept = (period.rows.scenario == 0) | (period.rows.scenario == 3)
        few = some.read(t)
        assert torch.equal(few.truth, period.truth[kept])
        assert torch.equal(few.rows.label, period.rows.label[kept])
        assert torch.equal(few.rows.scenario * 3, period.rows.scenario[kept])
    assert made(scenarios=4).schema.scenarios == made(scenarios=["4"]).schema.scenarios == ["4"]
    assert some.schema.vocabularies["item_id"] <= log.schema.vocabularies["item_id"]


def test_rows_fit_the_schema(log):
    schema = log.schema
    assert log.roles == [Role.PRETRAIN] * 7 + [Role.TUNE] + [Role.TEST] * 6
    for t, period in enumerate(days(log)):
        rows = period.rows
        assert (period.index, period.name, period.role) == (t, f"day {t:02d}", log.roles[t])
        assert rows.fields.dtype == torch.int32
        assert rows.numbers.dtype == rows.label.dtype == torch.float32
        assert rows.scenario.dtype == torch.int64
        assert period.truth.dtype == torch.float64
        assert rows.fields.shape == (len(period), len(schema.fields))
        assert rows.numbers.shape == (len(period), len(schema.numbers))
        sizes = torch.tensor([schema.vocabularies[name] for name in schema.fields.values()])
        assert (rows.fields < sizes).all()
        assert rows.fields.min() > 0
        for name, field in schema.lists.items():
            ids = rows.lists[name]
            assert ids.dtype == torch.int32
            assert ids.shape == (len(period), field.length)
            assert ids.min() >= 0
            assert ids.max() < schema.vocabularies[field.vocabulary]
            assert ((ids[:, 1:] == 0) | (ids[:, :-1] > 0)).all()  # padding comes last


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"periods": 5}, "the log has 5 periods"),
        ({"pretrain": 0}, "data.pretrain=0"),
        ({"test": -1}, "data.test=-1"),
        ({"interest_walk": -0.1}, "data.interest_walk=-0.1"),
        ({"shift": float("nan")}, "data.shift=nan"),
        ({"item_churn": 1.5}, "data.item_churn=1.5: a strength from 0 .off. to 1 is needed"),
        ({"weekly_rhythm": "much"}, "data.weekly_rhythm=much"),
        ({"users": 0}, "data.users=0: a whole number of at least 1"),
        ({"items": 2.5}, "data.items=2.5"),
        ({"seed": -1}, "data.seed=-1"),
        ({"scenarios": [3]}, "keep one or more of 0, 1, 2, 4"),
        ({"scenarios": []}, "keep one or more"),
        ({"scenarios": [2], "rows_per_period": 3}, "data.rows_per_period=3"),
    ],
)
def test_wrong_settings_end_in_one_sentence(settings, words):
    with pytest.raises(Mistake, match=words):
        made(**settings)


def test_a_step_keeps_the_variance_and_no_step_keeps_everything():
    x = np.random.default_rng(0).standard_normal((100_000,))
    assert np.array_equal(moved(x, 0.0, np.random.default_rng(1)), x)
    y = moved(x, 1.0, np.random.default_rng(1))
    assert y.var() == pytest.approx(1, abs=0.02)
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(0.5**0.5, abs=0.02)


def test_small_formulas():
    assert drawn([1, 0, 3], np.array([0.0, 0.2499, 0.25, 0.9999])).tolist() == [0, 0, 2, 2]
    assert calibrated(np.zeros(3), 0.25) == pytest.approx(np.log(1 / 3))
    assert calibrated(np.zeros(0), 0.25) == pytest.approx(np.log(1 / 3))
    known = numbered(np.zeros(1, dtype=np.int64), np.array([4, 2, 4, -1, 0]))
    assert known.tolist() == [3, 0, 2, 0, 1]
    assert numbered(known, np.array([5, 4, 1])).tolist() == [3, 5, 2, 0, 1, 4]
