"""Stage 5: every particle's position to a fraction of a pixel, from its own picture and that of the background.

Some frames, of high contrast and of low, give the two layers: the background, which moves with the stage, and each
particle's template. Then every frame is fitted to them, also where detection missed a particle that is known from other
frames. A frame's positions depend on this frame and the layers alone.
"""

import dask
import dask.array as da
import numpy as np
import xarray as xr

from xreg.chunks import whole_frames
from xreg.kernels.absorption import changing, edge_jump, expected_contrast, tabulated_edge
from xreg.kernels.geometry import pixel_scale, to_raw, to_reference
from xreg.kernels.kinematics import doubtful_sightings, whole_places
from xreg.kernels.layers import Layers, Located, locate_in_frame, paint
from xreg.kernels.separation import make_layers
from xreg.schema import (
    AXES,
    NORMALIZED,
    RESULT,
    TABLES,
    check_alike,
    check_attributes,
    check_variable,
    describe,
    validate,
)

#: Frames from which the layers are made, and bytes that they may take in memory.
TEMPLATE_FRAMES, TEMPLATE_BYTES = 16, 2**27
#: Frames of at least this share of the highest contrast are strong.
_STRONG = 0.6
#: A particle that was not detected is accepted at this many standard errors of its contrast, and if its contrast is
#: between these shares of what it should be. It is denied if the contrast is below the lower one and surely too low.
_SURE, _LEAST_SHARE, _MOST_SHARE = 5.0, 0.5, 3.0
#: The same shares for fits of a doubtful sighting, which may be of something else.
_DOUBTFUL_SHARES = (0.6, 1.6)
#: Sightings at either end of a track of which one is cut where the particle leaves the field of view; and a detection's
#: standard error, in radii, where the frame does not show the particle that it is said to be.
_LEAVING, _ASTRAY = 3, 0.5
#: A centre may lie this far, in px and in radii, inward of the centre of what the field of view leaves to see: outlines
#: take a little of a neighbour, or leave a little to it.
_INWARD = 2.0, 0.2
#: Of two outlines that share this part of the smaller one, and are detected together in less than this part of the
#: frames that show the rarer one, one is a piece of the other.
_SAME_PLACE, _TOGETHER = 0.6, 0.2


def choose_template_frames(contrast: np.ndarray, energy: np.ndarray, most: int = TEMPLATE_FRAMES) -> np.ndarray:
    """Frames for the layers: half above the edge, where contrast is high, half where it is low, evenly spread.

    Of the frames whose contrast (median over particles, see `kernels.absorption.changing`) is at least 0.6 of the
    highest, the upper half in energy is taken: far above the edge a particle's picture shows its thickness and nothing
    of its chemistry. Of the others those near the lowest contrast are taken, if there are any: there the background
    weighs most. A frame of either kind that shows less than half as many particles as usual may be damaged.

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
    contrast = contrast[changing(contrast)]
    count = np.isfinite(contrast).sum(axis=0)
    seen = np.flatnonzero(count)
    if not seen.size:
        return seen
    median = np.nanmedian(contrast[:, seen], axis=0)
    high, low = np.quantile(median, [0.95, 0.05])
    strong, weak = (some[count[some] >= np.median(count[some]) / 2] if some.size else some for some in (
        seen[median >= _STRONG * high], seen[median < min(_STRONG * high, 1.3 * low)]))
    upper = strong[energy[strong] >= np.median(energy[strong])]
    most = min(most, TEMPLATE_FRAMES)
    n_weak = min(len(weak), most // 2)
    return np.sort(np.concatenate([_spread(upper, most - n_weak), _spread(weak, n_weak)]))


def frames_that_fit(shape: tuple[int, int]) -> int:
    """Frames of a shape that may be in memory at once."""
    return max(TEMPLATE_BYTES // (4 * shape[0] * shape[1]), 1)


def _spread(frames: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the frames, evenly spread."""
    if not most or not len(frames):
        return frames[:0]
    return frames[np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))]


# -- where to look -----------------------------------------------------------------------------------------------------


