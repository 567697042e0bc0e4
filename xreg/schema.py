"""Every dimension and variable that xreg stores, declared once.

Three groups of variables exist. RAW is what a beamline (or the simulator) gives, ROIS is what detection and refinement
say about each frame, and RESULT is what a run gives back. A stage checks its input with `validate` and explains its
output with `describe`, so that a saved store tells a reader what every number means.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

#: Side of the square grid (in samples) on which a region of interest is refined.
CONTOUR_SIZE = 96
#: Side of the square picture (in samples) by which regions are compared between frames.
THUMBNAIL_SIZE = 32
#: Order of the two spatial axes wherever a vector is stored.
AXES = ("y", "x")
#: Energies (eV) of one frame that differ by more than this are those of two frames.
SAME_ENERGY_EV = 0.01
#: Smallest of the numbers above 0.
POSITIVE = math.ulp(0.0)

_KINDS = {"u": "whole numbers", "i": "whole numbers", "f": "floating-point numbers", "b": "true or false", "M": "dates"}


class FrameStatus(IntEnum):
    """Why a frame was, or was not, used."""

    OK = 0
    BLANK = 1
    BLURRED = 2
    CORRUPT = 3
    NO_REFERENCE = 4
    FAILED = 5


class FitStatus(IntEnum):
    """Why a pixel has, or has not, an edge energy."""

    OK = 0
    OUTSIDE = 1
    THIN = 2
    NO_EDGE = 3
    OUT_OF_RANGE = 4
    TOO_FEW_ENERGIES = 5
    BAD_FRAMES = 6
    FAILED = 7


@dataclass(frozen=True)
class Variable:
    """One stored variable: its name, dimensions, dtype kinds ("u", "i", "f", "b", "M"), CF unit and meaning.

    `maker` is the function that makes it, where there is but one.
    """

    name: str
    dims: tuple[str, ...]
    kinds: str
    units: str
    long_name: str
    comment: str = ""
    maker: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """CF-style attributes; empty ones are left out."""
        named = {"units": self.units, "long_name": self.long_name, "comment": self.comment}
        return {key: text for key, text in named.items() if text}


def _table(*variables: Variable, maker: str = "") -> dict[str, Variable]:
    return {v.name: replace(v, maker=v.maker or maker) for v in variables}


def flag_attrs(flags: type[IntEnum]) -> dict[str, object]:
    """CF attributes `flag_values` and `flag_meanings` of a flag variable."""
    return {
        "flag_values": [int(f) for f in flags],
        "flag_meanings": " ".join(f.name.lower() for f in flags),
    }


COORDINATES = _table(
    Variable("energy", ("frame",), "f", "eV", "photon energy"),
    Variable("scan", ("frame",), "iu", "1", "number of the XANES scan that the frame belongs to"),
    Variable("time", ("frame",), "fM", "s", "time of the exposure"),
)

RAW = _table(
    Variable("counts", ("frame", "y", "x"), "uif", "1", "detector counts"),
    Variable("optical_density", ("frame", "y", "x"), "f", "1", "optical density", "natural logarithm"),
    Variable("flats", ("flat", "y", "x"), "uif", "1", "open-beam detector counts"),
    Variable("darks", ("dark", "y", "x"), "uif", "1", "detector counts without beam"),
    *COORDINATES.values(),
    Variable("exposure", ("frame",), "f", "s", "exposure time"),
    Variable("flat_exposure", ("flat",), "f", "s", "exposure time of the open-beam reference"),
    Variable("dark_exposure", ("dark",), "f", "s", "exposure time of the dark"),
    Variable("flat_energy", ("flat",), "f", "eV", "photon energy of the open-beam reference"),
    Variable("flat_scan", ("flat",), "iu", "1", "number of the XANES scan that the open-beam reference belongs to"),
    Variable("flat_time", ("flat",), "fM", "s", "time of the open-beam reference"),
    Variable("frame_status", ("frame",), "iu", "1", "whether the frame can be used", "0 is ok"),
)

NORMALIZED = _table(
    Variable("optical_density", ("frame", "y", "x"), "f", "1", "optical density above the background",
             "natural logarithm; negative values are kept; NaN where the detector gave no valid value"),
    Variable("noise", ("frame",), "f", "1", "standard deviation of the optical density in the open background",
             "NaN for a bad frame"),
    Variable("background", ("frame", "coefficient"), "f", "1", "offset and tilt that were taken off",
             "offset at the frame's centre, slopes along y and x; optical density per frame height or width"),
    Variable("frame_status", ("frame",), "iu", "1", "whether the frame can be used", "0 is ok"),
    maker="normalize_frames",
)

PARTICLE_MAP = Variable("particle_map", ("frame", "y", "x"), "fuib", "1", "clean particle picture", maker="detect_rois")

SHARPNESS = Variable(
    "sharpness", ("frame", "band"), "f", "px2", "spatial power spectral density of the optical density, less the noise",
    "coarse structure; fine structure along y, and at 45, 90 and 135 degrees to it; standard error of the latter four")

ROIS = _table(
    Variable("roi_position", ("frame", "roi", "axis"), "f", "px", "centre of mass of the soft contour",
             "raw frame's pixel coordinates, y down; NaN in an empty slot"),
    Variable("roi_area", ("frame", "roi"), "f", "px2", "area of the soft contour (moment M00)"),
    Variable("roi_contrast", ("frame", "roi"), "f", "1", "optical density inside the contour less that around it"),
    Variable("roi_significance", ("frame", "roi"), "f", "1", "contrast over its standard error",
             "a low value marks a particle that the detector may have invented"),
    Variable("roi_cut", ("frame", "roi"), "b", "1", "whether the field of view cuts the region"),
    Variable("roi_window", ("frame", "roi", "window"), "f", "px", "square in which the contour is sampled",
             "centre y, centre x and sample spacing; sample (i, j) of roi_contour lies at "
             "centre + ((i, j) - (n - 1) / 2) * spacing"),
    Variable("roi_contour", ("frame", "roi", "contour_y", "contour_x"), "u", "1", "soft contour, 0 to 255"),
    Variable("roi_thumbnail", ("frame", "roi", "thumbnail_y", "thumbnail_x"), "u", "1",
             "picture of the region for comparison between frames",
             "optical density inside the contour about the centre of mass, scaled to the region's size and to 0...255"),
    maker="refine_rois",
)

#: What the steps from the linking to the confirmed particles hand to each other, besides `position` and `contour`.
TABLES = {"energy": Variable("energy", ("frame",), "fiu", "eV", "photon energy")} | _table(
    Variable("track", ("frame", "roi"), "iu", "1", "number of the particle", "-1: none", maker="link_rois"),
    Variable("similarity", ("frame", "roi"), "f", "1", "structural similarity with the previous sighting",
             maker="link_rois"),
    Variable("area", ("particle", "frame"), "f", "px2", "area of the soft contour", maker="gather_tracks"),
    Variable("contrast", ("particle", "frame"), "f", "1", "optical density inside the contour less that around it",
             maker="gather_tracks"),
    Variable("cut", ("particle", "frame"), "b", "1", "whether the field of view cuts the region",
             maker="gather_tracks"),
    Variable("start", ("particle", "frame", "axis"), "f", "px", "where the particle is, or should be"),
    Variable("guessed", ("particle", "frame"), "b", "1", "whether that is no sighting"),
    Variable("doubtful", ("particle", "frame"), "b", "1", "whether that is a sighting of another region"),
    Variable("stage", ("frame", "axis"), "f", "px", "where the stage is expected"),
    maker="propose_particles",
)

_UNSEEN = "NaN where the particle is not seen"
_UNTIMED = "NaN where the particle is not seen or the time is unknown"
_UNFITTED = "NaN outside the contour or where the fit fails"
_PARTICLE_FRAME = ("particle", "frame")
_VECTOR = ("particle", "frame", "axis")
_MAP = ("particle", "scan", "y", "x")

RESULT = _table(
    Variable("position", _VECTOR, "f", "px", "centre of mass",
             "raw frame's pixel coordinates, y down, pixel centres at integers; NaN where the particle is not seen"),
    Variable("position_sigma", _VECTOR, "f", "px", "standard error of the position",
             _UNSEEN + "; of the scatter from frame to frame, not of an offset that all frames share"),
    Variable("measured_position", _VECTOR, "f", "px", "centre of mass as measured in this frame alone",
             "as position, which is the path through these"),
    Variable("measured_position_sigma", _VECTOR, "f", "px", "standard error of measured_position", _UNSEEN),
    Variable("similarity", _PARTICLE_FRAME, "f", "1", "structural similarity with the previous sighting",
             "Wang et al. 2004, doi:10.1109/TIP.2003.819861; NaN at the first sighting"),
    Variable("displacement", _VECTOR, "f", "px", "displacement since the first sighting", _UNSEEN),
    Variable("velocity", _VECTOR, "f", "px/frame", "velocity", _UNSEEN),
    Variable("acceleration", _VECTOR, "f", "px/frame2", "acceleration", _UNSEEN),
    Variable("distance", _PARTICLE_FRAME, "f", "px", "length of the path since the first sighting", _UNSEEN),
    Variable("velocity_nm_s", _VECTOR, "f", "nm/s", "velocity", _UNTIMED),
    Variable("acceleration_nm_s2", _VECTOR, "f", "nm/s2", "acceleration", _UNTIMED),
    Variable("distance_nm", _PARTICLE_FRAME, "f", "nm", "length of the path since the first sighting", _UNSEEN),
    Variable("rigid", ("frame", "axis"), "f", "px", "motion common to all particles (stage and optics)",
             "NaN in frames that could not be used"),
    Variable("nonrigid", _VECTOR, "f", "px", "motion of the particle less the rigid part (deformation)", _UNSEEN),
    Variable("aligned", ("particle", "frame", "y", "x"), "f", "1", "registered optical density",
             "y and x are offsets from the centre of mass; NaN outside the field of view"),
    Variable("contour", ("particle", "y", "x"), "b", "1", "outline of the particle"),
    Variable("edge_jump", ("particle",), "f", "1", "share of the particle's contrast that the absorption edge gives",
             "about 0 where it holds nothing of the element; NaN where the energies do not say"),
    Variable("edge_jump_sigma", ("particle",), "f", "1", "standard error of edge_jump",
             "NaN where edge_jump is"),
    Variable("edge_energy", _MAP, "f", "eV", "edge energy", _UNFITTED),
    Variable("edge_energy_sigma", _MAP, "f", "eV", "standard error of the edge energy", _UNFITTED),
    Variable("edge_step", _MAP, "f", "1", "height of the absorption edge", "NaN outside the contour"),
    Variable("whiteline_energy", _MAP, "f", "eV", "energy of the white line", _UNFITTED),
    Variable("fit_status", _MAP, "iu", "1", "why a pixel has, or has not, an edge energy"),
    Variable("frame_status", ("frame",), "iu", "1", "why a frame was, or was not, used"),
)


def frames_name(raw: "xr.Dataset") -> str:
    """Name of the variable of a raw dataset that holds the frames.

    Raises
    ------
    ValueError
        If there is none, or `raw` is no Dataset.
    """
    check_dataset(raw, "counts (or optical_density)")
    for name in ("counts", "optical_density"):
        if name in raw:
            return name
    msg = f"counts is missing; need counts (or optical_density) with dims ('frame', 'y', 'x'), got only: {_held(raw)}."
    raise ValueError(msg)


def validate(ds: "xr.Dataset", group: dict[str, Variable], *names: str) -> None:
    """Check that `ds` holds the named variables of `group` with the declared dims and kind of dtype.

    Raises
    ------
    ValueError
        If `ds` is no Dataset, or a variable is missing, has other dims or another kind of dtype. The sentence says what
        came and what was wanted.
    """
    check_dataset(ds, *names)
    for name in names:
        wanted = group[name]
        if name not in ds.variables:
            made = f" It comes from {wanted.maker}." if wanted.maker else ""
            msg = f"{name} is missing; need {name} with dims {wanted.dims}, got only: {_held(ds)}.{made}"
            raise ValueError(msg)
        check_variable(ds[name], wanted)


def _held(ds: "xr.Dataset") -> str:
    return ", ".join(sorted(map(str, ds.variables))) or "nothing"


def check_variable(array: "xr.DataArray", wanted: Variable) -> None:
    """Check one variable's type, dims and kind of dtype; raise ValueError with what came and what was wanted."""
    check_dims(array, wanted.name, wanted.dims)
    if array.dtype.kind not in wanted.kinds:
        words = " or ".join(dict.fromkeys(_KINDS[kind] for kind in wanted.kinds))
        msg = f"{wanted.name} has dtype {array.dtype}; need a dtype of kind {'/'.join(wanted.kinds)}, {words}."
        raise ValueError(msg)


