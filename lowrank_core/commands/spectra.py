"""The singular values of each layer."""

from __future__ import annotations

import time
from difflib import get_close_matches

import click
from torch import Tensor

from lowrank_core.algebra.preview import COLUMNS, Preview
from lowrank_core.algebra.spectra import effective_rank, rank_for_energy, stable_rank
from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import looked_at
from lowrank_core.commands._options import CACHED, DASK, MODEL, WORKERS
from lowrank_core.commands._spectra import Looked, Spectrum, spectra_of, work
from lowrank_core.commands._terminal import ProgressLine, say, table
from lowrank_core.errors import InvalidPlan, cut, few
from lowrank_core.figures import duration
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer, Skipped
from lowrank_core.running.parallel import Workers
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.sources._inventory import METHOD, Inventory, measure_speed
from lowrank_core.workspace import Workspace

SHARES = (0.9, 0.99)
"""Of the energy, for which the smallest rank is told."""

HEAD = 64
"""Leading singular values whose energy a preview tells."""


@command
@MODEL
@click.option("--layer", "names", multiple=True, metavar="NAME", help="Only this layer (repeatable).")
@click.option("--method", type=click.Choice(list(METHODS)), help="Decomposition; default: each layer's own.")
@click.option(
    "--preview", is_flag=True, help=f"Only the {COLUMNS} leading values of large layers, with bounds of all energies."
)
@WORKERS
@DASK
@CACHED
def spectra(
    model: str,
    names: tuple[str, ...],
    method: str | None,
    preview: bool,
    workers: int,
    dask: str | None,
    cached: bool,
) -> Answer:
    """Show the singular values of each layer.

    A preview finds leading singular values by random projection, none above the true one, and keeps account of the
    energy that it has not found: what it says of energies and ranks are bounds, which hold for certain.
    """
    looked = looked_at(model, cached=cached)
    asks = _of_weights(looked, names, method) if isinstance(looked, Inventory) else _of_model(looked, names, method)
    where = Workers(workers, dask)
    began = time.monotonic()
    found = _computed(looked, asks, where, preview=preview)
    document, text = _answer(found)
    seconds, done = time.monotonic() - began, sum(each.operations for each in found)
    if done:
        say(f"{done:.3g} additions and multiplications in {duration(max(1, seconds))}: {_pace(done, seconds)}.")
    return {**document, "seconds": seconds, "operations": done}, text


def _of_model(workspace: Workspace, names: tuple[str, ...], method: str | None) -> list[tuple[Layer, str]]:
    """(layer, method) of each that is asked for; raises InvalidPlan."""
    chosen = [_layer(workspace, name) for name in names] or list(workspace.profile.layers)
    if method is None:
        return [(layer, layer.methods[0].name) for layer in chosen]
    fitting = [layer for layer in chosen if METHODS[method].obstacle(layer.spec) is None]
    if names or not fitting:
        for layer in chosen:
            if why := METHODS[method].obstacle(layer.spec):
                raise InvalidPlan(f"layer {layer.name!r}: {method} does not fit, {why}; choose another method.")
    return [(layer, method) for layer in fitting]


def _of_weights(stock: Inventory, names: tuple[str, ...], method: str | None) -> list[tuple[Layer, str]]:
    """The same of weights alone, whose matrices are taken apart by METHOD."""
    if method not in (None, METHOD):
        raise InvalidPlan(f"of weights without a model the spectra are those of {METHOD}; {method} needs a model file.")
    layers = {layer.name: layer for layer in stock.layers}
    for name in names:
        if name not in layers:
            raise InvalidPlan(_unknown_layer(name, list(layers), stock.skipped))
    return [(layers[name], METHOD) for name in dict.fromkeys(names) or layers]


