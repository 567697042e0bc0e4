"""Locating: from rough centres of mass to the truth, each frame by itself."""

import dask
import numpy as np
import pytest
import xarray as xr

from xreg.locate import (
    choose_template_frames,
    covered_by_others,
    locate_frame,
    locate_particles,
    make_templates,
    templates_of,
)
from xreg.synthetic import Phantom

ENERGIES = (8250.0, 8320.0, 8400.0, 8450.0, 8500.0, 8600.0, 8690.0)


@pytest.fixture(scope="module")
def scene():
    phantom = Phantom(shape=(240, 250), energies=ENERGIES, n_scans=2, n_particles=4, radius=(16, 24), texture=0.005,
                      seed=3)
    frames = [phantom.noisy_optical_density(f) for f in range(14)]
    frames = np.stack([f - np.nanmedian(f) for f in frames]).astype(np.float32)
    truth = np.stack([phantom.position(f) for f in range(14)], axis=1)
    rough = truth + np.random.default_rng(0).normal(0, 0.4, truth.shape)
    return frames, truth, rough, phantom.truth()["contour"].values


def test_positions_come_near_the_truth(scene):
    frames, truth, rough, contour = scene
    chosen = np.array([2, 3, 4, 5, 6, 9, 10, 11, 12, 13])
    pictures = make_templates(frames[chosen], rough[:, chosen], np.ones(10), contour)
    templates = templates_of(pictures, contour)
    found = np.stack([locate_frame(f, rough[:, k], 1.0, contour, templates) for k, f in enumerate(frames)], axis=1)
    error = found - truth
    error -= np.median(error, axis=1, keepdims=True)
    assert np.sqrt((error**2).mean()) < 0.08
    # A frame's positions depend on this frame and the templates alone.
    np.testing.assert_array_equal(locate_frame(frames[5], rough[:, 5], 1.0, contour, templates), found[:, 5])


def test_lazy_and_blind_to_chunking(scene, no_compute):
    frames, truth, rough, contour = scene
    energy = np.tile(ENERGIES, 2)
    normalized = xr.Dataset({"optical_density": (("frame", "y", "x"), frames)}, coords={"energy": ("frame", energy)})
    tracks = xr.Dataset({"position": (("particle", "frame", "axis"), rough),
                         "contrast": (("particle", "frame"), np.where(energy > 8340, 1.0, 0.3)[None].repeat(4, 0))},
                        coords={"energy": ("frame", energy)})
    outline = xr.DataArray(contour, dims=("particle", "y", "x"))
    found = []
    for chunks in (3, 14):
        lazy = locate_particles(normalized.chunk(frame=chunks), tracks, outline)
        with dask.config.set(scheduler="synchronous"):
            found.append(lazy.compute().values)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - truth).mean() < np.abs(rough - truth).mean()
    with pytest.raises(ValueError, match=r"contour has dims \('y', 'x'\); need \('particle', 'y', 'x'\)"):
        locate_particles(normalized, tracks, outline[0])


def test_without_a_template_the_centre_of_mass_stays(scene):
    frames, _, rough, contour = scene
    position = rough[:, 0].copy()
    position[1] = np.nan
    found = locate_frame(frames[0], position, 1.0, contour, [None] * 4)
    np.testing.assert_array_equal(found, position)
    empty = make_templates(np.zeros((0, 240, 250), np.float32), np.zeros((4, 0, 2)), np.zeros(0), contour)
    assert templates_of(empty, contour) == [None] * 4


def test_template_frames_are_of_high_contrast_and_high_energy():
    energy = np.tile(np.linspace(8200, 8700, 100), 3)
    contrast = np.where(energy > 8340, 1.0, 0.3)[None].repeat(5, 0)
    contrast[:, 7] = np.nan
    chosen = choose_template_frames(contrast, energy)
    assert len(chosen) == 16
    assert energy[chosen].min() > 8500
    assert chosen.min() < 100
    assert chosen.max() >= 200
    assert len(choose_template_frames(contrast, energy, most=3)) == 3
    assert choose_template_frames(np.full((2, 4), np.nan), np.arange(4.0)).size == 0
    assert choose_template_frames(np.ones((2, 1)), np.array([8333.0])).tolist() == [0]


def test_neighbours_cover_what_they_cover():
    contour = np.zeros((2, 21, 21), bool)
    contour[:, 6:15, 6:15] = True
    covered = covered_by_others(0, np.array([[50.0, 50.0], [50.0, 61.2]]), 1.0, contour, 10)
    # The neighbour's middle is 11 px to the right; its outline reaches from 7 px on, less a rim of two.
    assert covered[10, 10 + 6]
    assert not covered[10, 10 + 3]
    assert not covered_by_others(0, np.array([[50.0, 50.0], [np.nan, np.nan]]), 1.0, contour, 10).any()
    assert not covered_by_others(0, np.array([[50.0, 50.0], [500.0, 50.0]]), 1.0, contour, 10).any()
