"""What tutorials train on images of 28x28 pixels: `python scripts/speedrun/tutorials.py DIRECTORY SEED keras|pytorch`.

"keras" is the network and the settings of keras.io's "Simple MNIST convnet", "pytorch" those of PyTorch's example
`mnist`, each on the rows of `rows.npz` in DIRECTORY. The test accuracy goes to standard output as one line of JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np


def keras(rows: dict[str, np.ndarray], seed: int) -> float:
    """Train 15 epochs of Adam, a tenth of the rows held out for validation.

    Source: https://keras.io/examples/vision/mnist_convnet
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    model.fit(
        rows["train_inputs"], rows["train_targets"], batch_size=128, epochs=15, validation_split=0.1, verbose=0
    )  # fmt: skip
    return float(model.evaluate(rows["test_inputs"], rows["test_targets"], verbose=0)[1])


def pytorch(rows: dict[str, np.ndarray], seed: int) -> float:
    """Train 14 epochs of Adadelta, at a rate that falls by 0.7 each.

    Source: https://github.com/pytorch/examples/blob/main/mnist/main.py
    """
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array) for name, array in rows.items()}
    inputs, targets = tensors["train_inputs"].permute(0, 3, 1, 2).contiguous(), tensors["train_targets"]
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(14):
        for picked in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[picked]), targets[picked]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        answers = [model(some.permute(0, 3, 1, 2)).argmax(1) for some in tensors["test_inputs"].split(1000)]
    return float((torch.cat(answers) == tensors["test_targets"]).float().mean())


def main(directory: str, seed: str, name: str) -> None:
    """Train once, and print the score."""
    with np.load(Path(directory) / "rows.npz") as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    print(json.dumps({"score": {"keras": keras, "pytorch": pytorch}[name](rows, int(seed))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
