"""NAME.outcomes: a prediction's facts are that prediction's and there once, a label's are that raw label's, and both of
one label key lie in one partition, where alone they can meet.
"""

from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import Any

from tests.chaos.carried import Row, milliseconds, picking, text
from tests.chaos.declared import Declared
from tests.chaos.inputs import Inputs
from tests.chaos.records import Find, Place, Record, Schemas, at

SHARED = ("event_time", "ingest_time", "model", "version", "served_by", "score", "label", "confidence")
"""What an outcome and its prediction both say."""
OF_PREDICTIONS = (*SHARED[2:], "baseline")
"""What only a prediction's outcome says."""
_shared = picking(SHARED)


class Outcomes:
    """Takes raw labels, features and predictions as they pass by, then the outcomes. ``labels`` and ``facts``: how many
    there are of each label and of each prediction."""

    def __init__(self, schemas: Schemas, declared: Declared, find: Find) -> None:
        self._declared, self._find = declared, find
        self._label = declared.label
        self._inputs = None if self._label is None else Inputs(schemas, self._label.avro)
        self._sent: dict[Place, tuple[Any, ...]] = {}
        self._predicted: dict[Place, tuple[Any, ...]] = {}
        self._featured: dict[Place, tuple[str | None, float | None]] = {}
        self._home: dict[str, int] = {}
        self.labels: Counter[Place] = Counter()
        self.facts: Counter[Place] = Counter()

    def sent(self, record: Record) -> None:
        """A raw label."""
        if self._inputs is None or self._label is None:
            return
        row = self._inputs.row(record.value)
        if row is not None and self._label.key is not None and self._label.value is not None:
            facts = text(row[self._label.key]), row[self._label.value], row[self._label.timestamp]
            self._sent[record.partition, record.offset] = *facts, record.timestamp

    def featured(self, origin: Place, row: Row) -> None:
        baseline = self._declared.baseline
        value = None if baseline is None else row.get(baseline)
        self._featured.setdefault(origin, (row.get("_label_key"), None if value is None else float(value)))

    def predicted(self, origin: Place, row: Row) -> None:
        if self._label is not None:
            self._predicted.setdefault(origin, (row["prediction_id"], *_shared(row)))

    def judge(self, record: Record, row: Row) -> None:
        """A row of NAME.outcomes."""
        where = f"outcomes{at((record.partition, record.offset))}"
        origin = row["origin_partition"], row["origin_offset"]
        key = row.get("label_key")
        if key is not None and self._home.setdefault(key, record.partition) != record.partition:
            self._find("misordered", f"{where}: label key {key!r} lies in two partitions")
        if row["kind"] == "label":
            self.labels[origin] += 1
            if origin in self._sent:
                self._judge_label(where, row, origin)
        else:
            self.facts[origin] += 1
            if origin in self._predicted:
                self._judge_prediction(where, row, origin)
        if self._label is not None and record.key != (None if key is None else key.encode()):
            self._find("mistaken", f"{where} has the key {record.key!r} and not {key!r}")

    def _judge_label(self, where: str, row: Row, origin: Place) -> None:
        key, value, time, timestamp = self._sent[origin]
        if key is not None and not row["label_key"] == row["event_id"] == key:
            self._find(
                "mistaken", f"{where} is {row['label_key']!r}, {row['event_id']!r}; labels{at(origin)} is {key!r}"
            )
        times = row["event_time"], row["ingest_time"]
        for got, sent in zip(times, (time, timestamp), strict=True):
            if isinstance(sent, int | datetime) and milliseconds(got) != milliseconds(sent):
                self._find("altered", f"{where}: labels{at(origin)} is not of {got}")
        if foreign := [name for name in OF_PREDICTIONS if row[name] is not None]:
            self._find("altered", f"{where} is of a label and says {foreign[0]} {row[foreign[0]]!r}")
        if row["value"] != value:
            self._find("altered", f"{where}: the truth is {row['value']}, labels{at(origin)} says {value}")

    def _judge_prediction(self, where: str, row: Row, origin: Place) -> None:
        label_key, baseline = self._featured.get(origin, (row["label_key"], row["baseline"]))
        expected = (*self._predicted[origin], label_key, baseline, None)
        got = row["event_id"], *_shared(row), row["label_key"], row["baseline"], row["value"]
        if got != expected:
            names = ("event_id", *SHARED, "label_key", "baseline", "value")
            for name, a, b in zip(names, got, expected, strict=True):
                if a != b:
                    self._find("altered", f"{where}: {name} is {a!r}, and was {b!r}")

    def settle(self, predictions: Collection[Place] | None) -> None:
        """Of each of these predictions there is one outcome, and of nothing else."""
        if predictions is None:
            return
        for place in predictions:
            if self.facts[place] != 1:
                kind = "lost" if not self.facts[place] else "duplicated"
                self._find(kind, f"{self.facts[place]} outcomes of the prediction of raw{at(place)}")
        for place in self.facts.keys() - set(predictions):
            self._find("stranger", f"an outcome of raw{at(place)}, of which there is no prediction")
