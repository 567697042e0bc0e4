"""Stage 6: paths. What the frames before and after, and all the other particles, say of a particle's place."""

import numpy as np
import xarray as xr

from xreg.kernels.geometry import to_raw
from xreg.kernels.kinematics import common_motion, scatter
from xreg.kernels.smoothing import smooth_paths
from xreg.places import frame_shape, reference_positions, scale_of, standard_errors
from xreg.schema import RESULT, describe, validate


def smooth_tracks(tracks: xr.Dataset) -> xr.Dataset:
    """Make the most likely path of every particle from its positions in single frames.

    In each frame all particles, and the background, share one motion, which may be any; what a particle moves beside
    that is as smooth as its own positions say (see `kernels.smoothing`): a straight line is fitted as one, and a
    particle that shakes by more than its standard errors stays where it was measured. The paper takes every frame for
    itself. This computes; it is cheap.

    Parameters
    ----------
    tracks : Dataset
        `position` (particle, frame, axis), raw px, NaN where not seen; if at hand `position_sigma`, its standard error,
        and `stage` (frame, axis), place of the background in px at the reference energy. Coordinates and attributes as
        for `measure_motion`.

    Returns
    -------
    Dataset
        The tracks with new `position`, `position_sigma` and `stage`, NaN where they were. What was measured in each
        frame alone is kept as `measured_position` and `measured_position_sigma`. Nothing changes for particles of fewer
        than twenty sightings.

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
    paths = smooth_paths(np.concatenate([place, stage[None]]),
                         np.concatenate([sigma * scale[:, None], scatter(stage - shared)[None]]), shared)
    dims = tracks["position"].dims
    smooth = to_raw(paths.position[:-1], scale, frame_shape(tracks))
    found = tracks.assign(
        measured_position=(dims, tracks["position"].values), measured_position_sigma=(dims, sigma),
        position=tracks["position"].copy(data=smooth), position_sigma=(dims, paths.sigma[:-1] / scale[:, None]))
    if "stage" in tracks:
        found["stage"] = (tracks["stage"].dims, paths.position[-1])
    return describe(found, RESULT)
