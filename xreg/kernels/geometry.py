"""Where a feature lies in the raw frame, and where it would lie at the reference energy.

A zone plate magnifies less as the photon energy grows: the pixel size in nm is proportional to the energy, so
every feature shrinks about the centre of the frame. Positions are compared between frames in reference
coordinates, in which that magnification has been undone::

    reference = c + (raw - c) * scale,     scale = E / E_reference,     c = ((ny - 1) / 2, (nx - 1) / 2)

Raw coordinates are (y, x), y down, with pixel centres at integers.
"""

import numpy as np

MAGNIFICATIONS = ("constant", "proportional-to-energy")


def pixel_scale(
    energy: np.ndarray, magnification: str = "constant", reference_energy: float | None = None
) -> np.ndarray:
    """Pixel size at each energy over the pixel size at the reference energy.

    Parameters
    ----------
    energy : array, shape (...), eV
        Photon energy of every frame.
    magnification : {"constant", "proportional-to-energy"}
        Whether the pixel size is the same at all energies or grows in proportion to the energy.
    reference_energy : float, optional, eV
        Energy at which the scale is 1; by default the median of the finite energies.

    Returns
    -------
    scale : array, shape (...), float64
        E / E_reference, or ones when the magnification is constant. NaN where the energy is NaN (unless
        constant).

    Raises
    ------
    ValueError
        If the magnification is not one of the two, or the reference energy is not a positive number.
    """
    energy = np.asarray(energy, dtype=np.float64)
    if magnification not in MAGNIFICATIONS:
        msg = f"magnification is {magnification!r}; need one of {', '.join(map(repr, MAGNIFICATIONS))}."
        raise ValueError(msg)
    if magnification == "constant":
        return np.ones(energy.shape)
    if reference_energy is None:
        finite = energy[np.isfinite(energy)]
        reference_energy = float(np.median(finite)) if finite.size else np.nan
    if not reference_energy > 0 or not np.isfinite(reference_energy):
        msg = f"reference energy is {reference_energy} eV; need a positive number. Give pixel_size_energy_ev."
        raise ValueError(msg)
    return energy / reference_energy


def frame_centre(shape: tuple[int, int]) -> np.ndarray:
    """Point (y, x) about which a frame of `shape` (ny, nx) is magnified, in pixels."""
    return (np.asarray(shape, dtype=np.float64) - 1) / 2


def to_reference(position: np.ndarray, scale: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Take raw positions to reference coordinates.

    Parameters
    ----------
    position : array, shape (..., 2), px
        (y, x) in the raw frame; NaN stays NaN.
    scale : array, broadcasts against position[..., 0]
        Pixel size over reference pixel size (`pixel_scale`).
    shape : (ny, nx)
        Size of the raw frame.

    Returns
    -------
    reference : array, shape (..., 2), float64, px at the reference energy
    """
    centre = frame_centre(shape)
    return centre + (np.asarray(position, dtype=np.float64) - centre) * np.asarray(scale)[..., None]


def to_raw(position: np.ndarray, scale: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Take reference coordinates back to raw positions: the inverse of `to_reference`, same arguments."""
    centre = frame_centre(shape)
    return centre + (np.asarray(position, dtype=np.float64) - centre) / np.asarray(scale)[..., None]
