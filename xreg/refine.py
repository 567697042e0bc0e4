"""Stage 3: one clean contour per particle. The Dual U-Net refines every region of interest, moments give its place."""

from pathlib import Path
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import xarray as xr
from scipy import ndimage

from xreg.chunks import whole_frames
from xreg.kernels.moments import centre_of_mass, single_contour
from xreg.kernels.resample import sample_window
from xreg.kernels.rim import extend_to_rim
from xreg.kernels.rois import (
    other_regions,
    region_pictures,
    region_windows,
    split_left_over,
    split_regions,
    split_waists,
)
from xreg.kernels.significance import background_unevenness, contour_contrast
from xreg.schema import (
    AXES,
    CONTOUR_SIZE,
    NORMALIZED,
    PARTICLE_MAP,
    ROIS,
    THUMBNAIL_SIZE,
    check_alike,
    check_number,
    check_variable,
    describe,
    validate,
)

if TYPE_CHECKING:
    from xreg.models.weights import Weights

#: Regions kept per frame; where more are found, the largest.
MAX_ROIS = 96
#: Contours of less than this many square px are noise.
MIN_AREA = 80.0
#: Contours of less contrast than this many standard errors, or than this many standard deviations of the background's
#: own unevenness at places of their size, are refused: the data do not show what the detector drew.
MIN_SIGNIFICANCE, MIN_ABOVE_TEXTURE = 6.0, 9.0
#: Mean of the particle map inside a contour below which both count for less, in proportion: what the data hardly show
#: must be sure to the detector. With the shipped weights, a hundred frames with and a hundred without particles at each
#: noise level of `benchmarks/detection.py`, of the seeds by which these numbers were chosen: of 3533 contours on a
#: particle 4 are refused, at 30 % noise, and of 106 inventions all but 1; if the map did not count, 3 and all but 10.
SURE_MAP = 0.5
#: Samples about other regions and invalid pixels that do not tell where a particle begins.
_ASIDE = 4
#: Regions are split by what their contours leave over once, and looked at again.
_LOOKS = 2
#: A contour that lies inside a larger one by more than this share is a part of it, such as a denser grain.
MAX_INSIDE = 0.85

_RECORD = np.dtype([
    ("roi_position", "f8", (2,)),
    ("roi_area", "f4"),
    ("roi_contrast", "f4"),
    ("roi_significance", "f4"),
    ("roi_cut", "?"),
    ("roi_window", "f8", (3,)),
    ("roi_contour", "u1", (CONTOUR_SIZE, CONTOUR_SIZE)),
    ("roi_thumbnail", "u1", (THUMBNAIL_SIZE, THUMBNAIL_SIZE)),
])


def empty_rois(n_frames: int, max_rois: int = MAX_ROIS) -> np.ndarray:
    """Record array (frame, roi) of empty slots: positions NaN, everything else 0."""
    empty = np.zeros((n_frames, max_rois), _RECORD)
    empty["roi_position"] = np.nan
    return empty


def refine_block(
    optical_density: np.ndarray, particle_map: np.ndarray, noise: np.ndarray, *, device: str = "auto",
    weights: "Weights | None" = None, max_rois: int = MAX_ROIS,
) -> np.ndarray:
    """Split each frame's particle map into regions and refine each to one soft contour.

    Where a contour leaves over a good part of its region, or has a waist, the region is split, and the frame is refined
    once more: the map may not tell two particles from each other where they touch.

    Parameters
    ----------
    optical_density : ndarray, shape (n, y, x), float32
        Above the background; NaN where invalid.
    particle_map : ndarray, shape (n, y, x), float32
        From `detect_block`.
    noise : ndarray, shape (n,)
        Standard deviation of the optical density.
    device : str
        "auto", "cpu" or "cuda".
    weights : Weights, optional
        Of a Dual U-Net; the shipped one by default.
    max_rois : int
        Slots per frame; where more regions are found, the largest are kept.

    Returns
    -------
    ndarray, shape (n, max_rois), record dtype
        One field for each variable of `schema.ROIS`; `roi_position` is NaN in empty slots.
    """
    from xreg.models.infer import choose_device, soft_contours
    from xreg.models.weights import shipped

    weights, device = weights or shipped("refiner"), choose_device(device)
    table = empty_rois(len(optical_density), max_rois)
    for rows, density, found, sigma in zip(table, optical_density, particle_map, noise, strict=True):
        labels, measured = split_regions(found), []
        for _ in range(_LOOKS):
            windows = region_windows(labels, CONTOUR_SIZE)
            if not len(windows):
                break
            pictures, levels = region_pictures(density, found, labels, windows, CONTOUR_SIZE)
            contours = soft_contours(pictures, weights, device)
            others = other_regions(found, labels, windows, pictures[:, 1])
            regions = zip(pictures, contours, others, windows, levels, strict=True)
            measured = [_measure(*region, float(sigma)) for region in regions]
            outlines = np.array([record["roi_contour"] / np.float32(255) for record, _ in measured])
            labels = split_left_over(labels, windows, outlines)
            labels = split_waists(found, labels, windows, outlines)
            if labels.max() == len(windows):
                break
        kept = _drop_doubles(_that_stand_out([m for m in measured if m[0]["roi_area"] >= MIN_AREA], density))
        kept = sorted(sorted(kept, key=lambda r: -r["roi_area"])[:max_rois], key=lambda r: tuple(r["roi_position"]))
        rows[: len(kept)] = kept
    return table


