"""Drift of every feature over the whole run: the partial profiles of the log, added up by week, against the reference
that lies beside the model. Faust's gauges only show the window that closed last.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.local.topic_reader import TopicReader
from penstock.models.manifest import PROFILE_FILE
from penstock.models.registry import ModelRegistry
from penstock.plan import Plan
from penstock.profiles.drift import psi
from penstock.profiles.reference import ReferenceProfile
from penstock.settings import Settings

WEEK_MS = 7 * 86_400_000
WHOLE = 0.6
"""Share of the usual number of rows that a week needs to be shown: the run's first and last days are none."""


@dataclass(frozen=True, slots=True)
class DriftHistory:
    """``psi``: float64[features, weeks], NaN where too few rows came; ``weeks``: their starts, ms since epoch."""

    features: list[str]
    weeks: list[int]
    psi: npt.NDArray[np.float64]

    def most_drifted(self) -> list[int]:
        """Rows by their mean, largest first."""
        means = np.array([np.nanmean(row) if not np.isnan(row).all() else -1.0 for row in self.psi])
        return [int(row) for row in np.argsort(-means, kind="stable")]


def drift_history(plan: Plan, settings: Settings, version: str) -> DriftHistory:
    """Reads ``NAME.profiles`` to its end. Raises ``ModelError`` when the version cannot be read."""
    if plan.model is None:
        return DriftHistory([], [], np.empty((0, 0)))
    files = ModelRegistry(settings.models_url).load(plan.model.name, version).files
    reference = ReferenceProfile.load(files[PROFILE_FILE])
    counts: dict[tuple[str, int], npt.NDArray[np.int64]] = {}
    reader = TopicReader(plan, settings)
    for _, rows in reader.rows("profiles", ("feature", "reference", "pane", "bins")):
        weeks = rows.column("pane").cast(pa.int64()).to_numpy() // WEEK_MS * WEEK_MS
        names, ids = rows.column("feature").to_pylist(), rows.column("reference").to_pylist()
        for feature, of, week, bins in zip(names, ids, weeks.tolist(), rows.column("bins").to_pylist(), strict=True):
            if of == reference.id and feature in reference.columns:
                found = np.asarray(bins, np.int64)
                counts[feature, week] = counts[feature, week] + found if (feature, week) in counts else found
    features = [name for name in reference.columns if any(name == feature for feature, _ in counts)]
    weeks = sorted({week for _, week in counts})
    rows_of = {week: max(int(found.sum()) for (_, of), found in counts.items() if of == week) for week in weeks}
    usual = float(np.median(list(rows_of.values()))) if rows_of else 0.0
    weeks = [week for week in weeks if rows_of[week] >= WHOLE * usual]
    table = np.full((len(features), len(weeks)), np.nan)
    for (feature, week), found in counts.items():
        if week in weeks and found.sum():
            table[features.index(feature), weeks.index(week)] = psi(reference.columns[feature].counts, found)
    return DriftHistory(features, weeks, table)
