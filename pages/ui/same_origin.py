"""Only the app's own pages may talk to its server: what a page of another origin asks is refused.

Streamlit (1.67) takes a WebSocket from any port of localhost, and cookies, its token against forged uploads among them,
are shared by all ports of a host. No setting of it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urlsplit

import streamlit as st
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PORTS = {"http": 80, "https": 443}
"""What a browser leaves out of Origin and Host."""


class SameOrigin:
    """In front of everything: takes a request whose Host is allowed and whose Origin, if it has one, is that Host.

    allowed_hosts() gives names as `server.allowedHosts` has them: "*" for any, "*.name" for those below a name, none at
    all for any, too. Who refuses gets status 403 and a line; a WebSocket is refused before it is opened.
    """

    def __init__(
        self, app: ASGIApp, allowed_hosts: Callable[[], Sequence[str]] = lambda: st.get_option("server.allowedHosts")
    ) -> None:
        self._app, self._allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is taken, answer what is not."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = refusal(scope["headers"], self._allowed_hosts())
        if not reason:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # policy violation; before the handshake it is a 403
        else:
            await PlainTextResponse(f"Refused: {reason}.\n", 403)(scope, receive, send)


def refusal(headers: Sequence[tuple[bytes, bytes]], allowed_hosts: Sequence[str]) -> str:
    """Why a request with these headers is refused; "" where it is taken.

    Browsers say the Origin of every WebSocket and of whatever is no plain GET; what has none is no page but a program,
    which runs here with its user's rights anyway, and may say any Origin. A proxy that speaks https for this server
    hands the Host on as the browser said it: a Host without a port then stands for 443, as the Origin does.

    >>> refusal([(b"host", b"localhost:8501"), (b"origin", b"http://localhost:1234")], ["localhost"])
    'the page http://localhost:1234 is not of localhost:8501, and only pages of this server may talk to it'
    >>> refusal([(b"host", b"localhost:9000"), (b"origin", b"http://localhost:9000")], ["localhost"])
    ''
    """
    hosts, origins = _all(headers, b"host"), _all(headers, b"origin")
    if len(hosts) != 1 or len(origins) > 1:
        return "it must have one Host and at most one Origin"
    host = _place(f"//{hosts[0]}")
    if host is None or not _allowed(host.hostname or "", allowed_hosts):
        return (
            f"{hosts[0][:200]!r} is none of the hosts that this server answers for ({', '.join(allowed_hosts)}); "
            "server.allowedHosts of its configuration names them"
        )
    if not origins:
        return ""
    origin = _place(origins[0])
    usual = PORTS.get("" if origin is None else origin.scheme)
    if (
        origin is None
        or usual is None
        or (origin.hostname, origin.port or usual) != (host.hostname, host.port or usual)
    ):
        return f"the page {origins[0][:200]} is not of {hosts[0][:200]}, and only pages of this server may talk to it"
    return ""


def _all(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]


def _place(url: str) -> SplitResult | None:
    """Scheme, host and port; None where there is no host, or anything else beside these."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.geturl() != url and parts.geturl().lower() != url.lower():
        return None
    more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    return None if more or not parts.hostname else parts


def _allowed(host: str, allowed: Sequence[str]) -> bool:
    names = [name.strip().lower().rstrip(".") for name in allowed]
    host = host.rstrip(".")
    below = [name[1:] for name in names if name.startswith("*.")]
    return not names or "*" in names or host in names or any(host.endswith(end) for end in below)
