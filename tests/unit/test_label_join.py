"""The label join against a plain dict that sees one row after the other; a replay brings the same state back."""

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_monitor.join import SWEEPS_PER_HORIZON, Facts, Pending

HORIZON = 80


class Row(NamedTuple):
    label: bool
    key: str
    time: int


rows = st.lists(
    st.builds(
        Row,
        st.booleans(),
        st.sampled_from(["a", "b", "c", "", "é" * 5, "a" * 40]),
        st.integers(0, 400),
    ),
    max_size=60,
)


def facts(some: list[Row], first: int = 0) -> Facts:
    """Scores are the row's number, so that a pair says who met whom."""
    n = len(some)
    number = np.arange(first, first + n, dtype=np.float64)
    return Facts(
        np.array([row.label for row in some], np.bool_),
        pa.array([row.key for row in some], pa.string()),
        np.array([row.time for row in some], np.int64),
        np.array([-1 if row.label else 7 for row in some], np.int64),
        np.ones(n, np.int64),
        number,
        number,
        number,
    )


def join(some: list[Row], cuts: list[int], pending: Pending | None = None) -> tuple[Counter, Counter, Pending]:
    pending = pending or Pending(HORIZON)
    pairs: Counter = Counter()
    expired: Counter = Counter()
    for start, stop in zip([0, *cuts], [*cuts, len(some)], strict=True):
        met = pending.meet(facts(some[start:stop], start), np.arange(stop - start))
        pairs.update(
            zip(met.pairs["score"].tolist(), met.pairs["value"].tolist(), met.pairs["time"].tolist(), strict=True)
        )
        expired.update((False, time) for time in met.predictions[:, 1].tolist())
        expired.update((True, time) for time in met.labels[:, 1].tolist())
    return pairs, expired, pending


def by_dict(some: list[Row]) -> tuple[Counter, Counter, tuple[int, int]]:
    waiting: dict[tuple[bool, str], list[int]] = defaultdict(list)
    clock: dict[bool, int] = {}
    pairs: Counter = Counter()
    expired: Counter = Counter()

    def over(label: bool, time: int) -> bool:
        return clock.get(not label, -(10**9)) - HORIZON > time or clock.get(label, -(10**9)) - 2 * HORIZON > time

    for i, row in enumerate(some):
        others = [j for j in waiting[not row.label, row.key] if not over(not row.label, some[j].time)]
        if others and row.label:
            met = others
            pairs.update((float(j), float(i), some[j].time) for j in met)
        elif others:
            met = others[-1:]
            pairs[float(i), float(met[0]), row.time] += 1
        else:
            met = []
            waiting[row.label, row.key].append(i)
        for j in met:
            waiting[not row.label, row.key].remove(j)
        before = max(clock.values(), default=None)
        clock[row.label] = max(clock.get(row.label, row.time), row.time)
        grid = HORIZON // SWEEPS_PER_HORIZON
        if before is not None and row.time > before and row.time // grid > before // grid:
            for (label, key), held in waiting.items():
                expired.update((label, some[j].time) for j in held if over(label, some[j].time))
                waiting[label, key] = [j for j in held if not over(label, some[j].time)]
    left = Counter(label for (label, _), held in waiting.items() for _ in held)
    return pairs, expired, (left[False], left[True])


@settings(max_examples=300, deadline=None)
@given(rows, st.lists(st.integers(0, 60), max_size=4))
def test_the_join_is_that_of_a_dict_wherever_batches_are_cut(some: list[Row], cuts: list[int]) -> None:
    pairs, expired, pending = join(some, sorted(min(cut, len(some)) for cut in cuts))
    assert (pairs, expired, pending.waiting) == by_dict(some)


