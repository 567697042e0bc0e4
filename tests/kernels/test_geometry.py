"""The magnification is undone and put back, about the right point and in the right direction."""

import numpy as np
import pytest

from xreg.kernels.geometry import frame_centre, pixel_scale, to_raw, to_reference

SHAPE = (101, 61)


def test_scale_is_energy_over_reference_energy():
    np.testing.assert_allclose(pixel_scale([8000.0, 8400.0], "proportional-to-energy", 8000.0), [1.0, 1.05])


def test_reference_energy_defaults_to_the_median():
    scale = pixel_scale([8000.0, np.nan, 8100.0, 8300.0], "proportional-to-energy")
    np.testing.assert_allclose(scale, [8000 / 8100, np.nan, 1.0, 8300 / 8100])


def test_constant_magnification_has_scale_one_even_without_energies():
    np.testing.assert_array_equal(pixel_scale([np.nan, 8000.0]), [1.0, 1.0])


def test_features_shrink_about_the_centre_as_energy_grows():
    scale = pixel_scale(8400.0, "proportional-to-energy", 8000.0)
    centre = frame_centre(SHAPE)
    np.testing.assert_array_equal(centre, [50.0, 30.0])
    np.testing.assert_allclose(to_raw(centre, scale, SHAPE), centre)
    np.testing.assert_allclose(to_raw(centre + np.array([42.0, -21.0]), scale, SHAPE), centre + np.array([40.0, -20.0]))


def test_there_and_back_over_leading_dims():
    rng = np.random.default_rng(0)
    position = rng.uniform(0, 60, (4, 5, 2))
    position[1, 2] = np.nan
    scale = rng.uniform(0.9, 1.1, 5)
    np.testing.assert_allclose(to_raw(to_reference(position, scale, SHAPE), scale, SHAPE), position)


def test_unknown_magnification_is_refused():
    with pytest.raises(ValueError, match="magnification is 'variable'; need one of 'constant', 'proportional"):
        pixel_scale([8000.0], "variable")


@pytest.mark.parametrize("energy", [0.0, -1.0, np.nan, np.inf])
def test_impossible_reference_energy_is_refused(energy):
    with pytest.raises(ValueError, match=r"need a positive number\. Give pixel_size_energy_ev"):
        pixel_scale([8000.0], "proportional-to-energy", energy)
