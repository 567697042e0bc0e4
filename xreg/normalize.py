"""From detector counts to optical density above the background, frame by frame.

For every frame: counts and open-beam references, each less the dark and per second, are divided; the logarithm is taken;
hot and dead pixels are filled from their neighbours; what is not usefully lit becomes NaN; the open background's
offset, tilt and wandering illumination are taken off. What is common to all frames (masks, dark, which references belong
to which frame) comes from one small `survey`; after that a frame's result depends on nothing but that frame.
"""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from xreg.kernels import background, intensity
from xreg.kernels.geometry import MAGNIFICATIONS
from xreg.kernels.references import FlatChoice, choose_flats
from xreg.schema import NORMALIZED, RAW, FrameStatus, describe, flag_attrs, validate

#: Flats and frames that a survey reads at the most.
SURVEYED = 24
#: A frame that transmits less than this share of what frames typically do is blank.
BLANK = 0.1
#: A frame with more than this share of empty rows, or of pixels without a number, is corrupt.
CORRUPT_ROWS, CORRUPT_PIXELS = 0.1, 0.5


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
        Counts without beam; zeros when there are no darks. They are taken off as counts, whatever the exposure, as a
        dark is mostly the read-out's offset.
    flat : ndarray, shape (ny, nx), float32
        Mean open-beam picture, per second or per exposure.
    modes : ndarray, shape (k, cells_y, cells_x)
        Ways in which the illumination wanders (`background.illumination_modes`).
    grain, grain_noise : float
        Variances, from one open-beam exposure to another, of the fine structure of the illumination and of a single
        exposure's noise about it (both of the logarithm).
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


def check_raw(raw: xr.Dataset) -> None:
    """Check that a raw dataset can be normalised; nothing but small variables is looked at.

    Parameters
    ----------
    raw : Dataset
        See schema.RAW.

    Raises
    ------
    ValueError
        If frames, energies, scans or references are missing, empty, of other dims or dtypes than the schema's; if
        energies are in keV, not positive, or missing for a frame that is not marked as bad; if exposures are not
        positive; if the references' energies are missing although there are several; if the magnification is unknown.
    """
    name = _frames_name(raw)
    validate(raw, RAW, name, "energy", "scan")
    if 0 in raw[name].shape:
        msg = f"{name} is empty, its shape is {raw[name].shape}; need at least one frame."
        raise ValueError(msg)
    good = _status(raw) == FrameStatus.OK
    _check_energy("energy", raw["energy"].values[good])
    if raw["scan"].values.min() < 0:
        msg = f"scan holds {raw['scan'].values.min()}; need scans numbered from 0."
        raise ValueError(msg)
    magnification = raw.attrs.get("magnification", "constant")
    if magnification not in MAGNIFICATIONS:
        msg = f"the attribute magnification is {magnification!r}; need one of {', '.join(MAGNIFICATIONS)}."
        raise ValueError(msg)
    for exposure, chosen in (("exposure", good), ("flat_exposure", slice(None))):
        if exposure in raw:
            validate(raw, RAW, exposure)
            if not (raw[exposure].values[chosen] > 0).all():
                msg = f"{exposure} holds values that are not positive; need seconds, or leave {exposure} out."
                raise ValueError(msg)
    if name == "counts":
        _check_flats(raw)


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
    pictures = {name: array.values for name, array in _sampled(raw).items()}
    return replace(_look(**pictures, field=field), choice=_choose(raw))


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
    references: dict[bytes, np.ndarray | None] = {}
    frames = []
    for i in range(n):
        row = np.asarray(weights[i], dtype=np.float32)
        key = row.tobytes()
        if key not in references:
            used = np.flatnonzero(row)
            references[key] = average_flats(flats[used], row[used], illumination, flat_seconds[used])
        frames.append(_normalize_frame(counts[i], references[key], illumination, seconds[i], status[i]))
    return _stacked(frames, counts.shape[1:])


