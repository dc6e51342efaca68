"""What a run is told by: counts of fates, the summary and its verdict, the plots, the view on a terminal."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.local import offsets
from penstock.local.drift_history import DriftHistory
from penstock.local.live import view
from penstock.local.offsets import FAR, OffsetReader, Offsets, Watch
from penstock.local.report import Run, render
from penstock.local.resolve import BrokerHandle
from penstock.local.scrape import Sample, by_label, parse
from penstock.local.screen import Lines, Status
from penstock.local.summary import Summary, page, summarize
from penstock.local.tail import Scoreboard, Tail
from penstock.local.verify_counts import Counts, Joined, _Fates, join, late_rows
from penstock.plan import Plan, TopicPlan
from penstock.records import NO_TIME, Partition
from penstock.settings import Settings
from penstock.topics import admin_client
from penstock.transport.protocol import Position
from tests.unit.features_plan import plan as visits

GOOD = Summary(
    events=10, dead=1, dropped=2, predictions=7, late_rows=0, lost=0, duplicated=0, labels_joined=6, auc=0.9,
    baseline_auc=0.8, alerts=0, events_per_second=100.0, e2e_p50_ms=50.0, e2e_p99_ms=90.0, peak_rss_mb=900.0,
    broker="embedded",
)  # fmt: skip
OUTCOMES = pa.schema(
    [
        ("kind", pa.string()), ("label_key", pa.string()), ("event_time", pa.timestamp("ms")), ("score", pa.float64()),
        ("label", pa.string()), ("baseline", pa.float64()), ("value", pa.float64()),
    ]
)  # fmt: skip


def outcomes(predicted: list[tuple[str, int, float, float]], labels: list[tuple[str, float]]) -> pa.RecordBatch:
    rows = [
        {"kind": "prediction", "label_key": key, "event_time": time, "score": score, "baseline": baseline,
         "label": str(int(score >= 0.5)), "value": None}
        for key, time, score, baseline in predicted
    ]  # fmt: skip
    rows += [
        {"kind": "label", "label_key": key, "event_time": 0, "score": None, "baseline": None, "label": None, "value": v}
        for key, v in labels
    ]
    return pa.RecordBatch.from_pylist(rows, schema=OUTCOMES)


def counts(joined: Joined) -> Counts:
    return Counts(
        events=10, predictions=7, dead=1, dropped=2, lost=0, duplicated=0, late_rows=0, alerts=1,
        dead_reasons=Counter({"bad magic": 1}), dropped_reasons=Counter({"no departure": 2}), dead_elsewhere=Counter(),
        broken={"wrong <magic>": Counter({"bad magic": 1})}, alerted=[], first=1_000, last=3_000,
        appended=np.array([1_500, 2_500, 3_000]), joined=joined,
    )  # fmt: skip


def two_months() -> Joined:
    rng = np.random.default_rng(7)
    times = np.sort(rng.integers(1_370_000_000_000, 1_375_000_000_000, 4_000))
    truth = (rng.random(4_000) < 0.3).astype(np.float64)
    scores = np.clip(truth * 0.3 + rng.random(4_000) * 0.7, 0, 1)
    return Joined(times, scores, rng.random(4_000), truth, (scores > 0.5) == (truth > 0.5))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_lost_and_duplicated_are_what_a_dict_of_fates_says(times: list[int], data: st.DataObject) -> None:
    """``times[i]``: how many fates message i of a partition has; they come in any order and in any number of parts."""
    fates = [offset for offset, n in enumerate(times) for _ in range(n)]
    shuffled = data.draw(st.permutations(fates))
    cut = data.draw(st.integers(0, len(fates)))
    found = _Fates({0: len(times)})
    for part in (shuffled[:cut], shuffled[cut:]):
        found.add(np.zeros(len(part), np.int64), np.array(part, np.int64))
    lost, duplicated = found.judge({0: np.arange(len(times))})
    assert lost == times.count(0)
    assert duplicated == sum(n - 1 for n in times if n > 1)


def test_a_fate_of_a_message_that_was_never_sent_counts_as_duplicated() -> None:
    found = _Fates({0: 3, 1: 0})
    found.add(np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 9, 0]))
    raw = {0: np.array([0, 2]), 1: np.array([], np.int64)}  # offset 1 is a hole in the log
    assert found.judge(raw) == (0, 3)


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(0, 50))
def test_late_rows_are_what_a_loop_with_a_watermark_counts(times: list[int], lateness: int) -> None:
    late, watermark = 0, times[0]
    for time in times:
        late += time < watermark - lateness
        watermark = max(watermark, time)
    assert late_rows(np.array(times), lateness) == late


def test_predictions_meet_their_labels_by_key_whichever_came_first() -> None:
    first = outcomes([("b", 20, 0.9, 5.0)], [("a", 0.0), ("x", 1.0)])
    then = outcomes([("a", 10, 0.2, 1.0), ("c", 30, 0.6, 2.0)], [("b", 1.0)])
    joined = join([first, then])
    assert joined.times.tolist() == [10, 20]
    assert joined.truth.tolist() == [0.0, 1.0]
    assert joined.scores.tolist() == [0.2, 0.9]
    assert joined.correct.tolist() == [True, True]
    assert joined.auc() == joined.baseline_auc() == 1.0
    board = Scoreboard()
    for batch in (first, then):
        board.add(batch)
    assert len(board) == 2
    assert board.results() == {"accuracy": 1.0, "majority": 0.5, "auc": 1.0, "baseline_auc": 1.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lost": 1}, "lost is 1"),
        ({"duplicated": 2}, "duplicated is 2"),
        ({"late_rows": 3}, "late_rows is 3"),
        ({"auc": 0.8}, "does not beat"),
        ({"auc": None}, "no AUC"),
        ({"events": 11}, "events are 11"),
    ],
)
def test_a_run_that_is_not_as_promised_says_which_number_it_is(change: dict[str, float | None], named: str) -> None:
    assert GOOD.failures() == []
    (failure,) = GOOD.model_copy(update=change).failures()
    assert named in failure
    assert named in page(GOOD.model_copy(update=change))


def test_the_summary_is_made_from_counts_and_has_the_promised_keys() -> None:
    plan = visits()
    tail = Tail(plan, Settings())
    tail.latency.at.append(np.arange(100.0))
    tail.latency.ms.append(np.arange(100.0))
    summary = summarize(counts(two_months()), tail, 123.456, "embedded")
    assert list(json.loads(summary.model_dump_json())) == [
        "events", "dead", "dropped", "predictions", "late_rows", "lost", "duplicated", "labels_joined", "auc",
        "baseline_auc", "alerts", "events_per_second", "e2e_p50_ms", "e2e_p99_ms", "peak_rss_mb", "broker",
    ]  # fmt: skip
    assert summary.events_per_second == 5.0
    assert (summary.e2e_p50_ms, summary.e2e_p99_ms) == (49.5, 98.0)
    assert summary.labels_joined == 4_000


def test_the_report_is_one_page_with_plots_and_no_markup_from_outside() -> None:
    joined = two_months()
    tail = Tail(visits(), Settings())
    tail.latency.at.append(np.linspace(0, 10, 500))
    tail.latency.ms.append(np.linspace(10, 90, 500))
    drift = DriftHistory(["distance"], [1_370_000_000_000, 1_370_604_800_000], np.array([[0.1, np.nan]]))
    text = render(Run("Penstock", "m 1.0.0", GOOD, counts(joined), tail.latency, drift))
    assert text.count("<svg") == 6
    assert "wrong &lt;magic&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "nothing lost" in text


def test_metrics_are_read_without_buckets_and_with_escaped_labels() -> None:
    text = (
        "# HELP penstock_dead_letters x\n"
        'penstock_dead_letters_total{reason="bad \\"magic\\"",stage="ingest"} 3.0\n'
        'penstock_dead_letters_total{reason="empty",stage="ingest"} 5.0\n'
        'penstock_dead_letters_created{reason="empty",stage="ingest"} 1.7e+09\n'
        'penstock_batch_rows_bucket{le="1.0",stage="ingest"} 9.0\n'
        "process_cpu_seconds_total 4.0\n"
        'penstock_ready{stage="ingest"} 1.0\n'
    )
    samples = parse(text)
    assert by_label(samples, "penstock_dead_letters", "reason") == {"empty": 5.0, 'bad "magic"': 3.0}
    assert Sample("penstock_ready", {"stage": "ingest"}, 1.0) in samples
    assert len(samples) == 3


def looked(plan: Plan, ends: int, committed: int | None, watermark: int = 500) -> Offsets:
    stage = plan.stages[0]
    topic = stage.inputs[0].topic
    at = {} if committed is None else {Partition(topic, 0): Position(committed, watermark)}
    return Offsets(1.0, {Partition(topic, 0): ends}, {stage.name: at})


@pytest.mark.parametrize(
    ("ends", "committed", "expected"),
    [
        (10, 4, 500),  # lag: as far as it has committed
        (10, None, None),  # nothing committed yet: nothing is known
        (10, 10, FAR),
        (10, 9, FAR),  # the last offset is a transaction's marker
        (0, None, FAR),
    ],
)
def test_the_watermark_of_a_stage_counts_only_partitions_with_lag(
    ends: int, committed: int | None, expected: int | None
) -> None:
    plan = visits()
    assert looked(plan, ends, committed).watermark(plan.stages[0]) == expected


def test_a_marker_of_each_writer_behind_the_last_row_is_no_lag() -> None:
    plan = visits()
    look = looked(plan, 10, 8)
    stage, (topic, *_) = plan.stages[0], [source.topic for source in plan.stages[0].inputs]
    assert look.lag(stage)[topic] == 2
    two = replace(look, markers={topic: 2})
    assert (two.lag(stage)[topic], two.watermark(stage)) == (0, FAR)


@pytest.mark.parametrize(("sent", "expected"), [(10, 900), (11, None)])
def test_what_is_on_its_way_to_the_log_holds_the_replay_back(sent: int, expected: int | None) -> None:
    plan = visits()
    stage = plan.stages[0]
    watch = Watch(
        plan, Settings(bootstrap_servers="127.0.0.1:1"), [stage], [stage.inputs[0].topic], lambda: (sent, 900)
    )
    assert watch._judge(looked(plan, 10, 10), sent, 900) == expected


@pytest.mark.kafka
def test_an_offset_that_another_tool_committed_has_no_watermark(broker: BrokerHandle, kafka_topic_prefix: str) -> None:
    topic = TopicPlan(name=f"{kafka_topic_prefix}.in", partitions=1)
    (stage, *_) = visits().stages
    stage = stage.model_copy(update={"inputs": (stage.inputs[0].model_copy(update={"topic": topic.name}),)})
    plan = visits().model_copy(update={"pipeline": kafka_topic_prefix, "topics": (topic,), "stages": (stage,)})
    settings = Settings(bootstrap_servers=broker.bootstrap)
    admin = admin_client(settings)
    for made in admin.create_topics([NewTopic(topic.name, 1, 1)]).values():
        made.result(30)
    at = TopicPartition(topic.name, 0, 3, metadata="set by kafka-ui")
    tool = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": plan.group(stage.name)})
    deadline = monotonic() + 30
    while monotonic() < deadline:  # the group's coordinator may not know a new topic yet
        with suppress(KafkaException):
            tool.commit(offsets=[at], asynchronous=False)
            break
    tool.close()
    found = OffsetReader(plan, settings).read().committed[stage.name]
    assert found == {Partition(topic.name, 0): Position(3, NO_TIME)}


class _Admin:
    """Answers ``list_offsets`` with an error, or with end 7."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    def list_offsets(self, asked: Mapping[TopicPartition, object], **_: object) -> dict[TopicPartition, Future[object]]:
        answers: dict[TopicPartition, Future[object]] = {at: Future() for at in asked}
        for answer in answers.values():
            if self._code is None:
                answer.set_result(SimpleNamespace(offset=7))
            else:
                answer.set_exception(KafkaException(KafkaError(self._code)))
        return answers


