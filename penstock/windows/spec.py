"""What a view asks of the window kernel: its key, its aggregations, the tile of every window and the lateness.

A window is made of whole tiles, so it is exact to one tile: the tile is the resolution that a view pays memory for.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

AggregationFunction = Literal["count", "sum", "mean", "min", "max", "std", "last"]
ColumnType = Literal["bool", "int32", "int64", "float32", "float64", "string", "bytes", "timestamp"]

NUMERIC: frozenset[ColumnType] = frozenset({"bool", "int32", "int64", "float32", "float64"})
EVERY_ROW = "*"
"""Column name of a `count` that counts rows, whatever is null in them."""

TILES_PER_WINDOW = 60


class AggregationSpec(BaseModel):
    """One output column: `function` of `column` over the last `window_ms`; `name` is the output column's name.

    `std` is the sample standard deviation (n - 1, null for fewer than two values), as pandas and Feast have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    function: AggregationFunction
    window_ms: int = Field(gt=0)
    name: str = Field(min_length=1)
    column_type: ColumnType = "float64"

    @model_validator(mode="after")
    def _function_fits_the_column(self) -> Self:
        if self.function != "count" and (self.column == EVERY_ROW or self.column_type not in NUMERIC):
            what = "no column" if self.column == EVERY_ROW else f"a {self.column_type} column"
            raise ValueError(
                f"aggregation {self.name!r} takes the {self.function} of {self.column!r}, which is {what}. "
                f"Only numbers can be aggregated so; use function 'count' or a column of type {sorted(NUMERIC)}."
            )
        return self


class ViewSpec(BaseModel):
    """A view: aggregations of one key. `tile_ms` maps each window to its tile, both in ms (see `tile_ms()`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    key: str = Field(min_length=1)
    aggregations: tuple[AggregationSpec, ...] = Field(min_length=1)
    tile_ms: dict[int, int]
    lateness_ms: int = Field(ge=0)

    @model_validator(mode="after")
    def _windows_have_tiles_and_names_are_unique(self) -> Self:
        names = [aggregation.name for aggregation in self.aggregations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"view {self.name!r} has several aggregations named {twice[0]!r}. Give each a name of its own."
            )
        for aggregation in self.aggregations:
            tile = self.tile_ms.get(aggregation.window_ms)
            if tile is None:
                raise ValueError(
                    f"view {self.name!r} has no tile for the window of {aggregation.window_ms} ms "
                    f"of {aggregation.name!r}. Add it to tile_ms."
                )
            _check_tile(aggregation.window_ms, tile, f"tile_ms of view {self.name!r}")
        return self

    @property
    def history_ms(self) -> int:
        """How far behind the watermark an event can still matter: longest window + lateness + one tile, in ms."""
        longest = max(aggregation.window_ms for aggregation in self.aggregations)
        return longest + self.lateness_ms + max(self.tile_ms.values())


def tile_ms(window_ms: int, slide_ms: int | None, hop_ms: int | None) -> int:
    """Tile of a window in ms: `hop_ms` if set, else `slide_ms` if shorter than the window, else a 60th of the window.

    Feast fills `slide_interval` with the window when none is given, so only a shorter one says anything. Raises
    ValueError if the tile does not divide the window.
    """
    if hop_ms:
        return _check_tile(window_ms, hop_ms, "tiling_hop_size")
    if slide_ms and slide_ms < window_ms:
        return _check_tile(window_ms, slide_ms, "slide_interval")
    if window_ms <= 0 or window_ms % TILES_PER_WINDOW:
        raise ValueError(
            f"a window of {window_ms} ms cannot be cut into {TILES_PER_WINDOW} tiles of whole milliseconds. "
            "Set slide_interval or tiling_hop_size to a divisor of the window."
        )
    return window_ms // TILES_PER_WINDOW


def _check_tile(window_ms: int, tile: int, setting: str) -> int:
    if tile <= 0 or window_ms % tile:
        raise ValueError(
            f"{setting} is {tile} ms, which does not divide the window of {window_ms} ms. Choose a divisor."
        )
    return tile
