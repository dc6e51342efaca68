"""A registry behind TLS that asks for a certificate and a password gets what the settings say."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from penstock.schemas.registry import ConfluentRegistry, TransientLookupError
from penstock.settings import Settings
from tests.integration.authority import Authority

FLIGHT = {"type": "record", "name": "flight", "fields": [{"name": "id", "type": "string"}]}
EXPECTED = "Basic " + base64.b64encode(b"ann:open sesame").decode()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == EXPECTED
        body = json.dumps({"schema": json.dumps(FLIGHT)} if known else {"error_code": 401, "message": "who?"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("registry"))
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_certificate_key_and_password_reach_the_registry(url: str, authority: Authority) -> None:
    certificate, key = authority.sign("worker", "a secret")
    settings = Settings(bootstrap_servers="127.0.0.1:1").model_copy(
        update={
            "schema_registry_url": url,
            "schema_registry_user": "ann",
            "schema_registry_password": SecretStr("open sesame"),
            "ssl_ca_location": str(authority.certificate),
            "ssl_certificate_location": str(certificate),
            "ssl_key_location": str(key),
            "ssl_key_password": SecretStr("a secret"),
        }
    )
    registry = ConfluentRegistry.from_settings(settings)
    assert registry.schema(7) == FLIGHT
    registry.close()
    bare = {"ssl_certificate_location": None, "ssl_key_location": None, "ssl_key_password": None}
    stranger = ConfluentRegistry.from_settings(settings.model_copy(update=bare))
    with pytest.raises(TransientLookupError):
        stranger.schema(7)
    stranger.close()
