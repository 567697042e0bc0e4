"""Particles found, contours and centres, against the truth: the learned chain beside classical segmentation.

    python benchmarks/detection.py [--frames 100] [--noise 1,10,20,30] [--plain] [--elongation 3] [--detector FILE]
                                   [--refiner FILE] [--seed 777000000] [--real RAW]

Noise is the standard deviation of the transmission in the open beam, in per cent: 1 is 10,000 counts a pixel, 10 is
100, 20 is 25, 30 is 11. Every frame is another phantom (seeds that no training uses) at a random energy, with
background texture on, particles of 11 to 98 px radius, alone, touching and overlapping. Normalisation is taken to be
faultless: the true substrate is taken off. A particle is found where a contour shares at least half of the union with
it. A contour that lies mostly on no particle is an invention; any other without a particle of its own is a fragment.
The centre's Cramer-Rao bound is that of photon noise alone, computed from the noise-free frame with everything else
known.

With --plain, background without texture: what noise and blur alone leave of contours and centres. With --elongation,
every particle is so many times longer for its width.

With --real, a raw store of frames at two energies at least: which contours of the last energy have one at the first,
and how well their areas agree.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import xarray as xr
from scipy import ndimage, optimize
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from xreg.detect import detect_block
from xreg.kernels.background import background_noise
from xreg.models.weights import Weights
from xreg.plainly import number, plain_errors, several
from xreg.refine import refine_block
from xreg.synthetic import Phantom, ni_energies
from xreg.synthetic.spectra import pre_edge_absorption

SHAPE = (460, 460)
#: Of the first frame; trainings draw theirs from other ranges (`xreg.training`).
FIRST_SEED = 777_000_000
#: A region of less than this many px is no particle for the classical methods: a disc of 7 px radius.
SMALLEST = 154
#: Contours at two energies are the same particle's if their centres are nearer than this share of its radius.
_FARTHEST = 0.35


@dataclass
class Found:
    """What a method finds in one frame: a mask (H, W) and a centre (y, x in px) for each region."""

    masks: np.ndarray
    centres: np.ndarray


@dataclass
class Scene:
    """One frame with its truth. `counted` leaves out particles that the frame's border cuts."""

    density: np.ndarray
    noise: float
    masks: np.ndarray
    centres: np.ndarray
    counted: np.ndarray
    touching: np.ndarray
    bound: np.ndarray                                # px, Cramer-Rao bound of each centre, y and x together


@dataclass
class Tally:
    """What one method achieved over the frames of one noise level."""

    frames: int = 0
    seconds: float = 0.0
    isolated: list = field(default_factory=list)     # bool for each isolated particle: found
    touching: list = field(default_factory=list)
    overlap: list = field(default_factory=list)      # intersection over union of each particle that was found
    miss: list = field(default_factory=list)         # px, of the centres of the isolated ones
    bound: list = field(default_factory=list)        # px, of the same
    inventions: int = 0
    fragments: int = 0
    empty_frames: int = 0
    empty_inventions: int = 0


Method = Callable[[np.ndarray, float], Found]


