"""A TCP proxy in front of a broker, to break what lies between: reset, black hole, one direction, slow bytes."""

import socket
import struct
import threading
import time
from contextlib import suppress

CHUNK = 65536
POLL_S = 0.05
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on 127.0.0.1 and passes everything on to `port`, until told otherwise.

    held: directions in which nothing passes while they are in it, not even a connection's end: "up" is
    towards the broker, "down" is what the broker answers. cut_after: how many bytes more pass, both
    ways together, before all connections are reset. latency_s: each piece waits so long, and goes out
    in single bytes.
    """

    def __init__(self, port: int):
        self.held: set[str] = set()
        self.cut_after: int | None = None
        self.latency_s = 0.0
        self.accepted = 0
        self._target = port
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._swallowed: set[tuple[socket.socket, socket.socket]] = set()
        self._counting = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._open)

    def reset(self) -> None:
        """Every connection ends with a RST, as when a machine in between goes down."""
        for pair in list(self._open):
            self._open.discard(pair)  # its threads leave the sockets alone from here on
            for one in pair:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                    one.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
                one.close()

    def swallow(self) -> None:
        """Nothing passes any more on the connections there are, and neither side is told; new ones work."""
        self._swallowed |= self._open

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()
        self._acceptor.join()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                script, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                script.close()
                continue
            for one in (script, broker):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            pair = script, broker
            self._open.add(pair)
            for way in (("up", script, broker), ("down", broker, script)):
                threading.Thread(target=self._pump, args=(pair, *way), daemon=True).start()

    def _pump(self, pair: tuple, direction: str, source: socket.socket, sink: socket.socket) -> None:
        """Pass on what comes from source, and at last its end."""
        with suppress(OSError):  # sink is gone
            while piece := self._receive(pair, direction, source):
                self._pass_on(piece, sink)
        if pair in self._open:
            self._open.discard(pair)
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # wakes the other direction's thread
                one.close()

    def _receive(self, pair: tuple, direction: str, source: socket.socket) -> bytes:
        try:
            piece = source.recv(CHUNK)
        except OSError:  # a RST is an end like another
            piece = b""
        while pair in self._open and (direction in self.held or pair in self._swallowed):
            time.sleep(POLL_S)
        return piece

    def _pass_on(self, piece: bytes, sink: socket.socket) -> None:
        with self._counting:
            piece = piece[:self.cut_after]
            if self.cut_after is not None:
                self.cut_after -= len(piece)
            last = self.cut_after == 0
            if last:
                self.cut_after = None
        if self.latency_s:
            time.sleep(self.latency_s)
            for byte in piece:
                sink.sendall(bytes([byte]))
        else:
            sink.sendall(piece)
        if last:
            self.reset()
