"""A contour is moved to where the particle begins, whatever the shape of its rim, and stays where nothing says that."""

import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels.rim import extend_to_rim

N = 96


def particle(radius, *, q=0.5, p=2.0, blur=1.0, noise=0.0, seed=0, centre=(47.5, 47.5)):
    """Picture of a particle, and distance of every sample from its centre."""
    y, x = np.indices((N, N)) - np.reshape(centre, (2, 1, 1))
    rho = np.hypot(y, x)
    picture = ndimage.gaussian_filter(np.clip(1 - (rho / radius) ** p, 0, 1) ** q, blur)
    return picture + noise * np.random.default_rng(seed).normal(size=picture.shape), rho


def drawn(rho, radius):
    return np.clip(radius - rho + 0.5, 0, 1)


def overlap(contour, rho, radius):
    ours, true = contour > 0.5, rho < radius
    return (ours & true).sum() / (ours | true).sum()


FREE = np.ones((N, N), bool)


@pytest.mark.parametrize("off", [-1.5, -0.7, 1.0])
def test_contours_that_are_small_or_large_come_to_the_rim(off):
    before, after = [], []
    for q, p in [(0.1, 2), (0.3, 3), (0.5, 2), (0.5, 5), (0.8, 3)]:
        for blur in (0.7, 1.5, 2.5):
            picture, rho = particle(28, q=q, p=p, blur=blur, noise=0.02)
            contour = drawn(rho, 28 + off)
            before.append(overlap(contour, rho, 28))
            after.append(overlap(extend_to_rim(picture, contour, FREE), rho, 28))
    assert np.mean(after) > 0.965
    assert np.mean(after) > np.mean(before) + 0.01
    assert np.min(after) > np.min(before) - 0.02


def test_neighbours_and_gaps_do_not_matter_and_the_centre_stays():
    picture, rho = particle(26, noise=0.02, centre=(46.0, 49.0))
    free = FREE.copy()
    free[:, 70:], picture[:, 70:] = False, 1.0
    small = drawn(rho, 24.5)
    contour = extend_to_rim(picture, small, free)
    assert overlap(contour, rho, 26) > 0.96 > overlap(small, rho, 26) + 0.03
    mass = contour.sum()
    centre = [(contour * place).sum() / mass for place in np.indices((N, N))]
    np.testing.assert_allclose(centre, (46.0, 49.0), atol=0.1)


def test_what_nothing_is_known_of_stays():
    picture, rho = particle(28)
    small = drawn(rho, 27)
    np.testing.assert_array_equal(extend_to_rim(picture, small, ~FREE), small)
    speck = drawn(rho, 3)
    np.testing.assert_array_equal(extend_to_rim(picture, speck, FREE), speck)
    nothing = np.zeros((N, N))
    np.testing.assert_array_equal(extend_to_rim(picture, nothing, FREE), nothing)
    loud = np.random.default_rng(1).normal(size=(N, N))
    assert abs(np.sqrt(extend_to_rim(loud, small, FREE).sum() / np.pi) - 27) < 0.7
