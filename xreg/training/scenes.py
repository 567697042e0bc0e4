"""The simulated frames that the networks are trained on: every difficulty of real frames, far more often than there.

One frame is a `Scene`, a phantom of one frame. Its particles lie alone, touching, in heaps and at the border; they are
round, angular, lobed or drawn out to rods, solid, hollow, cracked or of core and shell. What normalisation leaves
behind is added.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from xreg.synthetic import Phantom, PhantomConfig, edge_spectrum, ni_energies
from xreg.synthetic.particles import Particle, drawn_out, extent, outline_origin, place_particles
from xreg.synthetic.spectra import pre_edge_absorption

#: Side of the simulated training frames, px.
FRAME_SIDE = 432
#: Particles are drawn out to this many times their width at most, and not thinner than this, px.
_LONGEST, _THINNEST = 4.0, 14.0


def random_config(rng: np.random.Generator) -> PhantomConfig:
    """Settings of one random phantom of one frame: sizes, density, contrast, noise, background, optics at random."""
    typical = np.exp(rng.uniform(np.log(12), np.log(140)))
    spread = rng.uniform(0.15, 0.9) if rng.random() < 0.5 else rng.uniform(0.6, 0.9)
    radius = np.clip([typical * spread, typical * rng.uniform(1.05, 1.6)], 11, 165)
    cover = max(rng.uniform(-0.04, 0.45), 0) * FRAME_SIDE**2
    n = int(np.clip(rng.poisson(cover / (np.pi * radius.mean() ** 2)), 0, 60))
    strong = np.exp(rng.uniform(np.log(0.12), np.log(1.6)))
    # Faint and strong particles lie side by side, up to 1 : 12.
    weak = max(strong / np.exp(rng.uniform(0, np.log(12))), 0.08)
    # Half of the frames are before the edge, where contrast is a third.
    energy = rng.choice(ni_energies()) if rng.random() < 0.6 else rng.uniform(8200, 8335)
    typical_contrast = np.sqrt(weak * strong) * (0.45 if energy < 8340 else 1.4)
    counts = np.exp(rng.uniform(np.log(400), np.log(40000)))
    if rng.random() < 0.3:
        counts = np.exp(rng.uniform(np.log(10), np.log(400)))
    share = rng.dirichlet([3, 1, 1, 1])
    # Small ones that thin out as gently as large ones would look like dust.
    gentlest = rng.choice([0.9, 0.9, 1.8]) if radius[0] > 20 else 0.9
    return PhantomConfig(
        shape=(FRAME_SIDE, FRAME_SIDE), n_scans=1, energies=(float(energy),), n_particles=n, radius=tuple(radius),
        edge_step=(weak, strong), irregularity=rng.uniform(0.02, 0.2), facets=rng.uniform(0, 0.8),
        profile=tuple(np.sort(rng.uniform(0.08, gentlest, 2))), inner_texture=rng.uniform(0, 0.25),
        touching=int(n * share[1]), overlapping=int(n * share[2]), cut=int(n * share[3]), counts=counts,
        texture=min(rng.uniform(0, 0.12), rng.uniform(0.05, 0.55) * typical_contrast), crackle=rng.uniform(0, 0.08),
        illumination=rng.uniform(0, 2.5), blur=rng.uniform(0.4, 1.8), fringe=max(rng.uniform(-0.4, 0.6), 0.0),
        substrate=rng.uniform(0, 0.8), deformation=0.0, jitter=0.0, hot_pixels=0.0, read_noise=rng.uniform(0, 4),
        seed=int(rng.integers(2**31)),
    )


class Scene(Phantom):
    """A phantom of one frame as training wants it: agglomerates, inclusions, and a field of view that ends in the dim.

    The first `shown` of its particles are to be found; the others are what is inside of them (cores, hollows, cracks,
    grains; of negative thickness where something is missing) and dirt beside them.
    """

    def __init__(self, config: PhantomConfig, rng: np.random.Generator):
        super().__init__(config, n_particles=0)
        self.particles = _arrange(config, rng)
        self.shown = len(self.particles)
        self.particles += _insides(self.particles, rng) + _inclusions(self.particles, config, rng)
        self.own_motion = np.zeros((len(self.particles), 1, 2))
        self.beam, self.lit = _lit_field(config.shape, rng)

    @cached_property
    def _spot_image(self) -> np.ndarray:
        return super()._spot_image * self.beam

    @property
    def open_counts(self) -> np.ndarray:
        """Expected counts of the open beam, (H, W), without crackle."""
        return self._spot_image * self.config.counts


def _arrange(config: PhantomConfig, rng: np.random.Generator) -> list[Particle]:
    """Particles alone, touching, overlapping, cut by the border, and, in every third frame, in an agglomerate."""
    wide = replace(config, shape=(10**5, 10**5), touching=0, overlapping=0, cut=0)
    drawn = _reshaped(place_particles(wide, rng), rng)
    kinds = ["cut"] * config.cut + ["joined"] * (config.touching + config.overlapping)
    kinds = ["alone"] * (len(drawn) - len(kinds)) + kinds
    placed: list[Particle] = []
    for particle, kind in zip(drawn, kinds, strict=True):
        for _ in range(60):
            centre = rng.uniform(-0.1 if kind == "cut" else 0, 1.1 if kind == "cut" else 1, 2) * config.shape
            overlap = -6 / particle.radius
            if kind == "joined" and placed:
                mate = placed[rng.integers(len(placed))]
                overlap = rng.choice([0.0, rng.uniform(0.05, 0.4)])
                centre = _beside(mate, particle, overlap, rng)
            moved = replace(particle, centre=tuple(map(float, centre)))
            if kind != "cut" and _beyond(moved, config.shape) > 0:
                continue
            if _visible(moved, config.shape) and _apart(moved, placed, overlap):
                # As many faint as strong ones.
                step = np.exp(rng.uniform(*np.log(config.edge_step)))
                placed.append(replace(moved, edge_step=float(step)))
                break
    if rng.random() < 1 / 3:
        placed = _agglomerate(config, placed, rng)
    return placed


def _agglomerate(config: PhantomConfig, placed: list[Particle], rng: np.random.Generator) -> list[Particle]:
    """Replace the particles about some place, often at the border, by a heap of 4 to 25 that overlap in projection."""
    typical = np.exp(rng.uniform(np.log(14), np.log(70)))
    weak = rng.uniform(*config.edge_step)
    heap = _reshaped(place_particles(replace(
        config, shape=(10**5, 10**5), n_particles=int(rng.integers(4, 26)), touching=0, overlapping=0, cut=0,
        radius=(max(0.6 * typical, 11.0), 1.4 * typical), edge_step=(weak, weak * rng.uniform(1, 2))), rng), rng)
    middle = rng.uniform(-0.05, 1.05, 2) * config.shape
    dense = rng.uniform(0.0, 0.5)
    grown = [replace(heap[0], centre=tuple(map(float, middle)))]
    for particle in heap[1:]:
        for _ in range(30):
            # Growing from the earlier ones keeps the heap compact.
            mate = grown[rng.integers(max(len(grown) // 2, 1))]
            moved = replace(particle, centre=tuple(map(float, _beside(mate, particle, rng.uniform(0, dense), rng))))
            if _visible(moved, config.shape) and _apart(moved, grown, dense):
                grown.append(moved)
                break
    grown = [p for p in grown if _visible(p, config.shape)]
    return [p for p in placed if _apart(p, grown, -6 / p.radius)] + grown


@dataclass(frozen=True)
class Rod(Particle):
    """A round rod with round ends: as thick along its axis as in its middle, which no polar profile is."""

    turn: float = 0.0                                # of the axis, rad

    @classmethod
    def of(cls, mould: Particle, turn: float, half_length: float, half_width: float) -> "Rod":
        """A rod of the mould's place, material and texture; lengths in px."""
        theta = np.arange(len(mould.outline)) * (2 * np.pi / len(mould.outline)) - turn
        straight, across = half_length - half_width, np.abs(np.sin(theta))
        along = np.abs(np.cos(theta))
        # To the side where that is met first, else to the round end.
        side = half_width / np.maximum(across, 1e-9)
        end = straight * along + np.sqrt(np.maximum(half_width**2 - (straight * across) ** 2, 0))
        outline = np.where(side * along <= straight, side, end)
        kept = {f.name: getattr(mould, f.name) for f in fields(Particle)}
        kept |= {"outline": outline, "origin": (0.0, 0.0), "radius": float(np.sqrt((outline**2).mean()))}
        return cls(**kept, turn=turn)

    def rim_share(self, dy: np.ndarray, dx: np.ndarray, distance: np.ndarray, edge: np.ndarray) -> np.ndarray:
        """Distance from the axis over half of the width."""
        along = dy * np.sin(self.turn) + dx * np.cos(self.turn)
        across = dy * np.cos(self.turn) - dx * np.sin(self.turn)
        straight = self.outline.max() - self.outline.min()
        return np.hypot(np.maximum(np.abs(along) - straight, 0), across) / self.outline.min()