def propose_particles(tracks: xr.Dataset, contour: xr.DataArray) -> xr.Dataset:
    """Candidates for particles, and where they should be in every frame.

    Parameters
    ----------
    tracks : Dataset, in memory
        From `gather_tracks`, with the attribute `frame_shape`.
    contour : DataArray, dims (particle, y, x), bool
        From `outline_particles`.

    Returns
    -------
    Dataset
        The tracks with `contour` and the variables of `expect_positions`, less those that are pieces of another (see
        `drop_pieces`).

    Raises
    ------
    ValueError
        If a variable or the attribute is missing, a variable has other dims, or the particles of the two are others.
    """
    validate(tracks, RESULT, "position")
    validate(tracks, TABLES, "energy", "area", "contrast", "cut")
    check_attributes(tracks, frame_shape="refine_rois")
    check_variable(contour, RESULT["contour"])
    check_alike(tracks, contour, "particle")
    candidates = tracks.merge(expect_positions(tracks)).assign(contour=contour)
    return candidates.isel(particle=drop_pieces(candidates))


def expect_positions(tracks: xr.Dataset) -> xr.Dataset:
    """Where every particle is, or should be, in every frame.

    Where it is not detected, or not as a whole (see `doubtful_sightings`): the motion that all particles share, and its
    own as between the sightings before and after. Where none is detected, as may be before the edge, all are expected
    between where they are before and after.

    Parameters
    ----------
    tracks : Dataset, in memory
        From `gather_tracks`, with the attribute `frame_shape`.

    Returns
    -------
    Dataset
        `start` (particle, frame, axis), raw px, NaN where nothing is detected and it would be outside the frame;
        `guessed` and `doubtful` (particle, frame), whether it is no sighting, or one of another region than the whole
        particle; `stage` (frame, axis), px at the reference energy, where the stage is expected.
    """
    shape, scale = tuple(tracks.attrs["frame_shape"]), _scale(tracks["energy"].values, tracks.attrs)
    position, contrast = tracks["position"].values, tracks["contrast"].values
    area = tracks["area"].values * scale**2
    doubt = doubtful_sightings(area, contrast, tracks["cut"].values)
    place, shared = whole_places(to_reference(position, scale, shape), doubt, area)
    doubtful = doubt > 0
    shared = _continued(shared)
    guess = np.array([_continued(own) + shared for own in place - shared]).reshape(place.shape)
    seen = np.isfinite(place).all(-1)
    guess = to_raw(guess, scale, shape)
    inside = ((guess >= 0) & (guess <= np.array(shape) - 1)).all(-1)
    start = np.where(seen[..., None], position, np.where(inside[..., None], guess, np.nan))
    start = np.where((seen & doubtful)[..., None], to_raw(place, scale, shape), start)
    # What is never seen as a whole has no better picture to be looked for with.
    doubtful &= (seen & ~doubtful).any(axis=1, keepdims=True)
    flat = ("particle", "frame")
    return xr.Dataset({"start": ((*flat, "axis"), start), "guessed": (flat, ~seen), "doubtful": (flat, doubtful),
                       "stage": (("frame", "axis"), shared)})


def _continued(path: np.ndarray) -> np.ndarray:
    """A path (frames, 2) with straight lines where it is NaN, and level before and after; all NaN if all of it is."""
    known = np.flatnonzero(np.isfinite(path).all(-1))
    if not known.size:
        return path
    return np.stack([np.interp(np.arange(len(path)), known, along[known]) for along in path.T], axis=-1)


def _scale(energy: np.ndarray, attrs: dict) -> np.ndarray:
    return pixel_scale(energy, attrs.get("magnification", "constant"), attrs.get("pixel_size_energy_ev"))


