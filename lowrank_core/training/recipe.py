"""How factors are trained: the settings, what the loss compares, varied images, balanced and random factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lowrank_core.errors import InvalidData, InvalidSettings
from lowrank_core.layers.data import Dataset, Inputs, first_axes, tensors
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.plans.plan import RankPlan

TEMPERATURE = 4.0
"""Of the distillation (Hinton et al.): soft answers tell more than the largest one."""

ADAM_RATE, ADAM_CP_RATE = 2e-3, 5e-4
"""Of Adam, which first spoils what it then wins back. Loss on samples held back, at the start, after one and eight
epochs of mixtures: ResNet-20, CP at 30 % of the multiplies, thoroughly corrected, 1,170 images in batches of 32: SGD
0.675, 0.706, 0.577 (at 0.008 0.872 after one), Adam 0.675, 1.006, 0.629. The digits CNN, spatial SVD at a tenth of its
parameters, 20 epochs from 4.531: SGD 0.573, Adam at 0.0005 0.972, at 0.002 0.542."""

RATE, CP_RATE = 0.02, 0.004
"""Of SGD. CP factors break at what others bear: loss on held-back training images after one epoch of 3,600, ResNet-20,
CP3 at 30 % of the multiplies, start 1.286: rate 0.001 1.001, 0.002 0.984, 0.004 0.966, 0.02 1.283, 0.05 2.604;
gradients clipped at 10 instead of 1 at 0.004 1.882. Spatial SVD, start 3.949: 0.01 2.739, 0.02 2.617, 0.05 2.579. A
plan that loses little needs the smaller one: the digits CNN at half its multiplies, five epochs from 0.063: 0.01 0.051,
0.02 0.050, 0.05 never below the start."""

RUN_ON_RATE = 0.5
"""Share of the learning rate to which a run that goes on after its end rises once more."""

Loss = Literal["distill", "labels", "both"]
Train = Literal["factors", "everything"]
Augment = Literal["none", "shift", "flip"]
Optimizer = Literal["sgd", "adam"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How factors are trained. The metadata of each field says what a form needs: label, bounds or choices, help.

    >>> Settings(epochs=5).learning_rate is None     # chosen by the plan's methods
    True
    """

    epochs: int = field(
        default=9, metadata={"label": "Epochs", "min": 1, "max": 1000, "help": "Passes over the training samples."}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "label": "Learning rate",
            "min": 1e-6,
            "max": 10.0,
            "help": f"After the warm-up. Left empty: {CP_RATE} where CP factors take part, else {RATE}; of "
            f"Adam {ADAM_CP_RATE} and {ADAM_RATE}.",
        },
    )
    loss: Loss = field(
        default="distill",
        metadata={
            "label": "Learn from",
            "choices": {"distill": "the dense network", "labels": "the labels", "both": "both"},
            "help": "The dense network's answers need no labels.",
        },
    )
    mix: bool = field(
        default=True,
        metadata={
            "label": "Mix the inputs",
            "help": "Learn the dense network's answers to mixtures of two samples, new ones in every pass, in place of "
            "the samples themselves, which it may know by heart. Where labels teach, or inputs are no numbers (tokens, "
            "masks), they stay as they are.",
        },
    )
    train: Train = field(
        default="factors",
        metadata={
            "label": "What learns",
            "choices": {"factors": "the factors", "everything": "everything"},
            "help": "Everything: the layers that stayed dense learn as well.",
        },
    )
    from_scratch: bool = field(
        default=False,
        metadata={
            "label": "From scratch",
            "help": "Start from random factors of the plan's ranks; with everything, from a random network.",
        },
    )
    augment: Augment = field(
        default="none",
        metadata={
            "label": "Vary the images",
            "choices": {"none": "no", "shift": "shifts", "flip": "shifts and mirror images"},
            "help": "For images (N, C, H, W) of floating point: moved by at most an eighth of each side.",
        },
    )
    optimizer: Optimizer = field(
        default="sgd",
        metadata={
            "label": "Optimiser",
            "choices": {"sgd": "SGD", "adam": "Adam"},
            "help": "SGD with momentum, or Adam: each has learning rates of its own.",
        },
    )
    batch: int = field(
        default=32, metadata={"label": "Batch, samples", "min": 1, "max": 65536, "help": "Samples in one step."}
    )
    warm_up: float = field(
        default=0.1,
        metadata={
            "label": "Warm-up, share of steps",
            "min": 0.0,
            "max": 0.9,
            "help": "Share of all steps in which the rate rises.",
        },
    )
    clip: float = field(
        default=1.0,
        metadata={
            "label": "Clip gradients",
            "min": 1e-3,
            "max": 1e6,
            "help": "Largest norm of all gradients.",
        },
    )
    patience: int = field(
        default=10,
        metadata={
            "label": "Patience, epochs",
            "min": 1,
            "max": 1000,
            "help": "Stop after so many epochs without a better one, counted from the half of them on.",
        },
    )
    seed: int = field(default=0, metadata={"label": "Seed", "min": 0, "max": 2**31, "help": "Of order and start."})
    run_on: tuple[int, ...] = field(
        default=(),
        metadata={
            "label": "Run on, epochs",
            "min": 1,
            "max": 1000,
            "help": "More epochs after the end, from where it stopped: the rate rises to half, and falls again.",
        },
    )

    def __post_init__(self) -> None:
        """Raises InvalidSettings for a value outside its bounds."""
        for item in fields(self):
            value, about = getattr(self, item.name), item.metadata
            if "choices" in about and value not in about["choices"]:
                raise InvalidSettings(
                    f"{item.name} must be one of {', '.join(about['choices'])}, but got {item.name}={value!r}."
                )
            for number in value if isinstance(value, tuple) else [value]:
                if "min" in about and number is not None and not about["min"] <= number <= about["max"]:
                    raise InvalidSettings(
                        f"{item.name} must be {about['min']:g} to {about['max']:g}, but got {item.name}={number}."
                    )

    @property
    def passes(self) -> int:
        """All epochs, those that are run on included."""
        return self.epochs + sum(self.run_on)

    def rate(self, plan: RankPlan) -> float:
        """The learning rate: as set, or that of the optimiser, smaller where CP factors take part."""
        if self.learning_rate is not None:
            return self.learning_rate
        words = {word for _, choice in plan.choices for word in choice.method.split("_")}
        cp = any(word.startswith("cp") for word in words)
        if self.optimizer == "adam":
            return ADAM_CP_RATE if cp else ADAM_RATE
        return CP_RATE if cp else RATE


