"""Settings of a script as a JSON file: written, and read again."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value, read_json


@dataclass(frozen=True)
class SettingsOptions:
    """Settings in a file."""

    config: Path | None = None
    """JSON file of settings to start from: one that --save-config wrote, or config.json of a run. Flags override it."""
    save_config: Path | None = None
    """JSON file to write the settings to."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings by name, from a file of them or from a run's config.json.

    Raises:
        UserError: if there is no such file, or it holds no settings.
    """
    content = read_json(path, "settings", {}, "give another --config")
    if content is None:
        raise UserError(f"--config is {path}, and there is no such file: --save-config {path} writes one")
    inner = content.get("config")
    return inner if isinstance(inner, dict) and "description" in content else content


def write_settings(path: Path, config: Any) -> None:
    """Write the fields of a Config.

    Raises:
        UserError: if the file cannot be written.
    """
    write_atomically(path, json.dumps(plain_value(dataclasses.asdict(config)), indent=2) + "\n")
