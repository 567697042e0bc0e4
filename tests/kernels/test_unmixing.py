"""Shifts with background and particle unknown: against the truth, and against what noise allows."""

import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels.unmixing import unmix

N, SIDE, NOISE = 16, 70, 0.012
Y, X = np.mgrid[-SIDE // 2:SIDE // 2, -SIDE // 2:SIDE // 2]


def scene(ground, shift, contrast, texture=0.03):
    rng = np.random.default_rng(0)
    wide = ndimage.gaussian_filter(rng.normal(size=(SIDE + 40, SIDE + 40)), 2.5)
    wide *= texture / wide.std()
    picture = ndimage.gaussian_filter((np.hypot(Y, X) < 18) * (0.5 + 0.1 * np.sin(Y / 3)), 1)
    windows = np.stack([
        ndimage.shift(wide, g, order=3)[20:-20, 20:-20] + c * ndimage.shift(picture, s, order=3)
        for g, s, c in zip(ground, shift, contrast, strict=True)])
    return windows + rng.normal(0, NOISE, windows.shape), wide


def power_of(wide):
    power = np.abs(np.fft.fft2(wide)) ** 2 / wide.size
    length = np.hypot(np.fft.fftfreq(len(wide))[:, None], np.fft.fftfreq(len(wide))[None])
    ring = (length * 50).astype(int)
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return lambda q: np.interp(q, (np.arange(len(mean)) + 0.5) / 50, mean)


@pytest.mark.parametrize("with_level", [0.0, 0.2])
def test_a_particle_that_hardly_moves_against_the_background_is_found(with_level):
    rng = np.random.default_rng(1)
    contrast = np.repeat([0.25, 1.0], N // 2)
    ground = rng.normal(0, 0.7, (N, 2))
    shift = rng.normal(0, 0.15, (N, 2))
    shift[:, 0] += np.where(contrast < 1, -0.3, 0.3)      # elsewhere before the edge than behind it
    shift -= shift.mean(axis=0)
    windows, wide = scene(ground, shift, contrast)
    windows += with_level * rng.normal(size=(N, 1, 1)) + with_level * rng.normal(size=(N, 1, 1)) * Y / SIDE
    taper = np.clip((33 - np.hypot(Y, X)) / 10, 0, 1)
    found = unmix(windows, contrast, ground, taper**2 * (3 - 2 * taper), power_of(wide))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    error = found - shift
    assert np.sqrt((error**2).sum(-1).mean()) < 0.05
    assert np.abs(error[:8].mean(0) - error[8:].mean(0)).max() < 0.05


@pytest.mark.parametrize("strength", [1, 100, 10000])
def test_what_is_behind_a_particle_may_be_plainer_than_what_is_beside_it(strength):
    rng = np.random.default_rng(3)
    contrast, ground = np.repeat([0.25, 1.0], N // 2), rng.normal(0, 0.05, (N, 2))
    shift = rng.normal(0, 0.05, (N, 2))         # hardly any motion that would tell the two apart
    shift[:, 1] += np.where(contrast < 1, -0.4, 0.4)
    shift -= shift.mean(axis=0)
    windows, wide = scene(ground, shift, contrast, texture=0.003)
    taper, power = np.clip((33 - np.hypot(Y, X)) / 10, 0, 1), power_of(wide)
    error = unmix(windows, contrast, ground, taper, lambda q: strength * power(q)) - shift
    assert np.abs(error[:8].mean(0) - error[8:].mean(0)).max() < 0.03


def test_windows_without_a_particle_stay_where_they_are():
    found = unmix(np.zeros((4, 40, 40)), np.ones(4), np.zeros((4, 2)), np.ones((40, 40)), np.ones_like)
    np.testing.assert_allclose(found, 0, atol=1e-6)
