"""Targets: a number of chips of an accelerator, found by the names that people type, to plan a run for."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelnet.errors import UserError
from accelnet.planning.targets.accelerators import ENVIRONMENT_VARIABLE, Accelerator, load_accelerators

# A spread over price and size; `plan` adds the machine at hand.
DEFAULT_TARGETS = ("v5e:1x1", "v5e:2x2", "v6e:1x1", "v5p:2x2x1", "a100-40", "h100", "h100:8", "b200")
# Hosts of a TPU slice that spans several have 2 x 2 chips, those of v5e and v6e too: what libtpu assumes unless told.
_HOST_BOUNDS = (2, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine to plan for.

    Attributes:
        name: Canonical name: "v5e:2x2", "h100:8", "cpu".
        topology: Chips of a TPU slice in each dimension.

    Example:
        >>> target = find_target("v5p-16")
        >>> target.name, target.num_chips, target.num_devices, target.num_hosts, target.usd_per_hour
        ('v5p:2x2x2', 8, 8, 2, 33.6)
    """

    name: str
    accelerator: Accelerator
    num_chips: int
    topology: tuple[int, ...] = ()

    @property
    def num_devices(self) -> int:
        """JAX devices."""
        return self.num_chips * self.accelerator.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Hosts, each with a process of its own."""
        if self.num_chips <= self.accelerator.chips_per_host:
            return 1
        per_host = math.prod(_HOST_BOUNDS) if self.topology else self.accelerator.chips_per_host
        return math.ceil(self.num_chips / per_host)

    @property
    def usd_per_hour(self) -> float | None:
        """Price of all chips; None if unknown."""
        price = self.accelerator.usd_per_chip_hour
        return None if price is None else price * self.num_chips

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each dimension of a slice is a ring.

        In three dimensions all are rings where every size is a multiple of 4, as optical switches join cubes of 4x4x4.
        In two dimensions a ring is as long as the pod: 16, of v3 32.
        """
        if len(self.topology) == 3:
            return (all(size % 4 == 0 for size in self.topology),) * 3
        return tuple(1 < size == math.isqrt(self.accelerator.link_domain) for size in self.topology)

    def topology_request(self) -> dict[str, Any]:
        """Return what JAX needs to compile for this target without having it.

        Returns:
            "platform", "topology_name" and "kwargs" for `jax.experimental.topologies.get_topology_desc(topology_name,
            platform, **kwargs)`, as JSON values. A CPU has no topology in JAX: compile for `jax.devices("cpu")`.

        Raises:
            UserError: if nothing can be compiled for the accelerator.

        Example:
            >>> find_target("v5e:2x4").topology_request()
            {'platform': 'tpu', 'topology_name': 'v5e:2x4', 'kwargs': {'chips_per_host_bounds': [2, 4, 1]}}
        """
        options, platform = self.accelerator.compile_options, self.accelerator.platform
        if options is None:
            raise UserError(
                f"{self.name}: XLA has no description of {self.accelerator.title}, so nothing can be compiled for it; "
                f"plan without compiling, or give its target_config in a file that ${ENVIRONMENT_VARIABLE} names"
            )
        if "topology_prefix" in options:
            kwargs = dict(options.get("kwargs", {}))
            bounds = (*self.topology, 1, 1)[:3]
            if self.num_hosts == 1 and bounds != _HOST_BOUNDS:
                kwargs["chips_per_host_bounds"] = list(bounds)
            name = f"{options['topology_prefix']}:{'x'.join(map(str, self.topology))}"
            return {"platform": platform, "topology_name": name, "kwargs": kwargs}
        if "target_config" in options:
            config = {"gpu_device_info": options["target_config"], "platform_name": '"CUDA"'}
            grid = f"1x{self.num_hosts}x{self.num_chips // self.num_hosts}"  # slices x hosts x GPUs of one
            kwargs = {"target_config": _text_format(config), "topology": grid}
            return {"platform": platform, "topology_name": self.name, "kwargs": kwargs}
        return {"platform": platform, "topology_name": "", "kwargs": {}}


def _text_format(message: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key} {{ {_text_format(value)} }}" if isinstance(value, Mapping) else f"{key}: {value}"
        for key, value in message.items()
    )


