"""The command lines and the server.properties by which Kafka is formatted and run on one machine.

Everything is relative to the data folder, which is the processes' working directory: a properties file is Latin-1
and splits paths at commas, a folder's name need not mind either.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.local.class_archive import ClassArchive, class_archive
from penstock.local.jars import Progress, cache_dir, fetch_jars
from penstock.local.java import Java, find_java

PROPERTIES_NAME = "server.properties"
LOG_DIR = "log"
LARGEST_RECORD = 16 * 1024 * 1024

# Small, and open to what the tests ask of topics and groups. The long broker session keeps a starved or paused broker
# from being fenced by itself; no restart waits for it, see recovery.py.
PROPERTIES = f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{{controller_port}}
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}}
controller.listener.names=CONTROLLER
log.dirs={LOG_DIR}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.session.timeout.ms=6000
controlled.shutdown.enable=true
broker.session.timeout.ms=30000
message.max.bytes={LARGEST_RECORD}
replica.fetch.max.bytes={LARGEST_RECORD}
log.cleaner.dedupe.buffer.size=2097152
num.network.threads=2
num.io.threads=2
"""

RECOVERY_PROPERTIES_NAME = "recovery.properties"
RECOVERY_PROPERTIES = f"""\
process.roles=controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{{controller_port}}
listeners=CONTROLLER://127.0.0.1:{{controller_port}}
controller.listener.names=CONTROLLER
log.dirs={LOG_DIR}
broker.session.timeout.ms=200
broker.heartbeat.interval.ms=50
"""


@dataclass(frozen=True)
class KafkaServer:
    """Kafka's jars and the Java to run them with; `archive` makes the start faster where there is one."""

    java: Java
    jars: Sequence[Path]
    archive: ClassArchive | None

    def format_command(self, cluster_id: str) -> list[str]:
        """Formats the data folder; `--ignore-formatted` lets it finish what an earlier, interrupted call began."""
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster_id, "-c", PROPERTIES_NAME]
        return [*self._java("-XX:TieredStopAtLevel=1", *self.shared_classes), *tool]

    def run_command(self, mark: str, heap_mb: int, fast_start: bool, class_flags: Sequence[str]) -> list[str]:
        tiers = ["-XX:TieredStopAtLevel=1"] if fast_start else []
        flags = ["-Xms64m", f"-Xmx{heap_mb}m", "-XX:+ExitOnOutOfMemoryError", *tiers, *class_flags, mark]
        return [*self._java(*flags), "kafka.Kafka", PROPERTIES_NAME]

    def recovery_command(self, mark: str) -> list[str]:
        """Runs the controller alone, telling what it does."""
        flags = ["-XX:TieredStopAtLevel=1", *self.shared_classes, mark]
        flags.append("-Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller=info")
        return [*self._java(*flags), "kafka.Kafka", RECOVERY_PROPERTIES_NAME]

    @property
    def shared_classes(self) -> list[str]:
        return self.archive.flags() if self.archive else []

    def _java(self, *flags: str) -> list[str]:
        logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
        class_path = os.pathsep.join(map(str, self.jars))
        always = ["-XX:+UseSerialGC", "-XX:-UsePerfData", *logging]
        return [str(self.java.executable), *always, *flags, "-cp", class_path]


def find_server(progress: Progress | None = None) -> KafkaServer:
    """Kafka ready to run; raises `JarsUnavailable` or `JavaNotFound` when the machine lacks what it needs."""
    java = find_java()
    jars = fetch_jars(progress)
    return KafkaServer(java, jars, class_archive(java, jars, cache_dir() / "classes"))
