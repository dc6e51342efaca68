"""Ctrl-C while something runs for as long as a person wants it."""

import pytest

from penstock.local.until import until_interrupted


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_it_in_order_also_the_moment_it_is_offered() -> None:
    looked: list[str] = []
    until_interrupted(interrupt, lambda: looked.append("looked"))
    assert not looked
    until_interrupted(lambda: looked.append("said"), interrupt)
    assert looked == ["said"]


def test_what_goes_wrong_meanwhile_is_raised() -> None:
    def fail() -> None:
        raise ValueError("given up")

    with pytest.raises(ValueError, match="given up"):
        until_interrupted(lambda: None, fail, every_s=0.0)
