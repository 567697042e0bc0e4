import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xreg
from xreg.kernels import agreement as kernel
from xreg.quality import MEANINGS, measure_quality, summarize_quality

HALF = 24
OFFSETS = np.arange(-HALF, HALF + 1)


def blob(dy=0.0, dx=0.0, contrast=1.0, offset=0.0, noise=0.0, rng=None):
    """A particle with inner texture, drawn analytically at a place."""
    y, x = np.meshgrid(OFFSETS - dy, OFFSETS - dx, indexing="ij")
    thickness = 1 / (1 + np.exp((np.hypot(y, 1.2 * x) - 13) / 0.8))
    picture = offset + contrast * thickness * (1 + 0.3 * np.sin(y / 3) * np.cos(x / 2.5))
    return picture + (rng.normal(0, noise, picture.shape) if noise else 0.0)


def stacks(shift=0.0, noise=0.0, frames=12, particles=2, seed=0):
    """Aligned stacks whose contrast changes threefold, with errors of position of a given size."""
    rng = np.random.default_rng(seed)
    place = rng.normal(0, shift, (particles, frames, 2))
    contrast = np.linspace(0.3, 1.0, frames)
    data = [[blob(*place[p, k], contrast[k], 0.05 * k, noise, rng) for k in range(frames)] for p in range(particles)]
    contour = np.array([np.hypot(*np.meshgrid(OFFSETS, 1.2 * OFFSETS, indexing="ij")) < 13] * particles)
    coords = {"y": OFFSETS.astype(float), "x": OFFSETS.astype(float), "energy": ("frame", 8300.0 + np.arange(frames))}
    aligned = xr.DataArray(np.array(data, np.float32), dims=("particle", "frame", "y", "x"), coords=coords)
    return aligned, xr.DataArray(contour, dims=("particle", "y", "x")), place


def test_contrast_alone_is_no_misalignment():
    aligned, contour, _ = stacks()
    measured = measure_quality(aligned, contour)
    assert (measured["ssim"] > 0.9999).all()
    assert (measured["correlation"] > 0.9999).all()
    assert (abs(measured["flow"]) < 1e-3).all()
    assert (measured["difference"] < 1e-6).all()
    assert measured["energy"].dims == ("frame",)
    assert measured["flow"].attrs["units"] == "px"


def test_every_number_gets_worse_with_misalignment():
    numbers = [summarize_quality(measure_quality(*stacks(shift, noise=0.02)[:2])) for shift in (0.0, 0.2, 0.6)]
    assert list(numbers[0]) == ["ssim", "ssim_variance", "difference", "correlation", "flow"]
    assert set(numbers[0]) == set(MEANINGS)
    for name, sign in (("ssim", -1), ("difference", 1), ("correlation", -1), ("flow", 1)):
        values = sign * np.array([n[name] for n in numbers])
        assert (np.diff(values) > 0).all(), name


def test_flow_is_what_the_registration_has_left():
    aligned, contour, place = stacks(shift=0.3, frames=10)
    flow = measure_quality(aligned, contour)["flow"].values
    # Against the mean picture, which lies where the pictures of high contrast lie.
    weight = np.linspace(0.3, 1.0, 10)[:, None]
    left = place - (place * weight).sum(1, keepdims=True) / weight.sum()
    assert np.sqrt(np.mean((flow - left) ** 2)) < 0.06
    assert np.sqrt(np.mean(left**2)) > 0.2


def test_difference_of_first_and_last():
    first, last = blob(contrast=0.3), blob(contrast=0.9, offset=0.2)
    contour = stacks(frames=1)[1].values[0]
    assert np.nanmax(np.abs(kernel.difference_map(first, last, contour))) < 1e-12
    assert kernel.difference_energy(first, last, contour) < 1e-20
    # The scaled one is always the stronger, so that swapping the two only changes the sign.
    rng = np.random.default_rng(0)
    first, last = blob(contrast=0.3, noise=0.05, rng=rng), blob(0.5, 0, 0.9, noise=0.05, rng=rng)
    one, other = kernel.difference_map(first, last, contour), kernel.difference_map(last, first, contour)
    np.testing.assert_allclose(one, -other)
    assert kernel.difference_energy(first, rng.normal(size=first.shape), contour) > 0.9


