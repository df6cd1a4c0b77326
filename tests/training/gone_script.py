"""toy_script.py, whose second process is hurt when all have joined and none has opened its devices."""

import os
import signal

import accelnet as an
from accelnet import cluster
from tests.training import toy_script

initialize = cluster.initialize


def initialize_and_be_hurt(*args, **options):
    several = initialize(*args, **options)
    if os.environ["JAX_PROCESS_ID"] == "1":
        signal.raise_signal(int(os.environ["NUMBER"]))
    return several


if __name__ == "__main__":
    cluster.initialize = initialize_and_be_hurt
    an.main(toy_script.experiment)
