"""Answers that move: samples as what they are, and what both networks say to them, as a browser is told it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.layers.data import Dataset, first_axes, tensors
from lowrank_core.measure.answers import Answers, Pair
from lowrank_core.measure.depth import DepthErrors
from lowrank_core.workspace import Workspace
from pages.ui.bitmap import bitmap
from pages.ui.words import sizes

Form = Literal["image", "signal", "tokens", "numbers"]

COLOURS = (1, 3, 4)
"""Channels of a picture."""

MOST_PIXELS = 64
"""Of a side of a small picture."""

LEAST_PIXELS = 4
"""Of a side of what is taken for a picture."""

LEAST_POINTS = 16
"""Of a row of numbers that is drawn as a line."""

MOST_POINTS, MOST_LINES = 96, 4
"""Of a small line plot."""

MOST_TOKENS, MOST_LETTERS, MOST_NUMBERS = 48, 160, 6

RANGE_SAMPLES = 64
"""Leading samples that say how dark and light pictures are, so that a picture is the same after each release."""

HEIGHT = 100
"""Line plots are as high as this, in their own unit."""


def fields(workspace: Workspace, answers: Answers) -> dict[str, Any]:
    """Answers as the board takes them; samples are shown from the arrays that the network sees."""
    numbers = [pair.sample for pair in answers.pairs]
    try:
        form, shown, about = samples_shown(workspace, numbers)
    except Exception as error:  # of tensors of whatever kind; what is said to them is known all the same
        form, shown, about = "numbers", [{} for _ in numbers], f"These samples cannot be shown: {type(error).__name__}."
    name = _namer(workspace, answers)
    told = [_told(pair, answers, name, form) | sample for pair, sample in zip(answers.pairs, shown, strict=True)]
    return {
        "form": form,
        "about": about,
        "summary": _summary(workspace, answers),
        "changed": answers.changed,
        "samples": answers.samples,
        "shown": told,
    }


def depth_fields(found: DepthErrors) -> dict[str, Any]:
    """The error along the depth as the board takes it: infinite ones are told as None, with why."""
    errors = [
        [
            layer.name,
            *layer.finite,
            layer.why or ("not finite" if float("inf") in (layer.plain, layer.corrected) else ""),
        ]
        for layer in found.layers
    ]
    return {"samples": found.samples, "layers": errors}


def _summary(workspace: Workspace, answers: Answers) -> str:
    of = f" of {answers.output}" if len(workspace.judged.names) > 1 else ""
    counted = f"{answers.changed:,} of {answers.samples:,} measured samples"
    if answers.kind in ("numbers", "vector"):
        return f"{counted} moved by more than 1 % of the spread of dense answers{of}"
    return f"{counted} changed{' in at least one place' if answers.kind == 'places' else ''}{of}"


# ---- what the networks say ------------------------------------------------------------------------------------------


def _told(pair: Pair, answers: Answers, name: Callable[[int], str], form: Form) -> dict[str, Any]:
    """One sample's answers; name: of a class."""
    told: dict[str, Any] = {"sample": pair.sample, "changed": pair.changed}
    sides = (("dense", pair.dense), ("ours", pair.ours))
    if not pair.finite:
        return told | {"note": "the answer holds NaN or infinity"}
    match answers.kind:
        case "class" | "binary":
            told |= {side: [name(answer.label), f"{100 * answer.probability:.0f}\u202f%"] for side, answer in sides}
            if pair.target is not None and pair.target >= 0:
                told["target"] = name(pair.target)
        case "places":
            told["note"] = f"{pair.moved:,} of {pair.total:,} {'tokens' if form == 'tokens' else 'places'} changed"
            told["places"] = [[place.place, name(place.dense), name(place.ours)] for place in pair.places]
            told["left"] = pair.moved - len(pair.places)
        case "numbers":
            told |= {side: [_listed(answer.numbers), ""] for side, answer in sides}
        case "vector":
            told["note"] = "" if pair.cosine is None else f"cosine to the dense answer {pair.cosine:.4f}"
    return told


