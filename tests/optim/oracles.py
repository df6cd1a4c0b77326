"""Update rules of the published algorithms in NumPy, written apart from accelnet's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 7
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "dense": {"kernel": (5, 3)},
    "norm": {"scale": (6,)},
}


def is_shape(node):
    return isinstance(node, tuple)


def draw(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: generator.normal(size=shape).astype(np.float32), SHAPES, is_leaf=is_shape)


def run(optimizer, steps=STEPS):
    """Train the first steps of 20 in one compiled loop, which also refuses a state whose types change."""

    def one(carry, of_step):
        params, state = carry
        number, gradients = of_step
        updates, state = optimizer.update(gradients, state, params, progress=number / 20)
        return (optax.apply_updates(params, updates), state), None

    def train(params, gradients):
        return jax.lax.scan(one, (params, optimizer.init(params)), (jnp.arange(steps), gradients))[0]

    gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *[draw(number + 1) for number in range(steps)])
    return jax.jit(train)(draw(0), gradients)


def expect(rule, steps=STEPS):
    """Apply a rule to each leaf: rule(p, gradients, rates, is_weight) -> p after the last."""
    rates = [0.03 * schedule_factor(number) for number in range(steps)]

    def leaf(path, p, *gradients):
        is_weight = path[-1].key == "kernel"
        return rule(p.astype(float), [g.astype(float) for g in gradients], rates, is_weight)

    return jax.tree_util.tree_map_with_path(leaf, draw(0), *[draw(number + 1) for number in range(steps)])


def schedule_factor(step):
    return 0.5 * (1 + np.cos(np.pi * step / 20))


def sgd(p, gradients, rates, is_weight):
    for g, rate in zip(gradients, rates, strict=True):
        p = p - rate * (g + 0.1 * is_weight * p)
    return p


def momentum(p, gradients, rates, is_weight):
    t = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        t = 0.8 * t + g
        p = p - rate * (t + 0.1 * is_weight * p)
    return p


def nesterov(p, gradients, rates, is_weight):
    t = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        t = 0.8 * t + g
        p = p - rate * (g + 0.8 * t + 0.1 * is_weight * p)
    return p


def lars(p, gradients, rates, is_weight):
    t = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        d = g + 0.1 * p if is_weight else g
        t = 0.8 * t + rate * d * (0.02 * np.linalg.norm(p) / np.linalg.norm(d) if is_weight else 1)
        p = p - t
    return p


def lion(p, gradients, rates, is_weight):
    m = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        p = p - rate * (np.sign(0.8 * m + 0.2 * g) + 0.1 * is_weight * p)
        m = 0.95 * m + 0.05 * g
    return p


def adagrad(p, gradients, rates, is_weight):
    s = 0 * p + 0.2
    for g, rate in zip(gradients, rates, strict=True):
        s = s + g**2
        p = p - rate * g / np.sqrt(s + 1e-7)
    return p


def adadelta(p, gradients, rates, is_weight):
    v, u = 0 * p, 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        v = 0.8 * v + 0.2 * g**2
        d = np.sqrt(u + 1e-3) / np.sqrt(v + 1e-3) * g
        u = 0.8 * u + 0.2 * d**2
        p = p - rate * d
    return p


def rmsprop(p, gradients, rates, is_weight):
    v = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        v = 0.8 * v + 0.2 * g**2
        p = p - rate * g / (np.sqrt(v) + 1e-3)
    return p


def adafactor(p, gradients, rates, is_weight):
    # The two longest axes are factored where both have 3 or more.
    longest = sorted(np.argsort(p.shape, kind="stable")[-2:]) if p.ndim > 1 else []
    factored = len(longest) == 2 and all(p.shape[axis] >= 3 for axis in longest)
    v, rows, columns = 0.0, 0.0, 0.0
    for number, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        b = 1 - (number + 1.0) ** -0.8
        square = g**2 + 1e-30
        if factored:
            rows = b * rows + (1 - b) * square.mean(axis=longest[1], keepdims=True)
            columns = b * columns + (1 - b) * square.mean(axis=longest[0], keepdims=True)
            v = rows * columns / rows.mean(axis=longest[0], keepdims=True)
        else:
            v = b * v + (1 - b) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)))
        p = p - rate * (max(1e-3, np.sqrt(np.mean(p**2))) * u + 0.1 * is_weight * p)
    return p


def adam_directions(p, gradients, b1=0.8, b2=0.95, eps=1e-3, nesterov=False):
    m, v = 0 * p, 0 * p
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        mean = m / (1 - b1**t)
        if nesterov:
            mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        yield mean / (np.sqrt(v / (1 - b2**t)) + eps)


def adam(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients), rates, strict=True):
        p = p - rate * d
    return p


def adamw(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients), rates, strict=True):
        p = p - rate * (d + 0.1 * is_weight * p)
    return p


def nadam(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients, nesterov=True), rates, strict=True):
        p = p - rate * d
    return p


def adabelief(p, gradients, rates, is_weight):
    m, s = 0 * p, 0 * p
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = 0.8 * m + 0.2 * g
        s = 0.95 * s + 0.05 * (g - m) ** 2 + 1e-3
        direction = m / (1 - 0.8**t) / (np.sqrt(s / (1 - 0.95**t)) + 1e-3)
        p = p - rate * (direction + 0.1 * is_weight * p)
    return p


def lamb(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients), rates, strict=True):
        d = d + 0.1 * is_weight * p
        p = p - rate * d * (np.linalg.norm(p) / np.linalg.norm(d) if is_weight else 1)
    return p


def schedule_free_adamw(p, gradients, rates, is_weight):
    return schedule_free(p, gradients, rates, is_weight)[0]


def schedule_free(p, gradients, rates, is_weight):
    x, y, z, v, total, peak = p, p, p, 0 * p, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        v = 0.95 * v + 0.05 * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) + 0.1 * is_weight * y)
        peak = max(peak, rate)
        total += peak**2
        x = (1 - peak**2 / total) * x + peak**2 / total * z
        y = 0.2 * z + 0.8 * x
    return y, x


def newton_schulz(matrix):
    matrix = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * square + 2.0315 * square @ square) @ matrix
    return matrix


def muon(p, gradients, rates, is_weight):
    if not is_weight:
        return adamw(p, gradients, rates, is_weight)
    m = 0 * p
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = 0.8 * m + 0.2 * g
        ahead = (0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)).reshape(-1, p.shape[-1])
        orthogonal = newton_schulz(ahead) * 0.2 * np.sqrt(max(ahead.shape))
        p = p - rate * (orthogonal.reshape(p.shape) + 0.1 * p)
    return p
