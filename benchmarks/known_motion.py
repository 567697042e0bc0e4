"""Tracks of real particles whose motion is known: a measured frame, warped by a known field and exposed again.

    python benchmarks/known_motion.py SOURCE FOLDER [--energy 8354] [--energies 60] [--counts 9000] [--window Y X N N]
                                      [--seed 0] [--whole]

SOURCE is what `xreg ingest` reads, or a raw store. The optical density of its first good frame at the energy nearest to
--energy is divided into two layers. What stands out (Otsu's threshold, with a rim) is particles; under them the
background is continued smoothly from beside. The layers' sum is the measured picture. The background moves with the
stage. The particles move with the stage and a smooth field besides, and are a little deformed by it: sine waves no
shorter than twice the frame, so that a particle's centre of mass moves as the field at its centre. That one picture
shows both is why this division is needed: which matter belongs to the substrate cannot be seen where a particle covers
it. Clusters move as the field at every pixel of theirs. With --whole nothing is divided: all of the picture moves as
the field, and there is no background that moves with the stage alone.

Before the warp the picture is smoothed by a Gaussian of 1.2 px. Else the measured frame's own photon noise, the same in
every frame, would be a texture that moves along and makes the tracks better than they can be.

Over the energies the particles' layer follows the Ni K-edge spectra of `xreg.synthetic`, more oxidised from left to
right, scaled to what it is at the measured energy; the background falls as the absorption before the edge does. Frames
and open-beam references (two for each energy) are exposed with the measured illumination and Poisson noise, written to
FOLDER/raw.zarr and registered by `xreg.register`. Stores that are there already are used.

`pull` is the slope of the errors before the edge over the particle's own motion (see `_pull`): 0 if nothing of the
particle has been taken for background.

A particle's true path is that of the point of the layer which is its centre in its first sighting, the layer being that
in which its outline stands out more: small and faint ones are left in the background. Errors are lengths less a
constant offset (median over frames). A particle is lost in a frame if it has no position there, or one farther away
than 5 px, although its window (as large as its outline) lies inside the frame.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # dask brings the threads; BLAS must not add its own

import dask
import numpy as np
import xarray as xr
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_objects

import xreg
from xreg import chunks, record, store
from xreg.evaluation import PRE_EDGE_MARGIN_EV
from xreg.kernels import scoring
from xreg.plainly import folder_type, number, plain_errors
from xreg.synthetic import edge_spectrum, ni_energies
from xreg.synthetic.spectra import NI_K_EDGE, pre_edge_absorption

SMOOTHING_PX = 1.2
RIM_PX = 20
LOST_PX = 5.0
GOALS = {"particles in every frame": 6, "rms": 0.20, "lost": 0}


@dataclass(frozen=True)
class Motion:
    """Stage (frame, 2) and the waves of the field: amplitudes, wave vectors and phases."""

    stage: np.ndarray
    amplitude: np.ndarray       # (wave, frame, 2) px
    vector: np.ndarray          # (wave, 2) per px
    phase: np.ndarray           # (wave, 2)

    @classmethod
    def draw(cls, frames: int, shape: tuple[int, int], seed: int, size: float = 0.001) -> "Motion":
        """Draw a stage that shakes, walks and jumps once, and a field that comes and goes smoothly.

        `size` is the waves' amplitude over the frame's longer side, so that the strain is the same in every frame.
        """
        rng = np.random.default_rng(seed)
        stage = np.cumsum(0.12 * rng.standard_normal((frames, 2)), axis=0) + 0.5 * rng.standard_normal((frames, 2))
        stage[frames // 2 :] += rng.uniform(-6, 6, 2)
        time = np.linspace(0, 1, frames)[None, :, None]
        turn, start = rng.uniform(0.5, 1.5, (3, 1, 2)), rng.uniform(0, 2 * np.pi, (3, 1, 2))
        amplitude = size * max(shape) * (np.sin(2 * np.pi * turn * time + start) - np.sin(start))
        direction = rng.uniform(0, 2 * np.pi, 3)
        vector = np.stack([np.sin(direction), np.cos(direction)], axis=1) * np.pi / max(shape)
        return cls(stage - stage[0], amplitude, vector, rng.uniform(0, 2 * np.pi, (3, 2)))

    def field(self, frame: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Motion against the stage (2, ...) of the matter at (y, x) of the measured picture."""
        moved = np.zeros((2, *np.shape(y)))
        for amplitude, vector, phase in zip(self.amplitude[:, frame], self.vector, self.phase, strict=True):
            along = vector[0] * y + vector[1] * x
            moved += [a * np.sin(along + p) for a, p in zip(amplitude, phase, strict=True)]
        return moved

    def origin(self, frame: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Where in the measured picture the matter comes from that a frame shows at (y, x), (2, ...)."""
        here = np.stack([y, x]) - self.stage[frame].reshape(2, *[1] * np.ndim(y))
        found = here
        for _ in range(6):  # a field that changes by 1 % of a length gains two digits with every turn
            found = here - self.field(frame, *found)
        return found

    def path(self, place: np.ndarray) -> np.ndarray:
        """Where the matter at `place` (y, x) of the measured picture is in every frame, (frame, 2)."""
        return np.array([place + self.stage[k] + self.field(k, *place) for k in range(len(self.stage))])


class Scene:
    """The measured picture as two layers, and what a detector sees of it in motion and at other energies."""

    def __init__(self, density: np.ndarray, beam: np.ndarray, measured_ev: float, corner: tuple[int, int],
                 shape: tuple[int, int], motion: Motion, energies: np.ndarray, counts: float, seed: int,
                 still: bool = True) -> None:
        self.corner, self.shape, self.motion = np.array(corner), shape, motion
        self.energies, self.counts, self.seed, self.measured_ev, self.still = energies, counts, seed, measured_ev, still
        rows, columns = (slice(c, c + n) for c, n in zip(corner, shape, strict=True))
        self.beam = beam[rows, columns] / beam[rows, columns].mean()
        background, particles = divide(density)
        self.background, self.particles = (ndimage.spline_filter(p) for p in (background, particles))
        self.width = density.shape[1]

    def optical_density(self, frame: int) -> np.ndarray:
        """Noise-free optical density of a frame, (y, x)."""
        energy = self.energies[frame]
        y, x = np.meshgrid(*(np.arange(n, dtype=float) + c for n, c in zip(self.shape, self.corner, strict=True)),
                           indexing="ij")
        source = self.motion.origin(frame, y, x)
        still = np.stack([y, x]) - self.motion.stage[frame][:, None, None] if self.still else source
        oxidised = np.clip(source[1] / self.width, 0, 1)
        gain = _absorption(energy, oxidised) / _absorption(self.measured_ev, oxidised)
        fall = pre_edge_absorption(energy) / pre_edge_absorption(self.measured_ev)
        behind = ndimage.map_coordinates(self.background, still, order=3, prefilter=False, mode="nearest")
        front = ndimage.map_coordinates(self.particles, source, order=3, prefilter=False, mode="nearest")
        return fall * behind + gain * front

    def is_substrate(self, place: np.ndarray, outline: np.ndarray) -> bool:
        """Whether what an outline about a place of the measured picture holds is in the background's layer."""
        grid = np.mgrid[tuple(slice(-(n // 2), n // 2 + 1) for n in outline.shape)] + place.reshape(2, 1, 1)
        ring = ndimage.binary_dilation(outline, iterations=6) & ~ndimage.binary_dilation(outline, iterations=2)
        drawn = (ndimage.map_coordinates(layer, grid, order=3, prefilter=False, mode="nearest")
                 for layer in (self.background, self.particles))
        behind, front = (layer[outline].mean() - np.median(layer[ring]) for layer in drawn)
        return bool(behind > front)

    def exposed(self, frame: int) -> np.ndarray:
        """Counts of the sample, (y, x) uint16."""
        return self._poisson(self.beam * np.exp(-self.optical_density(frame)), 0, frame)

    def flat(self, index: int) -> np.ndarray:
        """Counts of an open-beam reference, (y, x) uint16."""
        return self._poisson(0.6 * self.beam, 1, index)

    def _poisson(self, expected: np.ndarray, kind: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, kind, index])
        return np.minimum(rng.poisson(self.counts * expected), 65535).astype(np.uint16)


def _absorption(energy: float, oxidised: np.ndarray) -> np.ndarray:
    """Absorption of a particle in units of its edge step."""
    ends = [float(edge_spectrum(energy, o)) for o in (False, True)]
    return pre_edge_absorption(energy) + ends[0] + oxidised * (ends[1] - ends[0])


def divide(density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background and particles, whose sum is the optical density smoothed and with its gaps filled."""
    valid = np.isfinite(density)
    smooth = _blurred(np.where(valid, density, 0.0), valid, SMOOTHING_PX)
    smooth = np.where(valid, smooth, _continued(smooth, valid))
    broad = ndimage.gaussian_filter(smooth, 3)
    # The faintest particles absorb a fraction of what the thickest do; a second threshold finds them among the rest.
    low = threshold_otsu(broad[broad < threshold_otsu(broad)])
    found = remove_small_objects(broad > low, max_size=150)
    found = ndimage.binary_dilation(ndimage.binary_fill_holes(found), iterations=RIM_PX)
    background = _continued(smooth, ~found)
    share = ndimage.gaussian_filter(ndimage.binary_erosion(found, iterations=2).astype(float), 1.5)
    particles = share * (smooth - background)
    return smooth - particles, particles


def _blurred(picture: np.ndarray, known: np.ndarray, width: float) -> np.ndarray:
    """Gaussian mean of the known pixels; NaN where none is near."""
    weight = ndimage.gaussian_filter(known.astype(float), width)
    total = ndimage.gaussian_filter(np.where(known, picture, 0.0), width)
    return np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), np.nan)


def _continued(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The picture where it is known; elsewhere the mean of what is known nearby, as near as there is anything."""
    filled, width = np.where(known, picture, np.nan), 8.0
    while not np.isfinite(filled).all():
        filled = np.where(np.isfinite(filled), filled, _blurred(picture, known, width))
        width *= 2
    return filled


def write_raw(scene: Scene, raw: Path) -> None:
    """Write the raw store of a scene."""
    n = len(scene.energies)
    table = xr.Dataset(
        {"exposure": ("frame", np.full(n, 0.5)), "flat_exposure": ("flat", np.full(2 * n, 0.3)),
         "flat_energy": ("flat", np.repeat(scene.energies, 2))},
        coords={"energy": ("frame", scene.energies), "scan": ("frame", np.zeros(n, int)),
                "time": ("frame", 4.0 * np.arange(n))},
        attrs={"element": "Ni", "edge": "K", "magnification": "constant", "pixel_size_energy_ev": NI_K_EDGE})
    record.clear(raw)
    part = store.begin(raw, table.attrs)
    length = chunks.block_length(n, int(np.prod(scene.shape)), scan_length=n)
    store.create_raw(part, table, {"counts": (n, *scene.shape), "flats": (2 * n, *scene.shape)}, np.uint16, length)
    for name, size, make in (("counts", n, scene.exposed), ("flats", 2 * n, scene.flat)):
        for block in chunks.frame_blocks(size, length):
            pictures = [make(k) for k in range(block.start, block.stop)]
            store.write_block(part, name, (block.start, 0, 0), np.stack(pictures))
    store.finish(raw)


def measured(source: Path, folder: Path, energy: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Optical density, mean open beam and energy of the measured frame that is used."""
    if not store.is_group(source):
        place = folder / "measured.zarr"
        if not place.exists():
            record.ingest(source, place)
        source = place
    frames = xreg.open_frames(source)
    good = np.flatnonzero(frames["frame_status"].values == 0) if "frame_status" in frames else np.arange(
        frames.sizes["frame"])
    chosen = good[np.argmin(np.abs(frames["energy"].values[good] - energy))]
    density = xreg.normalize_frames(frames)["optical_density"][chosen].values.astype(np.float64)
    return density, frames["flats"].mean("flat").values, float(frames["energy"].values[chosen])


def score(result: xr.Dataset, scene: Scene) -> list[dict]:
    """Errors of every track against the field."""
    before = scene.energies < NI_K_EDGE - PRE_EDGE_MARGIN_EV
    rows = []
    for p in range(result.sizes["particle"]):
        track = result["position"].values[p]
        first = int(np.isfinite(track).all(-1).argmax())
        place = scene.motion.origin(first, *(track[first] + scene.corner))
        outline = result["contour"].values[p]
        substrate = scene.still and scene.is_substrate(place, outline)
        path = (place + scene.motion.stage if substrate else scene.motion.path(place)) - scene.corner
        reach = np.sqrt(outline.sum() / np.pi)
        inside = ((path >= reach) & (path <= np.array(scene.shape) - 1 - reach)).all(-1)
        difference = track - path
        error = np.linalg.norm(difference - scoring.constant_offset(difference), axis=-1)
        own = path - place + scene.corner - scene.motion.stage
        missing = ~(error <= LOST_PX)
        rows.append({"particle": p, "y": track[first, 0], "x": track[first, 1], "radius": reach,
                     "seen": float(np.isfinite(error).mean()), "whole": bool(inside.all()), "substrate": substrate,
                     "lost": int((missing & inside).sum()), "rms": scoring.rms(error),
                     "pre_edge": scoring.rms(error[before]), "pull": _pull(difference, own, before),
                     "ratio": scoring.robust_sigma((difference - scoring.constant_offset(difference))
                                                   / result["position_sigma"].values[p])})
    return rows


def _pull(difference: np.ndarray, own: np.ndarray, before: np.ndarray) -> float:
    """Slope of the pre-edge errors over the motion against the stage, both less their median after the edge.

    -1 for a track that follows the stage, 0 for one that follows the particle, positive for one that is driven away
    from the stage, as it is when some of the particle has been taken for background; NaN for what moves with the stage.
    """
    error, moved = (v[before] - np.nanmedian(v[~before], axis=0) for v in (difference, own))
    known = np.isfinite(error).all(-1)
    square = (moved[known] ** 2).sum()
    return float((error * moved)[known].sum() / square) if square > 1e-6 else np.nan


def report(rows: list[dict], result: xr.Dataset, scene: Scene) -> dict[str, float]:
    """Print the table and the goals; return what was reached."""
    print(f"{'particle':>8s}{'y':>7s}{'x':>7s}{'radius':>8s}{'seen':>8s}{'lost':>6s}{'RMS':>9s}{'pre-edge':>10s}"
          f"{'pull':>8s}{'error/sigma':>13s}")
    for r in rows:
        mark = "  of the background" if r["substrate"] else ""
        mark += "" if r["whole"] else "  cut by the frame in some frames"
        numbers = "".join(f"{np.nan if r[k] is None else r[k]:{w}.3f}" for k, w in
                          (("rms", 9), ("pre_edge", 10), ("pull", 8), ("ratio", 13)))
        print(f"{r['particle']:8d}{r['y']:7.0f}{r['x']:7.0f}{r['radius']:8.1f}{r['seen']:8.1%}{r['lost']:6d}{numbers}"
              + mark)
    whole = [r for r in rows if r["whole"]]
    squares = [r["rms"] ** 2 for r in whole if r["rms"] is not None]
    rigid = result["rigid"].values - scene.motion.stage
    reached = {"particles in every frame": sum(r["seen"] == 1 and not r["lost"] for r in rows),
               "rms": float(np.sqrt(np.mean(squares))) if squares else np.nan,
               "lost": sum(r["lost"] for r in whole)}
    print(f"\nrigid motion against the stage's: {_length(rigid):.3f} px RMS")
    print(f"{'particles that are whole in all frames':50s}{len(whole):8d}")
    for name, value in reached.items():
        met = value >= GOALS[name] if name.startswith("particles") else value <= GOALS[name]
        sign = ">=" if name.startswith("particles") else "<="
        words = {"rms": "position error, RMS, px", "lost": "positions lost"}.get(name, name)
        print(f"{words:50s}{value:8.3g}   goal {sign} {GOALS[name]:g}: {'met' if met else 'NOT MET'}")
    return reached


def _length(difference: np.ndarray) -> float:
    value = scoring.rms(np.linalg.norm(difference - scoring.constant_offset(difference), axis=-1))
    return np.nan if value is None else value


def main(source: Path, folder: Path, *, energy: float = 8354.0, energies: int = 60, counts: float = 9000.0,
         window: tuple[int, int, int, int] | None = None, seed: int = 0, still: bool = True) -> dict[str, float]:
    """Make, register and score; `window` is (y, x, height, width) of the measured frame."""
    density, beam, measured_ev = measured(source, folder, energy)
    folder.mkdir(parents=True, exist_ok=True)
    margin = 32  # what the motion brings into view has been measured, too
    window = window or (margin, margin, density.shape[0] - 2 * margin, density.shape[1] - 2 * margin)
    if min(window) < 0 or any(size < 1 or first + size > n for first, size, n in
                              zip(window[:2], window[2:], density.shape, strict=True)):
        msg = (f"the window {' '.join(map(str, window))} is not within the measured frame, which has "
               f"{density.shape[0]}x{density.shape[1]} pixels; need Y X HEIGHT WIDTH of a part of it.")
        raise ValueError(msg)
    motion = Motion.draw(energies, density.shape, seed)
    scene = Scene(density, beam, measured_ev, window[:2], window[2:], motion, ni_energies(energies), counts, seed,
                  still)
    raw, out = folder / "raw.zarr", folder / "result.zarr"
    if not raw.exists():
        write_raw(scene, raw)
    with dask.config.set(scheduler="threads", num_workers=len(os.sched_getaffinity(0))):
        result = xreg.open_result(out) if out.exists() else xreg.register(raw, out, lazy=True)
    moved = [np.linalg.norm(p, axis=-1).max() for p in (motion.stage, motion.field(energies - 1, *np.mgrid[
        0:density.shape[0]:64, 0:density.shape[1]:64]).T)]
    print(f"{energies} energies, {window[2]}x{window[3]} pixels, {counts:g} counts; the stage moves by up to "
          f"{moved[0]:.1f} px, the field has up to {moved[1]:.1f} px in the last frame\n")
    return report(score(result, scene), result, scene)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=folder_type)
    parser.add_argument("--energy", type=number(float, 100), default=8354.0, help="eV")
    parser.add_argument("--energies", type=number(int, 1), default=60)
    parser.add_argument("--counts", type=number(float, 1, 65535), default=9000.0)
    parser.add_argument("--window", type=int, nargs=4, metavar=("Y", "X", "HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--whole", dest="still", action="store_false",
                        help="the background moves as the field, too, so that no picture has to be divided")
    options = vars(parser.parse_args())
    with plain_errors():
        main(options.pop("source"), options.pop("folder"), **options)
