"""Stage 7: every particle's own registered stack, resampled once from the optical density."""

import dask.array as da
import numpy as np
import xarray as xr

from xreg.chunks import whole_frames
from xreg.kernels.geometry import pixel_scale, to_raw, to_reference
from xreg.kernels.kinematics import doubtful_sightings, whole_places
from xreg.kernels.resample import sample_window
from xreg.kernels.windows import cut_window
from xreg.schema import (
    AXES,
    CONTOUR_SIZE,
    NORMALIZED,
    RESULT,
    ROIS,
    TABLES,
    check_alike,
    check_attributes,
    check_links,
    check_number,
    check_variable,
    describe,
    validate,
)

#: Sightings at most, evenly spread, from which a particle's outline is made.
_CONTOURS = 256
_NEEDED = ("roi_position", "roi_area", "roi_contrast", "roi_cut", "roi_window", "roi_contour")


def align_block(optical_density: np.ndarray, position: np.ndarray, scale: np.ndarray, half: int) -> np.ndarray:
    """Cut every particle out of each frame of a block, its centre of mass in the middle.

    Cubic spline interpolation, once: position, sub-pixel shift and magnification are one sampling of the frame.

    Parameters
    ----------
    optical_density : ndarray, shape (n, y, x), float32
        NaN where invalid.
    position : ndarray, shape (particles, n, 2)
        Centres of mass (y, x) in the raw frame, px; NaN where not seen.
    scale : ndarray, shape (n,)
        Pixel size of each frame over that of the reference energy.
    half : int
        Windows reach from -half to +half px (at the reference energy).

    Returns
    -------
    ndarray, shape (particles, n, 2 half + 1, 2 half + 1), float32
        NaN outside the field of view, next to invalid pixels, and where the particle is not seen.
    """
    side = 2 * half + 1
    aligned = np.full((*position.shape[:2], side, side), np.nan, np.float32)
    for frame, density in enumerate(optical_density):
        for particle, centre in enumerate(position[:, frame]):
            if np.isfinite(centre).all():
                aligned[particle, frame] = cut_window(density, centre, 1 / scale[frame], half)
    return aligned


def window_half(rois: xr.Dataset, track: np.ndarray, scale: np.ndarray) -> int:
    """Half side (px at the reference energy) of a window that holds the largest particle with a rim of background.

    Parameters
    ----------
    rois : Dataset
        With `roi_window` (frame, roi, window).
    track : ndarray, shape (frame, roi)
        Particle number of each region, or -1.
    scale : ndarray, shape (frame,)
        Pixel size of each frame over that of the reference energy.
    """
    side = rois["roi_window"].values[..., 2] * CONTOUR_SIZE * scale[:, None]
    largest = [np.median(side[track == p]) for p in range(track.max(initial=-1) + 1)]
    # Windows are 1.5 times as wide as their regions; a centre of mass may sit off the middle.
    return int(np.ceil(max(largest, default=16.0) / 2 * 0.85)) + 3


