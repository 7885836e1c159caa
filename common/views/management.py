"""What AMQP does not tell, the unacked messages and which queues there are, from the management API
where it answers (https://www.rabbitmq.com/docs/management#http-api)."""

import base64
import json
import ssl
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit

from common.config import AMQP_PORTS, Settings

TIMEOUT_S = 3
ASK_AGAIN_S = 10  # after no answer: a view that looks every second must not wait every second


class Management:
    """problem: why the last queues() was empty, one Spanish sentence; "" if it was not."""

    def __init__(self, settings: Settings):
        self._settings, self.problem, self._ask_at = settings, "", 0.0

    def queues(self) -> dict[str, int | None]:
        """The unacked messages of each queue of the vhost, some seconds old; None: not counted yet.
        Empty if no URL's management API answers."""
        if time.monotonic() < self._ask_at:
            return {}
        for url in self._settings.urls:
            address = self._settings.management_url or default_address(url)
            parts = urlsplit(url)
            user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
            vhost = quote(unquote(parts.path[1:]) or "/", safe="")
            try:
                answer = ask("GET", address, user, password, f"queues/{vhost}?columns=name,"
                             "messages_unacknowledged", ca_file=self._settings.ca_file)
                self.problem = ""
                return {queue["name"]: queue.get("messages_unacknowledged") for queue in answer}
            except Exception as error:  # whatever it is that answers there
                why = f"da {error.code}" if isinstance(error, HTTPError) else "no responde"
                self.problem = f"Sin ack: no se sabe; {address} {why} (--management-url)."
        self._ask_at = time.monotonic() + ASK_AGAIN_S
        return {}


def default_address(url: str) -> str:
    """The AMQP port plus 10000, which is 15672 for 5672; `amqp://host` -> `http://host:15672`."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    scheme = "https" if parts.scheme == "amqps" else "http"
    return f"{scheme}://{host}:{(parts.port or AMQP_PORTS[parts.scheme]) + 10_000}"


def ask(method: str, address: str, user: str, password: str, path: str, body: dict | None = None,
        ca_file: Path | None = None, timeout_s: float = TIMEOUT_S) -> Any:
    """The answer's JSON, None if it is empty. Raises OSError and what else urllib raises."""
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{address}/api/{path}", method=method, data=json.dumps(body or {}).encode(),
        headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"})
    secure = address.startswith("https:")  # only then: to read the authorities takes 40 ms
    direct = urllib.request.build_opener(  # no proxy of the environment: it would see the password
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(
            context=ssl.create_default_context(cafile=ca_file) if secure else None))
    with direct.open(request, timeout=timeout_s) as answer:
        text = answer.read()
    return json.loads(text) if text else None
