"""Stage 6: paths. What the frames before and after, and all the other particles, say of a particle's place."""

import numpy as np
import xarray as xr

from xreg.kernels.absorption import expected_contrast
from xreg.kernels.geometry import to_raw
from xreg.kernels.kinematics import common_motion, scatter
from xreg.kernels.smoothing import smooth_paths
from xreg.places import frame_shape, reference_positions, scale_of, standard_errors
from xreg.schema import RESULT, describe, validate

#: The stage's least standard error that is told from its scatter, px, and by how much fits may claim too little.
_LEAST, _MOST_TIMES = 0.005, 3.0
#: Percentile of a particle's contrasts that counts as its best, and the least share of it that is told from noise.
_BEST, _LEAST_STRENGTH = 90, 0.05


def smooth_tracks(tracks: xr.Dataset) -> xr.Dataset:
    """Make the most likely path of every particle from its positions in single frames.

    In each frame all particles, and the background, share one motion, which may be any; what a particle moves beside
    that is as smooth as its own positions say (see `kernels.smoothing`): a straight line is fitted as one, and a
    particle that shakes by more than its standard errors stays where it was measured. The paper takes every frame for
    itself. Where `contrast` says that a particle is weak in some frames, such as those before the edge, what moves it
    in these by one length over the contrast is taken for an error of the fit, if that is surely likelier and no more
    than such errors are; a true motion of that kind, such as a step at the edge, would be made smaller by as much. This
    computes, in time proportional to particles times frames: 20 particles in 6435 frames take some four minutes.

    Parameters
    ----------
    tracks : Dataset
        `position` (particle, frame, axis), raw px, NaN where not seen; if at hand `position_sigma`, its standard error,
        `contrast` (particle, frame), any unit, NaN where not known, and `stage` and `stage_sigma` (frame, axis), place
        of the background in px at the reference energy. Coordinates and attributes as for `measure_motion`.

    Returns
    -------
    Dataset
        The tracks with new `position`, `position_sigma`, `stage` and `stage_sigma`, NaN where they were. What was
        measured in each frame alone is kept as `measured_position` and `measured_position_sigma`. Nothing changes for
        particles of fewer than twenty sightings, nor where the energy is not known but needed.

    Raises
    ------
    ValueError
        If `position` is missing or has other dims; if the magnification changes and `energy` or `frame_shape` is
        missing.
    """
    validate(tracks, RESULT, "position")
    scale, place = scale_of(tracks), reference_positions(tracks)
    sigma = standard_errors(tracks, place)
    shared, _ = common_motion(place)
    stage = tracks["stage"].values if "stage" in tracks else np.full(shared.shape, np.nan)
    # Shared motion is begun by what particles have in common, and by the background as far as that is seen.
    starts, ahead = [shared], stage - shared
    seen = np.isfinite(ahead).all(axis=-1)
    if seen.any():
        starts.append(np.where(seen[:, None], stage - np.median(ahead[seen], axis=0), shared))
    stage_sigma = _stage_sigma(tracks, stage, place, sigma)
    paths = smooth_paths(np.concatenate([place, stage[None]]),
                         np.concatenate([sigma * scale[:, None], stage_sigma[None]]),
                         np.stack(starts), np.concatenate([_weakness(tracks), np.zeros((1, len(scale)))]))
    dims, measured = tracks["position"].dims, tracks["position"].values
    smooth = to_raw(paths.position[:-1], scale, frame_shape(tracks))
    found = tracks.assign(
        measured_position=(dims, measured), measured_position_sigma=(dims, sigma),
        position=tracks["position"].copy(data=np.where(np.isfinite(smooth), smooth, measured)),
        position_sigma=(dims, paths.sigma[:-1] / scale[:, None]))
    if "stage" in tracks:
        found = found.assign({name: (tracks["stage"].dims, values[-1])
                              for name, values in (("stage", paths.position), ("stage_sigma", paths.sigma))})
    return describe(found, RESULT)


def _weakness(tracks: xr.Dataset) -> np.ndarray:
    """How much weaker every particle is in every frame than in its best: 0 for as strong, 1 for half, (p, frames)."""
    weakness = np.zeros(tracks["position"].shape[:2])
    expected = expected_contrast(tracks["contrast"].values.astype(float)) if "contrast" in tracks else weakness
    energy = tracks["energy"].values if "energy" in tracks else np.full(expected.shape[1], np.nan)
    along = energy if np.isfinite(energy).all() else np.arange(expected.shape[1])
    order = np.argsort(along, kind="stable")
    for p, contrast in enumerate(expected[:, order]):
        known = np.isfinite(contrast)
        best = np.percentile(contrast[known], _BEST) if known.any() else 0.0
        if best > 0:
            # Frames in which nothing was detected are as weak as those of like energies.
            filled = np.interp(along[order], along[order][known], contrast[known])
            weakness[p, order] = 1 / np.clip(filled / best, _LEAST_STRENGTH, None) - 1
    return weakness


def _stage_sigma(tracks: xr.Dataset, stage: np.ndarray, place: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Standard error of the stage's place (frames, 2): as given, perhaps some times larger, or else from its scatter.

    The scatter is that against single particles, less their own errors; the steadiest of them counts. What they share
    would jump where one of them is not seen. A fit to a noisy picture of the background claims too little.
    """
    apart = [scatter(stage - path) ** 2 - np.nanmedian(own**2) for path, own in zip(place, sigma, strict=True)
             if np.isfinite(own).any() and np.isfinite(stage - path).any()]
    known = [float(np.nanmedian(a)) for a in apart if np.isfinite(a).any()]
    noise = np.sqrt(max(min(known), _LEAST**2)) if known else np.nan
    given = tracks["stage_sigma"].values if "stage_sigma" in tracks else np.full(stage.shape, np.nan)
    claimed = float(np.nanmedian(given)) if np.isfinite(given).any() else np.nan
    times = np.clip(np.nan_to_num(noise / claimed, nan=1.0), 1.0, _MOST_TIMES)
    return np.where(np.isfinite(given), given * times, np.where(np.isfinite(stage), noise, np.nan))
