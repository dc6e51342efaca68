"""Which model and version served a row, as a small number: the columns of strings are looked up by a kernel, not row
by row.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.windows.keys import KeyIndex

_VERSIONS = 1 << 20


class Served:
    """Codes of the pairs (model, version) seen so far; -1 where either is null."""

    def __init__(self) -> None:
        self._models, self._versions = KeyIndex(), KeyIndex()

    def codes(self, rows: "pa.RecordBatch") -> npt.NDArray[np.int64]:
        """int64[n], of the columns ``model`` and ``version``."""
        models, versions = self._models.rows(rows.column("model")), self._versions.rows(rows.column("version"))
        return np.where((models < 0) | (versions < 0), -1, models * _VERSIONS + versions)

    def code(self, model: str, version: str) -> int:
        """The code of one pair, which is new where it was not seen before."""
        return int(self._models.rows(pa.array([model]))[0]) * _VERSIONS + int(
            self._versions.rows(pa.array([version]))[0]
        )

    def name(self, code: int) -> tuple[str, str]:
        """Model and version behind a code; both empty for -1."""
        if code < 0:
            return "", ""
        keys: list[Any] = [self._models.keys()[code // _VERSIONS], self._versions.keys()[code % _VERSIONS]]
        return keys[0].as_py(), keys[1].as_py()
