"""The short form of the chaos tests: kills, a zombie, bad messages, and the control without which their silence would
prove nothing. The long form is `make chaos`.
"""

from collections.abc import Iterator

import pytest

from tests.chaos.harness import Lab, Result
from tests.chaos.report import facts
from tests.chaos.scenarios import scenarios

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

SEED = 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("chaos"), SEED) as found:
        yield found


def passed(lab: Lab, name: str, monkeypatch: pytest.MonkeyPatch, **fewer: float) -> Result:
    scenario = scenarios()[name]
    for setting, value in fewer.items():
        monkeypatch.setattr(scenario, setting, value)
    result = Result(name, scenario.HOLDS, SEED)
    scenario.run(lab, 1, result)
    assert result.passed, facts(result)
    return result


def test_kills_lose_and_double_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # how soon they are back is judged by `make chaos` alone: other tests run beside these
    result = passed(lab, "crash", monkeypatch, KILLS=7, SOON_S=60)
    assert result.trials == 7, "every service once"


def test_no_output_of_a_zombie_is_committed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(lab, "zombie", monkeypatch, STOPS=1).trials == 3


def test_bad_messages_are_dead_letters_and_good_ones_go_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(lab, "poison", monkeypatch, BURST=600, MUTATIONS=300).dead_as_expected > 300


def test_without_the_guarantee_doubles_are_seen(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(lab, "control", monkeypatch, KILLS=3).duplicated > 0


def test_every_scenario_says_what_must_hold() -> None:
    assert all(name == found.NAME and found.HOLDS for name, found in scenarios().items())
