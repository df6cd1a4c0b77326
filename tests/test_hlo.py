"""What is read out of compiled programs, against what is known of them."""

import jax
import jax.numpy as jnp
import pytest

from accelnet.hlo import HloModule
from accelnet.ops.flops import Product
from accelnet.planning.compiled.ops import DeviceOp, collectives, step_ops

# Cut from a program for a TPU: memory spaces, a loop whose length stands in its condition, cycles, a slice of a large
# operand, an update in place.
TPU = """HloModule chunk, entry_computation_layout={()->f32[]}

%fused_update (p0: f32[28,128], p1: f32[128], p2: s32[]) -> f32[28,128] {
  %p0 = f32[28,128]{1,0:T(8,128)} parameter(0)
  %p1 = f32[128]{0:T(128)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[1,128]{1,0:T(8,128)} bitcast(%p1)
  ROOT %update = f32[28,128]{1,0:T(8,128)} dynamic-update-slice(%p0, %row, %p2, %zero)
}

%fused_read (q0: f32[28,128], q1: s32[]) -> f32[1,128] {
  %q0 = f32[28,128]{1,0:T(8,128)} parameter(0)
  %q1 = s32[]{:T(128)} parameter(1)
  %none = s32[]{:T(128)} constant(0)
  %slice = f32[1,128]{1,0:T(8,128)} dynamic-slice(%q0, %q1, %none), dynamic_slice_sizes={1,128}
  ROOT %tanh = f32[1,128]{1,0:T(8,128)} tanh(%slice)
}

%condition (c: (s32[], f32[28,128])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %n = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (b: (s32[], f32[28,128])) -> (s32[], f32[28,128]) {
  %b = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = f32[28,128]{1,0:T(8,128)} get-tuple-element(%b), index=1
  %read = f32[1,128]{1,0:T(8,128)S(1)} fusion(%x, %j), calls=%fused_read, metadata={op_name="SCOPES/tanh"}, CONFIG
  %row = f32[128]{0:T(128)S(1)} bitcast(%read)
  %written = f32[28,128]{1,0:T(8,128)} fusion(%x, %row, %j), kind=kLoop, calls=%fused_update
  ROOT %t = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) tuple(%j, %written)
}

%go_on (g: (s32[], f32[28,128])) -> pred[] {
  %g = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%g), index=0
  ROOT %less = pred[]{:T(512)} compare(%k, %k), direction=LT
}

%step (s: (s32[], f32[28,128])) -> (s32[], f32[28,128]) {
  %s = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) parameter(0)
  %scan = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) while(%s), condition=%condition, body=%body
  %y = f32[28,128]{1,0:T(8,128)} get-tuple-element(%scan), index=1
  %sum = f32[28,128]{1,0:T(8,128)} all-reduce(%y), replica_groups=mesh['data'=4,'model'=2] {'data'}, to_apply=%add
  %l = s32[]{:T(128)} get-tuple-element(%scan), index=0
  ROOT %u = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) tuple(%l, %sum)
}

ENTRY %main (a: (s32[], f32[28,128])) -> (s32[], f32[28,128]) {
  %a = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) parameter(0)
  %once = f32[28,128]{1,0:T(8,128)} get-tuple-element(%a), index=1
  %copied = f32[28,128]{1,0:T(8,128)} copy(%once)
  ROOT %chunk = (s32[]{:T(128)}, f32[28,128]{1,0:T(8,128)}) while(%a), condition=%go_on, body=%step
}
""".replace("CONFIG", 'backend_config={"window_config":{"estimated_cycles":"1825"}}')
TPU = TPU.replace("SCOPES", "jit(chunk)/while/body/an.gradient/transpose(jvp(an.model))/an.Dense")


def kernels_of(function, *args):
    return step_ops(HloModule(jax.jit(function).lower(*args).compile().as_text()))


def test_a_step_is_one_trip_through_the_outermost_loop():
    by_opcode = {kernel.opcode: kernel for kernel in step_ops(HloModule(TPU))}
    assert "copy" not in by_opcode  # once per chunk
    assert by_opcode["fusion:tanh"].count == 28
    assert by_opcode["fusion:dynamic-update-slice"].count == 28


def test_slices_and_updates_in_place_touch_no_more_than_the_slice():
    by_opcode = {kernel.opcode: kernel for kernel in step_ops(HloModule(TPU))}
    # The result lies in the core's own memory; the index is a number.
    assert by_opcode["fusion:tanh"].bytes == 128 * 4 + 4
    assert by_opcode["fusion:dynamic-update-slice"].bytes == 128 * 4 + 4


def test_the_compilers_cycles_and_the_layer_are_read():
    by_opcode = {kernel.opcode: kernel for kernel in step_ops(HloModule(TPU))}
    assert by_opcode["fusion:tanh"].cycles == 1825
    assert by_opcode["fusion:tanh"].label == "Dense"
    assert by_opcode["fusion:tanh"].transcendentals == 128


def test_collectives_know_their_bytes_and_their_group():
    (kernel,) = collectives(HloModule(TPU))
    assert (kernel.opcode, kernel.bytes, kernel.group, kernel.count) == ("all-reduce", 28 * 128 * 4, 4, 1)


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2},{3,4,5}}", 3), ("[2,8]<=[16]", 8), ("mesh['a'=4,'b'=2] {'a','b'}", 8)],
)
def test_groups_are_read_in_every_way_they_are_written(groups, size):
    text = TPU.replace("mesh['data'=4,'model'=2] {'data'}", groups)
    assert collectives(HloModule(text))[0].group == size


def test_products_equal_those_of_the_program_written_by_hand():
    x, w, v = jnp.ones((8, 4, 16)), jnp.ones((8, 16, 32)), jnp.ones((32, 5))
    found = kernels_of(lambda x, w, v: (x @ w) @ v, x, w, v)
    products = [product for kernel in found for product in kernel.products]
    assert sum(product.flops for product in products) == 2 * 8 * 4 * 16 * 32 + 2 * 32 * 32 * 5
    assert Product(4, 32, 16, 8, "float32") in products


def test_a_scan_counts_its_products_once_per_step():
    def scan(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=13)[0]

    found = kernels_of(scan, jnp.ones((16, 16)), jnp.ones((4, 16)))
    flops = sum(product.flops * kernel.count for kernel in found for product in kernel.products)
    assert flops == 13 * 2 * 4 * 16 * 16


def test_kernels_survive_json():
    for kernel in step_ops(HloModule(TPU)):
        assert DeviceOp.from_dict(kernel.to_dict()) == kernel


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        HloModule("nothing")


@pytest.mark.parametrize(("size", "inlined"), [(8, True), (1 << 16, False)])
def test_a_step_that_is_part_of_one_function_starts_no_kernels(size, inlined):
    def chunk(num_steps, x):
        return jax.lax.fori_loop(0, num_steps, lambda i, x: jnp.sin(x) + jnp.sum(x) + i, x)

    module = HloModule(jax.jit(chunk).lower(jnp.int32(3), jnp.ones(size)).compile().as_text())
    assert module.step[1] == inlined
    found = step_ops(module)
    assert found
    assert {kernel.opcode.startswith("inlined:") for kernel in found} == {inlined}