def drop_pieces(candidates: xr.Dataset) -> np.ndarray:
    """Particles to keep, where one place was divided differently in different frames.

    Two outlines that lie on each other but are hardly ever detected together are one piece of matter that was taken for
    one particle in some frames and for another, or several, in others. The one that the frames show better, by contrast
    times radius summed over its sightings, is kept.

    Parameters
    ----------
    candidates : Dataset
        Tracks with `contour` and the variables of `expect_positions`.

    Returns
    -------
    ndarray of int
        Particles, ascending.
    """
    outline, start = candidates["contour"].values, candidates["start"].values
    seen = np.isfinite(candidates["position"].values).all(-1)
    weight = np.nansum(np.where(seen, candidates["contrast"].values * np.sqrt(candidates["area"].values), 0), axis=1)
    half, area = outline.shape[-1] // 2, outline.sum((1, 2))
    kept: list[int] = []
    for p in np.argsort(-weight, kind="stable"):
        for q in kept:
            apart = start[q] - start[p]
            known = np.isfinite(apart).all(-1)
            rarer = min(seen[p].sum(), seen[q].sum())
            if not known.any() or (seen[p] & seen[q]).sum() >= _TOGETHER * rarer:
                continue
            shift = np.median(apart[known], axis=0)
            if np.abs(shift).max() > 2 * half:
                continue
            shared = (paint(outline.shape[1:], (shift + half)[None], 1.0, outline[q][None]) & outline[p]).sum()
            if shared > _SAME_PLACE * min(area[p], area[q]):
                break
        else:
            kept.append(int(p))
    return np.sort(np.array(kept, dtype=int))


# -- every frame -------------------------------------------------------------------------------------------------------


def locate_block(
    optical_density: np.ndarray, start: np.ndarray, guessed: np.ndarray, stage: np.ndarray, scale: np.ndarray,
    layers: Layers,
) -> np.ndarray:
    """Fit stage and particles of a block of frames.

    Parameters
    ----------
    optical_density : ndarray, shape (n, y, x), float32
    start, guessed, stage : ndarray, shape (particles, n, 2), (particles, n) and (n, 2)
        From `expect_positions`; doubtful places are guessed, too.
    scale : ndarray, shape (n,)
        Pixel size over that of the reference energy.
    layers : Layers

    Returns
    -------
    ndarray, shape (particles + 1, n, 6)
        Position, its standard errors, contrast over the template's and its standard error, as in `Located`; in the last
        row the place of the stage and its standard errors. NaN where nothing is known.
    """
    rows = np.full((len(start) + 1, len(optical_density), 6), np.nan)
    for k, density in enumerate(optical_density):
        if np.isfinite(density).any():
            found: Located = locate_in_frame(density, start[:, k], guessed[:, k], stage[k], float(scale[k]), layers)
            rows[:-1, k] = np.column_stack([found.position, found.sigma, found.contrast, found.contrast_sigma])
            rows[-1, k, :4] = *found.stage, *found.stage_sigma
    return rows


def locate_particles(normalized: xr.Dataset, candidates: xr.Dataset) -> xr.DataArray:
    """Fit the positions of stage and particles in all frames to the layers, lazily.

    One task makes the layers, from at most sixteen frames; then there is one task per chunk of frames. Frames that are
    read while the layers are made wait for them in memory; `register` does one after the other.

    Parameters
    ----------
    normalized : Dataset
        With `optical_density` (frame, y, x) and the coordinate `energy`; attributes `magnification` and
        `pixel_size_energy_ev` as for `align_stacks`.
    candidates : Dataset, in memory
        From `propose_particles`.

    Returns
    -------
    DataArray, dims (row, frame, value)
        What every frame says (see `locate_block`), for `confirm_particles`.

    Raises
    ------
    ValueError
        If a variable is missing or has other dims, a frame is split into several chunks, or the frames of the two are
        others.
    """
    validate(normalized, NORMALIZED, "optical_density")
    validate(candidates, RESULT, "position", "contour")
    validate(candidates, TABLES, "energy", "contrast", "start", "guessed", "doubtful", "stage")
    check_alike(normalized, candidates, "frame")
    density = whole_frames(normalized["optical_density"])
    start, guessed, stage = (candidates[name].values for name in ("start", "guessed", "stage"))
    energy = candidates["energy"].values
    scale = _scale(energy, normalized.attrs)
    chosen = choose_template_frames(candidates["contrast"].values, energy, frames_that_fit(density.shape[1:]))
    doubtful = candidates["doubtful"].values
    layers = dask.delayed(make_layers)(density[chosen], start[:, chosen], guessed[:, chosen], doubtful[:, chosen],
                                       stage[chosen], scale[chosen], candidates["contour"].values)
    frames = density.chunks[0]
    found = da.blockwise(
        locate_block, "pfv", density, "fyx", da.from_array(start, chunks=(-1, frames, -1)), "qfa",
        da.from_array(guessed | doubtful, chunks=(-1, frames)), "qf", da.from_array(stage, chunks=(frames, -1)), "fa",
        da.from_array(scale, chunks=(frames,)), "f", new_axes={"p": len(start) + 1, "v": 6}, concatenate=True,
        dtype=float, meta=np.empty((0, 0, 0)), layers=layers)
    coords = {name: c for name, c in candidates.coords.items() if c.dims == ("frame",)}
    return xr.DataArray(found, coords, ("row", "frame", "value"), name="located")


