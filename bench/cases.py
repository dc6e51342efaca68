"""The throughput cases: one worker (or four) on a topic that is full. A case's output is the next one's input."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Message, Producer

from bench.cards import data as cards
from bench.cluster import BenchError, Census, Moving, Progress
from bench.plans import reading, renamed
from bench.processes import follow
from bench.workshop import Job, Workshop, followed, measure, result, run_copies
from penstock.codec.avro import AvroDecoder, AvroEncoder
from penstock.plan import Plan
from penstock.transport.transactions import PRODUCER


def fill_raw(shop: Workshop, plan: Plan, form: str) -> Census:
    """The fraud events on the plan's raw topic, once."""
    from pipelines.fraud.load import fill

    topic = plan.topic("raw").name
    if topic not in shop.known:
        shop.make(plan)
        shop.say(f"filling {topic}: {shop.events:,} events in {form}")
        kafka = {"bootstrap.servers": shop.cluster.bootstrap}
        ids = (plan.event.id, plan.label.id if plan.label else 0)
        fill(
            kafka, shop.events, plan.partitions, topic=topic, schema_ids=ids, form="json" if form == "JSON" else "avro"
        )
        shop.known[topic] = shop.cluster.count(topic, shop.events)
    return shop.known[topic]


def _counted(shop: Workshop, plan: Plan, outputs: list[str]) -> Callable[[], None]:
    def check() -> None:
        for topic in outputs:
            shop.known[topic] = shop.cluster.count(topic, shop.events)
        shop.cluster.count(plan.topic("dead").name, 0)

    return check


def _names(plan: Plan, *suffixes: str) -> list[str]:
    return [plan.topic(suffix).name for suffix in suffixes]


def ingest(shop: Workshop, form: str = "Avro") -> dict[str, Any]:
    """Raw events to valid ones."""
    plan = shop.fraud if form == "Avro" else renamed(shop.fraud, "fraud_json")
    raw = fill_raw(shop, plan, form)
    outputs = _names(plan, "events")
    job = Job(f"ingest, {form}", plan, "ingest", [raw], outputs, _counted(shop, plan, outputs))
    found = measure(shop, job)
    if form == "JSON":
        shop.drop([topic.name for topic in plan.topics])
    return found


def ingest_json(shop: Workshop) -> dict[str, Any]:
    """The same events as JSON."""
    return ingest(shop, "JSON")


def features(shop: Workshop) -> dict[str, Any]:
    """Two views, four windows, six columns; the service's row is all that is written."""
    plan = reading(shop.windows, "features.card", shop.fraud.topic("events").name)
    shop.make(plan)
    outputs = _names(plan, "features")
    job = Job("features, 6 columns", plan, "features.card", [events_of(shop)], outputs, _counted(shop, plan, outputs))
    found = measure(shop, job)
    shop.drop([topic.name for topic in plan.topics])
    return found


def features_all(shop: Workshop) -> dict[str, Any]:
    """As the fraud pipeline runs: an on-demand view as well, and a row for Feast's stores per view."""
    plan = shop.fraud
    outputs = list(plan.stage("features.card").outputs)
    title = "features, 10 columns and 2 view topics"
    job = Job(title, plan, "features.card", [events_of(shop)], outputs, _counted(shop, plan, outputs))
    return measure(shop, job)


def events_of(shop: Workshop) -> Census:
    """``fraud.events``, made by the service that makes it where no case has."""
    return _made(shop, "ingest", "events", lambda: fill_raw(shop, shop.fraud, "Avro"))


def features_of(shop: Workshop) -> Census:
    """``fraud.features``."""
    return _made(shop, "features.card", "features", lambda: events_of(shop))


def _made(shop: Workshop, stage: str, suffix: str, before: Callable[[], Census]) -> Census:
    topic = shop.fraud.topic(suffix).name
    if topic not in shop.known:
        source = before()
        shop.say(f"making {topic}")
        with shop.worker(shop.fraud, stage) as worker:
            followed(shop, [worker], shop.fraud.group(stage), [source])
        shop.known[topic] = shop.cluster.count(topic, shop.events)
    return shop.known[topic]


