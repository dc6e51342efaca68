"""A schema registry that knows one schema, and may hang: Confluent's API, as far as reading a schema goes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class SmallRegistry:
    """A context manager. Every id from ``first`` on is of ``schema``. ``asked``: requests so far."""

    def __init__(self, first: int, schema: dict[str, Any]) -> None:
        self.asked, self._hangs, self._goes_on = 0, False, threading.Event()
        registry = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked += 1
                if registry._hangs:
                    registry._goes_on.wait(60)
                    return
                number = self.path.partition("?")[0].removeprefix("/schemas/ids/")
                known = number.isdecimal() and int(number) >= first
                content = {"schema": json.dumps(schema)} if known else {"error_code": 40403, "message": "not found"}
                body = json.dumps(content).encode()
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="registry", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def hang(self) -> None:
        """Nothing is answered from now on."""
        self._goes_on.clear()
        self._hangs = True

    def come_back(self) -> None:
        """Requests that hang are given up, and the next is answered."""
        self._hangs = False
        self._goes_on.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.come_back()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
