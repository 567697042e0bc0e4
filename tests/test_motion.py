"""Motion adds up, is told in the right units, and knows the stage from the particles."""

import numpy as np
import pytest
import xarray as xr

from xreg.kernels.geometry import to_raw
from xreg.motion import measure_motion
from xreg.schema import RESULT, validate

FRAMES = 60


def planted(particles=5, moving=1, noise=0.0):
    """Tracks of which the last `moving` ones drift on their own, and the motion of the stage."""
    rng = np.random.default_rng(0)
    stage = np.cumsum(rng.normal(0, 1, (FRAMES, 2)), axis=0)
    stage -= stage[0]
    own = np.zeros((particles, FRAMES, 2))
    if moving:
        own[-moving:, :, 0] = np.linspace(0, 6, FRAMES) ** 2 / 6
    position = rng.uniform(50, 400, (particles, 1, 2)) + stage + own
    tracks = xr.Dataset(
        {"position": (("particle", "frame", "axis"), position + rng.normal(0, noise, position.shape))},
        coords={"energy": ("frame", np.linspace(8250, 8600, FRAMES)), "axis": ["y", "x"]},
    )
    return tracks, stage, own


def test_parts_add_up_and_are_told_apart():
    tracks, stage, own = planted()
    motion = measure_motion(tracks)
    np.testing.assert_allclose(motion["rigid"], stage, atol=1e-6)
    np.testing.assert_allclose(motion["nonrigid"], own, atol=1e-6)
    np.testing.assert_allclose(motion["displacement"], stage + own, atol=1e-9)
    assert motion["rigid"].attrs["particles"] == [0, 1, 2, 3]


def test_conventions_at_first_sighting_and_gaps():
    tracks, stage, own = planted()
    tracks["position"].values[4, :10] = np.nan
    tracks["position"].values[4, 30:33] = np.nan
    tracks["position"].values[2, 7, 0] = np.nan
    motion = measure_motion(tracks)
    for name in ("displacement", "nonrigid"):
        np.testing.assert_array_equal(motion[name][4, 10], 0)
    np.testing.assert_allclose(motion["nonrigid"][4, 10:30], own[4, 10:30] - own[4, 10], atol=1e-6)
    np.testing.assert_allclose(motion["displacement"][4, 50], (stage + own[4])[50] - (stage + own[4])[10])
    for name in ("displacement", "velocity", "acceleration", "distance", "nonrigid"):
        assert np.isnan(motion[name][4, 30:33]).all()
        assert np.isnan(motion[name][2, 7]).all()
    assert motion["distance"][4, 10] == 0
    step = tracks["position"].values[4, 33] - tracks["position"].values[4, 29]
    assert float(motion["distance"][4, 33] - motion["distance"][4, 29]) == pytest.approx(np.linalg.norm(step))


def test_blank_frames_are_nan_and_the_first_seen_frame_is_zero():
    tracks, stage, _ = planted()
    tracks["position"].values[:, [0, 1, 20]] = np.nan
    rigid = measure_motion(tracks)["rigid"].values
    assert np.isnan(rigid[[0, 1, 20]]).all()
    np.testing.assert_array_equal(rigid[2], 0)
    np.testing.assert_allclose(rigid[30], stage[30] - stage[2], atol=1e-6)


def test_magnification_is_no_motion():
    tracks, _, own = planted()
    shape = (480, 460)
    scale = tracks["energy"].values / 8333.0
    raw = tracks.assign(position=tracks["position"].copy(data=to_raw(tracks["position"].values, scale, shape)))
    raw.attrs = {
        "magnification": "proportional-to-energy",
        "pixel_size_energy_ev": 8333.0,
        "frame_shape": list(shape),
    }
    xr.testing.assert_allclose(measure_motion(raw), measure_motion(tracks), atol=1e-9)
    assert float(np.abs(measure_motion(tracks)["nonrigid"][-1, -1, 0] - own[-1, -1, 0])) < 1e-5


def test_reference_particle():
    tracks, stage, own = planted()
    tracks = tracks.assign_coords(particle=[10, 11, 12, 13, 14])
    motion = measure_motion(tracks, reference_particle=14)
    np.testing.assert_allclose(motion["rigid"], stage + own[4])
    np.testing.assert_allclose(motion["nonrigid"].sel(particle=14), 0, atol=1e-12)
    np.testing.assert_allclose(motion["nonrigid"].sel(particle=10), -own[4], atol=1e-9)
    assert motion["rigid"].attrs["particles"] == [14]