def average_flats(
    flats: np.ndarray, weights: np.ndarray, illumination: Illumination, exposure: np.ndarray
) -> np.ndarray | None:
    """Open-beam reference of one recipe: weighted mean of dark-corrected rates, with its noise kept down.

    Flats without counts (less than a tenth of the typical) are left out. The mean is then compared with the mean of
    all surveyed flats: broad differences are kept, fine ones only as far as they exceed the noise of so few exposures
    (a Wiener estimate), so that few flats per energy do not double the noise of every frame.

    Parameters
    ----------
    flats : ndarray, shape (m, ny, nx)
    weights : ndarray, shape (m,)
    illumination : Illumination
    exposure : ndarray, shape (m,), s (or ones)

    Returns
    -------
    reference : ndarray, shape (ny, nx), float32, or None if no flat has counts
    """
    some = np.s_[::8, ::8]
    lit = illumination.lit[some]
    typical = illumination.flat[some][lit].mean() if lit.any() else 0.0
    total, weight = np.zeros(illumination.flat.shape, dtype=np.float32), 0.0
    inverse = 0.0
    for flat, share, seconds in zip(flats, weights, exposure, strict=True):
        level = ((flat[some] - illumination.dark[some])[lit] / seconds).mean() if lit.any() else 0.0
        if level > BLANK * typical:
            total += (flat - illumination.dark) * np.float32(share / seconds)
            weight += float(share)
            inverse += float(share) ** 2
    if not weight:
        return None
    noise = illumination.grain_noise * inverse / weight**2
    share = illumination.grain / (illumination.grain + noise) if noise > 0 else 1.0
    mean = intensity.repair(total / np.float32(weight), illumination.bad)
    return background.shrink_grain(mean, illumination.flat, illumination.lit, share)