@pytest.mark.parametrize("code", [KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.FENCED_LEADER_EPOCH])
def test_the_ends_of_topics_made_just_now_are_asked_for_again_by_a_new_client(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = iter([_Admin(code), _Admin(None)])
    monkeypatch.setattr(offsets, "admin_client", lambda _: next(clients))
    ends = OffsetReader(visits(), Settings()).ends()
    assert ends.keys() == {Partition(t.name, n) for t in visits().topics for n in range(t.partitions)}
    assert set(ends.values()) == {7}


class _Sent:
    events, labels, time = 30, 12, 1_370_000_000_000


def test_the_view_shows_rates_lag_and_what_is_known_so_far() -> None:
    plan = visits()
    raw = TopicPlan(name=f"{plan.pipeline}.raw", partitions=1)
    plan = plan.model_copy(update={"stages": plan.stages[:1], "topics": (raw, *plan.topics)})
    status = Status(plan, 1_370_000_000_000, 1_370_100_000_000, 100)
    tail = Tail(plan, Settings())
    tail.latency.at.append(np.zeros(10))
    tail.latency.ms.append(np.full(10, 42.0))
    predicted = [("a", 1, 0.2, 5.0), ("b", 2, 0.9, 1.0), ("c", 3, 0.6, 3.0), ("d", 4, 0.7, 2.0)]
    tail.scores.add(outcomes(predicted, [("a", 0.0), ("b", 1.0), ("c", 1.0), ("d", 1.0), ("e", 0.0)]))
    tail.scores.add(outcomes([("e", 5, 0.65, 4.0)], []))
    topics = {Partition(t.name, n): 0 for t in plan.topics for n in range(t.partitions)}
    stage = plan.stages[0]
    entry = Partition(stage.inputs[0].topic, 0)
    status.update(Offsets(1.0, topics, {stage.name: {}}), _Sent(), tail)
    status.update(Offsets(3.0, topics | {entry: 4_000}, {stage.name: {entry: Position(1_000, 0)}}), _Sent(), tail)
    status.samples = [
        Sample("penstock_dead_letters", {"reason": "bad magic", "stage": "ingest"}, 3.0),
        Sample("penstock_drift", {"feature": "distance", "statistic": "psi"}, 0.31),
    ]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(view(status))
    shown = console.export_text()
    for part in ("2,000/s", "lag 3,000", "42 ms", "bad magic", "distance", "0.31", "42 of 100 messages", "2013-05-31"):
        assert part in shown
    so_far = " ".join(shown.replace("│", " ").split())
    # of 6 pairs the model ranks 5 right, the baseline 0; of 5 labels it has 4, and 3 are of the commoner kind
    for part in ("AUC (baseline) 0.833 (0.000)", "accuracy (commoner) 0.800 (0.600)", "labels 5"):
        assert part in so_far
    told: list[str] = []
    lines = Lines(told.append, every_s=60.0)
    lines.show(status)
    lines.show(status)
    assert len(told) == 1
    assert "3 dead letters" in told[0]
    assert "AUC 0.833, baseline 0.000" in told[0]
    assert f"{stage.name} 3000" in told[0]
