"""Decode, replay and merge between poll and process, on logs of a few rows."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.codec.avro import AvroEncoder
from penstock.codec.decoded import BadRow, Decoded
from penstock.intake import Intake, Piece, TopicReader
from penstock.lanes import Work
from penstock.records import NO_TIME, Partition, Records, column
from penstock.schemas.registry import TransientLookupError
from penstock.transport.headers import Headers
from penstock.transport.protocol import Position

TOPIC = "t"


def decode(values: pa.BinaryArray) -> Decoded:
    """A value is its event time; `x` is bad."""
    texts = values.to_pylist()
    good = [i for i, text in enumerate(texts) if text != b"x"]
    rows = pa.RecordBatch.from_pydict({"time": pa.array([int(texts[i]) for i in good], pa.int64())})
    bad = {i: BadRow("bad", "it is an x") for i in range(len(values)) if i not in set(good)}
    return Decoded(rows, np.array(good, np.int32), bad)


def polled(rows: list[tuple[int, int, str]], timestamp: int = 0) -> Records:
    """(partition, offset, value)"""
    return Records(
        TOPIC,
        column([value.encode() for _, _, value in rows]),
        pa.nulls(len(rows), pa.binary()),
        np.array([p for p, _, _ in rows], np.int32),
        np.array([o for _, o, _ in rows], np.int64),
        np.full(len(rows), timestamp, np.int64),
        lambda row: [],
    )


def intake(partitions: int, merges: bool = True, max_rows: int = 100, buffer_rows: int = 1000) -> Intake:
    made = Intake([TopicReader(TOPIC, decode, "time")], merges, buffer_rows, max_rows, patience_s=5.0)
    for number in range(partitions):
        made.open(Partition(TOPIC, number), Position(0), Position(0))
    return made


def put(into: Intake, rows: list[tuple[int, int, str]], now: float = 0.0) -> list[Work]:
    return [work for piece in into.split(polled(rows)) if (work := into.add(piece, now)) is not None]


def times(work: Work) -> list[int]:
    return work.batch.event_time.tolist()  # type: ignore[no-any-return]


def test_without_a_merge_a_poll_goes_on_at_once_with_its_bad_rows_and_positions() -> None:
    (work,) = put(intake(2, merges=False), [(0, 0, "5"), (1, 0, "9"), (0, 1, "x"), (0, 2, "7")])
    assert times(work) == [5, 9, 7]
    assert work.batch.watermark.tolist() == [NO_TIME, NO_TIME, 5]
    assert [(row, bad.reason) for _, row, bad in work.bad] == [(2, "bad")]
    assert work.positions == {Partition(TOPIC, 0): Position(3, 7), Partition(TOPIC, 1): Position(1, 9)}
    records, row = work.record(2)
    assert records.values[row].as_py() == b"7"


def test_what_raw_records_say_in_headers_stays_with_them_when_a_bad_one_goes() -> None:
    made = Intake([TopicReader(TOPIC, decode, "time", raw=True)], False, 1000, 100, patience_s=5.0)
    made.open(Partition(TOPIC, 0), Position(0), Position(0))
    headers = Headers.listed([[], [("traceparent", b"bad")], [("penstock.replays", b"t/0@7"), ("x", b"y")], []])
    records = replace(polled([(0, 0, "1"), (0, 1, "x"), (0, 2, "3"), (0, 3, "4")]), texts=headers.texts)
    (work,) = [work for piece in made.split(records) if (work := made.add(piece, 0.0)) is not None]
    found = {name: texts.to_pylist() for name, texts in work.batch.headed.items()}
    assert found == {"_traceparent": [None] * 3, "_replays": [None, "t/0@7", None]}


def test_partitions_are_merged_by_event_time_and_one_that_has_more_is_waited_for() -> None:
    merging = intake(2)
    put(merging, [(0, 0, "1"), (0, 1, "5"), (0, 2, "9")])
    assert list(merging.take(0.0)) == []
    put(merging, [(1, 0, "2"), (1, 1, "6")])
    (work,) = merging.take(0.0)
    assert times(work) == [1, 2, 5, 6]
    assert work.positions[Partition(TOPIC, 0)] == Position(2, 5)
    merging.ended(Partition(TOPIC, 1), 2)
    (rest,) = merging.take(0.0)
    assert times(rest) == [9]


def test_a_silent_partition_is_not_waited_for_for_ever() -> None:
    merging = intake(2)
    put(merging, [(0, 0, "1")])
    assert list(merging.take(0.0)) == []
    assert list(merging.take(4.9)) == []
    assert [times(work) for work in merging.take(5.1)] == [[1]]


def test_rows_past_the_slowest_worker_wait() -> None:
    merging = intake(1)
    merging.hold_after[TOPIC] = 4
    put(merging, [(0, 0, "1"), (0, 1, "4"), (0, 2, "8")])
    merging.ended(Partition(TOPIC, 0), 3)
    assert [times(work) for work in merging.take(0.0)] == [[1, 4]]
    del merging.hold_after[TOPIC]
    assert [times(work) for work in merging.take(0.0)] == [[8]]


def test_a_bad_row_leaves_with_the_rows_before_it_and_never_ahead_of_its_offset() -> None:
    merging = intake(2)
    put(merging, [(0, 0, "1"), (0, 1, "x"), (0, 2, "5"), (0, 3, "x"), (1, 0, "2")])
    merging.ended(Partition(TOPIC, 0), 4)
    (first,) = merging.take(0.0)
    assert times(first) == [1, 2]
    assert [int(records.offset[row]) for records, row, _ in first.bad] == [1]
    assert first.positions[Partition(TOPIC, 0)] == Position(2, 1)
    merging.ended(Partition(TOPIC, 1), 1)
    (second,) = merging.take(0.0)
    assert times(second) == [5]
    assert [int(records.offset[row]) for records, row, _ in second.bad] == [3]
    assert second.positions[Partition(TOPIC, 0)] == Position(4, 5)


def test_bad_rows_alone_pass_without_an_event_time() -> None:
    merging = intake(1)
    put(merging, [(0, 0, "x"), (0, 1, "x")])
    (work,) = merging.take(0.0)
    assert len(work.batch) == 0
    assert len(work.bad) == 2
    assert work.positions == {Partition(TOPIC, 0): Position(2, NO_TIME)}


def test_rows_below_the_committed_offset_are_replay_and_take_no_part_in_the_merge() -> None:
    merging = intake(0)
    merging.open(Partition(TOPIC, 0), Position(0), Position(2, 70))
    (replay,) = put(merging, [(0, 0, "5"), (0, 1, "7"), (0, 2, "6")])
    assert replay.batch.replay
    assert times(replay) == [5, 7]
    merging.ended(Partition(TOPIC, 0), 3)
    (live,) = merging.take(0.0)
    assert not live.batch.replay
    assert times(live) == [6]
    assert live.batch.watermark.tolist() == [70]
    assert merging.replay_left(Partition(TOPIC, 0)) == 0


def test_a_log_that_ends_in_a_transaction_marker_ends_the_replay() -> None:
    merging = intake(0)
    merging.open(Partition(TOPIC, 0), Position(0), Position(3, 7))
    put(merging, [(0, 0, "5"), (0, 1, "7")])
    assert merging.replay_left(Partition(TOPIC, 0)) == 1
    merging.ended(Partition(TOPIC, 0), 3)
    assert merging.replay_left(Partition(TOPIC, 0)) == 0


def test_an_event_time_in_the_far_future_does_not_move_the_watermark() -> None:
    reader = TopicReader(TOPIC, decode, "time", future_ms=10)
    into = Intake([reader], False, 100, 100)
    into.open(Partition(TOPIC, 0), Position(0), Position(0))
    (piece,) = into.split(polled([(0, 0, "100"), (0, 1, "999999"), (0, 2, "101")], timestamp=100))
    work = into.add(piece, 0.0)
    assert work is not None
    assert work.batch.watermark.tolist() == [NO_TIME, 100, 110]


def test_a_piece_whose_schema_cannot_be_looked_up_now_can_be_added_again() -> None:
    failures = [1]

    def sometimes(values: pa.BinaryArray) -> Decoded:
        if failures and failures.pop():
            raise TransientLookupError("the registry is away")
        return decode(values)

    into = Intake([TopicReader(TOPIC, sometimes, "time")], False, 100, 100)
    into.open(Partition(TOPIC, 0), Position(0), Position(0))
    (piece,) = into.split(polled([(0, 0, "1"), (0, 1, "2")]))
    with pytest.raises(TransientLookupError):
        into.add(piece, 0.0)
    work = into.add(piece, 0.0)
    assert work is not None
    assert times(work) == [1, 2]
    assert work.batch.watermark.tolist() == [NO_TIME, 1]


def test_a_full_buffer_pauses_its_partition_until_half_of_it_is_gone() -> None:
    merging = intake(2, buffer_rows=4, max_rows=2)
    put(merging, [(0, n, str(n)) for n in range(4)])
    assert merging.crowded() == [Partition(TOPIC, 0)]
    assert merging.crowded() == []
    assert merging.roomy() == []
    merging.ended(Partition(TOPIC, 1), 0)
    list(merging.take(0.0))
    assert merging.roomy() == [Partition(TOPIC, 0)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.booleans()), max_size=60),
    st.lists(st.integers(1, 60), max_size=5),
    st.integers(1, 20),
)
def test_every_row_comes_out_once_in_its_partitions_order_and_positions_cover_just_those(
    rows: list[tuple[int, int, bool]], cuts: list[int], max_rows: int
) -> None:
    merging = intake(3, max_rows=max_rows)
    offsets = [0, 0, 0]
    log = []
    for partition, time, bad in rows:
        log.append((partition, offsets[partition], "x" if bad else str(time)))
        offsets[partition] += 1
    works: list[Work] = []
    at = 0
    for cut in [*sorted({min(c, len(log)) for c in cuts}), len(log)]:
        if cut > at:
            put(merging, log[at:cut])
            at = cut
        works += list(merging.take(0.0))
    for number in range(3):
        merging.ended(Partition(TOPIC, number), offsets[number])
    while more := list(merging.take(0.0)):
        works += more
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    done = dict.fromkeys(range(3), 0)
    for work in works:
        here: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for row in range(len(work.batch)):
            partition, offset = int(work.batch.partition[row]), int(work.batch.offset[row])
            records, place = work.record(row)
            assert records.values[place].as_py() == str(work.batch.event_time[row]).encode()
            assert not here[partition] or here[partition][-1] < offset
            here[partition].append(offset)
        for records, place, _ in work.bad:
            here[int(records.partition[place])].append(int(records.offset[place]))
        for partition, found in here.items():
            seen[partition] += found
        for where, position in work.positions.items():
            done[where.number] = position.offset
        for partition in range(3):
            assert sorted(seen[partition]) == list(range(done[partition]))
    assert [done[number] for number in range(3)] == offsets


def test_a_slice_of_columns_is_encoded_as_the_slice() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "s", "type": "string"},
            {"name": "n", "type": ["null", "double"], "default": None},
            {"name": "b", "type": "boolean"},
        ],
    }
    rows = pa.RecordBatch.from_pydict(
        {
            "s": pa.array([f"row{i}" for i in range(20)]),
            "n": pa.array([None if i % 3 else i / 2 for i in range(20)], pa.float64()),
            "b": pa.array([i % 2 == 0 for i in range(20)]),
        }
    )
    encoder = AvroEncoder(schema, 1)
    assert encoder.encode(rows.slice(5, 9)).to_pylist() == encoder.encode(rows).to_pylist()[5:14]


def test_a_partition_that_was_read_to_its_end_is_not_drained_while_what_came_since_waits_to_be_decoded() -> None:
    reading = intake(1, merges=False)
    put(reading, [(0, 0, "1")])
    reading.ended(Partition(TOPIC, 0), 1)
    assert reading.drained(Partition(TOPIC, 0))
    reading.split(polled([(0, 1, "2")]))
    assert not reading.drained(Partition(TOPIC, 0))


def test_the_merge_gives_no_more_than_it_is_asked_for_and_of_nothing_not_even_what_is_bad() -> None:
    merging = intake(1)
    put(merging, [(0, 0, "x")])
    assert list(merging.take(0.0, 0)) == []
    put(merging, [(0, 1, "1"), (0, 2, "2"), (0, 3, "3")])
    (work,) = merging.take(0.0, 2)
    assert (times(work), len(work.bad)) == ([1, 2], 1)


def test_a_piece_is_cut_at_the_most_that_may_be_worked_and_a_replay_is_not() -> None:
    rows = polled([(0, 0, "1"), (0, 1, "2"), (0, 2, "3")])
    first, rest = Piece(rows, replay=False).cut(2)
    assert rest is not None
    assert (first.records.offset.tolist(), rest.records.offset.tolist()) == ([0, 1], [2])
    assert Piece(rows, replay=False).cut(3)[1] is None
    assert Piece(rows, replay=True).cut(2)[1] is None