def make_scene(seed: int, counts: float, empty: bool = False, plain: bool = False, elongation: float = 1.0) -> Scene:
    """Simulate one frame and its truth.

    `empty` leaves out the particles and makes background and corners worse, `plain` leaves out all texture, and all
    particles are longer by `elongation` than they were for their width.
    """
    rng = np.random.default_rng(seed)
    typical = np.exp(rng.uniform(np.log(16), np.log(70)))
    n = int(np.clip(0.16 * np.prod(SHAPE) / (np.pi * typical**2), 2, 14))
    settings = {"n_particles": n, "touching": max(n // 4, 1), "overlapping": n // 5, "cut": 1}
    if empty:
        settings = {"n_particles": 0, "illumination": rng.uniform(0, 2.5), "texture": rng.uniform(0.03, 0.08)}
    if plain:
        settings["texture"] = 0.0
    if elongation > 1:
        settings["elongation"] = (elongation, elongation)
    energy = float(rng.choice(ni_energies()))
    phantom = Phantom(shape=SHAPE, n_scans=1, energies=(energy,), radius=(0.7 * typical, 1.4 * typical), counts=counts,
                      facets=rng.uniform(0, 0.6), irregularity=rng.uniform(0.03, 0.15), jitter=0.0, deformation=0.0,
                      read_noise=0.0, hot_pixels=0.0, seed=seed, **settings)
    substrate = phantom.config.substrate * pre_edge_absorption(energy) / pre_edge_absorption(8333.0)
    density = phantom.noisy_optical_density(0) - np.float32(substrate)
    masks = np.zeros((len(phantom.particles), *SHAPE), bool)
    for mask, (window, share) in zip(masks, phantom.coverage(0), strict=True):
        mask[window] = share > 0.5
    near = np.array([ndimage.binary_dilation(m, iterations=3) for m in masks]).reshape(masks.shape)
    shared = _flat(near) @ _flat(masks).T > 0
    border = np.array([m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any() for m in masks], bool)
    bound = np.array([centre_bound(phantom, k) for k in range(len(masks))])
    return Scene(density, background_noise(density), masks, phantom.position(0), ~border, shared.sum(1) > 1, bound)


def _flat(masks: np.ndarray) -> np.ndarray:
    """Masks (n, H, W) as rows of float32, for products."""
    return masks.reshape(len(masks), int(np.prod(masks.shape[1:]))).astype(np.float32)


def centre_bound(phantom: Phantom, particle: int) -> float:
    """Cramer-Rao bound (px, y and x together) of one particle's centre in photon noise, everything else known."""
    alone = copy.copy(phantom)
    alone.particles = phantom.particles[particle:particle + 1]
    alone.own_motion = phantom.own_motion[particle:particle + 1]
    slopes = np.gradient(ndimage.gaussian_filter(alone.particle_density(0), phantom.config.blur))
    expected = phantom.transmission(0) * phantom.config.counts
    information = np.array([[(expected * a * b).sum() for a in slopes] for b in slopes])
    return float(np.sqrt(np.trace(np.linalg.inv(information))))


# -- methods ----------------------------------------------------------------------------------------------------------


def learned(density: np.ndarray, noise: float, *, detector: Weights | None, refiner: Weights | None) -> Found:
    """Detection and refinement as `xreg run` does them."""
    found = detect_block(density[None], weights=detector, device="cpu")
    records = refine_block(density[None], found, np.array([noise]), weights=refiner, device="cpu")[0]
    records = records[np.isfinite(records["roi_position"][:, 0])]
    masks = np.zeros((len(records), *density.shape), bool)
    for mask, record in zip(masks, records, strict=True):
        y, x, spacing = record["roi_window"]
        n = record["roi_contour"].shape[0]
        rows, columns = ((np.arange(size) - centre) / spacing + (n - 1) / 2
                         for size, centre in zip(density.shape, (y, x), strict=True))
        inside = [np.flatnonzero((p >= 0) & (p <= n - 1)) for p in (rows, columns)]
        places = np.meshgrid(rows[inside[0]], columns[inside[1]], indexing="ij")
        mask[np.ix_(*inside)] = ndimage.map_coordinates(record["roi_contour"].astype(np.float32), places, order=1) > 127
    return Found(masks, records["roi_position"])


def otsu_watershed(density: np.ndarray, noise: float) -> Found:
    """Otsu's threshold and a watershed on the distance to the background, as in scikit-image's gallery."""
    picture = np.nan_to_num(density)
    mask = picture > threshold_otsu(picture)
    distance = ndimage.distance_transform_edt(mask)
    tops = peak_local_max(distance, min_distance=10)
    markers = np.zeros(mask.shape, int)
    markers[tuple(tops.T)] = np.arange(1, len(tops) + 1)
    return _regions(watershed(-distance, markers, mask=mask))


def classical(density: np.ndarray, noise: float, *, sigmas: float = 4.0, depth: float = 0.25) -> Found:
    """A good classical segmentation: smoothed as the noise asks, split by shape, outlined one by one.

    Smoothing grows with noise; the threshold is so many deviations of the smoothed background above its median. The
    mask is split where the distance to its rim has maxima that stand out by a share of their height. Every region is
    then outlined anew where the picture falls to three tenths of the region's own median, since particles thin out to
    their rim, so that faint and strong particles in one frame each have a threshold of their own. The numbers were
    chosen among a few on other seeds of the same frames.
    """
    valid = np.isfinite(density)
    smoothing = float(np.clip(14 * noise, 1.0, 4.0))
    weight = np.maximum(ndimage.gaussian_filter(valid.astype(float), smoothing), 0.05)
    smooth = ndimage.gaussian_filter(np.where(valid, density, 0.0), smoothing) / weight
    level, deviation = _background(smooth[valid])
    mask = ndimage.binary_opening(valid & (smooth > level + sigmas * deviation), iterations=2)
    mask = ndimage.binary_fill_holes(mask)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.5)
    # Of the logarithm, so that a maximum must stand out by a share of its height.
    height = np.log(np.maximum(distance, 1.0))
    markers, _ = ndimage.label(h_maxima(height, depth) * mask, np.ones((3, 3)))
    labels = watershed(-distance, markers, mask=mask)
    for k, window in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[window] == k
        rim = level + (np.median(smooth[window][own]) - level) * 0.3
        labels[window][own & (smooth[window] < rim)] = 0
        pieces, n = ndimage.label(labels[window] == k)
        if n > 1:
            largest = 1 + np.argmax(np.bincount(pieces.ravel())[1:])
            labels[window][(pieces > 0) & (pieces != largest)] = 0
    return _regions(labels)


def _background(values: np.ndarray) -> tuple[float, float]:
    """Level and deviation of the background, from the values below the most frequent one, which no particle raises."""
    counts, edges = np.histogram(values, 256, range=np.percentile(values, [0.5, 90]))
    peak = int(np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 4)))
    level = (edges[peak] + edges[peak + 1]) / 2
    below = level - values[values < level]
    return float(level), float(1.4826 * np.median(below)) if below.size else 0.0


