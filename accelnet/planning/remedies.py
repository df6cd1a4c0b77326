"""Changes that make an experiment fit where it does not, each compiled, in the order of their cost in time."""

from collections.abc import Iterator
from typing import Any

from accelnet.errors import UserError
from accelnet.planning.planner import Case, Planner

_SMALLEST_SHARE = 64
_REFINEMENTS = 2
# Share of a GPU's memory; CUDA itself and its libraries take some of the rest.
_LARGEST_SHARE = 0.92
# A change in words, its settings, and the case with it.
_Tried = tuple[str, dict[str, Any], Case]


def find_remedies(planner: Planner, case: Case) -> tuple[dict[str, Any], ...]:
    """Compile what may make a case fit.

    Args:
        planner: Planner that made the case.
        case: Case that does not fit.

    Returns:
        The changes that make it fit, fastest per example first: "change" in words, "settings" (of `Experiment`, or
        "mesh"), "total_bytes", "limit_bytes", "source" of the two, and "slowdown", expected time per example over that
        of the case if it did fit. The largest batch that fits is among them.
    """
    # Without a compiler, or where it failed, shapes alone decide: an estimate, labelled as such in the row.
    tried = _try(planner, case, list(_variants(case))) + _largest_batch(planner, case)
    before = _seconds_per_example(planner, case)
    found = _larger_share(case)
    found += [
        {
            "change": name,
            "settings": settings,
            "total_bytes": made.memory().total,
            "limit_bytes": made.limit_bytes,
            "slowdown": _seconds_per_example(planner, made) / before,
            "source": made.memory().source,
        }
        for name, settings, made in tried
        if made.fits
    ]
    return tuple(sorted(found, key=lambda remedy: remedy["slowdown"]))


def _variants(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    experiment, layout = case.experiment, case.layout
    if experiment.precision == "float32":
        yield "bfloat16", {"precision": "bfloat16"}
    if experiment.remat == "none":
        yield "remat of all but matrix products", {"remat": "products"}
    if experiment.remat != "blocks":
        yield "remat of all but block boundaries", {"remat": "blocks"}
    batch, size, parts = experiment.order.batch_size, experiment.order.microbatch_size, layout.num_parts
    for share in (2, 4, 8):
        if size % share == 0 and size // share % parts == 0 and size // share >= parts:
            yield f"accumulation, {batch // (size // share)} microbatches", {"microbatch_size": size // share}
    if layout.num_devices > 1 and "fsdp" not in layout.axes:
        others = "".join(f"{name}={number}," for name, number in layout.axes.items() if name not in ("data", "fsdp"))
        yield "weights cut over the devices (fsdp)", {"mesh": f"{others}fsdp={layout.axes.get('data', 1)}"}
    if experiment.precision == "float32" and experiment.remat == "none":
        yield "bfloat16 and remat of all but block boundaries", {"precision": "bfloat16", "remat": "blocks"}


def _larger_share(case: Case) -> list[dict[str, Any]]:
    """Return what a larger share of a GPU's memory makes fit: the same program, nothing to compile."""
    memory, whole = case.memory(), int(_LARGEST_SHARE * case.target.accelerator.memory_bytes)
    if not case.limit_bytes < memory.total <= whole:
        return []
    return [{
        "change": f"XLA_CLIENT_MEM_FRACTION={_LARGEST_SHARE} in the environment", "settings": {},
        "total_bytes": memory.total, "limit_bytes": whole, "slowdown": 1.0, "source": memory.source,
    }]  # fmt: skip


def _try(planner: Planner, case: Case, variants: list[tuple[str, dict[str, Any]]]) -> list[_Tried]:
    made = []
    for name, settings in variants:
        fields = {field: value for field, value in settings.items() if field != "mesh"}
        try:
            changed = planner.case(case.target, case.experiment.replace(**fields), settings.get("mesh"))
        except UserError:  # the batch does not divide, or rules do not match such a mesh
            continue
        made.append((name, settings, changed))
    planner.say(f"{case.target.name} does not fit: compiling {len(made)} variants")
    planner.compile([changed for _, _, changed in made])
    return made


def _largest_batch(planner: Planner, case: Case) -> list[_Tried]:
    """Halve until it fits, then go up again in quarters."""
    batch, parts = case.experiment.order.batch_size, case.layout.num_parts

    def tries(sizes: list[int]) -> list[_Tried]:
        sizes = sorted({size // parts * parts for size in sizes if 0 < size // parts * parts < batch})
        settings = [{"batch_size": size, "microbatch_size": None} for size in sizes]
        made = _try(planner, case, [(f"a batch of {s['batch_size']} examples", s) for s in settings])
        return [entry for entry in made if entry[2].fits]

    share, fitting = 2, []
    while not fitting and share <= _SMALLEST_SHARE:
        fitting = tries([batch // share, batch // (2 * share)])
        share *= 4
    if not fitting:
        return []
    best = fitting[-1]
    step = best[1]["batch_size"]
    for _ in range(_REFINEMENTS):
        low = best[1]["batch_size"]
        above = tries([low + step // 4, low + step // 2, low + 3 * step // 4])
        best = above[-1] if above else best
        step //= 4
        if step < parts:
            break
    name, settings, made = best
    return [(name + ", the largest that fits", settings, made)]


def _seconds_per_example(planner: Planner, case: Case) -> float:
    model = planner.device_model(case.target.accelerator)
    return case.time(model).expected / case.experiment.order.batch_size