def _computed(looked: Looked, asks: list[tuple[Layer, str]], where: Workers, *, preview: bool) -> list[Spectrum]:
    """The spectra in the order asked for, with what is left on the way; of weights alone with an estimate before."""
    line, kind = ProgressLine(), "preview" if preview else "spectrum"
    parts = [work(layer, preview=preview) for layer, _ in asks]
    if isinstance(looked, Inventory):
        speed = measure_speed()
        parts = [speed.preview_seconds(layer) if preview else speed.seconds(layer) for layer, _ in asks]
        known = sum(part for (layer, _), part in zip(asks, parts, strict=True) if looked.known(layer.name) is not None)
        shared = f" by each of {where.count} workers" if where.count > 1 and where.dask is None else ""
        elsewhere = " of one core like this one" if where.dask is not None else ""
        whole = (sum(parts) - known) / (where.count if shared else 1)
        say(
            f"{'Previews' if preview else 'Spectra'} of {len(asks)} of {len(looked.layers)} layers: about "
            f"{duration(max(1, whole))}{shared}{elsewhere} (from a 1024 x 1024 matrix here)."
        )
    found: list[Spectrum | None] = [None] * len(asks)
    began, passed, done, number = time.monotonic(), 0.0, 0.0, 0
    pace = Pace(sum(parts))
    if where.elsewhere:
        line(Progress(f"{kind} 0 of {len(asks)}"))
    elif asks:
        line(Progress(f"{kind} 1 of {len(asks)}, {asks[0][0].name}"))
    for at, spectrum in spectra_of(looked, asks, where, preview=preview):
        found[at], number = spectrum, number + 1
        passed, done = passed + parts[at], done + spectrum.operations
        told = f"{kind} {number} of {len(asks)}, {spectrum.layer}"
        if done:
            told += f", {_pace(done, time.monotonic() - began)}"
        line(Progress(told, pace(passed)))
    return [spectrum for spectrum in found if spectrum is not None]


def _pace(operations: float, seconds: float) -> str:
    return f"{operations / max(seconds, 1e-9) / 1e9:.3g} GFLOP/s"


def _answer(found: list[Spectrum]) -> Answer:
    """Spectra, or previews of them, as an answer."""
    if any(isinstance(values, Preview) for each in found for _, values in each.axes):
        return _answer_of_previews(found)
    documents, rows = [], []
    for each in found:
        axes = [(axis, sigma) for axis, sigma in each.axes if isinstance(sigma, Tensor)]
        first = axes[0][1]
        documents.append(
            {
                "name": each.layer,
                "method": each.method,
                "spectra": [{"axis": axis, "singular_values": sigma.tolist()} for axis, sigma in axes],
                "effective_rank": effective_rank(first),
                "stable_rank": stable_rank(first),
            }
        )
        for axis, sigma in axes:
            ranks = [str(rank_for_energy(sigma, share)) for share in SHARES]
            about = [f"{effective_rank(sigma):.1f}", f"{stable_rank(sigma):.1f}"]
            rows.append([each.layer, each.method, axis, str(len(sigma)), f"{float(sigma[0]):.4g}", *about, *ranks])
    titles = ["layer", "method", "axis", "ranks", "largest", "effective", "stable", "90 % energy", "99 % energy"]
    text = [
        table(titles, rows),
        "",
        "Effective rank: exp of the entropy of the singular values. Stable rank: energy over the largest squared.",
        "The last two columns: smallest rank that keeps this share of the squared singular values.",
    ]
    return {"layers": documents}, "\n".join(text)


def _answer_of_previews(found: list[Spectrum]) -> Answer:
    """Previews as an answer: what was found, and bounds of what was not."""
    documents, rows = [], []
    for each in found:
        seen = [(axis, values) for axis, values in each.axes if isinstance(values, Preview)]
        documents.append(
            {
                "name": each.layer,
                "method": each.method,
                "previews": [
                    {
                        "axis": axis,
                        "ranks": one.side,
                        "singular_values_at_least": one.found.tolist(),
                        "energy": one.energy,
                        "energy_not_found": one.unseen,
                        "ranks_for_energy": {str(keep): list(one.rank_for_energy(keep)) for keep in SHARES},
                    }
                    for axis, one in seen
                ],
            }
        )
        for axis, one in seen:
            least, most = one.share(min(HEAD, one.side))
            largest = f"{float(one.found[0]):.4g}" if len(one.found) else "-"
            ranks = [_between(*map(str, one.rank_for_energy(keep))) for keep in SHARES]
            held = _between(f"{100 * least:.1f}", f"{100 * most:.1f}")
            rows.append([each.layer, each.method, axis, str(one.side), str(len(one.found)), largest, held, *ranks])
    held_title = f"% energy at {HEAD}"
    titles = ["layer", "method", "axis", "ranks", "found", "largest >=", held_title, "90 % energy", "99 % energy"]
    text = [
        table(titles, rows),
        "",
        "Energy: the squared singular values. What a preview found of them is at least there, and all that it did not",
        f"find is known as a sum: the energy of the {HEAD} leading ones, and the smallest rank that keeps 90 or 99 %,",
        "lie within these bounds for certain. Small layers are computed whole.",
    ]
    return {"layers": documents}, "\n".join(text)


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


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
    inside = [each for each in names if each.endswith(f".{name}") or f".{name}." in each or each.startswith(f"{name}.")]
    near = inside or get_close_matches(name, names, n=1)
    hint = f"did you mean {few(near, repr)}?" if near else f"the layers are {few(names)}."
    return f"the model has no layer {cut(name)!r}; {hint}"