def _namer(workspace: Workspace, answers: Answers) -> Callable[[int], str]:
    """What a class goes by: its name, the text of a token where classes are tokens, yes or no, or its number."""
    labels, text = workspace.opened.preparation.labels, workspace.opened.preparation.text
    if len(labels) == answers.classes:
        return lambda number: labels[number] if 0 <= number < len(labels) else str(number)
    if answers.kind == "binary":
        return lambda number: "yes" if number else "no"
    tables = {module.num_embeddings for module in workspace.model.modules() if isinstance(module, nn.Embedding)}
    if text is not None and answers.kind == "places" and answers.classes in tables:
        return lambda number: _decoded(text, [number]) or str(number)
    return str


def _decoded(text: Callable[[Sequence[int]], str], numbers: Sequence[int]) -> str:
    """The text of some tokens; "" where a person's own function or a tokenizer cannot tell it."""
    try:
        return str(text(numbers))
    except Exception:  # of whatever kind; the numbers are shown instead
        return ""


# ---- what samples are -----------------------------------------------------------------------------------------------


def samples_shown(workspace: Workspace, numbers: Sequence[int]) -> tuple[Form, list[dict[str, Any]], str]:
    """(what samples are, each of them as a browser draws it, a line of what a person should know)."""
    dataset = workspace.reference.dataset
    name, place, form = _shown_input(dataset)
    axis = (dataset.axes or first_axes(dataset.inputs)).inputs[place] or 0
    every = tensors(dataset.inputs)[place].detach().movedim(axis, 0)
    picked = every[torch.tensor(numbers, dtype=torch.long)]
    about = f"Of several inputs {name} is shown." if len(tensors(dataset.inputs)) > 1 else ""
    match form:
        case "image":
            planes = _planes(every[:RANGE_SAMPLES])
            low, high = _range(planes)
            if planes.shape[1] not in COLOURS[:2]:
                about = f"{about} The first of {planes.shape[1]} channels is shown.".strip()
            return form, [{"image": _picture(plane, low, high)} for plane in _planes(picked)], about
        case "signal":
            lines = picked.reshape(len(picked), *_without_ones(picked.shape[1:]))
            lines = lines.unsqueeze(1) if lines.ndim == 2 else lines
            lines = lines.mT if lines.shape[1] > lines.shape[2] else lines
            if lines.shape[1] > MOST_LINES:
                about = f"{about} The first {MOST_LINES} of {lines.shape[1]} channels are shown.".strip()
            return form, [{"lines": _lines(sample[:MOST_LINES])} for sample in lines], about
        case "tokens":
            text = workspace.opened.preparation.text
            return form, [{"text": _tokens(sample.tolist(), text)} for sample in picked], about
    if (total := picked[:1].numel()) > MOST_NUMBERS:
        shape = sizes(tuple(picked.shape[1:]))
        about = f"{about} Samples of {shape} numbers cannot be drawn: the first {MOST_NUMBERS} of {total:,} are shown."
    return form, [{"numbers": _listed(sample.reshape(-1)[:MOST_NUMBERS].tolist())} for sample in picked], about.strip()


def _shown_input(dataset: Dataset) -> tuple[str, int, Form]:
    """(name, place among the tensors, what it is) of the input that can be shown; a mask only where nothing else is."""
    inputs = tensors(dataset.inputs)
    names = list(dataset.inputs) if isinstance(dataset.inputs, dict) else [str(i) for i in range(len(inputs))]
    names = names if len(names) == len(inputs) else [str(i) for i in range(len(inputs))]
    axes = (dataset.axes or first_axes(dataset.inputs)).inputs
    forms: list[Form] = ["image", "signal", "tokens", "numbers"]
    found = []
    for place, (tensor, axis) in enumerate(zip(inputs, axes, strict=True)):
        if axis is not None:
            form = form_of(tuple(tensor.movedim(axis, 0).shape[1:]), tensor.dtype)
            aside = any(word in names[place] for word in ("mask", "type_ids"))
            found.append(((aside, forms.index(form), place), form))
    (_, _, place), form = min(found)
    return names[place], place, form


