"""Copies of events in the first features stage: the ids against a brute-force reading of the rule, and a stage that
gets copies against one that never saw them.
"""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_features.duplicates import Origins, Seen, replayed_places
from penstock_features.stage import FeaturesStage, build

from penstock.envelope import EVENT_ID, ORIGIN_OFFSET, ORIGIN_PARTITION, REPLAYS
from penstock.plan import Plan
from penstock.records import Partition, Reason, Result, State
from penstock.windows.watermark import running_watermark
from tests.unit.features_plan import HOUR, MINUTE, Log, events, plan

Sent = tuple[str, int]
"""An id and an event time."""
Fates = list[tuple[int, int] | None]
"""Of each row: None, or partition and offset of its first."""
HORIZON = 10
TOPIC = "shops.events"

ids = st.sampled_from(["", "a", "b", "the same eight", "the same eightz", "é"])
logs = st.lists(st.tuples(ids, st.integers(0, 40)), max_size=60)
cuts = st.lists(st.integers(0, 60), max_size=6)


def told(log: list[Sent], horizon: int = HORIZON) -> Fates:
    """The rule, read off the log: row i is a copy if a row of its id before it is no older than the watermark behind
    row i less the horizon. Its first is where the run of copies began."""
    fates: Fates = []
    watermark = -(10**9)
    for i, (name, time) in enumerate(log):
        watermark = max(watermark, time)
        near = [j for j in range(i) if log[j][0] == name and log[j][1] >= watermark - horizon]
        if not near:
            fates.append(None)
            continue
        newest = max(near, key=lambda j: (log[j][1], -j))
        fates.append(fates[newest] or (newest % 3, newest))
    return fates


def feed(seen: Seen, log: list[Sent], start: int, stop: int, watermark: int | None = None) -> Fates:
    """Rows ``start`` to ``stop`` of the log, whose raw record lies at ``i % 3``, ``i``; ``watermark``: the one before
    them, of the whole log if not given."""
    times = np.array([time for _, time in log], np.int64)
    before = running_watermark(times)[start:stop]
    if watermark is not None:
        before = running_watermark(times[start:stop], watermark)
    numbers = np.arange(start, stop)
    names = pa.array([name for name, _ in log], pa.string()).slice(start, stop - start)
    firsts = seen.firsts(names, times[start:stop], before, (numbers % 3, numbers), nothing(stop - start))
    if firsts is None:
        return [None] * (stop - start)
    return [None if partition < 0 else (partition, offset) for partition, offset in firsts.tolist()]


def nothing(n: int) -> Origins:
    """No row is sent again for another."""
    return np.full(n, -1, np.int64), np.full(n, -1, np.int64)


def bounds(n: int, cuts: list[int]) -> list[tuple[int, int]]:
    return list(pairwise([0, *sorted(min(cut, n) for cut in cuts), n]))


@settings(max_examples=300, deadline=None)
@given(logs, cuts)
def test_copies_are_what_the_rule_says_wherever_batches_are_cut(log: list[Sent], cuts: list[int]) -> None:
    seen = Seen(HORIZON)
    assert [fate for low, high in bounds(len(log), cuts) for fate in feed(seen, log, low, high)] == told(log)


@settings(max_examples=200, deadline=None)
@given(logs, cuts)
def test_a_snapshot_at_any_row_goes_on_where_the_ids_were(log: list[Sent], cuts: list[int]) -> None:
    seen, found = Seen(HORIZON), []
    for low, high in bounds(len(log), cuts):
        found += feed(seen, log, low, high)
        seen = Seen.restore(HORIZON, seen.snapshot())
    assert found == told(log)


@settings(max_examples=300, deadline=None)
@given(logs, st.integers(0, 60), st.integers(0, 30))
def test_rows_are_judged_alike_after_a_replay_of_a_horizon_before_them(
    log: list[Sent], live: int, history: int
) -> None:
    """The reach: of what is replayed, rows of the last ``history`` ms are judged as they were when they were live."""
    live = min(live, len(log))
    back_to = max((time for _, time in log[:live]), default=0) - history - HORIZON
    start = next((i for i in range(live) if max(time for _, time in log[: i + 1]) >= back_to), live)
    seen = Seen(HORIZON)
    replayed = feed(seen, log, start, live, watermark=-(10**9))
    after = feed(seen, log, live, len(log))
    wanted = told(log)
    for i, fate in enumerate(replayed, start):
        if log[i][1] >= back_to + HORIZON:
            assert (fate is None) == (wanted[i] is None)
    assert [fate is None for fate in after] == [fate is None for fate in wanted[live:]]


