"""Watches the control topic beside the loop: a new champion is read from the registry, verified, opened and warmed
up on a thread of its own, and handed to the stage between two batches. A version that cannot be loaded leaves the
old one serving and is tried again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from penstock.models.control import CHAMPION, InForce
from penstock.models.control_topic import ControlReader, ControlUnavailable
from penstock.models.manifest import ModelError
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan, PlanError
from penstock.settings import Settings
from penstock.stage import Stage
from penstock.telemetry import MODEL_FAILURES, MODEL_INFO
from penstock_inference.loaded import LoadedModel, load_model
from penstock_inference.stage import InferenceStage

log = logging.getLogger(__name__)

LOAD_FAILED = "load failed"
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
POLL_S = 0.2


class ChampionWatch:
    """The companion of an inference stage. ``reader`` and ``load`` are what it reads and loads with, replaceable in
    tests.
    """

    def __init__(
        self,
        plan: Plan,
        reader: Callable[[], ControlReader],
        load: Callable[[InForce], LoadedModel],
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        if plan.model is None:
            raise PlanError(f"pipeline {plan.pipeline!r} has no model. Add model=Model(name=…) to its pipeline.py")
        self._plan, self._model = plan, plan.model.name
        self._open, self._load, self._first_retry_s = reader, load, first_retry_s
        self._why: str | None = f"{plan.pipeline}.control was not read yet"
        self._news: deque[Callable[[Stage], None]] = deque()
        self._serving: LoadedModel | None = None
        self._wanted: InForce | None = None
        self._tried: InForce | None = None
        self._due, self._pause_s = 0.0, first_retry_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def unready(self) -> str | None:
        return self._why

    def news(self) -> list[Callable[[Stage], None]]:
        changes = []
        while self._news:
            changes.append(self._news.popleft())
        return changes

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def _run(self) -> None:
        pause_s = self._first_retry_s
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                self._watch()
            except ControlUnavailable as error:
                self._cannot(str(error), None)
            except Exception as error:  # a dead watch would go unseen: the worker would serve an old model for ever
                log.exception("the watch of %s.control starts again", self._plan.pipeline)
                self._cannot(f"the watch of the control topic failed: {error}", None)
            if time.monotonic() - started > LAST_RETRY_S:
                pause_s = self._first_retry_s
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _watch(self) -> None:
        reader = self._open()
        try:
            while not self._closing.is_set():
                for found in reader.poll(POLL_S):
                    self._hear(found)
                # only what is in force at the end counts, not every champion there ever was
                if reader.caught_up:
                    self._follow()
        finally:
            reader.close()

    def _hear(self, found: InForce) -> None:
        message = found.message
        if message.model != self._model:
            return
        if message.role != CHAMPION:
            log.info(
                "%s %s of %s is not served: this release has champions only",
                message.role,
                message.version,
                message.model,
            )
            return
        self._wanted = found

    def _follow(self) -> None:
        wanted = self._wanted
        # the topic is read from its beginning again after a fault: what was tried or serves already is not news
        if wanted != self._tried:
            self._tried, self._due, self._pause_s = wanted, 0.0, self._first_retry_s
        if wanted is None or wanted.message.version is None:
            self._nobody()
        elif time.monotonic() >= self._due:
            self._change(wanted, wanted.message.version)

    def _nobody(self) -> None:
        self._why = (
            f"model {self._model!r} has no champion. Promote a version with `penstock model promote PLAN VERSION`"
        )
        if self._serving is not None:
            self._told(self._serving, 0)
            self._serving = None
            self._news.append(_stop)

    def _change(self, wanted: InForce, version: str) -> None:
        try:
            loaded = self._load(wanted)
        except ModelError as error:
            self._cannot(str(error), version)
        except Exception as error:  # noqa: BLE001  # an object store raises what it likes, and all of it means: not now
            self._cannot(f"model {self._model} {version} cannot be read: {type(error).__name__}: {error}", version)
        else:
            self._serve(loaded, wanted)

    def _serve(self, loaded: LoadedModel, wanted: InForce) -> None:
        def change(stage: Stage) -> None:
            if not isinstance(stage, InferenceStage):
                raise TypeError(f"a model was loaded for {type(stage).__name__}, which takes none")
            stage.use(loaded, wanted.offset)

        if self._serving is not None:
            self._told(self._serving, 0)
        self._told(loaded, 1)
        manifest = loaded.manifest
        log.info(
            "champion %s by message %d (%s: %s)",
            manifest.label, wanted.offset, wanted.message.author or "unknown", wanted.message.reason or "no reason",
            extra={"model": manifest.name, "version": manifest.version, "provider": loaded.session.provider},
        )  # fmt: skip
        self._news.append(change)
        self._serving, self._why, self._due = loaded, None, float("inf")

    def _cannot(self, why: str, version: str | None) -> None:
        kept = "no version serves" if self._serving is None else f"{self._serving.manifest.version} goes on serving"
        log.error("%s (%s; tried again in %.0f s)", why, kept, self._pause_s)
        if self._serving is None:
            self._why = why
        if version is not None:
            MODEL_FAILURES.labels(self._model, version, LOAD_FAILED).inc()
            self._due = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LAST_RETRY_S)

    def _told(self, loaded: LoadedModel, value: int) -> None:
        MODEL_INFO.labels(self._model, loaded.manifest.version, CHAMPION, loaded.session.provider).set(value)


def _stop(stage: Stage) -> None:
    # the loop cannot wait in mid-run; a fresh worker waits, unready and with its rows unread, until there is a champion
    log.error("the champion was retired: the worker leaves, and waits for a new one when it is started again")
    raise SystemExit(1)


def champion_watch(plan: Plan, name: str, settings: Settings) -> ChampionWatch:
    """The companion of stage ``name``, on Kafka and the registry of the settings."""
    # the worker finds this module by its entry point, so it is there already when this runs
    from penstock.worker import schema_lookup

    registry = ModelRegistry(settings.models_url)

    def load(wanted: InForce) -> LoadedModel:
        message = wanted.message
        assert message.version is not None
        verified = registry.load(message.model, message.version)
        if message.digest is not None and message.digest != verified.digest:
            raise ModelError(
                f"model {verified.manifest.label} in {settings.models_url} has the digest "
                f"{verified.digest}, the control message means {message.digest}. Point PENSTOCK_MODELS_URL at the "
                "registry it was promoted from, or promote it again"
            )
        return load_model(
            plan,
            verified,
            providers=settings.providers,
            threads=settings.intra_op_threads,
            max_rows=settings.max_batch_rows,
        )

    return ChampionWatch(plan, lambda: ControlReader(settings, plan, schema_lookup(plan, settings)), load)
