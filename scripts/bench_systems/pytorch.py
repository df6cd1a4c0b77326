"""PyTorch, eager and compiled, written as its performance tuning guide recommends.

Convolutions run in channels_last on a network that is mirrored: with images and kernels flipped in height and width,
the padding that accelnet puts behind an image's last pixel before a strided convolution lies in front of its first one,
which is where `padding=1` of nn.Conv2d puts it. So the same function needs no padding of its own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench_systems import layers as describe
from bench_systems.cases import Arrays, Case, forward_loss
from bench_systems.system import System, timed


class _Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Flatten(nn.Module):
    """Put pixels in rows in the order in which they lie in memory, so that nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class _Residual(nn.Module):
    def __init__(self, layer: describe.Residual, weights: describe.Weights) -> None:
        super().__init__()
        self.body = network(layer.body, weights)
        self.strides, self.extra = layer.strides, layer.extra

    def forward(self, x: Tensor) -> Tensor:
        # Mirrored, the pixels that a stride picks are counted from the other end; images have even sides.
        first = self.strides - 1
        skip = x[..., first :: self.strides, first :: self.strides] if first else x
        skip = nn.functional.pad(skip, (0, 0, 0, 0, 0, self.extra)) if self.extra else skip
        return nn.functional.relu(self.body(x) + skip)


class _Recurrent(nn.Module):
    def __init__(self, layer: describe.Recurrent, weights: describe.Weights) -> None:
        super().__init__()
        stack = describe.recurrent_weights(layer, weights)
        sizes = stack[0][0].input_kernel.shape[0], stack[0][0].recurrent_kernel.shape[0]
        kind = nn.LSTM if layer.cell == "lstm" else nn.GRU
        self.rnn = kind(*sizes, layer.num_layers, batch_first=True, bidirectional=layer.bidirectional)
        self.output = layer.output
        self.num_directions = len(stack[0])
        hidden = sizes[1]
        # PyTorch gives each product a bias of its own. Two that are only ever added would move twice as far under
        # Adam as one, another training than accelnet's: the second stays at zero. Of a GRU's only the new gate's
        # is a bias of its own, and the gradients of the others are set to zero before each update.
        self.tied: list[tuple[nn.Parameter, int]] = []
        for i, directions in enumerate(stack):
            for one, suffix in zip(directions, ("", "_reverse"), strict=False):
                _fill(getattr(self.rnn, f"weight_ih_l{i}{suffix}"), one.input_kernel.T)
                _fill(getattr(self.rnn, f"weight_hh_l{i}{suffix}"), one.recurrent_kernel.T)
                _fill(getattr(self.rnn, f"bias_ih_l{i}{suffix}"), one.bias)
                second = getattr(self.rnn, f"bias_hh_l{i}{suffix}")
                if one.recurrent_bias is None:
                    _fill(second, np.zeros_like(one.bias))
                    second.requires_grad_(False)
                else:
                    _fill(second, np.concatenate([np.zeros(2 * hidden, np.float32), one.recurrent_bias]))
                    self.tied.append((second, 2 * hidden))

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, tuple):
            x = nn.utils.rnn.pack_padded_sequence(*x, batch_first=True, enforce_sorted=False)
        outputs, last = self.rnn(x)
        if self.output == "steps":
            return outputs
        last = last[0] if isinstance(last, tuple) else last
        return torch.cat(tuple(last[-self.num_directions :]), dim=-1)


def _fill(parameter: nn.Parameter, array: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(np.ascontiguousarray(array)))


def network(layers: tuple[Any, ...], weights: describe.Weights) -> nn.Sequential:
    """Build a network with its initial weights."""
    modules, pixels = [], None
    for layer in layers:
        modules.append(_module(layer, weights, pixels))
        if not isinstance(layer, describe.Activation):
            pixels = layer if isinstance(layer, describe.Flatten) else None
    return nn.Sequential(*modules)


def _module(layer: Any, weights: describe.Weights, pixels: describe.Flatten | None) -> nn.Module:
    match layer:
        case describe.Dense(path):
            kernel = weights[f"{path}/kernel"]
            module = nn.Linear(*kernel.shape)
            if pixels is not None:  # of a mirrored image
                image = kernel.reshape(pixels.height, pixels.width, -1, kernel.shape[1])
                kernel = np.ascontiguousarray(image[::-1, ::-1]).reshape(kernel.shape)
            _fill(module.weight, kernel.T)
            _fill(module.bias, weights[f"{path}/bias"])
        case describe.Convolution(path, strides, depthwise):
            kernel, bias = weights[f"{path}/kernel"], weights.get(f"{path}/bias")
            size, _, inputs, outputs = kernel.shape
            if size % 2 == 0 or (size == 1 and strides > 1):
                raise NotImplementedError(f"{layer} with a kernel of {size} pixels is not what padding mirrors")
            groups = outputs if depthwise else 1
            module = nn.Conv2d(
                inputs * groups, outputs, size, strides, padding=size // 2, groups=groups, bias=bias is not None
            )
            _fill(module.weight, kernel[::-1, ::-1].transpose(3, 2, 0, 1))
            if bias is not None:
                _fill(module.bias, bias)
        case describe.BatchNorm(path):
            module = nn.BatchNorm2d(weights[f"{path}/scale"].size, eps=1e-5, momentum=0.1)
            _fill(module.weight, weights[f"{path}/scale"])
            _fill(module.bias, weights[f"{path}/bias"])
            if f"{path}/mean" in weights:  # of a network that is trained
                _fill(module.running_mean, weights[f"{path}/mean"])
                _fill(module.running_var, weights[f"{path}/var"])
        case describe.Activation(name):
            module = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[name]()
        case describe.MaxPool():
            module = nn.MaxPool2d(2)
        case describe.Average():
            module = _Average()
        case describe.Flatten():
            module = _Flatten()
        case describe.Residual():
            module = _Residual(layer, weights)
        case describe.Embedding(path):
            module = nn.Embedding(*weights[f"{path}/embedding"].shape)
            _fill(module.weight, weights[f"{path}/embedding"])
        case describe.Recurrent():
            module = _Recurrent(layer, weights)
        case _:
            raise AssertionError(layer)
    return module