def form_of(shape: tuple[int, ...], dtype: torch.dtype) -> Form:
    """What samples of a shape and type are shown as.

    >>> [form_of(shape, torch.float32) for shape in ((3, 32, 32), (32, 32, 3), (1, 400), (400, 2), (28, 28), (4,))]
    ['image', 'image', 'signal', 'signal', 'image', 'numbers']
    >>> form_of((32,), torch.int64), form_of((3, 5, 32, 32), torch.float32)
    ('tokens', 'numbers')
    """
    bare = _without_ones(shape)
    if dtype == torch.bool or dtype.is_complex:
        return "numbers"
    if not dtype.is_floating_point and dtype != torch.uint8:
        return "tokens" if len(shape) == 1 else "numbers"
    if len(bare) == 3:
        return "image" if _channels_last(bare) is not None else "numbers"
    if len(bare) == 2:
        few, many = sorted(bare)
        if few <= LEAST_PIXELS and many >= LEAST_POINTS:
            return "signal"
        return "image" if few >= LEAST_PIXELS else "numbers"
    return "signal" if len(bare) == 1 and bare[0] >= LEAST_POINTS else "numbers"


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _channels_last(shape: Sequence[int]) -> bool | None:
    """Whether channels come last in an image of three axes; None where it is none."""
    if shape[0] in COLOURS and min(shape[1:]) >= LEAST_PIXELS:
        return False
    if shape[2] in COLOURS and min(shape[:2]) >= LEAST_PIXELS:
        return True
    return False if shape[0] < min(shape[1:]) and min(shape[1:]) >= LEAST_PIXELS else None


def _planes(samples: Tensor) -> Tensor:
    """(N, channels, height, width), of whatever layout the images have; no more than the colours of four channels."""
    bare = _without_ones(samples.shape[1:])
    planes = samples.reshape(len(samples), *((1,) if len(bare) == 2 else ()), *bare).float().nan_to_num()
    planes = planes.movedim(-1, 1) if len(bare) == 3 and _channels_last(bare) else planes
    return planes[:, :3] if planes.shape[1] == 4 else planes


def _range(planes: Tensor) -> tuple[Tensor, Tensor]:
    """(channels, 1, 1) each: what is drawn darkest and lightest. Of shares and bytes 0 and the most they can be."""
    low, high = planes.amin((0, 2, 3)).reshape(-1, 1, 1), planes.amax((0, 2, 3)).reshape(-1, 1, 1)
    if float(low.min()) >= 0 and (most := float(high.max())) > 0.5:
        usual = 1.0 if most <= 1 else 255.0 if 128 <= most <= 255 else most
        return torch.zeros_like(low), torch.full_like(high, usual)
    return low, high


def _picture(planes: Tensor, low: Tensor, high: Tensor) -> str:
    """(channels, height, width) as a small picture."""
    planes = ((planes - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    planes = planes if len(planes) == 3 else planes[:1]
    height, width = planes.shape[1:]
    shrink = MOST_PIXELS / max(height, width, MOST_PIXELS)
    small = (max(1, round(shrink * height)), max(1, round(shrink * width)))
    if shrink < 1:
        planes = F.adaptive_avg_pool2d(planes[None], small)[0]
    return f"data:image/bmp;base64,{bitmap((255 * planes).round().to(torch.uint8))}"


def _lines(sample: Tensor) -> list[list[int]]:
    """(channels, points) as heights from 0 to HEIGHT, 0 on top; of many points the extremes, in turn."""
    values = sample.double().nan_to_num()
    low, high = float(values.min()), float(values.max())
    if values.shape[1] > MOST_POINTS:
        each = -(-values.shape[1] // (MOST_POINTS // 2))
        padded = F.pad(values[None], (0, -values.shape[1] % each), mode="replicate")[0].reshape(len(values), -1, each)
        values = torch.stack([padded.amin(2), padded.amax(2)], dim=2).flatten(1)
    return (HEIGHT * (high - values) / ((high - low) or 1)).round().int().tolist()


def _tokens(numbers: list[int], text: Callable[[Sequence[int]], str] | None) -> str:
    decoded = "" if text is None else _decoded(text, numbers)
    if decoded:
        return decoded if len(decoded) <= MOST_LETTERS else f"{decoded[:MOST_LETTERS]}…"
    return " ".join(map(str, numbers[:MOST_TOKENS])) + (" …" if len(numbers) > MOST_TOKENS else "")


def _listed(numbers: Sequence[float]) -> str:
    """Numbers in a row, four digits of each.

    >>> _listed((5.0, 3.14159, -2e-7))
    '5, 3.142, −2e-07'
    """
    return ", ".join(f"{number:.4g}".replace("-", "−", 1) if number < 0 else f"{number:.4g}" for number in numbers)
