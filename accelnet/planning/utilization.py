"""Model FLOPs utilization: the share of the devices' peak that a training run's matrix products amount to."""

from dataclasses import dataclass

import jax

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.planning.targets.accelerators import Accelerator
from accelnet.planning.targets.target import this_machine
from accelnet.report.numbers import percent
from accelnet.training.flops import step_flops


@dataclass(frozen=True)
class Utilization:
    """How well devices were used.

    Attributes:
        flops_per_second: FLOPs of the plain program's matrix products, recomputation left out.
    """

    share: float
    flops_per_second: float
    accelerator: Accelerator
    num_devices: int

    def __str__(self) -> str:
        return f"MFU {percent(self.share)} of {self.num_devices} x {self.accelerator.title}"


def utilization(
    experiment: Experiment, examples_per_second: float, num_devices: int | None = None
) -> Utilization | None:
    """Return how well the devices at hand were used; None on a CPU and on devices whose peak is not known.

    Args:
        experiment: Experiment that was trained.
        examples_per_second: Examples per second in training.
        num_devices: Number of devices that trained. None: all of the run's.

    Example:
        >>> import jax
        >>> utilization(None, 1.0) is None or jax.default_backend() != "cpu"
        True

    Source: Chowdhery et al., "PaLM", 2022, appendix B.
    """
    if jax.default_backend() == "cpu":
        return None
    try:
        accelerator = this_machine().accelerator
    except UserError:
        return None
    plain = experiment if experiment.remat == "none" else experiment.replace(remat="none")
    count = num_devices or jax.device_count()
    rate = step_flops(plain).product_flops * examples_per_second / experiment.order.batch_size
    peak = accelerator.peak_flops.get(experiment.precision, accelerator.peak_flops["float32"])
    return Utilization(rate / (peak * count), rate, accelerator, count)
