"""Lets the cluster know, before a broker that was killed starts again, that its former self is gone.

Otherwise Kafka loses commits (4.3.1, any transaction.version): the restarted broker first acts on its old, still valid
registration, its transaction coordinator finds a transaction whose markers are unwritten, and when the old session
then ends the partitions have no leader for a moment. The coordinator takes them for deleted, skips their markers and
completes the transaction: readers with read_committed wait at that offset for ever. A run as a controller alone, with
a short session, fences the former self first; the restart is also a second faster for it.
"""

import os
import signal
import time
from pathlib import Path

from penstock.local.kafka_server import LOG_DIR, RECOVERY_PROPERTIES, RECOVERY_PROPERTIES_NAME, KafkaServer
from penstock.local.launch import launch
from penstock.local.state import BrokerError, BrokerState

RECOVERY_LOG_NAME = "recovery.log"
ACTIVE, FENCED = "Becoming the active controller", "because its session has timed out"
# a former self that was fenced before is not fenced again; ten sessions of the recovery's controller tell
SESSIONS_SECONDS = 2.0
# the controller says that it fences just before it writes so
WRITTEN_SECONDS = 0.25


def was_killed(data_dir: Path) -> bool:
    """Whether the last broker of this folder ended without an orderly shutdown."""
    log = data_dir / LOG_DIR
    return (log / "__cluster_metadata-0").exists() and not (log / ".kafka_cleanshutdown").exists()


def fence_former_self(server: KafkaServer, data_dir: Path, state: BrokerState, timeout: float) -> None:
    """Fence the registration that a killed broker left in `data_dir`; raises `BrokerError` with the log's end."""
    properties = RECOVERY_PROPERTIES.format(**state.model_dump())
    (data_dir / RECOVERY_PROPERTIES_NAME).write_text(properties, encoding="ascii")
    log_path = data_dir / RECOVERY_LOG_NAME
    leash, pid = launch(server.recovery_command(state.mark), data_dir, log_path)
    # leaving the block closes the leash's stdin, which ends what is left of it
    with leash:
        deadline = time.monotonic() + timeout
        active_until: float | None = None
        while leash.poll() is None and time.monotonic() < deadline:
            said = log_path.read_text(errors="replace")
            if active_until is None and ACTIVE in said:
                active_until = time.monotonic() + SESSIONS_SECONDS
            if FENCED in said or (active_until is not None and time.monotonic() > active_until):
                time.sleep(WRITTEN_SECONDS)
                if pid is not None and leash.poll() is None:
                    os.kill(pid, signal.SIGTERM)
                    leash.wait(timeout)
                return
            time.sleep(0.02)
    tail = log_path.read_text(errors="replace")[-4000:]
    raise BrokerError(f"Kafka could not recover {data_dir} after a kill; the end of {log_path}:\n{tail}")
