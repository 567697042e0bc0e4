"""Contrast over noise and over the background's own texture: what is planted is measured."""

import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels.significance import background_unevenness, contour_contrast


def test_unevenness_is_that_of_places_of_the_contours_size():
    rng = np.random.default_rng(1)
    windows = np.array([[90.0, 90.0, 0.5], [200.0, 260.0, 1.0]])
    away = np.hypot(*(np.indices((96, 96)) - 47.5))
    contours = np.stack([np.clip(28 - away + 0.5, 0, 1), np.clip(30 - away + 0.5, 0, 1)]).astype(np.float32)
    areas = contours.sum((1, 2)) * windows[:, 2] ** 2
    noise = rng.standard_normal((600, 630)).astype(np.float32)
    # White noise: of Gaussian means of s px and of 2 s px, of which the difference is taken, s half of the radius.
    radius = 2.0 ** np.round(np.log2(np.sqrt(areas / np.pi) / 3)) * 3
    expected = np.sqrt(1 + 1 / 4 - 2 * 2 / 5) / (2 * np.sqrt(np.pi) * radius / 2)
    measured = background_unevenness(noise, windows, contours, areas)
    np.testing.assert_allclose(measured, expected, rtol=0.3)
    # What contours hold, a tilt, and what is not valid are no texture.
    y, x = np.indices(noise.shape)
    other = noise + 0.002 * y - 0.003 * x + np.where(np.hypot(y - 200, x - 260) < 30, 50, 0)
    other[:, 500:] = np.nan
    np.testing.assert_allclose(background_unevenness(other, windows, contours, areas), measured, rtol=0.3)
    # Texture of the contour's size counts, fine texture of the same strength hardly does.
    coarse, fine = (ndimage.gaussian_filter(rng.standard_normal(noise.shape), s) for s in (14, 2))
    coarse, fine = (background_unevenness((t / t.std()).astype(np.float32), windows, contours, areas)[1]
                    for t in (coarse, fine))
    assert coarse > 2.5 * fine
    closed = np.where(np.hypot(y - 90, x - 90) < 22, noise, np.nan)
    np.testing.assert_array_equal(background_unevenness(closed, windows, contours, areas), 0)


def test_contrast_counts_photon_noise_and_uneven_surroundings():
    rng = np.random.default_rng(3)
    y, x = np.indices((96, 96))
    disc = np.clip(25 - np.hypot(y - 48, x - 48), 0, 1)
    lit = np.ones_like(disc)
    noise = 0.1 * rng.standard_normal((96, 96))
    contrast, significance = contour_contrast(0.5 * disc + noise, disc, lit, 0.1)
    assert contrast == pytest.approx(0.5, abs=0.03)
    # Photon noise, and the same noise measured around the contour.
    expected = 0.5 / (0.1 * np.sqrt(2) * np.sqrt(1 / (disc > 0.5).sum() + 1 / 2000))
    assert significance == pytest.approx(expected, rel=0.3)
    assert abs(contour_contrast(noise, disc, lit, 0.1)[1]) < 4
    # The noise of this corner, and its grain, are measured where they are.
    grain = ndimage.gaussian_filter(rng.standard_normal((96, 96)), 1.5)
    uneven = contour_contrast(0.5 * disc + 0.3 * grain / grain.std(), disc, lit, 0.0)[1]
    assert uneven < significance / 4
    assert contour_contrast(noise, np.zeros_like(disc), lit, 0.0) == (0.0, 0.0)
    assert contour_contrast(noise, disc, 0 * lit, 0.0) == (0.0, 0.0)
