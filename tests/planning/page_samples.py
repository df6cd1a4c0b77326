"""Plans to draw pages of."""

import itertools

HOSTILE = """<script>alert("x")</script>'&<blink>"""


def kernel(label, kind, count, seconds, limit, flops, size, *products):
    row = {"label": label, "kind": kind, "count": count, "seconds": seconds, "limit": limit, "flops": flops}
    return row | {"bytes": size, "products": [list(product) for product in products]}


def convolution(label, m, n, k, seconds):
    """Return three passes; patches of 3 x 3 are read once."""
    size = 2 * (m * k // 9 + k * n + m * n)
    return kernel(label, "product", 3, seconds, "compute", 6 * m * n * k, 3 * size, (m, n, k, 1, "bfloat16"))


def memory(total, limit, source, **parts):
    parts_of_total = ("arguments", "results", "temporaries")
    names = ("weights", "optimizer", "model_state", "data", "gradients", "activations", *parts_of_total)
    held = {f"{name}_bytes": parts.get(name, 0) for name in names}
    return held | {"total_bytes": total, "limit_bytes": limit, "margin_bytes": limit - total, "source": source}


def step(kernels, source, **limits):
    labels = {row["label"]: row["seconds"] for row in kernels}
    if "communication" in limits:
        labels["all-reduce"] = limits["communication"]
    expected = sum(limits.values())
    return {
        "bound": 0.4 * expected, "expected": expected, "limits": limits, "source": source,
        "bounds": {name: 0.4 * value for name, value in limits.items()},
        "labels": dict(sorted(labels.items(), key=lambda item: -item[1])),
    }  # fmt: skip


def target(name, **settings):
    return {
        "name": name, "title": "", "devices": 0, "chips": 0, "mesh": "", "fits": None, "memory": None,
        "flops_per_step": 0, "step_seconds": None, "eval_batch_seconds": None, "bottleneck": "", "kernels": [],
        "collectives": [], "mfu": None, "run_seconds": None, "usd_per_hour": None, "price": "", "usd_per_run": None,
        "compile_seconds": None, "remedies": [], "missing": "", "peaks": {}, "status": "failed", "reason": "",
    } | settings  # fmt: skip


def sample():
    """Return a plan as plan.json holds it: a slice that fits, a GPU that is too small, and a name nobody knows."""
    rows = [
        convolution(f"blocks/{block}/conv_{layer}", 802_816 // 4**layer, 64 * 2**layer, 576 * 2**layer, seconds)
        for block, layer in itertools.product(range(3), range(4))
        for seconds in [1.2e-3 * (1.9 - 0.3 * layer - 0.05 * block)]
    ]
    rows += [
        kernel("optimizer", "elementwise", 1, 2.8e-3, "memory", 0, 1_632_000_000),
        kernel("norm", "reduction", 2, 2.0e-3, "memory", 0, 1_200_000_000),
        kernel("dense", "product", 3, 3e-5, "memory", 3_145_728_000, 17_000_000, (256, 1000, 2048, 1, "bfloat16")),
        kernel("in fast memory", "product", 1, 2e-5, "compute", 2_000_000_000, 0, (1000, 1000, 1000, 1, "bfloat16")),
        kernel("nothing", "move", 4, 2e-6, "memory", 0, 0),
    ]
    rows.sort(key=lambda row: -row["seconds"])
    state = {"weights": 408_000_000, "optimizer": 816_000_000, "gradients": 408_000_000, "data": 1_500_000_000}
    fits = target(
        "v5e:2x2", title="Cloud TPU v5e", devices=4, chips=4, mesh="data=4", fits=True, status="ok",
        memory=memory(9_900_000_000, 16_911_433_728, "compiled", activations=6_100_000_000, model_state=5_300, **state),
        step_seconds=step(rows, "compiled, facts", compute=0.0205, memory=0.0048, communication=0.0011, launch=0.0002),
        kernels=rows, bottleneck="compute-bound: 9 % in blocks/0/conv_0", mfu=0.412, run_seconds=5400.0,
        collectives=[{"kind": "all-reduce", "bytes": 408_000_000, "count": 1, "devices": 4}], usd_per_hour=4.8,
        price="on demand, us-central1, 2026-09-17", usd_per_run=7.2, compile_seconds=41.0, eval_batch_seconds=0.004,
        run_parts={"compile_seconds": 41.0, "train_seconds": 5329.0, "evaluation_seconds": 30.0, "input_seconds": None},
        peaks={"flops": 197e12, "bytes_per_second": 819e9},
    )  # fmt: skip
    slower = [row | {"seconds": 1.3 * row["seconds"]} for row in rows]
    small = target(
        "rtx4090", title="GeForce RTX 4090", devices=1, chips=1, mesh="one device", fits=False, status="does not fit",
        memory=memory(44_200_000_000, 24_000_000_000, "modelled", activations=41_068_000_000, **state),
        step_seconds=step(slower, "modelled, measured", compute=0.0267, memory=0.0062, launch=0.0005), kernels=slower,
        bottleneck="compute-bound: 9 % in blocks/0/conv_0", mfu=0.331, run_seconds=23_000.0,
        reason="RESOURCE_EXHAUSTED: 44,200,000,000 bytes of 24,000,000,000 on each device",
        missing="no compiler for CUDA: pip install 'jax[cuda13]'", peaks={"flops": 165e12, "bytes_per_second": 1008e9},
        remedies=[
            {"change": "bfloat16", "settings": {"precision": "bfloat16"}, "total_bytes": 23_000_000_000,
             "slowdown": 0.62, "source": "compiled"},
            {"change": "a batch of 128 examples, the largest that fits", "total_bytes": 22_000_000_000,
             "settings": {"batch_size": 128, "microbatch_size": None}, "slowdown": 1.07, "source": "compiled"},
        ],
    )  # fmt: skip
    failed = target("h1000", reason="'h1000' is no target that is known, expected one such as v5e:2x2 or h100:8")
    return {
        "experiment": "imagenet_cnn", "steps": 112_600, "batch_size": 1024, "targets": [fits, small, failed],
        "run_leaves_out": ["checkpoints"],
        "flops": {"forward": 4.2e12, "backward": 8.3e12, "optimizer": 2e9, "matrix_products": 12e12, "products": []},
        "scaling": [
            {"accelerator": "v5e", "from": "v5e:2x2", "correction": 1.12, "points": [*map(point, (1, 4, 16, 64, 256))],
             "source": "modelled, corrected by the compiled estimate"}
        ],
        "choice": {
            "cheapest": "v5e:2x2", "fastest": "v5e:2x2", "pareto": ["v5e:2x2"], "budget_usd": 20.0,
            "deadline_hours": 3.0, "reason": "1 of 3 targets are within the limits; cheapest v5e:2x2: 7.2 USD, 90 min",
        },
    }  # fmt: skip


def point(devices):
    exchange = 0.0 if devices == 1 else 2.2e-3 * (devices - 1) / devices + 1e-5 * devices
    strong, weak = 0.048 / devices + exchange, 0.048 + exchange
    return {
        "name": f"v5e:{devices}", "devices": devices,
        "fixed_global": {"batch": 1024, "seconds": strong, "efficiency": 0.048 / (strong * devices)},
        "fixed_per_device": {"batch": 1024 * devices, "seconds": weak, "efficiency": 0.048 / weak},
        "communication_batch": int(exchange / 0.048 * 1024) or None,
    }  # fmt: skip


def replaced(value, text, keys=("status", "limit")):
    """Put a text in the place of every other, those that choose between words of the page's own aside."""
    if isinstance(value, dict):
        return {k: v if k in keys else replaced(v, text) for k, v in value.items()}
    return [replaced(v, text) for v in value] if isinstance(value, list) else text if isinstance(value, str) else value
