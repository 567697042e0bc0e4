import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels import intensity

SHAPE = (230, 240)


def grainy(seed=0, shape=SHAPE):
    """Open beam with a fine grain of 5 %."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5, mode="wrap")
    return np.exp(0.05 * field / field.std()).astype(np.float32)


def test_optical_density_is_a_natural_logarithm_and_never_clipped():
    rate = np.array([[1.0, 2.0, 0.0, -1.0, np.nan, 1.0]], dtype=np.float32)
    log = np.log(np.array([[np.e, 1.0, 1.0, 1.0, 1.0, 1.0]], dtype=np.float32))
    log[0, 5] = np.nan
    density = intensity.optical_density(rate, log)
    np.testing.assert_allclose(density, [[1.0, -np.log(2), np.nan, np.nan, np.nan, np.nan]], rtol=1e-6)
    assert density.dtype == np.float32


def test_flat_of_a_flat_is_nothing():
    flat = grainy()
    np.testing.assert_allclose(intensity.optical_density(flat, np.log(flat)), 0, atol=1e-6)


def test_repair_takes_the_median_of_the_neighbours():
    image = np.arange(25.0).reshape(5, 5)
    bad = np.zeros((5, 5), bool)
    bad[2, 2] = bad[0, 0] = True
    image[2, 2] = 1e6
    repaired = intensity.repair(image, bad)
    assert repaired[2, 2] == 12
    assert repaired[0, 0] == 5
    assert (repaired[~bad] == image[~bad]).all()
    assert np.isnan(intensity.repair(image, np.ones((5, 5), bool))).all()


def test_local_outliers_are_found_and_nothing_else():
    rng = np.random.default_rng(1)
    image = rng.poisson(1000 * grainy()).astype(np.float32)
    where = rng.choice(image.size, 20, replace=False)
    image.ravel()[where[:10]] += 2000
    image.ravel()[where[10:]] = 0
    found = intensity.local_outliers(image, least=0.25)
    assert set(np.flatnonzero(found)) == set(where)
    image[3, 3] = np.nan
    assert intensity.local_outliers(image)[3, 3]


@pytest.mark.parametrize("pattern", [0.0, 5.0])
def test_average_dark_keeps_a_pattern_but_not_noise(pattern):
    rng = np.random.default_rng(2)
    true = 100 + pattern * rng.standard_normal(SHAPE)
    true[50, 60] = 9000
    dark = intensity.average_dark(true + 3 * rng.standard_normal((4, *SHAPE)))
    plain = 3 / np.sqrt(4)
    error = np.delete((dark - true).ravel(), 50 * SHAPE[1] + 60).std()
    assert error < (1.05 * plain if pattern else 0.3 * plain)
    assert dark[50, 60] == pytest.approx(9000, abs=10)


def test_lit_field():
    assert intensity.lit_field(grainy()).all()
    spot = np.ones(SHAPE, np.float32)
    spot[-20:] = 0.01
    spot[:30, :40] = 0.02
    spot[100:104, 100:104] = 0.0
    lit = intensity.lit_field(spot * grainy())
    assert not lit[-20:].any()
    assert not lit[:28, :38].any()
    assert lit[100:104, 100:104].all()
    assert lit[50:-30].all()
