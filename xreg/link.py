"""Linking: which region of which frame is which particle.

The one barrier of the chain: the number of particles is known only after it, so it computes. Its tables are
small. The work is a tree of dask tasks over `leaf`, `merge` and `finish` of `xreg.kernels.tracks`, where it
is explained.
"""

from inspect import signature
from math import ceil

import dask
import numpy as np
import xarray as xr

from xreg.kernels.geometry import pixel_scale, to_reference
from xreg.kernels.matching import MatchSettings
from xreg.kernels.tracks import LinkSettings, Tracks, finish, leaf, merge
from xreg.schema import (
    AXES,
    POSITIVE,
    RESULT,
    ROIS,
    check_links,
    check_number,
    describe,
    validate,
)

_NEEDED = ("roi_position", "roi_area", "roi_cut", "roi_thumbnail")
#: Frames linked by one task; 32 frames of 50 regions hold 2 MB of thumbnails.
_BLOCK = 32


def link_rois(
    rois: xr.Dataset,
    *,
    max_gap: int = 10,
    reach: float = MatchSettings.reach,
    min_sightings: int | None = None,
    join_pieces: bool = True,
    split_every: int = 8,
    frames_per_block: int | None = None,
) -> xr.Dataset:
    """Follow every particle through all frames.

    This computes: the regions' positions, sizes and thumbnails are read block by block and linked in a tree.
    The answer is the same for every chunking, block length and `split_every`.

    Parameters
    ----------
    rois : Dataset
        Table of regions with the variables and dims of `xreg.schema.ROIS` (roi_position, roi_area, roi_cut
        and roi_thumbnail are read), coordinate `energy` (frame), and attributes `magnification` ("constant"
        if absent) and, for a magnification that changes, `pixel_size_energy_ev` and `frame_shape` (ny, nx).
    max_gap : int
        Largest number of frames in a row in which a particle may be missed. Longer absences are bridged
        afterwards.
    reach : float
        Farthest motion from frame to frame on top of the stage's, in particle diameters.
    min_sightings : int, optional
        Particles seen in fewer frames are dropped as inventions. By default 5 % of the frames that show
        anything, but no more than half the frames of a scan (less than that yields no spectrum) and no fewer
        than two.
    join_pieces : bool
        Whether particles that come back to their place after a longer absence keep their number.
    split_every : int
        Number of blocks that one task of the tree joins.
    frames_per_block : int, optional
        Frames linked by one task; by default the chunks of `roi_position`, or 32.

    Returns
    -------
    links : Dataset
        `track` (frame, roi) int32, the particle's number, -1 for an empty slot or a dropped region;
        `similarity` (frame, roi) float32, structural similarity with the particle's previous sighting, NaN at
        the first sighting and after an absence longer than `max_gap`. Attribute `particles` is the number of
        particles. Coordinates of `rois` on `frame` are kept.

    Raises
    ------
    ValueError
        If a variable is missing or has other dims; if `max_gap`, `split_every`, `reach`, `min_sightings` or
        `frames_per_block` is no such number or out of range; if the magnification changes and `energy` or
        `frame_shape` is missing.
    """
    validate(rois, ROIS, *_NEEDED)
    _check_numbers(max_gap=max_gap, split_every=split_every, frames_per_block=frames_per_block, reach=reach,
                   min_sightings=min_sightings)
    settings = LinkSettings(max_gap, MatchSettings(reach=reach))
    frames = rois.sizes["frame"]
    tracks = _grow(rois, settings, split_every, _blocks(rois, frames_per_block))
    if min_sightings is None:
        min_sightings = fewest_sightings(np.unique(tracks.frame).size, _frames_per_scan(rois))
    particle = finish(tracks, min_sightings, join_pieces=join_pieces)
    track = np.full((frames, rois.sizes["roi"]), -1, dtype=np.int32)
    similarity = np.full(track.shape, np.nan, dtype=np.float32)
    track[tracks.frame, tracks.slot] = particle
    similarity[tracks.frame, tracks.slot] = np.where(particle >= 0, tracks.similarity, np.nan)
    links = xr.Dataset({"track": (("frame", "roi"), track), "similarity": (("frame", "roi"), similarity)},
                       {name: c for name, c in rois.coords.items() if c.dims == ("frame",)})
    links["track"].attrs = {"units": "1", "long_name": "number of the particle", "comment": "-1: none"}
    links["similarity"].attrs = RESULT["similarity"].attrs
    return links.assign_attrs(
        particles=int(particle.max(initial=-1)) + 1,
        max_gap=max_gap,
        reach=reach,
        min_sightings=min_sightings,
        join_pieces=int(join_pieces),
    )


