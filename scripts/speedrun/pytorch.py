"""A recipe in PyTorch, as a process of its own: `python scripts/speedrun/pytorch.py DIRECTORY SEED eager|compiled`.

DIRECTORY has `task.json`, the name of the task and its config, and `rows.npz`, the rows that accelnet's experiment
trains and tests on, ready for the network. The score on the test rows goes to standard output as one line of JSON.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Settings = dict[str, Any]


class Convolution(nn.Module):
    """A convolution of 3x3 pixels, whose weights are a matrix [out, in * 9], as Muon wants them."""

    def __init__(self, width: int, features: int, stride: int) -> None:
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.empty(features, 9 * width)), stride
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Convolve images [batch, channels, height, width], whose channels lie side by side."""
        kernel = self.weight.view(len(self.weight), 3, 3, -1).permute(0, 3, 1, 2)
        return functional.conv2d(inputs, kernel, stride=self.stride, padding=1)


def images(config: Settings) -> nn.Module:
    """Return the network of `accelnet.models.CNN`, for images [batch, channels, height, width]."""
    strided = config.get("halve", "max") == "strides"
    layers: list[nn.Module] = []
    width, side = 1, config["side"]
    for features in config["channels"]:
        for number in range(config.get("num_convolutions", 1)):
            stride = 2 if strided and number == 0 else 1
            layers += [Convolution(width, features, stride), nn.BatchNorm2d(features), nn.ReLU()]
            width = features
        layers += [] if strided else [nn.MaxPool2d(2)]
        side = math.ceil(side / 2) if strided else side // 2
    if config.get("head", "flatten") == "average":
        layers += [nn.AdaptiveAvgPool2d(1)]
        side = 1
    layers += [nn.Flatten()]
    width *= side * side
    for features in config.get("dense", (128,)):
        layers += [nn.Dropout(config["dropout"]), nn.Linear(width, features), nn.ReLU()]
        width = features
    return nn.Sequential(*layers, nn.Dropout(config["dropout"]), nn.Linear(width, 10)).to(
        memory_format=torch.channels_last
    )


class Characters(nn.Module):
    """The network of `accelnet.models.RNN` for tokens [batch, steps], with logits [batch, symbols, steps]."""

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config["num_symbols"], 128)
        hidden, layers = config["hidden_features"], config["num_layers"]
        self.lstm = nn.LSTM(128, hidden, layers, batch_first=True, dropout=config["dropout"] if layers > 1 else 0.0)
        self.dropout, self.output = nn.Dropout(config["dropout"]), nn.Linear(hidden, config["num_symbols"])

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits of each step's next symbol."""
        return self.output(self.dropout(self.lstm(self.embedding(tokens))[0])).transpose(1, 2)