def confirm_particles(candidates: xr.Dataset, located: np.ndarray | xr.DataArray) -> xr.Dataset:
    """Decide, from what all frames say, which particles are there and where they are seen.

    Contrasts run alike: in each frame every particle has about the same share of its template's contrast, up to a
    factor of its own. A particle that was detected stays, at its fitted position, or at its centre of mass where the
    fit fails (if that is doubtful, where the particle should be, with a standard error of the distance between the two
    and of what the region lacks). A fit of a doubtful sighting has failed if its contrast is another than expected, or
    if it lies farther inward than what the field of view leaves to see of the particle.
    One that was only looked for is seen if its contrast is significant and near what it should be. It is denied if its
    contrast is surely too low; a track for which denials weigh more than sightings was an invention, of the detector or
    of the linking, and is dropped. Where it has left the field of view, or not yet come into it, nothing denies it.
    A detection in a frame that denies the particle may be of anything near: its standard error says so.

    Parameters
    ----------
    candidates : Dataset, in memory
        From `propose_particles`.
    located : ndarray or DataArray, shape (particles + 1, frame, 6)
        From `locate_particles`.

    Returns
    -------
    Dataset
        The candidates that are kept, with `position`, `position_sigma` (px, from the fit; where that failed NaN, or see
        above), `stage` (frame, axis), px at the reference energy, NaN where the background does not show it, with its
        standard error `stage_sigma`, and `edge_jump` and `edge_jump_sigma` (particle) (see
        `xreg.kernels.absorption.edge_jump`).

    Raises
    ------
    ValueError
        If a variable or the attribute `frame_shape` is missing, or the two are not of the same particles and frames.
    """
    validate(candidates, RESULT, "position", "contour")
    validate(candidates, TABLES, "energy", "area", "contrast", "cut", "start", "doubtful")
    check_attributes(candidates, frame_shape="refine_rois")
    wanted = (candidates.sizes["particle"] + 1, candidates.sizes["frame"], 6)
    if np.shape(located) != wanted:
        msg = (f"located has shape {np.shape(located)}; need {wanted}, a row for each particle and one for the stage: "
               f"give what locate_particles found for these candidates.")
        raise ValueError(msg)
    if isinstance(located, xr.DataArray):
        check_alike(candidates, located, "frame")
    located = np.asarray(located)
    coarse = candidates["position"].values
    detected = np.isfinite(coarse).all(-1)
    position, sigma, contrast, error = located[:-1, :, :2], located[:-1, :, 2:4], located[:-1, :, 4], located[:-1, :, 5]
    fitted = np.isfinite(position).all(-1)
    doubtful = candidates["doubtful"].values & detected
    should = expected_contrast(np.where(detected, contrast, np.nan), contrast)
    least, most = _DOUBTFUL_SHARES
    fitted &= ~(doubtful & ((contrast < least * should) | (contrast > most * should)))
    fitted &= ~_too_far_inward(candidates, position)
    seen = fitted & ~detected & (contrast > _SURE * error)
    seen &= ~((contrast < _LEAST_SHARE * should) | (contrast > _MOST_SHARE * should))
    denied = (contrast < _LEAST_SHARE * should) & (contrast + 3 * error < should)
    astray = denied & detected & ~fitted & ~doubtful
    denied &= ~detected & ~_out_of_view(detected, candidates["cut"].values)
    # What no frame gives a picture of, although others have one, is not there.
    has_picture = np.isfinite(contrast).any(axis=1)
    denied |= ~detected & ~has_picture[:, None] & has_picture.any()
    # A sighting speaks for a track as loudly as it is significant, a denial as loudly as what is missing.
    with np.errstate(all="ignore"):
        lacking = should - np.nan_to_num(np.maximum(contrast, 0))
        shown, missed = (np.nan_to_num(c / error, nan=1.0, posinf=1.0) for c in (contrast, lacking))
    # What was detected is not undone by a picture that fits badly.
    shown = np.where(detected, np.maximum(shown, 1), shown)
    kept = np.flatnonzero((shown * (detected | seen)).sum(axis=1) > (missed * denied).sum(axis=1))
    position = np.where((detected | seen)[..., None], position, np.nan)
    # Where no fit confirms a doubtful sighting, its centre and where the particle should be are both guesses.
    start, unfitted = candidates["start"].values, (detected & ~fitted)[..., None]
    start = np.where(_too_far_inward(candidates, start)[..., None], coarse, start)
    guesses = (doubtful | astray | (start != coarse).any(-1))[..., None]
    off = np.maximum(_lacking(candidates), np.where(astray, _ASTRAY * _radius(candidates)[:, None], 0))
    apart = np.where(guesses, np.hypot(start - coarse, off[..., None]), np.nan)
    position = np.where(unfitted, start, position)
    sigma = np.where(unfitted, apart, np.where((seen | (detected & fitted))[..., None], sigma, np.nan))
    confirmed = candidates.drop_vars(["start", "guessed", "doubtful", "stage"], errors="ignore").assign(
        position=candidates["position"].copy(data=position), position_sigma=(candidates["position"].dims, sigma))
    confirmed["stage"] = (("frame", "axis"), located[-1, :, :2])
    confirmed["stage_sigma"] = (("frame", "axis"), located[-1, :, 2:4])
    jump, jump_sigma = _edge_jump(candidates, contrast, error)
    confirmed = confirmed.assign(edge_jump=("particle", jump), edge_jump_sigma=("particle", jump_sigma))
    confirmed = confirmed.isel(particle=kept).assign_coords(particle=np.arange(len(kept)), axis=list(AXES))
    return describe(confirmed, RESULT)


