"""Two layers: a stage that is found by the background alone, particles found in front of it."""

import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels.layers import Layers, fit_stage, locate_in_frame, paint

MARGIN, SHAPE = 30, (150, 170)


@pytest.fixture(scope="module")
def background():
    rng = np.random.default_rng(1)
    fine = ndimage.gaussian_filter(rng.normal(size=(SHAPE[0] + 2 * MARGIN, SHAPE[1] + 2 * MARGIN)), 2.5)
    return (0.03 * fine / fine.std()).astype(np.float32)


@pytest.fixture(scope="module")
def layers(background):
    y, x = np.mgrid[-20:21, -20:21]
    picture = np.clip(1.2 * (12 - np.hypot(y, x)), 0, 1).astype(np.float32)
    known = np.ones(background.shape, bool)
    return Layers(background, known, MARGIN, np.stack([picture] * 2), np.stack([picture > 0.5] * 2))


def seen(background, stage, noise=0.0, gain=1.0, seed=0):
    """A frame of the background alone, the stage at a given place."""
    moved = ndimage.shift(background, stage, order=3, mode="mirror")[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return (gain * moved + noise * np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)


@pytest.mark.parametrize("stage", [(0.0, 0.0), (3.3, -1.7), (-17.4, 12.6)])
def test_the_stage_is_found_from_afar(background, layers, stage):
    frame = seen(background, stage, noise=0.02, gain=0.9) + np.linspace(0, 0.1, SHAPE[1], dtype=np.float32)
    found, sigma, gain = fit_stage(frame, np.ones(SHAPE, bool), np.zeros(2), 1.0, layers)
    assert found == pytest.approx(stage, abs=0.06)
    assert (np.abs(found - stage) < 5 * sigma).all()
    assert (sigma < 0.03).all()
    assert gain == pytest.approx(0.9, abs=0.05)


def test_a_background_without_texture_tells_nothing(layers):
    noise = np.random.default_rng(2).normal(0, 0.02, SHAPE).astype(np.float32)
    assert np.isnan(fit_stage(noise, np.ones(SHAPE, bool), np.zeros(2), 1.0, layers)[0]).all()
    assert np.isnan(fit_stage(noise, np.zeros(SHAPE, bool), np.zeros(2), 1.0, layers)[0]).all()


def test_matter_that_was_not_detected_and_moves_on_its_own_does_not_pull_the_stage(background, layers):
    y, x = np.mgrid[:background.shape[0], :background.shape[1]]
    blob = 0.4 * np.exp(-((y - 90) ** 2 + (x - 100) ** 2) / 300.0).astype(np.float32)
    with_blob = Layers(background + blob, layers.known, MARGIN, layers.pictures, layers.contour)
    frame = seen(background, (1.2, -0.6), noise=0.02) + seen(blob, (1.2, 0.9))       # 1.5 px beside the stage
    found, _, _ = fit_stage(frame, np.ones(SHAPE, bool), np.zeros(2), 1.0, with_blob)
    assert found == pytest.approx((1.2, -0.6), abs=0.15)


@pytest.mark.parametrize("contrast", [0.3, 1.0])
def test_particles_are_found_in_front_of_the_background(background, layers, contrast):
    stage, places = np.array([4.2, -2.6]), np.array([[60.4, 50.7], [80.2, 111.9]])
    y, x = np.mgrid[:SHAPE[0], :SHAPE[1]]
    frame = seen(background, stage, noise=0.02)
    for place in places:
        frame += contrast * 0.3 * np.clip(1.2 * (12 - np.hypot(y - place[0], x - place[1])), 0, 1).astype(np.float32)
    start = places + np.array([[0.6, -0.8], [5.0, -4.0]])             # the second is a guess
    found = locate_in_frame(frame, start, np.array([False, True]), np.zeros(2), 1.0, layers)
    assert found.position == pytest.approx(places, abs=0.12 / contrast)
    assert found.contrast == pytest.approx(0.3 * contrast, rel=0.1)
    assert found.stage == pytest.approx(stage, abs=0.06)
    unknown = locate_in_frame(frame, np.full((2, 2), np.nan), np.ones(2, bool), np.zeros(2), 1.0, layers)
    assert np.isnan(unknown.position).all()


def test_outlines_are_painted_where_they_lie():
    outline = np.zeros((1, 11, 11), bool)
    outline[0, 3:8, 4:7] = True
    covered = paint((20, 20), np.array([[9.0, 2.0]]), 1.0, outline)
    assert covered[7:12, 1:4].all()
    assert covered.sum() == 15
    assert not paint((20, 20), np.array([[np.nan, 2.0]]), 1.0, outline).any()
    assert not paint((20, 20), np.array([[-90.0, 2.0]]), 1.0, outline).any()
