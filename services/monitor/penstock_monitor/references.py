"""The reference profiles of the registry, found by a companion beside the monitor's loop: a stage does no I/O.

Features are measured against the newest version trained for the plan's feature service, for they are the same whoever
serves; scores and outcomes against the version that made them. Without any, nulls and moments are still profiled, and
a profile that appears later is taken up.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.models.manifest import PROFILE_FILE, ModelError
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.profiles.reference import ProfileError, ReferenceProfile
from penstock.settings import Settings
from penstock.stage import Stage

log = logging.getLogger(__name__)

EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class References:
    """``by_version``: the profiles trained for the plan's feature service, oldest version first."""

    by_version: Mapping[str, ReferenceProfile] = field(default_factory=dict)

    @property
    def newest(self) -> ReferenceProfile | None:
        return list(self.by_version.values())[-1] if self.by_version else None

    def by_id(self, reference: str) -> ReferenceProfile | None:
        """The profile whose bins a partial was counted in."""
        return next((profile for profile in self.by_version.values() if profile.id == reference), None)


class ReferenceReader:
    """Reads ``profile.json`` of every version once; a version never changes."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan = plan
        self._registry = ModelRegistry(settings.models_url)
        self._read: dict[str, ReferenceProfile | None] = {}

    def read(self) -> References:
        """What is there now. Raises ``OSError`` when the registry cannot be reached."""
        model = self._plan.model
        if model is None:
            return References()
        versions = self._registry.versions(model.name)
        for version in versions:
            if version not in self._read:
                self._read[version] = self._profile(model.name, version)
        return References({v: profile for v in versions if (profile := self._read[v]) is not None})

    def _profile(self, model: str, version: str) -> ReferenceProfile | None:
        try:
            manifest, _ = self._registry.manifest(model, version)
            if manifest.feature_service_hash != self._plan.service.hash:
                log.info("model %s %s was trained for other features: its profile is not used", model, version)
                return None
            if PROFILE_FILE not in manifest.files:
                log.warning("model %s %s has no %s: drift from it cannot be told", model, version, PROFILE_FILE)
                return None
            return ReferenceProfile.load(self._registry.load(model, version).files[PROFILE_FILE])
        except (ModelError, ProfileError) as error:
            log.warning("%s", error)
            return None


class ReferenceWatcher:
    """The companion: looks into the registry at the start and every ten seconds."""

    def __init__(self, reader: ReferenceReader, every_s: float = EVERY_S) -> None:
        self._reader, self._every_s = reader, every_s
        self._known = References()
        self._news: queue.SimpleQueue[References] = queue.SimpleQueue()
        self._why: str | None = "the model registry has not been looked at yet"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="references", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def unready(self) -> str | None:
        return self._why

    def news(self) -> list[Callable[[Stage], None]]:
        if self._news.empty():
            return []
        found = self._news.get()

        def take(stage: Any) -> None:
            # what the companion of a monitor is given is a monitor's stage; importing it here would be a circle
            stage.use(found)

        return [take]

    def close(self) -> None:
        self._closed.set()
        self._thread.join(5)

    def _watch(self) -> None:
        while True:
            try:
                found = self._reader.read()
            except OSError as error:
                # monitoring without a reference is better than none, so an unreachable registry does not keep the
                # worker from starting
                log.warning("the model registry cannot be read, trying again: %s", error)
            else:
                if found.by_version.keys() != self._known.by_version.keys():
                    self._known = found
                    self._news.put(found)
            self._why = None
            if self._closed.wait(self._every_s):
                return