def level_block(
    density: np.ndarray, illumination: Illumination, status: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Take the background off frames that came as optical density; returns as `normalize_block` does."""
    status = np.zeros(len(density), dtype=int) if status is None else status
    frames = [_level(d, illumination, s) for d, s in zip(density, status, strict=True)]
    return _stacked(frames, density.shape[1:])


def normalize_frames(
    raw: xr.Dataset, illumination: Illumination | None = None, *, field: tuple[int, int, int, int] | None = None
) -> xr.Dataset:
    """Optical density above the background of all frames, lazily.

    Costs one task per block of frames, one per distinct reference and one for the survey. A task holds its frames and
    their distinct references.

    Parameters
    ----------
    raw : Dataset
        See schema.RAW; `counts` (or `optical_density`) as a dask array of whole frames, or in memory, in which case
        blocks of 16 frames are made. Small variables must be in memory.
    illumination : Illumination, optional
        From `survey(raw)`; made lazily when it is not given.
    field : tuple = (y0, y1, x0, x1), optional, px
        Field of view to use, instead of the lit one. Not with `illumination`, which has one.

    Returns
    -------
    normalized : lazy Dataset of schema.NORMALIZED, with the coordinates and attributes of `raw`
        Bad frames are NaN, and `frame_status` says why.

    Raises
    ------
    ValueError
        If `check_raw` objects, or frames are split along y or x. When computed: as `survey`.
    """
    import dask
    import dask.array as da

    check_raw(raw)
    frames = _whole_frames(raw[_frames_name(raw)])
    if illumination is None:
        pictures = {name: array.data for name, array in _sampled(raw).items()}
        looked = dask.delayed(_look)(**pictures, field=field)
    else:
        looked = dask.delayed(illumination, traverse=False)
    choice = _choose(raw) if illumination is None else illumination.choice
    plans = _plans(raw, frames.chunks[0], choice, looked)
    blocks = frames.numblocks[0]
    records = da.map_blocks(
        _normalize_task, frames, plans, illumination=looked, leveled=choice is None, dtype=object,
        chunks=((1,) * blocks, (1,), (1,)), meta=np.empty((0, 0, 0), dtype=object),
    )  # fmt: skip
    variables = {}
    for part, (name, dtype) in enumerate(_OUTPUTS.items()):
        dims = NORMALIZED[name].dims
        shape = {"frame": frames.chunks[0], "y": frames.chunks[1], "x": frames.chunks[2], "coefficient": (3,)}
        array = records.map_blocks(
            _pick, part=part, dtype=dtype, chunks=tuple(shape[d] for d in dims),
            drop_axis=[1, 2], new_axis=list(range(1, len(dims))), meta=np.empty((0,) * len(dims), dtype=dtype),
        )  # fmt: skip
        variables[name] = (dims, array)
    coords = {name: c for name, c in raw.coords.items() if set(c.dims) <= {"frame", "y", "x"}}
    coords |= {name: raw[name] for name in ("energy", "scan", "time") if name in raw}
    normalized = xr.Dataset(variables, coords, raw.attrs)
    normalized["frame_status"].attrs = flag_attrs(FrameStatus)
    return describe(normalized, NORMALIZED)


_OUTPUTS = {"optical_density": np.float32, "noise": np.float64, "background": np.float64, "frame_status": np.uint8}


def _plans(raw: xr.Dataset, sizes: tuple[int, ...], choice: FlatChoice | None, illumination):
    """Reference, exposure and status of every frame as an object array (frame, 1, 1), chunked as the frames are.

    When all frames share them there is a single one for all, so that the graph of a long series stays small.
    """
    import dask
    import dask.array as da

    n = sum(sizes)
    timed = "exposure" in raw and "flat_exposure" in raw
    seconds = raw["exposure"].values if timed else np.ones(n)
    status = _status(raw)
    recipe = np.full(n, -1) if choice is None else choice.recipe
    references = [None] * (0 if choice is None else len(choice.flats))
    for k in np.unique(recipe[recipe >= 0]):
        flats = choice.flats[k]
        flat_seconds = raw["flat_exposure"].values[flats] if timed else np.ones(len(flats))
        picture = raw["flats"].data[flats]
        references[k] = dask.delayed(average_flats)(picture, choice.weights[k], illumination, flat_seconds)

    def entries(part: slice):
        known = np.unique(recipe[part][recipe[part] >= 0])
        local = np.searchsorted(known, recipe[part])
        table = dask.delayed(_plan_table)(
            [references[k] for k in known], np.where(recipe[part] >= 0, local, -1), seconds[part], status[part]
        )
        return da.from_delayed(
            table, (part.stop - part.start, 1, 1), dtype=object, meta=np.empty((0, 0, 0), dtype=object)
        )

    if len(np.unique(np.stack([recipe, seconds, status]), axis=1).T) == 1:
        return entries(slice(0, 1))
    stops = np.cumsum(sizes)
    return da.concatenate([entries(slice(int(e - s), int(e))) for s, e in zip(sizes, stops, strict=True)])


def _plan_table(references: list, local: np.ndarray, seconds: np.ndarray, status: np.ndarray) -> np.ndarray:
    """Object array (n, 1, 1) of one tuple per frame: reference or None, exposure and status."""
    table = np.empty((len(local), 1, 1), dtype=object)
    for i, k in enumerate(local):
        table[i, 0, 0] = (references[k] if k >= 0 else None, seconds[i], status[i])
    return table


def _normalize_task(frames: np.ndarray, plans: np.ndarray, illumination: Illumination, leveled: bool) -> np.ndarray:
    """One block: an object array (1, 1, 1) that holds the tuple of all outputs."""
    plans = np.broadcast_to(plans.ravel(), len(frames)) if len(plans) == 1 else plans.ravel()
    if leveled:
        done = [_level(f, illumination, s) for f, (_, _, s) in zip(frames, plans, strict=True)]
    else:
        done = [_normalize_frame(f, r, illumination, t, s) for f, (r, t, s) in zip(frames, plans, strict=True)]
    record = np.empty((1, 1, 1), dtype=object)
    record[0, 0, 0] = _stacked(done, frames.shape[1:])
    return record


def _pick(record: np.ndarray, part: int) -> np.ndarray:
    return record[0, 0, 0][part]


# -- one frame --------------------------------------------------------------------------------------------------------


def _normalize_frame(
    counts: np.ndarray, reference: np.ndarray | None, illumination: Illumination, seconds: float, status: int
) -> tuple[np.ndarray | None, float, np.ndarray, int]:
    """Optical density (None for a bad frame), noise, background and status of one frame of counts."""
    lit = illumination.lit
    if status == FrameStatus.OK:
        status = _judge(counts, reference, illumination, seconds)
    if status != FrameStatus.OK:
        return _bad(status)
    rate = (counts - illumination.dark) / np.float32(seconds)
    density = intensity.optical_density(rate, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        grain = np.log(reference)
    density -= background.moved_grain(grain, background.grain_shift(np.where(lit, density, np.nan), grain))
    # A pixel without a count has no logarithm; left out it would be a hole, so it is filled as a dead one is.
    return _level(intensity.repair(density, illumination.bad | (lit & np.isnan(density))), illumination, status)


def _judge(counts: np.ndarray, reference: np.ndarray | None, illumination: Illumination, seconds: float) -> int:
    """Status of a frame of counts, before anything is divided."""
    lit = illumination.lit
    if reference is None:
        return FrameStatus.NO_REFERENCE
    finite = np.isfinite(counts)
    if finite[lit].mean() < 1 - CORRUPT_PIXELS:
        return FrameStatus.CORRUPT
    known = lit & finite & np.isfinite(reference)
    mean = float(np.mean(counts - illumination.dark, where=known)) / seconds
    limit = BLANK * max(illumination.transmission, 0.02) * float(np.mean(reference, where=known))
    if not mean > limit:
        return FrameStatus.BLANK
    rows = lit.any(axis=1)
    top = counts[rows].max(axis=1)
    # Rows of nothing but zeros, or of nothing but one value throughout the frame, were never read out.
    empty = np.mean(~(top > 0)) > CORRUPT_ROWS
    return FrameStatus.CORRUPT if empty or counts.min() == counts.max() else FrameStatus.OK


def _level(density: np.ndarray, illumination: Illumination, status: int):
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


def _stacked(frames: list[tuple], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of single frames as arrays over the frames."""
    density = np.full((len(frames), *shape), np.nan, dtype=np.float32)
    for picture, frame in zip(density, frames, strict=True):
        if frame[0] is not None:
            picture[:] = frame[0]
    noise = np.array([frame[1] for frame in frames], dtype=np.float64)
    offsets = np.array([frame[2] for frame in frames], dtype=np.float64).reshape(-1, 3)
    return density, noise, offsets, np.array([frame[3] for frame in frames], dtype=np.uint8)


# -- all frames -------------------------------------------------------------------------------------------------------


def _look(
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
    dark = intensity.average_dark(darks) if darks is not None and len(darks) else np.zeros(shape, dtype=np.float32)
    if flats is None:
        return _look_at_densities(frames, dark, field)
    flat_seconds = np.ones(len(flats)) if flat_seconds is None else flat_seconds
    seconds = np.ones(len(frames)) if seconds is None else seconds
    rates = (flats - dark) / flat_seconds[:, None, None].astype(np.float32)
    level = np.array([np.nanmean(rate) for rate in rates])
    rates = rates[level > BLANK * np.median(level)]
    if not len(rates) or not level.max() > 0:
        msg = "flats hold no counts above the dark; need open-beam exposures."
        raise ValueError(msg)
    flat = rates.mean(axis=0)
    lit = intensity.lit_field(flat) if field is None else _box(field, shape)
    through = np.array([_mean((f - dark) / np.float32(t), lit) for f, t in zip(frames, seconds, strict=True)])
    used = through > 0.005 * _mean(flat, lit)
    # A pixel that merely responds a little more or less is corrected by the division.
    bad = intensity.local_outliers(flat, least=0.25) | (flat <= 0)
    if darks is not None and len(darks):
        bad |= intensity.local_outliers(darks.mean(axis=0, dtype=np.float32))
    if used.sum() >= 3:
        ratio = np.median([(f - dark) / m for f, m in zip(frames[used], through[used], strict=True)], axis=0)
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
    lit = np.isfinite(frames).mean(axis=0) >= 0.5 if field is None else _box(field, shape)
    filled = np.where(np.isfinite(frames), frames, 0)
    bad = lit & intensity.local_outliers(np.median(filled, axis=0)) if len(frames) >= 3 else np.zeros(shape, bool)
    return Illumination(lit, bad, dark, np.zeros(shape, np.float32), np.zeros((0, 1, 1)))


def _mean(image: np.ndarray, lit: np.ndarray) -> float:
    """Mean of the finite lit pixels; 0 if there are none."""
    known = lit & np.isfinite(image)
    return float(image[known].mean()) if known.any() else 0.0


def _box(field: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """Mask of a field of view that a user gave."""
    y0, y1, x0, x1 = field
    if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
        msg = f"the field of view is {field}; need 0 <= y0 < y1 <= {shape[0]} and 0 <= x0 < x1 <= {shape[1]} px."
        raise ValueError(msg)
    lit = np.zeros(shape, dtype=bool)
    lit[y0:y1, x0:x1] = True
    return lit


def _sampled(raw: xr.Dataset) -> dict[str, xr.DataArray]:
    """Few frames and flats that a survey looks at, all darks, and their exposure times."""
    usable = np.flatnonzero(_status(raw) == FrameStatus.OK)
    usable = usable if len(usable) else np.arange(raw.sizes["frame"])
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, SURVEYED).round().astype(int))]
    sample = {"frames": raw[_frames_name(raw)].isel(frame=chosen)}
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


