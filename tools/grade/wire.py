"""The TCP proxy between the graded program and the judge's node.

It reads the AMQP frames that pass, so the judge knows what is acked, and it can stop the traffic
at one frame: `catch("ack")` holds the next ack, so that the program dies between commit and ack
however fast it is. Bytes that are no AMQP 0-9-1 pass unread.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 65536
LINGER_S = 0.3  # a quorum queue drops acks sent right before the close (docs/facts.md, broker 26)
RESET_AT_CLOSE = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
MARK = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY = 1, 2, 3
# (class, method), of https://www.rabbitmq.com/amqp-0-9-1-reference
PUBLISH, DELIVER, GET_OK = (60, 40), (60, 60), (60, 71)
ACK, REJECT, NACK = (60, 80), (60, 90), (60, 120)
WORDS = {ACK: "ack", REJECT: "reject", NACK: "nack"}


@dataclass
class Trap:
    """Where the traffic stops. kind: "ack" or "publish" of the program, "deliver" or "confirm" of
    the broker. bodies: of the messages that the caught ack answers for."""

    kind: str
    skip: int
    then: Callable[[], None] | None
    bodies: list[bytes] = field(default_factory=list)
    caught: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Pair:
    """The two sockets of a connection, and what is open on it."""

    program: socket.socket
    broker: socket.socket
    plain: bool = False  # no AMQP 0-9-1
    cut: bool = False
    # Per channel: delivery tag -> body; the delivery that is arriving: [tag, size, body, word]
    unacked: dict[int, dict[int, bytes]] = field(default_factory=dict)
    arriving: dict[int, list] = field(default_factory=dict)

    def delivered(self, channel: int, kind: int, payload: bytes) -> tuple[str, bytes] | None:
        """Note a frame of the broker that is a delivery, or a part of one; once it is complete,
        "first" or "again" and its body."""
        if kind == METHOD and struct.unpack_from(">HH", payload) in (DELIVER, GET_OK):
            after_tag = 5 + payload[4] if payload[2:4] == b"\x00\x3c" else 4  # a consumer tag
            tag, again = struct.unpack_from(">QB", payload, after_tag)
            self.arriving[channel] = [tag, 0, b"", "again" if again & 1 else "first"]
        elif channel in self.arriving and kind in (HEADER, BODY):
            message = self.arriving[channel]
            if kind == HEADER:
                [message[1]] = struct.unpack_from(">Q", payload, 4)
            else:
                message[2] += payload
            if len(message[2]) >= message[1]:
                self.unacked.setdefault(channel, {})[message[0]] = message[2]
                del self.arriving[channel]
                return message[3], message[2]
        return None

    def settled(self, channel: int, payload: bytes) -> list[bytes]:
        """The bodies that an ack, nack or reject of the program answers for."""
        tag, bits = struct.unpack_from(">QB", payload, 4)
        is_reject = struct.unpack_from(">HH", payload) == REJECT
        waiting = self.unacked.get(channel, {})
        multiple = bits & 1 and not is_reject
        tags = [each for each in waiting if multiple and (each <= tag or not tag)] or [tag]
        return [waiting.pop(each) for each in tags if each in waiting]


class Wire:
    """Listens on 127.0.0.1 and forwards to `port`. heard(word, body, moment) is told of
    each message: delivered for the "first" time, or "again"; its "ack", "nack" or "reject"; "cut":
    that ack gets lost. plain: it has seen a connection that it cannot read. published: how many
    messages of the program it has forwarded."""

    def __init__(self, port: int, heard: Callable[[str, bytes, float], None]):
        self._target, self._heard = port, heard
        self.plain, self.published = False, 0
        self._pairs: set[Pair] = set()
        self._trap: Trap | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def catch(self, kind: str, skip: int = 0, then: Callable[[], None] | None = None) -> Trap:
        """Stop the traffic at the frame of this kind after `skip` of them, until release() or
        cut(). then: called at once; the frame is forwarded afterwards. What an earlier trap holds
        passes, up to this one."""
        earlier, self._trap = self._trap, Trap(kind, skip, then)
        if earlier:
            earlier.released.set()
        return self._trap

    def release(self) -> None:
        """Let what was held pass; a trap that caught nothing is removed."""
        trap, self._trap = self._trap, None
        if trap:
            trap.released.set()

    def cut(self) -> None:
        """End every connection with a RST; what was held gets lost."""
        for pair in list(self._pairs):
            pair.cut = True
            self._close(pair, reset=True)
        self.release()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()
        self.cut()
        self._acceptor.join(1)

    def _accept(self) -> None:
        while True:
            try:
                program, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                program.close()
                continue
            pair = Pair(program, broker)
            for end in (program, broker):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.add(pair)
            for look, source, sink in ((self._from_program, program, broker),
                                       (self._from_broker, broker, program)):
                threading.Thread(target=self._pump, args=(pair, look, source, sink),
                                 daemon=True).start()

    def _pump(self, pair: Pair, look: Callable, source: socket.socket,
              sink: socket.socket) -> None:
        """Forward the frames from source to sink, then close both."""
        buffer = bytearray()
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                buffer += chunk
                for frame in _frames(pair, buffer):
                    self.plain = self.plain or pair.plain
                    look(pair, frame)
                    if pair.cut:
                        return
                    sink.sendall(frame)
        if source is pair.program:
            time.sleep(LINGER_S)
        self._close(pair)

    def _close(self, pair: Pair, reset: bool = False) -> None:
        self._pairs.discard(pair)
        for end in (pair.program, pair.broker):
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads from the socket
                else:
                    end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _from_program(self, pair: Pair, frame: bytes) -> None:
        kind, channel, payload = _parts(pair, frame)
        if kind != METHOD:
            return
        method = struct.unpack_from(">HH", payload)
        if method == PUBLISH:
            self._hold(self._sprung("publish"))
            self.published += not pair.cut
        elif method in WORDS:
            moment = time.monotonic()
            trap = self._sprung("ack") if method == ACK else None
            bodies = pair.settled(channel, payload)
            for body in bodies:
                self._heard(WORDS[method], body, moment)
            self._hold(trap, bodies)
            for body in bodies if pair.cut else ():
                self._heard("cut", body, time.monotonic())

    def _from_broker(self, pair: Pair, frame: bytes) -> None:
        kind, channel, payload = _parts(pair, frame)
        method = struct.unpack_from(">HH", payload) if kind == METHOD else None
        if method in (ACK, DELIVER):
            self._hold(self._sprung("confirm" if method == ACK else "deliver"))
        if arrived := pair.delivered(channel, kind, payload):
            self._heard(*arrived, time.monotonic())

    def _sprung(self, kind: str) -> Trap | None:
        """The trap, if this frame is the one that it waits for."""
        trap = self._trap
        if not trap or trap.kind != kind or trap.caught.is_set():
            return None
        if trap.skip:
            trap.skip -= 1
            return None
        if trap.then:  # first of all: each millisecond is one in which the program goes on
            trap.then()
            self._trap = None
        return trap

    def _hold(self, trap: Trap | None, bodies: list[bytes] | None = None) -> None:
        if trap:
            trap.bodies = bodies or []
            trap.caught.set()
            if not trap.then:
                trap.released.wait()


def _frames(pair: Pair, buffer: bytearray) -> Iterator[bytes]:
    """Take the complete frames out of the buffer."""
    while buffer:
        size = len(buffer)
        if not pair.plain:
            if len(buffer) < len(MARK):
                return
            size = len(MARK) if buffer[:4] == b"AMQP" else 8 + int.from_bytes(buffer[3:7], "big")
            if size > len(buffer):
                return
            pair.plain = (bytes(buffer[:size]) != MARK if buffer[:4] == b"AMQP"
                          else buffer[size - 1] != 0xCE)
        frame = bytes(buffer[:size])
        del buffer[:size]
        yield frame


def _parts(pair: Pair, frame: bytes) -> tuple[int, int, bytes]:
    """Kind, channel and payload; kind 0 for what is no frame."""
    if pair.plain or frame[:4] == b"AMQP" or (frame[0] == METHOD and len(frame) < 12):
        return 0, 0, b""
    return frame[0], int.from_bytes(frame[1:3], "big"), frame[7:-1]
