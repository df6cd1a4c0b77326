"""The verb `summary`."""

from accelnet.cli.devices import DeviceOptions
from accelnet.cli.script import Config, Script
from accelnet.terminal import show


def summary(script: Script, config: Config, devices: DeviceOptions) -> None:
    """Show layers, shapes, parameters and FLOPs; with --mesh also the placement on devices."""
    from accelnet.models.summary import summary

    experiment = script.experiment(config)
    show(summary(experiment.model, experiment.sample_inputs()))
    if devices.mesh is not None:
        import jax

        from accelnet.parallel.layout import abstract_layout
        from accelnet.training.state import init_state, placed
        from accelnet.training.table import placement_table

        state = jax.eval_shape(lambda: init_state(experiment, experiment.seed))
        layout = abstract_layout(devices.mesh, devices.strategy, experiment.placement_rules)
        show(placement_table(layout, placed(layout, state)))
