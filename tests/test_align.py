"""Registered stacks: the planted picture comes back, whatever its place, magnification or the chunking."""

import dask
import numpy as np
import pytest
import xarray as xr

from xreg.align import align_block, align_stacks, contour_sums, outline_particles, window_half
from xreg.schema import CONTOUR_SIZE, ROIS


def bump(shape, centre, step=1.0):
    y, x = np.indices(shape, dtype=float)
    dy, dx = (y - centre[0]) * step, (x - centre[1]) * step
    return np.exp(-(dy**2 + 2 * dx**2) / 60) * (1 + 0.3 * np.sin(dx / 3))


CENTRES = np.array([[40.3, 50.8], [43.9, 47.1], [38.5, 52.25]])


@pytest.fixture(scope="module")
def stack():
    frames = np.stack([bump((90, 100), c) for c in CENTRES]).astype(np.float32)
    ds = xr.Dataset({"optical_density": (("frame", "y", "x"), frames)},
                    coords={"energy": ("frame", [8300.0, 8340.0, 8400.0])})
    tracks = xr.Dataset({"position": (("particle", "frame", "axis"), CENTRES[None])})
    return ds, tracks


def test_a_moving_particle_stands_still():
    frames = np.stack([bump((90, 100), c) for c in CENTRES]).astype(np.float32)
    aligned = align_block(frames, CENTRES[None], np.ones(3), 15)
    offset = np.arange(-15, 16)
    truth = np.exp(-(offset[:, None] ** 2 + 2 * offset**2) / 60) * (1 + 0.3 * np.sin(offset / 3))
    np.testing.assert_allclose(aligned[0], np.broadcast_to(truth, (3, 31, 31)), atol=2e-3)


def test_magnification_is_undone():
    frames = np.stack([bump((90, 100), (45, 50), step) for step in (1.0, 1.1)]).astype(np.float32)
    aligned = align_block(frames, np.array([[[45.0, 50], [45, 50]]]), np.array([1.0, 1.1]), 15)
    np.testing.assert_allclose(aligned[0, 0], aligned[0, 1], atol=2e-3)


def test_outside_invalid_and_unseen_are_nan():
    frames = np.ones((2, 40, 40), np.float32)
    frames[0, 20, 20] = np.nan
    position = np.array([[[18.5, 18.5], [np.nan, np.nan]], [[2.0, 20.0], [200.0, 20.0]]])
    aligned = align_block(frames, position, np.ones(2), 6)
    assert np.isnan(aligned[0, 1]).all()
    assert 1 <= np.isnan(aligned[0, 0]).sum() <= 9
    assert np.isnan(aligned[1, 0, :4]).all()
    assert np.isfinite(aligned[1, 0, 4:]).all()
    assert np.isnan(aligned[1, 1]).all()


def test_lazy_and_blind_to_chunking(stack, no_compute):
    ds, tracks = stack
    whole = align_block(ds["optical_density"].values, CENTRES[None], np.ones(3), 10)
    for chunks in (1, 2, 3):
        aligned = align_stacks(ds.chunk(frame=chunks), tracks, 10)["aligned"]
        assert aligned.dims == ("particle", "frame", "y", "x")
        assert list(aligned["y"].values) == list(range(-10, 11))
        with dask.config.set(scheduler="synchronous"):
            np.testing.assert_array_equal(aligned.values, whole)


def test_one_reference_energy_for_all_blocks(stack, no_compute):
    """A magnification that changes, and no energy at which the pixel size holds: the median of all serves."""
    ds, tracks = stack
    ds = ds.assign_attrs(magnification="proportional-to-energy")
    whole = align_block(ds["optical_density"].values, CENTRES[None], ds["energy"].values / 8340, 10)
    for chunks in (1, 2, 3):
        aligned = align_stacks(ds.chunk(frame=chunks), tracks, 10)["aligned"]
        with dask.config.set(scheduler="sync"):
            np.testing.assert_array_equal(aligned.values, whole)


def test_frames_of_both_must_be_the_same(stack):
    ds, tracks = (d.assign_coords(frame=[4, 5, 6]) for d in stack)
    with pytest.raises(ValueError, match="there are 3 and 2 along frame; need the same: select both alike"):
        align_stacks(ds, tracks.isel(frame=[0, 1]), 10)
    with pytest.raises(ValueError, match="labels differ along frame; select the same of both"):
        align_stacks(ds, tracks.assign_coords(frame=[0, 1, 2]), 10)
    assert align_stacks(ds, tracks.assign_coords(particle=[8]), 10)["aligned"]["particle"].values.tolist() == [8]


def test_frames_are_known_by_their_energies(stack):
    ds, tracks = stack
    with pytest.raises(ValueError, match="energy differs along frame; the two are of different frames"):
        align_stacks(ds, tracks.assign_coords(energy=("frame", ds["energy"].values[::-1])), 10)


