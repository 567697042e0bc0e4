"""Where tracks say that particles are, at the reference energy, and how well that is known."""

import numpy as np
import xarray as xr

from xreg.kernels.geometry import pixel_scale, to_reference
from xreg.kernels.kinematics import position_noise


def scale_of(tracks: xr.Dataset) -> np.ndarray:
    """Pixel size in each frame over that at the reference energy: (frame,).

    Raises
    ------
    ValueError
        If the magnification changes and `energy` or the attribute `frame_shape` is missing.
    """
    magnification = tracks.attrs.get("magnification", "constant")
    if magnification == "constant":
        return np.ones(tracks.sizes["frame"])
    for holder, name in ((tracks.coords, "energy"), (tracks.attrs, "frame_shape")):
        if name not in holder:
            msg = f"tracks have magnification {magnification!r} but no {name}; need it to undo the magnification."
            raise ValueError(msg)
    return pixel_scale(tracks["energy"].values, magnification, tracks.attrs.get("pixel_size_energy_ev"))


def frame_shape(tracks: xr.Dataset) -> tuple[int, int]:
    """Size of the frames; where the magnification is constant any will do, and this one leaves no rounding."""
    return (1, 1) if tracks.attrs.get("magnification", "constant") == "constant" else tuple(tracks.attrs["frame_shape"])


def reference_positions(tracks: xr.Dataset) -> np.ndarray:
    """Positions with the magnification undone: (particles, frames, 2). Raises as `scale_of`."""
    position = np.asarray(tracks["position"].values, dtype=np.float64)
    # A vector is known or not: half a position is none.
    position = np.where(np.isfinite(position).all(axis=-1, keepdims=True), position, np.nan)
    return to_reference(position, scale_of(tracks), frame_shape(tracks))


def standard_errors(tracks: xr.Dataset, place: np.ndarray) -> np.ndarray:
    """Standard error of every position (particles, frames, 2), as given, or else from their scatter."""
    noise = position_noise(place, tracks["contrast"].values if "contrast" in tracks else None)
    sigma = np.repeat(noise[..., None], 2, axis=-1)
    if "position_sigma" not in tracks:
        return sigma
    given = tracks["position_sigma"].values
    return np.where(np.isfinite(given), given, sigma)