def test_frames_of_the_difference_can_be_chosen():
    aligned, contour, _ = stacks()
    aligned[:, 5] = blob(1.5, 0)
    good, bad = (measure_quality(aligned, contour, frames=f, flow=False)["difference"] for f in ((0, -1), (0, 5)))
    assert (good < 1e-6).all()
    assert (bad > 0.01).all()


def test_what_is_missing_is_nan_and_harms_nothing_else():
    aligned, contour, _ = stacks(noise=0.02)
    whole = measure_quality(aligned, contour)
    aligned[0, 3] = np.nan
    aligned[1, 4, :5] = np.nan
    aligned[1, 5] = 0.7
    measured = measure_quality(aligned, contour)
    assert np.isnan(measured["ssim"][0, 3])
    assert np.isnan(measured["flow"][0, 3]).all()
    assert np.isnan(measured["correlation"][1, 5])
    assert measured["ssim"][1, 4] == pytest.approx(float(whole["ssim"][1, 4]), abs=0.01)
    assert np.isfinite(summarize_quality(measured)["ssim"])
    nothing = summarize_quality(measure_quality(aligned * np.nan, contour))
    assert np.isnan(list(nothing.values())).all()
    assert np.isnan(measure_quality(aligned, contour & False)["ssim"]).all()


def test_lazy_and_the_same_for_every_chunking(no_compute):
    aligned, contour, _ = stacks(shift=0.3, noise=0.02, frames=7)
    lazy = [measure_quality(aligned.copy(data=da.from_array(aligned.values, chunks=c)), contour)
            for c in ((1, 7, 49, 49), (2, 3, 20, 49))]
    import dask

    with dask.config.set(scheduler="synchronous"):
        whole = measure_quality(aligned, contour).compute()
        for ds in lazy:
            xr.testing.assert_allclose(ds.compute(), whole, rtol=1e-6)


def test_errors_say_what_to_do():
    aligned, contour, _ = stacks(frames=2)
    with pytest.raises(ValueError, match=r"aligned has dims \('particle', 'y', 'x'\); need"):
        measure_quality(aligned[:, 0], contour)
    with pytest.raises(ValueError, match="need the same particles and windows"):
        measure_quality(aligned, contour[:1])
    with pytest.raises(ValueError, match=r"frames is \(0, 2\), but the stack has 2"):
        measure_quality(aligned, contour, frames=(0, 2))
    for frames, sentence in (((0,), r"frames is \(0,\); need \(first, last\)"), (3, "frames is 3; need"),
                             ((0, 0.5), r"a place in frames is 0\.5; need a whole number")):
        with pytest.raises(ValueError, match=sentence):
            measure_quality(aligned, contour, frames=frames)
    with pytest.raises(ValueError, match="there is no particle; need at least one"):
        measure_quality(aligned[:0], contour[:0])
    one, other = aligned.assign_coords(particle=[0, 1]), contour.assign_coords(particle=[0, 1])
    with pytest.raises(ValueError, match="labels differ along particle; select the same of both"):
        measure_quality(one[:1], other[1:])
    with pytest.raises(ValueError, match=r'aligned is a Dataset; .* take one of its variables, such as \["aligned"\]'):
        measure_quality(aligned.to_dataset(name="aligned"), contour)
    with pytest.raises(ValueError, match="got a DataArray; need a Dataset with what measure_quality gives"):
        summarize_quality(aligned)


def test_public():
    assert xreg.measure_quality is measure_quality
    assert xreg.summarize_quality is summarize_quality
