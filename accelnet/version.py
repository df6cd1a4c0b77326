"""The version of accelnet that is installed."""

from importlib import metadata

__version__ = metadata.version("accelnet")