@pytest.mark.parametrize(("half", "contour", "sentence"), [
    (0, None, "half is 0; need a whole number of px, 1 or more"),
    (2.5, None, r"half is 2\.5; need"),
    (10, np.ones((1, 21, 21), bool), r"contour is a ndarray; need a DataArray with dims \('particle', 'y', 'x'\)"),
    (10, xr.DataArray(np.ones((21, 21), bool), dims=("y", "x")), r"contour has dims \('y', 'x'\)"),
    (10, xr.DataArray(np.ones((1, 19, 19), bool), dims=("particle", "y", "x")), "there are 19 and 21 along y"),
    (10, xr.DataArray(np.ones((2, 21, 21), bool), dims=("particle", "y", "x")), "there are 2 and 1 along particle"),
    (10, xr.DataArray(np.ones((1, 21, 21), bool), {"particle": [1]}, ("particle", "y", "x")), "labels differ along"),
])
def test_windows_and_outlines_that_do_not_fit_are_refused(stack, half, contour, sentence):
    ds, tracks = stack
    with pytest.raises(ValueError, match=sentence):
        align_stacks(ds, tracks.assign_coords(particle=[0]), half, contour=contour)


@pytest.mark.parametrize("size", [9, 21, 25])
def test_labelled_outlines_are_fitted_to_the_window(stack, size):
    offset = np.arange(size) - size // 2.0
    contour = xr.DataArray(np.ones((1, size, size), bool), {"y": offset, "x": offset}, ("particle", "y", "x"))
    found = align_stacks(*stack, 10, contour=contour)["contour"]
    assert found.dtype == bool
    assert found.shape == (1, 21, 21)
    assert int(found.sum()) == min(size, 21) ** 2


def test_regions_that_lack_something_are_refused(stack):
    ds, _ = stack
    rois = xr.Dataset({name: (v.dims, np.zeros((3, 2, 2, 2)[: len(v.dims)], "?" if v.kinds == "b" else v.kinds + "4"))
                       for name, v in ROIS.items()}, ds.coords)
    links = xr.Dataset({"track": (("frame", "roi"), np.zeros((3, 2), int)),
                        "similarity": (("frame", "roi"), np.zeros((3, 2)))}, ds.coords)
    whole = rois.assign_attrs(frame_shape=[90, 100])
    for one, other, sentence in (
        (whole.drop_vars("roi_contour"), links, "roi_contour is missing; .* It comes from refine_rois"),
        (whole.drop_vars("energy"), links, "energy is missing; need energy"),
        (rois, links, "the attribute frame_shape is missing; it comes from refine_rois"),
        (whole, links.drop_vars("track"), "track is missing; .* It comes from link_rois"),
        (whole.isel(frame=[0, 1]), links.isel(frame=[1, 2]), "energy differs along frame"),
    ):
        with pytest.raises(ValueError, match=sentence):
            outline_particles(one, other)


def test_split_frames_are_refused(stack):
    ds, tracks = stack
    with pytest.raises(ValueError, match=r"frames are split into 2 x 1 chunks; need whole frames. Join them with"):
        align_stacks(ds.chunk(y=50), tracks, 10)


def test_contour_sums_are_the_same_for_every_order_of_blocks():
    n, side = CONTOUR_SIZE, 41
    y, x = np.indices((n, n))
    contours = np.stack([(255 * (np.hypot(y - 47.5 - k, x - 47.5) < 20)).astype(np.uint8) for k in range(3)])[:, None]
    windows = np.tile(np.array([50.0, 60.0, 0.5]), (3, 1, 1))
    positions = np.stack([[[50 + 0.5 * k, 60.0]] for k in range(3)])
    track = np.zeros((3, 1), int)
    sums, count = contour_sums(contours, windows, positions, track, np.ones(3), 1, 20, (100, 120))
    parts = [contour_sums(contours[s], windows[s], positions[s], track[s], np.ones(3)[s], 1, 20, (100, 120))
             for s in (slice(2, 3), slice(0, 2))]
    np.testing.assert_array_equal(sums, parts[0][0] + parts[1][0])
    assert (count[0] == 3).all()
    outline = sums[0] / (255 * 3) > 0.5
    assert outline.sum() == pytest.approx(np.pi * 100, rel=0.05)
    assert outline.shape == (side, side)


def test_what_frames_show_of_a_particle_that_is_cut_is_put_together():
    n = CONTOUR_SIZE
    y, x = np.indices((n, n))
    disc = np.hypot(y - 47.5, x - 47.5) < 20             # radius 10 px at a spacing of 0.5
    centres = np.array([[[-2.0, 60.0]], [[4.0, 60.0]]])   # frames begin at y = -0.5
    shown = np.stack([255 * (disc & (c[0, 0] + (y - 47.5) * 0.5 >= -0.5)) for c in centres]).astype(np.uint8)[:, None]
    windows = np.concatenate([centres, np.full((2, 1, 1), 0.5)], axis=-1)
    sums, count = contour_sums(shown, windows, centres, np.zeros((2, 1), int), np.ones(2), 1, 14, (100, 120))
    outline = 2 * sums[0] > 255 * np.maximum(count[0], 1)
    assert count[0].min() == 0
    assert count[0].max() == 2
    offset = np.arange(-14, 15)
    true = (np.hypot(offset[:, None], offset) < 10) & (offset[:, None] >= -4)
    assert (outline ^ true).sum() < 0.1 * true.sum()


def test_window_holds_the_largest_particle():
    rois = xr.Dataset({"roi_window": (("frame", "roi", "window"), np.array([[[0, 0, 1.0], [0, 0, 0.5]]]))})
    half = window_half(rois, np.array([[0, 1]]), np.ones(1))
    assert half >= CONTOUR_SIZE / 2 / 1.5
