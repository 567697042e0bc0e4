"""Smoothed tracks are nearer to the truth, keep what was measured, and are blind to magnification."""

import numpy as np
import pytest
import xarray as xr

import xreg
from xreg.kernels.geometry import to_raw
from xreg.schema import RESULT, validate
from xreg.smooth import smooth_tracks

FRAMES, NOISE = 90, 0.05


def planted(particles=5, seed=0):
    """Tracks that drift about on a stage that shakes, and where they truly are."""
    rng = np.random.default_rng(seed)
    stage = np.cumsum(rng.normal(0, 0.5, (FRAMES, 2)), axis=0)
    time = np.arange(FRAMES)[None, :, None] / FRAMES
    own = 4 * np.sin(2 * np.pi * (rng.uniform(0.2, 1, (particles, 1, 2)) * time + rng.uniform(0, 1, (particles, 1, 2))))
    true = rng.uniform(50, 400, (particles, 1, 2)) + stage + own
    vector = ("particle", "frame", "axis")
    tracks = xr.Dataset(
        {"position": (vector, true + rng.normal(0, NOISE, true.shape)),
         "position_sigma": (vector, np.full(true.shape, NOISE)),
         "stage": (("frame", "axis"), stage + rng.normal(0, NOISE, stage.shape))},
        {"energy": ("frame", np.linspace(8250, 8600, FRAMES)), "axis": ["y", "x"]})
    return tracks, true, stage


def rms(found, true):
    error = found - true
    return float(np.sqrt(np.nanmean((error - np.nanmedian(error, axis=-2, keepdims=True)) ** 2)))


def test_positions_and_stage_get_better_and_measured_ones_are_kept():
    tracks, true, stage = planted()
    smooth = smooth_tracks(tracks)
    assert rms(smooth["position"].values, true) < 0.6 * NOISE
    assert rms(smooth["stage"].values, stage) < 0.6 * rms(tracks["stage"].values, stage)
    np.testing.assert_array_equal(smooth["measured_position"], tracks["position"])
    np.testing.assert_array_equal(smooth["measured_position_sigma"], tracks["position_sigma"])
    validate(smooth, RESULT, "position", "position_sigma", "measured_position", "measured_position_sigma")
    assert smooth["measured_position"].attrs["units"] == "px"
    motion = xreg.measure_motion(smooth)
    assert rms(motion["rigid"].values, stage) < 0.6 * NOISE


def test_gaps_stay_gaps_and_errors_that_are_not_known_are_told_from_the_scatter():
    tracks, true, _ = planted()
    tracks["position"][1, 20:30] = np.nan
    tracks["position"][:, 50] = np.nan
    for given in (tracks, tracks.drop_vars(["position_sigma", "stage"])):
        smooth = smooth_tracks(given)
        np.testing.assert_array_equal(np.isnan(smooth["position"]), np.isnan(tracks["position"]))
        assert rms(smooth["position"].values, true) < 0.7 * NOISE
        seen = np.isfinite(tracks["position"].values)
        assert (smooth["position_sigma"].values[seen] < 1.3 * NOISE).all()
    assert "stage" not in smooth


@pytest.mark.parametrize("claimed", [0.01, 0.004])
def test_a_stage_that_is_known_well_stays_so_where_particles_come_and_go(claimed):
    tracks, true, stage = planted(particles=8)
    rng = np.random.default_rng(5)
    tracks["position"].values[rng.random((8, FRAMES)) < 0.3] = np.nan
    tracks["stage"].values[:] = stage + rng.normal(0, 0.01, stage.shape)
    tracks["stage_sigma"] = tracks["stage"].copy(data=np.full(stage.shape, claimed))
    smooth = smooth_tracks(tracks)
    assert rms(smooth["stage"].values, stage) < 1.1 * rms(tracks["stage"].values, stage)
    assert rms(smooth["position"].values, true) < 0.6 * NOISE


