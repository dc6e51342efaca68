"""A TCP proxy in front of the broker, so that the network between it and everybody else can be made bad."""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from penstock.local.broker import EmbeddedBroker
from penstock.local.kafka_server import PROPERTIES_NAME, KafkaServer
from penstock.local.state import BrokerState

CHUNK = 64 << 10
LINGER_NONE = struct.pack("ii", 1, 0)
"""A socket closed with this sends a reset."""


class Proxy:
    """Forwards 127.0.0.1:``port`` to 127.0.0.1:``target``, in a thread of its own; a context manager.

    ``delay_s`` of every piece, ``bytes_per_s`` of every connection (0: no limit), ``open``: while it is false nothing
    is forwarded and nothing is closed, as when a cable is pulled. All may be set at any time.
    """

    def __init__(self) -> None:
        self.target = 0
        self.delay_s, self.bytes_per_s, self.open = 0.0, 0, True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.StreamWriter] = set()
        self._lost: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._call(asyncio.start_server(self._serve, sock=self._listener, limit=CHUNK))
        return self

    def __exit__(self, *_: object) -> None:
        self.open = True
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    def reset(self) -> int:
        """Resets every connection, on both sides; returns how many."""
        count: int = self._call(self._reset())
        return count

    def lose(self) -> None:
        """Whatever is sent on the connections of now is lost from now on, and nobody is told: their peers are gone for
        good. New ones are served."""
        self._call(self._lose())

    def _call(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self.target, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_broker}
        self._connections |= both
        try:
            await asyncio.gather(self._pump(reader, to_broker), self._pump(from_broker, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections -= both
            for side in both:
                side.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(CHUNK):
            await self._forward(piece, writer)
        raise ConnectionResetError  # one side has closed, so the other is closed too

    async def _lose(self) -> None:
        self._lost |= self._connections

    async def _forward(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        if writer in self._lost:
            return
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.bytes_per_s:
            await asyncio.sleep(len(piece) / self.bytes_per_s)
        while not self.open:
            await asyncio.sleep(0.02)
        writer.write(piece)
        await writer.drain()

    async def _reset(self) -> int:
        sides = list(self._connections)
        for writer in sides:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            writer.transport.abort()
        return len(sides) // 2

    async def _shut(self) -> None:
        await self._reset()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class BrokerBehind(EmbeddedBroker):
    """A broker that tells its clients to come through ``proxy``."""

    def __init__(self, data_dir: Path, proxy: Proxy) -> None:
        super().__init__(data_dir)
        self._proxy = proxy

    def _launch(self, server: KafkaServer, state: BrokerState) -> BrokerState:
        file = self.data_dir / PROPERTIES_NAME
        own, told = (f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n" for port in (state.port, self._proxy.port))
        said = file.read_text("ascii")
        assert own in said, f"{file} tells its clients another address than {own}"
        file.write_text(said.replace(own, told), "ascii")
        self._proxy.target = state.port
        return super()._launch(server, state)
