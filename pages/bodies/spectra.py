"""Spectra: how fast the singular values of every layer fall, and which ranks pay."""

from collections.abc import Callable
from functools import partial
from itertools import count

import streamlit as st

from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import dense_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import Snapshot
from lowrank_core.running.scope import somebody_waits
from lowrank_core.sources._inventory import Inventory, remaining
from lowrank_core.sources._pretrained_folder import folder_of
from lowrank_core.workspace import Workspace
from pages.ui import beside, charts, frame, opening, running, selecting, tables, words
from pages.ui.button import button
from pages.ui.state import plans, selected, session, spectra
from pages.ui.state.selected import Network
from pages.ui.waiting import Steps

PART = 48  # layers that are drawn at once, and folded together
SOON = 5.0  # seconds that may be spent on a layer unasked

HELP = "Singular values on a logarithmic scale, from rank 1 to the largest. A click on a picture selects its layer."
LEGEND = "In full colour: the ranks the plan keeps. Dashed: break-even in bytes. The number is the effective rank."


class Overview:
    """A small picture of every layer, in parts that appear as their spectra are known."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        st.html(charts.SMALL_STYLE)
        self.parts = [layers[at : at + PART] for at in range(0, len(layers), PART)]
        self._places = [st.empty() for _ in self.parts]
        self._drawn: dict[int, int] = {}

    def draw(self, curve: Callable[[Layer], tables.Curve | None]) -> None:
        """Draw what is known; a part of which nothing more is known than before stays as it is."""
        for number, (part, place) in enumerate(zip(self.parts, self._places, strict=True)):
            curves = [layer_curve for layer in part if (layer_curve := curve(layer)) is not None]
            if len(curves) > self._drawn.get(number, 0):
                self._drawn[number] = len(curves)
                place.html(charts.small_multiples(curves, self._label(part), dark=dark()))

    def again(self) -> None:
        """Forget what was drawn, so that every part is drawn anew the next time."""
        self._drawn.clear()

    def _label(self, part: tuple[Layer, ...]) -> str:
        if len(self.parts) == 1:
            return ""
        first, last = (words.block(layer.name) or layer.name for layer in (part[0], part[-1]))
        return f"{first} to {last}, {len(part)} layers" if first != last else f"{first}, {len(part)} layers"


def dark() -> bool:
    """Whether pictures stand on a dark page."""
    return st.context.theme.type == "dark"


def figures(curve: tables.Curve, rank: str) -> None:
    """One spectrum large, above it the figures that sum it up: effective and stable rank, energy, break-even."""
    with st.container(horizontal=True, gap="medium"):
        if rank:
            st.metric("Chosen rank", rank, help=words.RANK, width="content")
        st.metric("Effective rank", f"{curve.effective_rank:.1f}", help=words.EFFECTIVE_RANK, width="content")
        st.metric("Stable rank", f"{curve.stable_rank:.1f}", help=words.STABLE_RANK, width="content")
        st.metric("Rank for 90 %", curve.rank_90, help=words.ENERGY, width="content")
        st.metric("Rank for 99 %", curve.rank_99, help=words.ENERGY, width="content")
        even = f"{curve.even_bytes} / {curve.even_multiplies}" if rank else str(curve.even_bytes)
        label = "Break-even, bytes / multiplies" if rank else "Break-even in bytes"
        st.metric(label, even, help=words.BREAK_EVEN, width="content")
    beside.chart(
        charts.spectrum(curve, dark=dark()), alt=f"Singular values and energy of {curve.layer} by {curve.axis}"
    )


# ---- weights without a model ----------------------------------------------------------------------------------------


def show_weights(stock: Inventory) -> None:
    """Spectra of weights alone, tensor by tensor."""
    of_adapter = stock.weights.adapter is not None
    more = "To measure or compress it, a model is needed."
    if of_adapter or folder_of(stock.weights) is not None:
        more = "They are those of the products B A." if of_adapter else ""
    st.markdown(f"Look for curves that fall steeply: such a layer keeps nearly everything at a small rank. {more}")
    st.header("Every layer", anchor=False, help=HELP)
    progress, pictures = st.container(), Overview(stock.layers)
    st.caption("Dashed: break-even in bytes. The number is the effective rank.")
    pictures.draw(partial(known_curve, stock))
    st.header("One layer", anchor=False)
    one_of(stock)
    if of_adapter:
        frame.link("Ranks", says="Choose the ranks")
    opening.link_to_compress(stock)
    frame.link("Model")
    with progress:
        compute(stock, pictures)


def known_curve(stock: Inventory, layer: Layer) -> tables.Curve | None:
    """What is drawn of a layer once its spectrum is there."""
    spectrum = stock.known(layer.name)
    return None if spectrum is None else tables.weights_curve(layer, spectrum)


def compute(stock: Inventory, pictures: Overview) -> None:
    """The spectra that are missing: how long they take, and a button; or what is going on."""
    names = [layer.name for layer in stock.layers]
    curve = partial(known_curve, stock)
    job = spectra.job(stock)
    if job is None or job.snapshot.over:
        if job is not None:
            pictures.draw(curve)  # also what came while this page was drawn
        missing = sum(stock.known(name) is None for name in names)
        if not missing:
            return
        if job is not None and job.snapshot.error:
            st.error(words.plain(job.snapshot.error), icon=":material/error:")
        left = remaining(stock, names, spectra.speed())
        what = f"The spectra of {missing} layers take" if missing > 1 else "The spectrum of the last layer takes"
        st.info(f"{what} about {words.duration(max(1, left))} on this machine.", icon=":material/timer:")
        if button("Compute them all", icon=":material/play_arrow:"):
            spectra.start(stock)
            st.rerun()
        return

    def says(snapshot: Snapshot[str]) -> str:
        return f"{sum(stock.known(name) is not None for name in names)} of {len(names)} layers"

    running.follow(job, says, lambda snapshot, serial: pictures.draw(curve))


def chosen_layer(network: Network, otherwise: int | None, key: str) -> str | None:
    """A box with all layers that shows the selected one, and selects; it stands in a part that is drawn by itself."""
    names = [layer.name for layer in network.layers]
    now = selected.layer(network) or (None if otherwise is None else names[otherwise])
    session.set_widget(key, now)
    return st.selectbox(
        "Layer",
        names,
        placeholder="Choose a layer",
        key=key,
        on_change=lambda: selected.choose(network, session.widget(key)),
    )


@st.fragment
def one_of(stock: Inventory) -> None:
    """One layer, large; computed when it is asked for."""
    selecting.listen(stock)
    layers = {layer.name: layer for layer in stock.layers}
    speed = spectra.speed()

    def soon(name: str) -> bool:
        return stock.known(name) is not None or speed.seconds(layers[name]) <= SOON

    first = next((at for at, name in enumerate(layers) if soon(name)), None)
    name = chosen_layer(stock, first, f"layer {stock.weights.ref}")
    if name is None:
        return
    with st.spinner(f"About {words.duration(max(1, speed.seconds(layers[name])))}…"):
        spectrum = stock.spectrum(name)
    curve = tables.weights_curve(layers[name], spectrum)
    st.markdown(tables.advice(curve))
    figures(curve, "")


# ---- a model --------------------------------------------------------------------------------------------------------


def overview(workspace: Workspace) -> RankPlan:
    """Every layer; many appear part by part, and again with the first plan, for which all of them are needed."""
    layers = workspace.profile.layers
    pictures = Overview(layers)

    def draw(plan: RankPlan | None, say: Callable[[str], None] = lambda step: None) -> None:
        number = count(1)

        def curve(layer: Layer) -> tables.Curve:
            say(f"Factorising {next(number)} of {len(layers)} layers")
            choice = plan.get(layer.name) if plan else None
            method = choice.method if choice else layer.methods[0].name
            return tables.curves(workspace, layer, method, plan)[0]

        pictures.again()
        pictures.draw(curve)

    plan = plans.plan_if_made(workspace)
    if plan is None and len(pictures.parts) > 1:
        with Steps(skeleton=False) as say:
            draw(None, say)
    if plan is None:
        plan = plans.plan(workspace)
    draw(plan)
    return plan


def show(workspace: Workspace) -> None:
    """The spectra of a model: every layer small, then one layer large."""
    profile = workspace.profile
    layers = {layer.name: layer for layer in profile.layers}

    costliest = max(range(len(layers)), key=lambda i: dense_cost(profile.layers[i]).multiplies, default=0)

    @st.fragment
    def detail() -> None:
        """The spectrum of one layer under one method, large."""
        selecting.listen(workspace)
        with st.container(horizontal=True, vertical_alignment="bottom"):
            name = chosen_layer(profile, costliest, f"layer {profile.fingerprint[7:19]}")
            assert name is not None
            layer, choice = layers[name], plan.get(name)
            methods = {method.name: method for method in layer.methods}
            first = list(methods).index(choice.method) if choice else 0
            method = methods[
                st.selectbox("Method", methods, index=first, format_func=lambda m: methods[m].label, help=words.METHOD)
            ]
        curves = tables.curves(workspace, layer, method.name, plan)
        if choice and choice.method != method.name:
            st.caption(f"The plan uses {choice.method} here, so it has no rank on this curve.")
        for column, curve in zip(st.columns(len(curves), gap="large"), curves, strict=True):
            with column:
                st.markdown(tables.advice(curve) if len(curves) == 1 else f"**{curve.axis}**: {tables.advice(curve)}")
                figures(curve, str(curve.chosen or ("–" if choice else "dense")))

    if layers:
        st.header("Every layer", anchor=False, help=HELP)
        with somebody_waits():
            plan = overview(workspace)
        st.caption(LEGEND)
        st.header("One layer", anchor=False)
        detail()
        frame.link("Ranks", says="Choose the ranks")
    else:
        st.info("This network has no layer that can be compressed; Model says why.")
        frame.link("Model")