def _reshaped(particles: list[Particle], rng: np.random.Generator) -> list[Particle]:
    """Particles of one frame's shapes: as they are, lobed, angular, or drawn out; all of the same area as before."""
    longest = np.exp(rng.choice([0, rng.uniform(0, np.log(_LONGEST))]))
    lobed, angular, rods = rng.choice([0, 0, 0.5]), rng.choice([0, 0.5]), rng.choice([0, 0, 0.5])
    shaped = []
    for particle in particles:
        theta = np.arange(len(particle.outline)) * (2 * np.pi / len(particle.outline))
        outline, turn = particle.outline.copy(), rng.uniform(0, 2 * np.pi)
        aspect = min(np.exp(rng.uniform(0, np.log(longest))), (2 * particle.radius / _THINNEST) ** 2)
        if rng.random() < lobed:
            lobes = rng.integers(2, 6)
            outline *= 1 + rng.uniform(0.08, 0.2) * np.cos(lobes * theta + turn)
        elif rng.random() < angular:
            power = rng.uniform(2, 10)
            outline /= (np.abs(np.cos(theta - turn)) ** power + np.abs(np.sin(theta - turn)) ** power) ** (1 / power)
        outline = drawn_out(outline, aspect, turn)
        outline *= particle.radius / np.sqrt((outline**2).mean())
        particle = replace(particle, outline=outline, origin=outline_origin(outline))
        if aspect > 1.3 and rng.random() < rods:
            width = particle.radius * np.sqrt(np.pi / (4 * aspect - 4 + np.pi))
            particle = Rod.of(particle, turn, aspect * width, width)
        shaped.append(particle)
    return shaped