def _choose(raw: xr.Dataset) -> FlatChoice | None:
    """References of every frame; None for a dataset of optical densities."""
    if _frames_name(raw) != "counts":
        return None
    energy = np.where(_status(raw) == FrameStatus.OK, raw["energy"].values, np.nan)
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


def _status(raw: xr.Dataset) -> np.ndarray:
    """Status of the frames as the reader gave it; ok where it gave none."""
    return raw["frame_status"].values.astype(int) if "frame_status" in raw else np.zeros(raw.sizes["frame"], int)


def _frames_name(raw: xr.Dataset) -> str:
    """Name of the variable that holds the frames."""
    for name in ("counts", "optical_density"):
        if name in raw:
            return name
    here = ", ".join(sorted(map(str, raw.variables))) or "nothing"
    msg = f"counts is missing; need counts (or optical_density) with dims ('frame', 'y', 'x'), got only: {here}."
    raise ValueError(msg)


def _whole_frames(frames: xr.DataArray):
    """Frames as a dask array that is not split along y and x."""
    import dask.array as da

    if not isinstance(frames.data, da.Array):
        return da.from_array(frames.data, chunks=(16, -1, -1))
    if frames.data.numblocks[1:] != (1, 1):
        msg = f'{frames.name} has {frames.data.numblocks[1:]} chunks along y and x; need 1 each: .chunk(y=-1, x=-1).'
        raise ValueError(msg)
    return frames.data


