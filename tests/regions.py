"""Tables of regions with known identity, drawn directly: what detection and refinement would say, and who is who."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter


@dataclass
class Scene:
    """Table of regions `rois`, and `truth` (frame, roi): the particle in each slot, -1 for none or an invention."""

    rois: xr.Dataset
    truth: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Particles that occur at all."""
        return np.unique(self.truth[self.truth >= 0])


def portrait(rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """A particle with its own outline and texture, 0 outside and about 1 inside: (size, size)."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    angle, radius = np.arctan2(y, x), np.hypot(y, x) / (size / 2)
    outline = 0.7 + sum(
        rng.normal(0, 0.1 / k) * np.cos(k * angle) + rng.normal(0, 0.1 / k) * np.sin(k * angle) for k in range(2, 6)
    )
    texture = gaussian_filter(rng.normal(size=(size, size)), 2.5)
    thickness = np.sqrt(np.clip(1 - (radius / outline) ** 2, 0, None))
    return thickness * (1 + 0.25 * texture / texture.std())


def snapshot(rng: np.random.Generator, picture: np.ndarray, noise: float) -> np.ndarray:
    """One noisy thumbnail of a portrait, scaled to 0...255."""
    noisy = picture + rng.normal(0, noise, picture.shape) * (picture > 0)
    noisy -= noisy.min()
    return np.round(255 * noisy / noisy.max()).astype(np.uint8)


def scene(
    path: np.ndarray,
    *,
    seed: int = 0,
    size: int = 460,
    radius: tuple[float, float] = (18, 40),
    alike: bool = False,
    noise: float = 0.1,
    missing: set[tuple[int, int]] = frozenset(),
    miss: float = 0.0,
    inventions: float = 0.0,
) -> Scene:
    """Regions of particles that follow `path` (particle, frame, 2), in shuffled slots.

    `missing` are pairs (particle, frame) not detected, `miss` the chance of any other miss, `inventions` the mean
    number of false detections a frame; particles outside the square field are not seen, those at its edge are cut.
    """
    rng = np.random.default_rng(seed)
    particles, frames = path.shape[:2]
    portraits = [portrait(rng) for _ in range(particles)]
    radii = rng.uniform(*radius, particles)
    if alike:
        portraits, radii = [portraits[0]] * particles, np.full(particles, radii.mean())
    slots = particles + 4
    position = np.full((frames, slots, 2), np.nan)
    area, cut = np.zeros((frames, slots)), np.zeros((frames, slots), dtype=bool)
    thumbnail = np.zeros((frames, slots, 32, 32), dtype=np.uint8)
    truth = np.full((frames, slots), -1)
    for f in range(frames):
        free = iter(rng.permutation(slots))
        for p in range(particles):
            border = min(*path[p, f], *(size - path[p, f]))
            if border < 0 or (p, f) in missing or rng.random() < miss:
                continue
            s = next(free)
            part = np.clip(0.5 + 0.5 * border / radii[p], 0, 1)
            position[f, s] = path[p, f] + rng.normal(0, 0.1, 2)
            area[f, s] = np.pi * radii[p] ** 2 * part * rng.normal(1, 0.02)
            cut[f, s], truth[f, s] = part < 1, p
            thumbnail[f, s] = snapshot(rng, portraits[p], noise)
        for s in [s for s, _ in zip(free, range(rng.poisson(inventions)), strict=False)]:
            position[f, s], area[f, s] = rng.uniform(0, size, 2), np.pi * rng.uniform(*radius) ** 2
            thumbnail[f, s] = snapshot(rng, portrait(rng), noise)
    table = {
        "roi_position": (("frame", "roi", "axis"), position),
        "roi_area": (("frame", "roi"), area),
        "roi_cut": (("frame", "roi"), cut),
        "roi_thumbnail": (("frame", "roi", "thumbnail_y", "thumbnail_x"), thumbnail),
    }
    return Scene(xr.Dataset(table), truth)


def lattice(side: int, frames: int, *, seed: int = 0, size: int = 460, jitter: float = 1.0) -> np.ndarray:
    """Paths (side^2, frames, 2) of particles near the points of a square lattice that the stage shakes a little."""
    rng = np.random.default_rng(seed)
    spacing = size / side
    home = (np.stack(np.indices((side, side)), axis=-1).reshape(-1, 1, 2) + 0.5) * spacing
    return home + rng.uniform(-0.1, 0.1, home.shape) * spacing + rng.normal(0, jitter, (frames, 2))


def switches(track: np.ndarray, truth: np.ndarray) -> int:
    """Tracks that hold more than one particle."""
    return sum(len(np.unique(truth[(track == n) & (truth >= 0)])) > 1 for n in np.unique(track[track >= 0]))


def assert_followed(track: np.ndarray, truth: np.ndarray) -> None:
    """Every particle has one number in all the frames where it is seen, and no number has two particles."""
    assert switches(track, truth) == 0
    for p in np.unique(truth[truth >= 0]):
        numbers = np.unique(track[truth == p])
        assert numbers.size == 1, f"particle {p} is called {numbers}"
        assert numbers[0] >= 0, f"particle {p} is lost"