def augmented(inputs: Tensor, config: Settings) -> Tensor:
    """Mirror half of the images where the recipe does, shift each, and make a square of it gray."""
    count, _, height, width = inputs.shape
    if config["flip"]:
        inputs = torch.where(torch.rand(count, 1, 1, 1) < 0.5, inputs.flip(3), inputs)
    if most := config.get("crop", 0):
        padded = functional.pad(inputs, (most, most, most, most))
        rows = torch.randint(2 * most + 1, (count, 1)) + torch.arange(height)
        columns = torch.randint(2 * most + 1, (count, 1)) + torch.arange(width)
        which = torch.arange(count)[:, None, None]
        inputs = padded[which, 0, rows[:, :, None], columns[:, None, :]][:, None]
    if size := config.get("cutout", 0):
        down, across = torch.randint(height, (2, count, 1, 1, 1))
        lines, places = torch.arange(height)[:, None] - down, torch.arange(width) - across
        inside = (lines >= -(size // 2)) & (lines < size - size // 2)
        inside &= (places >= -(size // 2)) & (places < size - size // 2)
        inputs = inputs.masked_fill(inside, 0.0)
    return inputs


def schedule(progress: float, warmup: float) -> float:
    """Return the factor of the rate: it rises, then falls along half a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def optimizers_of(model: nn.Module, config: Settings) -> list[torch.optim.Optimizer]:
    """Return AdamW, which makes matrices and kernels alone smaller, or Muon for these and AdamW for the others."""
    rate, decay = config["learning_rate"], config["weight_decay"]
    is_muon = config.get("optimizer") == "muon"
    weights = [p for p in model.parameters() if p.ndim > 1]
    matrices = [p for p in weights if is_muon and p.shape[1] != 9]  # of more than one input channel
    groups = [
        {"params": [p for p in weights if not any(p is one for one in matrices)], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, fused=True)]
    if matrices:
        found += [torch.optim.Muon(matrices, rate, decay, adjust_lr_fn="match_rms_adamw")]
    return found


def train(config: Settings, rows: dict[str, Tensor], seed: int, *, compiled: bool) -> nn.Module:
    """Train a network by the recipe, and return it, or the average of its weights where the recipe keeps one."""
    torch.manual_seed(seed)
    inputs, targets = rows["train_inputs"], rows["train_targets"]
    model = images(config) if config["images"] else Characters(config)
    optimizers, batch = optimizers_of(model, config), config["batch_size"]
    decay = config.get("average", 0.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
    steps, per_epoch = round(config["epochs"] * (len(inputs) // batch)), len(inputs) // batch

    def loss_of(some: Tensor, wanted: Tensor) -> Tensor:
        some = augmented(some, config).contiguous(memory_format=torch.channels_last) if config["images"] else some
        return functional.cross_entropy(model(some), wanted, label_smoothing=config.get("smoothing", 0.0))

    loss_function: Callable[..., Tensor] = torch.compile(loss_of) if compiled else loss_of
    order = torch.randperm(len(inputs))
    for step in range(steps):
        if step and step % per_epoch == 0:
            order = torch.randperm(len(inputs))
        for group in (group for one in optimizers for group in one.param_groups):
            group["lr"] = config["learning_rate"] * schedule(step / steps, config.get("warmup", 0.05))
        picked = order[step % per_epoch * batch :][:batch]
        model.zero_grad()
        loss_function(inputs[picked], targets[picked]).backward()
        if clip := config.get("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
        if average is not None:
            average.update_parameters(model)
    return model if average is None else average.module


@torch.inference_mode()
def score(model: nn.Module, config: Settings, rows: dict[str, Tensor]) -> float:
    """Return the test accuracy, of images and their mirror images where the recipe asks; or bits per character."""
    model.eval()
    found = 0.0
    for some, wanted in zip(rows["test_inputs"].split(256), rows["test_targets"].split(256), strict=True):
        outputs = model(some)
        if config["mirrored"]:
            outputs = outputs + model(some.flip(3))
        if config["images"]:
            found += (outputs.argmax(1) == wanted).sum().item()
        else:
            found += functional.cross_entropy(outputs, wanted, reduction="sum").item() / math.log(2)
    return found / rows["test_targets"].numel()


def main(directory: str, seed: str, kind: str) -> None:
    """Train once, and print the score."""
    config = json.loads((Path(directory) / "task.json").read_text())
    with np.load(Path(directory) / "rows.npz") as arrays:
        rows = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for name, written in (("optimizer", ("adamw", "muon")), ("cell", ("lstm",))):
        if config.get(name, written[0]) not in written:
            raise SystemExit(f"the recipe's {name} is {config[name]}: here it is written for {' and '.join(written)}")
    if config["images"]:
        rows |= {name: rows[name].permute(0, 3, 1, 2).contiguous() for name in ("train_inputs", "test_inputs")}
        config["side"] = rows["train_inputs"].shape[2]
    model = train(config, rows, int(seed), compiled=kind == "compiled")
    print(json.dumps({"score": score(model, config, rows)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
