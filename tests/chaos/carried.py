"""What a row carries on unchanged from the raw record that it is of: the event's own fields through NAME.events and
NAME.by.* as far as NAME.features takes them, its id, times and marks, and the keys made of them.

Not judged: what the pipeline's own functions make of an event (on-demand features), for they are neither the verifier's
nor copied; of an event whose raw value fastavro cannot read, nothing is held against NAME.events, and the later topics
are held to that.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from tests.chaos.declared import Declared
from tests.chaos.inputs import Inputs
from tests.chaos.records import Find, Headers, Place, Record, Schemas, at

ENVELOPE = ("_event_id", "_event_time", "_ingest_time", "_traceparent", "_replays")
OF_PREDICTION = ("prediction_id", "event_time", "ingest_time", "traceparent")
"""The same in a prediction, as far as it has them."""
HEADERS = {"_traceparent": "traceparent", "_replays": "penstock.replays"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = Mapping[str, Any]


class Carried:
    """Takes raw records first, then each topic of the chain. ``keys``: the record's key in NAME.features and the label
    key, by origin, for what is made of them. ``unread``: events whose raw value the verifier could not read."""

    def __init__(self, pipeline: str, schemas: Schemas, declared: Declared, find: Find) -> None:
        assert declared.event is not None
        self._name, self._declared, self._find = pipeline, declared, find
        self._inputs = Inputs(schemas, declared.event.avro)
        self._time = declared.event.timestamp
        self._place = {name: number for number, name in enumerate(self._inputs.names)}
        self._fields = picking(self._inputs.names)
        self._events: dict[Place, tuple[Any, ...]] = {}
        self._arrived: dict[Place, tuple[int | None, Headers]] = {}
        self._envelopes: dict[Place, tuple[Any, ...]] = {}
        self._columns: dict[tuple[str, bytes], tuple[tuple[str, ...], Callable[..., Any], Callable[..., Any]]] = {}
        self.keys: dict[Place, tuple[bytes | None, str | None]] = {}
        self.unread = 0

    def sent(self, record: Record) -> None:
        """A raw record."""
        place, row = (record.partition, record.offset), self._inputs.row(record.value)
        self._arrived[place] = record.timestamp, record.headers
        if row is not None:
            self._events[place] = self._fields(row)

    def judge(self, suffix: str, record: Record, row: Row, origin: Place) -> None:
        """A row of the chain."""
        where = f"{suffix}{at((record.partition, record.offset))}"
        schema = suffix, (record.value or b"")[1:5]
        if schema not in self._columns:
            self._columns[schema] = self._shared(row)
        names, from_row, from_event = self._columns[schema]
        got, event = from_row(row), self._events.get(origin)
        if event is None and suffix == "events":
            self.unread += 1
            if names == self._inputs.names:
                self._events[origin] = got
        elif event is not None and got != (sent := from_event(event)):
            self._differ(where, row, names, got, sent)
        envelope = tuple(row.get(name) for name in ENVELOPE)
        if suffix == "events":
            self._arrive(where, dict(zip(ENVELOPE, envelope, strict=True)), origin, event)
            self._envelopes.setdefault(origin, envelope)
        elif (first := self._envelopes.get(origin, envelope)) != envelope:
            self._differ(where, row, ENVELOPE, envelope, first)
        self._judge_keys(suffix, where, record, row, origin)

    def predicted(self, record: Record, row: Row, origin: Place) -> None:
        """A row of NAME.predictions."""
        where = f"predictions{at((record.partition, record.offset))}"
        got, first = tuple(row[name] for name in OF_PREDICTION), self._envelopes.get(origin)
        if first is not None and got != first[: len(got)]:
            self._differ(where, row, OF_PREDICTION, got, first)
        if origin in self.keys:
            key, _ = self.keys[origin]
            if record.key != key or row["key"] != (None if key is None else key.decode()):
                self._find("mistaken", f"{where} has the keys {record.key!r}, {row['key']!r}; its features {key!r}")

    def event_id(self, origin: Place) -> str | None:
        """The id that the raw event at ``origin`` gives; None where it gives none that is known."""
        if self._declared.event_id is None:
            return f"{self._name}.raw-{origin[0]}-{origin[1]}"
        event = self._events.get(origin)
        return None if event is None else text(event[self._place[self._declared.event_id]])

    def _shared(self, row: Row) -> tuple[tuple[str, ...], Callable[..., Any], Callable[..., Any]]:
        """The event's fields that a row of this schema has, and how to take them of the row and of the event."""
        names = tuple(name for name in self._inputs.names if name in row and name not in self._declared.made)
        if names == self._inputs.names:
            return names, self._fields, lambda event: event
        places = [self._place[name] for name in names]
        return names, picking(names), lambda event: tuple(event[place] for place in places)

    def _arrive(self, where: str, row: Row, origin: Place, event: tuple[Any, ...] | None) -> None:
        """A row of NAME.events says of its raw record what that is."""
        event_id = self.event_id(origin)
        if event_id is not None and row["_event_id"] != event_id:
            self._find("mistaken", f"{where} is {row['_event_id']!r}, raw{at(origin)} is {event_id!r}")
        if event is not None and milliseconds(event[self._place[self._time]]) != milliseconds(row["_event_time"]):
            self._find("altered", f"{where}: its event time is {row['_event_time']}, not that of raw{at(origin)}")
        if origin not in self._arrived:
            return  # told elsewhere
        timestamp, headers = self._arrived[origin]
        if timestamp is not None and row["_ingest_time"] is not None and milliseconds(row["_ingest_time"]) != timestamp:
            self._find("altered", f"{where}: raw{at(origin)} did not come at {row['_ingest_time']}")
        for name, header in HEADERS.items():
            said = [value for named, value in headers if named == header]
            told = None if row[name] is None else row[name].encode()
            if len(said) < 2 and told != (said[0] if said else None):  # of two of a name, which counts is not said
                self._find("altered", f"{where}: {name} is {told!r}, raw{at(origin)} has the headers {said}")

    def _judge_keys(self, suffix: str, where: str, record: Record, row: Row, origin: Place) -> None:
        """The record lies under the key that its event has for it, and a features row names its label by the event."""
        event, column = self._events.get(origin), self._declared.keys.get(suffix)
        if column is not None and (column in row or event is not None):
            of = row[column] if event is None or column not in self._place else event[self._place[column]]
            if of is None and suffix == "events" and self._declared.deduplicates:
                of = row["_event_id"]  # so that copies of an event without an entity meet too
            key = None if of is None else str(of).encode()
            if record.key != key:
                self._find("mistaken", f"{where} has the key {record.key!r} and not {key!r}, by {column}")
        if suffix == "features":
            label_key = row.get("_label_key")
            self.keys.setdefault(origin, (record.key, label_key))
            label = self._declared.label
            if label is not None and label.key in self._place and event is not None:
                expected = text(event[self._place[label.key]])
                if expected is not None and label_key != expected:
                    self._find("altered", f"{where}: its label key is {label_key!r}, the event says {expected!r}")

    def _differ(
        self, where: str, row: Row, names: tuple[str, ...], got: tuple[Any, ...], sent: tuple[Any, ...]
    ) -> None:
        for name, a, b in zip(names, got, sent, strict=False):
            if name not in row or a == b or str(a) == str(b) == "nan":
                continue
            kind = "mistaken" if name in ("_event_id", "prediction_id") else "altered"
            self._find(kind, f"{where}: {name} is {a!r}, and was {b!r}")


def picking(names: tuple[str, ...]) -> Callable[[Row], tuple[Any, ...]]:
    """What takes these columns of a row."""
    return itemgetter(*names) if len(names) > 1 else lambda row: tuple(row[name] for name in names)


def text(value: Any) -> str | None:
    """As a key; None where it is not said how such a value is written."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def milliseconds(time: datetime | int) -> int:
    """Whole ones, without a float on the way."""
    if isinstance(time, int):
        return time
    return (time.replace(tzinfo=time.tzinfo or UTC) - EPOCH) // timedelta(milliseconds=1)
