"""Custom calls: found in the jaxpr and in the compiled program by one name, measured alone, priced by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.hlo import HloModule
from accelnet.ops.flops import Product
from accelnet.planning.compiled.calls import Call, find_calls
from accelnet.planning.compiled.ops import DeviceOp, step_ops
from accelnet.planning.modelled import probes
from accelnet.planning.modelled.calibration import measured_model
from accelnet.planning.modelled.device import model_of
from accelnet.planning.targets.target import find_target
from tests.planning.modelled.test_rates import measurements

MATRIX = jax.ShapeDtypeStruct((4, 16, 16), jnp.float32)
INFO = jax.ShapeDtypeStruct((4,), jnp.int32)


def factorize(x):
    """Call LAPACK as jax does, by its foreign function interface: a custom call that every CPU has."""
    return jax.ffi.ffi_call("lapack_spotrf_ffi", (MATRIX, INFO))(x, uplo=np.uint8(ord("L")))[0]


def in_a_loop(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: factorize(x) + jnp.eye(16)[None], x)


@pytest.fixture
def cholesky():
    np.asarray(jnp.linalg.cholesky(jnp.eye(2)))  # loads LAPACK
    (found,) = find_calls(jax.make_jaxpr(in_a_loop)(MATRIX).jaxpr).items()
    return found


def test_the_program_and_the_jaxpr_name_a_call_alike(cholesky):
    call, _ = cholesky
    assert call == Call("lapack_spotrf_ffi", (("float32", (4, 16, 16)),), (("float32", (4, 16, 16)), ("int32", (4,))))
    (kernel,) = (k for k in step_ops(HloModule(jax.jit(in_a_loop).lower(MATRIX).compile().as_text())) if k.call)
    assert (kernel.call, kernel.count) == (call, 3)
    assert kernel.bytes == 4 * (2 * 4 * 16 * 16 + 4)
    assert DeviceOp.from_dict(kernel.to_dict()) == kernel


def test_a_call_is_run_alone(cholesky, monkeypatch):
    monkeypatch.setattr(probes, "SECONDS", 1e-3)
    assert 1e-7 < probes.call_seconds(cholesky[1], 1 << 16) < 1e-2


def test_a_measured_call_costs_what_was_measured_and_another_of_its_target_by_its_operations():
    call, other = (Call("mine", (("float32", (size,)),), ()) for size in (8, 16))
    model = measured_model(measurements() | {"calls": [[call, 1000, 5e-6]]})
    kernel = DeviceOp("other", "", 1, 64, opcode="custom-call", call=call)
    assert model.parts(kernel) == {"compute": 5e-6}
    twice = dataclasses.replace(kernel, call=other, products=(Product(10, 10, 10, 1, "float32"),))
    assert model.parts(twice) == {"compute": pytest.approx(1e-5)}
    # Nothing of its target, or nothing declared: as any kernel, by products and bytes.
    foreign = dataclasses.replace(twice, call=Call("theirs", (), ()))
    assert model.parts(foreign)["compute"] == model.product(twice.products[0])
    assert model.parts(dataclasses.replace(kernel, call=other))["memory"] > 0
    facts = model_of(find_target("cpu").accelerator)
    assert facts.parts(twice)["compute"] == facts.product(twice.products[0])
