"""How much a loop takes at once, and how often it commits."""

from dataclasses import dataclass

MOST_GATHER_S = 0.0125
"""However seldom a stage commits, rows and rebalances are not left waiting for long."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much and how often. ``lateness_ms`` bounds how far partitions of different workers may come apart.

    A drained input is committed at once, but not more often than each ``commit_interval_s``: a transaction costs the
    broker a marker in every partition that it touched, and rows wait for a broker that has too many of them."""

    commit_interval_s: float
    max_batch_rows: int
    max_wait_s: float
    lateness_ms: int
    future_ms: int
    allow_incomplete_windows: bool = False

    @property
    def gather_s(self) -> float:
        """Least time between two polls that found less than a batch: what is read sooner is not seen sooner, and many
        small batches cost more than a few."""
        return min(self.commit_interval_s / 8, MOST_GATHER_S)
