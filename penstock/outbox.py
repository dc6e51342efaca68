"""The content of the open transaction: encoded outputs, dead letters, drops and positions. It is kept until it is
committed, so that an abort never touches a stage's state: the same bytes are sent again, less the rows of partitions
that are no longer ours and less the rows that the broker refused, which become dead letters.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from penstock.codec.frame import framed_by
from penstock.dead_letter import DeadLetter, RawRow, dead_letter, shortened
from penstock.envelope import EVENT_ID, ORIGIN_OFFSET, ORIGIN_PARTITION
from penstock.lanes import Work
from penstock.records import Batch, Header, Int32s, Output, Partition, Reason, Records, Result, column
from penstock.transport.protocol import Fenced, Position, Refusal, Transport

PARTS = 16
"""An abort and its transaction cost as much as some dozen requests one after the other."""
REFUSED = "refused by the broker"
ENVELOPED = (ORIGIN_PARTITION, ORIGIN_OFFSET)
OWN_ORIGIN = ("origin_partition", "origin_offset")
"""The same in the schemas that all pipelines share, which have no envelope: predictions and outcomes."""
UNENCODABLE = (ValueError, pa.ArrowInvalid, KeyError, TypeError)
Encode = Callable[[pa.RecordBatch], "pa.BinaryArray"]


@dataclass(slots=True)
class _Send:
    """Rows of one topic as they went to the transport. ``keys``, ``values``: binary[n]. ``source``: int32[n], rows of
    ``work.batch``; -1 came from no row.
    """

    topic: str
    keys: "pa.BinaryArray"
    values: "pa.BinaryArray"
    headers: list[list[Header]] | None
    source: Int32s
    work: Work | None
    alone: bool = False

    def part(self, start: int, stop: int, *, alone: bool) -> "_Send":
        """Rows ``start`` to ``stop``; nothing is copied."""
        n, headers = stop - start, None if self.headers is None else self.headers[start:stop]
        keys, values = self.keys.slice(start, n), self.values.slice(start, n)
        return _Send(self.topic, keys, values, headers, self.source[start:stop], self.work, alone)

    def keep(self, mask: Sequence[bool] | np.ndarray) -> None:
        chosen = np.flatnonzero(mask)
        self.keys, self.values = self.keys.take(pa.array(chosen)), self.values.take(pa.array(chosen))
        if self.headers is not None:
            self.headers = [self.headers[i] for i in chosen.tolist()]
        self.source = self.source[chosen]


@dataclass(slots=True)
class Tally:
    """What the open transaction holds, for the metrics once it is committed."""

    rows_in: dict[str, int] = field(default_factory=dict)
    rows_out: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    late: int = 0

    @staticmethod
    def count(counts: dict[str, int], name: str, n: int) -> None:
        if n:
            counts[name] = counts.get(name, 0) + n


class UnencodableError(Exception):
    """A stage made rows that its output schema does not take."""


class Outbox:
    """``encoders`` by topic. ``raw_inputs``: those of the stage's inputs whose records are origins themselves; what
    others hold descends from ``raw_topic``, and of the label join's rows the labels from ``labels_topic``."""

    def __init__(
        self,
        transport: Transport,
        stage: str,
        encoders: Mapping[str, Encode],
        dead_topic: str,
        dropped_topic: str,
        raw_topic: str,
        raw_inputs: Iterable[str],
        absorbs: bool,
        labels_topic: str | None = None,
    ) -> None:
        self._transport, self._stage, self._encoders, self._absorbs = transport, stage, encoders, absorbs
        self._dead_topic, self._dropped_topic, self._raw_topic = dead_topic, dropped_topic, raw_topic
        self._raw_inputs, self._labels_topic = frozenset(raw_inputs), labels_topic
        self._sends: list[_Send] = []
        self.positions: dict[Partition, Position] = {}
        self.tally = Tally()

    def __bool__(self) -> bool:
        return bool(self._sends or self.positions)

    def add(self, work: Work, result: Result) -> Mapping[str, int]:
        """The fate of a batch. Returns its dead letters by reason. Raises ``UnencodableError`` before anything was
        sent."""
        batch = work.batch
        sends = []
        for output in result.outputs:
            if len(output.rows):
                sends.append(self._encoded(output, work))
        letters = [
            self._letter(
                records,
                row,
                Reason(bad.reason, bad.message),
                {"schema.id": str(bad.schema_id)} if bad.schema_id is not None else {},
            )
            for records, row, bad in work.bad
        ]
        letters += [self._reject(work, row, reason) for row, reason in result.rejects.items()]
        sources = np.array([-1] * len(work.bad) + list(result.rejects), np.int32)
        if letters:
            sends.append(self._to_dead(letters, sources, work))
        if result.dropped:
            sends.append(self._encoded(self._drops(work, result.dropped), work))
        for send in sends:
            self._send(send)
        self.positions.update(work.positions)
        tally = self.tally
        tally.late += result.late
        tally.count(tally.rows_in, batch.topic, len(batch) + len(work.bad))
        dead = Counter([*(bad.reason for _, _, bad in work.bad), *(reason.kind for reason in result.rejects.values())])
        for reason, n in dead.items():
            tally.count(tally.dead, reason, n)
        for drop in result.dropped.values():
            tally.count(tally.dropped, drop.kind, 1)
        return dead

    def unencodable(self, output: Output) -> dict[int, str]:
        """Row → why, of those of ``output`` that its schema does not take, found by halving, in order."""
        encode, parts = self._encoder(output.topic), [(0, len(output.rows))]
        found: dict[int, str] = {}
        while parts:
            start, stop = parts.pop()
            try:
                encode(output.rows.slice(start, stop - start))
            except UNENCODABLE as error:
                if stop - start == 1:
                    found[start] = f"{output.topic}: {error}"
                else:
                    middle = (start + stop) // 2
                    parts += [(middle, stop), (start, middle)]
        return found

    def add_unsourced(self, result: Result) -> None:
        """What ``tick`` and ``flush`` made."""
        for output in result.outputs:
            if len(output.rows):
                self._send(self._encoded(output, None))

    def _encoder(self, topic: str) -> Encode:
        try:
            return self._encoders[topic]
        except KeyError:
            raise UnencodableError(
                f"stage {self._stage} wrote to {topic!r}, which its plan does not list among its outputs"
            ) from None

    def _encoded(self, output: Output, work: Work | None) -> _Send:
        encode = self._encoder(output.topic)
        try:
            values = encode(output.rows)
        except UNENCODABLE as error:
            raise UnencodableError(f"{output.topic}: {error}") from error
        return _Send(output.topic, column(output.keys), values, None, output.source, work)

    def _send(self, send: _Send) -> None:
        self._sends.append(send)
        self._transport.send(send.topic, send.keys, send.values, send.headers, alone=send.alone)
        self.tally.count(self.tally.rows_out, send.topic, len(send.values))

    def _to_dead(self, letters: list[DeadLetter], source: Int32s, work: Work | None) -> _Send:
        return _Send(
            self._dead_topic,
            column([d.key for d in letters]),
            column([d.value for d in letters]),
            [d.headers for d in letters],
            source,
            work,
        )

    def _reject(self, work: Work, row: int, reason: Reason) -> DeadLetter:
        records, place = work.record(row)
        details = dict(reason.details)
        if (schema_id := framed_by(records.values[place].as_py())) is not None:
            details["schema.id"] = str(schema_id)
        return self._letter(records, place, reason, details, self._origin(work, row))

    def _origin(self, work: Work, row: int) -> tuple[str, int, int] | None:
        rows, columns = work.batch.rows, self._origin_columns(work.batch)
        if columns is None:
            return None
        partition, offset = (rows.column(name)[row].as_py() for name in columns)
        # the envelope is of events; without it, one topic of ours holds two kinds
        of_label = columns == OWN_ORIGIN and "kind" in rows.schema.names and rows.column("kind")[row].as_py() == "label"
        return (self._labels_topic or self._raw_topic) if of_label else self._raw_topic, partition, offset

    def _origin_columns(self, batch: Batch) -> tuple[str, str] | None:
        """Where the rows say what they descend from; None where they are that themselves: their fields are a user's."""
        if batch.topic in self._raw_inputs:
            return None
        return next((pair for pair in (ENVELOPED, OWN_ORIGIN) if pair[0] in batch.rows.schema.names), None)

    def _letter(
        self,
        records: Records,
        row: int,
        reason: Reason,
        details: dict[str, str],
        origin: tuple[str, int, int] | None = None,
    ) -> DeadLetter:
        where = Partition(records.topic, int(records.partition[row]))
        offset = int(records.offset[row])
        if records.topic in self._raw_inputs:
            origin = (records.topic, where.number, offset)
        raw = RawRow(
            where,
            offset,
            int(records.timestamp[row]),
            records.keys[row].as_py(),
            records.values[row].as_py(),
            records.headers(row),
            origin,
        )
        return dead_letter(raw, reason, self._stage, details)

    def _drops(self, work: Work, dropped: Mapping[int, Reason]) -> Output:
        batch = work.batch
        rows = np.fromiter(dropped, np.int32, len(dropped))
        n = len(rows)
        reasons = list(dropped.values())
        taken = batch.rows.take(pa.array(rows))
        origin = self._origin_columns(batch)
        columns = {
            "stage": pa.repeat(self._stage, n),
            "reason": pa.array([reason.kind for reason in reasons]),
            "message": pa.array([reason.message for reason in reasons]),
            "event_id": taken.column(EVENT_ID) if origin == ENVELOPED else pa.nulls(n, pa.string()),
            "topic": pa.repeat(batch.topic, n),
            "partition": pa.array(batch.partition[rows]),
            "offset": pa.array(batch.offset[rows]),
            "origin_partition": taken.column(origin[0]) if origin else pa.array(batch.partition[rows]),
            "origin_offset": taken.column(origin[1]) if origin else pa.array(batch.offset[rows]),
        }
        return Output(self._dropped_topic, batch.keys.take(pa.array(rows)), pa.RecordBatch.from_pydict(columns), rows)

    def resend(self, refused: Sequence[Refusal]) -> None:
        """After an abort: everything again in a new transaction. Of rows that were refused together one is guilty, and
        parts of them are tried until it stands alone; its source becomes a dead letter and leaves all outputs.
        """
        by_send: dict[int, dict[int, str]] = {}
        sure = [refusal for refusal in refused if refusal.sure]
        for refusal in sure or refused:  # what else was refused is again, once these are gone
            by_send.setdefault(refusal.send, {})[refusal.row] = refusal.message
        letters: list[_Send] = []
        if sure or len(refused) == 1:
            letters = self._condemn(by_send)
        else:
            self._part(by_send)
        again, self._sends = self._sends, []
        self.tally.rows_out = {}
        for send in [*again, *letters]:
            if len(send.values):
                self._send(send)

    def _part(self, suspects: Mapping[int, Iterable[int]]) -> None:
        """Cuts each send with suspects, in order, into what lies before them, parts of them, and what lies behind."""
        parts: list[_Send] = []
        for number, send in enumerate(self._sends):
            rows = sorted(suspects.get(number, ()))
            if not rows:
                parts.append(send)
                continue
            first, end = rows[0], rows[-1] + 1
            inner = {rows[len(rows) * n // PARTS] for n in range(PARTS)}
            for start, stop in pairwise(sorted({0, *inner, end, len(send.values)})):
                parts.append(send.part(start, stop, alone=send.alone or first <= start < end))
        self._sends = parts

    def _condemn(self, by_send: Mapping[int, Mapping[int, str]]) -> list[_Send]:
        """Takes the guilty rows' sources out of all outputs and returns their dead letters. Every refusal is traced to
        its source before the first row leaves, because that moves the others."""
        guilty: dict[int, tuple[Work, dict[int, str]]] = {}
        for number, rows in by_send.items():
            send = self._sends[number]
            if send.topic == self._dead_topic:
                assert send.headers is not None
                keys, values = send.keys.to_pylist(), send.values.to_pylist()
                for row, message in rows.items():
                    letter = shortened(DeadLetter(keys[row], values[row], send.headers[row]))
                    if letter is None:
                        raise Fenced(
                            f"{send.topic}: {message}: a dead letter of which nothing is left to be cut was refused. "
                            "Raise the topic's max.message.bytes"
                        )
                    keys[row], values[row], send.headers[row] = letter.key, letter.value, letter.headers
                send.keys, send.values = column(keys), column(values)
                continue
            sources = {int(send.source[row]): message for row, message in rows.items()}
            if send.work is None or -1 in sources:
                raise Fenced(
                    f"{send.topic}: {next(iter(rows.values()))}: a row of {self._stage}'s own making was refused. "
                    "Raise the topic's max.message.bytes"
                )
            guilty.setdefault(id(send.work), (send.work, {}))[1].update(sources)
        letters = []
        for work, messages in guilty.values():
            for send in self._sends:
                if send.work is work and send.topic != self._dead_topic:
                    send.keep(~np.isin(send.source, list(messages)))
            dead = [self._reject(work, row, Reason(REFUSED, message)) for row, message in messages.items()]
            self.tally.count(self.tally.dead, REFUSED, len(dead))
            letters.append(self._to_dead(dead, np.array(list(messages), np.int32), work))
        return letters

    def forget(self, partitions: Iterable[Partition]) -> bool:
        """Takes the rows of partitions out that are another's now. True when anything was taken out: then the open
        transaction must be aborted and the rest sent again. Raises ``Fenced`` where absorbed rows cannot be told apart
        any more.
        """
        gone = set(partitions)
        if not gone & self.positions.keys():
            return False
        if self._absorbs:
            raise Fenced(
                f"{self._stage}: {sorted(gone)} were lost with rows absorbed into its summaries; the worker starts anew"
            )
        for send in self._sends:
            if send.work is None:
                continue
            lost = {p.number for p in gone if p.topic == send.work.batch.topic}
            if not lost:
                continue
            if send.topic == self._dead_topic:
                send.keep([self._dead_source(headers) not in gone for headers in send.headers or []])
            else:
                send.keep(~np.isin(send.work.batch.partition[send.source], list(lost)))
        for partition in gone:
            self.positions.pop(partition, None)
        return True

    def _dead_source(self, headers: list[Header]) -> Partition:
        found = dict(headers)
        topic, number = found["__connect.errors.topic"], found["__connect.errors.partition"]
        assert topic is not None
        assert number is not None
        return Partition(topic.decode(), int(number))

    def clear(self) -> Tally:
        """After the commit."""
        tally, self.tally = self.tally, Tally()
        self._sends, self.positions = [], {}
        return tally
