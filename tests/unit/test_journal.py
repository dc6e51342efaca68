"""A row that kills its worker costs itself alone, and a kill from outside costs nothing: the loop on the broker in
memory, with deaths that nothing catches, and each time a new worker on the same files.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from penstock.codec.decoded import Decoded
from penstock.journal import notes as notes_module
from penstock.journal.notes import Note, Notes, following
from penstock.journal.stepping import DEATHS, KILLED, Journal
from penstock.loop import Loop
from penstock.records import Batch, Partition, Result
from penstock.snapshots.files import Store
from penstock.transport.memory import MemoryBroker, MemoryTransport, Row
from penstock.transport.protocol import Fenced, Position
from tests.small_loop import DEAD, DROPPED, SOURCE, TARGET, Passing, decode, small_loop

TOPICS = {name: name for name in (SOURCE, TARGET, DEAD, DROPPED)}
KILLER = 13


class Death(BaseException):
    """What no code catches: the process is gone."""


class Killed(Passing):
    """Dies of the times in ``of``."""

    def __init__(self, of: set[int], reach_ms: int | None = None) -> None:
        super().__init__(TARGET, reach_ms)
        self.of = of
        self.sizes_seen: list[int] = []

    def process(self, batch: Batch) -> Result:
        self.sizes_seen.append(len(batch))
        if self.of & set(batch.event_time.tolist()):
            raise Death
        return super().process(batch)


class World:
    """One topic, its workers one after the other, and what they write down."""

    def __init__(self, folder: Path, partitions: int = 1) -> None:
        self.folder, self.broker, self.deaths, self.now = folder, MemoryBroker(), 0, 1_000_000.0
        self.merges, self.max_rows = False, 1000
        self.reach_ms: int | None = None
        self.of: set[int] = set()
        self.of_decoding: set[int] = set()
        for topic in TOPICS:
            self.broker.create(topic, partitions)

    def append(self, *times: int, partition: int = 0) -> None:
        for at in times:
            self.broker.append(SOURCE, None, b"%d" % at, partition=partition)

    def worker(self, slot: str = "0") -> tuple[Loop, Killed]:
        def dying(values: pa.BinaryArray) -> Decoded:
            if self.of_decoding & {int(value) for value in values.to_pylist()}:
                raise Death
            return decode(values)

        transport, stage = MemoryTransport(self.broker, "g", slot), Killed(self.of, self.reach_ms)
        loop = small_loop(
            transport,
            stage,
            TOPICS,
            merges=self.merges,
            decode=dying,
            max_rows=self.max_rows,
            lateness_ms=1000,
            clock=lambda: self.now,
        )
        store = Store(str(self.folder), "g")
        loop.recovery.journal = Journal(Notes(store), transport.identity, "small", loop.intake.most_in_hand)
        transport.subscribe([SOURCE], loop)
        return loop, stage

    def work(self, loop: Loop, turns: int = 40) -> bool:
        """Some turns, or its death."""
        try:
            for _ in range(turns):
                self.now += 0.05
                loop.step()
        except Death:
            self.deaths += 1
            self.kill(loop)
            return False
        return True

    def kill(self, loop: Loop) -> None:
        assert isinstance(loop.transport, MemoryTransport)
        loop.transport.kill()

    def until_done(self) -> tuple[Loop, Killed]:
        """Workers one after the other until one lives."""
        for _ in range(20):
            loop, stage = self.worker()
            if self.work(loop):
                return loop, stage
        raise AssertionError("every worker died")

    def out(self) -> list[int]:
        return sorted(int(row.value or b"") for row in self.broker.rows(TARGET))

    def dead(self) -> list[Row]:
        return self.broker.rows(DEAD)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*.json"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.loop.time.sleep", lambda seconds: None)


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("where", ["decoding", "processing"])
def test_a_row_that_kills_is_alone_in_the_dead_letters_byte_for_byte_after_four_deaths(
    tmp_path: Path, merges: bool, where: str
) -> None:
    world = World(tmp_path, partitions=2)
    world.merges = merges
    (world.of_decoding if where == "decoding" else world.of).add(KILLER)
    world.append(*range(40), partition=0)
    world.append(*range(100, 140), partition=1)
    loop, _ = world.until_done()
    assert world.deaths == 2 + DEATHS
    assert world.out() == [*range(KILLER), *range(KILLER + 1, 40), *range(100, 140)]
    [letter] = world.dead()
    facts = dict(letter.headers)
    assert letter.value == b"%d" % KILLER
    assert (facts["penstock.reason"], facts["__connect.errors.offset"]) == (KILLED.encode(), b"%d" % KILLER)
    assert not loop.recovery.journal.stepping
    world.append(*range(200, 210))
    assert world.work(loop)
    assert world.out()[-10:] == [*range(200, 210)]


def test_two_that_kill_in_one_batch_cost_two_deaths_more(world: World) -> None:
    world.of = {KILLER, KILLER + 1}
    world.append(*range(40))
    world.until_done()
    assert world.deaths == 2 + 2 * DEATHS
    assert world.out() == [*range(KILLER), *range(KILLER + 2, 40)]
    assert [row.value for row in world.dead()] == [b"13", b"14"]


@pytest.mark.parametrize("merges", [False, True])
def test_the_first_row_after_the_committed_offset_may_be_the_one(world: World, merges: bool) -> None:
    world.merges = merges
    world.append(*range(KILLER))
    loop, _ = world.worker()
    assert world.work(loop)
    world.of = {KILLER}
    world.kill(loop)
    world.append(*range(KILLER, 30))
    world.until_done()
    assert world.deaths <= 2 + DEATHS
    assert world.out() == [*range(KILLER), *range(KILLER + 1, 30)]
    assert len(world.dead()) == 1


def test_one_that_comes_when_the_first_is_quarantined_is_found_too(world: World) -> None:
    world.of = {KILLER, 50}
    world.append(*range(40))
    world.until_done()
    loop, _ = world.worker()
    assert world.work(loop)
    world.append(*range(40, 60))
    assert not world.work(loop)
    world.until_done()
    assert world.deaths == 2 * (2 + DEATHS)
    assert world.out() == [n for n in range(60) if n not in world.of]
    assert [row.value for row in world.dead()] == [b"13", b"50"]


def test_in_a_replay_it_is_left_out_and_gets_no_second_fate(world: World) -> None:
    world.reach_ms = 10_000
    world.append(*range(40))
    loop, stage = world.worker()
    assert world.work(loop)
    world.kill(loop)
    world.of = {KILLER}  # a new version dies of what the former took
    loop, stage = world.until_done()
    assert world.deaths == 2 + DEATHS
    assert stage.replayed == [*range(KILLER), *range(KILLER + 1, 40)]
    world.append(*range(40, 50))
    assert world.work(loop)
    assert world.out() == [*range(50)]
    assert world.dead() == []


def test_behind_a_replay_only_what_is_live_is_stepped(world: World) -> None:
    world.reach_ms = 10_000
    world.append(*range(40))
    loop, _ = world.worker()
    assert world.work(loop)
    loop.recovery.close(settled=True)
    world.kill(loop)
    world.of = {45}
    world.append(*range(40, 50))
    for _ in range(2):
        loop, _ = world.worker()
        assert not world.work(loop)
    loop, stage = world.worker()
    assert not world.work(loop)
    assert stage.sizes_seen == [40, 1, 1, 1, 1, 1, 1]
    _, stage = world.until_done()
    assert stage.replayed == [*range(40)]
    assert [row.value for row in world.dead()] == [b"45"]


def test_it_kills_no_other_worker_that_takes_the_partition_over(world: World) -> None:
    world.reach_ms = 10_000
    world.of = {KILLER}
    world.append(*range(40))
    loop, _ = world.until_done()
    world.kill(loop)
    before = world.deaths
    loop, stage = world.worker("1")
    assert world.work(loop)
    assert world.deaths == before
    assert stage.replayed == [*range(KILLER), *range(KILLER + 1, 40)]
    assert len(world.dead()) == 1


def test_deaths_count_whoever_has_the_partition(world: World) -> None:
    world.of = {KILLER}
    world.append(*range(40))
    for slot in ("0", "1", "2", "3"):
        loop, _ = world.worker(slot)
        assert not world.work(loop)
    loop, _ = world.worker("4")
    assert world.work(loop)
    assert len(world.dead()) == 1


def test_kills_while_idle_lead_to_nothing(world: World) -> None:
    world.append(*range(10))
    for _ in range(6):
        loop, stage = world.worker()
        assert world.work(loop)
        world.kill(loop)
    world.append(*range(10, 40))
    loop, stage = world.worker()
    assert world.work(loop)
    assert stage.sizes_seen == [30]
    assert world.out() == [*range(40)]


def test_kills_while_idle_lead_to_nothing_where_the_log_ends_in_a_marker(world: World) -> None:
    world.reach_ms = 10_000
    world.append(*range(10))
    world.broker.logs[SOURCE][0].append(None)
    for _ in range(6):
        loop, _ = world.worker()
        assert world.work(loop)
        assert loop.recovery.journal.says() is None
        world.kill(loop)
    world.append(*range(10, 40))
    loop, stage = world.worker()
    assert world.work(loop)
    assert stage.sizes_seen == [10, 30]
    assert world.out() == [*range(40)]


def test_single_steps_of_a_replay_end_where_the_log_ends_in_a_marker(world: World) -> None:
    world.reach_ms = 10_000
    world.append(*range(40))
    world.broker.logs[SOURCE][0].append(None)
    loop, _ = world.worker()
    assert world.work(loop)
    world.kill(loop)
    world.of = {KILLER}
    loop, stage = world.until_done()
    assert stage.replayed == [*range(KILLER), *range(KILLER + 1, 40)]
    assert loop.recovery.journal.says() is None


def test_kills_with_a_commit_between_them_lead_to_nothing(world: World) -> None:
    world.max_rows = 10
    world.append(*range(100))
    for _ in range(8):
        loop, stage = world.worker()
        assert world.work(loop, 1)
        loop._commit()
        world.kill(loop)
        assert stage.sizes_seen == [10]
    loop, stage = world.worker()
    assert world.work(loop)
    assert stage.sizes_seen == [10, 10]
    assert world.out() == [*range(100)]
    assert world.dead() == []


def unclean(world: World, times: int) -> None:
    """Workers that read and are killed from outside before they commit."""
    for _ in range(times):
        loop, _ = world.worker()
        loop._commit_when_due = lambda *, drained: None  # type: ignore[method-assign]
        assert world.work(loop, 2)
        world.kill(loop)


def test_two_kills_without_a_commit_mean_single_steps_until_a_commit_is_past_them(world: World) -> None:
    world.append(*range(40))
    unclean(world, 2)
    loop, stage = world.worker()
    loop._commit_when_due = lambda *, drained: None  # type: ignore[method-assign]
    assert world.work(loop, 1)
    said = "single-stepping 0..40 of in/0 after 2 unclean starts at 0"
    assert loop._observer._health.waiting_for["single steps"] == said
    del loop._commit_when_due  # type: ignore[method-assign]
    assert world.work(loop)
    assert stage.sizes_seen == [1] * 40
    loop._tell(0.0)
    assert "single steps" not in loop._observer._health.waiting_for
    world.append(*range(40, 60))
    assert world.work(loop)
    assert stage.sizes_seen[40:] == [20]
    assert world.out() == [*range(60)]
    assert world.dead() == []


def test_a_kill_that_hits_a_step_by_chance_quarantines_nothing(world: World) -> None:
    world.append(*range(40))
    unclean(world, 2)
    for row in (5, 9, 5):
        world.of = {row}
        loop, _ = world.worker()
        assert not world.work(loop)
        world.of = set()
    loop, _ = world.worker()
    assert world.work(loop)
    assert world.out() == [*range(40)]
    assert world.dead() == []


def test_a_clean_stop_takes_the_note_away(world: World, tmp_path: Path) -> None:
    world.append(*range(10))
    loop, _ = world.worker()
    assert world.work(loop)
    assert world.files() == ["g/in/0/journal.json"]
    loop.recovery.close(settled=True)
    assert world.files() == []


def test_a_partition_that_goes_to_another_in_order_leaves_nothing_behind(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=2)
    world.append(*range(10), partition=1)
    first, _ = world.worker("0")
    assert world.work(first)
    second, _ = world.worker("1")
    assert world.work(first, 1)
    assert world.files() == ["g/in/0/journal.json"]
    assert world.work(second, 1)
    note = Notes(Store(str(tmp_path), "g")).read(Partition(SOURCE, 1))
    assert note is not None
    assert note.unclean == 0


def test_a_worker_that_hears_late_that_it_lost_a_partition_leaves_its_new_owners_note(world: World) -> None:
    place = Partition(SOURCE, 0)
    world.append(*range(10))
    loop, _ = world.worker()
    assert world.work(loop)
    notes = Notes(Store(str(world.folder), "g"))
    notes.write(place, fresh(10))
    loop.lost([place])
    assert notes.read(place) == fresh(10)


def test_a_worker_that_says_why_it_ends_leaves_nothing_behind(world: World) -> None:
    world.append(*range(10))
    loop, _ = world.worker()

    def fenced(positions: object) -> None:
        raise Fenced("held by another")

    loop.transport.commit = fenced  # type: ignore[method-assign, assignment]
    with pytest.raises(Fenced):
        loop.run()
    assert world.files() == []


def test_what_lies_of_a_former_topic_of_the_name_is_nothing_to_the_new_one(world: World) -> None:
    world.of = {KILLER}
    world.append(*range(40))
    world.until_done()
    world.of = set()
    world.broker.logs[SOURCE] = [[]]
    world.broker.ids[SOURCE] = "anew"
    world.broker.groups["g"].committed.clear()
    world.append(*range(100, 140))
    _, stage = world.until_done()
    assert stage.sizes_seen == [40]
    assert len(world.dead()) == 1


class Broken(Store):
    """Gone since the start."""

    def put(self, partition: Partition, name: str, content: bytes, *, durable: bool = True) -> None:
        raise RuntimeError("no such bucket")

    def get(self, partition: Partition, name: str) -> bytes:
        raise RuntimeError("no such bucket")

    def remove(self, partition: Partition, name: str) -> None:
        raise RuntimeError("no such bucket")


def test_a_store_that_is_gone_stops_no_stream(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.append(*range(40))
    loop, _ = world.worker()
    notes = Notes(Broken(str(world.folder), "g"))
    loop.recovery.journal = Journal(notes, lambda topic: "t", "small", 1000)
    assert world.work(loop)
    loop.recovery.close(settled=True)
    assert world.out() == [*range(40)]
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "in/0: the crash journal fails, a row that kills would not be found: no such bucket"
    ]


class Counted(Notes):
    """How often it writes."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: list[Note] = []

    def write(self, partition: Partition, note: Note) -> None:
        self.written.append(note)
        super().write(partition, note)


