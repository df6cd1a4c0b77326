"""Record what PyTorch's LSTM and GRU compute: `python scripts/record_pytorch.py`.

It writes tests/ops/pytorch_recurrence.npz, with which the tests compare, so that they need no PyTorch.
"""

from pathlib import Path

import numpy as np
import torch

BATCH, STEPS, FEATURES, HIDDEN = 4, 6, 3, 5
LENGTHS = [6, 1, 4, 3]


def weigh(array: torch.Tensor) -> torch.Tensor:
    """Add everything up, each number with another weight."""
    return (array * torch.cos(torch.arange(array.numel(), dtype=array.dtype)).reshape(array.shape)).sum()


def record(name: str, lengths: list[int] | None) -> dict[str, np.ndarray]:
    """Run a bidirectional layer forwards and backwards; return its arrays by name."""
    torch.manual_seed(0)
    layer = getattr(torch.nn, name)(FEATURES, HIDDEN, batch_first=True, bidirectional=True)
    inputs = torch.randn(BATCH, STEPS, FEATURES, requires_grad=True)
    if lengths is None:
        outputs, state = layer(inputs)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            inputs, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        outputs, state = layer(packed)
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=STEPS)
    states = dict(zip("hc", state if name == "LSTM" else (state,), strict=False))
    (weigh(outputs) + sum(weigh(array) for array in states.values())).backward()
    arrays = {"inputs": inputs, "outputs": outputs, **states} | dict(layer.named_parameters())
    gradients = {"inputs": inputs.grad} | {n: p.grad for n, p in layer.named_parameters()}
    arrays |= {f"gradient/{n}": gradient for n, gradient in gradients.items()}
    return {n: array.detach().numpy() for n, array in arrays.items()}


if __name__ == "__main__":
    recorded = {
        f"{name}/{kind}/{array}": value
        for name in ("LSTM", "GRU")
        for kind, lengths in (("full", None), ("ragged", LENGTHS))
        for array, value in record(name, lengths).items()
    }
    np.savez_compressed(
        Path(__file__).parents[1] / "tests/ops/pytorch_recurrence.npz", lengths=np.array(LENGTHS), **recorded
    )