def inference(shop: Workshop, family: str = "mlp", title: str = "inference, network") -> dict[str, Any]:
    """Features to predictions, and to the facts that labels meet."""
    plan = shop.fraud
    source = features_of(shop)
    version = trained(shop, family)
    shop.serve(plan, version)
    outputs = _names(plan, "predictions", "outcomes")
    job = Job(title, plan, "inference", [source], outputs, _counted(shop, plan, outputs))
    return measure(shop, job)


def inference_trees(shop: Workshop) -> dict[str, Any]:
    """A hundred trees."""
    return inference(shop, "trees", "inference, 100 trees")


def trained(shop: Workshop, family: str) -> str:
    """The version of a model of this family; kept in the registry from the first time on."""
    if family in shop.versions:
        return shop.versions[family]
    shop.say(f"training: {family}")
    plan = shop.saved(shop.fraud, "fraud")
    code = (
        "import sys; from pathlib import Path; from penstock.plan import Plan; "
        "from pipelines.fraud.train import train; "
        "print(train(sys.argv[1], Plan.load(Path(sys.argv[2])), family=sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, shop.models, str(plan), family]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"training failed:\n{done.stderr}")
    shop.versions[family] = done.stdout.split()[-1]
    return shop.versions[family]


def monitor(shop: Workshop) -> dict[str, Any]:
    """Features, predictions and outcomes to partial profiles; it commits once a second, as it always does."""
    plan = shop.fraud
    wanted = _names(plan, "features", "predictions", "outcomes")
    if any(topic not in shop.known for topic in wanted):
        source, version = features_of(shop), trained(shop, "mlp")
        shop.serve(plan, version)
        with shop.worker(plan, "inference") as worker:
            followed(shop, [worker], plan.group("inference"), [source])
        for topic in wanted:
            shop.known[topic] = shop.cluster.count(topic, shop.events)
    outputs = _names(plan, "profiles")

    def check() -> None:
        counted = _profiled(shop, plan)
        if counted != shop.events:
            raise BenchError(f"{outputs[0]} counts {counted} rows of features, and there were {shop.events}")

    inputs = [shop.known[topic] for topic in wanted]
    return measure(shop, Job("monitor", plan, "monitor", inputs, outputs, check))


def _profiled(shop: Workshop, plan: Plan) -> int:
    """Rows of features that the profiles account for, by the service's first column."""
    value = plan.topic("profiles").value
    assert value is not None
    decoder = AvroDecoder(value.avro, lambda number: plan.schemas[number])
    column = plan.service.columns[0].name
    total = 0
    for messages in shop.cluster.read(plan.topic("profiles").name):
        rows = decoder.decode(list(map(Message.value, messages))).rows
        counted = zip(rows["feature"].to_pylist(), rows["version"].to_pylist(), rows["rows"].to_pylist(), strict=True)
        total += sum(n for feature, version, n in counted if feature == column and not version)
    return total


def card_windows(shop: Workshop) -> dict[str, Any]:
    """The job of other stream processors; all six values of every row are compared with the reference."""
    plan = shop.cards
    shop.make(plan)
    topic = plan.topic("events").name
    shop.say(f"filling {topic}: {shop.events:,} events")
    _fill_cards(shop, plan)
    source = shop.cluster.count(topic, shop.events)
    wanted = cards.reference(shop.events)
    outputs = _names(plan, "features")

    def check() -> None:
        found = _card_rows(shop, plan)
        _compare(found, wanted)

    found = measure(shop, Job("card windows", plan, "features.card", [source], outputs, check))
    shop.drop([topic.name for topic in plan.topics])
    return found


def _fill_cards(shop: Workshop, plan: Plan) -> None:
    value = plan.topic("events").value
    assert value is not None
    encode = AvroEncoder(value.avro, value.id).encode
    settings = {**PRODUCER, "linger.ms": 50, "enable.idempotence": True}
    producer = Producer({"bootstrap.servers": shop.cluster.bootstrap, **settings})
    topic = plan.topic("events").name
    for rows in cards.events(shop.events):
        for key, payload in zip(rows["card_id"].to_pylist(), encode(rows).to_pylist(), strict=True):
            while True:
                try:
                    producer.produce(topic, payload, key)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)
    producer.flush()


