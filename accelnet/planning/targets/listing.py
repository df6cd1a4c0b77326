"""The targets there are, as a table."""

import textwrap
from collections.abc import Mapping

import rich.box
import rich.table

from accelnet.arguments import word
from accelnet.errors import UserError
from accelnet.planning.targets.accelerators import Accelerator, load_accelerators
from accelnet.planning.targets.target import slices
from accelnet.terminal import columns, folded, rendered


def targets_table(accelerators: Mapping[str, Accelerator] | None = None, family: str | None = None) -> str:
    """Describe the targets there are, one line per accelerator.

    Args:
        accelerators: Accelerators to list. None: `load_accelerators()`.
        family: "tpu", "gpu", or the beginning of names, listed with every size. None: all.

    Returns:
        Text, as wide as the terminal; without one, at most 100 columns.

    Raises:
        UserError: if there is none in the family.

    Example:
        >>> print(targets_table(family="v5e"))
        name  sizes sold...
    """
    accelerators = load_accelerators() if accelerators is None else accelerators
    start = "" if family is None else word("the family", family).strip().lower()
    shown = [
        known
        for known in accelerators.values()
        if start in {known.platform, "gpu" if known.platform == "cuda" else ""}
        or any(name.startswith(start) for name in (known.name, *known.aliases))
    ]
    if not shown:
        raise UserError(
            f"{family!r} begins no name of an accelerator, expected tpu, gpu or one of {', '.join(accelerators)}"
        )
    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("sizes sold")
    for header in ("GiB", "bf16 TFLOP/s", "GB/s", "USD an hour"):
        table.add_column(header, justify="right")
    table.add_column("price of", no_wrap=True)
    every: list[str] = []
    for known in shown:
        sizes = [target.name.removeprefix(known.name).removeprefix(":") or "1" for target in slices(known)]
        few = sizes if len(sizes) < 4 else [*sizes[:2], "…", sizes[-1]]
        if family and few != sizes:
            text = f"sizes of {known.name}: {', '.join(sizes)}"
            every += textwrap.wrap(text, min(columns(), 100), subsequent_indent="  ", break_on_hyphens=False)
        price = "" if known.usd_per_chip_hour is None else f"{known.usd_per_chip_hour:.2f}"
        table.add_row(
            known.name,
            ", ".join(few).replace(", …,", " …"),
            f"{known.memory_bytes / 2**30:.2f}",
            f"{known.peak_flops['bfloat16'] / 1e12:,.1f}",
            f"{known.memory_bandwidth / 1e9:,.0f}",
            price,
            known.price_note.rsplit(", ", 1)[-1],
        )
    lines = rendered(table, drop=("price of", "sizes sold")).splitlines()
    note = "GiB, TFLOP/s and GB/s are of a JAX device, prices of a chip"
    double = [known.name for known in shown if known.devices_per_chip == 2]
    if double:
        note += f"; a chip is 2 devices in {', '.join(double)}"
    return "\n".join([*lines, *every, folded(note)])
