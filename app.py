"""Rank Explorer: choose the rank of every layer of a network, see what it costs and what it keeps.

`streamlit run` imports this file and serves the app it finds; each look at the first page runs it as `__main__`.
"""

from pages.ui.frame import page

if __name__ == "__main__":
    page(
        "Rank Explorer",
        "Make a trained network smaller and faster: replace each layer by thinner ones, choose their ranks, and see at "
        "once what that costs and what accuracy it keeps.",
        body="pages.bodies.home",
    )
else:
    import streamlit as st

    from pages.ui.serving import MIDDLEWARE, ROUTES, lifespan

    app = st.App(__file__, routes=ROUTES, middleware=MIDDLEWARE, lifespan=lifespan)
