"""What a thumb would give, asked while it is held: a route of the server beside Streamlit's own.

A rerun of the board's fragment takes a message, a run of Python and a message back, in line with all else that the
session does. A question to this route goes past all that; benchmarks.live_accuracy measures both ways. The board of a
visitor is told a secret that nobody else knows: whoever asks with it hears of plans of the model that this visitor
looks at, and nothing is written down.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
import streamlit as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MOST_BYTES = 2**20
"""Of a question: ranks of 10,000 layers."""

MOST_VISITORS = 200
"""Who may ask; those who came first have to load the page again."""

WAIT_SECONDS = 30.0

Choices = dict[str, tuple[str, tuple[int, ...]]]
"""{layer: (method, rank)}, as a browser asks for them."""


class Work(Protocol):
    """A job that finds one answer (`lowrank_core.running.jobs`, which is not imported before it is needed)."""

    def cancel(self) -> None:
        """Ask it to end soon."""

    def wait(self, seconds: float | None = None, *, until: Callable[[Any], bool]) -> Any:
        """Block for its latest snapshot."""


@dataclass(slots=True)
class Visitor:
    """model: the key of the one that is looked at; begin: starts to measure a plan of it; work: what was begun last."""

    model: str
    begin: Callable[[Choices], Work]
    work: Work | None = None


class Visitors:
    """Who may ask, by the secret that their boards were told."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, secret: str | None, visitor: Visitor) -> str:
        """The visitor may ask from now on, by the secret that they have or by a new one."""
        secret = secret or secrets.token_urlsafe(18)
        with self._lock:
            before = self._known.pop(secret, None)
            visitor.work = before.work if before is not None else None
            self._known[secret] = visitor
            while len(self._known) > MOST_VISITORS:
                self._known.popitem(last=False)
        return secret

    def get(self, secret: str) -> Visitor | None:
        """The visitor with that secret."""
        with self._lock:
            return self._known.get(secret)


VISITORS = Visitors()


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    rank: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(min_length=1, max_length=8)]


class _Question(msgspec.Struct, forbid_unknown_fields=True):
    secret: str
    model: str
    choices: dict[str, _Choice]


async def answer(request: Request) -> Response:
    """Measure the plan in a question. An older one of the same visitor is called off, as is one nobody waits for."""
    try:
        question = msgspec.json.decode(await _body(request), type=_Question)
    except (msgspec.DecodeError, ValueError) as error:
        return JSONResponse({"error": f"this is no question of a board: {error}"}, 400)
    except ClientDisconnect:
        return Response(status_code=204)
    visitor = VISITORS.get(question.secret)
    if visitor is None or visitor.model != question.model:
        return JSONResponse({"error": "this server does not know the board; load the page again."}, 404)
    if visitor.work is not None:
        visitor.work.cancel()
    work = visitor.work = visitor.begin({name: (c.method, c.rank) for name, c in question.choices.items()})
    answered = asyncio.ensure_future(asyncio.to_thread(work.wait, WAIT_SECONDS, until=_is_answered))
    gone = asyncio.ensure_future(request.receive())
    await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not answered.done():
        work.cancel()
    snapshot = await answered
    gone.cancel()
    if snapshot.found:
        return JSONResponse(snapshot.found[0])
    return JSONResponse({"error": snapshot.error} if snapshot.error else {"called_off": True})


def routes() -> tuple[Route, ...]:
    """What is served beside Streamlit's own: its address lies beside those of the pages."""
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return (Route(f"/{base}/live" if base else "/live", answer, methods=["POST"]),)


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
    return body


def _is_answered(snapshot: Any) -> bool:
    return bool(snapshot.found) or snapshot.over