def _regions(labels: np.ndarray) -> Found:
    sizes = np.bincount(labels.ravel(), minlength=1)
    kept = [k for k in range(1, len(sizes)) if sizes[k] >= SMALLEST]
    masks = np.array([labels == k for k in kept]).reshape(-1, *labels.shape)
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, kept)).reshape(-1, 2)
    return Found(masks, centres)


# -- scores -----------------------------------------------------------------------------------------------------------


def overlaps(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of every found mask with every true one; share of each found mask on any true one."""
    a, b = _flat(found), _flat(truth)
    common, size = a @ b.T, a.sum(1)
    union = size[:, None] + b.sum(1) - common
    covered = a @ truth.any(0).ravel().astype(np.float32) / np.maximum(size, 1)
    return common / np.maximum(union, 1), covered


def score(tally: Tally, scene: Scene, found: Found) -> None:
    """Add one frame to a tally."""
    tally.frames += 1
    iou, covered = overlaps(found.masks, scene.masks)
    pairs = [(f, t) for f, t in zip(*optimize.linear_sum_assignment(-iou), strict=True) if iou[f, t] >= 0.5]
    owner = {t: f for f, t in pairs}
    for t in np.flatnonzero(scene.counted):
        (tally.touching if scene.touching[t] else tally.isolated).append(t in owner)
        if t in owner:
            tally.overlap.append(iou[owner[t], t])
            if not scene.touching[t]:
                tally.miss.append(np.hypot(*(found.centres[owner[t]] - scene.centres[t])))
                tally.bound.append(scene.bound[t])
    spare = np.setdiff1d(np.arange(len(found.masks)), [f for f, _ in pairs]).astype(int)
    tally.inventions += int((covered[spare] < 0.5).sum())
    tally.fragments += int((covered[spare] >= 0.5).sum())


def measure(
    methods: dict[str, Method], noise: float, frames: int, *, with_empty: bool = True, plain: bool = False,
    elongation: float = 1.0, first: int = FIRST_SEED,
) -> dict[str, Tally]:
    """Tally of each method over frames with particles, and as many without, at one noise level (per cent).

    `first` is the seed of the first frame.
    """
    tallies = {name: Tally() for name in methods}
    for seed in range(first, first + frames):
        for empty in (False, True) if with_empty else (False,):
            scene = make_scene(seed, 1e4 / noise**2, empty, plain, elongation)
            for name, method in methods.items():
                start = time.perf_counter()
                found = method(scene.density, scene.noise)
                tallies[name].seconds += time.perf_counter() - start
                if empty:
                    tallies[name].empty_frames += 1
                    tallies[name].empty_inventions += len(found.masks)
                else:
                    score(tallies[name], scene, found)
    return tallies


def summary(tally: Tally) -> dict[str, float]:
    """The rows of the table for one method at one noise level; NaN where there was nothing to measure."""
    def mean(values: list) -> float:
        return float(np.mean(values)) if values else float("nan")

    return {
        "found, isolated": mean(tally.isolated),
        "found, touching": mean(tally.touching),
        "inventions per frame": tally.inventions / max(tally.frames, 1),
        "inventions per empty frame": tally.empty_inventions / max(tally.empty_frames, 1),
        "fragments per frame": tally.fragments / max(tally.frames, 1),
        "contour IoU, median": float(np.median(tally.overlap)) if tally.overlap else float("nan"),
        "centre RMS (isolated), px": mean(np.square(tally.miss).tolist()) ** 0.5,
        "centre median (isolated), px": float(np.median(tally.miss)) if tally.miss else float("nan"),
        "3x Cramer-Rao bound, px": 3 * mean(np.square(tally.bound).tolist()) ** 0.5,
        "seconds per frame": tally.seconds / max(tally.frames + tally.empty_frames, 1),
    }


def open_energies(raw: str) -> xr.Dataset:
    """Normalised frames of a raw store, lazy; ValueError if it cannot be used or all are at one energy."""
    import xreg

    stack = xreg.normalize_frames(xreg.open_frames(raw))
    if np.ptp(stack["energy"].values) == 0:
        msg = f"all frames of {raw} are at {stack['energy'].values[0]:g} eV; need frames at two energies or more."
        raise ValueError(msg)
    return stack


def compare_energies(stack: xr.Dataset, methods: dict[str, Method]) -> dict[str, dict[str, float]]:
    """How many contours of the last energy have one at the first, and how well areas agree, by method."""
    energy = stack["energy"].values
    pair = [int(np.flatnonzero(energy == e)[0]) for e in (energy.min(), energy.max())]
    pictures = stack[["optical_density", "noise"]].isel(frame=pair).compute()
    scale = energy[pair[0]] / energy[pair[1]] if stack.attrs.get("magnification") == "proportional-to-energy" else 1.0
    density, noise = pictures["optical_density"].values, pictures["noise"].values
    return {name: _agreement(*(method(density[k], float(noise[k])) for k in (0, 1)), scale)
            for name, method in methods.items()}


def _agreement(first: Found, last: Found, scale: float) -> dict[str, float]:
    """Match contours of two frames by the shift that most of them share; `scale`: size in the first over the last."""
    middle = (np.array(first.masks.shape[1:]) - 1) / 2
    expected = middle + (last.centres - middle) * scale
    steps = (first.centres[None] - expected[:, None]).reshape(-1, 2)
    steps = steps[np.hypot(*steps.T) < 60]
    if not len(steps):
        return {"contours at the last energy": len(last.masks), "of these found at the first": 0}
    votes = np.array([(np.hypot(*(steps - s).T) < 8).sum() for s in steps])
    shift = np.median(steps[np.hypot(*(steps - steps[votes.argmax()]).T) < 8], axis=0)
    distance = np.linalg.norm(first.centres[None] - expected[:, None] - shift, axis=-1)
    sizes = [f.masks.sum((1, 2)) * s for f, s in ((first, 1.0), (last, scale**2))]
    # What is too far away is so by whatever distance, or a few without a mate would break up the pairs of others.
    cost = np.minimum(distance / np.sqrt(sizes[1] / np.pi)[:, None], _FARTHEST)
    pairs = [(a, b) for a, b in zip(*optimize.linear_sum_assignment(cost), strict=True) if cost[a, b] < _FARTHEST]
    cut = [(m[:, 0].any(1) | m[:, -1].any(1) | m[..., 0].any(1) | m[..., -1].any(1)) for m in (first.masks, last.masks)]
    ratio = np.array([abs(sizes[0][b] / sizes[1][a] - 1) for a, b in pairs if not (cut[1][a] or cut[0][b])])
    return {
        "contours at the last energy": len(last.masks),
        "contours at the first energy": len(first.masks),
        "of the last found at the first": len(pairs),
        "area difference, median": float(np.median(ratio)) if len(ratio) else float("nan"),
        "areas within 5 %": float((ratio < 0.05).mean()) if len(ratio) else float("nan"),
    }


def show(title: str, columns: dict[str, dict[str, float]]) -> None:
    """Print summaries side by side."""
    print(f"\n{title:32s}" + "".join(f"{name:>18s}" for name in columns))
    for row in next(iter(columns.values())):
        values = [column.get(row, float("nan")) for column in columns.values()]
        print(f"{row:32s}" + "".join(f"{value:18.3f}" for value in values), flush=True)


def main(frames: int = 100, noise: tuple[float, ...] = (1, 10, 20, 30), detector: str | None = None,
         refiner: str | None = None, real: str | None = None, plain: bool = False, elongation: float = 1.0,
         seed: int = FIRST_SEED) -> dict[float, dict[str, dict[str, float]]]:
    """Print the tables; returns the summaries by noise level and method."""
    ours = partial(learned, detector=Weights.of(detector, "detector") if detector else None,
                   refiner=Weights.of(refiner, "refiner") if refiner else None)
    measured = open_energies(real) if real else None
    methods = {"learned": ours, "Otsu + watershed": otsu_watershed, "best classical": classical}
    table = {}
    for level in noise:
        tallies = measure(methods, level, frames, plain=plain, elongation=elongation, first=seed)
        table[level] = {name: summary(tally) for name, tally in tallies.items()}
        special = ", no texture" * plain + f", drawn out {elongation:g}" * (elongation > 1)
        show(f"noise {level:g} %, {frames} + {frames} frames{special}", table[level])
    if measured is not None:
        show("two energies", compare_energies(measured, methods))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=number(int, 1), default=100,
                        help="with particles, and as many without, per noise level")
    # Less noise takes more counts than the simulated detector counts to.
    parser.add_argument("--noise", type=several(number(float, 0.4, 100)), default="1,10,20,30",
                        help="per cent, separated by commas")
    parser.add_argument("--plain", action="store_true", help="background without texture")
    parser.add_argument("--elongation", type=number(float, 1), default=1.0,
                        help="times that particles are longer for their width")
    parser.add_argument("--detector", help="weights that `xreg train detect` wrote; the shipped ones by default")
    parser.add_argument("--refiner", help="weights that `xreg train refine` wrote; the shipped ones by default")
    parser.add_argument("--seed", type=number(int, 0), default=FIRST_SEED, help="of the first frame")
    parser.add_argument("--real", metavar="RAW", help="raw store of frames at two energies or more")
    options = parser.parse_args()
    with plain_errors():
        main(**vars(options))
