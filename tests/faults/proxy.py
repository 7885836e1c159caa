"""A TCP proxy in front of a broker: it resets, delays, cuts and blocks connections."""

import socket
import struct
import threading
import time
from contextlib import suppress

CHUNK = 65536
POLL_S = 0.05
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on 127.0.0.1 and forwards everything to `port`.

    held: the blocked directions. "up" is towards the broker, "down" is from the broker. Nothing
    passes in a blocked direction, not even the end of a connection.
    cut_after: the number of bytes, in both directions, that still pass before all connections are
    reset.
    latency_s: the delay of each chunk. With a delay, the chunk is sent in single bytes.
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
        """Return the number of open connections."""
        return len(self._open)

    def reset(self) -> None:
        """End every connection with a RST."""
        for pair in list(self._open):
            self._open.discard(pair)  # its threads no longer touch the sockets
            for end in pair:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads from the socket
                end.close()

    def swallow(self) -> None:
        """Forward nothing more on the open connections, without closing them. New ones work."""
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
            for end in (script, broker):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            pair = script, broker
            self._open.add(pair)
            for direction in (("up", script, broker), ("down", broker, script)):
                threading.Thread(target=self._pump, args=(pair, *direction), daemon=True).start()

    def _pump(self, pair: tuple, direction: str, source: socket.socket,
              sink: socket.socket) -> None:
        """Forward the bytes from source to sink, then close both."""
        with suppress(OSError):  # sink is closed
            while chunk := self._receive(pair, direction, source):
                self._pass_on(chunk, sink)
        if pair in self._open:
            self._open.discard(pair)
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # wakes the thread of the other direction
                end.close()

    def _receive(self, pair: tuple, direction: str, source: socket.socket) -> bytes:
        try:
            chunk = source.recv(CHUNK)
        except OSError:  # a RST counts as the end of the stream
            chunk = b""
        while pair in self._open and (direction in self.held or pair in self._swallowed):
            time.sleep(POLL_S)
        return chunk

    def _pass_on(self, chunk: bytes, sink: socket.socket) -> None:
        with self._counting:
            chunk = chunk[:self.cut_after]
            if self.cut_after is not None:
                self.cut_after -= len(chunk)
            last = self.cut_after == 0
            if last:
                self.cut_after = None
        if self.latency_s:
            time.sleep(self.latency_s)
            for byte in chunk:
                sink.sendall(bytes([byte]))
        else:
            sink.sendall(chunk)
        if last:
            self.reset()
