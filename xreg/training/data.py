"""What the networks are trained on: frames over the whole range of difficulty, and clean particle pictures.

Nothing is annotated by hand. Domain A is frames, simulated over a wide range of everything that differs between
beamlines (`random_config`), or a user's own. Domain B is drawn from a shape prior, the outlines of other phantoms.
"""

import numpy as np
from scipy import ndimage

from xreg.kernels.resample import sample_window
from xreg.kernels.rois import region_pictures, region_windows, split_regions
from xreg.schema import CONTOUR_SIZE
from xreg.synthetic import Phantom, PhantomConfig, ni_energies

#: Side of the simulated training frames, px.
FRAME_SIDE = 432
#: Value of a clean picture at the rim of a particle; it rises to 1 at the middle.
RIM = 0.3


def random_config(rng: np.random.Generator) -> PhantomConfig:
    """Settings of one random single-frame phantom: sizes, density, contrast, noise, background, optics, all at random."""
    typical = np.exp(rng.uniform(np.log(12), np.log(140)))
    spread = rng.uniform(0.15, 0.9) if rng.random() < 0.5 else rng.uniform(0.6, 0.9)
    radius = np.clip([typical * spread, typical * rng.uniform(1.05, 1.6)], 11, 165)
    cover = rng.uniform(0, 0.45) * FRAME_SIDE**2
    n = int(np.clip(rng.poisson(cover / (np.pi * radius.mean() ** 2)), 0, 60))
    strong = np.exp(rng.uniform(np.log(0.12), np.log(1.6)))
    weak = strong / rng.uniform(1, 4)
    # Half of the frames are before the edge, where contrast is a third.
    energy = rng.choice(ni_energies()) if rng.random() < 0.6 else rng.uniform(8200, 8335)
    faintest = weak * (0.45 if energy < 8340 else 1.4)
    counts = np.exp(rng.uniform(np.log(400), np.log(40000)))
    if rng.random() < 0.25:
        counts = np.exp(rng.uniform(np.log(10), np.log(400)))
    share = rng.dirichlet([3, 1, 1, 1])
    return PhantomConfig(
        shape=(FRAME_SIDE, FRAME_SIDE), n_scans=1, energies=(float(energy),), n_particles=n, radius=tuple(radius),
        edge_step=(weak, strong), irregularity=rng.uniform(0.02, 0.2), facets=rng.uniform(0, 0.8),
        profile=tuple(np.sort(rng.uniform(0.08, 0.9, 2))), inner_texture=rng.uniform(0, 0.25),
        touching=int(n * share[1]), overlapping=int(n * share[2]), cut=int(n * share[3]), counts=counts,
        texture=min(rng.uniform(0, 0.1), rng.uniform(0.05, 0.5) * faintest), crackle=rng.uniform(0, 0.08),
        illumination=rng.uniform(0, 2.5), blur=rng.uniform(0.4, 1.8), fringe=max(rng.uniform(-0.4, 0.6), 0.0),
        substrate=rng.uniform(0, 0.8), deformation=1.0, jitter=0.0, hot_pixels=0.0, read_noise=rng.uniform(0, 4),
        seed=int(rng.integers(2**31)),
    )


