"""What is on the screen before a page has anything to show: a skeleton, and the step that it is at."""

from __future__ import annotations

from html import escape
from types import TracebackType

import streamlit as st

SKELETON = (
    '<div class="skeleton" data-testid="skeleton" aria-hidden="true">'
    '<i style="width:34%"></i><i></i><i style="width:82%"></i><i style="height:13rem"></i></div>'
)

STYLE = """
<style>
.waiting { margin: 0; opacity: .75; font-variant-numeric: tabular-nums; }
.skeleton { display: grid; gap: .9rem; }
.skeleton i { height: 1.3rem; border-radius: 6px; background: currentColor; opacity: .09; }
@media (prefers-reduced-motion: no-preference) {
  .skeleton i { animation: skeleton 1.6s ease-in-out infinite alternate; }
  @keyframes skeleton { to { opacity: .045; } }
}
</style>
"""


class Steps:
    """Called with a step ('Opening the model'), shows it here; left as a context, takes all of it off the page.

    Nothing is drawn before the first step, so work that turns out to be done already does not flicker.
    """

    def __init__(self, *, skeleton: bool = True) -> None:
        self._place = st.empty()
        self._skeleton = skeleton
        self._drawn = False

    def __call__(self, step: str) -> None:
        if not self._drawn:
            with self._place.container():
                self._line = st.empty()
                if self._skeleton:
                    st.html(SKELETON)
            self._drawn = True
        self._line.html(f'<p class="waiting" role="status" data-testid="step">{escape(step)}…</p>')

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ended_by_streamlit = kind is not None and not issubclass(kind, Exception)
        if self._drawn and not ended_by_streamlit:
            self._place.empty()
