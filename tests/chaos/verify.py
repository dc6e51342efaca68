"""Counts what became of every message of a pipeline, from its topics alone, and fails if anything is lost, doubled, out
of order, altered or still open. Independent on purpose: plain confluent-kafka and fastavro, and not a line of Penstock,
so that a mistake of its codec or transport cannot hide itself.

    python -m tests.chaos.verify BOOTSTRAP PIPELINE --lock pipelines/NAME/schemas.lock [--plan plan.json]

prints its findings as JSON and exits 0 when there are none, 1 when there are, 2 when it could not look. The pipeline
should have nothing left to read. Schema ids are the lock's line numbers. With a plan, which is read as data, every
window is computed again from the log too, every row has the id of the raw event that it says it is of and the key that
its topic is keyed by, and nothing is dropped for a reason that the plan does not have.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from tests.chaos.declared import DUPLICATE, Declared, declared
from tests.chaos.kafka_log import KafkaLog
from tests.chaos.records import Log, Place, Record, Schemas
from tests.chaos.verdict import Verdict
from tests.chaos.windows import Windows

LOOKING_ON = ("monitor",)
"""Stages that only watch: what they reject has its fate elsewhere."""
INGEST = "ingest"
"""The stage whose dead letters are raw records themselves."""
LARGEST = 1_000_000
"""Bytes of a raw value that is looked into."""

KILLED = "killed the worker"
"""The reason of a row that its stage has never decoded: it is in no window and moves no watermark. Every other dead
letter's row was part of its stage's windows by the time it failed."""
FIRST = re.compile(r"/(\d+)@(\d+)$")
"""How the note of a dropped copy ends: the raw record that came before."""


@dataclass(slots=True)
class Letter:
    """A dead letter. ``read``: where its stage read the record; ``origin``: topic and place of the raw one."""

    at: Place
    stage: str
    reason: str
    read: tuple[str, Place]
    origin: tuple[str, Place] | None
    record: Record


class Verifier:
    """One look at one pipeline."""

    def __init__(self, pipeline: str, schemas: Schemas, log: Log, declared: Declared) -> None:
        self._name, self._schemas, self._log, self._declared = pipeline, schemas, log, declared
        self._windows = [Windows(view) for view in declared.views]
        self._raw_ids: dict[Place, str] = {}
        self._verdict = Verdict(pipeline)
        self._letters: list[Letter] = []
        self._wanted: dict[str, dict[Place, list[Letter]]] = {}
        self._copies: dict[Place, tuple[str | None, Place | None]] = {}
        self._event_ids: dict[Place, str] = {}
        has = {topic.removeprefix(f"{pipeline}.") for topic in schemas.topics if topic.startswith(f"{pipeline}.")}
        # the lock is written in the order of the chain
        between = [
            topic.removeprefix(f"{pipeline}.")
            for topic in schemas.topics
            if topic.startswith(f"{pipeline}.by.") and "_origin_offset" in schemas.topics[topic]
        ]
        self._chain = ["events", *between, "features"]
        self._last = "predictions" if "predictions" in has else "features"
        self._labelled = "labels" in has
        self._predicts = "predictions" in has

    def run(self) -> Verdict:
        """Reads every topic once, dead letters first, so that what they are of is known when it passes by."""
        for partition in self._log.unstable([f"{self._name}.{suffix}" for suffix in self._suffixes()]):
            self._verdict.find("open", partition)
        self._read_dead()
        raw = self._read_inputs("raw")
        labels = self._read_inputs("labels") if self._labelled else set()
        fates, label_fates = self._fates_of_letters()
        self._read_dropped(fates, label_fates)
        before: dict[Place, Place] = {place: place for place in raw}
        for suffix in self._chain:
            before = self._follow(suffix, self._origins(suffix), before)
        self._read_views()
        if self._predicts:
            before = self._follow("predictions", self._origins("predictions"), before)
        fates.update(before.keys())
        if self._labelled:
            label_fates.update(self._read_outcomes(before))
        self._judge("raw", raw, fates)
        self._judge_copies(fates)
        self._judge("labels", labels, label_fates)
        for topic, wanted in self._wanted.items():
            for place, letters in wanted.items():
                self._verdict.find(
                    "altered", f"a dead letter is of {topic}{_at(place)}, which is not there", len(letters)
                )
        return self._verdict

    def _suffixes(self) -> list[str]:
        names = [topic.removeprefix(f"{self._name}.") for topic in self._schemas.topics]
        return [*names, "dead"]

    def _records(self, suffix: str) -> Iterator[Record]:
        """Every record passes by here, and is compared with the dead letters that say they are of it."""
        topic = f"{self._name}.{suffix}"
        wanted = self._wanted.pop(topic, {})
        count = 0
        for record in self._log.read(topic):
            count += 1
            for letter in wanted.pop((record.partition, record.offset), ()):
                self._compare(topic, letter, record)
            yield record
        if wanted:
            self._wanted[topic] = wanted
        self._verdict.counts[suffix] = count

    def _read_dead(self) -> None:
        for record in self._records("dead"):
            at = record.partition, record.offset
            facts = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
            try:
                read = (
                    facts["__connect.errors.topic"],
                    (int(facts["__connect.errors.partition"]), int(facts["__connect.errors.offset"])),
                )
                stage = facts["__connect.errors.stage"]
                reason = facts["penstock.reason"]
                if not facts["__connect.errors.exception.message"] or not reason:
                    raise KeyError("a reason")
                origin = None
                if "penstock.origin.topic" in facts:
                    place = int(facts["penstock.origin.partition"]), int(facts["penstock.origin.offset"])
                    origin = facts["penstock.origin.topic"], place
            except (KeyError, ValueError) as error:
                self._verdict.find("unattributed", f"dead{_at(at)} lacks {error}")
                continue
            letter = Letter(at, stage, reason, read, origin, record)
            self._letters.append(letter)
            self._wanted.setdefault(read[0], {}).setdefault(read[1], []).append(letter)

    def _compare(self, topic: str, letter: Letter, record: Record) -> None:
        """The letter is the record: value, key, and headers, with those that say why behind them."""
        where = f"dead{_at(letter.at)} of {topic}{_at((record.partition, record.offset))}"
        sent, headers = letter.record, letter.record.headers
        if headers[: len(record.headers)] != record.headers:
            self._verdict.find("altered", f"{where}: its headers")
        if any(name == "penstock.truncated" for name, _ in headers[len(record.headers) :]):
            value = record.value or b""
            stand_in = {"sha256": hashlib.sha256(value).hexdigest(), "size": len(value)}
            if json.loads(sent.value or b"{}") != stand_in:
                self._verdict.find("altered", f"{where}: its digest")
            return
        if sent.value != record.value:
            self._verdict.find("altered", f"{where}: its value")
        if sent.key != record.key:
            self._verdict.find("altered", f"{where}: its key")

    def _read_inputs(self, suffix: str) -> set[Place]:
        places = set()
        for record in self._records(suffix):
            place = record.partition, record.offset
            places.add(place)
            if suffix == "raw" and (event_id := self._raw_id(record.value)) is not None:
                self._raw_ids[place] = event_id
        return places

    def _raw_id(self, value: bytes | None) -> str | None:
        """None of what cannot be read: it has to be a dead letter, and if it is not, no id is held against it."""
        name = self._declared.event_id
        if name is None or value is None or len(value) > LARGEST:
            return None
        try:
            row = self._schemas.decode(value) if value[:1] == b"\0" else json.loads(value)
        except (ValueError, RecursionError, MemoryError):
            return None
        found = row.get(name) if isinstance(row, dict) else None
        return found if isinstance(found, str) else None

    def _fates_of_letters(self) -> tuple[Counter[Place], Counter[Place]]:
        raw: Counter[Place] = Counter()
        labels: Counter[Place] = Counter()
        seen: Counter[tuple[str, tuple[str, Place]]] = Counter()
        for letter in self._letters:
            seen[letter.stage, letter.read] += 1
            if letter.stage.split(".")[0] in LOOKING_ON:
                if letter.read[0] == f"{self._name}.outcomes":
                    self._judge_origin_of_outcome(letter)
                continue
            within = self._within(letter)
            topic, place = letter.origin or within
            within = letter.read if letter.stage == INGEST else within
            if within[0] and letter.origin not in (None, within):
                self._verdict.find(
                    "unattributed", f"dead{_at(letter.at)} is of {within[0]}{_at(within[1])}, and says {letter.origin}"
                )
            if topic == f"{self._name}.raw":
                raw[place] += 1
            elif topic == f"{self._name}.labels":
                labels[place] += 1
            else:
                self._verdict.find("unattributed", f"dead{_at(letter.at)} is of no raw record: {letter.stage}")
        for (stage, (topic, place)), n in seen.items():
            self._verdict.find("duplicated", f"{stage} wrote {n} dead letters of {topic}{_at(place)}", n - 1)
        return raw, labels

    def _judge_origin_of_outcome(self, letter: Letter) -> None:
        """A replay sends what the letter names: of a label, the label."""
        try:
            row = self._schemas.decode(letter.record.value)
        except ValueError:
            return  # nobody could read it, and so say what it is of
        topic = f"{self._name}.{'labels' if row['kind'] == 'label' else 'raw'}"
        origin = topic, (row["origin_partition"], row["origin_offset"])
        if letter.origin != origin:
            self._verdict.find(
                "unattributed", f"dead{_at(letter.at)} is of {topic}{_at(origin[1])}, and says {letter.origin}"
            )

    def _within(self, letter: Letter) -> tuple[str, Place]:
        """The raw record that a letter of a later stage is of, from the record itself; of nothing where it is not
        whole."""
        try:
            row = self._schemas.origin(letter.record.value)
            return f"{self._name}.raw", (row["_origin_partition"], row["_origin_offset"])
        except (ValueError, KeyError):
            return "", (0, 0)

    def _read_dropped(self, raw: Counter[Place], labels: Counter[Place]) -> None:
        for record in self._records("dropped"):
            row = self._decoded("dropped", record, self._schemas.decode)
            if row is None:
                continue
            if not row["reason"]:
                self._verdict.find("unattributed", f"dropped{_at((record.partition, record.offset))} has no reason")
            elif row["reason"] == DUPLICATE:
                first = FIRST.search(row["message"])
                place = None if first is None else (int(first[1]), int(first[2]))
                self._copies[row["origin_partition"], row["origin_offset"]] = row["event_id"], place
            if self._declared.drops is not None and row["reason"] not in self._declared.drops:
                self._verdict.find(
                    "unattributed", f"raw/{row['origin_partition']}@{row['origin_offset']} dropped as {row['reason']!r}"
                )
            of_label = row["topic"] == f"{self._name}.labels"
            (labels if of_label else raw)[row["origin_partition"], row["origin_offset"]] += 1

    def _origins(self, suffix: str) -> Iterator[tuple[Record, Place]]:
        """Rows and where they are from; those of the chain pass by the windows."""
        last = suffix == "predictions"
        prefix, windows = ("", []) if last else ("_", self._windows)
        decode = self._schemas.decode if last or windows else self._schemas.origin
        topic = f"{self._name}.{suffix}"
        unread = {letter.read for letter in self._letters if letter.reason == KILLED}
        for record in self._records(suffix):
            row = self._decoded(suffix, record, decode)
            if row is None:
                continue
            origin = row[f"{prefix}origin_partition"], row[f"{prefix}origin_offset"]
            self._identify(suffix, record, row, origin)
            if suffix == "events" and self._copies:
                self._event_ids[origin] = row["_event_id"]
            place = record.partition, record.offset
            for window in windows:
                if window.view.reads != topic:
                    window.sent(origin, row, self._wrong)
                elif (topic, place) not in unread:
                    window.read(place, origin, row, copy=origin in self._copies)
            yield record, origin

    def _identify(self, suffix: str, record: Record, row: Mapping[str, Any], origin: Place) -> None:
        """The row is of the raw event that it says, and lies where its key belongs."""
        where = f"{suffix}{_at((record.partition, record.offset))}"
        event_id = row.get("prediction_id" if suffix == "predictions" else "_event_id")
        if event_id != self._raw_ids.get(origin, event_id):
            self._verdict.find("mistaken", f"{where} is {event_id!r}, raw{_at(origin)} is {self._raw_ids[origin]!r}")
        column = self._declared.keys.get(suffix)
        if column is not None and column in row:
            of = row[column]
            if of is None and suffix == "events" and self._declared.deduplicates:
                of = event_id  # so that copies of an event without an entity meet too
            key = None if of is None else str(of).encode()
            if record.key != key:
                self._verdict.find("mistaken", f"{where} has the key {record.key!r} and not {key!r}, by {column}")

    def _read_views(self) -> None:
        """What Feast is fed with."""
        for window in self._windows:
            if window.view.topic is not None:
                suffix = window.view.topic.removeprefix(f"{self._name}.")
                dead = {letter.read[1] for letter in self._letters if letter.read[0] == window.view.reads}
                window.written(self._rows(suffix), dead, self._wrong)
        if self._windows:
            self._verdict.counts["windows"] = sum(window.checked for window in self._windows)
            for window in self._windows:  # of views of one topic all see the same rows, those without a key apart
                name = f"late in {window.view.reads}"
                self._verdict.counts[name] = max(window.late, self._verdict.counts.get(name, 0))

    def _rows(self, suffix: str) -> Iterator[tuple[Place, dict[str, Any]]]:
        for record in self._records(suffix):
            row = self._decoded(suffix, record, self._schemas.decode)
            if row is not None:
                yield (record.partition, record.offset), row

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
                self._verdict.find("duplicated", f"raw{_at(origin)} is at {suffix}{_at(here[origin])} and {_at(place)}")
                continue
            here[origin] = place
            source = before.get(origin)
            if source is None:
                self._verdict.find("stranger", f"{suffix}{_at(place)} is of raw{_at(origin)}, which was not before it")
                continue
            if record.key is None:
                continue  # nothing is promised of rows without a key
            partition, offset = source
            if newest.get((record.key, partition), -1) > offset:
                self._verdict.find("misordered", f"{suffix}{_at(place)} of key {record.key!r} came too late")
            newest[record.key, partition] = max(offset, newest.get((record.key, partition), -1))
            if home.setdefault(record.key, record.partition) != record.partition:
                self._verdict.find("misordered", f"{suffix}: key {record.key!r} lies in two partitions")
        return here

    def _read_outcomes(self, predictions: Mapping[Place, Place]) -> Counter[Place]:
        """Fates of labels; and every prediction's facts are there once."""
        labels: Counter[Place] = Counter()
        facts: Counter[Place] = Counter()
        for record in self._records("outcomes"):
            row = self._decoded("outcomes", record, self._schemas.decode)
            if row is not None:
                (labels if row["kind"] == "label" else facts)[row["origin_partition"], row["origin_offset"]] += 1
        if self._predicts:
            for place in predictions:
                if facts[place] != 1:
                    kind = "lost" if not facts[place] else "duplicated"
                    self._verdict.find(kind, f"{facts[place]} outcomes of the prediction of raw{_at(place)}")
            self._verdict.find("stranger", "outcomes of no prediction", len(facts.keys() - predictions.keys()))
        return labels

    def _decoded(
        self, suffix: str, record: Record, decode: Callable[[bytes | None], dict[str, Any]]
    ) -> dict[str, Any] | None:
        try:
            row: dict[str, Any] = decode(record.value)
        except ValueError as error:
            self._verdict.find("unreadable", f"{suffix}{_at((record.partition, record.offset))}: {error}")
            return None
        return row

    def _judge(self, suffix: str, sent: set[Place], fates: Counter[Place]) -> None:
        for place in sorted(sent):
            if fates[place] == 0:
                self._verdict.find("lost", f"{suffix}{_at(place)}")
            else:
                self._verdict.find("duplicated", f"{suffix}{_at(place)} has {fates[place]} fates", fates[place] - 1)
        for place in sorted(fates.keys() - sent):
            self._verdict.find("stranger", f"a fate of {suffix}{_at(place)}, which is not there")

    def _judge_copies(self, fates: Counter[Place]) -> None:
        """A dropped copy names the event that it is one of, and that one met with something else."""
        for place, (event_id, first) in self._copies.items():
            what = f"raw{_at(place)} was dropped as a duplicate"
            if first is None:
                self._verdict.find("unattributed", f"{what} of nothing")
            elif self._event_ids.get(first) != event_id or self._event_ids.get(place) != event_id:
                self._verdict.find("lost", f"{what} of raw{_at(first)}, which is another event or none")
            elif first in self._copies or not fates[first]:
                self._verdict.find("lost", f"{what} of raw{_at(first)}, which did not get through either")


