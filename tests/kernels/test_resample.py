"""Windows on other grids: exact on linear pictures, nothing lost in between, zero outside."""

import numpy as np
import pytest

from xreg.kernels.resample import sample_window, window_positions


@pytest.mark.parametrize("spacing", [0.3, 1.0, 2.7])
def test_linear_pictures_are_sampled_exactly(spacing):
    y, x = np.indices((80, 90), dtype=np.float32)
    picture = 2 * y - 3 * x + 1
    window = np.array([40.2, 44.9, spacing])
    sampled = sample_window(picture, window, 12)
    ys, xs = (window_positions(c, spacing, 12) for c in window[:2])
    expected = 2 * ys[:, None] - 3 * xs + 1
    # A tent wider than a pixel is not quite symmetric on the pixel grid: within 0.15 px of the slope.
    np.testing.assert_allclose(sampled, expected, atol=1e-3 if spacing <= 1 else 0.5)


def test_coarse_samples_keep_the_sum():
    picture = np.zeros((60, 60), np.float32)
    picture[20:40, 25:35] = np.random.default_rng(1).random((20, 10))
    sampled = sample_window(picture, np.array([29.5, 29.5, 3.0]), 20)
    assert sampled.sum() * 9 == pytest.approx(picture.sum(), rel=0.02)


def test_outside_counts_as_zero():
    ones = np.ones((10, 10), np.float32)
    assert sample_window(ones, np.array([-50.0, 5.0, 1.0]), 8).sum() == 0
    half = sample_window(ones, np.array([-0.5, 4.5, 1.0]), 8)
    np.testing.assert_allclose(half[:4], 0)
    np.testing.assert_allclose(half[4:], 1)