def refine_rois(
    normalized: xr.Dataset, particle_map: xr.DataArray, *, device: str = "auto",
    weights: "Weights | str | Path | None" = None, max_rois: int = MAX_ROIS,
) -> xr.Dataset:
    """Refine every region of interest to one soft contour and measure it, lazily.

    One task per chunk of frames. The number of regions differs from frame to frame, so that every frame has `max_rois`
    slots, of which the unused are empty.

    Parameters
    ----------
    normalized : Dataset
        With `optical_density` (frame, y, x) and `noise` (frame) from `normalize_frames`.
    particle_map : DataArray, dims (frame, y, x)
        From `detect_rois`.
    device, weights, max_rois
        As in `refine_block`; `weights` may be the path of a file.

    Returns
    -------
    Dataset
        The variables of `schema.ROIS`, dims (frame, roi, ...): position (px, centre of mass of the contour), area,
        contrast, significance, whether the field of view cuts it, and the contour itself.

    Raises
    ------
    ValueError
        If a variable is missing or has other dims, a frame is split into several chunks, the frames of the two are
        others or of another size, the weights are not those of a refiner, or `max_rois` is not positive.
    """
    from xreg.models.weights import Weights

    validate(normalized, NORMALIZED, "optical_density", "noise")
    check_variable(particle_map, PARTICLE_MAP)
    check_alike(normalized, particle_map, "frame", "y", "x")
    check_number("max_rois", max_rois, "a whole number of regions, 1 or more", least=1, whole=True)
    density = whole_frames(normalized["optical_density"])
    noise = da.asarray(normalized["noise"].data).rechunk((density.chunks[0],))
    packed = da.blockwise(
        refine_block, "fr", density, "fyx", whole_frames(particle_map).rechunk(density.chunks), "fyx", noise, "f",
        new_axes={"r": max_rois}, concatenate=True, dtype=_RECORD, meta=np.empty((0, 0), _RECORD),
        device=device, weights=Weights.chosen(weights, "refiner"), max_rois=max_rois,
    )
    ds = xr.Dataset({name: (ROIS[name].dims, _field(packed, name)) for name in _RECORD.names})
    ds = ds.assign_coords({k: v for k, v in normalized.coords.items() if v.dims == ("frame",)})
    ds = ds.assign_coords(axis=list(AXES))
    ds.attrs = {**normalized.attrs, "frame_shape": list(normalized["optical_density"].shape[1:])}
    return describe(ds, ROIS)


def _field(packed: da.Array, name: str) -> da.Array:
    """One field of a record array as an array of its own; sub-arrays become trailing axes."""
    dtype, shape = _RECORD[name].base, _RECORD[name].shape
    return packed.map_blocks(
        np.ndarray.__getitem__, name, new_axis=list(range(2, 2 + len(shape))) or None,
        chunks=(*packed.chunks, *((n,) for n in shape)), dtype=dtype, meta=np.empty((0,) * (2 + len(shape)), dtype),
    )