def test_rates_are_per_frame():
    tracks, stage, _ = planted()
    motion = measure_motion(tracks)
    np.testing.assert_allclose(motion["velocity"][0, 1:-1], (stage[2:] - stage[:-2]) / 2)
    np.testing.assert_allclose(motion["acceleration"][0, 1:-1], stage[2:] - 2 * stage[1:-1] + stage[:-2])


@pytest.mark.parametrize("kind", ["seconds", "datetime64"])
def test_physical_units_use_the_true_times(kind):
    tracks, _, _ = planted()
    lapse = np.random.default_rng(1).uniform(1, 3, FRAMES).round(3)
    seconds = np.cumsum(lapse)
    tracks["position"].values[0] = np.stack([2.0 * seconds, 100 - 0.5 * seconds], axis=-1)
    time = seconds
    if kind == "datetime64":
        time = np.datetime64("2024-05-01", "ns") + np.rint(seconds * 1e9).astype("timedelta64[ns]")
    tracks = tracks.assign_coords(time=("frame", time)).assign_attrs(pixel_size_nm=30.0)
    motion = measure_motion(tracks)
    np.testing.assert_allclose(motion["velocity_nm_s"][0], [[60.0, -15.0]] * FRAMES, rtol=1e-6)
    np.testing.assert_allclose(motion["acceleration_nm_s2"][0, 1:-1], 0, atol=1e-5)
    np.testing.assert_allclose(motion["distance_nm"], 30 * motion["distance"])
    assert motion["velocity_nm_s"].attrs["units"] == "nm/s"
    assert "time" in motion.coords


def test_unknown_times_make_nan_not_errors():
    tracks, _, _ = planted()
    time = np.datetime64("2024-05-01", "ns") + np.arange(FRAMES) * np.timedelta64(1, "s")
    time[5] = np.datetime64("NaT")
    time[21] = time[20]
    motion = measure_motion(tracks.assign_coords(time=("frame", time)).assign_attrs(pixel_size_nm=30.0))
    unknown = np.flatnonzero(np.isnan(motion["velocity_nm_s"].values[0, :, 0]))
    np.testing.assert_array_equal(unknown, [4, 5, 6, 20, 21])
    assert np.isfinite(motion["velocity"].values[0]).all()
    time[:] = np.datetime64("NaT")
    motion = measure_motion(tracks.assign_coords(time=("frame", time)).assign_attrs(pixel_size_nm=30.0))
    assert np.isnan(motion["velocity_nm_s"]).all()


def test_no_physical_units_without_pixel_size_or_time():
    tracks, _, _ = planted()
    assert not [name for name in measure_motion(tracks) if "nm" in name]
    assert [n for n in measure_motion(tracks.assign_attrs(pixel_size_nm=30.0)) if "nm" in n] == ["distance_nm"]


def test_result_agrees_with_the_schema():
    tracks, _, _ = planted()
    tracks = tracks.assign_coords(time=("frame", np.arange(float(FRAMES)))).assign_attrs(pixel_size_nm=30.0)
    motion = measure_motion(tracks)
    validate(motion, RESULT, *motion.data_vars)
    for name, variable in motion.data_vars.items():
        assert variable.attrs["units"] == RESULT[name].units


def test_no_particles_no_motion():
    tracks, _, _ = planted()
    motion = measure_motion(tracks.isel(particle=slice(0)))
    assert motion["displacement"].shape == (0, FRAMES, 2)
    assert np.isnan(motion["rigid"]).all()


def test_bad_input_is_refused():
    tracks, _, _ = planted()
    with pytest.raises(ValueError, match="position is missing; need position with dims"):
        measure_motion(tracks.drop_vars("position"))
    with pytest.raises(ValueError, match=r"reference particle 7 is not tracked; choose one of \[0, 1, 2, 3, 4\]"):
        measure_motion(tracks, reference_particle=7)
    with pytest.raises(ValueError, match="pixel_size_nm is -1; need a positive number of nanometres"):
        measure_motion(tracks.assign_attrs(pixel_size_nm=-1))
    for size in ("31", np.nan):
        with pytest.raises(ValueError, match=r"pixel_size_nm is .*; need a positive number of nanometres"):
            measure_motion(tracks.assign_attrs(pixel_size_nm=size))
    with pytest.raises(ValueError, match="there is no frame; need at least one"):
        measure_motion(tracks.isel(frame=[]))
    changing = tracks.assign_attrs(magnification="proportional-to-energy", frame_shape=[480, 460])
    with pytest.raises(ValueError, match="but no energy; need it to undo the magnification"):
        measure_motion(changing.drop_vars("energy"))
    del changing.attrs["frame_shape"]
    with pytest.raises(ValueError, match="but no frame_shape; need it to undo the magnification"):
        measure_motion(changing)
