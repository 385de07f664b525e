"""A server on loopback that speaks S3, and a proxy before it that fails now and then."""

import contextlib
import http.client
import http.server
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

Fault = Literal["503", "500", "stall", "cut"]

BUCKET = "plates"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server with an empty bucket, in a process of its own."""
    pytest.importorskip("moto", reason="moto, the server that speaks S3, is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **KEYS})
    try:
        _create_bucket(server, port)
        yield port
    finally:
        server.terminate()
        server.wait()


def _create_bucket(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            connection.close()
            return
        except ConnectionError:
            time.sleep(0.1)
    raise AssertionError("the S3 server did not start")


class Faulty(http.server.ThreadingHTTPServer):
    """Passes requests on to a port, but spoils every `each`-th whose path holds `only`.

    `503`: SlowDown, as S3 says under load. `500`: InternalError. `stall`: no answer. `cut`: half of the body.
    """

    def __init__(self, port: int, each: int, fault: Fault = "503", only: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.behind, self.each, self.fault, self.only = port, each, fault, only
        self.requests = self.faults = self._counted = 0
        self.asked: list[str] = []  # method and path of each request
        self.lock = threading.Lock()

    def spoils(self, method: str, path: str) -> Fault | None:
        """How this request fails, if it does."""
        with self.lock:
            self.requests += 1
            self.asked.append(f"{method} {path}")
            self._counted += self.only in path
            fails = self.each > 0 and self.only in path and self._counted % self.each == 0
            self.faults += fails
            return self.fault if fails else None


class _Pass(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.server.spoils(self.command, self.path)
        if fault == "stall":
            select.select([self.connection], [], [], 60)  # until the client has gone
            self.close_connection = True
        elif fault in ("503", "500"):
            code = "SlowDown" if fault == "503" else "InternalError"
            said = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
            self._send(int(fault), {"content-type": "application/xml"}, said.encode())
        else:
            self._pass_on(body, cut=fault == "cut")

    def _pass_on(self, body: bytes, cut: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        connection.request(self.command, self.path, body, headers | {"host": self.headers["host"]})
        answer = connection.getresponse()
        content = answer.read()
        length = answer.headers.get("content-length") if self.command == "HEAD" else str(len(content))
        self._send(answer.status, dict(answer.getheaders()), content[: len(content) // 2] if cut else content, length)
        connection.close()
        self.close_connection = self.close_connection or cut

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("content-length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 - the names that the server looks for

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextlib.contextmanager
def faulty(port: int, each: int = 0) -> Iterator[Faulty]:
    """A proxy before an S3 server; its address is `127.0.0.1:{server_port}`."""
    with Faulty(port, each) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
