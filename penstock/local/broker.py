"""A real Apache Kafka broker as a child process: KRaft, one node, data in one folder, listening on 127.0.0.1 only.

The broker lives as long as the process that started it (see leash.py), unless it is started `detached`. Its folder
outlives it: a start on the same folder finds the records again, at the same address if its port is still free.
"""

import base64
import logging
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from penstock.local.jars import KAFKA_VERSION, Progress
from penstock.local.kafka_server import LOG_DIR, PROPERTIES, PROPERTIES_NAME, KafkaServer, find_server
from penstock.local.launch import launch
from penstock.local.ports import free_port, is_free
from penstock.local.recovery import fence_former_self, was_killed
from penstock.local.state import (
    BrokerError,
    BrokerState,
    is_stopped,
    make_folder,
    read_state,
    send_signal,
    stop_process,
    write_state,
)

LOG_NAME = "kafka.log"
TAIL_LINES = 30
ATTEMPTS = 3
PAUSE_S = 10.0
# two brokers that start at once may pick the same free port; a JVM crashes on a class archive that was cut short
WORTH_ANOTHER_TRY = ("Address already in use", "A fatal error has been detected by the Java Runtime Environment")


class EmbeddedBroker:
    """One Kafka broker over `data_dir`; a context manager, startable again after `stop` or `kill`.

    `heap_mb` is the JVM's largest heap. `port=None` takes the folder's former port if it is free, else any free one.
    `fast_start=False` lets the JVM compile fully: a slower start and a faster broker, for benchmarks. A `detached`
    broker outlives this process. `progress(done, total)` hears of jars being fetched.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        heap_mb: int = 256,
        port: int | None = None,
        fast_start: bool = True,
        detached: bool = False,
        start_timeout: float = 60.0,
        progress: Progress | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.heap_mb = heap_mb
        self.port = port
        self.fast_start = fast_start
        self.detached = detached
        self.start_timeout = start_timeout
        self.progress = progress
        self._state: BrokerState | None = None
        self._leash: subprocess.Popen[str] | None = None
        self._server: KafkaServer | None = None
        self._training: Path | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:PORT`; kept after a stop, since the next start listens there again."""
        if self._state is None:
            raise BrokerError(f"the broker of {self.data_dir} was never started; call start() first")
        return self._state.bootstrap

    @property
    def pid(self) -> int:
        """The process id of the JVM."""
        if self._state is None or self._state.pid is None:
            raise BrokerError(f"the broker of {self.data_dir} is not running; call start() first")
        return self._state.pid

    def start(self) -> str:
        """Start the broker and return its address once it answers.

        Raises `BrokerError` with the end of Kafka's log when it does not, or when the folder is in use, of another
        Kafka or not to be written to; `JarsUnavailable` and `JavaNotFound` when the machine lacks what it needs.
        """
        former = read_state(self.data_dir)
        _refuse_unusable(self.data_dir, former)
        make_folder(self.data_dir)
        self._server = find_server(self.progress)
        for attempt in range(1, ATTEMPTS + 1):
            state = self._next_state(former)
            (self.data_dir / PROPERTIES_NAME).write_text(PROPERTIES.format(**state.model_dump()), encoding="ascii")
            if not _meta_path(self.data_dir).exists():
                self._format(self._server, state)
            if was_killed(self.data_dir):
                fence_former_self(self._server, self.data_dir, state, self.start_timeout)
            try:
                self._await_ready(self._launch(self._server, state))
            except BaseException as error:
                self._abandon()
                if attempt == ATTEMPTS or not any(sign in str(error) for sign in WORTH_ANOTHER_TRY):
                    raise
            else:
                return self.bootstrap
        raise AssertionError("the last attempt returns or raises")

    def stop(self, timeout: float = 30.0) -> None:
        """Shut the broker down in order, after `timeout` seconds by force; safe to repeat."""
        if self._state is None or self._state.pid is None:
            return
        stop_process(self._state, timeout)
        self._ended()
        if self._training is not None and self._server is not None and self._server.archive is not None:
            self._server.archive.keep(self._training)

    def kill(self) -> None:
        """End the broker with SIGKILL, as a crash would."""
        stop_process(self._started(), 0.0, first=signal.SIGKILL)
        self._ended()

    def pause(self) -> None:
        """Freeze the broker: its connections stay open and, once this returns, nothing answers."""
        state = self._started()
        send_signal(state, signal.SIGSTOP)
        # the process stops itself when it is next scheduled, on a busy machine milliseconds later
        deadline = time.monotonic() + PAUSE_S
        while (pid := state.running_pid()) is not None and not is_stopped(pid):
            if time.monotonic() > deadline:
                raise BrokerError(f"the broker of {self.data_dir}, process {pid}, runs {PAUSE_S:.0f} s after SIGSTOP")
            time.sleep(0.001)

    def resume(self) -> None:
        """Let a paused broker go on."""
        send_signal(self._started(), signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started(self) -> BrokerState:
        if self._state is None or self._state.running_pid() is None:
            raise BrokerError(f"the broker of {self.data_dir} is not running; call start() first")
        return self._state

    def _next_state(self, former: BrokerState | None) -> BrokerState:
        if self.port is not None and not is_free(self.port):
            raise BrokerError(
                f"port {self.port} of 127.0.0.1 is in use. Choose another, or leave the choice to Penstock."
            )
        port = self.port or (former.port if former and is_free(former.port) else free_port())
        return BrokerState(
            kafka=KAFKA_VERSION,
            cluster_id=former.cluster_id if former else _new_cluster_id(),
            port=port,
            controller_port=free_port(),
        )

    def _format(self, server: KafkaServer, state: BrokerState) -> None:
        # first, so that a format which is cut short is taken up again under the same cluster id
        write_state(self.data_dir, state)
        try:
            run = subprocess.run(
                server.format_command(state.cluster_id),
                check=False,
                cwd=self.data_dir,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.start_timeout,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerError(f"Kafka could not format {self.data_dir}: {error}") from error
        if run.returncode != 0:
            said = run.stdout.decode(errors="replace").strip()
            raise BrokerError(f"Kafka could not format {self.data_dir} (exit {run.returncode}):\n{said[-4000:]}")

    def _launch(self, server: KafkaServer, state: BrokerState) -> BrokerState:
        class_flags, self._training = server.shared_classes, None
        # a detached broker is stopped by a process that could not tell a finished archive from half of one
        if server.archive is not None and not self.detached and (training := server.archive.training()):
            class_flags, self._training = training
        command = server.run_command(state.mark, self.heap_mb, self.fast_start, class_flags)
        log_path = self.data_dir / LOG_NAME
        if log_path.exists():
            log_path.replace(log_path.with_name(f"{LOG_NAME}.1"))
        self._leash, pid = launch(command, self.data_dir, log_path, detached=self.detached)
        if pid is None:
            raise BrokerError(self._failure("could not be launched"))
        self._state = state.model_copy(update={"pid": pid, "started_at": time.time()})
        write_state(self.data_dir, self._state)
        return self._state

    def _await_ready(self, state: BrokerState) -> None:
        """Return once the broker tells an admin client of itself; its socket opens a moment before that."""
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if state.running_pid() is None:
                raise BrokerError(self._failure("ended while starting"))
            try:
                socket.create_connection(("127.0.0.1", state.port), timeout=1.0).close()
                admin = AdminClient({"bootstrap.servers": state.bootstrap, "log_level": 0}, logger=_SILENT)
                if admin.list_topics(timeout=5.0).brokers:
                    return
            except (OSError, KafkaException):
                pass
            time.sleep(0.02)
        raise BrokerError(self._failure(f"did not answer within {self.start_timeout:g} s"))

    def _failure(self, what: str) -> str:
        log_path = self.data_dir / LOG_NAME
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:]) or "(it is empty)"
        return f"Apache Kafka {KAFKA_VERSION} {what}; the end of {log_path}:\n{tail}"

    def _abandon(self) -> None:
        """End what a failed start has left; the next does without the class archive, in case that was the cause."""
        if self._state is not None and self._state.pid is not None:
            stop_process(self._state, 0.0, first=signal.SIGKILL)
        self._ended()
        if self._server is not None and self._server.archive is not None:
            self._server.archive.discard()

    def _ended(self) -> None:
        if self._leash is not None:
            with self._leash:
                pass
            self._leash = None
        if self._state is not None:
            self._state = self._state.model_copy(update={"pid": None})
            write_state(self.data_dir, self._state)


