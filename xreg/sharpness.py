"""Which frames are blurred: the sharpness of every frame by itself, then the verdict on all of them together."""

import dask.array as da
import numpy as np
import xarray as xr

from xreg.chunks import whole_frames
from xreg.kernels.sharpness import BANDS, band_powers, blurred_frames
from xreg.schema import NORMALIZED, ROIS, SHARPNESS, FrameStatus, check_variable, flag_attrs, validate


def sharpness_block(optical_density: np.ndarray) -> np.ndarray:
    """`kernels.sharpness.band_powers` of a block of frames (n, y, x): (n, bands)."""
    return np.array([band_powers(frame) for frame in optical_density]).reshape(-1, BANDS)


def measure_sharpness(normalized: xr.Dataset) -> xr.DataArray:
    """Power of coarse and of fine structure in every frame, lazily; one task per chunk of frames.

    Parameters
    ----------
    normalized : Dataset
        With `optical_density` (frame, y, x) from `normalize_frames`.

    Returns
    -------
    DataArray, dims (frame, band), px2
        See `schema.SHARPNESS`; NaN for a bad frame, and for frames in which no square of 64 px is valid.

    Raises
    ------
    ValueError
        If the variable is missing or has other dims, or a frame is split into several chunks.
    """
    validate(normalized, NORMALIZED, "optical_density")
    density = whole_frames(normalized["optical_density"])
    powers = da.map_blocks(sharpness_block, density, drop_axis=[1, 2], new_axis=[1], dtype=np.float64,
                           chunks=(density.chunks[0], (BANDS,)), meta=np.empty((0, 0)))
    coords = {name: c for name, c in normalized.coords.items() if c.dims == ("frame",)}
    return xr.DataArray(powers, coords, SHARPNESS.dims, SHARPNESS.name, SHARPNESS.attrs)


def reject_blurred(table: xr.Dataset) -> xr.Dataset:
    """Give blurred frames that status, and empty their rows of a table of regions.

    The verdict on a frame is relative to frames of like energy (see `kernels.sharpness.blurred_frames`), which makes
    this a barrier: `sharpness`, a few numbers per frame, is computed for all frames. In Python, where every frame is to
    be normalised once only::

        rois = refine_rois(normalized, particle_map).assign(sharpness=measure_sharpness(normalized),
                                                            frame_status=normalized["frame_status"])
        rois = reject_blurred(rois.compute())
        normalized = normalized.assign(
            optical_density=normalized["optical_density"].where(rois["frame_status"] == 0))

    Parameters
    ----------
    table : Dataset
        `sharpness` (frame, band), `frame_status` (frame) and the coordinate `energy` (frame); usually also the regions
        of `refine_rois`.

    Returns
    -------
    Dataset
        The same with `frame_status` 2 (blurred) for frames that were ok and are blurred, and `roi_position` NaN there,
        which makes their slots empty.

    Raises
    ------
    ValueError
        If a variable is missing or has other dims.
    """
    validate(table, NORMALIZED, "frame_status")
    for name in (SHARPNESS.name, "energy"):
        if name not in table.variables:
            msg = f"{name} is missing; need it for every frame, sharpness from measure_sharpness."
            raise ValueError(msg)
    check_variable(table[SHARPNESS.name], SHARPNESS)
    status = table["frame_status"].values
    usable = status == FrameStatus.OK
    powers = np.where(usable[:, None], table[SHARPNESS.name].values, np.nan)
    blurred = blurred_frames(powers, table["energy"].values)
    attrs = {**table["frame_status"].attrs, **flag_attrs(FrameStatus)}
    judged = table.assign(frame_status=("frame", np.where(blurred, FrameStatus.BLURRED, status), attrs))
    if "roi_position" in table:
        validate(table, ROIS, "roi_position")
        judged["roi_position"] = table["roi_position"].where(~xr.DataArray(blurred, dims="frame"))
    return judged
