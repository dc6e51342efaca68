"""What the outbox sends again after an abort."""

import numpy as np
import pyarrow as pa
import pytest

from penstock.lanes import Work
from penstock.outbox import Outbox
from penstock.records import NO_TIME, Batch, Output, Partition, Reason, Records, Result, column
from penstock.transport.memory import MemoryBroker, MemoryTransport
from penstock.transport.protocol import Position, Refusal


def test_a_row_refused_in_two_outputs_takes_no_innocent_row_with_it() -> None:
    broker = MemoryBroker()
    for topic in ("in", "one", "two", "dead", "dropped"):
        broker.create(topic, 1)
    transport = MemoryTransport(broker, "g")
    n = 4
    none = np.arange(n, dtype=np.int64)
    names, keys = column([b"a", b"b", b"c", b"d"]), pa.nulls(n, pa.binary())
    records = Records("in", names, keys, np.zeros(n, np.int32), none, none, lambda row: [])
    rows = pa.RecordBatch.from_pydict({"value": names})
    batch = Batch("in", rows, keys, records.partition, none, none, none, np.full(n, NO_TIME))
    work = Work(batch, [], lambda row: (records, row), {Partition("in", 0): Position(n)})
    encode = {topic: lambda rows: rows.column("value") for topic in ("one", "two", "dropped")}
    outbox = Outbox(transport, "test", encode, "dead", "dropped", "in", ["in"], absorbs=False)
    source = np.arange(n, dtype=np.int32)
    outbox.add(work, Result([Output(topic, keys, rows, source) for topic in ("one", "two")]))
    transport.abort()
    outbox.resend([Refusal(number, 1, "too large", sure=True) for number in (0, 1)])
    transport.commit({})
    for topic in ("one", "two"):
        assert [row.value for row in broker.rows(topic)] == [b"a", b"c", b"d"]
    assert [row.value for row in broker.rows("dead")] == [b"b"]


@pytest.mark.parametrize(
    ("topic", "columns", "origins"),
    [
        (
            "events",
            {"_origin_partition": [1, 1], "_origin_offset": [7, 8], "kind": ["label", "x"]},
            ["raw/1@7", "raw/1@8"],
        ),
        ("predictions", {"origin_partition": [1, 1], "origin_offset": [7, 8]}, ["raw/1@7", "raw/1@8"]),
        (
            "outcomes",
            {"origin_partition": [1, 1], "origin_offset": [7, 8], "kind": ["label", "prediction"]},
            ["labels/1@7", "raw/1@8"],
        ),
        ("labels", {"origin_partition": [1, 1], "origin_offset": [7, 8]}, ["labels/0@0", "labels/0@1"]),
        ("control", {"x": [1, 1]}, [None, None]),
    ],
)
def test_what_is_rejected_or_dropped_names_the_record_it_descends_from(
    topic: str, columns: dict[str, list[int] | list[str]], origins: list[str | None]
) -> None:
    broker = MemoryBroker()
    for name in (topic, "dead", "dropped"):
        broker.create(name, 1)
    none, keys = np.arange(2, dtype=np.int64), column([b"a", b"b"])
    records = Records(topic, keys, keys, np.zeros(2, np.int32), none, none, lambda row: [])
    rows = pa.RecordBatch.from_pydict({"_event_id": ["e", "f"], **columns})
    batch = Batch(topic, rows, keys, records.partition, none, none, none, np.full(2, NO_TIME))
    work = Work(batch, [], lambda row: (records, row), {Partition(topic, 0): Position(2)})
    notes: list[tuple[int, int]] = []

    def encode(drops: "pa.RecordBatch") -> "pa.BinaryArray":
        notes.extend(
            zip(*(drops.column(f"origin_{name}").to_pylist() for name in ("partition", "offset")), strict=True)
        )
        return column([b""] * len(drops))

    transport = MemoryTransport(broker, "g")
    outbox = Outbox(transport, "s", {"dropped": encode}, "dead", "dropped", "raw", ["labels"], False, "labels")
    outbox.add(work, Result([], {0: Reason("bad", "it is"), 1: Reason("bad", "it is")}))
    outbox.add(work, Result([], {}, {0: Reason("left", "out"), 1: Reason("left", "out")}))
    transport.commit({})
    told = [{name: (value or b"").decode() for name, value in row.headers} for row in broker.rows("dead")]
    parts = [[facts.get(f"penstock.origin.{name}") for name in ("topic", "partition", "offset")] for facts in told]
    assert [None if part[0] is None else f"{part[0]}/{part[1]}@{part[2]}" for part in parts] == origins
    assert [f"/{partition}@{offset}" for partition, offset in notes] == [
        f"/0@{row}" if origin is None else origin[origin.index("/") :] for row, origin in enumerate(origins)
    ]
