"""Two worlds in which the same tests of transports and the loop run: the broker in memory and a real Kafka.

A world makes topics, appends rows as a foreign producer, gives transports to workers and reads what was committed;
``settled=False`` reads up to an open transaction instead of waiting for its end.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from confluent_kafka import Message, Producer

from penstock.records import Partition
from penstock.settings import Settings
from penstock.transport.kafka import KafkaTransport
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import Position, Transport

Committed = tuple[int, bytes | None, bytes | None, dict[str, bytes]]
"""partition, key, value, headers"""


class World(Protocol):
    def topic(self, name: str, partitions: int = 1, **config: str) -> str: ...
    def append(self, topic: str, rows: Sequence[tuple[bytes | None, bytes | None]]) -> None: ...
    def transport(self, group: str, slot: int = 0) -> Transport: ...
    def kill(self, transport: Transport) -> None: ...
    def rows(self, topic: str, settled: bool = True) -> list[Committed]: ...
    def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def topic(self, name: str, partitions: int = 1, **config: str) -> str:
        self.broker.create(name, partitions)
        if limit := config.get("max_message_bytes"):
            self.broker.refuses = lambda topic, row: (
                "Broker: Message size too large" if topic == name and len(row.value or b"") > int(limit) else None
            )
        return name

    def append(self, topic: str, rows: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        for key, value in rows:
            self.broker.append(topic, key, value)

    def transport(self, group: str, slot: int = 0) -> MemoryTransport:
        return MemoryTransport(self.broker, group, str(slot))

    def kill(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.kill()

    def rows(self, topic: str, settled: bool = True) -> list[Committed]:
        return [
            (number, row.key, row.value, {name: value or b"" for name, value in row.headers})
            for number, log in enumerate(self.broker.logs[topic])
            for row in log
            if row is not None
        ]

    def close(self) -> None:
        """Nothing outlives a test."""


class KafkaWorld:
    def __init__(
        self, bootstrap: str, make: Callable[..., str], read: Callable[..., list[Message]], prefix: str
    ) -> None:
        self.bootstrap, self._make, self._read, self._prefix = bootstrap, make, read, prefix
        self._transports: list[KafkaTransport] = []
        self.guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"

    def topic(self, name: str, partitions: int = 1, **config: str) -> str:
        return self._make(name, partitions, **config)

    def append(self, topic: str, rows: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 0, "partitioner": "murmur2_random"})
        for key, value in rows:
            producer.produce(topic, value, key)
        producer.flush()

    def group(self, name: str) -> str:
        """The group's name on the broker."""
        return f"{self._prefix}.{name}"

    def transport(self, group: str, slot: int = 0) -> KafkaTransport:
        settings = Settings(bootstrap_servers=self.bootstrap, slot=slot, guarantee=self.guarantee)
        self._transports.append(KafkaTransport(settings, self.group(group), "test"))
        return self._transports[-1]

    def kill(self, transport: Transport) -> None:
        """As close to kill -9 as one process allows: nothing is aborted, nothing is said; the next holder of the slot
        fences it.
        """

    def rows(self, topic: str, settled: bool = True) -> list[Committed]:
        return [
            (m.partition(), m.key(), m.value(), dict(m.headers() or []))  # type: ignore[arg-type]  # values are bytes
            for m in self._read(topic, settled=settled)
        ]

    def close(self) -> None:
        """Every client, the killed ones too: one that is left to the garbage collector blocks the interpreter in its
        destructor.
        """
        for transport in self._transports:
            transport.close()


class Recorder:
    """A placement that starts where the group left off and remembers what it was told."""

    def __init__(self, on_revoke: Callable[[], None] = lambda: None) -> None:
        self.owned: set[Partition] = set()
        self.revocations: list[set[Partition]] = []
        self._on_revoke = on_revoke

    def assigned(self, committed: Mapping[Partition, Position | None]) -> dict[Partition, int]:
        self.owned |= committed.keys()
        return {partition: at.offset if at else 0 for partition, at in committed.items()}

    def revoked(self, partitions: Iterable[Partition]) -> None:
        gone = set(partitions)
        self._on_revoke()
        self.revocations.append(gone)
        self.owned -= gone

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.revoked(partitions)
