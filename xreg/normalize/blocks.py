"""Whole frames in memory: counts in, optical density above the background out."""

from typing import NamedTuple

import numpy as np

from xreg.kernels import background, intensity
from xreg.normalize.survey import NO_BEAM, Illumination
from xreg.schema import FrameStatus

#: A frame that transmits less than this share of what frames typically do is blank.
BLANK = 0.1
#: A frame with more than this share of empty rows, of pixels without a number, or of saturated ones, is corrupt.
CORRUPT_ROWS, CORRUPT_PIXELS, SATURATED = 0.1, 0.5, 0.1


def normalize_block(
    counts: np.ndarray,
    flats: np.ndarray,
    weights: np.ndarray,
    illumination: Illumination,
    exposure: np.ndarray | None = None,
    flat_exposure: np.ndarray | None = None,
    status: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Optical density above the background of some frames.

    Parameters
    ----------
    counts : ndarray, shape (n, ny, nx)
        Detector counts.
    flats : ndarray, shape (m, ny, nx)
        Open-beam references that these frames need.
    weights : ndarray, shape (n, m)
        Weight of each in each frame's reference (`FlatChoice.needed`).
    illumination : Illumination
        From `survey`.
    exposure, flat_exposure : ndarray, shape (n,) and (m,), s, optional
        Exposure times; ignored unless both are given.
    status : ndarray, shape (n,), int, optional
        schema.FrameStatus of the frames as given by the reader; bad ones are not looked at.

    Returns
    -------
    optical_density : ndarray, shape (n, ny, nx), float32
        NaN outside the lit field, where a detector value is missing, and in the whole of a bad frame.
    noise : ndarray, shape (n,), float64
        Standard deviation of the optical density in the open background; NaN for a bad frame.
    background : ndarray, shape (n, 3), float64
        Offset and tilt that were taken off (see schema.NORMALIZED).
    status : ndarray, shape (n,), uint8
        schema.FrameStatus.
    """
    n = len(counts)
    timed = exposure is not None and flat_exposure is not None
    flat_seconds = np.asarray(flat_exposure, dtype=float) if timed else np.ones(len(flats))
    seconds = np.asarray(exposure, dtype=float) if timed else np.ones(n)
    status = np.zeros(n, dtype=int) if status is None else status
    references: dict[bytes, Reference | None] = {}
    frames = []
    for i in range(n):
        row = np.asarray(weights[i], dtype=np.float32)
        key = row.tobytes()
        if key not in references:
            used = np.flatnonzero(row)
            references[key] = average_flats(flats[used], row[used], illumination, flat_seconds[used])
        frames.append(normalize_frame(counts[i], references[key], illumination, seconds[i], status[i]))
    return stacked(frames, counts.shape[1:])


def level_block(
    density: np.ndarray, illumination: Illumination, status: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Take the background off frames that came as optical density; returns as `normalize_block` does."""
    status = np.zeros(len(density), dtype=int) if status is None else status
    frames = [level_frame(d, illumination, s) for d, s in zip(density, status, strict=True)]
    return stacked(frames, density.shape[1:])


class Reference(NamedTuple):
    """Open-beam reference of some frames: natural logarithm of the rate, (ny, nx) float32, and the rate's lit mean."""

    log: np.ndarray
    level: float


def average_flats(
    flats: np.ndarray, weights: np.ndarray, illumination: Illumination, exposure: np.ndarray
) -> Reference | None:
    """Open-beam reference of one recipe: weighted mean of dark-corrected rates, with its noise kept down.

    Flats without counts (less than a tenth of the typical), and saturated ones, are left out. The mean is then
    compared with the mean of all surveyed flats: broad differences are kept, fine ones only as far as they
    exceed the noise of so few exposures (a Wiener estimate), so that few flats per energy do not double the
    noise of every frame.

    Parameters
    ----------
    flats : ndarray, shape (m, ny, nx)
    weights : ndarray, shape (m,)
    illumination : Illumination
    exposure : ndarray, shape (m,), s (or ones)

    Returns
    -------
    reference : Reference, or None if no flat has counts
    """
    typical = _level_of(illumination.flat, illumination, dark=False)
    total, counted, weight, squares = np.zeros(illumination.flat.shape, dtype=np.float32), 0.0, 0.0, 0.0
    for flat, share, seconds in zip(flats, weights, exposure, strict=True):
        sound = _saturated(flat)[illumination.lit].mean() <= SATURATED
        if sound and _level_of(flat, illumination) / seconds > NO_BEAM * typical:
            total += flat * np.float32(share / seconds)
            counted += float(share / seconds)
            weight += float(share)
            squares += float(share) ** 2
    if not weight:
        return None
    rate = (total - np.float32(counted) * illumination.dark) / np.float32(weight)
    noise = illumination.grain_noise * squares / weight**2
    share = illumination.grain / (illumination.grain + noise) if noise > 0 else 1.0
    log = background.shrink_grain(intensity.repair(rate, illumination.bad), illumination.flat, illumination.lit, share)
    return Reference(log, _level_of(rate, illumination, dark=False))


def _level_of(picture: np.ndarray, illumination: Illumination, *, dark: bool = True) -> float:
    """Mean of a picture in the lit field, less the dark; of every sixteenth pixel, which is enough."""
    some = np.s_[::4, ::4]
    known = illumination.lit[some] & np.isfinite(picture[some])
    part = picture[some][known].astype(np.float64)
    return float((part - illumination.dark[some][known] if dark else part).mean()) if part.size else 0.0


def normalize_frame(
    counts: np.ndarray, reference: Reference | None, illumination: Illumination, seconds: float, status: int
) -> tuple[np.ndarray | None, float, np.ndarray, int]:
    """Optical density (None for a bad frame), noise, background and status of one frame of counts."""
    lit = illumination.lit
    if status == FrameStatus.OK:
        status = _judge(counts, reference, illumination, seconds)
    if status != FrameStatus.OK:
        return _bad(status)
    rate = counts - illumination.dark
    rate /= np.float32(seconds)
    density = intensity.optical_density(rate, reference.log)
    density[_saturated(counts)] = np.nan
    density -= background.moved_grain(reference.log, background.grain_shift(density, reference.log))
    # A pixel without a count has no logarithm; left out it would be a hole, so it is filled as a dead one is.
    return level_frame(intensity.repair(density, illumination.bad | (lit & np.isnan(density))), illumination, status)


def _judge(counts: np.ndarray, reference: Reference | None, illumination: Illumination, seconds: float) -> int:
    """Status of a frame of counts, before anything is divided."""
    lit = illumination.lit
    if reference is None:
        return FrameStatus.NO_REFERENCE
    if counts.dtype.kind == "f" and np.isfinite(counts[lit]).mean() < 1 - CORRUPT_PIXELS:
        return FrameStatus.CORRUPT
    through = _level_of(counts, illumination) / seconds / reference.level
    if not through > BLANK * max(illumination.transmission, 0.02):
        return FrameStatus.BLANK
    # Rows of nothing but zeros, or one value throughout the frame, were never read out.
    top = np.fmax.reduce(counts, axis=1)
    empty = np.mean(~(top[lit.any(axis=1)] > 0)) > CORRUPT_ROWS
    alike = np.fmax.reduce(top) == np.fmin.reduce(counts, axis=None)
    return FrameStatus.CORRUPT if empty or alike or _saturated(counts)[lit].mean() > SATURATED else FrameStatus.OK


def _saturated(counts: np.ndarray) -> np.ndarray:
    """Pixels at the largest number that their integers can hold: they saw at least that."""
    return counts == np.iinfo(counts.dtype).max if counts.dtype.kind in "ui" else np.zeros(counts.shape, bool)


def level_frame(density: np.ndarray, illumination: Illumination, status: int):
    """Take the background off one frame of optical density; returns as `_normalize_frame` does."""
    lit, modes = illumination.lit, illumination.modes
    if status != FrameStatus.OK:
        return _bad(status)
    density = np.where(lit & np.isfinite(density), density, np.float32(np.nan))
    if not illumination.flat.any():
        density = intensity.repair(density, illumination.bad)
    if np.isfinite(density[lit]).mean() < 1 - CORRUPT_PIXELS or np.nanmin(density) == np.nanmax(density):
        return _bad(FrameStatus.CORRUPT)
    coefficients = background.fit_background(density, lit, modes)
    if not np.isfinite(coefficients).all():
        return _bad(FrameStatus.CORRUPT)
    density -= background.background_surface(coefficients, density.shape, modes)
    return density, background.background_noise(density, lit), coefficients[:3], status


def _bad(status: int) -> tuple[None, float, np.ndarray, int]:
    """Outputs of a frame that cannot be used."""
    return None, float("nan"), np.full(3, np.nan), int(status)


def stacked(frames: list[tuple], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of single frames as arrays over the frames."""
    density = np.full((len(frames), *shape), np.nan, dtype=np.float32)
    for picture, frame in zip(density, frames, strict=True):
        if frame[0] is not None:
            picture[:] = frame[0]
    noise = np.array([frame[1] for frame in frames], dtype=np.float64)
    offsets = np.array([frame[2] for frame in frames], dtype=np.float64).reshape(-1, 3)
    return density, noise, offsets, np.array([frame[3] for frame in frames], dtype=np.uint8)
