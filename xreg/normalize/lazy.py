"""The same arithmetic on a whole dataset, lazily."""

import numpy as np
import xarray as xr

from xreg.kernels.references import FlatChoice
from xreg.normalize.blocks import average_flats, level_frame, normalize_frame, stacked
from xreg.normalize.check import check_raw, given_status
from xreg.normalize.survey import Illumination, choose_references, field_mask, look_at, sampled
from xreg.schema import NORMALIZED, FrameStatus, describe, flag_attrs, frames_name

_OUTPUTS = {"optical_density": np.float32, "noise": np.float64, "background": np.float64, "frame_status": np.uint8}


def normalize_frames(
    raw: xr.Dataset, illumination: Illumination | None = None, *, references: FlatChoice | None = None,
    field: tuple[int, int, int, int] | None = None,
) -> xr.Dataset:
    """Optical density above the background of all frames, lazily.

    Costs one task per block of frames, one per distinct reference and one for the survey. A task holds its
    frames and their distinct references.

    Parameters
    ----------
    raw : Dataset
        See schema.RAW; `counts` (or `optical_density`) as a dask array of whole frames, or in memory, in
        which case blocks of 16 frames are made. Small variables must be in memory.
    illumination : Illumination, optional
        From `survey`, of these frames or of the whole measurement that they are from; made lazily, of these, when
        it is not given.
    references : FlatChoice, optional
        References of each of these frames; chosen by energy and time when they are not given.
    field : tuple = (y0, y1, x0, x1), optional, px
        Field of view to use, instead of the lit one. Not with `illumination`, which has one.

    Returns
    -------
    normalized : lazy Dataset of schema.NORMALIZED, with the coordinates and attributes of `raw`
        Bad frames are NaN, and `frame_status` says why.

    Raises
    ------
    ValueError
        If `check_raw` objects, frames are split along y or x, or `illumination`, `references` or `field` are not those
        of such frames. When computed: as `survey`.
    """
    import dask
    import dask.array as da

    check_raw(raw)
    frames = _whole_frames(raw[frames_name(raw)])
    _check_extras(frames.shape, illumination, references, field)
    if illumination is None:
        pictures = {name: array.data for name, array in sampled(raw).items()}
        looked = dask.delayed(look_at)(**pictures, field=field)
    else:
        looked = dask.delayed(illumination, traverse=False)
    choice = choose_references(raw) if references is None else references
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
            _pick, part=part, dtype=dtype, chunks=tuple(shape[d] for d in dims), drop_axis=[1, 2],
            new_axis=list(range(1, len(dims))), meta=np.empty((0,) * len(dims), dtype=dtype),
        )  # fmt: skip
        variables[name] = (dims, array)
    coords = {name: c for name, c in raw.coords.items() if set(c.dims) <= {"frame", "y", "x"}}
    coords |= {name: raw[name] for name in ("energy", "scan", "time") if name in raw}
    # Chunks in which a store has them would keep them from being written in others.
    coords = {name: c.drop_vars(c.coords).drop_encoding() for name, c in coords.items()}
    normalized = xr.Dataset(variables, coords, raw.attrs)
    normalized["frame_status"].attrs = flag_attrs(FrameStatus)
    return describe(normalized, NORMALIZED)


def _check_extras(
    shape: tuple[int, int, int], illumination: Illumination | None, references: FlatChoice | None, field: tuple | None
) -> None:
    """Refuse what was found for, or is meant for, other frames than those of this shape (n, ny, nx)."""
    if illumination is not None:
        if not isinstance(illumination, Illumination):
            msg = f"illumination is a {type(illumination).__name__}; need what survey found."
            raise ValueError(msg)
        if illumination.lit.shape != shape[1:]:
            (theirs_y, theirs_x), (ny, nx) = illumination.lit.shape, shape[1:]
            msg = (f"illumination is that of frames of {theirs_y} x {theirs_x} px, and these have {ny} x {nx}; need "
                   f"that of these frames: crop first, then survey.")
            raise ValueError(msg)
        if field is not None:
            msg = "illumination and field are both given, but illumination has a field; give field to survey instead."
            raise ValueError(msg)
    if references is not None and len(references.recipe) != shape[0]:
        msg = f"references are those of {len(references.recipe)} frames, and there are {shape[0]}; need as many."
        raise ValueError(msg)
    if field is not None:
        field_mask(field, shape[1:])


def _plans(raw: xr.Dataset, sizes: tuple[int, ...], choice: FlatChoice | None, illumination):
    """Reference, exposure and status of every frame as an object array (frame, 1, 1), chunked as the frames are.

    When all frames share them there is a single one for all, so that the graph of a long series stays small.
    """
    import dask
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    n = sum(sizes)
    timed = "exposure" in raw and "flat_exposure" in raw
    seconds = raw["exposure"].values if timed else np.ones(n)
    status = given_status(raw)
    recipe = np.full(n, -1) if choice is None else choice.recipe
    references = [None] * (0 if choice is None else len(choice.flats))
    for k in np.unique(recipe[recipe >= 0]):
        flats = choice.flats[k]
        flat_seconds = raw["flat_exposure"].values[flats] if timed else np.ones(len(flats))
        picture = raw["flats"].data[flats]
        references[k] = dask.delayed(average_flats)(picture, choice.weights[k], illumination, flat_seconds)

    alike = len(np.unique(np.stack([recipe, seconds, status]), axis=1).T) == 1
    sizes = (1,) if alike else sizes
    name = "plans-" + tokenize(references, recipe, seconds, status, sizes)
    layer = {}
    # Made by hand: a delayed object for each of 1e5 blocks takes minutes to build.
    for block, stop in enumerate(np.cumsum(sizes)):
        part = slice(int(stop) - sizes[block], int(stop))
        known = np.unique(recipe[part][recipe[part] >= 0])
        local = np.where(recipe[part] >= 0, np.searchsorted(known, recipe[part]), -1)
        layer[name, block, 0, 0] = (
            _plan_table, [references[k].key for k in known], local, seconds[part], status[part])
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[r for r in references if r is not None])
    return da.Array(graph, name, chunks=(sizes, (1,), (1,)), meta=np.empty((0, 0, 0), dtype=object))


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
        done = [level_frame(f, illumination, s) for f, (_, _, s) in zip(frames, plans, strict=True)]
    else:
        done = [normalize_frame(f, r, illumination, t, s) for f, (r, t, s) in zip(frames, plans, strict=True)]
    record = np.empty((1, 1, 1), dtype=object)
    record[0, 0, 0] = stacked(done, frames.shape[1:])
    return record


def _pick(record: np.ndarray, part: int) -> np.ndarray:
    return record[0, 0, 0][part]


def _whole_frames(frames: xr.DataArray):
    """Frames as a dask array that is not split along y and x."""
    import dask.array as da

    if not isinstance(frames.data, da.Array):
        return da.from_array(frames.data, chunks=(16, -1, -1))
    if frames.data.numblocks[1:] != (1, 1):
        msg = f"{frames.name} has {frames.data.numblocks[1:]} chunks along y and x; need 1 each: .chunk(y=-1, x=-1)."
        raise ValueError(msg)
    return frames.data
