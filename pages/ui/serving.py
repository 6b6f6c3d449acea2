"""How the server begins and ends: it refuses wrong options, opens a browser, and at its end waits for no thread."""

from __future__ import annotations

import asyncio
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from streamlit import runtime

from lowrank_core.errors import InvalidSettings
from lowrank_core.running.own_process import leave
from pages.ui import at_start, live
from pages.ui.named_session import NamedSession
from pages.ui.same_origin import SameOrigin

MIDDLEWARE = (Middleware(SameOrigin), Middleware(NamedSession))
"""What stands in front of everything that is served."""

ROUTES = live.routes()
"""What is served beside Streamlit's own."""

try:
    at_start.check()
except InvalidSettings as wrong:
    sys.stderr.write(f"Error: {wrong}\n")
    sys.exit(2)

BROWSER_SECONDS = 0.5
"""After the start, when connections are taken."""

PAGES_SECONDS = 5.0
"""Within which runs of pages come to an end once the server is to."""


@asynccontextmanager
async def lifespan(app: st.App) -> AsyncIterator[dict[str, Any]]:
    """What goes around serving: `streamlit run` opens no browser for an `st.App` (1.67), and calls Ctrl-C a failure."""
    if not st.get_option("server.headless"):
        opening = threading.Timer(BROWSER_SECONDS, webbrowser.open, (url(),))
        opening.daemon = True
        opening.start()
    yield {}
    server = runtime.get_instance()
    server.stop()
    with suppress(TimeoutError):
        await asyncio.wait_for(server.stopped, PAGES_SECONDS)
    with suppress(OSError):  # nobody listens any more
        sys.stdout.flush()
    leave(0)


def url() -> str:
    """Where a browser on this machine finds the server."""
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    address = st.get_option("server.address")
    host = "localhost" if address in (None, "", "0.0.0.0", "::") else address
    return f"{scheme}://{host}:{st.get_option('server.port')}/{st.get_option('server.baseUrlPath').strip('/')}"
