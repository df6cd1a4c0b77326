"""A profile says which layers take the time, and changes nothing."""

import json

import chex
import pytest

import accelnet as an
from accelnet.hlo import SMALL_CALL
from accelnet.training.profile import profile_of, read_profile


@pytest.mark.slow  # a trace takes seconds
def test_a_profile_changes_no_bit_names_layers_and_works_on_a_resumed_run(make_experiment, tmp_path):
    plain = an.fit(make_experiment(), progress=False)
    run = an.fit(make_experiment(), workdir=tmp_path / "run", profile=True, progress=False)
    chex.assert_trees_all_equal(plain.state, run.state)
    assert plain.metrics == run.metrics
    found = run.profile
    assert found.steps >= 10 and found.op_ms > 0 and found.step_ms > 0
    total = sum(row["ms"] for row in found.layers) + found.unnamed_ms
    assert total == pytest.approx(found.op_ms)
    assert {"first (Linear)", "optimizer"} <= {row["layer"] for row in found.layers} or found.unnamed_ms > 0
    assert "belongs to no one layer" in repr(found)
    assert len(list((tmp_path / "run" / "profile").rglob("*.trace.json.gz"))) == 1

    longer = make_experiment(epochs=7)
    resumed = an.fit(longer.replace(name="toy"), workdir=tmp_path / "run", resume=True, profile=True, progress=False)
    assert resumed.step == 49 and resumed.profile.steps == 7
    assert len(list((tmp_path / "run" / "profile").rglob("*.trace.json.gz"))) == 1
    chex.assert_trees_all_equal(an.fit(longer, progress=False).state.params, resumed.state.params)


TEXT = f"""HloModule jit_train_chunk, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %m = f32[4]{{0}} multiply(%p, %p), metadata={{op_name="jit(c)/transpose(jvp(an.model))/an.Linear.layers.0/mul"}}
}}

%small (q: f32[4]) -> f32[4] {{
  ROOT %q = f32[4]{{0}} parameter(0)
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  %f = f32[4]{{0}} fusion(%x), kind=kLoop, calls=%fused
  %d = f32[4]{{0}} add(%f, %f), metadata={{op_name="jit(c)/jvp(an.model)/an.Linear.layers.0/add"}}
  %w = f32[4]{{0}} while(%d), condition=%c, body=%b
  %s = f32[4]{{0}} call(%w), to_apply=%small, frontend_attributes={{{SMALL_CALL}="true"}}
  ROOT %o = f32[4]{{0}} add(%s, %s), metadata={{op_name="jit(c)/an.optimizer/add"}}
}}
"""


def test_times_are_shared_out_by_layer_and_loops_do_not_count_twice():
    times = {"f": 3e6, "d": 1e6, "w": 9e6, "s": 2e6, "o": 4e6, "of another program": 5e6}
    found = profile_of(times, TEXT, 2, 0.01)
    assert found.layers == [
        {"layer": "layers.0 (Linear)", "ms": 2.0, "backward_ms": 1.5},
        {"layer": "optimizer", "ms": 2.0, "backward_ms": 0.0},
    ]
    assert (found.unnamed_ms, found.op_ms, found.step_ms) == (1.0, 5.0, 5.0)
    assert "layers.0 (Linear)          2   40 %      75 %" in repr(found)
    assert "20 % of that belongs to no one layer" in repr(found)


def test_a_profile_needs_a_place_and_is_looked_for_where_it_is(make_experiment, tmp_path):
    with pytest.raises(an.UserError, match="profile=True needs a workdir"):
        an.fit(make_experiment(), profile=True, progress=False)
    with pytest.raises(an.UserError, match="holds no profile"):
        read_profile(tmp_path)
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.json").write_text(json.dumps({"steps": "x"}))
    with pytest.raises(an.UserError, match="cannot be read as a run's profile"):
        read_profile(tmp_path)
