"""A TCP proxy in front of a broker, to break what lies between: reset, black hole, one direction, slow bytes."""

import socket
import struct
import threading
import time
from contextlib import suppress

CHUNK = 65536
POLL_S = 0.05


class Proxy:
    """Listens on 127.0.0.1 and passes everything on to `port`, until told otherwise.

    held: directions in which nothing passes while they are in it, though every socket stays open:
    "up" is towards the broker, "down" is what the broker answers. cut_after: how many bytes more pass
    upwards before all connections are reset. latency_s: each piece waits so long, and goes out in
    single bytes.
    """

    def __init__(self, port: int):
        self.held: set[str] = set()
        self.cut_after: int | None = None
        self.latency_s = 0.0
        self.connections = 0  # ever
        self._target = port
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Every connection ends with a RST, as when a firewall or a machine in between goes down."""
        pairs, self._pairs = self._pairs, []
        for sockets in pairs:
            for one in sockets:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
                    one.close()

    def close(self) -> None:
        self._server.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            self.connections += 1
            self._pairs.append((client, broker))
            for one in (client, broker):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for direction, source, sink in (("up", client, broker), ("down", broker, client)):
                threading.Thread(target=self._pump, args=(direction, source, sink), daemon=True).start()

    def _pump(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(CHUNK):
                while direction in self.held:
                    time.sleep(POLL_S)
                if direction == "up" and self.cut_after is not None:
                    piece, self.cut_after = piece[:self.cut_after], self.cut_after - len(piece)
                if self.latency_s:
                    time.sleep(self.latency_s)
                    for byte in piece:
                        sink.sendall(bytes([byte]))
                else:
                    sink.sendall(piece)
                if self.cut_after is not None and self.cut_after <= 0:
                    self.cut_after = None
                    self.reset()
        except OSError:
            pass  # reset
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # the other direction's thread wakes, and ends too
                one.close()
