"""Particles keep their number through motion, jumps, gaps and inventions, whatever the chunking."""

import warnings

import dask
import numpy as np
import pytest
import xarray as xr
from regions import assert_followed, lattice, scene, switches

from xreg.kernels.geometry import to_raw
from xreg.link import check_link_settings, fewest_sightings, gather_tracks, link_rois


def assert_linked(made, **settings):
    links = link_rois(made.rois, **settings)
    assert_followed(links["track"].values, made.truth)
    assert links.attrs["particles"] == made.found.size
    return links


def own_motion(path, radius, seed=0):
    """Add to every position an excursion of up to `radius` px, so steps of up to twice that."""
    rng = np.random.default_rng(seed)
    angle, reach = rng.uniform(0, 2 * np.pi, path.shape[:2]), rng.uniform(0, radius, path.shape[:2])
    return path + np.stack([np.sin(angle) * reach, np.cos(angle) * reach], axis=-1)


def jumping(path, far, every=6, seed=0):
    """Let the stage jump to another place, `far` px off the middle, every few frames."""
    rng = np.random.default_rng(seed)
    angle = np.repeat(rng.uniform(0, 2 * np.pi, path.shape[1] // every + 1), every)[: path.shape[1]]
    return path + far * np.stack([np.sin(angle), np.cos(angle)], axis=-1)


@pytest.fixture(scope="module")
def busy():
    """Nine particles with own motion, misses, inventions and a blank stretch, 40 frames."""
    path = own_motion(lattice(3, 40), 8)
    blank = {(p, f) for p in range(9) for f in range(20, 26)}
    return scene(path, miss=0.05, inventions=0.3, missing=blank, noise=0.3)


def test_plain():
    made = scene(lattice(3, 30))
    links = assert_linked(made)
    similarity = links["similarity"].values
    assert np.isnan(similarity[0]).all()
    assert similarity[1:][made.truth[1:] >= 0].min() > 0.6
    assert np.isnan(similarity[made.truth < 0]).all()
    assert links["track"].dtype == np.int32
    assert links["similarity"].dtype == np.float32


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_motion_of_half_a_diameter_between_frames(noise):
    assert_linked(scene(own_motion(lattice(3, 40), 11), radius=(22, 40), noise=noise))


def test_half_a_diameter_per_frame_always_onwards():
    path = lattice(4, 12, size=800)
    path[5] += np.arange(12)[:, None] * np.array([0.0, 24.0])
    assert_linked(scene(path, radius=(24, 25), size=800))


def test_jumps_beyond_the_spacing():
    assert_linked(scene(jumping(lattice(3, 60), 100), noise=0.3))


def test_look_alike_neighbours():
    assert_linked(scene(own_motion(lattice(3, 40), 12), alike=True))
    touching = lattice(7, 15, jitter=12.0)
    assert_linked(scene(touching, alike=True, radius=(30, 31)))


@pytest.mark.parametrize("alike", [False, True])
def test_gaps_of_ten_frames(alike):
    missing = {(p, f) for p in range(9) for f in range(8 + 3 * p, 18 + 3 * p)}
    assert_linked(scene(own_motion(lattice(3, 60), 10), missing=missing, alike=alike, noise=0.3))


def test_ten_and_forty_blank_frames():
    for blank in (10, 40):
        missing = {(p, f) for p in range(9) for f in range(15, 15 + blank)}
        assert_linked(scene(lattice(3, 70), missing=missing))


def test_particles_leave_and_enter():
    stage = 260 * np.sin(np.linspace(0, 2 * np.pi, 80))[:, None] * np.array([1.0, 0.3])
    made = scene(lattice(4, 80, size=600) + stage, size=600)
    track = link_rois(made.rois)["track"].values
    assert switches(track, made.truth) == 0
    often = [p for p in made.found if (made.truth == p).sum() > 20]
    assert len(often) > 12
    for p in often:
        numbers = track[made.truth == p]
        assert np.unique(numbers[numbers >= 0]).size == 1
    assert (track >= 0)[made.truth >= 0].mean() > 0.99


def test_inventions_are_dropped_and_do_no_harm():
    made = scene(lattice(3, 100), miss=0.03, inventions=1.5)
    assert_linked(made)


def test_six_frames_of_two_energies():
    assert_linked(scene(lattice(3, 6, jitter=15.0), noise=0.4))


def test_magnification_is_undone():
    """At 4 % less magnification the rim moves by 17 px, which would be too far for particles of 10 px."""
    energy = np.where(np.arange(12) % 2, 8000.0, 8320.0)
    path = to_raw(lattice(5, 12, size=860), energy / 8000, (860, 860))
    made = scene(path, size=860, radius=(9, 10))
    rois = made.rois.assign_coords(energy=("frame", energy))
    rois.attrs = {
        "magnification": "proportional-to-energy",
        "pixel_size_energy_ev": 8000.0,
        "frame_shape": [860, 860],
    }
    made.rois = rois
    assert_linked(made)


@pytest.mark.parametrize("chunks", [1, 7, 32, (13, 1, 26)])
def test_same_for_every_chunking_and_split(busy, chunks):
    wanted = link_rois(busy.rois, frames_per_block=40)
    assert_followed(wanted["track"].values, np.where(wanted["track"] >= 0, busy.truth, -1))
    for split_every in (2, 8):
        links = link_rois(busy.rois.chunk(frame=chunks), split_every=split_every)
        xr.testing.assert_identical(links, wanted)


def test_same_from_a_store_opened_without_dask(busy, tmp_path):
    busy.rois.to_zarr(tmp_path / "rois.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "rois.zarr", chunks=None, consolidated=False)
    xr.testing.assert_identical(link_rois(opened, frames_per_block=9), link_rois(busy.rois))


def test_reads_block_by_block(busy):
    """No task holds the thumbnails of more than one block of frames."""
    largest = []

    def load(block):
        largest.append(block.shape[0])
        return block

    rois = busy.rois.chunk(frame=5)
    rois["roi_thumbnail"] = rois["roi_thumbnail"].copy(data=rois["roi_thumbnail"].data.map_blocks(load))
    with dask.config.set(scheduler="sync"):
        largest.clear()
        link_rois(rois)
    assert max(largest) <= 5


def test_nothing_found_is_a_valid_answer():
    made = scene(lattice(3, 5), missing={(p, f) for p in range(9) for f in range(5)})
    links = link_rois(made.rois)
    assert (links["track"] == -1).all()
    tracks = gather_tracks(made.rois, links)
    assert tracks["position"].shape == (0, 5, 2)
    assert gather_tracks(made.rois.isel(roi=slice(0)), link_rois(made.rois.isel(roi=slice(0)))).sizes["particle"] == 0


def test_gather_sorts_by_particle(busy):
    rois = busy.rois.assign_coords(energy=("frame", np.linspace(8250, 8600, 40)), scan=("frame", np.zeros(40, int)))
    rois["roi_significance"] = rois["roi_area"] * 0 + 7.0
    rois.attrs["pixel_size_nm"] = 30.0
    links = link_rois(rois)
    tracks = gather_tracks(rois.chunk(frame=7), links)
    assert tracks.sizes["particle"] == links.attrs["particles"]
    assert tracks["position"].dims == ("particle", "frame", "axis")
    for p in range(tracks.sizes["particle"]):
        frame, slot = np.nonzero(links["track"].values == p)
        np.testing.assert_array_equal(tracks["position"].values[p, frame], rois["roi_position"].values[frame, slot])
        np.testing.assert_array_equal(tracks["slot"].values[p, frame], slot)
        unseen = np.setdiff1d(np.arange(40), frame)
        assert np.isnan(tracks["position"].values[p, unseen]).all()
        assert (tracks["slot"].values[p, unseen] == -1).all()
        assert not tracks["cut"].values[p, unseen].any()
    assert {"energy", "scan", "particle", "axis"} <= set(tracks.coords)
    assert tracks.attrs["pixel_size_nm"] == 30.0
    assert tracks["position"].attrs["units"] == "px"
    assert tracks["area"].attrs["units"] == "px2"
    assert "significance" in tracks
    assert "contrast" not in tracks


def test_fewest_sightings_is_sane_for_short_and_long_series():
    assert fewest_sightings(6, 3) == 2
    assert fewest_sightings(143, 143) == 8
    assert fewest_sightings(286, 143) == 15
    assert fewest_sightings(6435, 143) == 72


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_gap": -1}, "max_gap is -1; need a number of frames, 0 or more"),
        ({"split_every": 1}, "split_every is 1; need 2 or more blocks per task"),
        ({"frames_per_block": 0}, "frames_per_block is 0; need 1 or more"),
        ({"reach": 0.0}, r"reach is 0\.0; need a positive number of particle diameters"),
        ({"reach": np.nan}, "reach is nan; need a positive number"),
        ({"max_gap": 1.5}, r"max_gap is 1\.5; need a number of frames"),
        ({"min_sightings": "x"}, "min_sightings is 'x'; need a number of frames, 1 or more"),
        ({"min_sightings": 0}, "min_sightings is 0; need a number of frames, 1 or more"),
        ({"min_sightings": -5}, "min_sightings is -5; need a number of frames, 1 or more"),
    ],
)
def test_impossible_settings_are_refused(busy, settings, sentence):
    for refuse in (lambda: link_rois(busy.rois, **settings), lambda: check_link_settings(settings)):
        with pytest.raises(ValueError, match=sentence):
            refuse()


def test_incomplete_input_is_refused(busy):
    with pytest.raises(ValueError, match="roi_thumbnail is missing; need roi_thumbnail with dims"):
        link_rois(busy.rois.drop_vars("roi_thumbnail"))
    with pytest.raises(ValueError, match="roi_area has dims"):
        link_rois(busy.rois.assign(roi_area=busy.rois["roi_area"].T))
    changing = busy.rois.assign_attrs(magnification="proportional-to-energy")
    with pytest.raises(ValueError, match="but no energy; need both to undo it"):
        link_rois(changing)
    with pytest.raises(ValueError, match="but no frame_shape; need both to undo it"):
        link_rois(changing.assign_coords(energy=("frame", np.full(40, 8000.0))))


def test_links_of_other_regions_are_refused(busy):
    links = link_rois(busy.rois.isel(frame=slice(10)))
    with pytest.raises(ValueError, match=r"links are for \(frame, roi\) = \(10, 13\), rois has \(40, 13\)"):
        gather_tracks(busy.rois, links)
    with pytest.raises(ValueError, match=r"track is missing; need track .* It comes from link_rois"):
        gather_tracks(busy.rois, links.drop_vars("track"))
    rois = busy.rois.isel(frame=slice(10)).assign_coords(energy=("frame", 8300.0 + np.arange(10)))
    links = link_rois(rois)
    assert gather_tracks(rois, links)["energy"].values[9] == 8309
    with pytest.raises(ValueError, match="energy differs along frame; the two are of different frames"):
        gather_tracks(rois.isel(frame=slice(5)), links.isel(frame=slice(5, 10)))


# Real cells, known lineage: dense, growing, dividing bacteria, whose colony spreads by more than their spacing.


def _read_zstd_tiff(path):
    """One uncompressed-predictor, zstd-packed page; tifffile alone cannot unpack it on every Python."""
    import numcodecs
    import tifffile

    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page, strips = tiff.pages[0], b""
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            strips += bytes(numcodecs.Zstd().decode(file.read(count)))
        return np.frombuffer(strips, page.dtype).reshape(page.shape)


def _cells(labels):
    """Label, centre, area, cut and thumbnail of every cell of one frame."""
    from scipy.ndimage import map_coordinates
    from skimage.measure import regionprops

    for region in regionprops(labels):
        y0, x0, y1, x1 = region.bbox
        cut = y0 == 0 or x0 == 0 or y1 == labels.shape[0] or x1 == labels.shape[1]
        y, x = region.centroid
        sample = np.linspace(-0.625, 0.625, 32) * max(y1 - y0, x1 - x0)
        grid = np.meshgrid(y + sample - y0 + 1, x + sample - x0 + 1, indexing="ij")
        picture = map_coordinates(np.pad(region.image.astype(float), 1), grid, order=1)
        yield region.label, (y, x), region.area, cut, np.round(255 * picture).astype(np.uint8)


@pytest.fixture(scope="module")
def bacteria(shared_data):
    """Table of all cells of the ground truth, their true numbers (frame, roi), and the parent of each."""
    folder = shared_data / "ctc_bacteria" / "TRA"
    if not folder.is_dir():
        pytest.skip(f"no cell-tracking ground truth at {folder}")
    frames = [list(_cells(_read_zstd_tiff(path))) for path in sorted(folder.glob("man_track*.tif"))]
    shape = (len(frames), max(map(len, frames)))
    rng = np.random.default_rng(0)
    truth = np.full(shape, -1)
    position, area, cut = np.full((*shape, 2), np.nan), np.zeros(shape), np.zeros(shape, dtype=bool)
    thumbnail = np.zeros((*shape, 32, 32), dtype=np.uint8)
    for f, cells in enumerate(frames):
        for s, c in enumerate(rng.permutation(len(cells))):
            truth[f, s], position[f, s], area[f, s], cut[f, s], thumbnail[f, s] = cells[c]
    flat = ("frame", "roi")
    table = {
        "roi_position": ((*flat, "axis"), position),
        "roi_area": (flat, area),
        "roi_cut": (flat, cut),
        "roi_thumbnail": ((*flat, "thumbnail_y", "thumbnail_x"), thumbnail),
    }
    lineage = np.loadtxt(folder / "man_track.txt", dtype=int)
    return xr.Dataset(table), truth, dict(lineage[:, [0, 3]].tolist())


def _links(track, truth):
    """All pairs of consecutive sightings on one track, as ((frame, cell), (frame, cell))."""
    links, last = set(), {}
    for f, s in zip(*np.nonzero((track >= 0) & (truth >= 0)), strict=True):
        here = (int(f), int(truth[f, s]))
        if track[f, s] in last:
            links.add((last[track[f, s]], here))
        last[track[f, s]] = here
    return links


def _measure(track, truth, parent):
    """Part of the true links that were made, and part of the made links that are true.

    Divisions are no links: a mother linked to her daughter counts neither for nor against.
    """
    wanted = _links(truth, truth)
    made = {(a, b) for a, b in _links(track, truth) if parent.get(b[1]) != a[1]}
    return len(wanted & made) / len(wanted), len(wanted & made) / len(made)


def test_bacteria(bacteria):
    rois, truth, parent = bacteria
    links = link_rois(rois, max_gap=0, join_pieces=False, min_sightings=1)
    recall, precision = _measure(links["track"].values, truth, parent)
    assert recall > 0.96
    assert precision > 0.97


def test_bacteria_better_than_distance_alone(bacteria):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trackpy = pytest.importorskip("trackpy")
        import pandas as pd
    rois, truth, parent = bacteria
    frame, slot = np.nonzero(truth >= 0)
    y, x = rois["roi_position"].values[frame, slot].T
    table = pd.DataFrame({"frame": frame, "y": y, "x": x, "slot": slot})
    trackpy.quiet()
    track = np.full(truth.shape, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linked = trackpy.link(table, 25, memory=0)
    track[linked["frame"], linked["slot"]] = linked["particle"]
    recall, precision = _measure(track, truth, parent)
    assert recall < 0.9
    assert precision < 0.9
