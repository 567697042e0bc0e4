import numpy as np
import pytest

from xreg.kernels.references import choose_flats


def test_flats_of_the_frames_own_energy_are_averaged():
    choice = choose_flats(np.array([8324.1, 8354.0]), np.array([8324.0, 8324.0, 8354.0]))
    flats, weights = choice.needed(slice(None))
    assert flats.tolist() == [0, 1, 2]
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0], [0, 0, 1]])
    flats, weights = choice.needed(slice(1, 2))
    assert flats.tolist() == [2]
    np.testing.assert_allclose(weights, [[1]])


def test_flats_are_interpolated_between_energies():
    choice = choose_flats(np.array([8330.0, 8300.0, 8400.0]), np.array([8320.0, 8340.0, 8360.0]))
    _, weights = choice.needed(slice(None))
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]])


def test_flats_of_the_own_scan_are_preferred():
    energy = np.full(4, 8324.0)
    choice = choose_flats(energy, energy, scan=np.array([0, 0, 1, 2]), flat_scan=np.array([0, 1, 1, 1]))
    _, weights = choice.needed(slice(None))
    np.testing.assert_allclose(weights[:3], [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(weights[3], 0.25)  # a scan without flats of its own


def test_flats_that_bracket_a_frame_in_time_serve_and_distant_ones_do_not():
    flat_time = np.array([-30.0, 40.0, 3600.0, np.nan])
    choice = choose_flats(np.full(2, 8324.0), np.full(4, 8324.0), time=np.array([0.0, np.nan]), flat_time=flat_time)
    _, weights = choice.needed(slice(None))
    np.testing.assert_allclose(weights[0], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(weights[1], 0.25)


def test_no_more_flats_than_help():
    choice = choose_flats(np.array([8324.0]), np.full(100, 8324.0))
    flats, weights = choice.needed(slice(None))
    assert len(flats) == 16
    assert (flats[0], flats[-1]) == (0, 99)
    assert weights.sum() == pytest.approx(1)


def test_frames_without_a_reference():
    choice = choose_flats(np.array([np.nan, 8324.0]), np.array([8324.0]))
    assert choice.recipe.tolist() == [-1, 0]
    assert choice.needed(slice(0, 1))[0].size == 0
    assert choose_flats(np.array([8324.0]), np.zeros(0)).recipe.tolist() == [-1]
