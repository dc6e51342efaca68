"""An EndTxn that comes late must not decide the transaction that is open then. The same trials without the guard show
that it would; `python -m tests.integration.late_endtxn TRIALS` counts more of them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.local.broker import EmbeddedBroker
from penstock.transport import kafka
from penstock.transport.kafka import KafkaTransport
from penstock.transport.librdkafka import KafkaFault
from penstock.transport.protocol import Fenced
from tests.chaos.proxy import BrokerBehind
from tests.integration.late_endtxn import Ending, HoldingProxy, Way, attempts

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

Place = tuple[HoldingProxy, EmbeddedBroker]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("late")
    with HoldingProxy() as proxy, BrokerBehind(folder, proxy) as broker:
        yield proxy, broker


@pytest.mark.parametrize("way", ["reset", "time-out"])
@pytest.mark.parametrize("held", ["commit", "abort"])
def test_a_late_endtxn_decides_no_later_transaction(place: Place, held: Ending, way: Way) -> None:
    proxy, broker = place
    trials = 5 if way == "reset" else 2
    assert attempts(proxy, broker.bootstrap, trials, way, held, guarded=True) == {"right": trials, "refused": trials}


@pytest.mark.parametrize("held", ["commit", "abort"])
def test_without_the_guard_it_would(place: Place, held: Ending) -> None:
    proxy, broker = place
    found = attempts(proxy, broker.bootstrap, 3, "reset", held, guarded=False)
    assert found["decided by the late one"] == 3
    assert found["refused"] == 0
