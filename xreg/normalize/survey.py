"""One small look at a dataset for what all of its frames have in common."""

from dataclasses import dataclass, replace
from operator import index

import numpy as np
import xarray as xr

from xreg.kernels import background, intensity
from xreg.kernels.references import FlatChoice, choose_flats
from xreg.normalize.check import check_raw, given_status
from xreg.schema import FrameStatus, frames_name

#: Flats and frames that a survey reads at the most.
SURVEYED = 24
#: A flat with less than this share of the typical counts is no open beam.
NO_BEAM = 0.1


@dataclass(frozen=True)
class Illumination:
    """What is common to all frames of a dataset, from a small `survey` of it.

    Attributes
    ----------
    lit : ndarray, shape (ny, nx), bool
        Usefully lit field of view.
    bad : ndarray, shape (ny, nx), bool
        Hot and dead pixels.
    dark : ndarray, shape (ny, nx), float32
        Counts without beam; zeros when there are no darks. They are taken off as counts, whatever the
        exposure, as a dark is mostly the read-out's offset.
    flat : ndarray, shape (ny, nx), float32
        Mean open-beam picture, per second or per exposure.
    modes : ndarray, shape (k, cells_y, cells_x)
        Ways in which the illumination wanders (`background.illumination_modes`).
    grain, grain_noise : float
        Variances, from one open-beam exposure to another, of the fine structure of the illumination and of a
        single exposure's noise about it (both of the logarithm).
    transmission : float
        Typical ratio of a frame's to a reference's mean rate.
    choice : FlatChoice or None
        References of every frame; None for stores of optical density.
    """

    lit: np.ndarray
    bad: np.ndarray
    dark: np.ndarray
    flat: np.ndarray
    modes: np.ndarray
    grain: float = 0.0
    grain_noise: float = 0.0
    transmission: float = 0.0
    choice: FlatChoice | None = None


def survey(raw: xr.Dataset, field: tuple[int, int, int, int] | None = None) -> Illumination:
    """Look at a few flats, darks and frames of a raw dataset for what all frames have in common.

    Reads at most 24 flats and 24 frames, evenly spread, and all darks, into memory.

    Parameters
    ----------
    raw : Dataset
        See schema.RAW; its small variables in memory.
    field : tuple = (y0, y1, x0, x1), optional, px
        Field of view to use, instead of the lit one.

    Returns
    -------
    illumination : Illumination

    Raises
    ------
    ValueError
        If the flats hold no counts, the field of view lies outside the frame, or `check_raw` objects.
    """
    check_raw(raw)
    pictures = {name: array.values for name, array in sampled(raw).items()}
    return replace(look_at(**pictures, field=field), choice=choose_references(raw))


def look_at(
    *,
    frames: np.ndarray,
    flats: np.ndarray | None = None,
    darks: np.ndarray | None = None,
    seconds: np.ndarray | None = None,
    flat_seconds: np.ndarray | None = None,
    field: tuple[int, int, int, int] | None = None,
) -> Illumination:
    """What a few flats, darks and frames (each (n, ny, nx)) tell about all of them."""
    shape = frames.shape[1:]
    frames, flats, darks = (p if p is None else intensity.without_infinities(p) for p in (frames, flats, darks))
    dark = intensity.average_dark(darks) if darks is not None and len(darks) else np.zeros(shape, dtype=np.float32)
    if flats is None:
        return _look_at_densities(frames, dark, field)
    flat_seconds = np.ones(len(flats)) if flat_seconds is None else flat_seconds
    seconds = np.ones(len(frames)) if seconds is None else seconds
    rates = (flats - dark) / flat_seconds[:, None, None].astype(np.float32)
    level = np.array([_mean(rate, np.True_) for rate in rates])
    rates = rates[level > NO_BEAM * np.median(level)]
    if not len(rates) or not level.max() > 0:
        msg = "flats hold no counts above the dark; need open-beam exposures."
        raise ValueError(msg)
    flat = intensity.mean_of_known(rates)
    lit = intensity.lit_field(flat) if field is None else field_mask(field, shape)
    through = np.array([_mean((f - dark) / np.float32(t), lit) for f, t in zip(frames, seconds, strict=True)])
    used = through > 0.005 * _mean(flat, lit)
    # A pixel that merely responds a little more or less is corrected by the division.
    bad = intensity.local_outliers(flat, least=0.25) | (flat <= 0)
    if darks is not None and len(darks):
        bad |= intensity.local_outliers(intensity.mean_of_known(darks))
    if used.sum() >= 3:
        ratio = intensity.median_of_known(
            np.array([(f - dark) / m for f, m in zip(frames[used], through[used], strict=True)]))
        with np.errstate(divide="ignore", invalid="ignore"):
            bad |= lit & intensity.local_outliers(ratio / flat, flat, least=0.25)
    flat = np.nan_to_num(intensity.repair(flat, bad), nan=float(np.nanmedian(flat)))
    rates = np.array([intensity.repair(rate, bad) for rate in rates])
    grain, grain_noise = background.grain_variances(rates, lit)
    return Illumination(
        lit=lit, bad=bad, dark=dark, flat=flat, modes=background.illumination_modes(rates, lit),
        grain=grain, grain_noise=grain_noise,
        transmission=float(np.median(through[used]) / _mean(flat, lit)) if used.any() else 0.0,
    )  # fmt: skip


