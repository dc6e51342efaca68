"""The verifier's count of labels that met their prediction: right by hand, and equal to the product's join."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_monitor.join import Facts, Pending

from tests.chaos.joined import joined

Row = tuple[str, str, int]


def count(rows: list[Row], horizon_ms: int = 100) -> int:
    return joined(((0, {"kind": k, "label_key": key, "event_time": t}) for k, key, t in rows), horizon_ms)


def test_a_label_meets_its_prediction_in_whatever_order_they_come() -> None:
    assert count([("prediction", "a", 0), ("label", "a", 50), ("label", "b", 60), ("prediction", "b", 60)]) == 2


def test_what_waits_is_given_up_a_horizon_later() -> None:
    assert count([("prediction", "a", 0), ("label", "b", 101), ("label", "a", 102)]) == 0
    assert count([("prediction", "a", 0), ("label", "b", 100), ("label", "a", 102)]) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["prediction", "label"]), st.sampled_from(["a", "b", "c"]), st.integers(0, 600)),
        min_size=1,
        max_size=60,
    )
)
def test_it_is_that_of_the_products_join(rows: list[Row]) -> None:
    n = len(rows)
    facts = Facts(
        np.array([kind == "label" for kind, _, _ in rows]),
        pa.array([key for _, key, _ in rows], pa.string()),
        np.array([time for _, _, time in rows], np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        *(np.zeros(n) for _ in range(3)),
    )
    assert count(rows) == len(Pending(100).meet(facts, np.arange(n)).pairs)
