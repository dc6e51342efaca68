"""The page of a chaos run says what was counted, with the bound that the counts allow, and keeps what is around it."""

from pathlib import Path

import pytest

from tests.chaos.harness import Result, percentile
from tests.chaos.report import BEGIN, END, bound, read_summary, summary, table, write_summary, write_table
from tests.chaos.scenarios.crash import judge_recovery
from tests.chaos.verdict import Verdict


def result(name: str, **facts: object) -> Result:
    found = Result(name, "it holds", 7, trials=3, judged=3, inputs=3000)
    for fact, value in facts.items():
        setattr(found, fact, value)
    return found


def test_none_in_n_bounds_the_rate_below_three_nths() -> None:
    assert bound(0, 3000) == "0 in 3,000: below 1.0e-03"
    assert bound(2, 3000) == "2 in 3,000"
    assert bound(0, 0) == "nothing was tried"


def test_what_is_lost_or_doubled_fails_and_the_control_fails_without_doubles() -> None:
    assert result("crash").passed
    assert not result("crash", lost=1).passed
    assert not result("crash", duplicated=1).passed
    assert not result("crash", wrong_windows=1).passed
    assert not result("crash", problems=["order"]).passed
    assert not result("crash", trials=0).passed, "what was never tried proves nothing"
    assert not result("control", control=True).passed
    assert result("control", control=True, duplicated=4).passed
    assert not result("control", control=True, duplicated=4, lost=1).passed


def test_crash_asks_for_a_recovery_that_is_soon_in_95_of_100() -> None:
    for recoveries, soon in (([1.0] * 95 + [9.0] * 5, True), ([1.0] * 94 + [9.0] * 6, False), ([], False)):
        found = result("crash", recoveries=recoveries)
        judge_recovery(found)
        assert found.passed == soon, recoveries


def test_the_controls_doubles_are_seen_by_both_verifiers_and_its_losses_by_the_one_that_can() -> None:
    counting, reading = Verdict("t"), Verdict("t")
    counting.find("lost", "raw/0@0", 50)
    counting.find("duplicated", "raw/0@1", 5)
    reading.find("duplicated", "predictions/0@1", 3)
    found = result("control", control=True)
    found.add(counting, reading)
    assert (found.lost, found.duplicated, found.passed) == (50, 3, False)
    blind = result("control", control=True)
    blind.add(Verdict("t"), reading)
    assert not blind.passed
    windows = Verdict("t")
    windows.find("wrong window", "s of 1", 2)
    found = result("control", control=True, duplicated=4)
    found.add(windows)
    assert (found.wrong_windows, found.notes, found.passed) == (0, {"wrong window": 2}, True)


def test_the_table_has_every_scenario_and_bounds_all_but_the_control() -> None:
    control = result("control", control=True, duplicated=4)
    said = summary([control, result("crash", recoveries=[1.0, 2.0])], 7, 1, 0.5, "abc")
    text = table(said)
    assert said["passed"]
    assert "| crash | 3 (3) | 3,000 | 0 | 0 | 0 | 0 | 1.0 / 2.0 s | passed |" in text
    assert "doubled: 0 in 3,000: below 1.0e-03" in text


def test_a_scenario_that_is_run_again_replaces_itself_alone_and_the_page_says_so(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    assert read_summary(file) is None
    former = summary([result("crash"), result("poison", lost=1), result("zombie")], 7, 10, 0.5, "abc")
    write_summary(file, former)
    said = summary([result("poison")], 7, 10, 2.0, "def", read_summary(file))
    assert list(said["scenarios"]) == ["crash", "poison", "zombie"]
    assert (former["passed"], said["passed"]) == (False, True)
    assert "commit abc, load before: 0.5; poison of commit def, load before: 2.0:" in table(said)
    assert list(summary([result("poison")], 8, 10, 2.0, "def", read_summary(file))["scenarios"]) == ["poison"]
    file.write_text('{"scenarios": {"crash": {}}}')
    assert read_summary(file) is None, "of another version"


def test_a_problem_is_on_the_page() -> None:
    text = table(summary([result("broker", problems=["it hangs\nfor ever"])], 7, 1, 0.5, "abc"))
    assert "**failed**" in text
    assert "*broker* failed: it hangs" in text


def test_the_page_keeps_what_is_around_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no marks"):
        write_table(page, "new")


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile([], 0.95) is None
