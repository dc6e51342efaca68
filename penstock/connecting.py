"""Makes a client of Kafka from settings: what the client does not take of them is said of the settings."""

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaException

from penstock.settings import refused


@contextmanager
def connecting() -> Iterator[None]:
    """A client is made in here, which asks nothing of a broker yet. Raises ``InvalidSettings``."""
    try:
        yield
    except KafkaException as error:
        raise refused(error.args[0].str()) from None