@dataclass(frozen=True, slots=True)
class Objective:
    """What outputs are compared with. classes: outputs are logits; else numbers, compared by their squared distance.

    axis: the axis of the classes, 1 as in PyTorch's losses, or -1 where the targets have the other axes.
    """

    loss: Loss
    classes: bool
    axis: int = 1

    @classmethod
    def of(cls, loss: Loss, outputs: Tensor, targets: Tensor | None) -> Objective:
        """The objective for a batch of the dense outputs and targets; raises InvalidData where they do not fit."""
        if loss != "distill" and targets is None:
            raise InvalidData("train_data() has no labels to learn from; learn from the dense network (distill).")
        if targets is None:
            return cls(loss, outputs.ndim > 1 and outputs.shape[1] > 1)
        if targets.is_floating_point():
            if loss != "distill" and targets.shape[1:] != outputs.shape[1:]:
                raise InvalidData(
                    f"targets of train_data() must have the shape of the outputs, {tuple(outputs.shape[1:])} a sample, "
                    f"but got {tuple(targets.shape[1:])}; correct them, or learn from the dense network (distill)."
                )
            return cls(loss, False)
        axis = -1 if outputs.ndim > 2 and targets.shape[1:] == outputs.shape[1:-1] else 1
        if loss == "distill":
            return cls(loss, outputs.ndim > 1, axis)
        if outputs.ndim < 2 or targets.shape[1:] != outputs.movedim(axis, -1).shape[1:-1]:
            raise InvalidData(
                f"labels of train_data() must be one integer for each answer, but a sample has targets "
                f"{tuple(targets.shape[1:])} for outputs {tuple(outputs.shape[1:])}; "
                "learn from the dense network (distill)."
            )
        low, high, classes = int(targets.min()), int(targets.max()), outputs.shape[axis]
        if low < 0 or high >= classes:
            raise InvalidData(
                f"labels must be 0..{classes - 1}, one for each of the network's {classes} outputs, but train_data() "
                f"has {low}..{high}; correct the labels, or learn from the dense network (distill)."
            )
        return cls(loss, True, axis)

    def __call__(self, outputs: Tensor, dense: Tensor, targets: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The mean loss of a batch; weights (N,): what the loss of each sample is multiplied by."""
        losses = []
        if self.loss != "labels":
            losses.append(self._distance(outputs, dense, weights))
        if self.loss != "distill":
            assert targets is not None
            losses.append(self._error(outputs, targets, weights))
        return torch.stack(losses).mean()

    def _distance(self, outputs: Tensor, dense: Tensor, weights: Tensor | None) -> Tensor:
        if not self.classes:
            return _squares(outputs, dense, weights)
        ours, theirs = (F.log_softmax(self._rows(x) / TEMPERATURE, dim=1) for x in (outputs, dense))
        if weights is None:
            return F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * TEMPERATURE**2
        apart = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(1)
        return _mean(apart, weights) * TEMPERATURE**2

    def _error(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        if not self.classes:
            return _squares(outputs, targets.to(outputs.dtype), weights)
        rows, labels = self._rows(outputs), targets.flatten().long()
        if weights is None:
            return F.cross_entropy(rows, labels)
        return _mean(F.cross_entropy(rows, labels, reduction="none"), weights)

    def _rows(self, outputs: Tensor) -> Tensor:
        """Outputs as (answers, classes), whatever axis the classes are on."""
        return outputs.movedim(self.axis, -1).flatten(0, -2)


def _squares(outputs: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.mse_loss(outputs, wanted)
    return _mean(F.mse_loss(outputs, wanted, reduction="none"), weights)


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean over N samples, of the mean of what each of them has, times its weight."""
    return (weights * losses.reshape(len(weights), -1).mean(1)).mean()


def rate_at(step: int, steps: int, warm_up: float) -> float:
    """Share of the learning rate at a step: a linear rise over the warm-up, then a cosine to zero (arXiv 1608.03983).

    >>> [round(rate_at(step, 8, 0.25), 2) for step in (0, 1, 2, 5, 7)]
    [0.5, 1.0, 1.0, 0.5, 0.07]
    """
    rising = round(steps * warm_up)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def varied(inputs: Inputs, augment: Augment, generator: torch.Generator) -> Inputs:
    """Every image tensor of the inputs moved, and with "flip" half of them mirrored; zeros come in from outside."""
    if augment == "none":
        return inputs
    return tree_map(lambda t: _moved(t, augment == "flip", generator) if _is_images(t) else t, inputs)


def mixed(data: Dataset, generator: torch.Generator) -> Dataset:
    """Every sample mixed with another of them, x = l x1 + (1 - l) x2, l uniform; weights too; without targets.

    Every input of a sample is mixed with the same l. For a network to be taught another's answers to it (Zhang et al.,
    arXiv 1710.09412; Beyer et al., arXiv 2106.05237).
    """
    count = len(data)
    other, share = torch.randperm(count, generator=generator), torch.rand(count, generator=generator)

    def mixture(values: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return values
        parts = share.to(values).reshape([-1 if at == axis else 1 for at in range(values.ndim)])
        return parts * values + (1 - parts) * values.index_select(axis, other.to(values.device))

    axes = iter((data.axes or first_axes(data.inputs)).inputs)
    inputs = tree_map(lambda leaf: mixture(leaf, next(axes)) if isinstance(leaf, Tensor) else leaf, data.inputs)
    weights = None if data.weights is None else mixture(data.weights, 0)
    return replace(data, inputs=inputs, targets=None, weights=weights)


def unmixed(data: Dataset, settings: Settings) -> str:
    """Why the samples are not mixed as the settings ask for, as the end of a sentence; "" where they are, or need not.

    Tokens, places and lengths have no mixture, and a mask that is one belongs to no sample.
    """
    if not settings.mix:
        return ""
    if settings.loss != "distill":
        return "labels teach, and a mixture has none"
    inputs = tensors(data.inputs)
    for number, (values, axis) in enumerate(zip(inputs, (data.axes or first_axes(data.inputs)).inputs, strict=True), 1):
        which = f"input {number}" if len(inputs) > 1 else "the input"
        if axis is None:
            continue
        if not values.is_floating_point():
            return f"{which} holds no numbers to mix but tokens, places or a mask ({values.dtype})"
        if values.isinf().any() or (len(inputs) > 1 and bool(((values == 0) | (values == 1)).all())):
            return f"{which} is a mask"
    return ""


def check_images(data: Dataset) -> None:
    """Raises InvalidData where no input is an image that could be varied."""
    if not any(map(_is_images, tensors(data.inputs))):
        shapes = ", ".join(f"{tuple(t.shape[1:])} {t.dtype}" for t in tensors(data.inputs))
        raise InvalidData(
            f"only images can be varied (augment), (N, C, H, W) of floating point, but a sample is {shapes}; switch it "
            "off."
        )


def _is_images(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def _moved(images: Tensor, mirror: bool, generator: torch.Generator) -> Tensor:
    n, channels, *size = images.shape
    reach = [max(1, extent // 8) for extent in size]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows, columns = (
        torch.randint(2 * r + 1, (n, 1), generator=generator) + torch.arange(extent)
        for r, extent in zip(reach, size, strict=True)
    )
    if mirror:
        columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns.flip(1), columns)
    samples, planes = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]


def balance(chain: nn.Sequential, sweeps: int = 20) -> None:
    """Give the factors of a chain the same scale, in place: what the chain computes stays the same.

    Each channel between two factors is scaled so that both weigh the same there, which for an SVD puts the square root
    of each singular value on either side; channels that meet the same weights count as one. Unequal factors need
    unequal learning rates.
    """
    weights = [_blocks(part) for part in chain]
    with torch.no_grad():
        for _ in range(sweeps if len(weights) > 2 else 1):
            for first, second in pairwise(weights):
                before = first.square().sum((2, 3)).flatten()
                after = second.square().sum((1, 3)).sqrt().flatten()
                copies = len(before) // len(after)
                before = before.view(-1, copies).sum(1).sqrt()
                ratio = (after / before).sqrt()
                scale = torch.where((before > 0) & (after > 0), ratio, torch.ones_like(ratio))
                first.mul_(scale.repeat_interleave(copies).reshape(len(first), -1, 1, 1))
                second.div_(scale.reshape(len(second), 1, -1, 1))


def _blocks(part: nn.Module) -> Tensor:
    """The weight as a view (groups, out / groups, in / groups, window)."""
    weight, spec = part.get_parameter("weight").detach(), LayerSpec.of(part)
    if spec.table or spec.transposed:
        return weight.view(spec.groups, -1, spec.out_channels // spec.groups, weight[0, 0].numel()).transpose(1, 2)
    return weight.view(spec.groups, len(weight) // spec.groups, weight.shape[1], -1)


def randomise(chain: nn.Sequential, scale: float, generator: torch.Generator) -> None:
    """Random factors, in place, whose product answers about as loudly as a weight of that root mean square row norm."""
    with torch.no_grad():
        for part in chain:
            for name, value in part.named_parameters(recurse=False):
                if name == "bias":
                    value.zero_()
                else:
                    fan_in = 1 if isinstance(part, nn.Embedding) else LayerSpec.of(part).fan_in
                    value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) / fan_in**0.5)
        chain[-1].get_parameter("weight").mul_(scale)