def test_positions_without_an_energy_stay():
    tracks, _, _ = planted()
    tracks["energy"].values[40:43] = np.nan
    tracks.attrs = {"magnification": "proportional-to-energy", "pixel_size_energy_ev": 8333.0,
                    "frame_shape": [480, 460]}
    smooth = smooth_tracks(tracks)
    np.testing.assert_array_equal(smooth["position"][:, 40:43], tracks["position"][:, 40:43])
    assert np.isfinite(smooth["position"]).all()


def pulled(strength=0.1, seed=3):
    """Still particles whose positions before the edge are pulled to one side, the more the weaker they are."""
    tracks, _, stage = planted(seed=seed)
    contrast = np.outer(np.linspace(0.5, 2, 5), np.where(np.arange(FRAMES) < 30, 0.3, 1.0))
    rng = np.random.default_rng(seed)
    still = rng.uniform(50, 400, (5, 1, 2)) + stage
    weakness = contrast.max(axis=1, keepdims=True) / contrast - 1
    pull = strength * rng.choice([-1, 1], (5, 1, 2)) * weakness[..., None]
    tracks["position"].values[:] = still + pull + rng.normal(0, NOISE, still.shape)
    tracks["contrast"] = (("particle", "frame"), contrast)
    return tracks, still


def test_what_pulls_weak_particles_is_told_by_their_contrast_also_where_that_is_not_known_everywhere():
    tracks, still = pulled()
    plain = rms(smooth_tracks(tracks.drop_vars("contrast"))["position"].values, still)
    for missing in (slice(0), slice(5, 15), slice(0, 25)):
        given = tracks.copy(deep=True)
        given["contrast"].values[:, missing] = np.nan
        smooth = smooth_tracks(given)
        assert rms(smooth["position"].values, still) < 0.4 * plain
        error = smooth["position"].values - still
        error -= np.median(error, axis=1, keepdims=True)
        assert np.median(np.abs(error / smooth["position_sigma"].values)) < 1


@pytest.mark.parametrize("contrast", [np.nan, 0.0, -1.0])
def test_contrasts_that_say_nothing_change_nothing(contrast):
    tracks, _ = pulled()
    plain = smooth_tracks(tracks.drop_vars("contrast"))
    tracks["contrast"].values[:] = contrast
    np.testing.assert_allclose(smooth_tracks(tracks)["position"], plain["position"], atol=1e-9)
    tracks["contrast"].values[:3] = 1.0
    tracks["stage"].values[:, 1] = np.nan
    assert np.isfinite(smooth_tracks(tracks)["position"]).all()


def test_magnification_is_no_motion():
    tracks, _, _ = planted()
    shape, scale = (480, 460), tracks["energy"].values / 8333.0
    raw = tracks.assign(position=tracks["position"].copy(data=to_raw(tracks["position"].values, scale, shape)),
                        position_sigma=tracks["position_sigma"] / xr.DataArray(scale, dims="frame"))
    raw.attrs = {"magnification": "proportional-to-energy", "pixel_size_energy_ev": 8333.0, "frame_shape": list(shape)}
    smooth, plain = smooth_tracks(raw), smooth_tracks(tracks)
    np.testing.assert_allclose(smooth["position"], to_raw(plain["position"].values, scale, shape), atol=2e-3)
    np.testing.assert_allclose(smooth["stage"], plain["stage"], atol=2e-3)


def test_few_frames_change_nothing():
    tracks = planted()[0].isel(frame=slice(0, 12))
    smooth = smooth_tracks(tracks)
    for name in ("position", "position_sigma", "stage"):
        np.testing.assert_array_equal(smooth[name], tracks[name])
    empty = smooth_tracks(tracks.isel(particle=slice(0)))
    assert empty["position"].shape == (0, 12, 2)


def test_errors_say_what_is_missing():
    tracks, _, _ = planted()
    with pytest.raises(ValueError, match=r"position is missing; need position with dims"):
        smooth_tracks(tracks.drop_vars("position"))
    with pytest.raises(ValueError, match=r"magnification 'proportional-to-energy' but no frame_shape"):
        smooth_tracks(tracks.assign_attrs(magnification="proportional-to-energy"))
