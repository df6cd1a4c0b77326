"""Slips in each argument of an experiment: one line that says what came, what was expected, and what to do."""

import optax
import pytest
from flax import nnx

import accelnet as an
from tests.users import toy

pytestmark = pytest.mark.usefixtures("no_pictures")

SLIPS = [
    ({"data": [1, 2]}, "data is .*, expected a Data"),
    ({"data": None}, "data is None, expected a Data"),
    ({"optimizer": optax.adam}, "optimizer is the function adam itself, expected what it returns"),
    ({"optimizer": 1e-3}, "optimizer is 0.001, expected an Optax transformation"),
    ({"optimizer": "adam"}, "optimizer is 'adam', expected an Optax transformation"),
    ({"optimizer": None}, "optimizer is None, expected an Optax transformation"),
    ({"objective": 3}, "objective is 3, expected an Objective"),
    ({"objective": an.objectives.softmax_cross_entropy}, "itself, expected what it returns: call it"),
    ({"objective": "mse"}, "objective is 'mse', expected an Objective"),
    ({"batch_size": 64.0}, "batch_size is 64.0, expected a whole number"),
    ({"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
    ({"batch_size": None}, "batch_size is None"),
    ({"batch_size": "ful"}, 'batch_size is .ful., expected a whole number or "full"'),
    ({"batch_size": 10**10}, "batch_size 10000000000 is larger"),
    ({"microbatch_size": 0}, "microbatch_size is 0"),
    ({"microbatch_size": 9}, "microbatch_size 9 is larger than batch_size 8"),
    ({"steps": 1.5}, "steps is 1.5, expected a whole number"),
    ({"steps": 2**40}, "steps is 1099511627776, expected a whole number from 1 to 2147483647"),
    ({"steps": None}, "give exactly one"),
    ({"steps": None, "epochs": "3"}, "epochs is '3', expected a finite number above 0"),
    ({"steps": None, "epochs": True}, "epochs is True"),
    ({"steps": None, "epochs": float("inf")}, "epochs is inf"),
    ({"steps": None, "epochs": -1}, "epochs is -1"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": "a"}, "seed is 'a'"),
    ({"seed": -1}, "seed is -1"),
    ({"eval_batch_size": 0}, "eval_batch_size is 0"),
    ({"eval_batch_size": 10**10}, "eval_batch_size is 10000000000"),
    ({"precision": "float8"}, "precision is 'float8', expected one of"),
    ({"remat": True}, "remat is True, expected one of"),
    ({"log_every": 10}, "log_every is 10, expected a rhythm"),
    ({"eval_every": 2}, "eval_every is 2, expected a rhythm"),
    ({"save_every": an.Every}, "save_every is .*Every"),
    ({"keep_last": 0}, "keep_last is 0"),
    ({"keep_best": None}, "keep_best is None"),
    ({"best_metric": "acuracy"}, "best_metric is 'acuracy', .*did you mean 'accuracy'"),
    ({"best_metric": 3}, "best_metric is 3"),
    ({"early_stopping": 3}, "early_stopping is 3, expected an EarlyStopping"),
    ({"events": [print]}, "expected Event"),
    ({"events": print}, "events is .*, expected a list"),
    ({"final_evaluation": "test"}, r"final_evaluation is 'test', expected a list of names, such as \['test'\]"),
    ({"sharding_rules": ["a"]}, "sharding_rules has 'a' in it, expected pairs"),
    ({"sharding_rules": [("a", 3)]}, "expected a PartitionSpec"),
    ({"on_device": "yes"}, "on_device is 'yes'"),
    ({"deterministic": "no"}, "deterministic is 'no'"),
    ({"config": {"a": object()}}, "config has a=<object"),
    ({"config": [1]}, "config is .*, expected a dict"),
    ({"name": 3}, "name is 3"),
    ({"name": ""}, "name is ''"),
    ({"frozen": [3]}, "a pattern of frozen is 3"),
]


@pytest.mark.parametrize(
    ("change", "message"), SLIPS, ids=[f"{list(change)[-1]}-{index}" for index, (change, _) in enumerate(SLIPS)]
)
def test_a_slip_is_one_line(change, message):
    with pytest.raises(an.UserError, match=message) as caught:
        toy.experiment(lambda rngs: nnx.Linear(8, 2, rngs=rngs)).replace(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (an.Every, "give exactly one"),
        (lambda: an.Every(steps=1.5), "steps of Every is 1.5"),
        (lambda: an.Every(epochs=float("inf")), "epochs of Every is inf"),
        (lambda: an.Every(seconds="a"), "seconds of Every is 'a'"),
        (lambda: an.Event(3, print), "when of an Event is 3"),
        (lambda: an.Event("begin", print), "when of an Event is 'begin'"),
        (lambda: an.Event("start", 3), "action of an Event is 3"),
        (lambda: an.EarlyStopping(patience=0), "patience is 0"),
        (lambda: an.EarlyStopping(min_delta="a"), "min_delta is 'a'"),
        (lambda: an.EarlyStopping(mode="down"), "mode is 'down'"),
        (lambda: an.objectives.Objective(3), "the loss is 3"),
        (lambda: an.objectives.Objective(len, task="class"), "task is 'class'"),
        (lambda: an.objectives.Objective(len, {"a": an.objectives.Accuracy}), "expected an instance of Metric"),
        (lambda: an.objectives.combine({}), "no parts"),
        (lambda: an.objectives.combine({"a": 3}), "part 'a' is"),
        (lambda: an.objectives.softmax_cross_entropy(focal=-1), "focal is -1"),
    ],
)
def test_a_slip_in_what_an_experiment_is_made_of_is_one_line(make, message):
    with pytest.raises(an.UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": 3}, "mesh"),
        ({"workdir": 5}, "workdir is 5, expected the path"),
        ({"workdir": ""}, "workdir is '', expected the path"),
        ({"events": [print]}, "expected Event"),
        ({"resume": True}, "resume=True needs a workdir"),
        ({"hang_timeout": float("nan")}, "hang_timeout is nan"),
        ({"strategy": "map"}, "strategy is 'map'"),
    ],
)
def test_a_slip_in_fit_is_one_line(settings, message):
    experiment = toy.experiment(lambda rngs: nnx.Linear(8, 2, rngs=rngs))
    with pytest.raises(an.UserError, match=message):
        an.fit(experiment, progress=False, **settings)