_SILENT = logging.getLogger("penstock.local.broker.ready")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def _meta_path(data_dir: Path) -> Path:
    return data_dir / LOG_DIR / "meta.properties"


def _refuse_unusable(data_dir: Path, former: BrokerState | None) -> None:
    meta = _meta_path(data_dir)
    anew = f"Delete the folder {data_dir} to start with an empty broker, or choose another."
    if former is None:
        if meta.exists():
            raise BrokerError(f"{data_dir} holds the data of a Kafka broker that Penstock did not make. {anew}")
        return
    if former.running_pid() is not None:
        raise BrokerError(
            f"a broker already runs on {data_dir} (pid {former.pid}). Use it with "
            f"KAFKA_BOOTSTRAP_SERVERS={former.bootstrap}, or end what started it: the demo or `penstock dev` with "
            f"Ctrl-C, else `penstock broker stop --data-dir {data_dir}`."
        )
    if _numbers(former.kafka) > _numbers(KAFKA_VERSION):
        raise BrokerError(f"{data_dir} was written by Kafka {former.kafka}, which {KAFKA_VERSION} may not read. {anew}")
    if meta.exists() and f"cluster.id={former.cluster_id}\n" not in meta.read_text(errors="replace"):
        raise BrokerError(f"{meta} is damaged or of another cluster than {former.cluster_id}. {anew}")


def _new_cluster_id() -> str:
    """22 characters of base64, as Kafka makes them; a leading dash would be an option on its command line."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]).startswith("-"):
        continue
    return made


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
