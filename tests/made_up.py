"""A made-up series with its result and truth, drawn directly: no stage of xreg has touched it."""

import numpy as np
import xarray as xr


def _edge_function(energy, edge):
    return 0.28 + 0.65 / (1 + np.exp(-(energy - edge) / 2.0))


def made_up(
    particles=4, energies=24, scans=2, shape=(200, 220), half=22, radius=(9, 16), noise=0.05, seed=0
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Raw optical density, result and truth of round particles with a core-shell edge.

    Positions of the result are those of the truth plus `noise` px in each axis and a constant offset.
    """
    rng = np.random.default_rng(seed)
    grid = np.concatenate([np.linspace(8250, 8325, energies // 4), np.linspace(8330, 8380, energies // 2),
                           np.linspace(8400, 8690, energies - energies // 4 - energies // 2)])
    energy, scan = np.tile(grid, scans), np.repeat(np.arange(scans), energies)
    frames = energy.size
    columns = int(np.ceil(np.sqrt(particles)))
    place = np.array([divmod(k, columns) for k in range(particles)])
    home = (place + 0.5) * np.array(shape) / columns + rng.uniform(-4, 4, (particles, 2))
    size = rng.uniform(*radius, particles)
    jitter = np.cumsum(rng.normal(0, 0.15, (frames, 2)), axis=0) + rng.normal(0, 0.3, (frames, 2))
    rate = rng.normal(0, 3.0, (particles, 1, 2))
    phase = np.linspace(0, 1, frames)[None, :, None]
    nonrigid = rate * phase + rng.normal(0, 1, (particles, 1, 2)) * np.sin(2 * np.pi * phase)
    position = home[:, None] + jitter + nonrigid
    offsets = np.arange(-half, half + 1)
    distance = np.hypot(offsets[:, None], offsets[None, :])
    contour = distance[None] < size[:, None, None]
    shell = np.where(contour, distance[None] / size[:, None, None], np.nan)
    edge = 8342.0 + 2.0 * np.arange(scans)[None, :, None, None] / max(scans - 1, 1) + 1.5 * shell[:, None]
    thickness = np.where(contour, np.sqrt(np.clip(1 - shell**2, 0, None)), 0.0)

    coords = {"energy": ("frame", energy, {"units": "eV"}), "scan": ("frame", scan), "axis": ["y", "x"],
              "y": offsets.astype(float), "x": offsets.astype(float)}
    attrs = {"element": "Ni", "edge": "K", "pixel_size_nm": 31.2, "pixel_size_energy_ev": 8333.0,
             "magnification": "constant", "frame_shape": list(shape)}
    status = np.zeros(frames, int)
    truth = xr.Dataset(
        {"position": (("particle", "frame", "axis"), position), "rigid": (("frame", "axis"), jitter),
         "nonrigid": (("particle", "frame", "axis"), nonrigid), "contour": (("particle", "y", "x"), contour),
         "edge_energy": (("particle", "scan", "y", "x"), edge, {"definition": "half_step"}),
         "radius": ("particle", size), "frame_status": ("frame", status)},
        coords=coords, attrs=attrs)
    truth = truth.drop_vars("axis").assign_coords(axis=np.array(["y", "x"], dtype=object))

    own = position + rng.normal(0, noise, position.shape) + rng.uniform(-0.3, 0.3, (particles, 1, 2))
    displacement = own - own[:, :1]
    velocity = np.gradient(displacement, axis=1)
    steps = np.linalg.norm(np.diff(displacement, axis=1), axis=-1)
    spectrum = _edge_function(energy[None, :, None, None], edge[:, scan])
    aligned = np.where(contour[:, None], thickness[:, None] * spectrum, 0.0)
    aligned = (aligned + rng.normal(0, 0.02, aligned.shape)).astype(np.float32)
    fitted = edge + rng.normal(0, 0.1, edge.shape)
    vector = ("particle", "frame", "axis")
    result = truth[["rigid", "nonrigid", "contour", "frame_status"]].assign(
        position=(vector, own), position_sigma=(vector, np.full(own.shape, noise)),
        similarity=(("particle", "frame"), rng.uniform(0.9, 1, (particles, frames))),
        displacement=(vector, displacement), velocity=(vector, velocity),
        acceleration=(vector, np.gradient(velocity, axis=1)),
        distance=(("particle", "frame"), np.pad(np.cumsum(steps, 1), ((0, 0), (1, 0)))),
        aligned=(("particle", "frame", "y", "x"), aligned),
        edge_energy=(("particle", "scan", "y", "x"), fitted, {"definition": "half_step", "units": "eV"}),
        edge_energy_sigma=(("particle", "scan", "y", "x"), np.where(np.isfinite(edge), 0.1, np.nan)),
        fit_status=(("particle", "scan", "y", "x"), np.where(np.isfinite(edge), 0, 1)))
    result.attrs.update(attrs)
    return _frames(result, position, thickness, edge, shape, rng), result, truth


def _frames(result, position, thickness, edge, shape, rng) -> xr.Dataset:
    """Paint the frames: every particle at its whole pixel, the last one in front."""
    half = thickness.shape[-1] // 2
    energy, scan = result["energy"].values, result["scan"].values
    stack = rng.normal(0, 0.03, (energy.size, *shape)).astype(np.float32)
    for k in range(energy.size):
        for p in range(len(position)):
            top, left = np.rint(position[p, k]).astype(int) - half
            rows, columns = slice(max(top, 0), top + 2 * half + 1), slice(max(left, 0), left + 2 * half + 1)
            mass = np.nan_to_num(thickness[p] * _edge_function(energy[k], edge[p, scan[k]]))
            target = stack[k, rows, columns]
            target += mass[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return xr.Dataset({"optical_density": (("frame", "y", "x"), stack)},
                      coords={"energy": result["energy"], "scan": result["scan"]}, attrs=result.attrs)
