"""The conformance suite of transports: the broker in memory and real Kafka give the loop the same guarantees."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client import REGISTRY

import penstock.loop as loop_module
from penstock.codec.avro import AvroEncoder
from penstock.codec.decoded import BadRow, Decoded
from penstock.dead_letter import DeadLetter
from penstock.fates import FateError
from penstock.health import Health
from penstock.intake import Intake, TopicReader
from penstock.local.resolve import BrokerHandle
from penstock.loop import Loop
from penstock.observer import Observer
from penstock.outbox import Outbox, UnencodableError
from penstock.pace import Pace
from penstock.records import Batch, Header, Output, Partition, Reason, Records, Result, State
from penstock.schemas.registry import TransientLookupError
from penstock.snapshots.files import SnapshotFiles
from penstock.snapshots.taking import Snapshots
from penstock.stage import Stage
from penstock.transport import librdkafka, messages, transactions
from penstock.transport.librdkafka import KafkaFault
from penstock.transport.protocol import Fenced, Polled, Position, Refusal, TransactionAborted, Transport, Unavailable
from tests.contract.worlds import KafkaWorld, MemoryWorld, Recorder, World

pytestmark = pytest.mark.kafka


@pytest.fixture
def kafka(
    broker: BrokerHandle, topic_factory: Callable[..., str], read_committed: Callable[..., Any], kafka_topic_prefix: str
) -> Iterator[KafkaWorld]:
    made = KafkaWorld(broker.bootstrap, topic_factory, read_committed, kafka_topic_prefix)
    yield made
    made.close()


@pytest.fixture(params=["memory", "kafka"])
def world(request: pytest.FixtureRequest) -> World:
    found: World = MemoryWorld() if request.param == "memory" else request.getfixturevalue("kafka")
    return found


def wait_for(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def drain(
    transport: Transport, expected: int, seconds: float = 20.0, ends: dict[Partition, int] | None = None
) -> list[tuple[int, int, bytes | None]]:
    """Polls until ``expected`` rows came: (partition, offset, value). ``ends`` takes those that are told meanwhile."""
    rows: list[tuple[int, int, bytes | None]] = []
    deadline = time.monotonic() + seconds
    while len(rows) < expected and time.monotonic() < deadline:
        polled = transport.poll(1000, 0.05)
        if ends is not None:
            ends |= polled.ends
        for records in polled.records:
            rows += zip(records.partition.tolist(), records.offset.tolist(), records.values.to_pylist(), strict=True)
    return rows


def test_a_poll_gives_each_partitions_rows_in_order_and_says_when_it_is_at_the_end(world: World) -> None:
    topic = world.topic("in", 3)
    world.append(topic, [(f"k{i}".encode(), str(i).encode()) for i in range(300)])
    transport = world.transport("g")
    transport.subscribe([topic], Recorder())
    ends: dict[Partition, int] = {}
    rows = drain(transport, 300, ends=ends)  # one partition may be at its end before another's rows are here
    assert sorted(int(value or b"") for _, _, value in rows) == list(range(300))
    by_partition = defaultdict(list)
    for partition, offset, _ in rows:
        by_partition[partition].append(offset)
    assert all(offsets == sorted(offsets) for offsets in by_partition.values())
    deadline = time.monotonic() + 10
    while len(ends) < 3 and time.monotonic() < deadline:
        ends |= transport.poll(10, 0.05).ends
    assert {p.number: end for p, end in ends.items()} == {p: transport.bounds(Partition(topic, p))[1] for p in range(3)}


def test_a_commit_makes_rows_and_positions_visible_together(world: World) -> None:
    source, target = world.topic("in"), world.topic("out")
    world.append(source, [(b"k", b"1"), (b"k", b"2")])
    transport = world.transport("g")
    transport.subscribe([source], Recorder())
    drain(transport, 2)
    transport.send(target, [b"k", "text"], [b"a", b"b"])
    assert world.rows(target, settled=False) == []
    transport.commit({Partition(source, 0): Position(2, 77)})
    assert [(key, value) for _, key, value, _ in world.rows(target)] == [(b"k", b"a"), (b"text", b"b")]
    assert transport.committed([Partition(source, 0)]) == {Partition(source, 0): Position(2, 77)}


def test_the_ends_of_partitions_are_asked_for_together(world: World) -> None:
    topic = world.topic("in", 3)
    world.append(topic, [(f"k{i}".encode(), b"v") for i in range(50)])
    transport = world.transport("g")
    partitions = [Partition(topic, number) for number in range(3)]
    wait_for(lambda: sum(transport.ends(partitions).values()) >= 50)
    assert transport.ends(partitions) == {partition: transport.bounds(partition)[1] for partition in partitions}


def test_an_end_lies_behind_what_an_open_transaction_has_written(kafka: KafkaWorld) -> None:
    source, target = kafka.topic("in"), Partition(kafka.topic("out"), 0)
    transport = kafka.transport("g")
    transport.subscribe([source], Recorder())
    transport.send(target.topic, [b"a", b"b"], [b"1", b"2"])
    wait_for(lambda: transport.ends([target])[target] == 2)
    assert transport.bounds(target) == (0, 0)
    transport.commit({})
    wait_for(lambda: transport.bounds(target) == (0, 3))  # behind the marker
    assert transport.ends([target]) == {target: 3}
    with pytest.raises(Unavailable, match="No such entry"):
        transport.ends([Partition("no_such_topic", 0)])


def test_an_aborted_transaction_is_never_read(world: World) -> None:
    source, target = world.topic("in"), world.topic("out")
    transport = world.transport("g")
    transport.subscribe([source], Recorder())
    transport.send(target, [None], [b"gone"])
    transport.abort()
    transport.send(target, [None], [b"kept"])
    transport.commit({})
    assert [value for _, _, value, _ in world.rows(target)] == [b"kept"]


def test_a_group_resumes_where_it_committed(world: World) -> None:
    topic = world.topic("in")
    world.append(topic, [(None, str(i).encode()) for i in range(10)])
    first = world.transport("g")
    first.subscribe([topic], Recorder())
    drain(first, 10)
    first.commit({Partition(topic, 0): Position(4)})
    first.close()
    second = world.transport("g")
    second.subscribe([topic], Recorder())
    assert [offset for _, offset, _ in drain(second, 6)] == [4, 5, 6, 7, 8, 9]


def test_a_worker_killed_between_send_and_commit_leaves_nothing_and_its_slot_starts_over(world: World) -> None:
    source, target = world.topic("in"), world.topic("out")
    world.append(source, [(None, b"x")])
    first = world.transport("g")
    first.subscribe([source], Recorder())
    drain(first, 1)
    first.send(target, [None], [b"half"])
    world.kill(first)
    second = world.transport("g")
    second.subscribe([source], Recorder())
    assert len(drain(second, 1)) == 1
    second.send(target, [None], [b"whole"])
    second.commit({Partition(source, 0): Position(1)})
    assert [value for _, _, value, _ in world.rows(target)] == [b"whole"]


def test_the_older_holder_of_a_slot_is_fenced(world: World) -> None:
    source, target = world.topic("in"), world.topic("out")
    older = world.transport("g")
    older.subscribe([source], Recorder())
    older.send(target, [None], [b"zombie"])
    newer = world.transport("g")
    with pytest.raises(Fenced):
        older.commit({})
    newer.send(target, [None], [b"alive"])
    newer.commit({})
    assert [value for _, _, value, _ in world.rows(target)] == [b"alive"]


def test_a_headers_row_keeps_its_headers(world: World) -> None:
    target = world.topic("out")
    transport = world.transport("g")
    transport.send(target, [b"k"], [b"v"], [[("penstock.reason", b"bad magic")]])
    transport.commit({})
    assert world.rows(target) == [(0, b"k", b"v", {"penstock.reason": b"bad magic"})]


def test_a_second_member_gets_partitions_only_after_the_first_has_let_go(world: World) -> None:
    topic = world.topic("in", 4)
    first, second = world.transport("g", 0), world.transport("g", 1)
    one, two = Recorder(), Recorder()
    first.subscribe([topic], one)
    deadline = time.monotonic() + 20
    while len(one.owned) < 4 and time.monotonic() < deadline:
        first.poll(10, 0.05)
    assert len(one.owned) == 4
    second.subscribe([topic], two)
    while len(two.owned) < 2 and time.monotonic() < deadline:
        first.poll(10, 0.05)
        second.poll(10, 0.05)
        assert not one.owned & two.owned
    assert len(one.owned) == len(two.owned) == 2


def test_members_that_join_before_any_of_them_polls_share_the_partitions() -> None:
    world = MemoryWorld()
    topic = world.topic("in", 4)
    one, two = Recorder(), Recorder()
    first, second = world.transport("g", 0), world.transport("g", 1)
    first.subscribe([topic], one)
    second.subscribe([topic], two)
    for _ in range(5):
        first.poll(10, 0)
        second.poll(10, 0)
    assert not one.owned & two.owned
    assert len(one.owned | two.owned) == 4


def test_rows_of_a_partition_that_was_revoked_since_they_were_fetched_are_not_polled(world: World) -> None:
    topic = world.topic("in", 2)
    first, second = world.transport("g", 0), world.transport("g", 1)
    one, two = Recorder(), Recorder()
    first.subscribe([topic], one)
    deadline = time.monotonic() + 20
    while len(one.owned) < 2 and time.monotonic() < deadline:
        first.poll(1, 0.05)
    second.subscribe([topic], two)
    seen: list[tuple[int, int]] = []
    while not two.owned and time.monotonic() < deadline:
        world.append(topic, [(f"k{i}".encode(), b"x") for i in range(20)])
        for records in first.poll(1000, 0.05).records:
            owned = {p.number for p in one.owned}
            seen += [(p, o) for p, o in zip(records.partition.tolist(), records.offset.tolist(), strict=True)]
            assert set(records.partition.tolist()) <= owned
        second.poll(1, 0.0)
    assert two.owned
    assert seen


# The loop on both worlds


class Counting(Stage):
    """Writes each row with its key's running count; ``fail`` names values it raises on; state by partition."""

    def __init__(self, target: str, fail: set[bytes] | None = None) -> None:
        self.target, self.fail = target, fail or set()
        self.counts: dict[int, dict[bytes, int]] = defaultdict(dict)
        self.processed = 0
        self.batches: list[int] = []

    def reach(self, topic: str) -> int:
        return 10**15

    def restore(self, partition: Partition, snapshot: State | None) -> None:
        kept = {} if snapshot is None else snapshot["counts"].to_pydict()
        self.counts[partition.number] = dict(zip(kept.get("value", []), kept.get("count", []), strict=True))

    def snapshot(self, partition: Partition) -> State:
        counts = self.counts[partition.number]
        return {"counts": pa.table({"value": pa.array(counts, pa.binary()), "count": pa.array(counts.values())})}

    def state_version(self) -> str:
        return "counting"

    def release(self, partition: Partition) -> None:
        self.counts.pop(partition.number, None)

    def process(self, batch: Batch) -> Result:
        values = batch.rows.column("value").to_pylist()
        if self.fail & set(values):
            raise RuntimeError("this batch holds a row that cannot be computed")
        self.processed += len(batch)
        self.batches.append(len(batch))
        out, source, rejects, dropped = [], [], {}, {}
        for row, (key, value) in enumerate(zip(batch.keys.to_pylist(), values, strict=True)):
            if value.startswith(b"reject"):
                rejects[row] = Reason("rejected", "the test asked for it")
            elif value.startswith(b"drop"):
                dropped[row] = Reason("dropped", "the test asked for it")
            else:
                counts = self.counts[int(batch.partition[row])]
                counts[key or b""] = counts.get(key or b"", 0) + 1
                out.append(b"%s=%d" % (value, counts[key or b""]))
                source.append(row)
        rows = pa.RecordBatch.from_pydict({"value": pa.array(out, pa.binary())})
        keys = batch.keys.take(pa.array(source, pa.int64()))
        return Result([Output(self.target, keys, rows, np.array(source, np.int32))], rejects, dropped)


