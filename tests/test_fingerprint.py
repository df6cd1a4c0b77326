"""What a user wrote, told apart."""

import sys
import types
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax

import accelnet as an
from accelnet.fingerprint import fingerprint


def test_what_a_function_closes_over_counts():
    def make(factor, table):
        return lambda outputs, batch: factor * outputs + table

    one = fingerprint(make(1.0, np.ones(3)))
    assert one == fingerprint(make(1.0, np.ones(3)))
    assert one != fingerprint(make(2.0, np.ones(3))) and one != fingerprint(make(1.0, np.zeros(3)))


def test_the_code_of_a_users_function_counts():
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x * 1)


def test_chains_objectives_and_models_are_told_by_their_settings():
    for one, other in (
        (optax.adam(1e-3), optax.adam(1e-4)),
        (optax.adam(optax.cosine_decay_schedule(1e-3, 10)), optax.adam(optax.cosine_decay_schedule(1e-3, 20))),
        (an.optim.adamw(1e-3), an.optim.adamw(1e-3, weight_decay=0.1)),
        (an.objectives.softmax_cross_entropy(), an.objectives.softmax_cross_entropy(label_smoothing=0.1)),
        (jnp.arange(3), jnp.arange(4)),
    ):
        assert fingerprint(one) != fingerprint(other)
    assert fingerprint(an.optim.adamw(1e-3)) == fingerprint(an.optim.adamw(1e-3))
    assert fingerprint(optax.adam(1e-3)) == fingerprint(optax.adam(1e-3))


def test_settings_that_are_compared_elsewhere_count_as_themselves():
    @dataclass(frozen=True)
    class Config:
        width: int = 4
        epochs: int = 2

    def model(config):
        return lambda rngs: an.models.MLP(3, (config.width,), 2, rngs=rngs)

    one, other = Config(), Config(epochs=3)
    assert fingerprint(model(one)) != fingerprint(model(other))
    assert fingerprint(model(one), vars(one)) == fingerprint(model(other), vars(other))


RATE = 1.0


def test_what_inner_functions_modules_classes_and_slots_hold_counts(monkeypatch):
    settings = types.ModuleType("settings_of_a_user")
    settings.rate, settings.other = 1.0, 1.0
    monkeypatch.setitem(sys.modules, settings.__name__, settings)

    class Slotted:
        __slots__ = ("number",)

    class Layer:
        width = 3
        held = Slotted()

        @property
        def twice(self):
            return 2 * self.width

        @classmethod
        def make(cls):
            return cls()

    Layer.held.number = 1.0

    def inner(x):
        return [RATE * one for one in (y + RATE for y in x)]

    def of_module(x):
        return settings.rate * x

    def same(value, name, other, of):
        before = fingerprint(value)
        monkeypatch.setattr(of, name, other)
        return fingerprint(value) == before

    assert not same(inner, "RATE", 2.0, sys.modules[__name__])
    assert not same(of_module, "rate", 2.0, settings)
    assert same(of_module, "other", 2.0, settings)
    assert not same(Layer.held, "number", 2.0, Layer.held)
    assert not same(Layer(), "width", 4, Layer)
    assert not same(Layer(), "twice", property(lambda self: 3 * self.width), Layer)
    assert not same(Layer(), "make", classmethod(lambda cls: None), Layer)
