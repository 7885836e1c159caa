"""The service that challenges 3 and 7 call before the effect: GET SERVICE_URL/?id=<event id>."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOLD_S = 10


class Service:
    """Answers 200, or 503 for the events in `failing`: id -> seconds from its first call on.

    calls: id -> [(time.monotonic(), status)]. An event called `most_calls` times gets a 200: the
    hot loop is proved, and must not go on until the broker gives the event up.
    """

    def __init__(self, on_call: Callable[[str, int], None], most_calls: int):
        self.failing: dict[str, float] = {}
        self.calls: dict[str, list[tuple[float, int]]] = {}
        self.held, self.holding, self._let_go = "", threading.Event(), threading.Event()
        self._on_call, self._most_calls, self._lock = on_call, most_calls, threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(OSError):  # killed while it waits
                    self.send_response(service.answer(self.path.rpartition("=")[2].lower()))
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            do_POST = do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                """Nothing on the screen."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """The program was killed while it sent."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, event_id: str) -> int:
        with self._lock:
            calls = self.calls.setdefault(event_id, [])
            moment = time.monotonic()
            until = (calls[0][0] if calls else moment) + self.failing.get(event_id, -1)
            status = 503 if moment < until and len(calls) < self._most_calls else 200
            holds = event_id == self.held
            calls.append((moment, 0 if holds else status))
        self._on_call(event_id, 0 if holds else status)
        if holds:
            self.held = ""
            self.holding.set()
            self._let_go.wait(HOLD_S)
        return status

    def hold(self, event_id: str) -> None:
        """Do not answer the next call of this event until let_go(); holding: it has come."""
        self.holding.clear()
        self._let_go.clear()
        self.held = event_id

    def let_go(self) -> None:
        self.held = ""
        self._let_go.set()

    def accepted(self, event_id: str) -> bool:
        """Whether the service has ever answered 200 for it."""
        return any(status == 200 for _, status in self.calls.get(event_id, ()))

    def close(self) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()