def check_dims(array: "xr.DataArray", name: str, dims: tuple[str, ...]) -> None:
    """Check that something is a DataArray with some dims; raise ValueError with what came and what was wanted."""
    check_array(array, name, dims)
    if tuple(array.dims) != dims:
        msg = f"{name} has dims {tuple(array.dims)}; need {dims}."
        lost = [dim for dim in dims if dim not in array.dims]
        if lost and set(array.dims) <= set(dims):
            msg += f" Choose a single {lost[0]} with a list, such as .isel({lost[0]}=[0]), which keeps the dimension."
        raise ValueError(msg)


def check_dataset(ds: object, *names: str) -> None:
    """Raise ValueError, with what came and what was wanted, unless `ds` is a Dataset; `names` say what it should hold.

    What it does hold is for `validate` to check.
    """
    import xarray as xr

    if isinstance(ds, xr.Dataset):
        return
    advice = {"DataArray": "give the whole Dataset, not one variable of it",
              "str": "open the store first, with open_frames or open_result"}
    advice = advice.get(_type(ds), "make one with xarray.Dataset")
    msg = f"got a {_type(ds)}; need a Dataset with {', '.join(names)}: {advice}."
    raise ValueError(msg)


def check_array(array: object, name: str, dims: tuple[str, ...] | None = None) -> None:
    """Raise ValueError, with what came and what was wanted, unless `array` is a DataArray.

    Its dims are not looked at: `dims` only say which variable of a Dataset was meant.
    """
    import xarray as xr

    if isinstance(array, xr.DataArray):
        return
    advice = f"make one with xarray.DataArray(values, dims={dims})" if dims else "make one with xarray.DataArray"
    if isinstance(array, xr.Dataset):
        alike = [name] * (name in array) or [str(n) for n, v in array.data_vars.items() if dims in (None, v.dims)]
        advice = f'take one of its variables, such as ["{(alike or [name])[0]}"]'
    elif _type(array) == "str":
        advice = "open the store first, with open_frames or open_result, and take a variable of it"
    shape = f" with dims {dims}" if dims else ""
    msg = f"{name} is a {_type(array)}; need a DataArray{shape}: {advice}."
    raise ValueError(msg)


