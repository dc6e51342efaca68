"""How far the monitor's workers have counted their sources, read from what they commit: the watermark travels in the
offsets' metadata, and offsets and partials are of one transaction. So whoever has read the profiles up to the ends that
were looked up after the offsets has every partial of every row that the offsets lie behind, whatever the order in which
partitions were counted.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from penstock.connecting import connecting
from penstock.plan import Plan
from penstock.records import NO_TIME, Partition, watermark_of
from penstock.settings import Settings
from penstock.topics import BrokerUnavailable, admin_client
from penstock.transport.kafka import SILENCE_S
from penstock.transport.protocol import Position

TIMEOUT_S = 5.0
MARKERS = 16
"""Behind the last row of a log lie the markers of the transactions that wrote it, up to one of each worker; nobody
commits past them, and they are nothing that is still to be counted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One look. ``watermark``: ms since epoch, every source is counted up to there; ``stopped``: nothing has been
    written or counted for the idle time. Both hold for who has read the profiles up to ``ends``: end offset by
    partition.
    """

    watermark: int
    stopped: bool
    ends: Mapping[int, int]


class Sources:
    """Looks at the monitor's sources. ``clock`` is in seconds."""

    def __init__(self, plan: Plan, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._group, self._profiles = plan.group("monitor"), plan.topic("profiles").name
        watched = [source.topic for source in plan.stage("monitor").inputs]
        self._watched = [Partition(topic, n) for topic in watched for n in range(plan.partitions)]
        profiles = [Partition(self._profiles, n) for n in range(plan.partitions)]
        self._latest = {TopicPartition(*at): OffsetSpec.latest() for at in (*self._watched, *profiles)}
        self._settings, self._admin = settings, admin_client(settings)
        with connecting():  # it joins nothing: a consumer of the group asks for what the group has committed
            self._consumer = Consumer({**settings.kafka(), "group.id": self._group, "log_level": 0})
        self._still = Stillness(plan.monitors.idle_ms / 1000, clock)
        self._bootstrap, self._clock = settings.bootstrap_servers, clock
        self._silence_s = max(SILENCE_S, settings.session_timeout_ms / 2000)
        self._heard_at = clock()

    def look(self) -> Progress:
        """The progress now. Raises ``BrokerUnavailable`` when the broker does not say."""
        try:
            # committed before ends: what is committed in between is not claimed to be below them
            committed, ends = self._committed(), self._ends()
        except (KafkaException, TimeoutError) as error:
            # after an outage a client may ask with the leader's former epoch for ever
            self._admin = admin_client(self._settings)
            why = error.args[0].str() if isinstance(error, KafkaException) else "no answer in time"
            raise BrokerUnavailable(f"how far {self._group!r} has come is not known: {why}") from None
        self._heard_at = self._clock()
        profiles = {at.number: end for at, end in ends.items() if at.topic == self._profiles}
        watermark, stopped = self._still.judge({at: (committed.get(at), ends[at]) for at in self._watched})
        return Progress(watermark, stopped, profiles)

    def trouble(self) -> str | None:
        """As of a transport, by the looks: whoever asks goes on looking."""
        if (silent := self._clock() - self._heard_at) < self._silence_s:
            return None
        return f"nothing was heard of Kafka at {self._bootstrap} for {silent:.0f} s"

    def _committed(self) -> dict[Partition, Position]:
        # an admin client's own call may wait for ever for a coordinator that was away (librdkafka's issue 4605)
        found = self._consumer.committed([TopicPartition(*at) for at in self._watched], TIMEOUT_S)
        for at in found:
            if at.error is not None:
                raise KafkaException(at.error)
        return {
            Partition(at.topic, at.partition): Position(at.offset, watermark_of(at.metadata))
            for at in found
            if at.offset >= 0
        }

    def _ends(self) -> dict[Partition, int]:
        asked = self._admin.list_offsets(self._latest, request_timeout=TIMEOUT_S)
        return {Partition(at.topic, at.partition): end.result(2 * TIMEOUT_S).offset for at, end in asked.items()}


class Stillness:
    """Which partitions still count: one that is read to its end and has not moved for ``idle_s`` holds nobody back."""

    def __init__(self, idle_s: float, clock: Callable[[], float]) -> None:
        self._idle_s, self._clock = idle_s, clock
        self._moved: dict[Partition, tuple[tuple[int, int], float]] = {}

    def judge(self, places: Mapping[Partition, tuple[Position | None, int]]) -> tuple[int, bool]:
        """The smallest watermark of the partitions that move, ``NO_TIME`` where one of them is not begun or none
        moves, and whether none does. ``places``: what is committed, and the end offset.
        """
        now = self._clock()
        moving = []
        for partition, (at, end) in places.items():
            offset = at.offset if at is not None else 0
            if self._moved.get(partition, (None, now))[0] != (offset, end):
                self._moved[partition] = (offset, end), now
            if end - offset > MARKERS or now - self._moved[partition][1] < self._idle_s:
                moving.append(at.watermark if at is not None else NO_TIME)
        return min(moving, default=NO_TIME), not moving
