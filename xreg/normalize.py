"""From detector counts to optical density above the background, frame by frame.

For every frame: counts and open-beam references, each less the dark and per second, are divided; the logarithm is taken;
hot and dead pixels are filled from their neighbours; what is not usefully lit becomes NaN; the open background's
offset, tilt and wandering illumination are taken off. What is common to all frames (masks, dark, which references belong
to which frame) comes from one small `survey`; after that a frame's result depends on nothing but that frame.
"""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from xreg.kernels import intensity
from xreg.kernels.geometry import MAGNIFICATIONS
from xreg.schema import NORMALIZED, RAW, FrameStatus, describe, flag_attrs, validate

#: Flats and frames that a survey reads at the most.
SURVEYED = 24
#: Flats within this many eV of a frame are of its energy.
ENERGY_TOLERANCE = 0.25
#: Flats averaged for one frame at the most, per energy.
MOST_FLATS = 16
#: A frame that transmits less than this share of what frames typically do is blank.
BLANK = 0.1
#: A frame with more than this share of empty rows, or of pixels without a number, is corrupt.
CORRUPT_ROWS, CORRUPT_PIXELS = 0.1, 0.5


@dataclass(frozen=True)
class FlatChoice:
    """Which open-beam references make the reference of each frame.

    Attributes
    ----------
    recipe : ndarray, shape (frame,), int
        Number of the frame's recipe in the two lists below; -1 where there is no reference for the frame.
    flats : list of ndarray, int
        Flats of each recipe, ascending.
    weights : list of ndarray, float32
        Their weights, which sum to 1.
    """

    recipe: np.ndarray
    flats: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]

    def needed(self, frames: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flats that some frames need, and each one's weight in each frame's reference.

        Returns
        -------
        flats : ndarray, shape (m,), int, ascending
        weights : ndarray, shape (n, m), float32
            A row of zeros where the frame has no reference.
        """
        recipes = self.recipe[frames]
        used = [self.flats[r] for r in np.unique(recipes[recipes >= 0])]
        flats = np.unique(np.concatenate(used)) if used else np.zeros(0, dtype=int)
        weights = np.zeros((len(recipes), len(flats)), dtype=np.float32)
        for row, recipe in zip(weights, recipes, strict=True):
            if recipe >= 0:
                row[np.searchsorted(flats, self.flats[recipe])] = self.weights[recipe]
        return flats, weights


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
        Ways in which the illumination wanders (`intensity.illumination_modes`).
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
    return replace(_look(**pictures, field=field), choice=choose_flats(raw))


def choose_flats(raw: xr.Dataset) -> FlatChoice | None:
    """Choose the open-beam references of every frame, by energy and then by scan and time.

    Flats of the frame's own energy (within 0.25 eV) serve if there are any; else those of the nearest energies below
    and above, weighted by the distance. Of several at one energy those of the frame's own scan (`flat_scan`) are
    preferred, and then those nearest in time: all that are no farther than thrice the nearest one or a minute more.
    Flats of an unknown scan and time are all used. At most 16 are averaged at one energy.

    Parameters
    ----------
    raw : Dataset

    Returns
    -------
    choice : FlatChoice, or None if the dataset holds optical densities
    """
    if _frames_name(raw) != "counts":
        return None
    energy, scan = raw["energy"].values.astype(float), raw["scan"].values
    n_flats = raw.sizes["flat"]
    flat_energy = raw["flat_energy"].values.astype(float) if "flat_energy" in raw else np.full(n_flats, energy[0])
    if "flat_energy" not in raw:
        energy = np.full_like(energy, energy[0])
    flat_scan = raw["flat_scan"].values if "flat_scan" in raw else None
    time, flat_time = _seconds(raw)
    order = np.argsort(flat_energy, kind="stable")
    ladder = flat_energy[order]
    recipes: dict[tuple, int] = {}
    recipe = np.full(len(energy), -1)
    for i in np.flatnonzero(np.isfinite(energy)):
        parts: dict[int, float] = {}
        for low, high, share in _energies_about(ladder, energy[i]):
            flats = np.sort(order[low:high])
            if flat_scan is not None and (flat_scan[flats] == scan[i]).any():
                flats = flats[flat_scan[flats] == scan[i]]
            flats = _nearest(flats, None if time is None else np.abs(flat_time[flats] - time[i]))
            parts |= {int(f): share / len(flats) for f in flats}
        if parts:
            key = tuple(sorted(parts.items()))
            recipe[i] = recipes.setdefault(key, len(recipes))
    flats = tuple(np.array([f for f, _ in key], dtype=int) for key in recipes)
    weights = tuple(np.array([w for _, w in key], dtype=np.float32) for key in recipes)
    return FlatChoice(recipe, flats, weights)


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
    return intensity.shrink_grain(total / np.float32(weight), illumination.flat, illumination.lit, share)


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
    choice = choose_flats(raw) if illumination is None else illumination.choice
    plans = _plans(raw, frames.chunks[0], choice, looked)
    blocks = frames.numblocks[0]
    records = da.map_blocks(
        _normalize_task, frames, plans, illumination=looked, dtype=object,
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


def _normalize_task(frames: np.ndarray, plans: np.ndarray, illumination: Illumination) -> np.ndarray:
    """One block: an object array (1, 1, 1) that holds the tuple of all outputs."""
    plans = np.broadcast_to(plans.ravel(), len(frames)) if len(plans) == 1 else plans.ravel()
    if illumination.choice is None and illumination.transmission == 0 and not illumination.flat.any():
        done = [_level(frame, illumination, status) for frame, (_, _, status) in zip(frames, plans, strict=True)]
    else:
        done = [_normalize_frame(f, r, illumination, t, s) for f, (r, t, s) in zip(frames, plans, strict=True)]
    record = np.empty((1, 1, 1), dtype=object)
    record[0, 0, 0] = _stacked(done, frames.shape[1:])
    return record


def _pick(record: np.ndarray, part: int) -> np.ndarray:
    return record[0, 0, 0][part]
