"""Paths follow what the positions say, are nearer to the truth than these, and know by how much."""

import numpy as np
import pytest

from xreg.kernels import smoothing, trend
from xreg.kernels.smoothing import smooth_paths

FRAMES = 120


def planted(own, *, noise=0.03, stays=0.0, shared_off=0.3, seed=0):
    """True places, positions, standard errors, and a shared motion that is known badly; the last row is the stage."""
    rng = np.random.default_rng(seed)
    shared = np.cumsum(rng.normal(0, 0.5, (FRAMES, 2)), axis=0) + rng.normal(0, 1, (FRAMES, 2))
    own = np.concatenate([own, np.zeros((1, FRAMES, 2))])
    sigma = noise * rng.uniform(0.5, 2, (len(own), 1, 1)) * np.where(np.arange(FRAMES) < 40, 3.0, 1.0)[None, :, None]
    sigma = np.broadcast_to(sigma, own.shape).copy()
    true = rng.uniform(50, 400, (len(own), 1, 2)) + shared + own
    bias = np.repeat(rng.normal(0, 1, (len(own), FRAMES // 20, 2)), 20, axis=1)
    seen = true + sigma * (np.sqrt(1 - stays**2) * rng.normal(0, 1, own.shape) + stays * bias)
    return true, seen, sigma, shared + shared_off * rng.normal(0, 1, shared.shape)


def waves(n=6, size=4.0, seed=1):
    rng = np.random.default_rng(seed)
    time = np.arange(FRAMES)[None, :, None] / FRAMES
    return size * np.sin(2 * np.pi * (rng.uniform(0.3, 1.5, (n, 1, 2)) * time + rng.uniform(0, 1, (n, 1, 2))))


def rms(places, true):
    error = places - true
    error = error - np.nanmedian(error, axis=1, keepdims=True)
    return np.sqrt(np.nanmean((error**2).sum(-1)))


def ratio(places, true, sigma):
    error = places - true
    scaled = (error - np.nanmedian(error, axis=1, keepdims=True)) / sigma
    return 1.4826 * np.nanmedian(np.abs(scaled))


@pytest.mark.parametrize("own", [np.zeros((6, FRAMES, 2)), waves()], ids=["still", "waves"])
def test_smooth_motion_is_known_better_than_from_one_frame(own):
    true, seen, sigma, shared = planted(own)
    paths = smooth_paths(seen, sigma, shared[None])
    assert rms(paths.position, true) < 0.6 * rms(seen, true)
    assert 0.5 < ratio(paths.position, true, paths.sigma) < 1.15
    assert (paths.sigma < 1.1 * sigma).all()


def test_errors_that_stay_are_not_averaged_out_and_sigma_says_so():
    true, seen, sigma, shared = planted(waves(), stays=0.6)
    paths = smooth_paths(seen, sigma, shared[None])
    assert rms(paths.position, true) < 0.8 * rms(seen, true)
    assert 0.7 < ratio(paths.position, true, paths.sigma) < 1.3


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("kind", ["walk", "shake"])
def test_motion_from_frame_to_frame_is_left_as_measured(kind, size):
    own = np.random.default_rng(3).normal(0, size, (6, FRAMES, 2))
    true, seen, sigma, shared = planted(np.cumsum(own, axis=1) if kind == "walk" else own)
    paths = smooth_paths(seen, sigma, shared[None])
    assert rms(paths.position[:-1], true[:-1]) < 1.05 * rms(seen[:-1], true[:-1])
    assert 0.7 < ratio(paths.position[:-1], true[:-1], paths.sigma[:-1]) < 1.3


@pytest.mark.parametrize("size", [0.3, 1.0, 5.0])
def test_a_particle_that_jumps_jumps_in_one_step(size):
    own = waves()
    own[2, 70:] += size
    true, seen, sigma, shared = planted(own)
    paths = smooth_paths(seen, sigma, shared[None])
    error = paths.position[2] - true[2]
    error -= np.median(error, axis=0)
    assert np.abs(error[65:75]).max() < 4 * sigma[2, 70, 0]
    assert rms(paths.position, true) < 0.6 * rms(seen, true)


def test_an_error_on_its_own_is_left_out_and_a_short_motion_is_not():
    own = waves()
    own[1, 60:66] += [[1, 0], [2, 1], [2, 2], [3, 2], [2, 1], [1, 1]]
    true, seen, sigma, shared = planted(own)
    seen[4, 50] += 2.0
    paths = smooth_paths(seen, sigma, shared[None])
    offset = np.median(paths.position - true, axis=1)
    assert np.abs(paths.position[4, 50] - true[4, 50] - offset[4]).max() < 4 * paths.sigma[4, 50, 0]
    assert np.abs(paths.position[1, 60:66] - true[1, 60:66] - offset[1]).max() < 4 * sigma[1, 60, 0]


def test_what_is_not_seen_often_or_alone_stays_as_it_is():
    true, seen, sigma, shared = planted(waves())
    seen[0, 15:], seen[1, 30:60] = np.nan, np.nan
    shared[100] = np.nan
    paths = smooth_paths(seen, sigma, shared[None])
    np.testing.assert_array_equal(np.isnan(paths.position), np.isnan(seen))
    np.testing.assert_array_equal(paths.position[0], seen[0])
    np.testing.assert_array_equal(paths.position[:, 100], seen[:, 100])
    assert rms(paths.position[1:], true[1:]) < 0.6 * rms(seen[1:], true[1:])
    alone = smooth_paths(seen[2:3], sigma[2:3], shared[None])
    np.testing.assert_array_equal(alone.position, seen[2:3])
    np.testing.assert_array_equal(alone.sigma, sigma[2:3])


def test_shared_motion_may_be_known_badly_and_paths_do_not_depend_on_it():
    true, seen, sigma, _ = planted(waves())
    results = [smooth_paths(seen, sigma, planted(waves(), shared_off=off)[3][None]).position for off in (0.0, 0.5)]
    assert rms(results[1], true) < 1.15 * rms(results[0], true)


def test_some_particles_at_a_time_are_all_at_once(monkeypatch):
    _, seen, sigma, shared = (a[:3] if a.ndim == 3 else a for a in planted(waves()))
    whole = smooth_paths(seen, sigma, shared[None])
    for module in (smoothing, trend):
        monkeypatch.setattr(module, "MOST_NUMBERS", 64 * len(smoothing._MODELS))
    parts = smooth_paths(seen, sigma, shared[None])
    np.testing.assert_array_equal(parts.position, whole.position)
    np.testing.assert_array_equal(parts.sigma, whole.sigma)


def weakness(n):
    """Three times as strong behind the edge at frame 40, but for some frames about it."""
    return np.tile(2 / (1 + np.exp((np.arange(FRAMES) - 40) / 3)), (n, 1))


def test_what_pulls_a_weak_particle_for_long_is_no_motion():
    true, seen, sigma, shared = planted(np.zeros((6, FRAMES, 2)))
    pull = weakness(7)
    pull[-1] = 0
    seen += np.random.default_rng(9).normal(0, 0.06, (7, 1, 2)) * pull[..., None]
    plain, told = (smooth_paths(seen, sigma, shared[None], p) for p in (None, pull))
    assert rms(told.position, true) < 0.6 * rms(plain.position, true)
    assert 0.5 < ratio(told.position, true, told.sigma) < 1.25


def test_pulls_are_not_found_where_there_are_none():
    true, seen, sigma, shared = planted(waves())
    plain, told = (smooth_paths(seen, sigma, shared[None], p) for p in (None, weakness(7)))
    assert rms(told.position, true) < 1.05 * rms(plain.position, true)


def test_what_moves_by_itself_while_it_is_weak_is_not_held_for_pulled():
    """One scan: to come to rest as the contrast rises is a motion that a pull describes as well."""
    moving = np.random.default_rng(4).normal(0, 0.5, (6, 1, 2)) * weakness(6)[..., None]
    true, seen, sigma, shared = planted(moving)
    pull = np.concatenate([weakness(6), np.zeros((1, FRAMES))])
    told = smooth_paths(seen, sigma, shared[None], pull)
    assert rms(told.position, true) < 1.1 * rms(seen, true)


def test_the_likelier_start_counts():
    true, seen, sigma, shared = planted(np.zeros((6, FRAMES, 2)))
    bad = shared + np.random.default_rng(2).normal(0, 2, shared.shape)
    alone = smooth_paths(seen, sigma, shared[None])
    for starts in ([bad, shared], [shared, bad]):
        both = smooth_paths(seen, sigma, np.stack(starts))
        assert rms(both.position, true) <= 1.02 * rms(alone.position, true)
