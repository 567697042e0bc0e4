import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels import background

SHAPE = (230, 240)


def spheres(cover, contrast, seed, radius=(12, 40)):
    """Smooth domes that cover a share of a frame, blurred a little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    density = np.zeros(SHAPE)
    while (density > 0).mean() < cover:
        away = (y - rng.uniform(0, SHAPE[0])) ** 2 + (x - rng.uniform(0, SHAPE[1])) ** 2
        inside = 1 - away / rng.uniform(*radius) ** 2
        density = np.maximum(density, contrast * np.sqrt(np.clip(inside, 0, None)))
    return ndimage.gaussian_filter(density, 1)


def grainy(seed=0, shape=SHAPE):
    """Open beam with a fine grain of 5 %."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5, mode="wrap")
    return np.exp(0.05 * field / field.std()).astype(np.float32)


@pytest.mark.parametrize("cover", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("contrast", [0.04, 0.9])
def test_background_under_particles(cover, contrast):
    """Particles are broad and positive; 0.04 is twice the noise of a pixel."""
    errors = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        true = np.array([rng.uniform(-1, 1), 0.1, -0.07])
        surface = background.background_surface(true, SHAPE)
        frame = surface + spheres(cover, contrast, seed) + 0.02 * rng.standard_normal(SHAPE)
        errors.append(background.fit_background(frame.astype(np.float32)) - true)
    offset, *slopes = np.transpose(errors)
    assert np.abs(offset).max() < 0.003
    assert np.abs(slopes).max() < 0.01


def test_background_of_too_little_is_unknown():
    frame = np.full(SHAPE, np.nan, np.float32)
    assert np.isnan(background.fit_background(frame)).all()
    assert np.isnan(background.background_noise(frame))


def test_noise_of_the_background():
    rng = np.random.default_rng(3)
    frame = (spheres(0.3, 0.8, 3) + 0.02 * rng.standard_normal(SHAPE)).astype(np.float32)
    assert background.background_noise(frame) == pytest.approx(0.02, rel=0.05)


def test_wandering_illumination_is_taken_off():
    """A bump that comes and goes between the flats is also found in a frame of particles."""
    y, x = (np.linspace(-1, 1, n) for n in SHAPE)
    bump = np.exp(-8 * ((y[:, None] - 0.3) ** 2 + x**2))
    rng = np.random.default_rng(4)
    flats = np.exp(0.05 * rng.standard_normal((12, 1, 1)) * bump) + 0.01 * rng.standard_normal((12, *SHAPE))
    lit = np.ones(SHAPE, bool)
    modes = background.illumination_modes(flats.astype(np.float32), lit)
    assert len(modes) == 1
    particles = spheres(0.3, 0.5, 4)
    frame = (0.5 + 0.08 * bump + particles + 0.02 * rng.standard_normal(SHAPE)).astype(np.float32)
    found = background.fit_background(frame, lit, modes)
    rest = frame - background.background_surface(found, SHAPE, modes) - particles
    assert ndimage.gaussian_filter(rest, 5).std() < 0.004
    plain = frame - background.background_surface(background.fit_background(frame), SHAPE) - particles
    assert ndimage.gaussian_filter(plain, 5).std() > 0.01
    assert len(background.illumination_modes(np.ones(SHAPE) + 0.01 * rng.standard_normal((12, *SHAPE)), lit)) == 0


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.3), (-0.7, 0.5)])
def test_moved_grain_is_put_right(shift):
    log = np.log(grainy(5))
    moved = ndimage.shift(log, shift, order=5, mode="wrap")
    frame = (log - moved + spheres(0.3, 0.5, 5)).astype(np.float32)
    found = background.grain_shift(frame, log)
    np.testing.assert_allclose(found, shift, atol=0.05)
    rest = frame - background.moved_grain(log, found) - spheres(0.3, 0.5, 5)
    assert rest.std() < 0.25 * (log - moved).std() + 1e-3


def test_no_grain_has_not_moved():
    frame = np.random.default_rng(6).standard_normal(SHAPE).astype(np.float32)
    assert (background.grain_shift(frame, np.zeros(SHAPE, np.float32)) == 0).all()
    assert (background.grain_shift(frame[:2], np.zeros((2, SHAPE[1]), np.float32)) == 0).all()


def test_shared_grain_lowers_the_noise_of_a_reference():
    rng = np.random.default_rng(7)
    flats = rng.poisson(2000 * grainy(7), (12, *SHAPE)).astype(np.float32)
    lit = np.ones(SHAPE, bool)
    grain, noise = background.grain_variances(flats, lit)
    assert noise == pytest.approx(1 / 2000, rel=0.15)  # cells of 3 px take a ninth of it
    assert grain < 0.05 * noise
    mean = flats.mean(axis=0)
    log = background.shrink_grain(flats[0], mean, lit, grain / (grain + noise))
    true = np.log(2000 * grainy(7))
    assert (log - true).std() < 0.5 * (np.log(flats[0]) - true).std()


def test_changing_grain_is_kept():
    rng = np.random.default_rng(8)
    flats = np.stack([rng.poisson(20000 * grainy(seed)) for seed in (1, 1, 2, 2, 3, 3)]).astype(np.float32)
    lit = np.ones(SHAPE, bool)
    grain, noise = background.grain_variances(flats, lit)
    share = grain / (grain + noise / 4)  # of a reference of four flats
    assert share > 0.95
    log = background.shrink_grain(flats[0], flats.mean(axis=0), lit, share)
    np.testing.assert_array_equal(log, np.log(flats[0]))
    assert background.grain_variances(flats[:2], lit) == (0.0, 0.0)