def decode(column: pa.BinaryArray) -> Decoded:
    """Values as they are, with the row's number as its time; `bad…` cannot be decoded."""
    values = column.to_pylist()
    good = [i for i, value in enumerate(values) if not value.startswith(b"bad")]
    rows = pa.RecordBatch.from_pydict(
        {"value": pa.array([values[i] for i in good], pa.binary()), "time": pa.array(good, pa.int64())}
    )
    bad = {i: BadRow("bad", "the test made it so") for i in range(len(values)) if i not in set(good)}
    return Decoded(rows, np.array(good, np.int32), bad)


class Workplace:
    """The topics of one stage and workers on them."""

    def __init__(self, world: World, partitions: int = 2, merges: bool = False, **config: str) -> None:
        self.world, self.merges = world, merges
        self.source, self.target = world.topic("in", partitions), world.topic("out", partitions, **config)
        self.dead, self.dropped = world.topic("dead", 1), world.topic("dropped", 1)

    def worker(self, stage: Stage, slot: int = 0, transport: Transport | None = None) -> Loop:
        transport = transport or self.world.transport("g", slot)
        encoders: dict[str, Callable[[pa.RecordBatch], pa.BinaryArray]] = {
            self.target: lambda rows: rows.column("value"),
            self.dropped: lambda rows: pa.array([str(row).encode() for row in rows.to_pylist()]),
        }
        health = Health()
        return Loop(
            stage,
            transport,
            Intake([TopicReader(self.source, decode, "time")], self.merges, 10_000, 1000),
            Outbox(transport, "test", encoders, self.dead, self.dropped, self.source, [self.source], stage.absorbs),
            Observer("test", health),
            Pace(0.02, 1000, 0.05, 1000, 0),
            [self.source],
        )

    def run(self, loop: Loop, until: Callable[[], bool], seconds: float = 30.0) -> None:
        loop.transport.subscribe([self.source], loop)
        self.go_on([loop], until, seconds)

    def go_on(self, loops: list[Loop], until: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "the loop did not get there in time"
            for loop in loops:
                loop.step()

    def settled(self, loop: Loop, rows: int) -> Callable[[], bool]:
        """``rows`` of the source are committed."""

        def done() -> bool:
            places = [Partition(self.source, n) for n in range(loop.transport.partitions(self.source))]
            return sum(at.offset if at else 0 for at in loop.transport.committed(places).values()) >= rows

        return done

    def values(self, topic: str) -> list[bytes]:
        return [value or b"" for _, _, value, _ in self.world.rows(topic)]


def test_every_row_has_one_fate_output_dead_letter_or_drop(world: World) -> None:
    place = Workplace(world)
    sent = [b"good%d" % i for i in range(50)] + [b"bad1", b"reject1", b"drop1", b"bad2"]
    world.append(place.source, [(b"k%d" % (i % 5), value) for i, value in enumerate(sent)])
    loop = place.worker(Counting(place.target))
    place.run(loop, place.settled(loop, len(sent)))
    assert sorted(value.split(b"=")[0] for value in place.values(place.target)) == sorted(sent[:50])
    assert sorted(place.values(place.dead)) == [b"bad1", b"bad2", b"reject1"]
    assert len(place.values(place.dropped)) == 1
    reasons = {value: headers["penstock.reason"] for _, _, value, headers in world.rows(place.dead)}
    assert reasons == {b"bad1": b"bad", b"bad2": b"bad", b"reject1": b"rejected"}
    headers = world.rows(place.dead)[0][3]
    assert headers["__connect.errors.topic"] == headers["penstock.origin.topic"] == place.source.encode()


def test_a_row_without_a_fate_stops_the_worker(world: World) -> None:
    class Forgetful(Counting):
        def process(self, batch: Batch) -> Result:
            return Result()

    place = Workplace(world)
    world.append(place.source, [(b"k", b"x")])
    loop = place.worker(Forgetful(place.target))
    with pytest.raises(FateError, match="0 fates"):
        place.run(loop, lambda: False)


def test_order_holds_for_each_key(world: World) -> None:
    place = Workplace(world, partitions=3)
    world.append(place.source, [(b"k%d" % (i % 7), b"%06d" % i) for i in range(700)])
    loop = place.worker(Counting(place.target))
    place.run(loop, place.settled(loop, 700))
    by_key = defaultdict(list)
    for _, key, value, _ in world.rows(place.target):
        number, count = (value or b"").split(b"=")
        by_key[key].append((int(number), int(count)))
    assert len(by_key) == 7
    for rows in by_key.values():
        assert rows == sorted(rows)
        assert [count for _, count in rows] == list(range(1, len(rows) + 1))


def test_the_guilty_row_of_a_batch_stands_alone_and_the_others_go_on(world: World) -> None:
    place = Workplace(world, partitions=1)
    world.append(place.source, [(b"k", b"v%d" % i) for i in range(64)])
    loop = place.worker(Counting(place.target, fail={b"v17"}))
    place.run(loop, place.settled(loop, 64))
    assert len(place.values(place.target)) == 63
    assert place.values(place.dead) == [b"v17"]
    assert world.rows(place.dead)[0][3]["penstock.reason"] == b"stage failed"


class Forgetful(Stage):
    """Writes each row to two topics; to the second without a value where it begins with ``void``."""

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second

    def process(self, batch: Batch) -> Result:
        values = batch.rows.column("value").to_pylist()
        dropped = {row: Reason("dropped", "by the test") for row, value in enumerate(values) if value == b"drop"}
        source = np.array([row for row in range(len(values)) if row not in dropped], np.int32)
        kept = [values[row] for row in source.tolist()]
        outputs = []
        for topic, written in (
            (self.first, kept),
            (self.second, [None if value.startswith(b"void") else value for value in kept]),
        ):
            rows = pa.RecordBatch.from_pydict({"value": pa.array(written, pa.binary())})
            outputs.append(Output(topic, batch.keys.take(pa.array(source)), rows, source))
        return Result(outputs, {}, dropped)


def test_a_row_that_does_not_fit_one_outputs_schema_leaves_them_all_and_is_a_dead_letter(world: World) -> None:
    place, second = Workplace(world, partitions=1), world.topic("second", 1)
    loop = place.worker(Forgetful(place.target, second))
    schema = {"type": "record", "name": "R", "fields": [{"name": "value", "type": "bytes"}]}
    loop.outbox._encoders = {**loop.outbox._encoders, second: AvroEncoder(schema, 7).encode}
    values = [b"a", b"void1", b"b", b"drop", b"void2", b"c"]
    world.append(place.source, [(b"k", value) for value in values])
    place.run(loop, place.settled(loop, len(values)))
    assert place.values(place.target) == [b"a", b"b", b"c"]
    assert [value[-1:] for value in place.values(second)] == [b"a", b"b", b"c"]
    assert len(place.values(place.dropped)) == 1
    letters = world.rows(place.dead)
    assert [(key, value) for _, key, value, _ in letters] == [(b"k", b"void1"), (b"k", b"void2")]
    for _, _, _, headers in letters:
        assert headers["penstock.reason"] == b"output does not fit its schema"
        assert headers["__connect.errors.exception.message"].startswith(
            f"{second}: schema 'R': column 'value' is null, and the schema wants a value.".encode()
        )


def test_a_stage_that_writes_where_its_plan_does_not_say_stops_the_worker_and_is_named() -> None:
    world = MemoryWorld()
    place = Workplace(world)
    loop = place.worker(Forgetful(place.target, "elsewhere"))
    world.append(place.source, [(b"k", b"a")])
    with pytest.raises(UnencodableError, match="stage test wrote to 'elsewhere', which its plan does not list"):
        place.run(loop, place.settled(loop, 1))
    assert place.values(place.target) == []


def test_an_abort_sends_again_without_touching_state(world: World) -> None:
    place = Workplace(world, partitions=1)
    world.append(place.source, [(b"k", b"v%d" % i) for i in range(20)])
    stage = Counting(place.target)
    loop = place.worker(stage)
    commit, failures = loop.transport.commit, [2]

    def failing(positions: dict[Partition, Position]) -> None:
        if failures[0]:
            failures[0] -= 1
            raise TransactionAborted("the test aborts this one")
        commit(positions)

    loop.transport.commit = failing  # type: ignore[method-assign,assignment]
    place.run(loop, place.settled(loop, 20))
    assert place.values(place.target) == [b"v%d=%d" % (i, i + 1) for i in range(20)]
    assert stage.processed == 20


def test_with_a_third_of_all_transactions_aborted_the_output_is_the_same_and_no_state_is_restored(world: World) -> None:
    place = Workplace(world, partitions=2)
    stage, chance = Counting(place.target), np.random.default_rng(7)
    loop = place.worker(stage)
    restored: list[Partition] = []
    restore, commit = stage.restore, loop.transport.commit

    def restoring(partition: Partition, snapshot: State | None) -> None:
        restored.append(partition)
        restore(partition, snapshot)

    def may_fail(positions: Mapping[Partition, Position]) -> None:
        if chance.random() < 1 / 3:
            raise TransactionAborted("the test aborts this one")
        commit(positions)

    stage.restore = restoring  # type: ignore[method-assign]
    loop.transport.commit = may_fail  # type: ignore[method-assign]
    tries = commits(loop)
    loop.transport.subscribe([place.source], loop)
    rows = [(b"k%d" % (i % 5), b"v%04d" % i) for i in range(1200)]
    for start in range(0, len(rows), 20):
        world.append(place.source, rows[start : start + 20])
        place.go_on([loop], lambda done=start + 20: stage.processed == done and not loop.outbox)  # type: ignore[misc]
    counts: dict[bytes, int] = defaultdict(int)
    expected = []
    for key, value in rows:
        counts[key] += 1
        expected.append(b"%s=%d" % (value, counts[key]))
    assert sorted(place.values(place.target)) == expected
    assert sorted(restored) == [Partition(place.source, 0), Partition(place.source, 1)]
    assert tries.count("committed") >= 60
    assert 0.2 < tries.count("0 refused") / len(tries) < 0.5


def test_a_row_that_the_broker_refuses_becomes_a_dead_letter_and_the_rest_is_sent(world: World) -> None:
    place = Workplace(world, partitions=1, max_message_bytes="20000")
    noise = np.random.default_rng(1).bytes(30_000)  # does not compress under the limit
    world.append(place.source, [(b"k", b"small1"), (b"k", b"big" + noise), (b"k", b"small2")])
    loop = place.worker(Counting(place.target))
    place.run(loop, place.settled(loop, 3))
    assert [value.split(b"=")[0] for value in place.values(place.target)] == [b"small1", b"small2"]
    assert place.values(place.dead) == [b"big" + noise]
    assert world.rows(place.dead)[0][3]["penstock.reason"] == b"refused by the broker"


def test_state_comes_back_by_silent_replay_after_a_kill(world: World) -> None:
    place = Workplace(world, partitions=2)
    world.append(place.source, [(b"k%d" % (i % 3), b"a%d" % i) for i in range(30)])
    first = place.worker(Counting(place.target))
    place.run(first, place.settled(first, 30))
    world.kill(first.transport)
    world.append(place.source, [(b"k%d" % (i % 3), b"b%d" % i) for i in range(30)])
    second = place.worker(Counting(place.target))
    place.run(second, place.settled(second, 60))
    counts = defaultdict(list)
    for _, key, value, _ in world.rows(place.target):
        counts[key].append(int((value or b"").split(b"=")[1]))
    assert {key: sorted(seen) for key, seen in counts.items()} == {b"k%d" % i: list(range(1, 21)) for i in range(3)}


def with_snapshots(loop: Loop, folder: Path) -> Loop:
    loop.recovery.snapshots = Snapshots(
        SnapshotFiles(str(folder), "g"), loop.stage, "test", loop.transport.identity, interval_s=0.0
    )
    return loop


def running_counts(place: Workplace) -> dict[bytes | None, list[int]]:
    counts = defaultdict(list)
    for _, key, value, _ in place.world.rows(place.target):
        counts[key].append(int((value or b"").split(b"=")[1]))
    return counts


def test_state_comes_back_from_a_snapshot_and_only_what_came_after_it_is_replayed(world: World, tmp_path: Path) -> None:
    place = Workplace(world, partitions=1)
    world.append(place.source, [(b"k%d" % (i % 3), b"a%d" % i) for i in range(30)])
    first = with_snapshots(place.worker(Counting(place.target)), tmp_path)
    place.run(first, place.settled(first, 30))
    assert first.recovery.snapshots is not None
    first.recovery.snapshots.close(settled=True)
    first.recovery.snapshots = None
    world.append(place.source, [(b"k%d" % (i % 3), b"b%d" % i) for i in range(12)])
    place.go_on([first], place.settled(first, 42))
    world.kill(first.transport)
    world.append(place.source, [(b"k%d" % (i % 3), b"c%d" % i) for i in range(30)])
    stage = Counting(place.target)
    second = with_snapshots(place.worker(stage), tmp_path)
    place.run(second, place.settled(second, 72))
    assert stage.processed == 12 + 30
    assert running_counts(place) == {b"k%d" % i: list(range(1, 25)) for i in range(3)}
    second.recovery.close(settled=True)


def test_a_snapshot_beyond_the_committed_offset_is_not_used(world: World, tmp_path: Path) -> None:
    place = Workplace(world, partitions=1)
    world.append(place.source, [(b"k", b"a%d" % i) for i in range(30)])
    first = with_snapshots(place.worker(Counting(place.target)), tmp_path)
    place.run(first, place.settled(first, 30))
    first.recovery.close(settled=True)
    stage = Counting(place.target)
    other = with_snapshots(place.worker(stage, transport=world.transport("another")), tmp_path)
    place.run(other, place.settled(other, 30))  # nothing is committed in this group
    assert stage.processed == 30
    assert sorted(running_counts(place)[b"k"]) == sorted([*range(1, 31)] * 2)
    other.recovery.close(settled=True)


def test_a_topic_made_anew_has_another_identity(world: World) -> None:
    transport = world.transport("g")
    one, two = world.topic("one"), world.topic("two")
    assert transport.identity(one) == transport.identity(one) != transport.identity(two)


def test_a_rebalance_under_load_loses_and_doubles_nothing(world: World) -> None:
    place = Workplace(world, partitions=4)
    sent = [(b"k%d" % (i % 11), b"v%d" % i) for i in range(2000)]
    world.append(place.source, sent[:1000])
    first = place.worker(Counting(place.target), 0)
    place.run(first, place.settled(first, 200))
    second = place.worker(Counting(place.target), 1)
    second.transport.subscribe([place.source], second)
    world.append(place.source, sent[1000:])
    place.go_on([first, second], lambda: len(list(second.intake.lanes)) == 2)
    place.go_on([first, second], place.settled(first, 2000))
    got = [value.split(b"=") for value in place.values(place.target)]
    assert sorted(name for name, _ in got) == sorted(value for _, value in sent)
    counts = defaultdict(list)
    for _, key, value, _ in world.rows(place.target):
        counts[key].append(int((value or b"").split(b"=")[1]))
    assert all(sorted(seen) == list(range(1, len(seen) + 1)) for seen in counts.values())


def test_rows_of_lost_partitions_are_not_committed_and_the_rest_is(world: World) -> None:
    place = Workplace(world, partitions=2)
    world.append(place.source, [(b"k%d" % i, b"v%d" % i) for i in range(40)])
    loop = place.worker(Counting(place.target))
    commit = loop.transport.commit
    loop.transport.commit = lambda positions: None  # type: ignore[method-assign,assignment]  # hold the transaction open
    loop.transport.subscribe([place.source], loop)
    deadline = time.monotonic() + 20
    while sum(loop.stage.batches) < 40 and time.monotonic() < deadline:  # type: ignore[attr-defined]
        polled = loop.transport.poll(1000, 0.05)
        for records in polled.records:
            for piece in loop.intake.split(records):
                work = loop.intake.add(piece, time.time())
                assert work is not None
                loop._work(work)
    loop.transport.commit = commit  # type: ignore[method-assign]
    lost = Partition(place.source, 0)
    loop.lost([lost])
    kept = {Partition(place.source, 1)}
    assert set(loop.outbox.positions) == kept
    loop._commit()
    sources = {value: number for number, _, value, _ in world.rows(place.source)}
    assert {value.split(b"=")[0] for value in place.values(place.target)} == {
        value for value, number in sources.items() if number == 1
    }
    assert loop.transport.committed([lost]) == {lost: None}


def test_at_least_once_sends_a_killed_workers_rows_again_and_loses_none(kafka: KafkaWorld) -> None:
    kafka.guarantee = "at_least_once"
    place = Workplace(kafka, partitions=1)
    kafka.append(place.source, [(b"k", b"v%d" % i) for i in range(20)])
    first = place.worker(Counting(place.target))
    commit = first.transport.commit

    def flushed_but_not_committed(positions: dict[Partition, Position]) -> None:
        commit({})

    first.transport.commit = flushed_but_not_committed  # type: ignore[method-assign,assignment]
    place.run(first, lambda: len(place.values(place.target)) == 20)
    first.transport.close()
    second = place.worker(Counting(place.target))
    place.run(second, place.settled(second, 20))
    assert sorted(place.values(place.target)) == sorted([b"v%d=%d" % (i, i + 1) for i in range(20)] * 2)


def test_merged_partitions_go_on_by_event_time(world: World) -> None:
    place = Workplace(world, partitions=3, merges=True)
    world.append(place.source, [(b"k%d" % (i % 9), b"v%03d" % i) for i in range(300)])
    stage = Counting(place.target)
    loop = place.worker(stage)
    place.run(loop, place.settled(loop, 300))
    assert len(place.values(place.target)) == 300


def test_a_refused_dead_letter_is_replaced_by_its_digest() -> None:
    from penstock.dead_letter import shortened

    letter = shortened(DeadLetter(b"k", b"x" * 100, [("penstock.reason", b"bad")]))
    assert letter.value is not None
    assert b'"size":100' in letter.value
    assert ("penstock.truncated", b"100") in letter.headers


# What rows look like on their way through a transport


def polled(transport: Transport, rows: int, seconds: float = 20.0) -> list[Records]:
    """Polls until ``rows`` rows came."""
    found: list[Records] = []
    deadline = time.monotonic() + seconds
    while sum(map(len, found)) < rows and time.monotonic() < deadline:
        found += transport.poll(1000, 0.05).records
    assert sum(map(len, found)) == rows
    return found


ODD = [(None, b"v"), (b"k", None), (b"", b""), (b"k" * 300, b"v" * 70_000), ("ü".encode(), b"\0\xff"), (None, None)]
"""Keys and values: nulls, nothing, long ones, and bytes that are no text."""


def test_nulls_and_nothing_and_any_bytes_come_through_as_they_are(world: World) -> None:
    source, target = world.topic("in"), world.topic("out")
    world.append(source, ODD)
    transport = world.transport("g")
    transport.subscribe([source], Recorder())
    for records in polled(transport, len(ODD)):
        transport.send(target, records.keys, records.values)
    transport.commit({})
    assert [(key, value) for _, key, value, _ in world.rows(target)] == ODD


def test_a_slice_of_a_column_is_sent_as_its_own_rows(world: World) -> None:
    target = world.topic("out")
    keys, values = pa.array(["a", "b", None, "d"]), pa.array([b"1", b"22", b"333", b"4444"])
    transport = world.transport("g")
    transport.send(target, keys.slice(1, 2), values.slice(1, 2))
    transport.commit({})
    assert [(key, value) for _, key, value, _ in world.rows(target)] == [(b"b", b"22"), (None, b"333")]


def test_a_poll_keeps_topics_apart(world: World) -> None:
    first, second = world.topic("one"), world.topic("two")
    transport = world.transport("g")
    transport.subscribe([first, second], Recorder())
    world.append(first, [(b"a", b"1%d" % i) for i in range(40)])
    world.append(second, [(b"b", b"2%d" % i) for i in range(60)])
    found: dict[str, list[bytes | None]] = {first: [], second: []}
    for records in polled(transport, 100):
        assert set(records.keys.to_pylist()) == {b"a" if records.topic == first else b"b"}
        found[records.topic] += records.values.to_pylist()
    assert found == {first: [b"1%d" % i for i in range(40)], second: [b"2%d" % i for i in range(60)]}


def test_headers_belong_to_their_rows_and_a_trace_context_becomes_a_column(world: World) -> None:
    source = world.topic("in")
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    sent: list[list[Header]] = [
        [],
        [("traceparent", trace), ("x", None)],
        [("x", b""), ("x", b"\xff"), ("a name of some length", b"1")],
        [("traceparent", b"\xff")],
    ]
    writer = world.transport("w")
    values = [b"%d" % i for i in range(len(sent))]
    writer.send(source, [b"k"] * len(sent), values, sent)
    writer.commit({})
    transport = world.transport("g")
    transport.subscribe([source], Recorder())
    headers: dict[bytes, list[Header]] = {}
    traces: dict[bytes, str | None] = {}
    for records in polled(transport, len(sent)):
        found = records.texts("traceparent")
        for row, value in enumerate(records.values.to_pylist()):
            headers[value] = records.headers(row)
            traces[value] = None if found is None else found[row].as_py()
    assert headers == dict(zip(values, sent, strict=True))
    assert traces == {b"0": None, b"1": trace.decode(), b"2": None, b"3": None}


def test_more_than_one_column_holds_comes_as_several(kafka: KafkaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = kafka.topic("in")
    kafka.append(topic, [(b"k", b"v%03d" % i) for i in range(100)])
    transport = kafka.transport("g")
    transport.subscribe([topic], Recorder())
    monkeypatch.setattr(messages, "MOST_BYTES", 60)
    found = polled(transport, 100)
    assert all(1 <= len(records) <= 15 for records in found)
    assert [value for records in found for value in records.values.to_pylist()] == [b"v%03d" % i for i in range(100)]


def test_a_committed_watermark_is_read_by_other_clients(kafka: KafkaWorld) -> None:
    topic = kafka.topic("in")
    kafka.append(topic, [(b"k", b"v")])
    transport = kafka.transport("g")
    transport.subscribe([topic], Recorder())
    polled(transport, 1)
    transport.commit({Partition(topic, 0): Position(1, 1_795_564_345_034)})
    reader = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": kafka.group("g")})
    (found,) = reader.committed([TopicPartition(topic, 0)], timeout=10)
    assert (found.offset, found.metadata) == (1, "1795564345034")
    reader.close()


def test_what_cannot_be_committed_is_tried_after_a_poll_each_and_ends_the_worker_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "MOST_ABORTS", 6)
    place = Workplace(world, partitions=1)
    world.append(place.source, [(b"k", b"v%d" % i) for i in range(20)])
    loop = place.worker(Counting(place.target))
    turns: list[str] = []
    poll = loop.transport.poll

    def polling(max_rows: int, wait_s: float) -> Polled:
        turns.append("poll")
        return poll(max_rows, wait_s)

    def failing(positions: dict[Partition, Position]) -> None:
        turns.append("commit")
        raise TransactionAborted("nobody knows this member")

    loop.transport.poll = polling  # type: ignore[method-assign]
    loop.transport.commit = failing  # type: ignore[method-assign,assignment]
    with pytest.raises(Fenced, match="aborted 6 times in a row: nobody knows this member"):
        place.run(loop, lambda: False)
    first = turns.index("commit")
    assert turns[first:] == ["commit", *["poll", "commit"] * 5]
    assert place.values(place.target) == []


def lag(place: Workplace) -> float | None:
    labels = {"stage": "test", "topic": place.source, "partition": "0"}
    return REGISTRY.get_sample_value("penstock_consumer_lag_records", labels)


def test_lag_is_what_is_not_committed_whether_read_or_not(world: World) -> None:
    place = Workplace(world, partitions=1)
    world.append(place.source, [(b"k", b"v%d" % i) for i in range(20)])
    loop = place.worker(Counting(place.target))
    commit = loop.transport.commit
    failing = [True]

    def may_fail(positions: dict[Partition, Position]) -> None:
        if failing[0]:
            raise TransactionAborted("the test aborts this one")
        commit(positions)

    loop.transport.commit = may_fail  # type: ignore[method-assign,assignment]
    place.run(loop, lambda: bool(loop._aborts and loop.intake.drained(Partition(place.source, 0))))
    loop._second = 0.0
    loop.step()
    assert lag(place) == 20
    failing[0] = False
    place.go_on([loop], place.settled(loop, 20))
    loop._second = 0.0
    loop.step()
    assert lag(place) == 0


def test_nothing_is_read_while_schemas_cannot_be_looked_up_and_all_of_it_afterwards(world: World) -> None:
    place = Workplace(world, partitions=2, merges=True)
    world.append(place.source, [(b"k%d" % i, b"v%d" % i) for i in range(300)])
    loop = place.worker(Counting(place.target))
    reader = loop.intake._readers[place.source]
    out = [True]

    def look_up(values: pa.BinaryArray) -> Decoded:
        if out[0]:
            raise TransientLookupError("the registry does not answer")
        return decode(values)

    loop.intake._readers[place.source] = replace(reader, decode=look_up)
    loop.transport.subscribe([place.source], loop)
    place.go_on([loop], lambda: len(loop.standstill.paused) == 2 and len(loop._pending) > 0)
    world.append(place.source, [(b"k%d" % i, b"w%d" % i) for i in range(300)])
    held = sum(len(piece.records) for piece in loop._pending)
    for _ in range(20):
        loop.step()
    assert sum(len(piece.records) for piece in loop._pending) == held
    assert not any(loop.intake.drained(partition) for partition in loop.intake.lanes)
    out[0] = False
    place.go_on([loop], place.settled(loop, 600))
    assert len(place.values(place.target)) == 600


def commits(loop: Loop) -> list[str]:
    """What each of the loop's tries to commit came to."""
    found: list[str] = []
    commit = loop.transport.commit

    def counted(positions: Mapping[Partition, Position]) -> None:
        try:
            commit(positions)
        except TransactionAborted as aborted:
            found.append(f"{len(aborted.refused)} refused")
            raise
        found.append("committed")

    loop.transport.commit = counted  # type: ignore[method-assign]
    return found


def test_two_rows_that_the_broker_refuses_among_thousands_are_found_in_a_few_tries(kafka: KafkaWorld) -> None:
    place = Workplace(kafka, partitions=1, max_message_bytes="200000")
    noise = np.random.default_rng(1)
    guilty = {1500: b"big1500" + noise.bytes(300_000), 2900: b"big2900" + noise.bytes(300_000)}
    kafka.append(place.source, [(b"k%d" % (i % 7), guilty.get(i, b"v%04d" % i)) for i in range(4000)])
    loop = place.worker(Counting(place.target))
    tries = commits(loop)
    place.run(loop, place.settled(loop, 4000))
    assert place.values(place.dead) == list(guilty.values())
    kept = [value.split(b"=")[0] for value in place.values(place.target)]
    assert kept == [b"v%04d" % i for i in range(4000) if i not in guilty]
    assert 2 <= tries.count("1 refused") <= 4
    assert len(tries) < 30, tries


def test_rows_too_large_together_go_in_parts_and_none_is_blamed(kafka: KafkaWorld) -> None:
    place = Workplace(kafka, partitions=1, max_message_bytes="20000")
    noise = np.random.default_rng(1)
    values = [b"%04d" % i + noise.bytes(96) for i in range(1000)]
    kafka.append(place.source, [(b"k", value) for value in values])
    loop = place.worker(Counting(place.target))
    tries = commits(loop)
    place.run(loop, place.settled(loop, 1000))
    assert "committed" in tries
    assert any(tried.endswith("refused") for tried in tries)
    assert place.values(place.dead) == []
    assert [value[:100] for value in place.values(place.target)] == values


def test_a_bad_row_whose_headers_are_larger_than_any_letter_may_be_stops_nobody(kafka: KafkaWorld) -> None:
    place = Workplace(kafka, partitions=1, max_message_bytes="20000")
    wide = Producer({"bootstrap.servers": kafka.bootstrap, "compression.type": "zstd", "message.max.bytes": 20_000_000})
    for value, headers in ((b"a", []), (b"bad", [("wide", b"\0" * 5_000_000)]), (b"b", [])):
        wide.produce(place.source, value, b"k", headers=headers)
    assert wide.flush(30) == 0
    loop = place.worker(Counting(place.target))
    place.run(loop, place.settled(loop, 3))
    assert [value.split(b"=")[0] for value in place.values(place.target)] == [b"a", b"b"]
    ((_, key, value, found),) = kafka.rows(place.dead)
    assert (key, value) == (b"k", b"bad")
    assert b'"size":5000' in found["penstock.truncated.headers"]
    assert "wide" not in found


def test_what_cannot_leave_a_failed_transaction_is_not_waited_for(
    kafka: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request on its way behind the refused one fails with it, and its rows lie in the client until the abort."""
    monkeypatch.setattr(transactions, "PATIENCE_S", 60.0)
    target = kafka.topic("target", max_message_bytes="20000")
    transport = kafka.transport("g")
    refused = np.random.default_rng(1).bytes(900_000)
    producer = transport._transactions._producer
    found: list[Refusal] = []
    for _ in range(4):
        transport.send(target, [None], [b"small"])
        assert producer.flush(10)
        for value in [refused, *([b"small"] * 10)]:
            transport.send(target, [None], [value])
            producer.flush(0.001)
        began = time.monotonic()
        with pytest.raises(TransactionAborted) as aborted:
            transport.commit({})
        assert time.monotonic() - began < 5  # they would lie there for 10 s, until they are too old to be sent
        producer.poll()  # what else it has to tell
        assert producer.waiting == 0
        transport.abort()
        found += aborted.value.refused
    assert Refusal(1, 0, "Broker: Message size too large") in found
    assert kafka.rows(target) == []


def test_a_transaction_that_the_broker_never_heard_of_costs_a_producer_and_no_worker(
    kafka: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, transport = kafka.topic("target"), kafka.transport("g")
    producer = transport._transactions._producer

    def unheard(_: float) -> None:
        raise KafkaFault(librdkafka.INVALID_TXN_STATE, "invalid state", fatal=True)

    transport.send(target, [None], [b"lost"])
    monkeypatch.setattr(producer, "abort", unheard)
    transport.abort()
    transport.send(target, [None], [b"kept"])
    transport.commit({})
    assert transport._transactions._producer is not producer
    assert [value for _, _, value, _ in kafka.rows(target)] == [b"kept"]


def test_an_abort_of_what_may_have_been_committed_is_not_taken_for_done(
    kafka: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, transport = kafka.topic("target"), kafka.transport("g")
    producer = transport._transactions._producer
    commit = producer.commit

    def unsure(wait_s: float) -> None:
        commit(wait_s)
        raise KafkaFault(-1, "unknown server error", abortable=True)

    transport.send(target, [None], [b"row"])
    monkeypatch.setattr(producer, "commit", unsure)
    abort = producer.abort

    def answered(wait_s: float) -> None:
        producer.traffic._counts[librdkafka.END_TXN] += 1  # there is none to abort for this client
        raise KafkaFault(librdkafka.INVALID_TXN_STATE, "invalid state", fatal=True)

    monkeypatch.setattr(producer, "abort", answered)
    with pytest.raises(Fenced, match=r"invalid state.*unknown server error"):
        transport.commit({})
    monkeypatch.setattr(producer, "abort", abort)
    assert [value for _, _, value, _ in kafka.rows(target)] == [b"row"]


def test_at_least_once_a_commit_that_failed_stops_no_later_one(
    kafka: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.guarantee = "at_least_once"
    source, target = kafka.topic("source"), kafka.topic("target")
    kafka.append(source, [(None, b"v")])
    transport = kafka.transport("g")
    transport.subscribe([source], Recorder())
    polled(transport, 1)
    place, commit = Partition(source, 0), transport._consumer.commit

    def away(_: object) -> None:
        raise KafkaFault(15, "the coordinator is away")

    monkeypatch.setattr(transport._consumer, "commit", away)
    transport.send(target, [None], [b"row"])
    with pytest.raises(TransactionAborted, match="the coordinator is away"):
        transport.commit({place: Position(1)})
    monkeypatch.setattr(transport._consumer, "commit", commit)
    transport.commit({place: Position(1)})
    assert transport.committed([place]) == {place: Position(1)}


class Growing(Counting):
    """Its output of a value that begins with ``big`` is larger than the client sends."""

    def process(self, batch: Batch) -> Result:
        (output,) = super().process(batch).outputs
        values = [v * 200_000 if v.startswith(b"big") else v for v in output.rows.column("value").to_pylist()]
        return Result([replace(output, rows=pa.RecordBatch.from_pydict({"value": pa.array(values, pa.binary())}))])


def test_rows_that_the_client_refuses_are_known_at_once_and_no_other_row_goes_alone(kafka: KafkaWorld) -> None:
    place = Workplace(kafka, partitions=1)
    kafka.append(place.source, [(b"k", b"big%03d" % i if i in (7, 300) else b"v%03d" % i) for i in range(600)])
    loop = place.worker(Counting(place.target))
    loop.stage = Growing(place.target)
    alone: list[bool] = []
    send = loop.transport.send

    def sending(*row: Any, **told: Any) -> None:
        alone.append(told.get("alone", False))
        send(*row, **told)

    loop.transport.send = sending  # type: ignore[method-assign]
    place.run(loop, place.settled(loop, 600))
    assert not any(alone)
    assert len(place.values(place.target)) == 598
    assert place.values(place.dead) == [b"big007", b"big300"]
