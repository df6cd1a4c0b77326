"""Others' pruning of a trained network, without training after it: Torch-Pruning's, where it is installed.

PyTorch builds the network from its description, with the trained weights and statistics. Of each importance the largest
network within a share of the products is kept, at one ratio for all layers, Torch-Pruning's default.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bench_systems import layers as describe

_HALVINGS = 12  # of the interval in which the ratio lies
_ROWS = 1000  # in one call


class Pruned(NamedTuple):
    """A smaller network of another system.

    Attributes:
        name: System and importance.
        answer: Function from rows, an array of the host, to outputs, one too.
        share: Products of one row, as a share of the original's.
    """

    name: str
    answer: Callable[[np.ndarray], np.ndarray]
    share: float


def is_installed() -> bool:
    """Say whether there is anything to compare with."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torch_pruning"))


def pruned(
    layers: tuple[Any, ...], weights: describe.Weights, rows: np.ndarray, targets: np.ndarray, factor: float
) -> Iterator[Pruned]:
    """Prune to `factor` times fewer products by each importance.

    Args:
        layers: Description of the network, of dense layers, convolutions and batch norms.
        weights: Its weights and running statistics by path.
        rows: A batch of inputs, for shapes and for the importance that wants gradients.
        targets: Their classes.
        factor: Products of the original over those that are left, at least.
    """
    import torch
    import torch_pruning as tp

    images = tensor_of(rows)
    importances = {
        "magnitude": tp.importance.GroupMagnitudeImportance(p=2),
        "Taylor": tp.importance.GroupTaylorImportance(),
    }

    def smaller(importance: Any, ratio: float) -> tuple[Any, float]:
        model = original(layers, weights)
        whole, _ = tp.utils.count_ops_and_params(model, images[:1])
        torch.nn.functional.cross_entropy(model(images), torch.from_numpy(targets).long()).backward()
        outputs = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        tp.pruner.BasePruner(
            model, images[:1], importance=importance, pruning_ratio=ratio, ignored_layers=[outputs]
        ).step()
        left, _ = tp.utils.count_ops_and_params(model, images[:1])
        return model, left / whole

    for name, importance in importances.items():
        low, high, best = 0.0, 1.0, None
        for _ in range(_HALVINGS):
            ratio = (low + high) / 2
            model, share = smaller(importance, ratio)
            if share * factor <= 1:
                high, best = ratio, (model, share)
            else:
                low = ratio
        if best is not None:
            yield Pruned(f"Torch-Pruning {name}", answer_of(best[0]), best[1])


def original(layers: tuple[Any, ...], weights: describe.Weights) -> Any:
    """Return the network, whose dense layers read pixels channel by channel, as Torch-Pruning takes them to lie."""
    import torch
    from torch import nn

    from bench_systems.pytorch import network

    model = network(layers, weights).eval()
    for index, layer in enumerate(layers):
        if isinstance(layer, describe.Flatten):
            model[index] = nn.Flatten()
            dense = model[index + 1]
            by_pixel = dense.weight.detach().reshape(dense.out_features, layer.height * layer.width, -1)
            with torch.no_grad():
                dense.weight.copy_(by_pixel.transpose(1, 2).flatten(1))
    return model


def tensor_of(rows: np.ndarray) -> Any:
    """Return rows as `bench_systems.pytorch` takes them: images mirrored, channels first."""
    import torch

    if rows.ndim == 4:
        rows = rows[:, ::-1, ::-1].transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(rows))


def answer_of(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a network as a function of arrays."""
    import torch

    @torch.inference_mode()
    def answer(rows: np.ndarray) -> np.ndarray:
        model.eval()
        return np.concatenate([model(tensor_of(rows[i : i + _ROWS])).numpy() for i in range(0, len(rows), _ROWS)])

    return answer
