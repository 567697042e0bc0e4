"""Stage 2: where the particles are. A CycleGAN generator turns every frame into a clean particle picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xreg.chunks import whole_frames
from xreg.schema import NORMALIZED, validate

if TYPE_CHECKING:
    from xreg.models.weights import Weights


def detect_block(
    optical_density: np.ndarray, *, device: str = "auto", weights: "Weights | None" = None
) -> np.ndarray:
    """Particle map of each frame of a block.

    Parameters
    ----------
    optical_density : ndarray, shape (n, y, x), float32
        Above the background; NaN where invalid.
    device : str
        "auto", "cpu" or "cuda".
    weights : Weights, optional
        Of a CycleGAN generator; the shipped one by default.

    Returns
    -------
    ndarray, shape (n, y, x), float32
        0 outside particles, rising to 1 at the middle of each; 0 everywhere in a frame that is all NaN.
    """
    from xreg.models.infer import choose_device, particle_map
    from xreg.models.weights import shipped

    weights = weights or shipped("detector")
    device = choose_device(device)
    found = np.zeros(optical_density.shape, np.float32)
    for frame, density in enumerate(optical_density):
        if np.isfinite(density).any():
            found[frame] = particle_map(density, weights, device)
    return found


def detect_rois(
    normalized: xr.Dataset, *, device: str = "auto", weights: "Weights | str | Path | None" = None
) -> xr.DataArray:
    """Find the particles in every frame, lazily.

    One task per chunk of frames. The network sees whole frames, never tiles of them: a particle that a tile cuts would
    be another particle. Memory per task: one chunk of frames, and the network's features of one frame.

    Parameters
    ----------
    normalized : Dataset
        With `optical_density` (frame, y, x) from `normalize_frames`.
    device : str
        "auto" (a GPU where there is one), "cpu" or "cuda".
    weights : Weights or path, optional
        Of a CycleGAN generator; the shipped one by default. The graph holds its path and sha256, never a network.

    Returns
    -------
    DataArray, dims (frame, y, x), float32
        Clean particle picture: 0 outside, rising to 1 at the middle of each particle; same size as the input.

    Raises
    ------
    ValueError
        If `optical_density` is missing or has other dims, a frame is split into several chunks, or the weights are not
        those of a detector.
    """
    from xreg.models.weights import Weights

    validate(normalized, NORMALIZED, "optical_density")
    density = normalized["optical_density"]
    array = whole_frames(density)
    found = array.map_blocks(
        detect_block, device=device, weights=Weights.chosen(weights, "detector"),
        dtype=np.float32, meta=np.empty((0, 0, 0), np.float32),
    )
    attrs = {"units": "1", "long_name": "clean particle picture"}
    return xr.DataArray(found, dims=density.dims, coords=density.coords, name="particle_map", attrs=attrs)