def _type(thing: object) -> str:
    """Name of a type in a sentence; all paths are text."""
    from pathlib import PurePath

    return "str" if isinstance(thing, str | PurePath) else type(thing).__name__


def check_alike(one: "xr.Dataset | xr.DataArray", other: "xr.Dataset | xr.DataArray", *dims: str) -> None:
    """Check that two arrays or datasets have the same lengths, and labels where both have them, along some dims.

    Arrays are put together by place, so that whoever selects frames of one must select the same of the other. Frames
    are known by their energies, scans and times, too, where both have these in memory.

    Raises
    ------
    ValueError
        If they have not, or one lacks a dimension.
    """
    for dim in dims:
        for array in (one, other):
            if dim not in array.sizes:
                msg = (f"there is no dimension {dim} among {tuple(map(str, array.sizes))}; need it. Choose a single "
                       f"{dim} with a list, such as .isel({dim}=[0]), which keeps the dimension.")
                raise ValueError(msg)
        if one.sizes[dim] != other.sizes[dim]:
            msg = f"there are {one.sizes[dim]} and {other.sizes[dim]} along {dim}; need the same: select both alike."
            raise ValueError(msg)
        if dim in one.indexes and dim in other.indexes and not one.indexes[dim].equals(other.indexes[dim]):
            msg = f"labels differ along {dim}; select the same of both."
            raise ValueError(msg)
        for name in COORDINATES:
            both = [array.coords[name].variable for array in (one, other) if name in array.coords]
            # Lazy ones are left alone: nothing is computed to check it.
            if len(both) == 2 and all(c.dims == (dim,) and c.chunks is None for c in both) and _differ(name, *both):
                msg = f"{name} differs along {dim}; the two are of different frames: select the same of both."
                raise ValueError(msg)


