"""A server that sends what a test says, byte for byte."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ctgpu.errors import CtgpuError

#: A server is asked to end after this; only a client that hangs ever notices.
HANGING_S = 30.0
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@dataclass
class Wire:
    """What a server has heard so far, and whether it is to stop.

    Attributes
    ----------
    port : int
        Where it listens, on the loopback interface.
    heard : list of bytes
        The head of each request.
    closing : threading.Event
        Set when the test is over.
    """

    port: int
    heard: list[bytes] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def repeat(self, connection: socket.socket, piece: bytes, every_s: float = 0.02) -> None:
        """Send the same again and again until nobody wants it any more."""
        while not self.closing.wait(every_s):
            connection.sendall(piece)


Talk = Callable[[socket.socket, Wire], None]


@contextmanager
def wire(talk: Talk, *, reads: bool = True, tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Serve; `talk` answers one request (or, unless it `reads`, one connection) at a time."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = Wire(listener.getsockname()[1])
    open_connections = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            line = tls.wrap_socket(connection, server_side=True) if tls else connection
            with line:
                while not reads or (head := _read_head(line)):
                    served.heard.append(head if reads else b"")
                    talk(line, served)
                    if not reads:
                        return

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield served
    finally:
        served.closing.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # which ends a call of accept()
        listener.close()
        for connection in open_connections:
            with suppress(OSError):
                connection.close()


def _read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (piece := connection.recv(1)):
            return b""
        head += piece
    return head


def failure_of(action: Callable[[], object]) -> CtgpuError:
    """The error that an action ends with; one that does not end fails the test."""
    failures: list[CtgpuError] = []

    def run() -> None:
        try:
            action()
        except CtgpuError as error:
            failures.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(HANGING_S)
    assert not worker.is_alive(), "it still waits"
    assert failures, "it succeeded, or raised what is no error of ours"
    return failures[0]