def simulate_frame(rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """One random frame's optical density (H, W) with what normalisation leaves behind, and its particles' coverage."""
    phantom = Phantom(random_config(rng))
    density = phantom.noisy_optical_density(0)
    density -= np.float32(phantom.config.substrate)
    density += _leftovers(phantom.config, rng)
    lit = _lit_field(density.shape, rng)
    density = np.where(lit, density, np.nan).astype(np.float32)
    return density, [(window, share * lit[window]) for window, share in phantom.coverage(0)]


def _leftovers(config: PhantomConfig, rng: np.random.Generator) -> np.ndarray:
    """What is left in a normalised frame: offset, tilt, bow, ghosts of the crackle pattern, specks of dirt."""
    side = config.shape[0]
    y, x = np.mgrid[-1:1:side * 1j, -1:1:side * 1j].astype(np.float32)
    size = 0.04 * rng.random()
    bow = sum(size * rng.standard_normal() * term for term in (1, y, x, y * x, y * y - 0.33, x * x - 0.33))
    if rng.random() < 0.3:
        # A dim corner divides badly.
        bow = bow + rng.uniform(-0.1, 0.2) * np.hypot(y - rng.uniform(-1, 1), x - rng.uniform(-1, 1)) ** 3 / 8
    grain = ndimage.gaussian_filter(rng.standard_normal(config.shape).astype(np.float32), rng.uniform(0.8, 2.5))
    bow = bow + grain * (rng.choice([0, 0.01, 0.03]) * rng.random() / grain.std())
    for _ in range(rng.poisson(6)):
        centre, width = rng.uniform(-1, 1, 2), rng.uniform(1, 4) / side * 2
        speck = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
        bow = bow + rng.uniform(-0.1, 0.4) * config.edge_step[0] * speck
    return bow.astype(np.float32)


def _lit_field(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Where the detector is lit: mostly everywhere, in one frame of six only a disc or a band of it, (H, W) bool."""
    if rng.random() > 1 / 6:
        return np.ones(shape, bool)
    y, x = np.mgrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j]
    if rng.random() < 0.5:
        return np.hypot(y - rng.uniform(-0.3, 0.3), x - rng.uniform(-0.3, 0.3)) < rng.uniform(0.8, 1.3)
    turn = rng.uniform(0, 2 * np.pi)
    return y * np.sin(turn) + x * np.cos(turn) < rng.uniform(0.5, 1.0)


def clean_picture(shape: tuple[int, int], coverage: list) -> np.ndarray:
    """Clean particle picture: 0 outside, a cone from `RIM` at the rim to 1 at the middle of every particle, (H, W)."""
    picture = np.zeros(shape, np.float32)
    for window, share in coverage:
        inside = share > 0.5
        if inside.any():
            # The frame's border is no rim: a particle that it cuts goes on behind it.
            depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1]
            cone = np.where(inside, RIM + (1 - RIM) * depth / depth.max(), 0)
            picture[window] = np.maximum(picture[window], cone)
    return picture


def detection_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One random frame and its clean picture, both (H, W) float16 (frame NaN-free, at full resolution)."""
    rng = np.random.default_rng(seed)
    density, coverage = simulate_frame(rng)
    return np.nan_to_num(density).astype(np.float16), clean_picture(density.shape, coverage).astype(np.float16)


def refinement_samples(seed: int, detector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions that a detector finds in one random frame, and the true soft contours in the same windows.

    Parameters
    ----------
    seed : int
        Of the frame.
    detector : callable
        Optical density (H, W) to particle map (H, W).

    Returns
    -------
    pictures : ndarray, shape (n, 3, N, N), float16
    contours : ndarray, shape (n, N, N), float16
        Visible part of the particle that shares most with the region.
    spacing : ndarray, shape (n,), float32
        Distance of the samples, px.
    """
    rng = np.random.default_rng(seed)
    density, coverage = simulate_frame(rng)
    found = detector(density)
    labels = split_regions(found)
    windows = region_windows(labels, CONTOUR_SIZE)
    windows = _jitter_windows(windows, rng)
    pictures, _ = region_pictures(density, found, labels, windows, CONTOUR_SIZE)
    owners = [_owner(labels == k + 1, coverage) for k in range(len(windows))]
    kept = [k for k, owner in enumerate(owners) if owner is not None]
    contours = np.zeros((len(kept), CONTOUR_SIZE, CONTOUR_SIZE), np.float16)
    whole = np.zeros(density.shape, np.float32)
    for row, k in enumerate(kept):
        window, share = coverage[owners[k]]
        whole[:] = 0
        whole[window] = share
        contours[row] = sample_window(whole, windows[k], CONTOUR_SIZE)
    return pictures[kept].astype(np.float16), contours, windows[kept, 2].astype(np.float32)


def _jitter_windows(windows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Windows moved and resized a little, as relative shifts and sizes of the paper's augmentation (S2)."""
    side = windows[:, 2:] * CONTOUR_SIZE
    moved = windows.copy()
    moved[:, :2] += side * rng.uniform(-0.08, 0.08, (len(windows), 2))
    moved[:, 2:] *= rng.uniform(0.9, 1.2, (len(windows), 1))
    return moved


def _owner(region: np.ndarray, coverage: list) -> int | None:
    """Index of the particle that shares most with a region; None if they have less than 30 % of their union in common."""
    best, owner = 0.3, None
    for k, (window, share) in enumerate(coverage):
        inside = share > 0.5
        common = float((region[window] & inside).sum())
        union = float(region.sum() + inside.sum() - common)
        if union and common / union > best:
            best, owner = common / union, k
    return owner