def _measure(
    picture: np.ndarray, contour: np.ndarray, others: np.ndarray, window: np.ndarray, levels: np.ndarray, noise: float
) -> tuple[np.ndarray, float]:
    """One record: the region's single contour, its moments, contrast and thumbnail; empty if nothing shows it.

    And how sure the detector is of it, from 0 to 1.
    """
    record = empty_rois(1, 1)[0, 0]
    spacing = window[2]
    free = ~ndimage.binary_dilation((others > 0.2) | (picture[2] < 0.5), iterations=_ASIDE)
    contour = extend_to_rim(picture[0], single_contour(contour, picture[1]), free)
    stored = np.rint(255 * contour).astype(np.uint8)
    contour = stored / 255.0
    mass, centre = centre_of_mass(contour)
    if not mass:
        return record, 0.0
    scale = max(levels[1] - levels[0], 0.02)
    contrast, significance = contour_contrast(picture[0], contour, picture[2], noise / scale / spacing)
    inside = contour > 0.5
    sure = min(float(picture[1][inside].mean()) / SURE_MAP, 1.0) if inside.any() else 0.0
    if not significance * sure >= MIN_SIGNIFICANCE:  # nor where it is not a number
        return record, sure
    record["roi_position"] = window[:2] + (centre - (CONTOUR_SIZE - 1) / 2) * spacing
    record["roi_area"] = mass * spacing**2
    record["roi_contrast"], record["roi_significance"] = contrast * scale, significance
    dark = ndimage.binary_dilation(picture[2] < 0.5, iterations=2)
    record["roi_cut"] = bool((dark & inside).any())
    record["roi_window"], record["roi_contour"] = window, stored
    record["roi_thumbnail"] = _thumbnail(picture[0] * contour, mass, centre)
    return record, sure


def _that_stand_out(measured: list[tuple[np.ndarray, float]], density: np.ndarray) -> list[np.ndarray]:
    """Records whose contrast is more than that of the background's own texture at places of their size."""
    if not measured:
        return []
    records, sure = zip(*measured, strict=True)
    contours = np.array([r["roi_contour"] / np.float32(255) for r in records])
    windows, areas = (np.array([r[name] for r in records]) for name in ("roi_window", "roi_area"))
    uneven = background_unevenness(density, windows, contours, areas)
    return [r for r, s, u in zip(records, sure, uneven, strict=True) if r["roi_contrast"] * s >= MIN_ABOVE_TEXTURE * u]


def _thumbnail(picture: np.ndarray, mass: float, centre: np.ndarray) -> np.ndarray:
    """Picture of the particle about its centre of mass, scaled to its size, 0 to 255 for 0 to 1.5 times its level."""
    reach = 1.25 * np.sqrt(mass / np.pi)
    small = sample_window(picture.astype(np.float32), np.array([*centre, 2 * reach / THUMBNAIL_SIZE]), THUMBNAIL_SIZE)
    return np.clip(small * (255 / 1.5), 0, 255).astype(np.uint8)


def _drop_doubles(records: list[np.ndarray]) -> list[np.ndarray]:
    """Drop the smaller of two contours on the same particle: its map was split once too often, or at an inclusion."""
    kept: list[np.ndarray] = []
    for record in sorted(records, key=lambda r: -r["roi_area"]):
        distance = [np.hypot(*(k["roi_position"] - record["roi_position"])) for k in kept]
        doubles = [d < 0.5 * np.sqrt(record["roi_area"] / np.pi) and record["roi_area"] > 0.4 * k["roi_area"]
                   for d, k in zip(distance, kept, strict=True)]
        near = [k for d, k in zip(distance, kept, strict=True) if d < 1.5 * np.sqrt(k["roi_area"] / np.pi)]
        if not any(doubles) and not any(_share_inside(record, k) > MAX_INSIDE for k in near):
            kept.append(record)
    return kept


def _share_inside(small: np.ndarray, large: np.ndarray) -> float:
    """Share of one record's contour that lies inside another's."""
    spacing = large["roi_window"][2]
    centre = (small["roi_window"][:2] - large["roi_window"][:2]) / max(spacing, 1e-6) + (CONTOUR_SIZE - 1) / 2
    window = np.array([*centre, small["roi_window"][2] / max(spacing, 1e-6)])
    around = sample_window(large["roi_contour"].astype(np.float32), window, CONTOUR_SIZE) > 127
    own = small["roi_contour"] > 127
    return float((own & around).sum() / max(own.sum(), 1))
