"""From detector counts to optical density above the background, frame by frame.

For every frame: counts and open-beam references, each less the dark and per second, are divided; the logarithm is
taken; a grain of the illumination that has moved is put right; hot and dead pixels are filled from their neighbours;
what is not usefully lit becomes NaN; the open background's offset, tilt and wandering illumination are taken off. What
is common to all frames (masks, dark, which references belong to which frame) comes from one small `survey`; after that
a frame's result depends on nothing but that frame.

`check` says whether a dataset can be normalised, `survey` looks at a little of it, `blocks` does the arithmetic on
whole frames in memory, and `lazy` hands it to dask.
"""

from xreg.kernels.references import FlatChoice
from xreg.normalize.blocks import Reference, average_flats, level_block, normalize_block
from xreg.normalize.check import check_raw, given_status
from xreg.normalize.lazy import normalize_frames
from xreg.normalize.survey import Illumination, survey

__all__ = [
    "FlatChoice",
    "Illumination",
    "Reference",
    "average_flats",
    "check_raw",
    "given_status",
    "level_block",
    "normalize_block",
    "normalize_frames",
    "survey",
]