def _beside(mate: Particle, particle: Particle, overlap: float, rng: np.random.Generator) -> np.ndarray:
    """A centre in a random direction from a mate; they overlap by a share of the smaller one's diameter."""
    turn = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(turn), np.cos(turn)])
    reach = extent(mate, direction) + extent(particle, -direction)
    return np.array(mate.centre) + (reach - 2 * overlap * min(mate.radius, particle.radius)) * direction


def _apart(particle: Particle, others: list[Particle], overlap: float) -> bool:
    """Whether a particle overlaps no other by more than a share (may be negative: a gap) of the smaller's diameter."""
    return all(
        _overlap(particle, p)
        < (2 * overlap + 0.02) * (min(p.radius, particle.radius) if overlap >= 0 else particle.radius)
        for p in others)


def _overlap(one: Particle, other: Particle) -> float:
    """How deep (px) two particles reach into each other; negative for a gap, and at least as wide as that."""
    apart = np.hypot(*np.subtract(one.centre, other.centre)) - one.reach - other.reach
    return -apart if apart > 6 else max(_depth(one, other), _depth(other, one))


def _depth(one: Particle, other: Particle) -> float:
    """How far (px) the outline of one particle reaches into the other, along rays from the other's middle."""
    distance, edge = other.polar(*(_rim(one) - np.array(other.centre)[:, None]))
    return float((edge - distance).max())


def _rim(particle: Particle) -> np.ndarray:
    """Points of the outline, (axis, n), px."""
    theta = np.arange(len(particle.outline)) * (2 * np.pi / len(particle.outline))
    ray = particle.outline * np.stack([np.sin(theta), np.cos(theta)])
    return np.add(particle.centre, particle.origin)[:, None] + ray


def _beyond(particle: Particle, shape: tuple[int, int]) -> float:
    """How far (px) a particle reaches beyond the frame."""
    rim = _rim(particle)
    return float(max(-rim.min(), (rim - np.array(shape)[:, None]).max()))


def _visible(particle: Particle, shape: tuple[int, int]) -> bool:
    """Whether enough of a particle lies in the frame to be found."""
    return _beyond(particle, shape) < 1.4 * particle.radius


def _insides(particles: list[Particle], rng: np.random.Generator) -> list[Particle]:
    """In some frames, what particles are made of: a core or a hollow, cracks, grains."""
    cored, cracked, grained = (rng.choice([0, 0, 0, 0.6]) for _ in range(3))
    parts = []
    for particle in particles:
        if rng.random() < cored:
            factor = rng.uniform(0.5, 3) if rng.random() < 0.6 else -rng.uniform(0.3, 0.9)
            size = rng.uniform(0.4, 0.85) * particle.radius
            parts.append(_resized(particle, particle.centre, size, factor * particle.edge_step))
        if rng.random() < cracked:
            parts += [_crack(particle, rng) for _ in range(rng.integers(1, 4))]
        if particle.radius > 18 and rng.random() < grained:
            step = rng.uniform(0.2, 0.8) * particle.edge_step
            parts += [_grain(particle, step, rng) for _ in range(rng.integers(10, 50))]
    return parts


