"""Fits to a template: planted shifts come back, whatever contrast, chemistry, background and neighbours do."""

from functools import partial

import numpy as np
import pytest

from xreg.kernels.subpixel import Template, measure_shift, refine_position
from xreg.kernels.windows import cut_window

HALF = 32


def particle(y, x):
    """A lumpy plate of about 18 px radius with soft edges."""
    radius = 18 + 2 * np.cos(3 * np.arctan2(y, x) + 0.4) + 1.5 * np.sin(2 * np.arctan2(y, x))
    return (1 + 0.1 * np.sin(y / 4 + x / 7)) / (1 + np.exp((np.hypot(y, x) - radius) / 0.7))


def frame(centre, contrast=1.0, tilt=0.0, side=0.0, noise=0.0, seed=0):
    y, x = np.mgrid[:110, :120]
    dy, dx = y - centre[0], x - centre[1]
    picture = contrast * (1 + side * dx / 18) * particle(dy, dx) + tilt * (dy + 0.5 * dx) / 100 + 0.1 * tilt
    return (picture + noise * np.random.default_rng(seed).standard_normal(picture.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def template():
    offset = np.arange(-HALF, HALF + 1.0)
    picture = particle(offset[:, None], offset)
    return Template.of(picture, picture > 0.5)


def locate(picture, start, template):
    cut = partial(cut_window, picture, step=1.0, half=template.half)
    return refine_position(cut, np.array(start), 1.0, template)


@pytest.mark.parametrize("contrast", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("centre", [(50.0, 60.0), (51.37, 58.81)])
def test_planted_shifts_come_back(template, centre, contrast):
    found = locate(frame(centre, contrast, tilt=0.3), (50.5, 59.6), template)
    assert found.position == pytest.approx(centre, abs=0.01)
    assert found.contrast == pytest.approx(contrast, rel=0.02)


def test_chemistry_on_one_side_is_not_motion(template):
    centre = (50.3, 60.2)
    found = locate(frame(centre, side=0.2), (50.0, 60.0), template)
    assert found.position == pytest.approx(centre, abs=0.03)


@pytest.mark.parametrize("change", [[[0.01, 0], [0, 0.01]], [[0, 0.02], [-0.02, 0]], [[0.01, 0.01], [0, -0.01]]],
                         ids=["grows", "turns", "shears"])
def test_a_particle_that_is_strained_or_turned_stays_in_its_place(change):
    y, x = np.mgrid[:110, :120].astype(float)
    offset = np.arange(-HALF, HALF + 1.0)

    def lopsided(y, x):
        # One of its edges is much stronger than the others.
        return particle(y, x) * (1 + 0.9 * np.tanh(x / 6))

    picture = lopsided(offset[:, None], offset)
    template = Template.of(picture, particle(offset[:, None], offset) > 0.5)
    centre = np.array([50.3, 60.2])
    moved = np.einsum("ij,j...->i...", np.eye(2) - change, np.stack([y - centre[0], x - centre[1]]))
    found = locate(lopsided(*moved).astype(np.float32), (50.0, 60.0), template)
    assert found.position == pytest.approx(centre, abs=0.015)


def test_noise_scatters_the_position_near_its_bound(template):
    noise, centre = 0.1, np.array([50.3, 60.2])
    fits = [locate(frame(centre, noise=noise, seed=s), centre, template) for s in range(60)]
    found = np.array([f.position for f in fits])
    slopes = template.basis[..., -2:][template.mask]
    bound = noise / np.sqrt((slopes**2).sum(0))
    # Twelve more numbers are fitted, and slopes of the sampled template are a little too flat.
    assert (found.std(0) < 1.5 * bound).all()
    np.testing.assert_allclose(found.mean(0), centre, atol=4 * bound.max() / np.sqrt(60))
    # The standard errors say how much they scatter.
    sigma = np.median([f.sigma for f in fits], axis=0)
    assert (0.8 < found.std(0) / sigma).all()
    assert (found.std(0) / sigma < 1.25).all()


def test_what_is_not_seen_does_not_pull(template):
    centre = (50.0, 60.0)
    y, x = np.mgrid[:110, :120]
    picture = frame(centre) + np.where(np.hypot(y - 50, x - 90) < 14, np.float32(np.nan), 0)
    assert locate(picture.astype(np.float32), (50.2, 59.9), template).position == pytest.approx(centre, abs=0.01)


def test_what_cannot_be_fitted_is_nan(template):
    assert np.isnan(locate(np.zeros((110, 120), np.float32), (50.0, 60.0), template).position).all()
    assert np.isnan(locate(frame((50.0, 60.0)), (50.0, 75.0), template).position).all()
    fit = measure_shift(np.full((2 * template.half + 1,) * 2, np.nan), template)
    assert np.isnan(fit.position).all()
    assert np.isnan(fit.contrast)
