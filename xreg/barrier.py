"""The one barrier of a run: from the table of regions of all frames to tracks, outlines, motion and empty stacks.

Only here is the number of particles known, and with it the shape of everything that follows. Positions of all frames
are held at once, pictures of one block. It has two halves: `link_particles` follows the particles by their contours and
makes their templates; once all frames have been fitted to these, `measure_tracks` says how the particles moved.
"""

import dask.array as da
import numpy as np
import xarray as xr

from xreg import store
from xreg.kernels.geometry import pixel_scale
from xreg.schema import RESULT, FrameStatus, describe, flag_attrs
from xreg.tasks import COARSE, LOCATED, ROI_GROUP, Job, normalized_frame, save_templates

#: Variables of a result that linking gives; all others follow from the fitted positions.
_OF_LINKING = ("position", "similarity", "contour", "frame_status")
def link_particles(job: Job, settings: dict) -> None:
    """Link the regions, write tracks and outlines, make the templates that positions will be fitted to.

    Parameters
    ----------
    job : Job
        The run; its table of regions is complete.
    settings : dict
        Keyword arguments of `link_rois`.
    """
    from xreg.align import outline_particles
    from xreg.link import gather_tracks, link_rois
    from xreg.locate import TEMPLATE_BYTES, choose_template_frames, make_templates

    rois = open_rois(job)
    links = link_rois(rois, **settings)
    tracks = gather_tracks(rois, links)
    attrs, energy = rois.attrs, rois["energy"].values
    scale = pixel_scale(energy, attrs["magnification"], attrs.get("pixel_size_energy_ev"))
    contour = outline_particles(rois, links)
    tables = tracks.assign(
        contour=contour,
        scale=("frame", scale, {"units": "1", "long_name": "pixel size over that at pixel_size_energy_ev"}),
        frame_status=("frame", rois["frame_status"].values, flag_attrs(FrameStatus)),
        noise=rois["noise"], background=rois["background"],
    )
    tables.attrs = {**attrs, **tables.attrs, "half": contour.sizes["y"] // 2}
    store.write_tables(job.out, describe(tables, RESULT))

    shape = attrs["frame_shape"]
    most = max(TEMPLATE_BYTES // (4 * shape[0] * shape[1]), 1)
    chosen = choose_template_frames(tracks["contrast"].values, energy, most)
    frames = np.array([normalized_frame(job, k).optical_density for k in chosen]).reshape(-1, *shape)
    save_templates(job.out, make_templates(frames, tracks["position"].values[:, chosen], scale[chosen], contour.values))
    n = tables.sizes
    # The centres of mass are kept: positions are fitted from them whenever a run is taken up again.
    coarse = tracks["position"].drop_vars(list(tracks.coords))
    store.write_tables(f"{job.out}/{ROI_GROUP}", xr.Dataset({COARSE: coarse}))
    spec = store.Spec(RESULT["position"].dims, (n["particle"], n["frame"], 2), np.float64,
                      (max(n["particle"], 1), job.block, 2), np.nan)
    store.create_arrays(f"{job.out}/{ROI_GROUP}", {"located": spec})


def measure_tracks(job: Job, *, lazy: bool) -> None:
    """Take over the fitted positions, measure the motion, and create the stacks and maps that are to be filled.

    Parameters
    ----------
    job : Job
        The run; all blocks have been located, or have failed and keep their centres of mass.
    lazy : bool
        Whether the run stops here, so that no stacks are created.
    """
    from xreg.motion import measure_motion

    # Of an earlier measurement, before some block was done again, nothing is kept.
    stored = store.open_store(job.out)
    tables = stored.drop_vars([n for n in RESULT if n in stored and n not in _OF_LINKING]).load()
    located = store.read_block(job.out, LOCATED, ...)
    coarse = store.read_block(job.out, f"{ROI_GROUP}/{COARSE}", ...)
    tables["position"] = tables["position"].copy(data=np.where(np.isfinite(located), located, coarse))
    tables = tables.merge(measure_motion(tables), compat="override", join="exact")
    tables.attrs["lazy"] = lazy
    store.write_tables(job.out, describe(tables, RESULT))
    if not lazy:
        _create_stacks(job, tables)


def open_rois(job: Job) -> xr.Dataset:
    """The table of regions, lazily, as `link_rois` wants it."""
    rois = store.open_store(f"{job.out}/{ROI_GROUP}")
    return rois.set_coords([n for n in ("energy", "scan", "time", "frame") if n in rois.variables])


def _create_stacks(job: Job, tables: xr.Dataset) -> None:
    """Create `aligned` and the maps, empty, in the chunks in which they will be written."""
    from dataclasses import asdict

    from xreg.xanes import fit_edges

    n = {dim: tables.sizes[dim] for dim in ("particle", "frame", "y", "x")}
    grid = (1, job.block, n["y"], n["x"])
    shape = tuple(n[d] for d in RESULT["aligned"].dims)
    stack = xr.DataArray(da.zeros(shape, dtype=np.float32, chunks=(1, *shape[1:])), dims=RESULT["aligned"].dims,
                         coords={"energy": tables["energy"], "scan": tables["scan"]}, attrs=tables.attrs)
    maps = fit_edges(stack, tables["contour"].drop_vars(["y", "x"]), **asdict(job.fit))
    specs = {"aligned": store.Spec(stack.dims, shape, np.float32, grid, np.nan, RESULT["aligned"].attrs)}
    for name, example in maps.data_vars.items():
        fill = np.nan if example.dtype.kind == "f" else 0
        specs[str(name)] = store.Spec(example.dims, example.shape, example.dtype, (1, 1, n["y"], n["x"]), fill,
                                      example.attrs)
    store.create_arrays(job.out, specs)
