"""The facts every record carries between stages, as leading Avro columns (headers would cost half a hop).

An event's own fields may not begin with an underscore, so that these never collide.
"""

from typing import Any

EVENT_ID = "_event_id"
ORIGIN_PARTITION = "_origin_partition"
ORIGIN_OFFSET = "_origin_offset"
EVENT_TIME = "_event_time"
INGEST_TIME = "_ingest_time"
TRACEPARENT = "_traceparent"
REPLAYS = "_replays"
LABEL_KEY = "_label_key"

_TIMESTAMP = {"type": "long", "logicalType": "timestamp-millis"}

FIELDS: tuple[dict[str, Any], ...] = (
    {
        "name": EVENT_ID,
        "type": "string",
        "doc": "declared by the pipeline, else topic-partition-offset of the raw record",
    },
    {"name": ORIGIN_PARTITION, "type": "int", "doc": "partition of the raw record"},
    {"name": ORIGIN_OFFSET, "type": "long", "doc": "offset of the raw record"},
    {"name": EVENT_TIME, "type": _TIMESTAMP},
    {"name": INGEST_TIME, "type": _TIMESTAMP, "doc": "append time of the raw record"},
    {"name": TRACEPARENT, "type": ["null", "string"], "default": None, "doc": "W3C trace context, mostly null"},
    {
        "name": REPLAYS,
        "type": ["null", "string"],
        "default": None,
        "doc": "TOPIC/PARTITION@OFFSET of the first raw record of an event that died behind ingest and is sent again",
    },
)
"""Avro fields, in order; event_time and ingest_time are Arrow timestamp[ms] when decoded."""

COLUMNS: tuple[str, ...] = tuple(field["name"] for field in FIELDS)

HEADERS = {TRACEPARENT: "traceparent", REPLAYS: "penstock.replays"}
"""The columns that ingest takes from a raw record's headers."""

PROBE_KEY = b"penstock.probe."
"""How the key of a probe of ``penstock doctor`` begins: a raw record with an event time before the year 1, which no
real event has. Ingest drops it, and an ingest that knew no probes would reject it (docs/adr/0010)."""
