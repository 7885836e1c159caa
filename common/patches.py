"""Every use of another module's private names, each with its reason.

tests/test_patches.py fails for each one that is no longer needed.
"""

import struct
from contextlib import contextmanager

_SPANISH = {
    "usage: ": "uso: ",
    "options": "opciones",
    "positional arguments": "argumentos",
    "show this help message and exit": "muestra esta ayuda y termina",
    "the following arguments are required: %s": "falta %s",
    "unrecognized arguments: %s": "no se conoce %s (un valor con espacios va entre comillas)",
    "not allowed with argument %s": "no va junto con %s",
    "expected one argument": "le falta un valor",
    "ignored explicit argument %r": "no admite el valor %r",
    "argument %(argument_name)s: %(message)s": "%(argument_name)s: %(message)s",
    "invalid choice: %(value)r (choose from %(choices)s)":
        "%(value)r no vale; elige entre %(choices)s",
}


def argparse_in_spanish(argparse) -> None:
    """argparse has no Spanish translation; gettext, which it asks, finds none on most machines."""
    argparse._ = lambda text: _SPANISH.get(text, text)


def tolerant_decoder(data) -> None:
    """pika.data.decode_value raises for a header of NaN, of the year 30000 or 400 tables deep, and
    so ends every consumer of the queue in turn (github.com/pika/pika/issues/1698, mended for times
    after 1.4.4). Read such a value as None."""
    original = data.decode_value

    def decode_value(encoded: bytes, offset: int) -> tuple:
        try:
            return original(encoded, offset)
        except (ArithmeticError, ValueError, OSError, RecursionError):
            size = {b"f": 4, b"d": 8, b"T": 8, b"D": 5}.get(encoded[offset:offset + 1])
            if size is None:  # a table or an array starts with its length
                size = 4 + struct.unpack_from(">I", encoded, offset + 1)[0]
            return None, offset + 1 + size

    data.decode_value = decode_value


def short_waits(poller) -> None:
    """pika's select() waits for 5 s, and on Windows no Ctrl-C ends a select()."""
    poller._MAX_POLL_TIMEOUT = 0.2


@contextmanager
def one_write(connection):
    """pika makes a system call for each frame, three for an event; write all frames of the block
    with one. Without it, level 3 publishes at half the speed."""
    if hasattr(connection, "_impl"):  # a BlockingConnection
        connection = connection._impl
    frames: list[bytes] = []
    connection._output_marshaled_frames = frames.extend
    try:
        yield
    finally:
        del connection._output_marshaled_frames
        if frames and connection._transport:  # else the connection is gone, and they with it
            connection._output_marshaled_frames([b"".join(frames)])


def smtp_host(server, host: str) -> None:
    """smtplib.SMTP.connect(), unlike the constructor, does not keep the host name, which TLS
    compares with the certificate (github.com/python/cpython/issues/80275, mended after 3.13)."""
    server._host = host
