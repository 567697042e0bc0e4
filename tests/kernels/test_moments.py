"""Moments: the centre of mass of a planted disc, and the one contour that is meant."""

import numpy as np

from xreg.kernels.moments import centre_of_mass, single_contour


def disc(shape, centre, radius):
    y, x = np.indices(shape)
    return np.clip(radius - np.hypot(y - centre[0], x - centre[1]) + 0.5, 0, 1)


def test_centre_of_a_planted_disc():
    mass, centre = centre_of_mass(disc((60, 70), (30.3, 40.7), 12))
    np.testing.assert_allclose(centre, (30.3, 40.7), atol=0.01)
    np.testing.assert_allclose(mass, np.pi * 144, rtol=0.01)


def test_moments_follow_a_shift_and_ignore_scale():
    picture = np.random.default_rng(0).random((20, 30))
    _, here = centre_of_mass(np.pad(picture, 5))
    _, there = centre_of_mass(3 * np.roll(np.pad(picture, 5), (2, -3), (0, 1)))
    np.testing.assert_allclose(there - here, (2, -3))


def test_empty_contour_has_no_centre():
    mass, centre = centre_of_mass(np.zeros((2, 4, 4)))
    assert (mass == 0).all()
    assert np.isnan(centre).all()


def test_single_contour_keeps_the_piece_that_the_seed_means():
    two = disc((60, 60), (15, 15), 10) + disc((60, 60), (42, 42), 12)
    kept = single_contour(two, disc((60, 60), (16, 14), 5))
    np.testing.assert_allclose(centre_of_mass(kept)[1], (15, 15), atol=0.01)
    assert single_contour(np.zeros((8, 8)), np.ones((8, 8))).sum() == 0
