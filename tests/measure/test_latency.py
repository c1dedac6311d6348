from __future__ import annotations

from normapps.measure.latency import Latency, time_in_turns
from normapps.measure.timing import Timing


def test_the_ratio_is_taken_round_by_round() -> None:
    base, slim = Timing((2.0, 8.0, 4.0)), Timing((1.0, 2.0, 4.0))  # the machine was slow once
    speedup = Latency(1, {"base": base, "slimmed": slim}).speedup("slimmed")
    assert speedup.seconds == (2, 4, 1)
    assert speedup.median == 2
    assert speedup.spread == (1.5, 3)


def test_every_case_runs_in_each_round() -> None:
    calls: list[str] = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    found = time_in_turns(4, cases, seconds=0)
    assert found.batch_size == 4
    assert {len(timing.seconds) for timing in found.times.values()} == {5}
    rounds = [set(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == [{"a", "b", "c"}] * len(rounds)


def test_the_numbers_of_a_report() -> None:
    times = {"slow": Timing((2.0, 2.0)), "fast": Timing((1.0, 0.5))}
    assert Latency(8, times).to_json("fast", "slow") == {
        "seconds": {"slow": 2.0, "fast": 0.75},
        "speedup": 3.0,
        "quartiles": [2.5, 3.5],
        "rounds": 2,
    }