def _look_at_densities(frames: np.ndarray, dark: np.ndarray, field: tuple | None) -> Illumination:
    """What a few frames of optical density tell: where they hold numbers."""
    shape = frames.shape[1:]
    lit = np.isfinite(frames).mean(axis=0) >= 0.5 if field is None else field_mask(field, shape)
    filled = np.where(np.isfinite(frames), frames, 0)
    bad = lit & intensity.local_outliers(np.median(filled, axis=0)) if len(frames) >= 3 else np.zeros(shape, bool)
    return Illumination(lit, bad, dark, np.zeros(shape, np.float32), np.zeros((0, 1, 1)))


def _mean(image: np.ndarray, lit: np.ndarray) -> float:
    """Mean of the finite lit pixels; 0 if there are none."""
    known = lit & np.isfinite(image)
    return float(image[known].mean()) if known.any() else 0.0


def field_mask(field: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """Mask of a field of view that a user gave; raise ValueError where it is none or lies outside the frame."""
    try:
        y0, y1, x0, x1 = map(index, field)
    except (TypeError, ValueError) as error:
        msg = f"the field of view is {field!r}; need four whole numbers (y0, y1, x0, x1) in px."
        raise ValueError(msg) from error
    if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
        msg = f"the field of view is {field}; need 0 <= y0 < y1 <= {shape[0]} and 0 <= x0 < x1 <= {shape[1]} px."
        raise ValueError(msg)
    lit = np.zeros(shape, dtype=bool)
    lit[y0:y1, x0:x1] = True
    return lit


def sampled(raw: xr.Dataset) -> dict[str, xr.DataArray]:
    """Few frames and flats that a survey looks at, all darks, and their exposure times."""
    usable = np.flatnonzero(given_status(raw) == FrameStatus.OK)
    usable = usable if len(usable) else np.arange(raw.sizes["frame"])
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, SURVEYED).round().astype(int))]
    sample = {"frames": raw[frames_name(raw)].isel(frame=chosen)}
    if "counts" not in raw:
        return sample
    # Neighbours in pairs: what they differ by is noise.
    n = raw.sizes["flat"]
    pairs = np.unique(np.linspace(0, max(0, n // 2 - 1), SURVEYED // 2).round().astype(int))
    flats = np.arange(n) if n <= SURVEYED else np.sort(np.concatenate([2 * pairs, 2 * pairs + 1]))
    sample["flats"] = raw["flats"].isel(flat=flats)
    if "darks" in raw:
        sample["darks"] = raw["darks"]
    if "exposure" in raw and "flat_exposure" in raw:
        sample["seconds"] = raw["exposure"].isel(frame=chosen)
        sample["flat_seconds"] = raw["flat_exposure"].isel(flat=flats)
    return sample


def choose_references(raw: xr.Dataset) -> FlatChoice | None:
    """References of every frame; None for a dataset of optical densities."""
    if frames_name(raw) != "counts":
        return None
    energy = np.where(given_status(raw) == FrameStatus.OK, raw["energy"].values, np.nan)
    flat_energy = raw["flat_energy"].values if "flat_energy" in raw else None
    if flat_energy is None:
        flat_energy = np.full(raw.sizes["flat"], np.nanmedian(energy) if np.isfinite(energy).any() else 0.0)
    time, flat_time = (_seconds(raw, name) for name in ("time", "flat_time"))
    if time is not None and flat_time is not None and raw["time"].dtype.kind != raw["flat_time"].dtype.kind:
        time = flat_time = None  # two clocks
    return choose_flats(
        energy, flat_energy, scan=raw["scan"].values, time=time, flat_time=flat_time,
        flat_scan=raw["flat_scan"].values if "flat_scan" in raw else None,
    )  # fmt: skip


def _seconds(raw: xr.Dataset, name: str) -> np.ndarray | None:
    """Times in s, NaN where unknown; None if the dataset has none."""
    if name not in raw:
        return None
    time = raw[name].values
    if time.dtype.kind != "M":
        return time.astype(float)
    return np.where(np.isnat(time), np.nan, time.astype("datetime64[ns]").astype(np.int64) * 1e-9)
