"""Which specs are refused, and how a window gets its tile."""

from typing import Any

import pytest
from pydantic import ValidationError

from penstock.windows.spec import AggregationSpec, ViewSpec, tile_ms

HOUR = 3_600_000


def test_the_hop_is_the_tile_before_the_slide_before_a_sixtieth_of_the_window() -> None:
    assert tile_ms(HOUR, 300_000, 600_000) == 600_000
    assert tile_ms(HOUR, 300_000, None) == 300_000
    assert tile_ms(HOUR, HOUR, None) == 60_000  # Feast fills the slide with the window when none is given
    assert tile_ms(HOUR, None, None) == 60_000
    assert tile_ms(HOUR, 0, 0) == 60_000


@pytest.mark.parametrize(
    ("window", "slide", "hop", "message"),
    [
        (HOUR, None, 7_000, "tiling_hop_size is 7000 ms, which does not divide the window of 3600000 ms"),
        (HOUR, 7_000, None, "slide_interval is 7000 ms"),
        (HOUR, None, 2 * HOUR, "tiling_hop_size is 7200000 ms"),
        (1000, None, None, "cannot be cut into 60 tiles"),
        (0, None, None, "cannot be cut into 60 tiles"),
    ],
)
def test_a_tile_that_does_not_divide_its_window_is_refused(
    window: int, slide: int | None, hop: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tile_ms(window, slide, hop)


def aggregation(**changes: Any) -> dict[str, Any]:
    return {"column": "x", "function": "sum", "window_ms": 60, "name": "x_sum", **changes}


def view(*aggregations: dict[str, Any], **changes: Any) -> ViewSpec:
    plain = {"name": "card", "key": "card_id", "tile_ms": {60: 1}, "lateness_ms": 0, "aggregations": aggregations}
    return ViewSpec.model_validate({**plain, **changes})


def test_only_count_takes_columns_that_are_not_numbers() -> None:
    assert AggregationSpec.model_validate(aggregation(function="count", column_type="string"))
    with pytest.raises(ValidationError, match=r"takes the last of 'x', which is a string column"):
        AggregationSpec.model_validate(aggregation(function="last", column_type="string"))
    with pytest.raises(ValidationError, match=r"takes the sum of '\*', which is no column"):
        AggregationSpec.model_validate(aggregation(column="*"))


def test_a_view_needs_a_tile_for_every_window_and_a_name_for_every_aggregation() -> None:
    with pytest.raises(ValidationError, match="no tile for the window of 120 ms of 'x_sum'"):
        view(aggregation(window_ms=120))
    with pytest.raises(ValidationError, match="tile_ms of view 'card' is 7 ms"):
        view(aggregation(), tile_ms={60: 7})
    with pytest.raises(ValidationError, match="several aggregations named 'x_sum'"):
        view(aggregation(), aggregation(function="max"))


def test_a_spec_survives_the_plan_as_json() -> None:
    spec = view(aggregation(), aggregation(function="std", name="x_std"))
    assert ViewSpec.model_validate_json(spec.model_dump_json()) == spec


def test_history_reaches_back_over_the_longest_window_the_lateness_and_a_tile() -> None:
    spec = view(aggregation(), aggregation(window_ms=600, name="b"), tile_ms={60: 1, 600: 10}, lateness_ms=5)
    assert spec.history_ms == 600 + 5 + 10
