"""toy_script.py, whose second process is hurt when all have joined: before any has opened its devices, or after."""

import os
import signal

import accelnet as an
from accelnet import cluster
from accelnet.cli import devices
from tests.training import toy_script


def hurt_after(function):
    def called(*args):
        result = function(*args)
        if os.environ["JAX_PROCESS_ID"] == "1":
            signal.raise_signal(int(os.environ["NUMBER"]))
        return result

    return called


if __name__ == "__main__":
    if os.environ["MOMENT"] == "before":
        initialize = cluster.initialize
        cluster.initialize = lambda *args, **options: hurt_after(lambda: initialize(*args, **options))()
    else:
        devices.check_platform = hurt_after(devices.check_platform)
    an.main(toy_script.experiment)
