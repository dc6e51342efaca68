"""What the merge does with a list of events and with the passing of event time: everything but the Faust app itself."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from penstock import telemetry
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.plan import Plan, PlanError
from penstock.profiles.rows import ProfileRow, from_arrow
from penstock.schemas.registry import TransientLookupError
from penstock.settings import Settings
from penstock.worker import largest_message, schema_lookup
from penstock_monitor.evaluate import Alert, judge
from penstock_monitor.publish import Gauges, alert_rows
from penstock_monitor.references import ReferenceReader
from penstock_monitor.windows import Window, Windows

log = logging.getLogger(__name__)

LONGEST_SEND_S = 30.0
"""As long as a commit of any other worker may take."""

Waiting = Callable[[str, str | None], None]


class Merge:
    """Everything between a list of events and the table: no topic is touched here except through ``table`` and
    ``alerts``. ``waiting`` is told what is missing and why, and None when it is there.
    """

    def __init__(self, plan: Plan, settings: Settings, table: Any, alerts: Any, waiting: Waiting) -> None:
        monitors = plan.monitors
        horizon = plan.label.horizon_ms if plan.label is not None else 0
        self.windows = Windows(monitors.window_ms, plan.lateness_ms, horizon)
        self._plan, self._table, self._alerts, self._waiting = plan, table, alerts, waiting
        value = plan.topic("profiles").value
        alert = plan.topic("alerts").value
        if value is None or alert is None:
            raise PlanError(f"plan of {plan.pipeline!r}: its profiles and alerts have no schema. Compile it again")
        self._decoder = AvroDecoder(value.avro, schema_lookup(plan, settings), largest_message(plan))
        self._encoder = AvroEncoder(alert.avro, alert.id)
        self._reader = ReferenceReader(plan, settings)
        self._gauges = Gauges(plan)
        self._lock = asyncio.Lock()
        self._recovered = False

    def recovered(self) -> None:
        """The table was read back from its changelog.

        It is again after every rebalance, perhaps while the newest values are on their way to the changelog; the
        windows here are those of the only worker, so they stay.
        """
        if self._recovered:
            return
        self._recovered = True
        self.windows.load(self._table.data.values())
        log.info("%d windows read back", len(self.windows))

    async def add(self, events: Sequence[Any]) -> None:
        """Merge framed partials. Returns when the changelog has the new counts, so that the events are safe."""
        rows = await self._decode(events)
        async with self._lock:
            added = self.windows.add(rows)
            if added.left_out:
                log.warning("%d profiles were left out: too old, or cut at other bins", added.left_out)
            if added.late:
                log.info("%d profiles came after their window was judged for good: only counted", added.late)
            await self._keep(_saved(added.changed.values()))
        # counted once they are safe: a crash before would count them again
        self._gauges.count(added.rows)

    async def close(self, watermark: int, *, stopped: bool) -> None:
        """Close what is due: metrics, alerts, and the windows' verdicts into the table.

        ``watermark``: ms since epoch, up to which all partials of all sources were added; ``stopped``: no more come.
        """
        async with self._lock:
            self.windows.watermark = max(self.windows.watermark, watermark)
            due = self.windows.due(stopped=stopped)
            if due:
                try:
                    references = await asyncio.to_thread(self._reader.read)
                except OSError as error:
                    log.warning("windows stay open, for the model registry cannot be read: %s", error)
                    return
                alerts = judge(due, references, self._plan.monitors, self.windows.before)
                self.windows.close(due)
                self._gauges.show(due, references)
                await self._send(alerts)
                await self._keep(_saved(due))
            gone = self.windows.forget()
            if gone:
                await self._keep((window.key.encode(), _partition(window), None) for window in gone)

    async def _keep(self, changes: Iterable[tuple[bytes, int, bytes | None]]) -> None:
        """Raises ``TimeoutError``, which ends the worker: Faust's producer goes on trying for twenty minutes."""
        async with asyncio.timeout(LONGEST_SEND_S):
            await self._table.keep(changes)

    async def _decode(self, events: Sequence[Any]) -> list[tuple[ProfileRow, int, int]]:
        while True:
            try:
                decoded = self._decoder.decode([event.value for event in events])
                break
            except TransientLookupError as error:
                log.warning("schemas cannot be looked up, trying again: %s", error)
                self._waiting("schemas", str(error))
                await asyncio.sleep(1.0)
        self._waiting("schemas", None)
        for place, bad in decoded.bad.items():
            message = events[place].message
            log.error("%s/%d@%d is no profile: %s", message.topic, message.partition, message.offset, bad.message)
        places = decoded.index.tolist()
        messages = [events[place].message for place in places]
        return [
            (row, message.partition, message.offset)
            for row, message in zip(from_arrow(decoded.rows), messages, strict=True)
        ]

    async def _send(self, alerts: Sequence[Alert]) -> None:
        """At least once, before the windows say that they were sent."""
        if not alerts:
            return
        values = self._encoder.encode(alert_rows(alerts)).to_pylist()
        sent = [
            self._alerts.send_soon(key=_alert_key(alert), value=value)
            for alert, value in zip(alerts, values, strict=True)
        ]
        async with asyncio.timeout(LONGEST_SEND_S):
            await asyncio.gather(*sent)
        for alert in alerts:
            window = alert.finding.window
            window.alerted.append(alert.finding.kind)
            telemetry.ALERTS.labels(window.model, alert.finding.kind).inc()
            log.info("alert: %s", alert.finding.message)


def _saved(windows: Iterable[Window]) -> Iterator[tuple[bytes, int, bytes | None]]:
    for window in windows:
        yield window.key.encode(), _partition(window), window.save()


def _partition(window: Window) -> int:
    """All partials of a window have one key, so they come from one partition; the changelog has its value in the
    same.
    """
    return max(window.applied)


def _alert_key(alert: Alert) -> bytes:
    window = alert.finding.window
    return f"{window.model}|{window.version}|{window.feature}".encode()