def _card_rows(shop: Workshop, plan: Plan) -> dict[str, np.ndarray[Any, Any]]:
    """The six values by name: the card is the record's key, its time the envelope's."""
    value = plan.topic("features").value
    assert value is not None
    decoder = AvroDecoder(value.avro, lambda number: plan.schemas[number])
    columns: dict[str, list[Any]] = {name: [] for name in ("card_id", "ts", "amount", "count_1h", "sum_1h", "max_1h")}
    for messages in shop.cluster.read(plan.topic("features").name):
        decoded = decoder.decode(list(map(Message.value, messages)))
        if decoded.bad:
            raise BenchError(f"{len(decoded.bad)} rows of {plan.topic('features').name} cannot be decoded")
        rows = decoded.rows
        keys = np.array(list(map(Message.key, messages)), "S7")
        columns["card_id"].append(np.char.lstrip(keys, b"c").astype(np.int64))
        columns["ts"].append(rows["_event_time"].cast(pa.int64()).to_numpy())
        columns["amount"].append(rows["amount_now"].to_numpy(zero_copy_only=False))
        for name in ("count_1h", "sum_1h", "max_1h"):
            columns[name].append(rows[name].to_numpy(zero_copy_only=False))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _compare(found: dict[str, np.ndarray[Any, Any]], wanted: dict[str, np.ndarray[Any, Any]]) -> None:
    n = len(wanted["ts"])
    event = (found["ts"] - cards.EPOCH_MS) // cards.STEP_MS
    if len(event) != n or len(np.unique(event)) != n:
        raise BenchError(f"card windows: {len(event)} rows of {len(np.unique(event))} events, and {n} were to come")
    for name, values in wanted.items():
        # sums are added up in another order
        close = np.isclose(found[name], values[event], rtol=0, atol=1e-3 if name == "sum_1h" else 0)
        if not close.all():
            at = int(np.flatnonzero(~close)[0])
            raise BenchError(
                f"card windows: {name} is wrong in {int((~close).sum())} of {n} rows; "
                f"event {event[at]} has {found[name][at]}, not {values[event][at]}"
            )


STAGES = ("ingest", "features.card", "inference", "monitor")


def together(shop: Workshop) -> dict[str, Any]:
    """All four services at once, from raw to predictions and profiles, beside four bare copies in a row."""
    plan = shop.fraud
    raw = fill_raw(shop, plan, "Avro")
    version = trained(shop, "mlp")
    outputs = [topic.name for topic in plan.topics if topic.name != raw.topic]
    title = "four services, raw to predictions"
    pairs = []
    for number in range(shop.repeats):
        shop.say(f"{title}: four bare copies")
        bare = run_copies(shop, [raw], len(STAGES))
        shop.say(f"{title}: run {number + 1} of {shop.repeats}")
        shop.cluster.forget([plan.group(stage) for stage in STAGES])
        shop.empty(outputs)
        shop.serve(plan, version)
        with ExitStack() as stack:
            workers = [shop.worker(plan, stage) for stage in STAGES]
            for worker in reversed(workers[1:]):
                stack.enter_context(worker)
            for worker in workers[1:]:
                worker.wait_ready()
            stack.enter_context(workers[0])
            first = Progress(shop.cluster, plan.group("ingest"), [raw])
            others = [
                Moving(shop.cluster, plan.group(stage), [i.topic for i in plan.stage(stage).inputs], plan.partitions)
                for stage in STAGES[1:]
            ]
            ours = follow(workers, first, others)
        shop.say(f"{title}: counting")
        _counted(shop, plan, _names(plan, "events", "features", "predictions"))()
        if (counted := _profiled(shop, plan)) != shop.events:
            raise BenchError(f"the profiles count {counted} rows of features, and there were {shop.events}")
        pairs.append((ours, bare))
    return result(title, pairs)