def _differ(name: str, one: "xr.Variable", other: "xr.Variable") -> bool:
    """Whether two tables of the same length disagree anywhere where both are known; unlike kinds cannot be compared."""
    ours, theirs = one.values, other.values
    if "M" in (ours.dtype.kind, theirs.dtype.kind):
        return ours.dtype.kind == theirs.dtype.kind and bool(
            ((ours != theirs) & ~np.isnat(ours) & ~np.isnat(theirs)).any())
    if not {ours.dtype.kind, theirs.dtype.kind} <= set("iuf"):
        return False
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return bool((apart > (SAME_ENERGY_EV if name == "energy" else 0)).any())


def check_links(rois: "xr.Dataset", links: "xr.Dataset") -> None:
    """Refuse links that are not those of the regions.

    Raises
    ------
    ValueError
        If a variable of `links` is missing or has other dims, or the frames or the number of slots are others.
    """
    validate(links, TABLES, "track", "similarity")
    shape = (rois.sizes["frame"], rois.sizes["roi"])
    if links["track"].shape != shape:
        msg = f"links are for (frame, roi) = {links['track'].shape}, rois has {shape}; link these rois first."
        raise ValueError(msg)
    check_alike(rois, links, "frame")


def check_attributes(ds: "xr.Dataset | xr.DataArray", **makers: str) -> None:
    """Raise ValueError where an attribute is missing; `makers` are the functions that give those attributes."""
    for name, maker in makers.items():
        if name not in ds.attrs:
            msg = f"the attribute {name} is missing; it comes from {maker}, and is kept with assign_attrs."
            raise ValueError(msg)


