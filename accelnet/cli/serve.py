"""The verb `serve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from accelnet.cli.devices import DeviceOptions
from accelnet.cli.models import load_model
from accelnet.cli.script import Script


@dataclass(frozen=True)
class ServerOptions:
    """Where a model is served, and how much the server takes on."""

    host: str = "127.0.0.1"
    """Address to listen at: this machine alone, or 0.0.0.0 for every network. There is no authentication."""
    port: int = 8000
    """Port; 0 takes any that is free."""
    batch_size: int = 64
    """Most rows that are computed at once."""
    max_steps: int = 256
    """Most steps of a sequence."""
    max_body_mib: int = 16
    """Largest body of a request, in MiB."""
    max_queue: int = 1024
    """Most rows that wait; more are refused."""
    timeout: float = 10.0
    """Seconds that a client may take to send a request, and a request to be answered."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class ServeOptions(ServerOptions):
    """By which weights of a run a server predicts, where, and how much it takes on."""

    workdir: Path = tyro.MISSING
    """Directory of the run."""
    best: bool = False
    """Take the checkpoint with the best validation metric instead of the newest."""


def serve(script: Script, options: ServeOptions, devices: DeviceOptions) -> None:
    """Answer requests over HTTP by the weights of a run."""
    limits_of(options)
    serve_model(load_model(script, options.workdir, options.best, devices), options)


def limits_of(options: ServerOptions) -> Any:
    """Return the limits of a server.

    Raises:
        UserError: if one is out of its range.
    """
    from accelnet.arguments import integer, number
    from accelnet.serving.limits import Limits

    for name in ("batch_size", "max_steps", "max_body_mib", "max_queue"):
        integer(f"--{name.replace('_', '-')}", getattr(options, name), 1)
    number("--timeout", options.timeout, above=0)
    return Limits(
        batch_rows=options.batch_size,
        steps=options.max_steps,
        body_bytes=options.max_body_mib << 20,
        queue_rows=options.max_queue,
        seconds=options.timeout,
    )


def serve_model(model: Any, options: ServerOptions) -> None:
    """Serve a model until a signal ends it.

    Args:
        model: The `Model`.
        options: Where, and how much the server takes on.

    Raises:
        UserError: if the port cannot be had, or the extra `serve` is not installed.
    """
    from accelnet import runtime
    from accelnet.serving.server import serve

    runtime.prepare()
    serve(model, options.host, options.port, limits_of(options), progress=not options.quiet)