def _out_of_view(detected: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Frames (particle, frame) before the first sighting or after the last, if the field of view cuts that end."""
    out = np.zeros(detected.shape, dtype=bool)
    for seen, row, ends in zip(detected, out, cut, strict=True):
        frames = np.flatnonzero(seen)
        if frames.size:
            row[: frames[0]] = ends[frames[:_LEAVING]].any()
            row[frames[-1] + 1 :] = ends[frames[-_LEAVING:]].any()
    return out


def _too_far_inward(candidates: xr.Dataset, position: np.ndarray) -> np.ndarray:
    """Places (particle, frame) where no particle can be: farther inward than the centre of what is seen of it."""
    coarse, limit = candidates["position"].values, np.array(candidates.attrs["frame_shape"]) - 1
    radius = _radius(candidates)[:, None, None]
    inward = np.where(coarse < radius, position - coarse, np.where(coarse > limit - radius, coarse - position, 0.0))
    least, share = _INWARD
    # Of a particle that is never seen as a whole nobody knows the centre.
    return candidates["cut"].values & candidates["doubtful"].values & (
        inward > np.maximum(least, share * radius)).any(-1)


def _lacking(candidates: xr.Dataset) -> np.ndarray:
    """How far (px) the centre of each sighting may be off since its area is not the particle's: (particle, frame)."""
    scale, radius = _scale(candidates["energy"].values, candidates.attrs), _radius(candidates)[:, None]
    whole = np.pi * np.maximum(radius, 1.0) ** 2
    return radius * np.minimum(np.abs(candidates["area"].values * scale**2 / whole - 1), 1.0)


def _radius(candidates: xr.Dataset) -> np.ndarray:
    """Radius (px) of a disc of each outline's area."""
    return np.sqrt(candidates["contour"].values.sum((1, 2)) / np.pi)


def _edge_jump(candidates: xr.Dataset, contrast: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edge jump of every candidate, from its outlines; from the fit where they are missing on one side of the edge."""
    energy, e0 = candidates["energy"].values, tabulated_edge(candidates.attrs)
    fitted = edge_jump(contrast, error, energy, e0)
    if "significance" not in candidates:
        return fitted
    outlined = candidates["contrast"].values
    with np.errstate(all="ignore"):
        seen = edge_jump(outlined, np.abs(outlined / candidates["significance"].values), energy, e0)
    return tuple(np.where(np.isfinite(seen[0]), s, f) for s, f in zip(seen, fitted, strict=True))
