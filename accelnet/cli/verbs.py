"""The verbs, in the order in which --help lists them."""

from accelnet.cli.compare import compare
from accelnet.cli.compare_runs import compare_runs
from accelnet.cli.compress import compress
from accelnet.cli.cross_validate import cross_validate
from accelnet.cli.data import data
from accelnet.cli.evaluate import evaluate
from accelnet.cli.export import export
from accelnet.cli.find_batch import find_batch
from accelnet.cli.plan import plan, targets
from accelnet.cli.predict import predict
from accelnet.cli.replay import replay
from accelnet.cli.serve import serve
from accelnet.cli.summary import summary
from accelnet.cli.train import train
from accelnet.cli.tune import tune
from accelnet.cli.verify import verify

VERBS = (
    train, evaluate, predict, export, serve, tune, find_batch, compare_runs, compare, cross_validate, compress, data,
    summary, plan, targets, verify, replay,
)  # fmt: skip
