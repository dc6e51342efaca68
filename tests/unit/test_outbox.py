"""What the outbox sends again after an abort."""

import numpy as np
import pyarrow as pa

from penstock.lanes import Work
from penstock.outbox import Outbox
from penstock.records import NO_TIME, Batch, Output, Partition, Records, Result, column
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