def test_ids_are_forgotten_a_horizon_after_their_newest_row_and_memory_is_given_back() -> None:
    rng = np.random.default_rng(1)
    n, horizon = 60_000, 500
    times = np.arange(n) // 4 + rng.integers(-200, 200, n)
    names = [f"{int(number):09}" * (1 + int(number) % 3) for number in np.arange(n) - rng.integers(0, 3000, n)]
    log = list(zip(names, times.tolist(), strict=True))
    last: dict[str, tuple[int, int]] = {}
    wanted: Fates = []
    watermark = -(10**9)
    for i, (name, time) in enumerate(log):
        watermark = max(watermark, time)
        newest, first = last.get(name, (-(10**9), -1))
        is_copy = newest >= watermark - horizon
        wanted.append((first % 3, first) if is_copy else None)
        if is_copy or time >= watermark - horizon:
            last[name] = (max(newest, time) if is_copy else time, first if is_copy else i)
    seen, found, most = Seen(horizon), [], 0
    for low in range(0, n, 1000):
        found += feed(seen, log, low, low + 1000)
        most = max(most, seen.nbytes)
    assert found == wanted
    assert 1000 < sum(fate is not None for fate in found) < n - 1000
    alive = sum(newest >= watermark - horizon for newest, _ in last.values())
    assert len(Seen.restore(horizon, seen.snapshot())) == alive < 4000
    assert most < 4 * (2 * alive + 2000) * 100


def test_a_copy_that_comes_when_time_is_a_horizon_past_it_is_a_new_event() -> None:
    assert feed(Seen(10), [("a", 0), ("b", 10), ("a", 0), ("c", 11), ("a", 0)], 0, 5) == [
        None,
        None,
        (0, 0),
        None,
        None,
    ]


def test_a_copy_with_a_later_time_of_its_own_keeps_the_id_and_the_first_is_still_named() -> None:
    assert feed(Seen(10), [("a", 0), ("a", 8), ("a", 16), ("a", 27)], 0, 4) == [None, (0, 0), (0, 0), None]


def test_two_ids_of_one_hash_are_two_events() -> None:
    """MurmurHash64A is undone word by word, so the second word of another id can make up for its first."""
    m, mask = 0xC6A4A7935BD1E995, 2**64 - 1

    def mixed(word: int) -> int:
        word = word * m & mask
        return (word ^ word >> 47) * m & mask

    def unmixed(word: int) -> int:
        inverse = pow(m, -1, 2**64)
        word = word * inverse & mask
        return (word ^ word >> 47) * inverse & mask

    seed = 0x9E3779B97F4A7C15 ^ (16 * m & mask)
    one, other = b"an id of", b"another "
    after = [(seed ^ mixed(int.from_bytes(part, "little"))) * m & mask for part in (one, other)]
    second = unmixed(mixed(int.from_bytes(b" 16 byte", "little")) ^ after[0] ^ after[1])
    names = [one + b" 16 byte", other + second.to_bytes(8, "little")]
    seen, nought = Seen(HORIZON), np.zeros(2, np.int64)
    ids = pa.array(names, pa.binary()).view(pa.string())
    assert seen.firsts(ids, nought, nought, (nought, nought), nothing(2)) is None
    hashes = seen._entries["hash"][:2].tolist()
    assert hashes[0] == hashes[1], "they are of no use to this test"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ids, st.integers(0, 40), st.integers(-1, 59)), max_size=60), cuts)
def test_a_row_that_is_sent_again_for_the_first_is_no_copy(log: list[tuple[str, int, int]], cuts: list[int]) -> None:
    wanted: Fates = []
    last: dict[str, tuple[int, int]] = {}
    for i, (name, time, of) in enumerate(log):
        oldest = max(time for _, time, _ in log[: i + 1]) - HORIZON
        newest, first = last.get(name, (-(10**9), -1))
        again = newest >= oldest
        wanted.append((first % 3, first) if again and of != first else None)
        if again or time >= oldest:
            last[name] = (max(newest, time) if again else time, first if again else of if of >= 0 else i)
    names, times = pa.array([name for name, _, _ in log], pa.string()), np.array([t for _, t, _ in log], np.int64)
    of = np.array([of for _, _, of in log], np.int64)
    numbers, before = np.arange(len(log)), running_watermark(times)
    seen, found = Seen(HORIZON), []
    for low, high in bounds(len(log), cuts):
        at, replayed = numbers[low:high], np.where(of >= 0, of % 3, -1)[low:high]
        rows = names.slice(low, high - low), times[low:high], before[low:high]
        firsts = seen.firsts(*rows, (at % 3, at), (replayed, of[low:high]))
        found += [None] * len(at) if firsts is None else [tuple(at) if at[0] >= 0 else None for at in firsts.tolist()]
        seen = Seen.restore(HORIZON, seen.snapshot())
    assert found == wanted


