"""The key index against a dict, over batches, growth and hostile strings."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.windows.keys import KeyIndex

key = st.none() | st.text(max_size=3) | st.sampled_from(["", "a", "aa", "a\0", "card-000001", "card-000002", "x" * 40])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(key, max_size=30), max_size=6), st.booleans())
def test_rows_are_numbered_as_a_dict_would_in_order_of_appearance(batches: list[list[str | None]], coded: bool) -> None:
    index, rows = KeyIndex(), dict[str, int]()
    for batch in batches:
        expected = [-1 if text is None else rows.setdefault(text, len(rows)) for text in batch]
        array = pa.array(batch, pa.string())
        assert index.rows(array.dictionary_encode() if coded else array).tolist() == expected
    assert index.keys().to_pylist() == list(rows)
    assert len(index) == len(rows)


def test_the_index_grows_by_keys_and_by_bytes() -> None:
    index = KeyIndex()
    names = [f"{i:05d}" + "long " * (i % 40) for i in range(50_000)]
    for start in range(0, len(names), 7_000):
        index.rows(pa.array(names[start : start + 7_000]))
    assert np.array_equal(index.rows(pa.array(names)), np.arange(50_000))
    assert index.keys().to_pylist() == names


def test_a_slice_of_a_larger_array_is_read_from_where_it_begins() -> None:
    index = KeyIndex()
    index.rows(pa.array(["p", "q", "r", None, "q"])[1:4])
    assert index.keys().to_pylist() == ["q", "r"]