def _batches(arrays: Arrays) -> list[tuple[Any, Tensor]]:
    inputs, targets = arrays.inputs, arrays.targets
    if inputs.ndim == 5:
        # Channels last in memory, seen as [B, C, H, W].
        images = torch.from_numpy(np.ascontiguousarray(inputs[:, :, ::-1, ::-1])).permute(0, 1, 4, 2, 3)
        inputs = list(images)
    else:
        inputs = list(torch.from_numpy(inputs))
    if arrays.lengths is not None:
        inputs = list(zip(inputs, torch.from_numpy(arrays.lengths).long(), strict=True))
    labels = torch.from_numpy(targets)
    return list(zip(inputs, labels if targets.dtype == np.float32 else labels.long(), strict=True))


def _loss(case: Case, outputs: Tensor, targets: Tensor) -> Tensor:
    if case.loss == "sigmoid":
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets)
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def make(case: Case, variant: str, arrays: Arrays) -> System:
    """Make the system "torch" or "torch_compile"."""
    compiled: Callable[..., Any] = torch.compile if variant == "torch_compile" else lambda function: function
    make_kind = {"train": _train, "population": _population, "inference": _inference}[case.kind]
    return make_kind(case, compiled, arrays)


def _system(restart: Callable[[], None], one: Callable[[Any], Tensor], arrays: Arrays) -> System:
    batches = _batches(arrays)

    def step(number: int) -> Tensor:
        return one(batches[number % len(batches)])

    def losses(num_steps: int) -> list[Any]:
        restart()
        return [step(number).detach().numpy().copy().tolist() for number in range(num_steps)]

    return System(losses, timed(step))


def _train(case: Case, compiled: Callable[..., Any], arrays: Arrays) -> System:
    model = network(case.layers, arrays.weights).to(memory_format=torch.channels_last)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tied = [pair for module in model if isinstance(module, _Recurrent) for pair in module.tied]
    optimizer: Any = None
    loss_of = compiled(lambda inputs, targets: _loss(case, model(inputs), targets))

    def restart() -> None:
        nonlocal optimizer
        model.load_state_dict(first)
        optimizer = torch.optim.Adam(trained, lr=case.learning_rate, eps=1e-8, fused=True)

    def one(batch: Any) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(*batch)
        loss.backward()
        for bias, end in tied:
            bias.grad[:end] = 0.0
        optimizer.step()
        return loss

    restart()
    return _system(restart, one, arrays)


def _population(case: Case, compiled: Callable[..., Any], arrays: Arrays) -> System:
    members = [network(case.layers, {name: a[i] for name, a in arrays.weights.items()}) for i in range(case.members)]
    stacked, buffers = torch.func.stack_module_state(members)
    template = members[0].to("meta")
    params: dict[str, Tensor] = {}
    optimizer: Any = None

    def loss(params: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        return _loss(case, torch.func.functional_call(template, (params, buffers), (inputs,)), targets)

    gradient = compiled(torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(0, None, None)))

    def restart() -> None:
        nonlocal optimizer, params
        params = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in stacked.items()}
        optimizer = torch.optim.Adam(params.values(), lr=case.learning_rate, eps=1e-8, fused=True)

    def one(batch: Any) -> Tensor:
        with torch.no_grad():
            grads, losses = gradient(params, *batch)
        for name, parameter in params.items():
            parameter.grad = grads[name]
        optimizer.step()
        return losses

    restart()
    return _system(restart, one, arrays)


def _inference(case: Case, compiled: Callable[..., Any], arrays: Arrays) -> System:
    model = network(case.layers, arrays.weights).to(memory_format=torch.channels_last).eval()
    predict, batches = compiled(model), _batches(arrays)

    @torch.inference_mode()
    def step(number: int) -> Tensor:
        return predict(batches[number % len(batches)][0])

    def losses(num_steps: int) -> list[float]:
        return [forward_loss(case, step(n).numpy(), arrays.targets[n]) for n in range(num_steps)]

    return System(losses, timed(step))