def test_the_place_of_a_replayed_record_is_read_and_what_is_no_place_of_the_raw_topic_is_none() -> None:
    good = ["shops.raw/3@17", None, "shops.raw/999999999@999999999999999999"]
    bad = ["", "shops.raw/3@", "shops.raw/-1@2", "shops.raw/3@17 ", "shopsxraw/3@17", "other.raw/3@17"]
    bad += ["shops.raw/3@1234567890123456789", "shops.raw/1@2\n"]
    partitions, offsets = replayed_places(pa.array(good + bad, pa.string()), "shops.raw")
    assert partitions.tolist() == [3, -1, 999_999_999, *[-1] * len(bad)]
    assert offsets.tolist() == [17, -1, 999_999_999_999_999_999, *[-1] * len(bad)]
    assert replayed_places(pa.nulls(2, pa.string()), "shops.raw")[0].tolist() == [-1, -1]


def deduplicating(horizon_ms: int, given: Plan | None = None) -> Plan:
    given = given or plan()
    return given.model_copy(update={"event": given.event.model_copy(update={"deduplicate_ms": horizon_ms})})


Visit = tuple[str | None, str, int, float | None, bool]
visits = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["x", "y"]),
        st.integers(0, 3 * HOUR),
        st.one_of(st.none(), st.integers(0, 50).map(float)),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


def with_copies(rows: list[Visit], again: list[tuple[int, int]]) -> tuple[pa.RecordBatch, list[int]]:
    """The events with some of them sent again ((which, how many rows later)), each with an origin of its own; and
    their partitions."""
    order = list(range(len(rows)))
    for which, later in again:
        at = order.index(which % len(rows))
        order.insert(min(at + 1 + later, len(order)), which % len(rows))
    table = events(rows).take(pa.array(order))
    origins = {ORIGIN_PARTITION: pa.array([n % 2 for n in range(len(order))], pa.int32())}
    origins |= {ORIGIN_OFFSET: pa.array(range(len(order)), pa.int64())}
    for name, column in origins.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table, [ord(rows[n][0] or "a") % 2 for n in order]


def output(results: list[Result], topic: str) -> list[dict[str, Any]]:
    """What went to a topic, less what a copy's own place changes."""
    rows = [row for result in results for out in result.outputs if out.topic == topic for row in out.rows.to_pylist()]
    return [{name: value for name, value in row.items() if name != "_offset"} for row in rows]


def drops(results: list[tuple[int, Result]]) -> dict[int, Reason]:
    return {low + row: reason for low, result in results for row, reason in result.dropped.items()}


@settings(max_examples=60, deadline=None)
@given(visits, st.lists(st.tuples(st.integers(0, 29), st.integers(0, 9)), max_size=20), cuts)
def test_a_stage_that_is_sent_copies_writes_what_one_without_them_writes(
    rows: list[Visit], again: list[tuple[int, int]], cuts: list[int]
) -> None:
    table, numbers = with_copies(rows, again)
    given = deduplicating(4 * HOUR)
    stage, log, partition = build(given, "features.customer"), Log(TOPIC, "customer"), Partition(TOPIC, 0)
    results: list[tuple[int, Result]] = []
    for low, high in bounds(len(table), cuts):
        if high > low:
            batch = log.batch(table.slice(low, high - low), numbers[low:high])
            results.append((low, stage.process(batch)))
            if 0 in numbers[low:high]:
                moved = build(given, "features.customer")
                for number in set(numbers[:high]):
                    partition = Partition(TOPIC, number)
                    moved.restore(partition, stage.snapshot(partition))
                stage = moved
    names = table.column(EVENT_ID).to_pylist()
    firsts = [n for n, name in enumerate(names) if names.index(name) == n]
    alone = table.take(pa.array(firsts))
    plain = [
        build(plan(), "features.customer").process(Log(TOPIC, "customer").batch(alone, [numbers[n] for n in firsts]))
    ]
    for topic in ("shops.by.shop", "shops.view.customer_spend", "shops.view.customer_habits"):
        assert output([result for _, result in results], topic) == output(plain, topic)
    fates = [low + int(n) for low, r in results for out in r.outputs if out.fate for n in out.source]
    assert fates == firsts
    dropped = drops(results)
    assert sorted(dropped) == sorted(set(range(len(names))) - set(firsts))
    for n, reason in dropped.items():
        first = names.index(names[n])
        assert reason == Reason("duplicate", f"the event of this id came before, as shops.raw/{first % 2}@{first}")


