"""Which topic of which cluster a name stands for: what is kept outside of Kafka must know when that has changed."""

from collections.abc import Mapping

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from penstock.transport.protocol import Unavailable


def identity(client: Mapping[str, str], topic: str, wait_s: float) -> str:
    """The ids that the broker gave to cluster and topic. ``client``: configuration of a client. Raises
    ``Unavailable``."""
    admin = AdminClient({**client, "log_level": "0"})  # it would write past the log, and what fails is raised
    try:
        cluster = admin.describe_cluster(request_timeout=wait_s).result()
        described = admin.describe_topics(TopicCollection([topic]), request_timeout=wait_s)[topic].result()
    except KafkaException as error:
        raise Unavailable(f"Kafka was asked which topic {topic!r} is: {error.args[0].str()}") from error
    return f"{cluster.cluster_id}/{described.topic_id}"
