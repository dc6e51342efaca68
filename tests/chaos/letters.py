"""Dead letters: each is its record to the byte, headers too, and names the raw record that it is of."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.records import Find, Place, Record, Schemas, at

LOOKING_ON = ("monitor",)
"""Stages that only watch: what they reject has its fate elsewhere."""
INGEST = "ingest"
"""The stage whose dead letters are raw records themselves."""
KILLED = "killed the worker"
"""The reason of a row that its stage has never decoded: it is in no window and moves no watermark. Every other dead
letter's row was part of its stage's windows by the time it failed."""


@dataclass(slots=True)
class Letter:
    """A dead letter. ``read``: where its stage read the record; ``origin``: topic and place of the raw one."""

    at: Place
    stage: str
    reason: str
    read: tuple[str, Place]
    origin: tuple[str, Place] | None
    record: Record


class Letters:
    """Takes NAME.dead first, then every record of the other topics. ``unread``: topics and places of the records that
    no stage decoded."""

    def __init__(self, pipeline: str, schemas: Schemas, find: Find) -> None:
        self._name, self._schemas, self._find = pipeline, schemas, find
        self._letters: list[Letter] = []
        self._wanted: dict[str, dict[Place, list[Letter]]] = {}
        self.unread: set[tuple[str, Place]] = set()

    def read(self, records: Iterable[Record]) -> None:
        for record in records:
            place = record.partition, record.offset
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
                    of = int(facts["penstock.origin.partition"]), int(facts["penstock.origin.offset"])
                    origin = facts["penstock.origin.topic"], of
            except (KeyError, ValueError) as error:
                self._find("unattributed", f"dead{at(place)} lacks {error}")
                continue
            letter = Letter(place, stage, reason, read, origin, record)
            self._letters.append(letter)
            self._wanted.setdefault(read[0], {}).setdefault(read[1], []).append(letter)
            if reason == KILLED:
                self.unread.add(read)

    def passing(self, topic: str, records: Iterable[Record]) -> Iterable[Record]:
        """The records of a topic, each compared with the letters that say they are of it."""
        wanted = self._wanted.get(topic)
        if not wanted:
            return records
        return self._compared(topic, records, wanted)

    def _compared(self, topic: str, records: Iterable[Record], wanted: dict[Place, list[Letter]]) -> Iterable[Record]:
        for record in records:
            for letter in wanted.pop((record.partition, record.offset), ()):
                self._compare(topic, letter, record)
            yield record

    def _compare(self, topic: str, letter: Letter, record: Record) -> None:
        """The letter is the record: value, key, and headers, with those that say why behind them."""
        where = f"dead{at(letter.at)} of {topic}{at((record.partition, record.offset))}"
        sent, headers = letter.record, letter.record.headers
        if headers[: len(record.headers)] != record.headers:
            self._find("altered", f"{where}: its headers")
        if any(name == "penstock.truncated" for name, _ in headers[len(record.headers) :]):
            value = record.value or b""
            stand_in = {"sha256": hashlib.sha256(value).hexdigest(), "size": len(value)}
            if json.loads(sent.value or b"{}") != stand_in:
                self._find("altered", f"{where}: its digest")
            return
        if sent.value != record.value:
            self._find("altered", f"{where}: its value")
        if sent.key != record.key:
            self._find("altered", f"{where}: its key")

    def of(self, topic: str) -> set[Place]:
        """Where the records lie of which there are letters."""
        return {letter.read[1] for letter in self._letters if letter.read[0] == topic}

    def fates(self) -> tuple[Counter[Place], Counter[Place]]:
        """How many letters there are of each raw event and of each label."""
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
                self._find(
                    "unattributed", f"dead{at(letter.at)} is of {within[0]}{at(within[1])}, and says {letter.origin}"
                )
            if topic == f"{self._name}.raw":
                raw[place] += 1
            elif topic == f"{self._name}.labels":
                labels[place] += 1
            else:
                self._find("unattributed", f"dead{at(letter.at)} is of no raw record: {letter.stage}")
        for (stage, (topic, place)), n in seen.items():
            for _ in range(n - 1):
                self._find("duplicated", f"{stage} wrote {n} dead letters of {topic}{at(place)}")
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
            self._find("unattributed", f"dead{at(letter.at)} is of {topic}{at(origin[1])}, and says {letter.origin}")

    def _within(self, letter: Letter) -> tuple[str, Place]:
        """The raw record that a letter of a later stage is of, from the record itself; of nothing where it is not
        whole."""
        try:
            row = self._schemas.origin(letter.record.value)
            return f"{self._name}.raw", (row["_origin_partition"], row["_origin_offset"])
        except (ValueError, KeyError):
            return "", (0, 0)

    def settle(self) -> None:
        """What a letter names was there."""
        for topic, wanted in self._wanted.items():
            for place, letters in wanted.items():
                for _ in letters:
                    self._find("altered", f"a dead letter is of {topic}{at(place)}, which is not there")
