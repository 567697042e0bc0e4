"""A shaking stage is found at its frequency and amplitude, and noise is not taken for one."""

import numpy as np
import pytest
import xarray as xr

from xreg.kernels.vibration import false_alarm_power, frequencies, periodogram
from xreg.motion import measure_vibration


def shaken(frequency, amplitude, *, frames=143, scans=2, step=2.0, noise=0.02, walk=0.01, seed=0, uneven=0.25):
    """Rigid motion with a sine along y, noise, and a random walk; frames are missing, times uneven."""
    rng = np.random.default_rng(seed)
    n = frames * scans
    time = np.arange(n) * step + step * uneven * rng.uniform(-1, 1, n) + 500.0 * np.repeat(np.arange(scans), frames)
    rigid = np.cumsum(rng.normal(0, walk, (n, 2)), axis=0) + rng.normal(0, noise, (n, 2))
    rigid[:, 0] += amplitude * np.sin(2 * np.pi * frequency * time + 0.7)
    rigid[rng.uniform(size=n) < 0.1] = np.nan
    return xr.Dataset({"rigid": (("frame", "axis"), rigid)},
                      {"time": ("frame", time), "scan": ("frame", np.repeat(np.arange(scans), frames))})


@pytest.mark.parametrize("frequency", [0.031, 0.1234, 0.22])
def test_a_planted_vibration_comes_out(frequency):
    vibration = measure_vibration(shaken(frequency, 0.2))
    assert vibration["power_density"].dims == ("scan", "axis", "frequency")
    assert vibration["frequency"].attrs["units"] == "Hz"
    over = vibration["amplitude"] / vibration["false_alarm"]
    for scan in (0, 1):
        peak = over.sel(axis="y").isel(scan=scan)
        found = float(vibration["frequency"][int(np.nanargmax(peak))])
        # A quarter of the width of a line, 1 / (duration of a scan).
        assert found == pytest.approx(frequency, abs=0.25 / 286)
        assert float(peak.max()) > 1
        at = vibration["amplitude"].sel(axis="y").sel(frequency=frequency, method="nearest").isel(scan=scan)
        assert float(at) == pytest.approx(0.2, abs=0.02)
    assert float(over.sel(axis="x").max()) < 1


def test_the_whole_measurement_has_finer_frequencies():
    vibration = measure_vibration(shaken(0.1234, 0.2), per_scan=False)
    assert vibration["power_density"].dims == ("axis", "frequency")
    peak = float(vibration["frequency"][int(np.nanargmax(vibration["amplitude"].sel(axis="y")))])
    assert peak == pytest.approx(0.1234, abs=0.25 / 1000)


def test_without_times_frequencies_are_per_frame():
    motion = shaken(0.1, 0.2, uneven=0.0).drop_vars("time")
    vibration = measure_vibration(motion)
    assert vibration["frequency"].attrs["units"] == "1/frame"
    assert float(vibration["frequency"].max()) == pytest.approx(0.5, abs=0.01)
    peak = vibration["amplitude"].sel(axis="y").isel(scan=0)
    assert float(vibration["frequency"][int(np.nanargmax(peak))]) == pytest.approx(0.2, abs=0.25 / 143)


def test_dates_are_times():
    motion = shaken(0.1, 0.2)
    dates = np.datetime64("2024-05-01", "ns") + np.rint(motion["time"].values * 1e9).astype("timedelta64[ns]")
    dated = motion.assign_coords(time=("frame", dates))
    xr.testing.assert_allclose(measure_vibration(motion), measure_vibration(dated))


def test_noise_is_seldom_a_vibration():
    """Of 150 spectra of wandering and noise at most a few exceed the level of 1 %."""
    rng = np.random.default_rng(3)
    when = np.arange(80) * 1.5
    grid = frequencies(when)
    alarms = 0
    for _ in range(150):
        motion = np.cumsum(rng.normal(0, 0.1, 80)) + rng.normal(0, 0.1, 80)
        power = periodogram(when, motion, grid)
        alarms += bool((power > false_alarm_power(power, 0.01)).any())
    assert alarms <= 5


def test_the_density_integrates_to_the_variance():
    rng = np.random.default_rng(2)
    rigid = rng.normal(0, 0.3, (1200, 2))
    vibration = measure_vibration(xr.Dataset({"rigid": (("frame", "axis"), rigid)}), per_scan=False)
    total = vibration["power_density"].integrate("frequency")
    np.testing.assert_allclose(total, 0.09, rtol=0.12)


def test_short_and_empty_scans_are_not_known():
    motion = shaken(0.1, 0.2, frames=40)
    motion["rigid"][:40] = np.nan
    vibration = measure_vibration(motion)
    assert np.isnan(vibration["amplitude"].isel(scan=0)).all()
    assert np.isfinite(vibration["amplitude"].isel(scan=1)).all()
    assert measure_vibration(motion.isel(frame=slice(3))).sizes["frequency"] == 0
    for per_scan in (True, False):
        assert measure_vibration(motion.isel(frame=[]), per_scan=per_scan).sizes["frequency"] == 0
    short = measure_vibration(motion.isel(frame=slice(0, 55)))
    assert np.isnan(short["amplitude"].isel(scan=1, frequency=0)).all()
    assert np.isfinite(short["amplitude"].isel(scan=1)).any()


def test_bad_input_is_refused():
    motion = shaken(0.1, 0.2)
    with pytest.raises(ValueError, match="rigid is missing; need rigid with dims"):
        measure_vibration(motion.drop_vars("rigid"))
    with pytest.raises(ValueError, match="probability is 2; need a number between 0 and 1"):
        measure_vibration(motion, probability=2)
    motion = motion.isel(frame=slice(8))
    far = motion.assign_coords(time=("frame", [*np.arange(7.0), 1e12]))
    with pytest.raises(ValueError, match=r"times run over 1e\+12 in steps of 1, .* frequencies; need at most 1048576"):
        measure_vibration(far)
