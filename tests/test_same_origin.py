"""Only this app's page may talk to the server: by its rule, by raw requests, and with pages of a real browser."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from pages.ui.same_origin import refusal

LOCAL = ["localhost", "127.0.0.1"]
OPENING = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
}
OPENS = """
(url) => new Promise((resolve) => {
  const socket = new WebSocket(url);
  socket.onopen = () => { socket.close(); resolve("opened"); };
  socket.onerror = () => resolve("refused");
})
"""


def headers(host: str | None, *origins: str) -> list[tuple[bytes, bytes]]:
    given = [] if host is None else [(b"host", host.encode())]
    return given + [(b"Origin", origin.encode()) for origin in origins]


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8501", "http://localhost:8501"),
        ("127.0.0.1:8501", "http://127.0.0.1:8501"),
        ("localhost:9000", "http://localhost:9000"),  # ssh -L 9000:localhost:8501
        ("LOCALHOST:9000", "http://localhost:9000"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost", "https://localhost"),  # a proxy that speaks https hands the Host on
        ("localhost:443", "https://localhost"),
    ],
)
def test_own_pages_are_taken(host: str, origin: str) -> None:
    assert refusal(headers(host, origin), LOCAL) == ""


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8501", "http://localhost:1234"),
        ("localhost:8501", "http://localhost"),
        ("localhost:8501", "http://127.0.0.1:8501"),
        ("localhost:8501", "null"),  # a sandboxed frame, a file
        ("localhost:8501", ""),
        ("localhost:8501", "http://localhost:8501@other"),
        ("localhost:8501", "http://localhost:8501/"),
        ("localhost:8501", "http://localhost:99999"),
        ("localhost:8501", "http://localhost:8501.other"),
        ("localhost:8501", "file://localhost:8501"),
        ("localhost:80", "https://localhost"),
        ("localhost:8501", "chrome-extension://localhost:8501"),
    ],
)
def test_pages_of_others_are_refused(host: str, origin: str) -> None:
    assert "only pages of this server" in refusal(headers(host, origin), LOCAL)


@pytest.mark.parametrize("host", ["other:8501", "localhost.other", "localhost:x", "a@localhost", "", "localhost/"])
def test_hosts_that_are_not_allowed_are_refused_whatever_the_origin(host: str) -> None:
    for origins in ([f"http://{host}"], []):
        assert "server.allowedHosts" in refusal(headers(host, *origins), LOCAL)


def test_one_host_and_at_most_one_origin() -> None:
    own = "http://localhost:8501"
    assert refusal(headers(None, own), LOCAL)
    assert refusal(headers("localhost:8501", own, own), LOCAL)
    assert refusal([*headers("localhost:8501", own), *headers("localhost:8501")], LOCAL)
    assert refusal(headers("localhost:8501"), LOCAL) == ""  # a program: it could say any Origin


def test_allowed_hosts_are_those_of_streamlit() -> None:
    for allowed in (["*"], [], ["*.lab"], ["Box.Lab."]):
        assert refusal(headers("box.lab:8501", "http://box.lab:8501"), allowed) == ""
    assert refusal(headers("lab", "http://lab"), ["*.lab"])


def asked(url: str, method: str, path: str, **more: str) -> int:
    """The status that a server answers; 101 opens a WebSocket."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, path, headers=more)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_real_server_opens_a_websocket_for_its_own_page_alone(usual_server: str) -> None:
    port = urlsplit(usual_server).port

    def opened(**more: str) -> int:
        return asked(usual_server, "GET", "/_stcore/stream", **OPENING, **more)

    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost:9000"):
        assert opened(Host=host, Origin=f"http://{host}") == 101
    assert opened(Host=f"localhost:{port}") == 101
    for origin in ("http://localhost:1234", f"http://127.0.0.1:{port}", "null", "http://localhost", "https://other"):
        assert opened(Host=f"localhost:{port}", Origin=origin) == 403, origin
    assert opened(Host="other", Origin="http://other") == 403


def test_a_real_server_takes_uploads_and_questions_of_its_own_page_alone(usual_server: str) -> None:
    upload = "/_stcore/upload_file/session/file"
    for method in ("PUT", "DELETE", "OPTIONS", "POST"):
        assert asked(usual_server, method, upload, Origin="http://localhost:1234") == 403, method
    assert asked(usual_server, "OPTIONS", upload, Origin=usual_server) == 204
    for path in ("/", "/_stcore/health", "/_stcore/host-config"):
        assert asked(usual_server, "GET", path) == asked(usual_server, "GET", path, Origin=usual_server) == 200
        assert asked(usual_server, "GET", path, Origin="http://localhost:1234") == 403
        assert asked(usual_server, "GET", path, Host="rebound.example") == 403


@contextmanager
def another_page() -> Iterator[int]:
    """The port of a server of this machine with an empty page."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>another</title>")

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def relay(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError), one, other:  # the other direction may be closed first
        while data := one.recv(65536):
            other.sendall(data)


@contextmanager
def forwarded(port: int) -> Iterator[int]:
    """Another port of this machine that leads to that one, as `ssh -L` makes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def carry() -> None:
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return
                there = socket.create_connection(("127.0.0.1", port))
                for pair in ((taken, there), (there, taken)):
                    threading.Thread(target=relay, args=pair, daemon=True).start()

        threading.Thread(target=carry, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_in_a_browser_a_page_of_another_port_gets_nothing_and_a_forwarded_port_all(
    usual_server: str, page: Page
) -> None:
    port = urlsplit(usual_server).port
    assert port is not None
    stream = f"ws://localhost:{port}/_stcore/stream"
    with another_page() as other:
        page.goto(f"http://localhost:{other}")
        assert page.evaluate(OPENS, stream) == "refused"
    page.goto(f"http://localhost:{port}/_stcore/health")
    assert page.evaluate(OPENS, stream) == "opened"
    with forwarded(port) as port_here:
        page.goto(f"http://localhost:{port_here}")
        expect(page.get_by_role("heading", name="Rank Explorer")).to_be_visible()
        page.goto("about:blank")
