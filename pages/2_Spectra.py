"""Spectra: how fast the singular values of every layer fall, and which ranks pay."""

import streamlit as st

from lowrank_core.cost import dense_cost
from pages.ui import charts, frame, state, tables, words

with frame.page(
    "Spectra",
    "Look for curves that fall steeply: such a layer keeps nearly everything at a small rank. Then choose the ranks.",
) as workspace:
    profile, plan = workspace.profile, state.plan(workspace)
    layers = {layer.name: layer for layer in profile.layers}
    dark = st.context.theme.type == "dark"

    def overview() -> list[tables.Curve]:
        """The first axis of every layer, under the method the plan uses or would use first."""
        return [
            tables.curves(workspace, layer, choice.method if choice else layer.methods[0].name, plan)[0]
            for layer in profile.layers
            for choice in [plan.get(layer.name)]
        ]

    costliest = max(range(len(layers)), key=lambda i: dense_cost(profile.layers[i]).multiplies, default=0)

    @st.fragment
    def detail() -> None:
        """One layer and method, large."""
        with st.container(horizontal=True, vertical_alignment="bottom"):
            name = st.selectbox(
                "Layer", layers, costliest, key=f"layer {profile.fingerprint[7:19]}", persist_state="session"
            )
            layer, choice = layers[name], plan.get(name)
            methods = {method.name: method for method in layer.methods}
            first = list(methods).index(choice.method) if choice else 0
            method = methods[
                st.selectbox("Method", methods, index=first, format_func=lambda m: methods[m].label, help=words.METHOD)
            ]
        found = tables.curves(workspace, layer, method.name, plan)
        if choice and choice.method != method.name:
            st.caption(f"The plan uses {choice.method} here, so it has no rank on this curve.")
        for column, curve in zip(st.columns(len(found), gap="large"), found, strict=True):
            with column:
                st.markdown(tables.advice(curve) if len(found) == 1 else f"**{curve.axis}**: {tables.advice(curve)}")
                with st.container(horizontal=True, gap="medium"):
                    chosen = str(curve.chosen or ("–" if choice else "dense"))
                    st.metric("Chosen rank", chosen, help=words.RANK, width="content")
                    st.metric(
                        "Effective rank", f"{curve.effective_rank:.1f}", help=words.EFFECTIVE_RANK, width="content"
                    )
                    st.metric("Stable rank", f"{curve.stable_rank:.1f}", help=words.STABLE_RANK, width="content")
                    st.metric("Rank for 90 %", curve.rank_90, help=words.ENERGY, width="content")
                    st.metric("Rank for 99 %", curve.rank_99, help=words.ENERGY, width="content")
                    even = f"{curve.even_bytes} / {curve.even_multiplies}"
                    st.metric("Break-even, bytes / multiplies", even, help=words.BREAK_EVEN, width="content")
                st.plotly_chart(
                    charts.spectrum(curve, dark=dark),
                    alt=f"Singular values and energy of {name} by {curve.axis}",
                )

    if layers:
        st.header(
            "Every layer", anchor=False, help="Singular values on a logarithmic scale, from rank 1 to the largest."
        )
        with st.spinner("Factorising every layer once…"):
            st.html(charts.small_multiples(overview(), dark=dark))
        st.caption("Shaded: ranks the plan keeps. Dashed: break-even in bytes. The number is the effective rank.")
        st.header("One layer", anchor=False)
        detail()
        frame.link("Ranks", says="Choose the ranks")
    else:
        st.info("This network has no layer that can be compressed; Model says why.")
        frame.link("Model")