def check_some(array: "xr.Dataset | xr.DataArray", *dims: str) -> None:
    """Raise ValueError where nothing is left along one of some dims."""
    for dim in dims:
        if not array.sizes[dim]:
            msg = f"there is no {dim}; need at least one."
            raise ValueError(msg)


def check_number(
    name: str, value: object, need: str, *, least: float = -math.inf, whole: bool = False, finite: bool = True
) -> None:
    """Refuse a setting that is no number, NaN, or out of range.

    Parameters
    ----------
    name, value
        The setting.
    need : str
        What is needed, in words.
    least : float
        Smallest value; `POSITIVE` where 0 is too small.
    whole, finite : bool
        Whether it must be a whole number, and a finite one.

    Raises
    ------
    ValueError
        With what came and what was wanted.
    """
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not number or not value >= least or (finite and not math.isfinite(value)):
        msg = f"{name} is {value!r}; need {need}."
        raise ValueError(msg)


def describe(ds: "xr.Dataset", group: dict[str, Variable]) -> "xr.Dataset":
    """Return `ds` with the declared units, long names and comments on every variable that `group` knows."""
    ds = ds.copy()
    for name in ds.variables:
        known = group.get(str(name)) or COORDINATES.get(str(name))
        if known is not None:
            ds[name].attrs = {**known.attrs, **ds[name].attrs}
    return ds
