"""How far every stage of a plan has come, read from the broker: log ends, committed offsets, and the event-time
watermarks that travel in the offsets' metadata. A client of its own, so that it holds whatever the workers say of
themselves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from penstock.plan import Plan, StagePlan
from penstock.records import Partition, watermark_of
from penstock.settings import Settings
from penstock.topics import admin_client
from penstock.transport.protocol import Position

MARKER = 1
"""A transaction's marker at the end of a log is never committed by a consumer: it is no lag. Each stage that writes to
a topic may leave one behind the last row."""
TIMEOUT_S = 15.0
LOOK_EVERY_S = 0.03
NOT_YET = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
)
"""Leaders of topics that were made just now may not know it yet, nor a client those of a broker that came back."""
PATIENCE_S = 2 * TIMEOUT_S
"""The request ends by itself before."""


@dataclass(frozen=True, slots=True)
class Offsets:
    """One look. ``ends``: end offset of every partition; ``committed``: by stage and partition of its inputs;
    ``markers``: by topic, how many may lie behind its last row."""

    at: float
    ends: Mapping[Partition, int]
    committed: Mapping[str, Mapping[Partition, Position]]
    markers: Mapping[str, int] = field(default_factory=dict)

    def end(self, topic: str) -> int:
        """End offsets of the topic's partitions, summed."""
        return sum(end for partition, end in self.ends.items() if partition.topic == topic)

    def lag(self, stage: StagePlan) -> dict[str, int]:
        """Rows that the stage has not committed, by input topic; markers at the end are left out."""
        found = {}
        for source in stage.inputs:
            left = (self._left(stage.name, partition) for partition in self.ends if partition.topic == source.topic)
            found[source.topic] = sum(rows for rows in left if rows > self.markers.get(source.topic, MARKER))
        return found

    def watermark(self, stage: StagePlan) -> int | None:
        """Smallest watermark (ms since epoch) of the stage's partitions that have lag, None where one of them has
        committed nothing yet; ``FAR`` without lag."""
        slowest = FAR
        for source in stage.inputs:
            for partition in self.ends:
                if partition.topic != source.topic:
                    continue
                if self._left(stage.name, partition) <= self.markers.get(partition.topic, MARKER):
                    continue
                at = self.committed[stage.name].get(partition)
                if at is None:
                    return None
                slowest = min(slowest, at.watermark)
        return slowest

    def _left(self, stage: str, partition: Partition) -> int:
        at = self.committed[stage].get(partition)
        return self.ends[partition] - (at.offset if at is not None else 0)


FAR = 2**62
"""The watermark of a stage that has read all there is."""


class OffsetReader:
    """Reads ``Offsets`` of a plan, or of some of its stages and their inputs: one request for all ends, one a group."""

    def __init__(self, plan: Plan, settings: Settings, stages: Sequence[StagePlan] | None = None) -> None:
        self._plan, self._settings = plan, settings
        self._stages = stages if stages is not None else plan.stages
        topics = {source.topic for stage in self._stages for source in stage.inputs}
        writers = [topic for stage in plan.stages for topic in stage.outputs]
        self._markers = {topic.name: max(MARKER, writers.count(topic.name)) for topic in plan.topics}
        self._admin: AdminClient = admin_client(settings)
        self._latest = {
            TopicPartition(topic.name, number): OffsetSpec.latest()
            for topic in plan.topics
            if stages is None or topic.name in topics
            for number in range(topic.partitions)
        }

    def read(self) -> Offsets:
        """Offsets as they are now. Raises ``KafkaException`` when the broker does not answer."""
        groups = [stage.name for stage in self._stages]
        # committed before ends: a row that arrives in between counts as lag, never the other way round
        asked = {
            name: self._admin.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(self._plan.group(name))], request_timeout=TIMEOUT_S
            )[self._plan.group(name)]
            for name in groups
        }
        committed = {
            name: {
                Partition(at.topic, at.partition): Position(at.offset, watermark_of(at.metadata))
                for at in answer.result(PATIENCE_S).topic_partitions
                if at.offset >= 0
            }
            for name, answer in asked.items()
        }
        return Offsets(time.monotonic(), self.ends(), committed, self._markers)

    def ends(self) -> dict[Partition, int]:
        """End offset of every partition of the plan's topics. Raises ``KafkaException``."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            asked = self._admin.list_offsets(self._latest, request_timeout=TIMEOUT_S)
            try:
                return {
                    Partition(p.topic, p.partition): answer.result(PATIENCE_S).offset for p, answer in asked.items()
                }
            except KafkaException as error:
                passing = error.args[0].retriable() or error.args[0].code() in NOT_YET
                if not passing or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
            self._admin = admin_client(self._settings)  # librdkafka's admin client may keep a leader's epoch for ever


class Watch:
    """The slowest watermark of some stages, for a replay that must not run away from them.

    ``inputs``: the topics that are produced to; ``sent()``: how many messages so far, delivered or not, and the event
    time (ms since epoch) of the newest.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        stages: Sequence[StagePlan],
        inputs: Sequence[str],
        sent: Callable[[], tuple[int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = OffsetReader(plan, settings, stages)
        self._stages, self._inputs, self._sent, self._clock = stages, inputs, sent, clock
        self._looked = float("-inf")
        self._slowest: int | None = None

    def slowest(self) -> int | None:
        """Smallest event time (ms since epoch) up to which any of the stages has committed, that of the newest message
        when all have read all; None while nothing is known. Looks at the broker, though not more often than worth it.
        """
        if self._clock() - self._looked >= LOOK_EVERY_S:
            sent, newest = self._sent()  # before the look: what comes after it is not known to have been read
            try:
                look = self._reader.read()
            except KafkaException:
                return self._slowest  # the next look may succeed; until then the last one holds the replay back
            self._slowest = self._judge(look, sent, newest)
            self._looked = self._clock()
        return self._slowest

    def _judge(self, look: Offsets, sent: int, newest: int) -> int | None:
        found = [look.watermark(stage) for stage in self._stages]
        if None in found:
            return None
        slowest = min(watermark for watermark in found if watermark is not None)
        if slowest < FAR:
            return slowest
        # what is on its way to the log has not been read either
        return newest if sum(map(look.end, self._inputs)) >= sent else self._slowest
