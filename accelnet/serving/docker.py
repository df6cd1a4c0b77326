"""A folder from which Docker builds an image that serves a model."""

import base64
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from accelnet.artifact.model import Model
from accelnet.disk import write_atomically
from accelnet.errors import UserError

SERVER = ("uvicorn", "httptools", "uvloop", "orjson")
_MODEL = "model.accelnet"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DOCKERFILE = """\
FROM python:{python}-slim

# accelnet builds its kernels for the processor that it runs on; without a compiler it predicts too, but slower.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 accelnet

COPY requirements.txt {wheel} /tmp/
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt /tmp/{wheel}

USER accelnet
WORKDIR /home/accelnet
COPY {model} {model}

ENV JAX_PLATFORMS=cpu
EXPOSE 8000
# The first start builds the kernels and compiles all shapes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \\
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
CMD ["accelnet", "serve", "{model}", "--host", "0.0.0.0", "--port", "8000", "--quiet"]
"""


def write_docker(model: Model, folder: Path) -> tuple[str, ...]:
    """Write what `docker build` needs: a Dockerfile, pinned requirements, this accelnet as a wheel, and the artifact.

    The image runs as a user without rights, on the CPU. The artifact's versions of jax, flax and numpy are pinned, and
    all other packages as they are installed here, if those are installed here too.

    Args:
        model: The model.
        folder: Folder to write into; it is made if it is not there.

    Returns:
        Names of the files.

    Raises:
        UserError: if the folder cannot be written, or the artifact is of another accelnet.
    """
    here, made_with = metadata.version("accelnet"), model.config["versions"]["accelnet"]
    if here != made_with:
        raise UserError(f"{model.path} is of accelnet {made_with}, and this is {here}: refresh it first")
    name, wheel = _wheel(here)
    contents = {
        "Dockerfile": _DOCKERFILE.format(
            python=f"{sys.version_info.major}.{sys.version_info.minor}", wheel=name, model=_MODEL
        ).encode(),
        "requirements.txt": "".join(f"{name}=={version}\n" for name, version in _pins(model).items()).encode(),
        name: wheel,
        _MODEL: model.path.read_bytes(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(contents)


def _pins(model: Model) -> Mapping[str, str]:
    """Return versions by package: those of the artifact, and of all else that accelnet needs where it fits these."""
    own = {name: version for name, version in model.config["versions"].items() if name != "accelnet"}
    own["jaxlib"] = own["jax"]
    left = [*SERVER]
    if all(_version(name) == version for name, version in own.items()):
        left.append("accelnet")
    found, seen = dict(own), {"accelnet", *own}
    while left:
        name = left.pop()
        if (version := _version(name)) is None:
            continue
        seen.add(name)
        if name != "accelnet":
            found.setdefault(name, version)
        needed = (one for one in metadata.requires(name) or () if "extra ==" not in one)
        names = [re.sub("[._-]+", "-", match[0]).lower() for one in needed if (match := _NAME.match(one))]
        left += [one for one in names if one not in seen]
    return dict(sorted(found.items()))


def _wheel(version: str) -> tuple[str, bytes]:
    """Return name and content of a wheel of this accelnet: on an index the name may be another package's."""
    package = Path(__file__).resolve().parents[1]
    told = f"accelnet-{version}.dist-info"
    files = {
        f"accelnet/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files[f"{told}/METADATA"] = (metadata.distribution("accelnet").read_text("METADATA") or "").encode()
    files[f"{told}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: accelnet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{told}/entry_points.txt"] = b"[console_scripts]\naccelnet = accelnet.cli.tool:tool\n"
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items()]
    files[f"{told}/RECORD"] = "".join([*lines, f"{told}/RECORD,,\n"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, so that the same files give the same bytes
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return f"accelnet-{version}-py3-none-any.whl", buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