@settings(max_examples=30, deadline=None)
@given(visits, st.lists(st.tuples(st.integers(0, 29), st.integers(0, 9)), max_size=20), st.integers(0, 40))
def test_a_replay_remembers_the_ids_and_emits_nothing(
    rows: list[Visit], again: list[tuple[int, int]], cut: int
) -> None:
    table, numbers = with_copies(rows, again)
    cut = min(cut, len(table))

    def after(*, replay: bool) -> Result:
        stage, log = build(deduplicating(HOUR), "features.customer"), Log(TOPIC, "customer")
        if cut:
            before = stage.process(log.batch(table.slice(0, cut), numbers[:cut], replay=replay))
            assert before == Result() or not replay
        return stage.process(log.batch(table.slice(cut), numbers[cut:])) if cut < len(table) else Result()

    steady, replayed = after(replay=False), after(replay=True)
    assert steady.dropped == replayed.dropped
    assert output([steady], "shops.by.shop") == output([replayed], "shops.by.shop")


def one_stage() -> Plan:
    """A pipeline whose first features stage is its last."""
    given = deduplicating(HOUR)
    last = given.stages[1].model_copy(update={"inputs": given.stages[0].inputs, "views": ("customer_spend",)})
    columns = tuple(c for c in given.service.columns if not c.name.startswith("shop") and "_1h" not in c.name)
    service = given.service.model_copy(update={"columns": columns})
    changed = {"stages": (last,), "service": service, "views": given.views[:1], "label": None}
    return given.model_copy(update=changed)


def test_rejects_and_drops_of_the_others_keep_their_places() -> None:
    rows: list[Visit] = [("a", "x", 0, 1.0, True), ("a", "x", 1, -1.0, True), ("b", "x", 2, 1.0, False)]
    table, _ = with_copies(rows, [(0, 0), (1, 0), (2, 0)])
    result = build(one_stage(), "features.shop").process(Log(TOPIC, "customer").batch(table, [0] * 6))
    assert {row: reason.kind for row, reason in result.rejects.items()} == {2: "feature function failed"}
    kinds = {row: reason.kind for row, reason in result.dropped.items()}
    assert kinds == {1: "duplicate", 3: "duplicate", 4: "not paid", 5: "duplicate"}
    (served,) = [out for out in result.outputs if out.topic == "shops.features"]
    assert served.source.tolist() == [0]


def test_an_event_that_came_under_its_id_goes_on_without_a_key() -> None:
    table, _ = with_copies([(None, "x", 0, 1.0, True), ("a", "x", 1, 1.0, True)], [(0, 0)])
    result = build(one_stage(), "features.shop").process(Log(TOPIC, EVENT_ID).batch(table, [0] * 3))
    assert sorted(result.dropped) == [1]
    (served,) = [out for out in result.outputs if out.topic == "shops.features"]
    assert served.keys.to_pylist() == [None, b"a"]


def test_the_replay_of_an_event_that_died_behind_the_stage_goes_through_it_and_its_copies_do_not() -> None:
    """Two ids in two partitions, row by row in turn; places that are wrong by partition and by offset alone."""
    table, _ = with_copies([("a", "x", 0, 1.0, True), ("b", "x", 0, 1.0, True)], [(1, 0), (0, 0)] * 3)
    table = table.take(pa.array([0, 4, 1, 5, 2, 6, 3, 7]))
    names = table.column(EVENT_ID).to_pylist()
    numbers = [int(name != names[0]) for name in names]
    at = zip(table.column(ORIGIN_PARTITION).to_pylist(), table.column(ORIGIN_OFFSET).to_pylist(), strict=True)
    places = [f"shops.raw/{partition}@{offset}" for partition, offset in at]
    first = {name: places[names.index(name)] for name in names}
    wrong = {name: place.replace("/0@", "/7@").replace("/1@", "/7@") for name, place in first.items()}
    seen: Counter[str] = Counter()
    said: list[str | None] = []
    for name in names:
        turns = [wrong[name], first[name], first[name]]
        said.append([None, *(turns if name == names[0] else reversed(turns))][seen[name]])
        seen[name] += 1
    assert set(seen.values()) == {4}
    table = table.set_column(table.schema.get_field_index(REPLAYS), REPLAYS, pa.array(said, pa.string()))
    result = build(deduplicating(HOUR), "features.customer").process(Log(TOPIC, "customer").batch(table, numbers))
    assert sorted(result.dropped) == [row for row, place in enumerate(said) if place and "/7@" in place]
    for row, reason in result.dropped.items():
        assert reason.message.endswith(first[names[row]])