def gather_tracks(rois: xr.Dataset, links: xr.Dataset) -> xr.Dataset:
    """Sort the regions by particle.

    Parameters
    ----------
    rois : Dataset
        As for `link_rois`; only the variables named below are read.
    links : Dataset
        From `link_rois`.

    Returns
    -------
    tracks : Dataset, in memory
        `position` (particle, frame, axis) float64, raw px, NaN where the particle is not seen; `similarity`
        (particle, frame) float32; `slot` (particle, frame) int32, place in `rois`, -1 where not seen; `area`,
        and `significance` and `contrast` where `rois` has them (particle, frame), float64, NaN where not
        seen; `cut` (particle, frame) bool. Coordinates and attributes of `rois` on `frame` are kept.

    Raises
    ------
    ValueError
        If a variable is missing or the two disagree on the frames or the number of slots.
    """
    validate(rois, ROIS, "roi_position", "roi_area", "roi_cut")
    check_links(rois, links)
    shape = (rois.sizes["frame"], rois.sizes["roi"])
    track = links["track"].values
    frame, slot = np.nonzero(track >= 0)
    where = (track[frame, slot], frame)
    particles = int(track.max(initial=-1)) + 1

    def spread(values: np.ndarray, empty: object, dtype: str) -> np.ndarray:
        table = np.full((particles, shape[0], *values.shape[2:]), empty, dtype=dtype)
        table[where] = values[frame, slot]
        return table

    flat = ("particle", "frame")
    data = {
        "position": ((*flat, "axis"), spread(rois["roi_position"].values, np.nan, "float64")),
        "similarity": (flat, spread(links["similarity"].values, np.nan, "float32")),
        "slot": (flat, spread(np.broadcast_to(np.arange(shape[1]), shape), -1, "int32")),
        "cut": (flat, spread(rois["roi_cut"].values, False, "bool")),
    }
    for name in ("area", "significance", "contrast"):
        if f"roi_{name}" in rois:
            data[name] = (flat, spread(rois[f"roi_{name}"].values, np.nan, "float64"))
    coords = {name: c for name, c in rois.coords.items() if c.dims == ("frame",)}
    tracks = xr.Dataset(data, coords={**coords, "particle": np.arange(particles), "axis": list(AXES)})
    for name in ("area", "significance", "contrast", "cut"):
        if name in tracks:
            tracks[name].attrs = ROIS[f"roi_{name}"].attrs
    tracks["slot"].attrs = {"units": "1", "long_name": "place in the frame's table", "comment": "-1: none"}
    return describe(tracks, RESULT).assign_attrs({**rois.attrs, **links.attrs})


def check_link_settings(settings: dict) -> None:
    """Refuse settings that `link_rois` would refuse, before the work that goes ahead of it.

    Raises
    ------
    ValueError
        If a name is unknown, or a number is none or out of range.
    """
    known = {name: p.default for name, p in signature(link_rois).parameters.items() if p.kind is p.KEYWORD_ONLY}
    unknown = ", ".join(sorted(set(settings) - set(known)))
    if unknown:
        msg = f"link settings have no {unknown}; choose from {', '.join(known)}."
        raise ValueError(msg)
    chosen = known | settings
    del chosen["join_pieces"]
    _check_numbers(**chosen)