@settings(max_examples=100, deadline=None)
@given(rows, st.data())
def test_a_replay_of_the_log_brings_the_same_state_back(some: list[Row], data: st.DataObject) -> None:
    crash = data.draw(st.integers(0, len(some)))
    before, before_expired, _ = join(some[:crash], [])
    _, _, replayed = join(some[:crash], data.draw(st.just([crash // 2])))
    met = replayed.meet(facts(some[crash:], crash), np.arange(len(some) - crash))
    after = Counter(
        zip(met.pairs["score"].tolist(), met.pairs["value"].tolist(), met.pairs["time"].tolist(), strict=True)
    )
    whole, whole_expired, _ = join(some, [])
    assert before + after == whole
    assert before_expired.total() + len(met.predictions) + len(met.labels) == whole_expired.total()


@settings(max_examples=200, deadline=None)
@given(rows, st.data())
def test_a_snapshot_goes_on_as_what_it_was_taken_of(some: list[Row], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(some)))
    _, _, pending = join(some[:cut], [])
    restored = Pending.restore(
        HORIZON, pending.snapshot({7: ("m", "1.0.0")}), lambda model, version: {("m", "1.0.0"): 9}[model, version]
    )
    assert restored.waiting == pending.waiting
    rest = facts(some[cut:], cut)
    kept, back = (p.meet(rest, np.arange(len(rest))) for p in (pending, restored))
    assert kept.pairs["score"].tolist() == back.pairs["score"].tolist()
    assert kept.pairs["value"].tolist() == back.pairs["value"].tolist()
    assert kept.labels.tolist() == back.labels.tolist()
    assert kept.predictions[:, 1].tolist() == back.predictions[:, 1].tolist()


def test_a_restored_prediction_has_the_code_that_its_model_has_now() -> None:
    pending = Pending(HORIZON)
    pending.meet(facts([Row(False, "a", 0)]), np.arange(1))
    restored = Pending.restore(
        HORIZON, pending.snapshot({7: ("m", "1.0.0")}), lambda model, version: {("m", "1.0.0"): 9}[model, version]
    )
    met = restored.meet(facts([Row(True, "a", 1)], 1), np.arange(1))
    assert met.pairs["served"].tolist() == [9]


def test_labels_days_ahead_of_their_predictions_still_meet_them() -> None:
    """In a backlog ingest is done with the labels before inference has begun."""
    day = HORIZON
    labels = [Row(True, f"k{i}", i * day) for i in range(100)]
    predictions = [Row(False, f"k{i}", i * day - 5) for i in range(100)]
    pairs, expired, pending = join([*labels[:2], *predictions[:2], *labels[2:3], *predictions[2:3]], [])
    assert (len(pairs), expired.total(), pending.waiting) == (3, 0, (0, 0))
    late, _, _ = join([*labels[:3], *predictions[:3]], [])
    assert len(late) == 3


def test_equal_hashes_do_not_make_equal_keys() -> None:
    """All fifty get the hash of key7, and one chain: only the comparison of the keys themselves is left."""
    pending = Pending(HORIZON)
    pending.meet(facts([Row(False, f"key{i}", 0) for i in range(50)]), np.arange(50))
    pending._entries["hash"][:50] = pending._entries["hash"][7]
    pending._entries["next"][:50] = np.arange(-1, 49)
    pending._heads[:] = 49
    met = pending.meet(facts([Row(True, "key7", 1)], 50), np.arange(1))
    assert met.pairs["score"].tolist() == [7.0]
    assert pending.waiting == (49, 0)


def test_the_state_shrinks_when_what_waited_is_gone_and_keys_stay_right() -> None:
    rng = np.random.default_rng(3)
    pending = Pending(HORIZON)
    expected = met = expired = 0
    for batch in range(120):
        predictions = [Row(False, f"{batch}-{i}" + "x" * int(rng.integers(0, 30)), batch) for i in range(100)]
        labels = [Row(True, row.key, batch) for row in predictions if rng.random() < 0.9]
        expected += len(labels)
        for some in (predictions, labels):
            meetings = pending.meet(facts(some), np.arange(len(some)))
            met += len(meetings.pairs)
            expired += len(meetings.predictions)
    assert met == expected
    assert pending.waiting == (120 * 100 - expected - expired, 0)
    assert pending.size[0] < 2_000_000


def test_rows_of_other_partitions_are_left_alone() -> None:
    some = [Row(False, "a", 0), Row(True, "a", 1), Row(True, "b", 1), Row(False, "b", 2)]
    one, other = Pending(HORIZON), Pending(HORIZON)
    assert len(one.meet(facts(some), np.array([0, 2])).pairs) == 0
    assert len(other.meet(facts(some), np.array([1, 3])).pairs) == 0
    assert (one.waiting, other.waiting) == ((1, 1), (1, 1))
