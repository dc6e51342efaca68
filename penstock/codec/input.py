"""What users send: JSON or framed Avro on the same topic, told apart by the first byte of each value."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.codec import frame
from penstock.codec.avro import AvroDecoder
from penstock.codec.decoded import BadRow, Decoded, in_order
from penstock.codec.json import JsonDecoder

_JSON = np.isin(np.arange(256), list(b"{ \t\r\n"))


class InputDecoder:
    """Decodes each value by its kind and restores the order; both decoders must have the same reader's schema.

    ``max_bytes``: longer values are not looked into; None leaves it to the decoders.
    """

    def __init__(self, avro: AvroDecoder, json: JsonDecoder, max_bytes: int | None = None) -> None:
        if avro.columns != json.columns:
            raise ValueError("the Avro and the JSON decoder must be made of one reader schema.")
        self.columns: pa.Schema = avro.columns
        self._avro = avro
        self._json = json
        self._max_bytes = max_bytes

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The good rows in order, and the bad ones with their reasons. ``TransientLookupError`` passes through."""
        values = values if isinstance(values, list) else list(values)
        if (whole := self._all_avro(values)) is not None:
            return whole
        first = _first_bytes(values)
        is_json = _JSON[first] & (first >= 0)
        # nothing at all says nothing about its kind: the Avro decoder calls it empty
        is_avro = (first == frame.MAGIC) | (first < 0)
        bad = self._too_large(values)
        if bad:
            is_avro[list(bad)] = is_json[list(bad)] = False
        elif is_json.all():
            return self._json.decode(values)
        for i in np.flatnonzero(~(is_avro | is_json)).tolist():
            if i in bad:
                continue
            bad[i] = BadRow("bad magic", f"the first byte is {first[i]}; Avro begins with 0 and JSON with {{.")
        parts = []
        for mine, decode in ((is_avro, self._avro.decode), (is_json, self._json.decode)):
            rows = np.flatnonzero(mine)
            if len(rows):
                decoded = decode([values[i] for i in rows.tolist()])
                parts.append((decoded.rows, rows[decoded.index]))
                bad.update({int(rows[i]): why for i, why in decoded.bad.items()})
        return in_order(parts, self.columns, bad)

    def _all_avro(self, values: list[bytes | None]) -> Decoded | None:
        """Nearly every batch is of one kind: the Avro decoder finds out in passing whether all of this one are."""
        if not values or not values[0] or values[0][0] != frame.MAGIC or None in values:
            return None
        if self._max_bytes is not None and max(map(len, values)) > self._max_bytes:  # type: ignore[arg-type]  # no None
            return None
        return self._avro.decode_whole(values)

    def _too_large(self, values: list[bytes | None]) -> dict[int, BadRow]:
        limit = self._max_bytes
        if limit is None or max(map(len, filter(None, values)), default=0) <= limit:
            return {}
        return {
            i: BadRow(
                "too large", f"{len(value)} bytes, and the limit is {limit}. Send less, or raise max_event_bytes."
            )
            for i, value in enumerate(values)
            if value and len(value) > limit
        }


def _first_bytes(values: list[bytes | None]) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.fromiter((v[0] if v else -1 for v in values), np.int16, len(values))