def _crack(particle: Particle, rng: np.random.Generator) -> Rod:
    """A thin rod of missing thickness, as far across a particle as its narrowest width lets it."""
    narrow, turn = particle.outline.min(), rng.uniform(0, np.pi)
    out = rng.uniform(-0.5, 0.5) * narrow
    length = np.sqrt(narrow**2 - out**2) * rng.uniform(0.4, 0.95)
    place = np.add(particle.centre, particle.origin) + out * np.array([np.cos(turn), -np.sin(turn)])
    missing = replace(particle, centre=tuple(map(float, place)), waves=particle.waves[:0],
                      edge_step=-rng.uniform(0.3, 0.7) * particle.edge_step)
    return Rod.of(missing, turn, length, min(rng.uniform(0.8, 2.5), length / 2))


def _grain(particle: Particle, edge_step: float, rng: np.random.Generator) -> Particle:
    """One of the grains that a particle is made of, inside its outline."""
    k, out = rng.integers(len(particle.outline)), np.sqrt(rng.uniform(0, 0.9))
    middle = np.add(particle.centre, particle.origin)
    size = min(rng.uniform(0.06, 0.2) * particle.radius, (1.05 - out) * particle.outline[k])
    return _resized(particle, middle + out * (_rim(particle)[:, k] - middle), max(size, 1.5),
                    edge_step * rng.uniform(0.3, 1))


def _inclusions(particles: list[Particle], config: PhantomConfig, rng: np.random.Generator) -> list[Particle]:
    """Denser grains in some particles, and fine dirt in the open background; neither is a particle to be found."""
    grains = []
    frequent = rng.choice([0, 0.15, 0.4])
    for particle in particles:
        if particle.radius > 25 and rng.random() < frequent:
            turn, out = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.8)
            size = rng.uniform(0.08, 0.35) * particle.radius
            place = np.array(particle.centre) + out * (particle.radius - size) * np.array([np.sin(turn), np.cos(turn)])
            grains.append(_resized(particle, place, size, rng.uniform(0.3, 2.5) * particle.edge_step))
    if particles and rng.random() < 0.5:
        for _ in range(rng.poisson(4)):
            mould = particles[rng.integers(len(particles))]
            place = rng.uniform(0, 1, 2) * config.shape
            grains.append(_resized(mould, place, rng.uniform(2, 6), rng.uniform(0.1, 0.8) * config.edge_step[1]))
    return grains


def _resized(mould: Particle, centre: np.ndarray, radius: float, edge_step: float) -> Particle:
    """A particle of the mould's shape at another place, of another size and thickness."""
    factor = radius / mould.radius
    return replace(mould, centre=tuple(map(float, centre)), radius=float(radius), outline=mould.outline * factor,
                   origin=(mould.origin[0] * factor, mould.origin[1] * factor), edge_step=float(edge_step))


