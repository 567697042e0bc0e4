"""Detection and refinement with the shipped weights on a small phantom: found, outlined, nothing invented; lazy."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from xreg.detect import detect_block, detect_rois
from xreg.models.weights import shipped
from xreg.refine import MAX_ROIS, _drop_doubles, _that_stand_out, empty_rois, refine_block, refine_rois
from xreg.schema import ROIS
from xreg.synthetic import Phantom

ENERGIES = (8250.0, 8350.0, 8600.0)


@pytest.fixture(scope="module")
def phantom():
    return Phantom(shape=(300, 310), energies=ENERGIES, n_scans=1, n_particles=4, radius=(18, 32), touching=1, seed=2)


@pytest.fixture(scope="module")
def normalized(phantom):
    frames = [phantom.noisy_optical_density(f) for f in range(3)]
    frames = np.stack([f - np.nanmedian(f) for f in frames]).astype(np.float32)
    return xr.Dataset(
        {"optical_density": (("frame", "y", "x"), frames), "noise": ("frame", np.full(3, 0.015, np.float32))},
        coords={"energy": ("frame", list(ENERGIES))}, attrs={"magnification": "constant"})


@pytest.fixture(scope="module")
def table(normalized):
    density, noise = normalized["optical_density"].values, normalized["noise"].values
    return refine_block(density, detect_block(density, device="cpu"), noise, device="cpu")


def test_every_particle_is_found_and_outlined(phantom, table):
    for frame in range(3):
        seen = table[frame][np.isfinite(table[frame]["roi_position"][:, 0])]
        truth = phantom.position(frame)
        assert len(seen) == len(truth)
        miss = np.linalg.norm(seen["roi_position"][:, None] - truth[None], axis=-1).min(0)
        assert miss.max() < 3
        areas = [share.sum() for _, share in phantom.coverage(frame)]
        assert seen["roi_area"].sum() == pytest.approx(sum(areas), rel=0.12)
        assert (seen["roi_contrast"] > 0.05).all()
        assert not seen["roi_cut"].any()


def test_two_particles_in_one_region_of_the_map_are_two():
    rng = np.random.default_rng(1)
    y, x = np.indices((220, 240))
    large, small = (np.clip(r - np.hypot(y - 110, x - c), 0, None) / r for c, r in ((95, 40), (158, 26)))
    density = np.sqrt(large) + 0.6 * np.sqrt(small) + 0.01 * rng.standard_normal(y.shape)
    # A map that runs down from the one to the end of the other.
    found = np.where((large > 0) | (small > 0), 0.2 + 0.8 * np.clip(1 - (x - 80) / 110, 0, 1), 0)
    found = np.where(large > 0, np.maximum(found, 0.4 + 0.6 * large), found)
    density, found = density[None].astype(np.float32), found[None].astype(np.float32)
    place = refine_block(density, found, np.array([0.01]), device="cpu")["roi_position"][0]
    place = place[np.isfinite(place[:, 0])]
    assert len(place) == 2
    np.testing.assert_allclose(place[place[:, 1].argsort()], [[110, 95], [110, 158]], atol=4)


def test_an_empty_frame_has_no_particles():
    rng = np.random.default_rng(0)
    blank = np.stack([0.01 * rng.standard_normal((200, 210)), np.full((200, 210), np.nan)]).astype(np.float32)
    found = detect_block(blank, device="cpu")
    assert found[1].max() == 0
    table = refine_block(blank, found, np.array([0.01, np.nan]), device="cpu")
    assert np.isnan(table["roi_position"]).all()
    assert table.shape == (2, MAX_ROIS)


def test_stages_are_lazy_and_blind_to_chunking(normalized, table, no_compute):
    for chunks in (1, 2):
        chunked = normalized.chunk(frame=chunks)
        found = detect_rois(chunked, device="cpu")
        assert found.shape == normalized["optical_density"].shape
        rois = refine_rois(chunked, found, device="cpu")
        assert set(ROIS) <= set(rois.data_vars)
        assert rois.attrs["frame_shape"] == [300, 310]
        with dask.config.set(scheduler="synchronous"):
            computed = rois[["roi_position", "roi_contour"]].compute()
        for name in ("roi_position", "roi_contour"):
            np.testing.assert_array_equal(computed[name].values, table[name])


def test_the_graph_holds_no_weights(normalized):
    import pickle

    found = detect_rois(normalized.chunk(frame=1))
    assert len(pickle.dumps(found.data.dask)) < 3e6


def test_split_frames_and_missing_variables_are_refused(normalized):
    with pytest.raises(ValueError, match=r"frames are split into 1 x 2 chunks; need whole frames\. Join them with"):
        detect_rois(normalized.chunk(frame=1, x=200))
    with pytest.raises(ValueError, match="noise is missing; need noise with dims"):
        refine_rois(normalized.drop_vars("noise"), normalized["optical_density"])
    with pytest.raises(ValueError, match=r"optical_density has dims .* need \('frame', 'y', 'x'\)"):
        detect_rois(normalized.transpose("y", "x", "frame"))


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda found: found.transpose("y", "x", "frame"), r"particle_map has dims .* need \('frame', 'y', 'x'\)"),
    (lambda found: found[0], r"particle_map has dims \('y', 'x'\)"),
    (lambda found: found.isel(y=slice(10, None)), "there are 300 and 290 along y"),
    (lambda found: found.to_dataset(name="found"), r'particle_map is a Dataset; .* such as \["found"\]'),
    (lambda found: found.assign_coords(energy=found["energy"] + 5), "energy differs along frame"),
])
def test_maps_of_other_frames_are_refused(normalized, spoil, sentence):
    found = detect_rois(normalized, device="cpu")
    with pytest.raises(ValueError, match=sentence):
        refine_rois(normalized, spoil(found), device="cpu")
    with pytest.raises(ValueError, match="max_rois is 0; need a whole number"):
        refine_rois(normalized, found, max_rois=0)


def test_weights_may_be_paths(normalized):
    here = {role: Path(shipped(role).path) for role in ("detector", "refiner")}
    found = detect_rois(normalized.chunk(frame=1), device="cpu", weights=here["detector"])
    assert found.data.name == detect_rois(normalized.chunk(frame=1), device="cpu").data.name
    refine_rois(normalized, found, device="cpu", weights=str(here["refiner"]))
    with pytest.raises(ValueError, match=r"there are no weights at my\.safetensors"):
        detect_rois(normalized, weights="my.safetensors")
    with pytest.raises(ValueError, match="need those of a refiner"):
        refine_rois(normalized, found, weights=here["detector"])


def test_doubles_are_dropped_but_small_neighbours_kept():
    records = empty_rois(1, 3)[0]
    records["roi_position"] = [(50, 50), (52, 51), (50, 75)]
    records["roi_area"] = [1000, 800, 300]
    assert [tuple(r["roi_position"]) for r in _drop_doubles(list(records))] == [(50, 50), (50, 75)]


def test_a_contour_inside_another_is_a_part_of_it():
    y, x = np.indices((96, 96))
    records = empty_rois(1, 3)[0]
    disc = (255 * (np.hypot(y - 47.5, x - 47.5) < 32)).astype(np.uint8)
    for record, place, radius in zip(records, [(100, 100), (115, 100), (140, 100)], [32, 12, 20], strict=True):
        # The same disc in windows of different sizes.
        record["roi_position"], record["roi_window"] = place, (*place, radius / 32)
        record["roi_contour"], record["roi_area"] = disc, np.pi * radius**2
    assert [tuple(r["roi_position"]) for r in _drop_doubles(list(records))] == [(100, 100), (140, 100)]


def test_what_is_no_stronger_than_the_texture_around_it_is_refused(normalized, table):
    density = normalized["optical_density"].values[0]
    records = list(table[0][np.isfinite(table[0]["roi_position"][:, 0])])
    sure, unsure = ([(r, s) for r in records] for s in (1.0, 0.02))
    assert len(_that_stand_out(sure, density)) == len(records) == 4
    assert not _that_stand_out(unsure, density)
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(density.shape), 10)
    texture *= np.median([r["roi_contrast"] for r in records]) / texture.std()
    assert not _that_stand_out(sure, density + texture.astype(np.float32))
    assert _that_stand_out([], density) == []
