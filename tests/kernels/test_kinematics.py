"""Rates and paths against paths known in closed form; the common motion against one that was put in."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from xreg.kernels import kinematics
from xreg.kernels.kinematics import (
    common_motion,
    doubtful_sightings,
    first_sighting,
    path_length,
    rates,
    since_first,
    uncut_path,
    whole_places,
)


def planted(still, particles=9, frames=143, noise=0.05, own=4.0, seed=0):
    """Positions of particles of which the first `still` do not move on their own, and the common motion."""
    rng = np.random.default_rng(seed)
    stage = np.cumsum(rng.normal(0, 1, (frames, 2)), axis=0)
    deformation = gaussian_filter1d(rng.normal(size=(particles, frames, 2)), frames / 8, axis=1)
    deformation *= own / np.abs(deformation).max()
    deformation[:still] = 0
    position = rng.uniform(0, 400, (particles, 1, 2)) + stage + deformation + rng.normal(0, noise, deformation.shape)
    return position, stage - stage[0]


def rms(error):
    return np.sqrt(np.nanmean((error - np.nanmean(error, axis=0)) ** 2))


def test_rates_are_exact_for_uniform_acceleration_whatever_the_gaps():
    when = np.arange(20.0)
    x = 3 + 2 * when - 0.25 * when**2
    position = np.stack([x, 10 - when], axis=-1)[None]
    position[0, [3, 4, 11]] = np.nan
    velocity, acceleration = rates(position, when)
    seen = np.isfinite(position[0, :, 0])
    inner = seen & (when > 0) & (when < 19)
    np.testing.assert_allclose(velocity[0, inner, 0], 2 - 0.5 * when[inner])
    np.testing.assert_allclose(acceleration[0, inner], [[-0.5, 0.0]] * inner.sum(), atol=1e-12)
    np.testing.assert_allclose(velocity[0, [0, 19], 0], [x[1] - x[0], x[19] - x[18]])
    assert np.isnan(velocity[0, ~seen]).all()
    assert np.isnan(acceleration[0, ~inner]).all()


def test_rates_by_uneven_time():
    when = np.array([0.0, 1.0, 4.0, 4.5, 9.0])
    position = np.stack([when**2, -when], axis=-1)[None]
    velocity, acceleration = rates(position, when)
    np.testing.assert_allclose(velocity[0, 1:-1], np.stack([2 * when, -np.ones(5)], axis=-1)[1:-1])
    np.testing.assert_allclose(acceleration[0, 1:-1, 0], 2)


def test_time_that_stands_still_or_is_unknown_gives_no_rate():
    position = np.zeros((1, 6, 2))
    velocity, _ = rates(position, np.array([0.0, 1.0, 1.0, 2.0, np.nan, 4.0]))
    np.testing.assert_array_equal(np.isnan(velocity[0, :, 0]), [False, True, True, True, True, True])


def test_a_single_sighting_has_no_rate_but_a_path():
    position = np.full((2, 4, 2), np.nan)
    position[0, 2] = 1.0
    velocity, acceleration = rates(position, np.arange(4.0))
    assert np.isnan(velocity).all()
    assert np.isnan(acceleration).all()
    np.testing.assert_array_equal(path_length(position)[0], [np.nan, np.nan, 0, np.nan])
    np.testing.assert_array_equal(first_sighting(position), [2, -1])
    assert np.isnan(since_first(position, first_sighting(position))[1]).all()


def test_path_is_straight_across_a_gap():
    position = np.array([[[0, 0], [3, 4], [np.nan, np.nan], [3, 16]]], dtype=float)
    np.testing.assert_array_equal(path_length(position)[0], [0, 5, np.nan, 17])


def test_noise_lengthens_the_path_as_the_docstring_says():
    position = np.random.default_rng(0).normal(0, 0.1, (20, 1000, 2))
    assert path_length(position)[:, -1].mean() / 999 == pytest.approx(0.18, rel=0.03)


@pytest.mark.parametrize("still", [2, 3, 9])
def test_undeformed_particles_decide_alone(still):
    position, stage = planted(still)
    common, undeformed = common_motion(position)
    np.testing.assert_array_equal(np.flatnonzero(undeformed), np.arange(still))
    assert rms(common - stage) < 1.2 * 0.05 / np.sqrt(still)
    np.testing.assert_array_equal(common[0], 0)


def test_undeformed_particles_decide_although_often_missed():
    position, stage = planted(4)
    position[np.random.default_rng(1).random(position.shape[:2]) < 0.3] = np.nan
    common, undeformed = common_motion(position)
    assert undeformed.sum() >= 3
    assert not undeformed[4:].any()
    assert rms(common - stage) < 0.1


def test_a_few_strongly_moving_particles_count_little_where_all_deform():
    position, stage = planted(0, particles=30, own=0.5)
    position[:5] += np.linspace(0, 40, 143)[:, None]
    common, undeformed = common_motion(position)
    assert not undeformed.any()
    assert rms(common - stage) < 0.2
    assert rms(np.mean(position - position[:, :1], axis=0) - stage) > 1.5


def test_one_wild_position_does_no_harm():
    position, stage = planted(9)
    position[3, 50] += 200
    assert rms(common_motion(position)[0] - stage) < 0.03


def test_particles_hand_over_to_one_another():
    position, stage = planted(6, particles=6, frames=300)
    for p in range(6):
        position[p, : max(50 * p - 20, 0)] = np.nan
        position[p, 50 * p + 60 :] = np.nan
    common, _ = common_motion(position)
    assert np.isfinite(common).all()
    assert np.abs(common - stage).max() < 0.5


def test_frames_that_nothing_connects_are_unknown():
    position, _ = planted(4, particles=4, frames=60)
    position[:, 20:25] = np.nan
    position[:2, 25:] = np.nan
    position[2:, :25] = np.nan
    common, _ = common_motion(position)
    assert np.isfinite(common[:20]).all()
    assert np.isnan(common[20:]).all()


@pytest.mark.parametrize("shape", [(0, 10), (3, 0), (1, 1), (1, 2), (2, 3)])
def test_few_particles_and_frames(shape):
    position = np.cumsum(np.ones((*shape, 2)), axis=1)
    common, undeformed = common_motion(position)
    assert undeformed.shape == shape[:1]
    if shape[0]:
        np.testing.assert_allclose(common, position[0] - position[0, :1])
    else:
        assert np.isnan(common).all()


def test_nothing_seen():
    common, undeformed = common_motion(np.full((2, 5, 2), np.nan))
    assert np.isnan(common).all()
    assert not undeformed.any()


def test_position_noise_is_that_of_the_positions_whatever_the_motion():
    rng = np.random.default_rng(0)
    time = np.arange(400)
    stage = np.cumsum(rng.normal(0, 0.3, (400, 2)), axis=0)
    own = np.stack([3 * np.sin(time / (30 + 5 * p))[:, None] * [1, -0.5] for p in range(6)])
    contrast = np.tile(np.where(time < 200, 0.2, 0.6), (6, 1)) + rng.normal(0, 0.01, (6, 400))
    truth = np.where(time < 200, 0.15, 0.05)
    position = own + stage + truth[None, :, None] * rng.standard_normal((6, 400, 2))
    position[2, 50:60] = np.nan
    noise = kinematics.position_noise(position, contrast)
    assert np.isnan(noise[2, 50:60]).all()
    np.testing.assert_allclose(np.nanmedian(noise[:, :200]), 0.15, rtol=0.2)
    np.testing.assert_allclose(np.nanmedian(noise[:, 200:]), 0.05, rtol=0.2)
    assert len(np.unique(kinematics.position_noise(position)[0])) == 1


def test_a_sighting_of_another_area_is_doubtful():
    rng = np.random.default_rng(1)
    area = 1000 * (1 + 0.1 * np.linspace(0, 1, 60)) * rng.normal(1, 0.005, (3, 60))     # a particle that grows
    contrast = np.tile([0.3, 0.3, 1.0, 0.9], (3, 15))
    area[1, ::4] *= 0.9                         # before the edge a neighbour has taken a tenth of it
    area[2, 10], contrast[2, 10] = np.nan, np.nan
    cut = np.zeros(area.shape, bool)
    cut[0, 5], cut[2, 10] = True, True
    found = doubtful_sightings(area, contrast, cut)
    expected = cut.copy()
    expected[1, ::4], expected[2, 10] = True, False
    np.testing.assert_array_equal(found > 0, expected)
    np.testing.assert_array_equal(np.isinf(found), cut & np.isfinite(area))
    # A tenth of the area, at a radius of 18 px, moves the centre by less than 4 px.
    np.testing.assert_allclose(found[1, ::4], 0.5 + 0.2 * 18.2, rtol=0.15)
    noisy = 1000 * rng.normal(1, 0.05, (1, 60))
    assert doubtful_sightings(noisy, contrast[:1], cut[:1] & False).astype(bool).mean() < 0.1
    assert not doubtful_sightings(np.full((1, 4), np.nan), np.full((1, 4), np.nan), np.ones((1, 4), bool)).any()


def test_few_whole_sightings_of_many_that_are_cut_do_not_say_what_is_usual():
    """Behind the edge it is seen together with a neighbour that the field of view cuts, but for one frame."""
    area, contrast = np.full((2, 60), 1000.0), np.tile(np.repeat([0.3, 1.0], 30), (2, 1))
    area[0, :30] *= np.random.default_rng(2).normal(1, 0.005, 30)
    area[0, 30:], cut = 1500.0, np.zeros(area.shape, bool)
    cut[0, 30:] = True
    area[0, 50], cut[0, 50] = 1150.0, False
    doubt = doubtful_sightings(area, contrast, cut)
    assert not doubt[0, :30].any()
    assert doubt[0, 50] > 0
    assert not doubt[1].any()


def test_cut_sightings_are_put_where_the_whole_particle_is():
    position, stage = planted(5, particles=7, own=2.0)
    true, cut = position.copy(), np.zeros(position.shape[:2], bool)
    # Never whole: cut by a line 12 px from its centre. The centre of what is seen moves less across it, the area tells.
    across = np.array([0.6, 0.8])
    lost = 0.95 * (true[0] - true[0].mean(axis=0)) @ across
    position[0] -= lost[:, None] * across
    area = np.full(cut.shape, 1000.0)
    area[0] = 500 * np.exp(lost / 12)
    position[6, 40:70] += 8.0                   # cut for a while
    cut[0], cut[6, 40:70] = True, True
    position[6, 50] = np.nan
    doubt = np.where(cut, np.inf, 0.0)
    place, common = whole_places(position, doubt, area)
    np.testing.assert_array_equal(np.isnan(place), np.isnan(position))
    np.testing.assert_array_equal(place[1:6], position[1:6])
    assert rms(common - stage) < 0.06
    error = place - true
    assert rms(error[0]) < 0.1
    assert np.nanmax(np.abs(error[6])) < 0.6
    unmended, _ = whole_places(position, np.zeros_like(doubt), area)
    assert rms(unmended[0] - true[0]) > 2


def test_a_cut_particle_is_followed_in_what_it_moves_by_itself():
    rng = np.random.default_rng(8)
    common = np.cumsum(rng.normal(0, 1, (120, 2)), axis=0)
    true = common + np.linspace(0, [6.0, 2.0], 120)
    lost = 0.5 * true[:, 0]
    centre = true - lost[:, None] * [1.0, 0.0] + rng.normal(0, 0.05, true.shape)
    area = 800 * np.exp((lost - lost.mean()) / 12 + rng.normal(0, 0.005, 120))
    error = rms(uncut_path(centre, area, common) - true)
    assert error < 0.3
    assert rms(common - true) > 4 * error
    assert rms(centre - true) > 4 * error


def test_a_cut_region_that_is_suddenly_another_moves_as_all_do():
    rng = np.random.default_rng(6)
    common = np.cumsum(rng.normal(0, 1, (60, 2)), axis=0)
    common[30:] += [20.0, 12.0]
    lost = 0.5 * common[:, 0]
    centre = common - lost[:, None] * [1.0, 0.0]
    area = 800 * np.exp((lost - lost.mean()) / 12)
    # Behind the edge the neighbour is told apart no more.
    centre[30:], area[30:] = centre[30:] + np.array([6.0, -9.0]), 1.6 * area[30:]
    for frames in (slice(None), slice(28, 32)):
        path = uncut_path(centre[frames], area[frames], common[frames])
        assert rms(path - common[frames]) < 1e-6
    nothing = np.full((4, 2), np.nan)
    assert np.isnan(uncut_path(nothing, nothing[:, 0], np.zeros((4, 2)))).all()
    np.testing.assert_allclose(uncut_path(centre[:4], np.full(4, 9.0), nothing), centre[:4])


def test_a_sighting_is_not_moved_farther_than_its_region_explains():
    """One particle jumps; those that are seen with a little less area before that did not."""
    position, _ = planted(5, particles=3, own=0.5)
    true, doubt = position.copy(), np.zeros(position.shape[:2])
    position[0, :30] -= 18.0
    doubt[1:, :30] = 1.5
    place, _ = whole_places(position, doubt, np.full(doubt.shape, 900.0))
    assert np.abs(place[1:] - true[1:]).max() < 2


def test_where_only_cut_particles_are_seen_they_decide():
    position, stage = planted(4, particles=4)
    cut = np.full(position.shape[:2], np.inf)
    area = np.full(cut.shape, 900.0)
    place, common = whole_places(position, cut, area)
    assert rms(common - stage) < 0.06
    assert rms((place - position).swapaxes(0, 1)) < 0.2
    position[1:], cut[0] = np.nan, 0.0
    assert np.isfinite(whole_places(position, cut, area)[1]).all()