def _check_energy(name: str, energy: np.ndarray) -> None:
    if not np.isfinite(energy).all() or (energy <= 0).any():
        msg = f"{name} holds values that are missing or not positive; need the photon energy of every frame in eV."
        raise ValueError(msg)
    if len(energy) and energy.min() < 100:
        msg = f"{name} runs from {energy.min():g} to {energy.max():g}, which looks like keV; need eV: multiply by 1000."
        raise ValueError(msg)


def _check_flats(raw: xr.Dataset) -> None:
    """Check the open-beam references of a dataset of counts."""
    if "flats" not in raw:
        msg = "flats is missing; counts need open-beam references with dims ('flat', 'y', 'x')."
        raise ValueError(msg)
    validate(raw, RAW, "flats")
    if raw.sizes["flat"] == 0:
        msg = "flats is empty; counts need at least one open-beam reference."
        raise ValueError(msg)
    if "darks" in raw:
        validate(raw, RAW, "darks")
    if "flat_energy" in raw:
        validate(raw, RAW, "flat_energy")
        _check_energy("flat_energy", raw["flat_energy"].values)
    elif len(np.unique(raw["energy"].values)) > 1:
        msg = f"flat_energy is missing, but there are {len(np.unique(raw['energy'].values))} energies; need the energy of every flat."
        raise ValueError(msg)
