"""Judging: which outputs of a network are scored, by which metric, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidData, LowRankError
from lowrank_core.layers.data import Dataset, Outputs, call, evaluating, run
from lowrank_core.networks.twin import twin
from lowrank_core.scoring.metrics import (
    AGREEMENT,
    METRICS,
    OF_PROBABILITIES,
    RESEMBLANCE,
    TOP1,
    Metric,
    are_probabilities,
    are_shares,
    class_axis_of,
    of_probabilities,
)

SAMPLES, FEWER = 3, 2
"""On which the outputs are looked at, and once more: an output of so many samples has the form of each of them."""

SOME, MANY = 8, 128
"""Samples at a time, and in all, on which outputs that could be probabilities must be."""

DISTURBANCE = 0.1
"""Of every weight, relative, where it is tried which outputs they reach."""

UNREACHED = "reached by no weight"
NO_BATCH = "without a batch axis"
STATE = "a state of the network, no answer"

Names = tuple[str, ...]

_STATES = ("past_key_values", "hidden_states", "hidden_state", "attentions", "mems", "cache", "cache_params")
_TOWERS = ("text_model_output", "vision_model_output", "audio_model_output")
"""Of transformers: what the parts of a network answered, of which its embeddings were made."""

_ENCODED = ("last_hidden_state", "pooler_output")
"""The answers of an encoder; a state of the network where there are others."""

_SCORES = ("logit", "logits", "probs", "probabilities", "softmax")
_NUMBERS = {"embed", "embeds", "embedding", "embeddings", "hidden", "state", "states", "feature", "features"}
_NUMBERS |= {"pooler", "pooled", "box", "boxes", "bbox", "landmark", "landmarks", "coords"}


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a network. shape: of one sample; left: why it cannot be judged, "" where it can."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    left: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """The outputs that are judged, by name, and the metric of each. why: how they came to be chosen, and the metric.

    outputs: all that the network has, in its order.
    """

    names: Names
    metric: Metric
    why: str
    outputs: tuple[Output, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.names)} ({self.why})"

    @property
    def told(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"outputs": self.names, "metric": self.metric.name, "why": self.why}

    @property
    def right_or_wrong(self) -> bool:
        """Whether each sample is right or wrong, so that samples can be counted."""
        counted = self.metric.share and self.metric.class_axis is not None
        counted = counted and all(len(output.shape) == 1 for output in self.outputs if output.name in self.names)
        return counted or self.metric.yes_above is not None


def judge(
    model: nn.Module,
    data: Dataset,
    given: Metric | None = None,
    chosen: Sequence[str | int] = (),
    *,
    where: str = "eval_data",
    remedy: str = "give metric, a function (outputs, targets) -> float",
) -> Judged:
    """What is judged of a network on these samples, by the metric given or by the one that fits.

    chosen: outputs by name or place; without any, with labels the one that fits them, else all of floating point that
    weights reach, but for caches, hidden states and attentions. Without a metric top-1 where labels are class indices,
    R2 where targets are numbers of the output's shape, and without labels agreement with the dense network where all
    outputs are class scores of two or more columns, else R2 against it. where, remedy: what refusals call the data, and
    what to do.

    Raises InvalidData, with the names there are or the remedy, where nothing can be judged so.
    """
    part = data.pick(torch.arange(SAMPLES) % len(data))
    found = run(model, part)
    outputs = _looked_at(found)
    if len(found) > 1:
        reached = _reached(model, part, found)
        outputs = tuple(o if o.left or o.name in reached else replace(o, left=UNREACHED) for o in outputs)
        fewer = run(model, part.pick(slice(0, FEWER)))
        same = {name for name, value in fewer.items() if name in found and value.shape[1:] == found[name].shape[1:]}
        outputs = tuple(o if o.left or o.name in same else replace(o, left=NO_BATCH) for o in outputs)
    names: Names = tuple(output.name for output in outputs if not output.left)
    able = len(names)
    why = "all outputs of floating point that weights reach" if len(names) > 1 else "the only one that can be"
    if chosen:
        names, why = tuple(dict.fromkeys(_named(choice, tuple(found)) for choice in chosen)), "chosen"
    elif len(found) == 1:
        names, why = tuple(found), "the only output"
    meant = chosen or (given is None and data.targets is None)  # a metric of a person's own may know any form
    bad = [o for o in outputs if (o.name in names and o.left in (UNREACHED, NO_BATCH) and meant) or not names]
    if bad:
        raise InvalidData(
            "an output that is judged must hold numbers for each sample that weights reach, but "
            f"{', '.join(_against(output, found[output.name]) for output in bad)}."
        )
    labels = None if given is not None and given.label_free else data.targets
    if labels is not None and not chosen and len(names) > 1:
        names, why = (_fitting(names, found, labels),), "of several outputs the one that fits the labels"
    _check_numbers(given, names, found, remedy)
    if given is None:
        judged = {name: found[name] for name in names}

        def advice() -> str:
            return remedy if part.targets is None else remedy + _that_fit(judged, part.targets)

        given, reason = _default(model, data.targets, judged, able == 1, where, advice)
        why = f"{why}; {reason}"
    else:
        _check_columns(given, names, found)
    shares = of_probabilities(given)
    if shares is not None and all(_probabilities(model, data, name, given, found) for name in names):
        given, why = shares, f"{why}; all of its numbers are probabilities, not logits"
    return Judged(names, given, why, outputs)


def _probabilities(model: nn.Module, data: Dataset, name: str, metric: Metric, found: Outputs) -> bool:
    """Whether an output that would be taken for logits holds probabilities: seen on a few samples, then on many."""
    if not are_probabilities(metric, found[name]):
        return False
    parts = (data.pick(slice(at, at + SOME)) for at in range(0, min(len(data), MANY), SOME))
    return all(are_probabilities(metric, run(model, part, (name,))[name]) for part in parts)


def _against(output: Output, values: Tensor) -> str:
    of_all = f", {tuple(values.shape)} for {SAMPLES} samples" if output.left == NO_BATCH else ""
    return f"{output.name} is {output.left}{of_all}"


def _looked_at(found: Outputs) -> tuple[Output, ...]:
    """Every output with what its form and its name say against it."""
    left = {name: _left(name, value) for name, value in found.items()}
    answers = [name for name in found if not left[name] and name not in _ENCODED]
    for name in found:
        if name == "last_hidden_state" and answers:
            left[name] = left[name] or STATE
    return tuple(
        Output(name, tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."), left[name])
        for name, value in found.items()
    )


def _left(name: str, value: Tensor) -> str:
    words = name.split(".")
    if not value.is_floating_point():
        return "not of floating point"
    if value.ndim == 0 or len(value) != SAMPLES:
        return NO_BATCH
    state = any(word.endswith(_STATES) and word != "last_hidden_state" for word in words)
    return STATE if state or any(word in _TOWERS for word in words) else ""


def _named(choice: str | int, names: Names) -> str:
    """The output that a person means: its name, or its place."""
    if choice in names:
        return str(choice)
    place = int(choice) if str(choice).removeprefix("-").isdecimal() else len(names)
    if not -len(names) <= place < len(names):
        raise InvalidData(
            f"there is no output {choice!r}; choose among {', '.join(names)}, or by its place, 0 to {len(names) - 1}."
        )
    return names[place]


# ---- which outputs weights reach ------------------------------------------------------------------------------------


def _reached(model: nn.Module, part: Dataset, found: Outputs) -> set[str]:
    """The outputs that depend on a weight: by the graph of their gradients, else by disturbing all weights.

    All of them where none seems to.
    """
    reached = _with_gradients(model, part)
    if not found.keys() <= reached:
        reached |= _changed(model, part, found)
    return reached or set(found)


def _with_gradients(model: nn.Module, part: Dataset) -> set[str]:
    copied = twin(model)
    for module in copied.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_floating_point():
                setattr(module, name, nn.Parameter(value.detach(), requires_grad=True))
    try:
        with evaluating(copied), torch.enable_grad():
            return {name for name, value in call(copied, part.inputs).items() if value.requires_grad}
    except LowRankError:
        raise
    except Exception:  # whatever an operator says that has no gradient: then the weights are disturbed
        return set()


def _changed(model: nn.Module, part: Dataset, found: Outputs) -> set[str]:
    """The outputs that change when every weight does; a copy of the weights is there while it runs."""
    copied, generator = twin(model), torch.Generator().manual_seed(0)
    disturbed: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_floating_point():
                if id(value) not in disturbed:
                    noise = torch.randn(value.shape, generator=generator).to(value)
                    disturbed[id(value)] = nn.Parameter(value.detach() * (1 + DISTURBANCE * noise) + 1e-3 * noise)
                setattr(module, name, disturbed[id(value)])
    with suppress(InvalidData):  # a network that cannot be run so tells nothing
        others = run(copied, part)
        return {name for name, value in found.items() if name in others and not _equal(value, others[name])}
    return set(found)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


# ---- which of them fits the labels ----------------------------------------------------------------------------------


def _fitting(names: Names, found: Outputs, targets: Tensor) -> str:
    """The output that fits the targets best; of equals the one called logits, then the first."""
    return max(names, key=lambda name: (_fit(found[name], targets), _words(name)[-1:] == ["logits"]))


def _fit(output: Tensor, targets: Tensor) -> int:
    """How well an output fits: 3 a score for each class that occurs, 2 for more, or the shape, 1 one number, 0 not."""
    shape, wanted = output.shape[1:], targets.shape[1:]
    if not targets.is_floating_point() and output.ndim == targets.ndim + 1 and targets.numel():
        for axis in (1, -1):
            if output.shape[axis] > 1 and output.movedim(axis, -1).shape[1:-1] == wanted:
                classes, asked = output.shape[axis], int(targets.max()) + 1
                if classes >= asked:
                    return 3 if classes == asked else 2
    if shape == wanted and (targets.is_floating_point() or output.ndim > 1):
        return 2
    return int(_flat(output) and _flat(targets))


def _flat(values: Tensor) -> bool:
    """One number for each sample, (N,) or (N, 1)."""
    return values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)


# ---- which metric ---------------------------------------------------------------------------------------------------


def _default(
    model: nn.Module, targets: Tensor | None, outputs: Outputs, alone: bool, where: str, advice: Callable[[], str]
) -> tuple[Metric, str]:
    """The metric of outputs for which a person has named none, and why it is that one; advice: what to do else."""
    if targets is None:
        reasons = [_class_scores(model, name, value, alone=alone) for name, value in outputs.items()]
        if all(reasons):
            return AGREEMENT, f"class scores, for {', '.join(dict.fromkeys(reasons))}"
        return RESEMBLANCE, "numbers, not class scores"
    shapes = {name: tuple(value.shape[1:]) for name, value in outputs.items()}
    one_bit = (
        not targets.is_floating_point() and targets.numel() and int(targets.min()) >= 0 and int(targets.max()) <= 1
    )
    if one_bit and _flat(targets) and all(map(_flat, outputs.values())):
        return METRICS["binary"], "one number, and labels 0 and 1"
    if targets.ndim == 1 and not targets.is_floating_point():
        for value in outputs.values():
            _check_classes(value, targets, where, advice)
        return TOP1, "class indices"
    if targets.is_floating_point() and all(
        value.shape[1:] == targets.shape[1:] or (_flat(value) and _flat(targets)) for value in outputs.values()
    ):
        return METRICS["r2"], "targets are numbers of its shape"
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise InvalidData(
        f"targets must be class indices, (N,) integers, to be scored by top-1, or numbers of the output's shape, to be "
        f"scored by R2, but got {tuple(targets.shape)} {targets.dtype} for a sample's {told}; {advice()}."
    )


def _that_fit(outputs: Outputs, targets: Tensor) -> str:
    """The metrics known by name that take such outputs and targets, in words; "" where none does."""

    def takes(metric: Metric, values: Tensor) -> bool:
        axis = metric.axis_of(values)
        if metric.class_axis is not None and (axis is None or values.shape[axis] < 2):
            return False
        if metric.class_axis is not None and not metric.label_free:
            assert axis is not None
            if targets.is_floating_point() or int(targets.max()) >= values.shape[axis]:
                return False
        try:
            metric.score(values, metric.targets_of(values, targets))
        except Exception:  # whatever a metric says of forms that it does not know
            return False
        return True

    named = [name for name in METRICS if not name.endswith(OF_PROBABILITIES)]  # which are taken unasked
    fit = [name for name in named if all(takes(METRICS[name], values) for values in outputs.values())]
    return f"; those known by name that fit: {', '.join(fit)}" if fit else ""


def _check_classes(output: Tensor, targets: Tensor, where: str, advice: Callable[[], str]) -> None:
    """Outputs must be one number per class, and every label one of these classes."""
    if output.ndim != 2 or output.shape[1] < 2:
        raise InvalidData(
            f"outputs must be (N, classes) to be scored by top-1, but for one sample the model "
            f"returns {(1, *output.shape[1:])}; {advice()}."
        )
    low, high, classes = int(targets.min()), int(targets.max()), output.shape[1]
    if low < 0 or high >= classes:
        raise InvalidData(
            f"labels must be 0..{classes - 1}, one for each of the model's {classes} outputs, but "
            f"{where} has {low}..{high}; correct the labels, or {advice()}."
        )


def _class_scores(model: nn.Module, name: str, values: Tensor, *, alone: bool) -> str:
    """Why an output without labels is taken for scores of classes; "" where it is not.

    Its name says so; or it holds shares that add up to one; or it is the only output and nothing in its name speaks
    against it: (N, classes), or (N, tokens, words) with as many words as a table of the network has rows. The network
    may say that the axis is as long as what it is given.
    """
    axis, words = class_axis_of(values), _words(name)
    if axis is None or values.shape[axis] < 2:
        return ""
    if any(word in _SCORES for word in words):
        return "it is called so"
    if _distributions(values.double(), axis):
        return "each adds up to one"
    lengths = getattr(model, "outputs_of_lengths", ())
    if not alone or name in lengths or any(word in _NUMBERS for word in words):
        return ""
    if values.ndim == 2:
        return f"it is the only one, with {values.shape[1]} columns"
    rows = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    return "it holds a number for each word" if values.ndim == 3 and values.shape[2] in rows else ""


def _distributions(values: Tensor, axis: int) -> bool:
    """Whether numbers along the axis are probabilities, or their logarithms."""
    if not bool(values.isfinite().all()):
        return False
    return are_shares(values, axis) or are_shares(values.exp(), axis)


def _check_numbers(metric: Metric | None, names: Iterable[str], outputs: Outputs, remedy: str) -> None:
    """Whole numbers are answers already, such as the classes of tokens, and no scores of anything."""
    known = metric is None or metric in METRICS.values() or metric is RESEMBLANCE
    whole = [name for name in names if known and not (outputs[name].is_floating_point() or outputs[name].is_complex())]
    if whole:
        kind = str(outputs[whole[0]].dtype).removeprefix("torch.")
        raise InvalidData(
            f"an output that is judged must hold numbers of floating point, such as scores, but {whole[0]} holds whole "
            f"ones ({kind}), which are answers already; choose other outputs, or {remedy}."
        )


def _check_columns(metric: Metric, names: Iterable[str], outputs: Outputs) -> None:
    """Agreement compares the largest of several scores: an output with one is never the largest of anything."""
    for name in names if metric is AGREEMENT else ():
        axis = class_axis_of(outputs[name])
        if axis is None or outputs[name].shape[axis] < 2:
            raise InvalidData(
                f"agreement compares class scores of two or more columns, but for one sample {name} is "
                f"{(1, *outputs[name].shape[1:])}; name another metric, such as r2, or choose other outputs."
            )


def _words(name: str) -> list[str]:
    """The words in an output's name, in small letters."""
    return "".join(letter if letter.isalpha() else " " for letter in name.lower()).split()