def test_a_replay_passes_whether_or_not_the_one_before_it_ever_came_here() -> None:
    """The first died behind, its replay on its way here, and that one's replay is for the first too; an id that a
    patch has changed is new with the first replay, and its own replay passes."""
    nought, at = np.zeros(3, np.int64), np.arange(3)
    for ids, of in ((["a", "a", "a"], [-1, 0, 0]), (["b", "b", "b"], [9, 9, 9])):
        seen = Seen(HORIZON)
        for row in range(3):
            replayed = np.minimum(of[row : row + 1], 0), np.array(of[row : row + 1])
            rows = pa.array(ids[row : row + 1]), nought[:1], nought[:1]
            assert seen.firsts(*rows, (nought[:1], at[row : row + 1]), replayed) is None


def test_who_was_first_is_a_matter_of_the_log_as_far_as_it_is_read() -> None:
    """A replay for row 0 passes; known from row 1 on alone, which was a copy, it is one itself. So ADR 11 says."""
    names, times = pa.array(["a", "a", "a"]), np.array([0, 8, 8])
    zeros, of = np.zeros(3, np.int64), (np.array([-1, -1, 0]), np.array([-1, -1, 0]))
    rows = np.arange(3)
    whole = Seen(HORIZON).firsts(names, times, np.array([0, 0, 8]), (zeros, rows), of)
    assert whole is not None
    assert whole[:, 0].tolist() == [-1, 0, -1]
    cut = Seen(HORIZON).firsts(
        names.slice(1), times[1:], np.array([0, 8]), (zeros[1:], rows[1:]), (of[0][1:].copy(), of[1][1:].copy())
    )
    assert cut is not None
    assert cut.tolist() == [[-1, -1], [0, 1]]


def test_a_refused_batch_leaves_the_ids_as_they_were() -> None:
    log, stage = Log(TOPIC, "customer"), build(deduplicating(HOUR), "features.customer")
    wrong = log.batch(events([("a", "x", HOUR, 1.0, True)]), [0])
    stage.process(Log(TOPIC, "customer").batch(events([("a", "x", HOUR, 1.0, True)], first=7), [0]))
    with pytest.raises(ValueError, match="watermark"):
        stage.process(wrong)  # its watermark knows nothing of the row before
    wrong.watermark[:] = HOUR
    assert stage.process(wrong).dropped == {}


def test_an_event_without_an_entity_is_told_by_its_id() -> None:
    stage = build(deduplicating(HOUR), "features.customer")
    table, _ = with_copies([(None, "x", 0, 1.0, True)], [(0, 0)])
    assert sorted(stage.process(Log(TOPIC, "customer").batch(table, [0, 0])).dropped) == [1]


def test_only_the_first_stage_looks_for_copies_and_only_if_it_is_asked_to() -> None:
    table, _ = with_copies([("a", "x", 0, 1.0, True)], [(0, 0)])
    plain: FeaturesStage = build(plan(), "features.customer")
    result = plain.process(Log(TOPIC, "customer").batch(table, [0, 0]))
    assert not result.dropped
    later = build(deduplicating(HOUR), "features.shop")
    passed = pa.Table.from_batches([out.rows for out in result.outputs if out.topic == "shops.by.shop"])
    again = later.process(Log("shops.by.shop", "shop").batch(passed.combine_chunks().to_batches()[0], [0, 0]))
    assert not again.dropped
    assert later.reach("shops.by.shop") == HOUR + 5 * MINUTE + MINUTE


def test_the_ids_are_part_of_the_state_that_is_measured_reached_back_for_and_told_apart() -> None:
    stage, plain = build(deduplicating(2 * HOUR), "features.customer"), build(plan(), "features.customer")
    stage.process(Log(TOPIC, "customer").batch(events([("a", "x", 0, 1.0, True), ("b", "x", 1, 1.0, True)]), [0, 1]))
    held, count = stage.sizes()["event ids"]
    assert (count, held > 0) == (2, True)
    assert stage.reach(TOPIC) == plain.reach(TOPIC) + 2 * HOUR
    versions = {given.state_version() for given in (stage, plain, build(deduplicating(HOUR), "features.customer"))}
    assert len(versions) == 3
    with pytest.raises(ValueError, match="event ids"):
        stage.restore(Partition(TOPIC, 0), _snapshot(plain))


def _snapshot(stage: FeaturesStage) -> State:
    stage.process(Log(TOPIC, "customer").batch(events([("a", "x", 0, 1.0, True)]), [0]))
    return stage.snapshot(Partition(TOPIC, 0))
