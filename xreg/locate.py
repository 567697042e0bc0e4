"""Stage 5: every particle's position to a fraction of a pixel, from its own picture.

A few frames of high contrast give each particle's template; then every frame's positions are fitted to it. A frame's
positions depend on this frame and the templates alone.
"""

from functools import partial

import dask
import dask.array as da
import numpy as np
import xarray as xr
from scipy import ndimage

from xreg.chunks import whole_frames
from xreg.kernels.geometry import pixel_scale
from xreg.kernels.subpixel import Template, refine_position
from xreg.kernels.windows import cut_window
from xreg.schema import NORMALIZED, RESULT, check_variable, validate

#: Frames from which templates are made, and bytes that they may take in memory.
TEMPLATE_FRAMES, TEMPLATE_BYTES = 16, 2**27
#: Rounds of averaging; before each but the first the frames are fitted to the last one's templates.
_ROUNDS = 2


def choose_template_frames(contrast: np.ndarray, energy: np.ndarray, most: int = TEMPLATE_FRAMES) -> np.ndarray:
    """Frames for the templates: above the edge, where contrast is high, evenly spread over the measurement.

    Of the frames whose contrast (median over particles) is at least 0.6 of the highest, the upper half in energy is
    taken: far above the edge a particle's picture shows its thickness and nothing of its chemistry.

    Parameters
    ----------
    contrast : ndarray, shape (particle, frame)
        Optical density of every particle over its surroundings; NaN where not seen.
    energy : ndarray, shape (frame,), eV
    most : int
        Frames that memory has room for; more than `TEMPLATE_FRAMES` are never taken.

    Returns
    -------
    ndarray of int
        Frames, ascending.
    """
    seen = np.flatnonzero(np.isfinite(contrast).any(axis=0))
    if not seen.size:
        return seen
    median = np.nanmedian(contrast[:, seen], axis=0)
    strong = seen[median >= 0.6 * np.quantile(median, 0.95)]
    upper = strong[energy[strong] >= np.median(energy[strong])]
    return upper[np.unique(np.linspace(0, len(upper) - 1, min(most, TEMPLATE_FRAMES)).round().astype(int))]


def make_templates(
    optical_density: np.ndarray, position: np.ndarray, scale: np.ndarray, contour: np.ndarray
) -> np.ndarray:
    """Mean picture of every particle over some frames, sharpened by fitting the frames to it and averaging anew.

    Parameters
    ----------
    optical_density : ndarray, shape (n, y, x), float32
        Frames of high contrast.
    position : ndarray, shape (particles, n, 2)
        Centres of mass in these frames, raw px; NaN where not seen.
    scale : ndarray, shape (n,)
        Pixel size of each frame over that of the reference energy.
    contour : ndarray, shape (particles, 2 half + 1, 2 half + 1), bool
        Outline of each particle.

    Returns
    -------
    ndarray, shape (particles, 2 half + 1, 2 half + 1), float32
        For `templates_of`; all NaN for a particle that none of the frames shows.
    """
    half = contour.shape[-1] // 2
    pictures = np.full(contour.shape, np.nan, np.float32)
    place = position.copy()
    for round_ in range(_ROUNDS):
        if round_:
            templates = templates_of(pictures, contour)
            for frame, density in enumerate(optical_density):
                place[:, frame] = locate_frame(density, position[:, frame], float(scale[frame]), contour, templates)
            # Templates stay where the centres of mass are on average: the fit gives shifts, not a new origin.
            place += _mean_over_frames(position - place)
        for particle in range(len(position)):
            known = np.flatnonzero(np.isfinite(place[particle]).all(-1))
            if known.size:
                windows = [cut_window(optical_density[k], place[particle, k], 1 / scale[k], half) for k in known]
                pictures[particle] = _mean(windows)
    return pictures


def templates_of(pictures: np.ndarray, contour: np.ndarray) -> list[Template | None]:
    """Templates of mean pictures and outlines, both (particles, n, n); None where a picture is all NaN or has no outline."""
    return [Template.of(picture, outline) if np.isfinite(picture).any() and outline.any() else None
            for picture, outline in zip(pictures, contour, strict=True)]


def _mean_over_frames(shift: np.ndarray) -> np.ndarray:
    """Mean (particles, 1, 2) of shifts (particles, n, 2) over the frames that have one; 0 where none has."""
    known = np.isfinite(shift)
    return np.where(known, shift, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)