def test_nothing_is_written_per_row_or_batch(world: World) -> None:
    world.max_rows = 10
    world.append(*range(200))
    loop, stage = world.worker()
    notes = Counted(Store(str(world.folder), "g"))
    loop.recovery.journal = Journal(notes, lambda topic: "t", "small", 1000)
    assert world.work(loop)
    assert len(stage.sizes_seen) == 20
    assert len(notes.written) == 1


def test_a_replay_is_noted_at_the_same_places_whatever_its_batches(tmp_path: Path) -> None:
    place, found = Partition("in", 0), []
    for step in (7_000, 16_384):
        notes = Counted(Store(str(tmp_path), "g"))
        journal = Journal(notes, lambda topic: "t", "small", 1000)
        journal.begin(place, 1000, 200_000, 300_000)
        for offset in [*range(1000 + step, 200_000, step), 200_000]:
            journal.replayed({place: Position(offset)})
        journal.close()
        found.append([note.at for note in notes.written])
    assert found[0] == found[1] == [1000, 65_536, 131_072, 196_608, 200_000]


def test_a_death_late_in_a_long_replay_is_stepped_from_its_last_note_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes_module, "REPLAY_ROWS", 16)
    monkeypatch.setattr("penstock.journal.stepping.REPLAY_ROWS", 16)
    world.reach_ms, world.max_rows = 10_000, 8
    world.append(*range(80))
    loop, _ = world.worker()
    assert world.work(loop)
    world.kill(loop)
    world.of = {70}
    for _ in range(2):
        loop, _ = world.worker()
        assert not world.work(loop)
    loop, stage = world.worker()
    assert not world.work(loop)
    assert stage.sizes_seen == [8] * 8 + [1] * 7
    loop, stage = world.until_done()
    assert stage.replayed == [*range(70), *range(71, 80)]
    assert world.dead() == []