def fewest_sightings(frames: int, frames_per_scan: int) -> int:
    """Sightings below which a particle is taken for an invention, of `frames` that show anything.

    5 % of the frames: an invention rarely recurs at one place. At most half a scan: a particle that came into
    view late and was followed for one scan is worth keeping however long the experiment, while less than half
    the energies of a scan yield no edge. At least two: one sighting is no track.
    """
    return max(2, ceil(min(0.05 * frames, 0.5 * frames_per_scan)))


def _grow(rois: xr.Dataset, settings: LinkSettings, split_every: int, blocks: list[slice]) -> Tracks:
    """Link block by block in a tree of tasks and compute it."""
    scale = _scale(rois)
    shape = tuple(rois.attrs.get("frame_shape", (1, 1)))

    def grow_leaf(position, area, cut, thumbnail, scale, start):
        reference = to_reference(position, scale[:, None], shape)
        return leaf(reference, area * scale[:, None] ** 2, cut, thumbnail, start=start, settings=settings)

    def grow_branch(parts):
        tracks = parts[0]
        for part in parts[1:]:
            tracks = merge(tracks, part, settings)
        return tracks

    table = rois[list(_NEEDED)].reset_coords(drop=True)
    # Variables opened lazily but not on dask become dask arrays here, so that no block is read before its
    # turn.
    table = table.chunk(frame=tuple(b.stop - b.start for b in blocks), roi=-1)
    level = [
        dask.delayed(grow_leaf)(*(table[name].data[b] for name in _NEEDED), scale[b], b.start) for b in blocks
    ]
    while len(level) > 1:
        groups = [level[k : k + split_every] for k in range(0, len(level), split_every)]
        level = [dask.delayed(grow_branch)(group) for group in groups]
    return level[0].compute()


def _blocks(rois: xr.Dataset, frames_per_block: int | None) -> list[slice]:
    """Consecutive blocks of frames: as asked for, else as chunked, else of 32."""
    frames = rois.sizes["frame"]
    chunks = rois["roi_position"].variable.chunksizes.get("frame")
    if frames_per_block is not None or not chunks:
        step = frames_per_block or _BLOCK
        return [slice(a, min(a + step, frames)) for a in range(0, max(frames, 1), step)]
    ends = np.cumsum(chunks).tolist()
    return [slice(b - n, b) for n, b in zip(chunks, ends, strict=True)]


def _scale(rois: xr.Dataset) -> np.ndarray:
    """Pixel size of every frame over the reference pixel size: (frame,)."""
    magnification = rois.attrs.get("magnification", "constant")
    if magnification != "constant":
        for holder, name in ((rois.coords, "energy"), (rois.attrs, "frame_shape")):
            if name not in holder:
                msg = f"rois has magnification {magnification!r} but no {name}; need both to undo it."
                raise ValueError(msg)
    energy = rois["energy"].values if "energy" in rois.coords else np.zeros(rois.sizes["frame"])
    return pixel_scale(energy, magnification, rois.attrs.get("pixel_size_energy_ev"))


def _frames_per_scan(rois: xr.Dataset) -> int:
    """Count the frames of the longest scan; all frames where scans are not known."""
    if "scan" not in rois.coords or not rois.sizes["frame"]:
        return rois.sizes["frame"]
    return int(np.unique(rois["scan"].values, return_counts=True)[1].max())


def _check_numbers(
    *, max_gap: int, split_every: int, frames_per_block: int | None, reach: float, min_sightings: int | None
) -> None:
    """Refuse settings that make no sense."""
    check_number("max_gap", max_gap, "a number of frames, 0 or more", least=0, whole=True)
    check_number("split_every", split_every, "2 or more blocks per task", least=2, whole=True)
    check_number("reach", reach, "a positive number of particle diameters", least=POSITIVE)
    if frames_per_block is not None:
        check_number("frames_per_block", frames_per_block, "1 or more", least=1, whole=True)
    if min_sightings is not None:
        check_number("min_sightings", min_sightings, "a number of frames, 1 or more", least=1, whole=True)