def find_target(name: str, accelerators: Mapping[str, Accelerator] | None = None) -> Target:
    """Find the target of a name, in capitals or not.

    A TPU slice is typed as its shape, "v5e:4x4", as a number of chips, "v5e:16", or as its accelerator type,
    "v5litepod-16", "v5p-32", whose number is of TensorCores for v2, v3, v4, v5p and 7x: "v5p-32" has 16 chips. GPUs are
    typed as "h100", "h100:8", "h100x8", "8xh100"; "a100" has 40 GB. An accelerator alone is the smallest size that is
    sold.

    Args:
        name: Name as typed.
        accelerators: Accelerators to choose from. None: `load_accelerators()`.

    Raises:
        UserError: if the name is unknown, with names that are near, or the size is not sold, with sizes that are.

    Example:
        >>> [find_target(name).name for name in ("v5litepod-16", "V5p-8", "Ironwood", "8 x H100", "a100")]
        ['v5e:4x4', 'v5p:2x2x1', 'tpu7x:2x2x1', 'h100:8', 'a100-40']
    """
    accelerators = load_accelerators() if accelerators is None else accelerators
    names = {alias: known for known in accelerators.values() for alias in (known.name, *known.aliases)}
    spelled = name.strip().lower().replace("×", "x")
    spelled = re.sub(r"\s*(:)\s*|(?<=\d)\s*(x)\s*|\s+(x)\s*(?=\d)", r"\1\2\3", spelled)
    spelled = re.sub(r"[\s_]+", "-", spelled)
    for head, mark, size in _splits(spelled):
        accelerator = names.get(head) or names.get(re.sub(r"^((google|cloud|nvidia|tpu)-)+", "", head))
        if accelerator is not None:
            return _sized(accelerator, mark, size, name)
    alone = re.sub(r"^\d+x|[:-].*$", "", spelled)
    near = difflib.get_close_matches(spelled, names) or difflib.get_close_matches(alone, names, cutoff=0.5)
    meant = " or ".join(dict.fromkeys(names[alias].name for alias in near))
    raise UserError(
        f"{name!r} is no target that is known{f' (did you mean {meant}?)' if meant else ''}, expected one such as "
        "v5e:2x2, v5p-8, h100:8 or cpu: the verb `targets` lists them"
    )


def _splits(spelled: str) -> Iterator[tuple[str, str, str]]:
    """Yield the ways to read a name as (accelerator, mark, size); "rtx4090x2" holds two marks that could be the one."""
    yield spelled, "", ""
    for found in re.finditer(r"(?=([:x-])(\d+(?:x\d+)*)$)", spelled):
        yield spelled[: found.start()], found[1], found[2]
    if found := re.fullmatch(r"(\d+)[x-](.+)", spelled):
        yield found[2], ":", found[1]


def slices(accelerator: Accelerator) -> list[Target]:
    """Return a target for every size that is sold, ascending.

    Example:
        >>> [target.name for target in slices(load_accelerators()["v5e"])][:3]
        ['v5e:1x1', 'v5e:2x2', 'v5e:2x4']
    """
    return [_target(accelerator, size) for size in accelerator.sizes]


def _target(accelerator: Accelerator, size: tuple[int, ...]) -> Target:
    name = accelerator.name if size == (1,) else f"{accelerator.name}:{'x'.join(map(str, size))}"
    topology = size if accelerator.platform == "tpu" else ()
    return Target(name=name, accelerator=accelerator, num_chips=math.prod(size), topology=topology)


def _sized(accelerator: Accelerator, mark: str, size: str, typed: str) -> Target:
    sold = slices(accelerator)
    if not size:
        return sold[0]

    def shape(dims: tuple[int, ...]) -> list[int]:
        return sorted(size for size in dims if size > 1)

    dims = tuple(map(int, size.split("x")))
    chips = math.prod(dims)
    if len(dims) > 1:  # 4x2 is 2x4, and 2x2 is 2x2x1
        found = [target for target in sold if target.topology and shape(target.topology) == shape(dims)]
    else:
        chips = chips / accelerator.type_number_per_chip if mark == "-" else chips
        found = [target for target in sold if target.num_chips == chips]
    if found:
        return found[0]
    below = [target for target in sold if target.num_chips <= chips][-1:]
    above = [target for target in sold if target.num_chips >= chips and target not in below][:1]
    near = " or ".join(f"{t.name} ({t.num_chips} chip{'s' if t.num_chips > 1 else ''})" for t in below + above)
    raise UserError(
        f"{typed!r} is no size that {accelerator.title} is sold in, expected such as {near}: `targets --family "
        f"{accelerator.name}` lists all, and other `sizes` can be given in a file that ${ENVIRONMENT_VARIABLE} names"
    )


def this_machine(devices: Sequence[Any] | None = None, accelerators: Mapping[str, Accelerator] | None = None) -> Target:
    """Return the target that this process runs on.

    Args:
        devices: Devices to describe; of several TPU slices the first counts. None: all of JAX's.
        accelerators: Accelerators that are known. None: `load_accelerators()`.

    Raises:
        UserError: if the accelerator at hand is not known.

    Example:
        >>> this_machine().name
        'cpu'
    """
    import jax

    accelerators = load_accelerators() if accelerators is None else accelerators
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu":
        return _target(accelerators["cpu"], (1,))
    kind = devices[0].device_kind
    found = [known for known in accelerators.values() if kind.lower() in map(str.lower, known.device_kinds)]
    if not found:
        raise UserError(
            f"the devices at hand are {kind!r}, expected a kind that is known: add it as an accelerator with "
            f"device_kinds = [{kind!r}] to a file that ${ENVIRONMENT_VARIABLE} names"
        )
    if found[0].platform != "tpu":
        return _target(found[0], (len(devices),))
    first = getattr(devices[0], "slice_index", 0)
    coords = [device.coords for device in devices if getattr(device, "slice_index", 0) == first]
    spans = tuple(max(along) - min(along) + 1 for along in zip(*coords, strict=True))
    return _target(found[0], spans[: len(found[0].sizes[0])])
