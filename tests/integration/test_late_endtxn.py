"""An EndTxn that comes late must not decide the transaction that is open then. The same trials without the guard show
that it would; `python -m tests.integration.late_endtxn ROUNDS` counts more of them.
"""

from collections.abc import Iterator
from contextlib import closing

import pytest

from penstock.dead.sending import Record, ReplayStopped, Sender
from penstock.local.broker import EmbeddedBroker
from penstock.records import Partition
from penstock.settings import Settings
from penstock.transport.kafka import KafkaTransport
from penstock.transport.librdkafka import KafkaFault
from penstock.transport.protocol import Fenced, Position, TransactionAborted
from tests.chaos.proxy import BrokerBehind
from tests.conftest import read_all_committed
from tests.contract.worlds import Recorder
from tests.integration.late_endtxn import ENDINGS, WAYS, Ending, HoldingProxy, Way, attempts, topics_on
from tests.integration.pipeline_world import until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

Place = tuple[HoldingProxy, EmbeddedBroker]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("late")
    with HoldingProxy() as proxy, BrokerBehind(folder, proxy) as broker:
        yield proxy, broker


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("held", ENDINGS)
def test_a_late_endtxn_decides_no_later_transaction(place: Place, held: Ending, way: Way) -> None:
    proxy, broker = place
    trials = 5 if way == "reset" else 2
    assert attempts(proxy, broker.bootstrap, trials, way, held, guarded=True) == {"right": trials, "refused": trials}


def test_a_replay_of_dead_letters_ends_where_a_late_endtxn_may_come(place: Place) -> None:
    proxy, broker = place
    (topic,) = topics_on(broker.bootstrap, "replayed")
    settings = Settings(bootstrap_servers=f"127.0.0.1:{proxy.port}")
    with closing(Sender(settings, "replay")) as sender:
        sender.send([Record(topic, None, b"first", [], "0@0")])
        proxy.hold = "reset"
        with pytest.raises(ReplayStopped, match="asked for twice"):
            sender.send([Record(topic, None, b"second", [], "0@1")])
    with closing(Sender(settings, "replay")) as sender:
        assert proxy.release() != 0
        sender.send([Record(topic, None, b"third", [], "0@2")])
    assert [message.value() for message in read_all_committed(broker.bootstrap, topic)] == [
        b"first",
        b"second",
        b"third",
    ]


@pytest.mark.parametrize("held", ENDINGS)
def test_without_the_guard_it_would(place: Place, held: Ending) -> None:
    proxy, broker = place
    found = attempts(proxy, broker.bootstrap, 3, "reset", held, guarded=False)
    assert found["decided by the late one"] == 3
    assert found["refused"] == 0


def test_while_nothing_is_lost_on_the_way_the_producer_stays(place: Place) -> None:
    _, broker = place
    (topic,) = topics_on(broker.bootstrap, "well")
    transport = KafkaTransport(Settings(bootstrap_servers=broker.bootstrap), topic, "test")
    producer = transport._transactions._producer
    recorder = Recorder()
    try:
        transport.subscribe([topic], recorder)
        until("an assignment", lambda: transport.poll(1, 0.05) and recorder.owned)
        for number in range(60):
            transport.send(topic, [None], [b"row"])
            if number % 3 == 0:
                transport._transactions._producer.flush(10)
                transport.abort()
            else:
                transport.commit({Partition(topic, 0): Position(number)})
            assert transport._transactions._producer is producer
    finally:
        transport.close()


def test_a_commit_that_was_sent_twice_and_then_refused_may_have_been_done_and_is_not_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, broker = place
    (topic,) = topics_on(broker.bootstrap, "undecided")
    transport = KafkaTransport(Settings(bootstrap_servers=broker.bootstrap), topic, "test")

    def refused(_: float) -> None:
        raise KafkaFault(1, "the broker refused it", abortable=True)

    monkeypatch.setattr(transport._transactions._producer, "commit", refused)
    try:
        transport.send(topic, [None], [b"row"])
        with pytest.raises(TransactionAborted):
            transport.commit({})
        transport.abort()
        transport.send(topic, [None], [b"row"])
        monkeypatch.setattr(transport._transactions._producer.traffic, "sent", lambda api: 2)
        with pytest.raises(Fenced):
            transport.commit({})
    finally:
        transport.close()
