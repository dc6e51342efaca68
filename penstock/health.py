"""Every worker's small HTTP server: ``/metrics``, ``/health/live`` and ``/health/ready``, which says why not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from penstock.settings import InvalidSettings

STUCK_S = 5.0
"""A loop that is longer than this in one call is not ready, whatever it waits for."""


BROKER = "broker"
"""What readiness calls the way to Kafka."""


class Doing(NamedTuple):
    """The loop's phase, and for how many seconds it has been in it."""

    phase: str
    seconds: float


class Health:
    """What a worker knows of itself. ``waiting_for`` maps what is missing to why; empty means ready."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._waiting_for: dict[str, str] = {"start": "the worker is starting"}
        self._asked: dict[str, Callable[[], str | None]] = {}
        self._began: tuple[str, float] | None = None
        self._clock = clock
        self.alive = True

    def wait(self, what: str, why: str | None) -> None:
        """``what`` is missing because of ``why``; None when it is there."""
        if why is None:
            self._waiting_for.pop(what, None)
        else:
            self._waiting_for[what] = why

    def ask(self, what: str, why: Callable[[], str | None]) -> None:
        """The same, found out whenever somebody wants to know: the loop may hang over it. Called by any thread."""
        self._asked[what] = why

    def asked(self, what: str) -> str | None:
        """Why ``what`` is missing, asked now; None too where nobody knows of it."""
        why = self._asked.get(what)
        return None if why is None else why()

    def began(self, phase: str) -> None:
        """The loop is in ``phase`` from now on, until ``ended``."""
        self._began = phase, self._clock()

    def ended(self) -> None:
        self._began = None

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """The same for what is done in here."""
        self.began(phase)
        try:
            yield
        finally:
            self.ended()

    @property
    def doing(self) -> Doing | None:
        began = self._began  # the loop's thread may be done with it any moment
        return None if began is None else Doing(began[0], self._clock() - began[1])

    @property
    def waiting_for(self) -> dict[str, str]:
        found = {**self._waiting_for, **{what: why for what, ask in self._asked.items() if (why := ask()) is not None}}
        if (doing := self.doing) is not None and doing.seconds >= STUCK_S:
            found["loop"] = f"in {doing.phase} for {doing.seconds:.0f} s"
        return found

    @property
    def ready(self) -> bool:
        return not self.waiting_for


class HealthServer:
    """Serves on a thread of its own until ``close``. ``port`` is the one it got. Raises ``InvalidSettings`` where it
    cannot listen."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    return self._say(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
                if self.path == "/health/live":
                    return self._say_json(200 if health.alive else 503, {"alive": health.alive})
                if self.path == "/health/ready":
                    answer = {"ready": health.ready, "waiting_for": health.waiting_for}
                    return self._say_json(200 if health.ready else 503, answer)
                return self._say_json(
                    404, {"error": f"no {self.path}; there are /metrics, /health/live, /health/ready"}
                )

            def _say_json(self, status: int, answer: dict[str, object]) -> None:
                self._say(status, "application/json", json.dumps(answer).encode())

            def _say(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a log line."""

        try:
            self._server = ThreadingHTTPServer((host, port), Answer)
        except OSError as error:
            raise InvalidSettings(
                f"/metrics and /health cannot listen on port {port} of {host}: {error.strerror}. Set "
                "PENSTOCK_METRICS_PORT to a free port (0 finds one), or PENSTOCK_METRICS_HOST to one of this machine's"
            ) from None
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