def contour_sums(
    contours: np.ndarray, windows: np.ndarray, positions: np.ndarray, track: np.ndarray, scale: np.ndarray,
    n_particles: int, half: int, shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of each particle's soft contours in its own window over a block of frames.

    In integers, so that sums over blocks do not depend on how the blocks were cut.

    Parameters
    ----------
    contours, windows : ndarray
        `roi_contour` (n, roi, N, N) and `roi_window` (n, roi, 3) of the block.
    positions : ndarray, shape (n, roi, 2)
        Centre of the particle that each region shows, raw px.
    track : ndarray, shape (n, roi)
        Particle number of each region, or -1 for those to be left out.
    scale : ndarray, shape (n,)
        Pixel size of each frame over that of the reference energy.
    n_particles, half : int
        Size of the result.
    shape : (ny, nx)
        Size of the frames.

    Returns
    -------
    sums, count : ndarray, shape (n_particles, 2 half + 1, 2 half + 1), int64
        `count` frames show the sample; 255 times that is the sum where all contours agree.
    """
    side = 2 * half + 1
    sums, count = (np.zeros((n_particles, side, side), np.int64) for _ in range(2))
    offset = np.arange(-half, half + 1)
    for frame, roi in zip(*np.nonzero(track >= 0), strict=True):
        window, particle, step = windows[frame, roi], track[frame, roi], 1 / scale[frame]
        centre = (positions[frame, roi] - window[:2]) / window[2] + (CONTOUR_SIZE - 1) / 2
        grid = np.array([*centre, step / window[2]])
        sums[particle] += np.rint(sample_window(contours[frame, roi], grid, side)).astype(np.int64)
        rows, columns = (np.abs(c + offset * step - (n - 1) / 2) <= n / 2
                         for c, n in zip(positions[frame, roi], shape, strict=True))
        count[particle] += rows[:, None] & columns
    return sums, count


def outline_particles(rois: xr.Dataset, links: xr.Dataset) -> xr.DataArray:
    """Outline of every particle: where the mean of its soft contours exceeds one half.

    At most 256 sightings of a particle are used, evenly spread over those that are not doubtful (see
    `doubtful_sightings`): the outline of more is the same to a fraction of a pixel. That of a particle which the field
    of view always cuts is put together from what the frames show of it. This computes, one chunk of frames at a time;
    sums are of integers, the same for every chunking.

    Parameters
    ----------
    rois : Dataset
        From `refine_rois`: all but the thumbnails and significances are read; coordinate `energy` and attributes as for
        `link_rois`, and `frame_shape`.
    links : Dataset
        From `link_rois`.

    Returns
    -------
    DataArray, dims (particle, y, x), bool
        y and x are offsets in px from the centre of mass, as far as the largest particle needs; `particle` holds the
        numbers of `links`.

    Raises
    ------
    ValueError
        If a variable, `energy` or `frame_shape` is missing, or the two disagree on the frames or the number of slots.
    """
    validate(rois, ROIS, *_NEEDED)
    validate(rois, TABLES, "energy")
    check_attributes(rois, frame_shape="refine_rois")
    check_links(rois, links)
    track, attrs = links["track"].values, rois.attrs
    magnification, shape = attrs.get("magnification", "constant"), tuple(attrs["frame_shape"])
    scale = pixel_scale(rois["energy"].values, magnification, attrs.get("pixel_size_energy_ev"))
    half = window_half(rois, track, scale)
    particles, side = int(track.max(initial=-1)) + 1, 2 * half + 1
    centres, doubtful = _centres(rois, track, scale, shape)
    used = _chosen_sightings(track, doubtful, particles)
    sums, count = (np.zeros((particles, side, side), np.int64) for _ in range(2))
    stops = np.cumsum(rois["roi_contour"].variable.chunksizes.get("frame", (len(track),)))
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        part = slice(start, stop)
        if (used[part] >= 0).any():
            pictures = [rois[name][part].values for name in ("roi_contour", "roi_window")]
            more, seen = contour_sums(*pictures, centres[part], used[part], scale[part], particles, half, shape)
            sums += more
            count += seen
    offset = np.arange(-half, half + 1, dtype=float)
    return xr.DataArray(
        2 * sums > 255 * np.maximum(count, 1), dims=RESULT["contour"].dims, name="contour",
        coords={"particle": np.arange(particles)} | {
            axis: (axis, offset, {"units": "px", "long_name": "offset from the centre of mass"}) for axis in AXES},
        attrs=RESULT["contour"].attrs)


def _centres(
    rois: xr.Dataset, track: np.ndarray, scale: np.ndarray, shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Centre (frame, roi, 2), raw px, of each region's particle, and whether that of the region is another."""
    frame, roi = np.nonzero(track >= 0)
    where = (track[frame, roi], frame)

    def spread(values: np.ndarray, empty: object) -> np.ndarray:
        table = np.full((int(track.max(initial=-1)) + 1, len(track), *values.shape[2:]), empty, values.dtype)
        table[where] = values[frame, roi]
        return table

    centres = rois["roi_position"].values.astype(float)
    area, contrast = (spread(rois[name].values.astype(float), np.nan) for name in ("roi_area", "roi_contrast"))
    area = area * scale**2
    doubt = doubtful_sightings(area, contrast, spread(rois["roi_cut"].values, False))
    place, _ = whole_places(to_reference(spread(centres, np.nan), scale, shape), doubt, area)
    theirs = doubt > 0
    doubtful = np.zeros(track.shape, bool)
    doubtful[frame, roi] = theirs[where]
    centres[frame, roi] = np.where(theirs[where][:, None], to_raw(place, scale, shape)[where], centres[frame, roi])
    return centres, doubtful


def _chosen_sightings(track: np.ndarray, doubtful: np.ndarray, particles: int) -> np.ndarray:
    """The track table with all but some sightings of each particle put to -1."""
    used = np.full_like(track, -1)
    for particle in range(particles):
        places = np.argwhere(track == particle)
        sure = places[~doubtful[tuple(places.T)]]
        places = sure if len(sure) else places
        chosen = places[np.unique(np.linspace(0, len(places) - 1, _CONTOURS).round().astype(int))]
        used[tuple(chosen.T)] = particle
    return used


def align_stacks(
    normalized: xr.Dataset, tracks: xr.Dataset, half: int, *, contour: xr.DataArray | None = None
) -> xr.Dataset:
    """Register every particle's stack by its own positions, lazily.

    One task per particle and chunk of frames; computing one particle of some frames reads only those frames.

    Parameters
    ----------
    normalized : Dataset
        With `optical_density` (frame, y, x), coordinate `energy`, and attributes `magnification` ("constant" if absent)
        and, for a magnification that changes, `pixel_size_energy_ev`.
    tracks : Dataset
        With `position` (particle, frame, axis).
    half : int
        Windows reach from -half to +half px; see `window_half`.
    contour : DataArray, dims (particle, y, x), optional
        Outline of each particle, passed through; where its y and x are labelled it is cut, or filled up, to the window.

    Returns
    -------
    Dataset
        `aligned` (particle, frame, y, x), float32, lazy: optical density about each particle's centre of mass, NaN
        outside the field of view; and `contour` if given.

    Raises
    ------
    ValueError
        If a variable is missing or has other dims, a frame is split into several chunks, the frames of the two are
        others, `half` is not positive, or `contour` is not that of these particles and this window.
    """
    validate(normalized, NORMALIZED, "optical_density")
    validate(normalized, TABLES, "energy")
    validate(tracks, RESULT, "position")
    check_number("half", half, "a whole number of px, 1 or more", least=1, whole=True)
    check_alike(normalized, tracks, "frame")
    frames = normalized["optical_density"]
    density = whole_frames(frames)
    attrs = normalized.attrs
    # Of all frames at once: the reference energy, where none is given, is their median.
    energy = da.asarray(normalized["energy"].data).rechunk(-1)
    scale = energy.map_blocks(pixel_scale, attrs.get("magnification", "constant"), attrs.get("pixel_size_energy_ev"),
                              dtype=float, meta=np.empty(0)).rechunk((density.chunks[0],))
    side = 2 * half + 1
    position = da.from_array(tracks["position"].values, chunks=(1, density.chunks[0], -1))
    aligned = da.blockwise(
        align_block, "pfij", density, "fyx", position, "pfa", scale, "f", half, None,
        new_axes={"i": side, "j": side}, concatenate=True, dtype=np.float32, meta=np.empty((0,) * 4, np.float32),
    )
    offset = np.arange(-half, half + 1, dtype=float)
    coords = {"y": offset, "x": offset, "axis": list(AXES)}
    ds = xr.Dataset({"aligned": (RESULT["aligned"].dims, aligned)}, coords=coords)
    ds = ds.assign_coords({k: v for k, v in normalized.coords.items() if v.dims == ("frame",)})
    ds = ds.assign_coords({k: v for k, v in tracks.coords.items() if v.dims == ("particle",)})
    if contour is not None:
        ds["contour"] = _fitted(contour, ds)
    ds.attrs = dict(attrs)
    # What is fitted to the stack alone needs to know the edge.
    ds["aligned"].attrs = {k: attrs[k] for k in ("element", "edge") if k in attrs}
    return describe(ds, RESULT)


def _fitted(contour: xr.DataArray, stacks: xr.Dataset) -> xr.DataArray:
    """Outlines in the window of the stacks; outside of their own nothing belongs to a particle."""
    check_variable(contour, RESULT["contour"])
    window = {axis: stacks[axis].values for axis in AXES if axis in contour.indexes}
    contour = contour.reindex(window, fill_value=False)
    check_alike(contour, stacks, "particle", *AXES)
    return contour
