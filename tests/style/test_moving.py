from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.norm import INSTANCE, Moments
from normapps.style.moving import CUT, MovingMoments, distance


def _moments(seed: int, *, spread: float = 0.1, full: bool = False, channels: int = 3) -> Moments:
    """Of a scene: mean and variance near 0 and 1, as far from each other as `spread`."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(1, channels, 16, 16, generator=draws)
    x = x * (1 + spread * torch.rand(1, channels, 1, 1, generator=draws))
    return Moments.of(x + spread * torch.rand(1, channels, 1, 1, generator=draws), full=full)


def _run(moving: MovingMoments, frames, times) -> list[list[Moments]]:
    out = []
    for levels, time in zip(frames, times, strict=True):
        moving.begin(time)
        out.append([moving(level, each) for level, each in enumerate(levels)])
    return out


@pytest.mark.parametrize("full", [False, True])
def test_averages_are_exponential_in_time(full) -> None:
    times = np.cumsum([0.0, 0.04, 0.04, 0.3, 0.01, 0.04])  # a variable rate
    frames = [[_moments(10 * i, full=full), _moments(10 * i + 1, full=full)] for i in range(6)]
    got = _run(MovingMoments(0.2), frames, times)
    for now in range(6):
        weights = np.exp((times[: now + 1] - times[now]) / 0.2)
        weights /= weights.sum()
        for level in range(2):
            for part in ("mean", "var", "cov") if full else ("mean", "var"):
                values = [getattr(f[level], part).double().numpy() for f in frames[: now + 1]]
                wanted = np.tensordot(weights, np.stack(values), 1)
                assert np.allclose(getattr(got[now][level], part), wanted, rtol=1e-5, atol=1e-6)
            assert got[now][level].count == 256


def test_still_frames_stay_as_they_are() -> None:
    still = _moments(0)
    for (level,) in _run(MovingMoments(1.0), [[still]] * 5, range(5)):
        assert torch.allclose(level.mean, still.mean)
        assert torch.allclose(level.var, still.var)


def test_a_change_of_scene_begins_anew() -> None:
    old = [[_moments(i), _moments(i + 50)] for i in range(4)]
    other = [[_moments(i + 100, spread=3.0), _moments(i + 150)] for i in range(1)]
    scene = [[_far(level) for level in other[0]]] * 3
    moving = MovingMoments(10.0)
    got = _run(moving, [*old, *scene], np.arange(7) / 25)
    moving.state()
    assert moving.cuts == 1
    alone = _run(MovingMoments(10.0), scene, np.arange(4, 7) / 25)
    for one, two in zip(got[4:], alone, strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.mean, b.mean)
            assert torch.equal(a.var, b.var)


def _far(moments: Moments) -> Moments:
    return Moments(moments.count, moments.mean + 3, moments.var * 4)


def test_a_slow_change_is_no_cut() -> None:
    frames = []
    for i in range(40):
        base = _moments(0)
        frames.append([Moments(base.count, base.mean + 0.2 * i, base.var)])
    moving = MovingMoments(0.5)
    _run(moving, frames, np.arange(40) / 25)
    moving.state()
    assert moving.cuts == 0


def test_asked_twice_about_a_frame_it_answers_the_same() -> None:
    frames = [[_moments(i), _moments(i + 50)] for i in range(4)]
    once, twice = MovingMoments(0.2), MovingMoments(0.2)
    for time, levels in enumerate(frames):
        once.begin(time / 10)
        twice.begin(time / 10)
        for level, each in enumerate(levels):  # as a renderer out of memory, which begins again
            twice(level, each)
        for level, each in enumerate(levels):
            assert torch.equal(once(level, each).mean, twice(level, each).mean)


@given(st.integers(1, 6), st.integers(0, 3))
def test_going_on_from_a_state_gives_the_very_same_numbers(at, cut) -> None:
    frames = [[_moments(i, full=True), _moments(i + 50, full=True)] for i in range(8)]
    far = [Moments(m.count, m.mean + 3, m.var, m.cov, INSTANCE) for m in frames[cut]]
    frames[cut] = far
    times = np.arange(8) / 25
    whole = _run(MovingMoments(0.3), frames, times)
    first, second = MovingMoments(0.3), MovingMoments(0.3)
    _run(first, frames[:at], times[:at])
    second.restore(first.state())
    for one, two in zip(_run(second, frames[at:], times[at:]), whole[at:], strict=True):
        for a, b in zip(one, two, strict=True):
            assert all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("mean", "cov"))


def test_the_state_holds_every_number_once() -> None:
    moving = MovingMoments(0.3)
    _run(moving, [[_moments(0, full=True)]], [0.0])
    state = moving.state()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_distance_is_that_of_gaussians() -> None:
    def one(mean: float, std: float) -> Moments:
        return Moments(
            torch.ones(1), torch.tensor([[float(mean)]]), torch.tensor([[float(std**2)]])
        )

    assert distance(one(1, 2), one(1, 2)) == 0
    assert distance(one(0, 1), one(1, 1)) == pytest.approx(1)
    assert distance(one(0, 1), one(0, 3)) == pytest.approx(2 / math.sqrt(5))
    assert distance(one(0, 0), one(0, 0)) == 0


def test_photos_are_told_apart_and_pans_are_not(photos) -> None:
    """The threshold, on the shipped network: another photo is a cut, a fast pan is none."""
    from normapps.style.stylizer import Stylizer

    measure = Stylizer.load("adain-tiny", device="cpu").renderer.measure

    def seen(photo: np.ndarray, shift: int) -> Moments:
        view = photo[20:212, shift : shift + 320].copy()
        return measure(torch.from_numpy(view).permute(2, 0, 1)[None])[0]

    scenes = [seen(photo, 0) for photo in photos.values()]
    pans = [distance(scene, seen(p, 30)) for scene, p in zip(scenes, photos.values(), strict=True)]
    pairs = [distance(a, b) for i, a in enumerate(scenes) for b in scenes[:i]]
    assert max(pans) < CUT < min(pairs)


@pytest.mark.parametrize("telling", [0, 1])
def test_a_change_in_either_of_two_levels_lets_all_begin_anew(telling) -> None:
    old = [[_moments(i), _moments(i + 50), _moments(i + 70)] for i in range(4)]
    new = [_far(each) if level == telling else each for level, each in enumerate(old[3])]
    moving = MovingMoments(10.0)
    _run(moving, [*old, new], np.arange(5) / 25)
    moving.state()
    assert moving.cuts == 1
    again = _run(moving, [new], [0.2])[0]
    for got, want in zip(again, new, strict=True):  # nothing of the frames before the change
        assert torch.allclose(got.mean, want.mean, atol=1e-6)
