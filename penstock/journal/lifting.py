"""What people see and lift of a quarantine. A worker learns of it when it is assigned the partition again.

A row that killed where it was live has had its fate, the dead letter, and every replay leaves it out for that: to bring
it back is a matter of ``penstock dead replay``, and lifted it would be counted twice. One that killed in a replay only
has been counted before, and windows lack it since: lifted, it is in them again when the log is read again, so the
partition's snapshots go.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from penstock.dead.letters import Filter, letters
from penstock.journal.notes import QUARANTINE, Quarantine
from penstock.journal.stepping import KILLED
from penstock.plan import Plan
from penstock.records import Partition
from penstock.settings import Settings
from penstock.snapshots.files import SUFFIX, Store


class QuarantineError(Exception):
    """A quarantine that cannot be read, or a row that is not to be lifted; the message names the mend."""


class Row(NamedTuple):
    """A row that killed its workers."""

    stage: str
    partition: Partition
    offset: int

    @property
    def place(self) -> str:
        return f"{self.partition}@{self.offset}"


def quarantined(plan: Plan, settings: Settings) -> list[Row]:
    """Of all stages, as they lie at the snapshots' URL. Raises ``QuarantineError``."""
    return [
        Row(stage.name, partition, offset)
        for stage in plan.stages
        for partition in _partitions(plan, stage.name)
        if (found := _read(settings, plan, stage.name, partition)) is not None
        for offset in sorted(found.rows)
    ]


def lift(plan: Plan, settings: Settings, stage: str, places: Sequence[str], *, anyway: bool = False) -> list[Row]:
    """Takes ``places`` (``TOPIC/PARTITION@OFFSET``) out of the quarantine of ``stage``: all, or where one is refused
    none. ``anyway``: also rows that are dead letters. Raises ``QuarantineError``, ``TopicUnreadable``."""
    name = plan.stage(stage).name
    known = {row.place: row for row in quarantined(plan, settings) if row.stage == name}
    if strange := [place for place in places if place not in known]:
        raise QuarantineError(
            f"{strange[0]} is not quarantined for {stage}; {', '.join(known) or 'nothing'} is. "
            "`penstock quarantine list` names all"
        )
    rows = [known[place] for place in dict.fromkeys(places)]
    if not anyway:
        _refuse_dead(rows, plan, settings)
    for partition in {row.partition for row in rows}:
        found = _read(settings, plan, stage, partition)
        assert found is not None
        _write(settings, plan, stage, partition, found, {row.offset for row in rows if row.partition == partition})
    return rows


def _refuse_dead(rows: Iterable[Row], plan: Plan, settings: Settings) -> None:
    dead = {row.place: row for row in rows}
    topic = plan.topic("dead").name
    for letter in letters(settings, topic, Filter(reason=KILLED)):
        if letter.read is not None and (row := dead.get(str(letter.read))) and row.stage == letter.stage:
            raise QuarantineError(
                f"{row.place} is the dead letter {letter.place} and had its fate. Send it again with `penstock dead "
                f"replay {topic}`; where {row.stage} is to be set back to before it, lift it with --anyway"
            )


def _partitions(plan: Plan, stage: str) -> Iterator[Partition]:
    for source in plan.stage(stage).inputs:
        yield from (Partition(source.topic, number) for number in range(plan.named(source.topic).partitions))


def _read(settings: Settings, plan: Plan, stage: str, partition: Partition) -> Quarantine | None:
    store = Store(settings.snapshots, plan.group(stage))
    try:
        return Quarantine.model_validate_json(store.get(partition, QUARANTINE))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise QuarantineError(
            f"{settings.snapshots} cannot be read: {error}. Set PENSTOCK_SNAPSHOTS_URL to what the workers have"
        ) from None
    except ValidationError:
        raise QuarantineError(
            f"{store.path(partition, QUARANTINE)} is no quarantine of this version of penstock. Move it away"
        ) from None


def _write(
    settings: Settings, plan: Plan, stage: str, partition: Partition, found: Quarantine, lifted: set[int]
) -> None:
    store, left = Store(settings.snapshots, plan.group(stage)), found.rows - lifted
    try:
        if left:
            content = found.model_copy(update={"rows": left}).model_dump_json().encode()
            store.put(partition, QUARANTINE, content)
        else:
            store.remove(partition, QUARANTINE)
        for name in store.names(partition):
            if name.endswith(SUFFIX):
                store.remove(partition, name)
    except OSError as error:
        raise QuarantineError(
            f"{settings.snapshots} cannot be written: {error}. Nothing of {partition} was lifted"
        ) from None