def simulate_frame(rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """One random frame's optical density (H, W) with what normalisation leaves behind, and its particles' coverage.

    NaN where the detector is not lit. Particles that the frame cannot show are left out of the coverage, since to find
    them is to invent them.
    """
    scene = Scene(random_config(rng), rng)
    density = scene.noisy_optical_density(0)
    density -= np.float32(scene.config.substrate * pre_edge_absorption(scene.energy[0]) / 0.45)
    leftovers = _leftovers(scene, rng)
    density += leftovers
    if rng.random() < 0.25:
        # Detectors blur, and filling of bad pixels smooths: noise is then no longer independent from pixel to pixel.
        density = _smooth(density, rng.uniform(0.4, 1.0))
    density = np.where(scene.lit, density, np.nan).astype(np.float32)
    coverage = [(window, share * scene.lit[window]) for window, share in scene.coverage(0)[:scene.shown]]
    return density, [c for c, p in zip(coverage, scene.particles, strict=False) if _shows(c, p, scene, leftovers)]


def _shows(coverage: tuple, particle: Particle, scene: Scene, leftovers: np.ndarray) -> bool:
    """Whether a particle's mean optical density stands out from photon noise, texture and leftovers of its size."""
    window, share = coverage
    inside = share > 0.5
    if inside.sum() < 150:
        return False
    energy = scene.energy[0]
    contrast = 0.7 * particle.edge_step * (pre_edge_absorption(energy) + float(edge_spectrum(energy, False)))
    photons = (scene.open_counts[window][inside] * np.exp(-scene.config.substrate - contrast)).sum()
    texture = scene.config.texture
    mottle = leftovers[window][scene.lit[window]].std()
    # Texture is alike over some 14 px, mottle over some 200 px of area.
    variance = (1 / max(photons, 1e-9) + (0.4 * texture * min(1.0, 14 / particle.radius)) ** 2
                + mottle**2 * min(200 / inside.sum(), 1.0))
    return contrast > max(5 * np.sqrt(variance), 0.8 * np.hypot(mottle, texture))


def _smooth(density: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of the valid pixels; NaN stays NaN."""
    valid = np.isfinite(density)
    total = ndimage.gaussian_filter(np.where(valid, density, 0), sigma)
    return np.where(valid, total / np.maximum(ndimage.gaussian_filter(valid.astype(np.float32), sigma), 0.05), np.nan)


def _leftovers(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """What is left in a normalised frame: offset, tilt, bow, ghosts of the crackle pattern, dim parts, specks."""
    shape = scene.config.shape
    y, x = np.mgrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j].astype(np.float32)
    size = 0.04 * rng.random()
    bow = sum(size * rng.standard_normal() * term for term in (1, y, x, y * x, y * y - 0.33, x * x - 0.33))
    if rng.random() < 0.3:
        # A dim corner divides badly.
        bow = bow + rng.uniform(-0.1, 0.2) * np.hypot(y - rng.uniform(-1, 1), x - rng.uniform(-1, 1)) ** 3 / 8
    # What stray light or a wrong dark level adds grows where the beam is weak, and so do ghosts of the illumination.
    dim = 1 / np.maximum(scene.open_counts / scene.config.counts, 0.05)
    bow = bow + rng.choice([0, 1]) * 0.008 * rng.standard_normal() * np.clip(dim - 1, 0, 15)
    if rng.random() < 0.5:
        # Blots of the size of particles where the beam is weak or ends.
        blot = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(6, 40))
        near = np.clip(dim - 1, 0, 3) / 3
        if not scene.lit.all():
            near = near + np.exp(-ndimage.distance_transform_edt(scene.lit) / rng.uniform(10, 80))
        bow = bow + near * rng.uniform(0.01, 0.08) * (blot / blot.std() + rng.choice([0, 1]))
    grain = _streaks(shape, rng) if rng.random() < 0.5 else ndimage.gaussian_filter(
        rng.standard_normal(shape).astype(np.float32), rng.uniform(0.8, 2.5))
    strength = rng.choice([0, 0.01, 0.03, 0.06]) * rng.random() / grain.std()
    bow = bow + strength * grain * np.sqrt(np.clip(dim, 0.5, 10) if rng.random() < 0.5 else 1.0)
    for _ in range(rng.poisson(6)):
        centre, width = rng.uniform(-1, 1, 2), rng.uniform(1, 5) / shape[0] * 2
        speck = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
        bow = bow + rng.uniform(-0.1, 0.5) * scene.config.edge_step[rng.integers(2)] * speck
    return bow.astype(np.float32)


def _streaks(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Mottle drawn out in one direction, as drifting illumination leaves it, (H, W)."""
    along, across, turn = rng.uniform(2, 6), rng.uniform(0.7, 2), rng.uniform(0, np.pi)
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    u, v = ky * np.sin(turn) + kx * np.cos(turn), ky * np.cos(turn) - kx * np.sin(turn)
    response = np.exp(-2 * np.pi**2 * ((along * u) ** 2 + (across * v) ** 2))
    return np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * response, s=shape).astype(np.float32)


def _lit_field(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Relative beam (0 to 1) and where it is strong enough to be used, both (H, W).

    In every third frame the beam ends within the frame, along a ragged disc or band. It ends gradually, so that the
    last of what is used is dim and noisy.
    """
    if rng.random() > 1 / 3:
        return np.ones(shape, np.float32), np.ones(shape, bool)
    y, x = np.mgrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j]
    if rng.random() < 0.5:
        depth = rng.uniform(0.8, 1.3) - np.hypot(y - rng.uniform(-0.3, 0.3), x - rng.uniform(-0.3, 0.3))
    else:
        turn = rng.uniform(0, 2 * np.pi)
        depth = rng.uniform(0.4, 1.0) - (y * np.sin(turn) + x * np.cos(turn))
    ragged = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(3, 12))
    depth = depth + rng.uniform(0, 0.03) * ragged / ragged.std()
    floor = rng.uniform(0.04, 0.5)
    beam = np.clip(floor + (1 - floor) * depth / rng.uniform(0.1, 1.0), 0.01, 1)
    return beam.astype(np.float32), depth > 0
