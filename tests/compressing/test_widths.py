"""Widths of everybody's models are found without a rule for any layer."""

from functools import partial

import pytest

import accelnet as an
from accelnet.compressing.widths import find_widths
from accelnet.errors import UserError
from tests.compressing.modules import (
    IMAGES,
    STEPS,
    TOKENS,
    LinenResNet,
    SequenceToSequence,
    Skipping,
    VisionTransformer,
    experiment,
)

M = an.models
FLAT = IMAGES.reshape(64, -1)
SENTENCES = {"source": TOKENS, "target": TOKENS[:, :5]}

# By model: the widths, each with its step, its proof and the numbers of units in its spaces.
CASES = {
    "residual layers of equal width are one": (
        experiment(lambda rngs: M.MLP(128, (8, 8, 8), 3, norm="batch", residual=True, rngs=rngs), FLAT),
        {"hidden_features.0": (1, "sliced", [8])},
    ),
    "gates, layers and directions": (
        experiment(partial(M.RNN, 3, 6, 3, cell="gru", num_layers=2, bidirectional=True), STEPS),
        {"hidden_features": (1, "sliced", [6, 6, 6, 6])},
    ),
    "flattened channels, LayerNorm": (
        experiment(lambda rngs: M.CNN((8, 8, 2), (6,), 3, norm="layer", dense_features=(8,), rngs=rngs), IMAGES),
        {"channels.0": (1, "exchanged", [6]), "dense_features.0": (1, "sliced", [8])},
    ),
    "depthwise": (
        experiment(
            lambda rngs: M.CNN((8, 8, 2), (4, 6), 3, separable=True, head="average", dense_features=(), rngs=rngs),
            IMAGES,
        ),
        {"channels.0": (1, "sliced", [4]), "channels.1": (1, "sliced", [6])},
    ),
    "a residual net with padded channels": (
        experiment(lambda rngs: M.ResNet(2, 8, 3, widths=(4, 8, 8), rngs=rngs), IMAGES),
        {"widths.0": (1, "sliced", [8, 8, 4, 4, 4])},
    ),
    "heads": (
        experiment(VisionTransformer, IMAGES),
        {"dim": (4, "exchanged", [16, 4, 4]), "mlp": (1, "sliced", [12])},
    ),
    "Linen, one number for all stages": (
        experiment(LinenResNet(), IMAGES),
        {"num_filters": (1, "sliced", [12, 12, 6, 6])},
    ),
    "an encoder's state that a decoder takes up": (
        experiment(SequenceToSequence, SENTENCES, TOKENS[:, 1:], 11),
        {"features": (1, "sliced", [6]), "hidden": (1, "sliced", [8])},
    ),
    "joined widths, groups, channels first": (
        experiment(Skipping, IMAGES),
        {"outer": (2, "exchanged", [6, 3, 3]), "inner": (1, "sliced", [10])},
    ),
}
SLOW = ("a residual net with padded channels", "heads", "Linen, one number for all stages", "depthwise")


@pytest.mark.parametrize("case", [pytest.param(one, marks=[pytest.mark.slow] if one in SLOW else []) for one in CASES])
def test_widths_and_their_units_are_proven_by_running(case):
    made, expected = CASES[case]
    found = find_widths(made)
    told = {
        path: (one.step, one.proof, sorted((space.units for space in one.spaces), reverse=True))
        for path, one in found.proven.items()
    }
    assert told == expected
    assert all((one.error <= 1e-5) == (one.proof == "sliced") for one in found.proven.values())


def test_what_is_no_width_is_left_with_its_reason():
    found = find_widths(experiment(partial(M.RNN, 3, 6, 3, num_layers=2), STEPS))
    assert list(found.proven) == ["hidden_features"]
    assert found.left["out_features"] == "it changes the model's outputs"
    assert found.left["num_layers"] == "it changes which parameters there are"
    assert "expected floats [batch, steps, 2]" in found.left["in_features"]
    for widths, message in [
        ({"out_features": 2}, "out_features cannot be made smaller: it changes the model's outputs"),
        ({"hidden_features": 7}, "expected 6 or less by a multiple of 1, above 0"),
        ({"hidden": 3}, "Widths are hidden_features"),
    ]:
        with pytest.raises(UserError, match=message):
            found.smaller(widths)
