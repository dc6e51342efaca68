"""Counts what became of every message of a pipeline, from its topics alone, and fails if anything is lost, doubled, out
of order, altered or still open. Independent on purpose: plain confluent-kafka, fastavro and ONNX Runtime, and not a
line of Penstock, so that a mistake of its codec or transport cannot hide itself.

    python -m tests.chaos.verify BOOTSTRAP PIPELINE --lock pipelines/NAME/schemas.lock [--plan plan.json]
        [--models var/models]

prints its findings as JSON and exits 0 when there are none, 1 when there are, 2 when it could not look. The pipeline
should have nothing left to read. Schema ids are the lock's line numbers. With a plan, which is read as data, every
window is computed again from the log too, copies are told again, every row is held to the raw record that it is of
(``carried``, ``outcomes``), and nothing is dropped for a reason that the plan does not have. With a plan and the folder
of the models, every prediction is made again (``scores``). On-demand features are the pipeline's own functions' and are
not computed again.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from tests.chaos.carried import Carried
from tests.chaos.copies import Copies
from tests.chaos.declared import DUPLICATE, Declared, declared
from tests.chaos.kafka_log import KafkaLog
from tests.chaos.letters import KILLED, Letters
from tests.chaos.outcomes import Outcomes
from tests.chaos.records import Log, Place, Record, Schemas, at
from tests.chaos.scores import Scores
from tests.chaos.verdict import Verdict
from tests.chaos.windows import Windows

__all__ = ["KILLED", "Verifier", "main", "verify"]


class Verifier:
    """One look at one pipeline. ``models``: the folder of NAME/VERSION, where predictions are to be made again."""

    def __init__(
        self, pipeline: str, schemas: Schemas, log: Log, declared: Declared, models: Path | None = None
    ) -> None:
        self._name, self._schemas, self._log, self._declared = pipeline, schemas, log, declared
        self._verdict = Verdict(pipeline)
        find = self._verdict.find
        self._windows = [Windows(view) for view in declared.views]
        self._letters = Letters(pipeline, schemas, find)
        self._copies = Copies(pipeline, declared.deduplicate_ms, find)
        self._carried = None if declared.event is None else Carried(pipeline, schemas, declared, find)
        self._outcomes = Outcomes(schemas, declared, find)
        self._notes: dict[str, list[tuple[Place, Place, Place]]] = {}
        self._scores = None if models is None or declared.model is None else Scores(models, declared.model, find)
        has = {topic.removeprefix(f"{pipeline}.") for topic in schemas.topics if topic.startswith(f"{pipeline}.")}
        # the lock is written in the order of the chain
        between = [
            topic.removeprefix(f"{pipeline}.")
            for topic in schemas.topics
            if topic.startswith(f"{pipeline}.by.") and "_origin_offset" in schemas.topics[topic]
        ]
        self._chain = ["events", *between, "features"]
        self._labelled = "labels" in has
        self._predicts = "predictions" in has

    def run(self) -> Verdict:
        """Reads every topic once, dead letters first, so that what they are of is known when it passes by."""
        for partition in self._log.unstable([f"{self._name}.{suffix}" for suffix in self._suffixes()]):
            self._verdict.find("open", partition)
        self._letters.read(self._records("dead"))
        raw = self._read_inputs("raw", None if self._carried is None else self._carried.sent)
        labels = self._read_inputs("labels", self._outcomes.sent) if self._labelled else set()
        fates, label_fates = self._letters.fates()
        self._read_dropped(fates, label_fates)
        before: dict[Place, Place] = {place: place for place in raw}
        self._judge_notes("raw", before)
        self._judge_notes("labels", {place: place for place in labels})
        for suffix in self._chain:
            before = self._follow(suffix, self._origins(suffix), before)
            self._judge_notes(suffix, before)
        self._read_views()
        if self._predicts:
            before = self._follow("predictions", self._predictions(), before)
        fates.update(before.keys())
        if self._labelled:
            for _, record, row in self._rows("outcomes"):
                self._outcomes.judge(record, row)
            label_fates.update(self._outcomes.labels)
            self._outcomes.settle(before.keys() if self._predicts else None)
        self._judge("raw", raw, fates)
        self._copies.judge(fates)
        self._judge("labels", labels, label_fates)
        self._letters.settle()
        for suffix, notes in self._notes.items():
            self._verdict.find("mistaken", f"dropped{at(notes[0][0])} is of {suffix}, which nothing is of", len(notes))
        self._judge_scores()
        return self._verdict

    def _suffixes(self) -> list[str]:
        names = [topic.removeprefix(f"{self._name}.") for topic in self._schemas.topics]
        return [*names, "dead"]

    def _records(self, suffix: str) -> Iterator[Record]:
        """Every record passes by here, and is compared with the dead letters that say they are of it."""
        topic = f"{self._name}.{suffix}"
        count = 0
        for record in self._letters.passing(topic, self._log.read(topic)):
            count += 1
            yield record
        self._verdict.counts[suffix] = count

    def _read_inputs(self, suffix: str, take: Callable[[Record], None] | None) -> set[Place]:
        places = set()
        for record in self._records(suffix):
            places.add((record.partition, record.offset))
            if take is not None:
                take(record)
        return places

    def _read_dropped(self, raw: Counter[Place], labels: Counter[Place]) -> None:
        for place, _, row in self._rows("dropped"):
            origin = row["origin_partition"], row["origin_offset"]
            of_label = row["topic"] == f"{self._name}.labels"
            if not row["reason"]:
                self._verdict.find("unattributed", f"dropped{at(place)} has no reason")
            elif row["reason"] == DUPLICATE:
                self._copies.dropped(origin, row["event_id"], row["message"])
            if self._declared.drops is not None and row["reason"] not in self._declared.drops:
                self._verdict.find("unattributed", f"raw{at(origin)} dropped as {row['reason']!r}")
            known = None if self._carried is None or of_label else self._carried.event_id(origin)
            if None not in (known, row["event_id"]) and known != row["event_id"]:
                self._verdict.find("mistaken", f"dropped{at(place)} is {row['event_id']!r}, raw{at(origin)} {known!r}")
            if "partition" in row:
                told = place, (row["partition"], row["offset"]), origin
                self._notes.setdefault(row["topic"].removeprefix(f"{self._name}."), []).append(told)
            (labels if of_label else raw)[origin] += 1

    def _judge_notes(self, suffix: str, here: Mapping[Place, Place]) -> None:
        """What was dropped lies where its note says that the stage read it. ``here``: by origin."""
        for place, read, origin in self._notes.pop(suffix, ()):
            if here.get(origin, read) != read:
                self._verdict.find("mistaken", f"dropped{at(place)} says {suffix}{at(read)}, not {at(here[origin])}")

    def _origins(self, suffix: str) -> Iterator[tuple[Record, Place]]:
        """Rows of the chain and where they are from; they pass by all who look at them."""
        whole = bool(self._windows) or self._carried is not None
        topic, first, last = f"{self._name}.{suffix}", suffix == "events", suffix == "features"
        for place, record, row in self._rows(suffix, self._schemas.decode if whole else self._schemas.origin):
            origin = row["_origin_partition"], row["_origin_offset"]
            unread = (topic, place) in self._letters.unread
            if self._carried is not None:
                self._carried.judge(suffix, record, row, origin)
            if first and not unread:
                self._copies.passed(record.partition, row, origin)
            if last and whole:
                self._outcomes.featured(origin, row)
                if self._scores is not None:
                    self._scores.featured(origin, row)
            for window in self._windows:
                if window.view.reads != topic:
                    window.sent(origin, row, self._wrong)
                elif not unread:
                    window.read(place, origin, row, copy=origin in self._copies)
            yield record, origin

    def _predictions(self) -> Iterator[tuple[Record, Place]]:
        for place, record, row in self._rows("predictions"):
            origin = row["origin_partition"], row["origin_offset"]
            if self._carried is not None:
                self._carried.predicted(record, row, origin)
                self._outcomes.predicted(origin, row)
            if self._scores is not None:
                self._scores.predicted(f"predictions{at(place)}", row, origin)
            yield record, origin

    def _judge_scores(self) -> None:
        if self._carried is not None and self._carried.unread:
            self._verdict.counts["events whose raw value is not read"] = self._carried.unread
        if self._scores is not None:
            self._scores.judge()
            self._verdict.counts["scores"] = self._scores.checked
            if self._scores.fallbacks:
                self._verdict.counts["fallbacks"] = self._scores.fallbacks

    def _read_views(self) -> None:
        """What Feast is fed with."""
        for window in self._windows:
            if window.view.topic is not None:
                suffix = window.view.topic.removeprefix(f"{self._name}.")
                rows = ((place, row) for place, _, row in self._rows(suffix))
                window.written(rows, self._letters.of(window.view.reads), self._wrong)
        if self._windows:
            self._verdict.counts["windows"] = sum(window.checked for window in self._windows)
            for window in self._windows:  # of views of one topic all see the same rows, those without a key apart
                name = f"late in {window.view.reads}"
                self._verdict.counts[name] = max(window.late, self._verdict.counts.get(name, 0))

    def _rows(
        self, suffix: str, decode: Callable[[bytes | None], dict[str, Any]] | None = None
    ) -> Iterator[tuple[Place, Record, dict[str, Any]]]:
        """The records that can be read, decoded whole if nothing else is said, and where they lie."""
        decode = decode or self._schemas.decode
        for record in self._records(suffix):
            place = record.partition, record.offset
            try:
                row = decode(record.value)
            except ValueError as error:
                self._verdict.find("unreadable", f"{suffix}{at(place)}: {error}")
                continue
            yield place, record, row

    def _wrong(self, what: str) -> None:
        self._verdict.find("wrong window", what)

    def _follow(
        self, suffix: str, rows: Iterable[tuple[Record, Place]], before: Mapping[Place, Place]
    ) -> dict[Place, Place]:
        """Origin → place in this topic. ``before``: the same of the topic that it was made from. What one key has out
        of one partition must come out in the order in which it went in, and all of a key lie in one partition."""
        here: dict[Place, Place] = {}
        newest: dict[tuple[bytes | None, int], int] = {}
        home: dict[bytes, int] = {}
        for record, origin in rows:
            place = record.partition, record.offset
            if origin in here:
                self._verdict.find("duplicated", f"raw{at(origin)} is at {suffix}{at(here[origin])} and {at(place)}")
                continue
            here[origin] = place
            source = before.get(origin)
            if source is None:
                self._verdict.find("stranger", f"{suffix}{at(place)} is of raw{at(origin)}, which was not before it")
                continue
            if record.key is None:
                continue  # nothing is promised of rows without a key
            partition, offset = source
            if newest.get((record.key, partition), -1) > offset:
                self._verdict.find("misordered", f"{suffix}{at(place)} of key {record.key!r} came too late")
            newest[record.key, partition] = max(offset, newest.get((record.key, partition), -1))
            if home.setdefault(record.key, record.partition) != record.partition:
                self._verdict.find("misordered", f"{suffix}: key {record.key!r} lies in two partitions")
        return here

    def _judge(self, suffix: str, sent: set[Place], fates: Counter[Place]) -> None:
        for place in sorted(sent):
            if fates[place] == 0:
                self._verdict.find("lost", f"{suffix}{at(place)}")
            else:
                self._verdict.find("duplicated", f"{suffix}{at(place)} has {fates[place]} fates", fates[place] - 1)
        for place in sorted(fates.keys() - sent):
            self._verdict.find("stranger", f"a fate of {suffix}{at(place)}, which is not there")


def verify(
    pipeline: str, schemas: Schemas, log: Log, declared: Declared | None = None, models: Path | None = None
) -> Verdict:
    """What became of every message of ``pipeline``, and whether it is as ``declared`` and as the ``models`` say."""
    return Verifier(pipeline, schemas, log, declared or Declared(), models).run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bootstrap", help="host:port of the broker")
    parser.add_argument("pipeline", help="its name, which its topics begin with")
    parser.add_argument("--lock", type=Path, required=True, help="the pipeline's schemas.lock")
    parser.add_argument("--plan", type=Path, help="the plan's JSON, which declares windows, keys, ids and drops")
    parser.add_argument("--models", type=Path, help="the folder of NAME/VERSION, to make every prediction again")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for each topic")
    parser.add_argument("--client", action="append", default=[], metavar="NAME=VALUE", help="setting of the client")
    said = parser.parse_args(arguments)
    try:
        schemas = Schemas(said.pipeline, said.lock.read_text("utf-8").splitlines())
        extra = dict(setting.split("=", 1) for setting in said.client)
        plan = declared(said.plan) if said.plan else None
        verdict = verify(said.pipeline, schemas, KafkaLog(said.bootstrap, said.timeout, extra), plan, said.models)
    except (OSError, ValueError, KeyError, TimeoutError, KafkaException) as error:
        print(json.dumps({"pipeline": said.pipeline, "ok": False, "error": str(error)}))
        return 2
    print(verdict.json())
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
