"""Pictures on other grids: the same picture on its own grid, smooth functions between pixels, honest edges."""

import numpy as np
import pytest

from xreg.kernels.planes import sample_plane, spline_coefficients, valid_samples


@pytest.mark.parametrize("shape", [(60, 80), (300, 310)])
@pytest.mark.parametrize("step", [1.0, 0.996, 1.3])
def test_a_smooth_picture_is_sampled_where_asked(shape, step):
    y, x = np.mgrid[:shape[0], :shape[1]]

    def picture(y, x):
        return np.sin(y / 5) + np.cos(x / 6 + y / 9)

    first, size = np.array([3.3, 7.8]), (24, 31)
    found = sample_plane(spline_coefficients(picture(y, x).astype(np.float32)), first, step, size)
    rows, columns = (first[a] + step * np.arange(size[a]) for a in (0, 1))
    np.testing.assert_allclose(found, picture(rows[:, None], columns), atol=2e-3)


def test_its_own_grid_gives_the_picture_back_to_the_edge():
    picture = np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32)
    found = sample_plane(spline_coefficients(picture), np.zeros(2), 1.0, (40, 300))
    np.testing.assert_allclose(found, picture, atol=1e-5)


def test_a_sample_is_valid_if_all_pixels_around_it_are():
    valid = np.ones((10, 12), bool)
    valid[4, 5] = False
    found = valid_samples(valid, np.array([-0.5, 0.0]), 0.5, (24, 25))
    rows, columns = -0.5 + 0.5 * np.arange(24), 0.5 * np.arange(25)
    near = (np.abs(rows - 4) < 1)[:, None] & (np.abs(columns - 5) < 1)
    off = ((rows < 0) | (rows > 9))[:, None] | (columns > 11)
    np.testing.assert_array_equal(found, ~(near | off))
    assert valid_samples(valid, np.array([0.0, 6.0]), 0.5, (5, 5)).all()
