"""accelnet: train Flax models on whatever XLA compiles for, and know what they will do before you rent it."""

from typing import TYPE_CHECKING

from accelnet.lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from accelnet import cluster as cluster
    from accelnet import data as data
    from accelnet import models as models
    from accelnet import objectives as objectives
    from accelnet import ops as ops
    from accelnet import optim as optim
    from accelnet import runtime as runtime
    from accelnet import tracking as tracking
    from accelnet.artifact.load import load as load
    from accelnet.artifact.load import refresh as refresh
    from accelnet.artifact.model import Model as Model
    from accelnet.artifact.prediction import Prediction as Prediction
    from accelnet.choosing.cross_validate import cross_validate as cross_validate
    from accelnet.cli.entry import main as main
    from accelnet.compressing.compress import compress as compress
    from accelnet.errors import DivergenceError as DivergenceError
    from accelnet.errors import Interrupted as Interrupted
    from accelnet.errors import LostProcessError as LostProcessError
    from accelnet.errors import PreemptedError as PreemptedError
    from accelnet.errors import UserCodeError as UserCodeError
    from accelnet.errors import UserError as UserError
    from accelnet.evaluating.assess import assess as assess
    from accelnet.experiment import Experiment as Experiment
    from accelnet.exporting.export import export as export
    from accelnet.exporting.exported import Exported as Exported
    from accelnet.planning.plan import plan as plan
    from accelnet.training.evaluate import evaluate as evaluate
    from accelnet.training.events import EarlyStopping as EarlyStopping
    from accelnet.training.events import Event as Event
    from accelnet.training.events import Every as Every
    from accelnet.training.fit import fit as fit
    from accelnet.training.initial import Initial as Initial
    from accelnet.training.replay import replay as replay
    from accelnet.training.replayed import Replay as Replay
    from accelnet.training.run import Run as Run
    from accelnet.training.verify import verify as verify
    from accelnet.version import __version__ as __version__

# The same once more for who runs and does not check: importing all of it takes jax, Flax and over a second.
_HOMES = {
    "accelnet": ("cluster", "data", "models", "objectives", "ops", "optim", "runtime", "tracking"),
    "accelnet.artifact.load": ("load", "refresh"),
    "accelnet.artifact.model": ("Model",),
    "accelnet.artifact.prediction": ("Prediction",),
    "accelnet.choosing.cross_validate": ("cross_validate",),
    "accelnet.cli.entry": ("main",),
    "accelnet.compressing.compress": ("compress",),
    "accelnet.errors": (
        "DivergenceError", "Interrupted", "LostProcessError", "PreemptedError", "UserCodeError", "UserError",
    ),
    "accelnet.evaluating.assess": ("assess",),
    "accelnet.experiment": ("Experiment",),
    "accelnet.exporting.export": ("export",),
    "accelnet.exporting.exported": ("Exported",),
    "accelnet.planning.plan": ("plan",),
    "accelnet.training.evaluate": ("evaluate",),
    "accelnet.training.events": ("EarlyStopping", "Event", "Every"),
    "accelnet.training.fit": ("fit",),
    "accelnet.training.initial": ("Initial",),
    "accelnet.training.replay": ("replay",),
    "accelnet.training.replayed": ("Replay",),
    "accelnet.training.run": ("Run",),
    "accelnet.training.verify": ("verify",),
    "accelnet.version": ("__version__",),
}  # fmt: skip
__getattr__, __dir__, __all__ = _lazy_names(__name__, _HOMES)
