"""The Faust consumer of the merge, without a broker: what it asks of aiokafka, hands on and commits around the recovery
of a table, in the order of events in which Faust loses records by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP, Message
from penstock_monitor import committed
from penstock_monitor.committed import CommittedApp, SafeTable

PROFILES = TP("profiles", 0)
CHANGELOG = TP("merge-windows-changelog", 0)


class Aiokafka:
    """The thread that owns aiokafka's consumer: one log of profiles; fetching moves the position, as it does there."""

    beacon = None

    def __init__(self, consumer: Any, **_: Any) -> None:
        self.log = list(range(100))
        self.position = self.committed = 40
        self.asked: list[set[TP]] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def getmany(self, partitions: set[TP], timeout: float) -> dict[TP, list[Any]]:
        self.asked.append(set(partitions))
        if self.meanwhile is not None:
            await self.meanwhile()
        if partitions and PROFILES not in partitions:  # none is all
            return {}
        found = self.log[self.position : self.position + 10]
        self.position += len(found)
        return {PROFILES: [SimpleNamespace(offset=offset) for offset in found]}

    def positions(self, partitions: set[TP]) -> dict[TP, int]:
        return {PROFILES: self.position} if PROFILES in partitions else {}

    async def seek_to_committed(self) -> dict[TP, int]:
        self.position = self.committed
        return {PROFILES: self.committed}

    async def seek_wait(self, places: dict[TP, int]) -> None:
        self.position = places[PROFILES]

    def assignment(self) -> set[TP]:
        return {PROFILES, CHANGELOG}


def with_app(folder: Path, body: Callable[[Any, Aiokafka], Awaitable[None]]) -> None:
    async def live() -> None:
        app = CommittedApp("merge", broker="kafka://nowhere", store="memory://", datadir=str(folder))
        app.tables.add(SafeTable(app, name="windows", partitions=1, schema=faust.Schema(), key_type=bytes))
        await asyncio.wait_for(body(app, app.consumer._thread), 10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(committed, "_Thread", Aiokafka)
        asyncio.run(live())


async def fetched(app: Any) -> list[int]:
    records = await app.consumer._getmany(app.consumer._get_active_partitions(), 1.0)
    return [record.offset for record in records.get(PROFILES, [])]


async def recovered(app: Any) -> None:
    """The end of Faust's ``Recovery.on_recovery_completed``."""
    app.consumer.resume_partitions({PROFILES})
    await app.consumer.perform_seek()
    app.flow_control.resume()  # empties the queues of the streams
    app.consumer.resume_flow()
    app.on_rebalance_end()


def test_no_profile_is_fetched_before_the_streams_take_them(tmp_path: Path) -> None:
    async def body(app: Any, thread: Aiokafka) -> None:
        app.consumer_generation_id = 1
        app.on_rebalance_start()
        app.consumer.resume_partitions({PROFILES})
        assert await fetched(app) == []
        await app.consumer.perform_seek()
        assert await fetched(app) == []
        assert thread.position == thread.committed
        await recovered(app)
        assert await fetched(app) == list(range(40, 50))
        app.on_rebalance_start()
        app.consumer_generation_id = 2  # a rebalance closes it
        assert await fetched(app) == []
        app.on_rebalance_end()  # the end of the one before, come late
        assert await fetched(app) == []
        await recovered(app)
        assert await fetched(app) == list(range(40, 50))

    with_app(tmp_path, body)


def test_partitions_paused_during_a_fetch_do_not_make_it_a_fetch_of_all(tmp_path: Path) -> None:
    async def body(app: Any, thread: Aiokafka) -> None:
        consumer = app.consumer
        consumer.resume_partitions({CHANGELOG})

        async def recovery_ends() -> None:
            consumer.pause_partitions({CHANGELOG})

        thread.meanwhile = recovery_ends
        assert await fetched(app) == []
        assert thread.position == 40
        assert await fetched(app) == []
        assert thread.asked == [{CHANGELOG}]

    with_app(tmp_path, body)


def test_what_a_fetch_from_before_a_rebalance_brings_is_put_back(tmp_path: Path) -> None:
    async def body(app: Any, thread: Aiokafka) -> None:
        app.consumer_generation_id = 1
        await recovered(app)

        async def rebalance() -> None:
            thread.meanwhile = None
            app.on_rebalance_start()
            app.consumer_generation_id = 2
            app.consumer.pause_partitions({PROFILES})

        thread.meanwhile = rebalance
        assert await fetched(app) == []
        assert thread.position == 40

    with_app(tmp_path, body)


def test_what_a_stream_skipped_is_acknowledged_but_not_committed(tmp_path: Path) -> None:
    async def body(app: Any, thread: Aiokafka) -> None:
        consumer = app.consumer
        app.topics._acking_topics.add("profiles")
        events = [
            SimpleNamespace(message=Message("profiles", 0, offset, 0.0, 0, None, None, b"", None, tp=PROFILES))
            for offset in range(40, 50)
        ]
        for event in events:
            consumer.ack(event.message)
        assert consumer._filter_committable_offsets([PROFILES]) == {}
        app.safe(events[:5])
        assert consumer._filter_committable_offsets([PROFILES]) == {PROFILES: 45}
        app.safe(events[:2])  # delivered again
        assert consumer._filter_committable_offsets([PROFILES]) == {PROFILES: 45}

    with_app(tmp_path, body)


def test_a_partition_is_read_through_when_all_that_was_handed_on_is_safe(tmp_path: Path) -> None:
    async def body(app: Any, thread: Aiokafka) -> None:
        app.consumer_generation_id = 1
        await recovered(app)
        assert app.behind("profiles", {0: 40})[0] > 0
        assert await fetched(app) == list(range(40, 50))
        events = [SimpleNamespace(message=SimpleNamespace(tp=PROFILES, offset=offset)) for offset in range(40, 50)]
        app.safe(events[:5])
        assert app.behind("profiles", {0: 45}) == {0: 0}
        assert app.behind("profiles", {0: 46}) == {0: 1}
        app.safe(events)
        assert app.behind("profiles", {0: 53})[0] > 0
        # what comes next are markers and rows of an aborted transaction
        thread.log, thread.position = [], 53
        assert await fetched(app) == []
        assert app.behind("profiles", {0: 53}) == {0: 0}
        assert app.behind("profiles", {0: 54})[0] > 0

    with_app(tmp_path, body)
