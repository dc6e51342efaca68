"""What users send: JSON or framed Avro on the same topic, told apart by the first byte of each value."""

import numpy as np
import pyarrow as pa

from penstock.codec import frame
from penstock.codec.avro import AvroDecoder
from penstock.codec.decoded import BadRow, Decoded, in_order
from penstock.codec.json import JsonDecoder
from penstock.records import Values, column

_JSON = np.isin(np.arange(256), list(b"{ \t\r\n"))


class InputDecoder:
    """Decodes each value by its kind and restores the order; both decoders must have the same reader's schema."""

    def __init__(self, avro: AvroDecoder, json: JsonDecoder) -> None:
        if avro.columns != json.columns:
            raise ValueError("the Avro and the JSON decoder must be made of one reader schema.")
        self.columns: pa.Schema = avro.columns
        self._avro = avro
        self._json = json

    def decode(self, values: Values) -> Decoded:
        """The good rows in order, and the bad ones with their reasons. ``TransientLookupError`` passes through."""
        values = column(values)
        payloads = frame.lay_out(values)
        lengths, first = payloads.lengths, payloads.first()
        # nothing at all says nothing about its kind: the Avro decoder calls it empty
        is_json = _JSON[first] & (lengths > 0)
        is_avro = (first == frame.MAGIC) | (lengths == 0)
        for mine, decode in ((is_avro, self._avro.decode), (is_json, self._json.decode)):
            if mine.all():  # nearly every batch is of one kind
                return decode(values)
        bad = {
            i: BadRow("bad magic", f"the first byte is {first[i]}; Avro begins with 0 and JSON with {{.")
            for i in np.flatnonzero(~(is_avro | is_json)).tolist()
        }
        parts = []
        for mine, decode in ((is_avro, self._avro.decode), (is_json, self._json.decode)):
            rows = np.flatnonzero(mine)
            if len(rows):
                decoded = decode(values.take(pa.array(rows)))
                parts.append((decoded.rows, rows[decoded.index]))
                bad.update({int(rows[i]): why for i, why in decoded.bad.items()})
        return in_order(parts, self.columns, bad)