def _mean(windows: list[np.ndarray]) -> np.ndarray:
    """Mean of the valid values at each place; NaN where there are none."""
    total = np.zeros(windows[0].shape)
    count = np.zeros(windows[0].shape, int)
    for window in windows:
        valid = np.isfinite(window)
        total[valid] += window[valid]
        count += valid
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def locate_frame(
    optical_density: np.ndarray, position: np.ndarray, scale: float, contour: np.ndarray,
    templates: list[Template | None],
) -> np.ndarray:
    """Positions of all particles in one frame, fitted to their templates.

    Parameters
    ----------
    optical_density : ndarray, shape (y, x), float32
        NaN where invalid.
    position : ndarray, shape (particles, 2)
        Where to begin: centres of mass, raw px; NaN where not seen.
    scale : float
        Pixel size over that of the reference energy.
    contour : ndarray, shape (particles, 2 half + 1, 2 half + 1), bool
        Outline of each particle.
    templates : list of Template or None

    Returns
    -------
    ndarray, shape (particles, 2)
        Raw px; the centre of mass where there is no template or the fit fails, NaN where not seen.
    """
    located = position.copy()
    for particle, (start, template) in enumerate(zip(position, templates, strict=True)):
        if template is None or not np.isfinite(start).all():
            continue
        usable = ~covered_by_others(particle, position, scale, contour, template.half)
        cut = partial(cut_window, optical_density, step=1 / scale, half=template.half)
        found = refine_position(cut, start, scale, template, usable)
        if np.isfinite(found).all():
            located[particle] = found
    return located


def locate_particles(normalized: xr.Dataset, tracks: xr.Dataset, contour: xr.DataArray) -> xr.DataArray:
    """Fit the positions of all particles in all frames to their templates, lazily.

    One task makes the templates, from at most sixteen frames; then there is one task per chunk of frames.

    Parameters
    ----------
    normalized : Dataset
        With `optical_density` (frame, y, x) and the coordinate `energy`; attributes `magnification` and
        `pixel_size_energy_ev` as for `align_stacks`.
    tracks : Dataset, in memory
        With `position` (particle, frame, axis), centres of mass in raw px, and `contrast` (particle, frame), from
        `gather_tracks`.
    contour : DataArray, dims (particle, y, x), bool
        From `outline_particles`.

    Returns
    -------
    DataArray, dims (particle, frame, axis), px
        As `position`; the centre of mass where a fit fails, NaN where not seen.

    Raises
    ------
    ValueError
        If a variable is missing or has other dims, or a frame is split into several chunks.
    """
    validate(normalized, NORMALIZED, "optical_density")
    validate(tracks, RESULT, "position")
    check_variable(contour, RESULT["contour"])
    density = whole_frames(normalized["optical_density"])
    energy, coarse = tracks["energy"].values, tracks["position"].values
    attrs = normalized.attrs
    scale = pixel_scale(energy, attrs.get("magnification", "constant"), attrs.get("pixel_size_energy_ev"))
    most = max(TEMPLATE_BYTES // (4 * density.shape[1] * density.shape[2]), 1)
    chosen = choose_template_frames(tracks["contrast"].values, energy, most)
    outline = contour.values
    pictures = dask.delayed(make_templates)(density[chosen], coarse[:, chosen], scale[chosen], outline)
    located = da.blockwise(
        _locate_block, "pfa", density, "fyx", da.from_array(coarse, chunks=(-1, density.chunks[0], -1)), "pfa",
        da.from_array(scale, chunks=(density.chunks[0],)), "f", outline, None, concatenate=True, dtype=float,
        meta=np.empty((0, 0, 0)), templates=dask.delayed(templates_of)(pictures, outline))
    return xr.DataArray(located, dims=tracks["position"].dims, coords=tracks["position"].coords, name="position",
                        attrs=tracks["position"].attrs)


def _locate_block(density, position, scale, outline, *, templates):
    """Positions (particles, n, 2) of a block of n frames."""
    return np.stack([locate_frame(density[k], position[:, k], float(scale[k]), outline, templates)
                     for k in range(len(density))], axis=1)


def covered_by_others(
    particle: int, position: np.ndarray, scale: float, contour: np.ndarray, half: int
) -> np.ndarray:
    """Where in a particle's window other particles lie, with a rim of two px: (2 half + 1, 2 half + 1) bool."""
    side, whole = 2 * half + 1, contour.shape[-1]
    covered = np.zeros((side, side), bool)
    for other, centre in enumerate(position):
        if other == particle or not np.isfinite(centre).all():
            continue
        # First row and column of the other's outline in this window.
        first = np.rint((centre - position[particle]) * scale).astype(int) + half - whole // 2
        low, high = np.maximum(first, 0), np.minimum(first + whole, side)
        if (low < high).all():
            here = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            there = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
            covered[here] |= contour[other][there]
    return ndimage.binary_dilation(covered, iterations=2) if covered.any() else covered
