"""The singular values of each layer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

import click
from torch import Tensor

from lowrank_core.algebra.spectra import effective_rank, rank_for_energy, stable_rank
from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import looked_at
from lowrank_core.commands._options import CACHED, MODEL
from lowrank_core.commands._terminal import ProgressLine, say, table
from lowrank_core.errors import InvalidPlan
from lowrank_core.figures import duration
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer, Skipped
from lowrank_core.running.progress import Progress
from lowrank_core.sources._inventory import METHOD, Inventory, measure_speed, remaining
from lowrank_core.workspace import Workspace


@command
@MODEL
@click.option("--layer", "names", multiple=True, metavar="NAME", help="Only this layer (repeatable).")
@click.option("--method", type=click.Choice(list(METHODS)), help="Decomposition; default: each layer's own.")
@CACHED
def spectra(model: str, names: tuple[str, ...], method: str | None, cached: bool) -> Answer:
    """Show the singular values of each layer."""
    workspace = looked_at(model, cached=cached)
    if isinstance(workspace, Inventory):
        return _of_weights(workspace, names, method)
    chosen = [_layer(workspace, name) for name in names] or list(workspace.profile.layers)
    if method is not None:
        fitting = [layer for layer in chosen if METHODS[method].obstacle(layer.spec) is None]
        if names or not fitting:
            for layer in chosen:
                if why := METHODS[method].obstacle(layer.spec):
                    raise InvalidPlan(f"layer {layer.name!r}: {method} does not fit, {why}; choose another method.")
        chosen = fitting
    used = [METHODS[method] if method is not None else layer.methods[0] for layer in chosen]
    return _answer(
        (layer.name, one.name, list(zip(one.axes, workspace.factors(layer.name, one.name).spectra, strict=True)))
        for layer, one in zip(chosen, used, strict=True)
    )


def _of_weights(stock: Inventory, names: tuple[str, ...], method: str | None) -> Answer:
    """Spectra of weights alone, with an estimate of the time before, and what is left on the way."""
    if method not in (None, METHOD):
        raise InvalidPlan(f"of weights without a model the spectra are those of {METHOD}; {method} needs a model file.")
    names_there = [layer.name for layer in stock.layers]
    for name in names:
        if name not in names_there:
            raise InvalidPlan(_unknown_layer(name, names_there, stock.skipped))
    chosen = list(dict.fromkeys(names)) or names_there
    speed, line = measure_speed(), ProgressLine()
    whole = remaining(stock, chosen, speed)
    say(
        f"Spectra of {len(chosen)} of {len(names_there)} layers: about {duration(max(1, whole))} "
        "(from a 1024 x 1024 matrix here)."
    )

    def curves() -> Iterator[tuple[str, str, list[tuple[str, Tensor]]]]:
        began = time.monotonic()
        for done, name in enumerate(chosen):
            left = remaining(stock, chosen, speed)
            passed = time.monotonic() - began
            pace = passed / (whole - left) if done and whole > left else 1.0
            line(Progress(f"spectrum {done + 1} of {len(chosen)}, {name}", pace * left))
            yield name, METHOD, [("rank", stock.spectrum(name))]

    return _answer(curves())


def _answer(curves: Iterable[tuple[str, str, list[tuple[str, Tensor]]]]) -> Answer:
    """(layer, method, spectra by axis) as an answer."""
    documents, rows = [], []
    for name, method, axes in curves:
        first = axes[0][1]
        documents.append(
            {
                "name": name,
                "method": method,
                "spectra": [{"axis": axis, "singular_values": sigma.tolist()} for axis, sigma in axes],
                "effective_rank": effective_rank(first),
                "stable_rank": stable_rank(first),
            }
        )
        for axis, sigma in axes:
            ranks = [str(rank_for_energy(sigma, share)) for share in (0.9, 0.99)]
            about = [f"{effective_rank(sigma):.1f}", f"{stable_rank(sigma):.1f}"]
            rows.append([name, method, axis, str(len(sigma)), f"{float(sigma[0]):.4g}", *about, *ranks])
    titles = ["layer", "method", "axis", "ranks", "largest", "effective", "stable", "90 % energy", "99 % energy"]
    text = [
        table(titles, rows),
        "",
        "Effective rank: exp of the entropy of the singular values. Stable rank: energy over the largest squared.",
        "The last two columns: smallest rank that keeps this share of the squared singular values.",
    ]
    return {"layers": documents}, "\n".join(text)


def _layer(workspace: Workspace, name: str) -> Layer:
    try:
        return workspace.profile.layer(name)
    except KeyError as error:
        names = [layer.name for layer in workspace.profile.layers]
        raise InvalidPlan(_unknown_layer(name, names, workspace.profile.skipped)) from error


def _unknown_layer(name: str, names: list[str], skipped: tuple[Skipped, ...]) -> str:
    """Why there is no such layer, and which one may be meant."""
    reasons = {s.name: s.reason for s in skipped}
    if name in reasons:
        return f"layer {name!r} cannot be compressed: {reasons[name]}."
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the layers are {', '.join(names[:8])}."
    return f"the model has no layer {name!r}; {hint}"