def _at(place: Place) -> str:
    return f"/{place[0]}@{place[1]}"


def verify(pipeline: str, schemas: Schemas, log: Log, declared: Declared | None = None) -> Verdict:
    """What became of every message of ``pipeline``, and whether it is as ``declared``."""
    return Verifier(pipeline, schemas, log, declared or Declared()).run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bootstrap", help="host:port of the broker")
    parser.add_argument("pipeline", help="its name, which its topics begin with")
    parser.add_argument("--lock", type=Path, required=True, help="the pipeline's schemas.lock")
    parser.add_argument("--plan", type=Path, help="the plan's JSON, which declares windows, keys, ids and drops")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for each topic")
    parser.add_argument("--client", action="append", default=[], metavar="NAME=VALUE", help="setting of the client")
    said = parser.parse_args(arguments)
    try:
        schemas = Schemas(said.pipeline, said.lock.read_text("utf-8").splitlines())
        extra = dict(setting.split("=", 1) for setting in said.client)
        plan = declared(said.plan) if said.plan else None
        verdict = verify(said.pipeline, schemas, KafkaLog(said.bootstrap, said.timeout, extra), plan)
    except (OSError, ValueError, KeyError, TimeoutError, KafkaException) as error:
        print(json.dumps({"pipeline": said.pipeline, "ok": False, "error": str(error)}))
        return 2
    print(verdict.json())
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
