"""Tables of facts about accelerators: how a file of them is read, checked and laid over another."""

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelnet.errors import UserError

_PLATFORMS = ("tpu", "cuda", "cpu")


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and 0 < value < math.inf


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)


def _is_size(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, str) and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", value) is not None)


_NUMBER = ("a positive number", _is_number)
_COUNT = ("a whole number, at least 1", _is_count)
_TEXT = ("a text", _is_text)
_TEXTS = ("a list of texts", _are(_is_text))
_TABLE = ("a table", lambda value: isinstance(value, dict))
REQUIRED = ("title", "platform", "vector_fp32_tflops", "memory_gib_per_device", "memory_gb_per_s", "chips_per_host")
# The fields of a table: what is expected, and the check.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "title": _TEXT,
    "platform": (f"one of {', '.join(_PLATFORMS)}", lambda value: value in _PLATFORMS),
    "aliases": _TEXTS,
    "device_kinds": _TEXTS,
    "devices_per_chip": _COUNT,
    "peak_bf16_tflops": _NUMBER,
    "peak_fp16_tflops": _NUMBER,
    "peak_tf32_tflops": _NUMBER,
    "peak_fp64_tflops": _NUMBER,
    "peak_fp8_tflops": _NUMBER,
    "peak_int8_tops": _NUMBER,
    "vector_fp32_tflops": _NUMBER,
    "memory_gib_per_device": _NUMBER,
    "memory_gb_per_s": _NUMBER,
    "matrix_tile": ("a list of 3 whole numbers", lambda value: _are(_is_count)(value) and len(value) == 3),
    "cores": _COUNT,
    "clock_ghz": _NUMBER,
    "num_links": _COUNT,
    "link_gb_per_s": _NUMBER,
    "link_domain": _COUNT,
    "network_gbit_per_s_per_host": _NUMBER,
    "chips_per_host": _COUNT,
    "type_number_per_chip": _COUNT,
    "sizes": (
        'a list of slices such as "2x4" of a TPU, or of numbers of GPUs of one host',
        lambda value: _are(_is_size)(value) and len(value) > 0 and len({type(size) for size in value}) == 1,
    ),
    "topology_prefix": _TEXT,
    "topology_options": _TABLE,
    "target_config": _TABLE,
    "usd_per_chip_hour": ("a number, at least 0", lambda value: value == 0 or _is_number(value)),
    "price_basis": _TEXT,
    "price_region": _TEXT,
    "price_date": _TEXT,
    "sources": _TEXTS,
}


def read_tables(content: bytes, path: str) -> dict[str, dict[str, Any]]:
    """Read the tables of accelerators of a file, by name.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        UserError: if it is no such file, or a field is unknown or of the wrong kind.
    """
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected TOML in UTF-8: {error}") from error
    tables = document.get("accelerators")
    if set(document) != {"accelerators"} or not isinstance(tables, dict):
        raise UserError(f"{path}: holds {', '.join(document) or 'nothing'}, expected [accelerators.NAME] tables alone")
    for name, facts in tables.items():
        if not isinstance(facts, dict) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
            raise UserError(
                f"{path}: [accelerators] holds {name!r}, expected tables, named in small letters, digits and dashes"
            )
        for key, value in facts.items():
            if key not in FIELDS:
                raise UserError(f"{path}: [accelerators.{name}] has {key!r}, expected one of {', '.join(FIELDS)}")
            expected, fits = FIELDS[key]
            if not fits(value):
                raise UserError(f"{path}: [accelerators.{name}] {key} is {value!r}, expected {expected}")
    return tables


def replaced(facts: dict[str, Any], given: dict[str, Any], path: str) -> dict[str, Any]:
    """Lay a table of the user's, from a file at `path`, over facts."""
    if "usd_per_chip_hour" in given:  # the old price's basis, region and date say nothing of it
        facts = {key: value for key, value in facts.items() if not key.startswith("price_")}
        facts["price_basis"] = f"from {Path(path).name}"
    nested = {
        key: {**facts.get(key, {}), **given[key]} for key in ("topology_options", "target_config") if key in given
    }
    return {**facts, "sources": [*facts.get("sources", []), path], **given, **nested}