def fresh(committed: int, at: int | None = None) -> Note:
    return Note(topic="t", worker="new", committed=committed, at=committed if at is None else at)


def former(**facts: int) -> Note:
    return Note.model_validate({"topic": "t", "worker": "old", "committed": 100, "at": 100, **facts})


def steps() -> Iterator[tuple[str, Note, Note, int, tuple[int, int | None, int | None]]]:
    """What was found, what would be, the log's end → unclean, since, until."""
    yield "none in hand", former(), fresh(100), 100, (0, None, None)
    yield "a commit since, none in hand", former(unclean=1, died=100), fresh(130), 130, (0, None, None)
    yield "one death", former(), fresh(100), 130, (1, None, None)
    yield "a commit since", former(unclean=1, died=100), fresh(101), 130, (1, None, None)
    yield "two deaths", former(unclean=1, died=100), fresh(100), 115, (2, 100, 115)
    yield "a long log", former(unclean=1, died=100), fresh(100), 10**6, (2, 100, 120)
    yield "another place", former(unclean=1, died=90), fresh(100), 130, (1, None, None)
    yield "in a replay", former(at=50, unclean=1, died=50), fresh(100, 10), 10**6, (2, 50, 120)
    yield "stepping, some committed", former(unclean=2, died=100, since=100, until=130), fresh(110), 140, (2, 100, 130)
    yield "stepping, all committed", former(unclean=2, died=100, since=100, until=130), fresh(130), 140, (1, None, None)


@pytest.mark.parametrize(
    ("found", "new", "high", "expected"), [pytest.param(*case, id=name) for name, *case in steps()]
)
def test_what_a_worker_makes_of_the_note_it_finds(
    found: Note, new: Note, high: int, expected: tuple[int, int | None, int | None]
) -> None:
    note = following(found, new, high, 10)
    assert (note.unclean, note.since, note.until) == expected
    assert following(found.model_copy(update={"topic": "former"}), new, high, 10) == new
