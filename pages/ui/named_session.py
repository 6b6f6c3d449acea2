"""A page that is asked for without a session gets one in its address, before anything is drawn.

The server says so in a redirect, which is no entry of the browser's history: written into the address of a page that is
there already, it would be one, and the way back out of the app would take two presses.
"""

from __future__ import annotations

import secrets
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pages.ui.state.session import OWN


class NamedSession:
    """In front of the pages: sends whoever asks for one without `w` or `view` to the same one with a new `w`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Redirect, or hand on."""
        if scope["type"] != "http" or not is_unnamed(scope):
            await self._app(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        named = f"?{query}&w={secrets.token_hex(8)}" if query else f"?w={secrets.token_hex(8)}"
        await RedirectResponse(named, 302, {"Cache-Control": "no-store"})(scope, receive, send)


def is_unnamed(scope: Scope) -> bool:
    """Whether a browser asks for a page, and its address does not say whose work it shows.

    >>> ask = {"method": "GET", "path": "/Ranks", "headers": [(b"accept", b"text/html,*/*")]}
    >>> is_unnamed(ask | {"query_string": b"model=m.py"}), is_unnamed(ask | {"query_string": b"w=0123456789abcdef"})
    (True, False)
    >>> is_unnamed(ask | {"path": "/static/index.html", "query_string": b""})
    False
    """
    accepted = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept")
    of_a_page = "." not in scope["path"].rsplit("/", 1)[-1] and "/_stcore/" not in scope["path"]
    asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return scope["method"] == "GET" and b"text/html" in accepted and of_a_page and not asked.keys() & set(OWN)
