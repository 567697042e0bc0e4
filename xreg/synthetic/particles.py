"""Particles: outlines, thickness, chemistry as analytic functions of a particle's own coordinates, and their places."""

from dataclasses import dataclass, field, replace

import numpy as np

from xreg.synthetic.config import PhantomConfig

#: Places that are tried for a particle, and particles in a row without a place after which the field is full for others
#: of their kind. Seeds give what they give: other numbers here would be other phantoms.
_TRIES, _WITHOUT_PLACE = 400, 20


@dataclass(frozen=True)
class Particle:
    """One particle: an outline in polar form about its centre of mass, a thickness profile, and a chemistry.

    Coordinates (dy, dx) are offsets in px from the centre of mass of the outline.
    """

    centre: tuple[float, float]
    radius: float
    outline: np.ndarray                              # (n,) px, radius of the outline at equal steps of angle
    origin: tuple[float, float]                      # where the polar form is centred, as an offset
    profile: tuple[float, float]                     # thickness = (1 - rho ** p) ** q
    edge_step: float
    waves: np.ndarray                                # (m, 4): ky, kx, phase, amplitude of the inner texture
    chemistry: dict[str, float] = field(default_factory=dict)

    @property
    def reach(self) -> float:
        """Largest distance (px) of the outline from the centre of mass."""
        return float(self.outline.max() + np.hypot(*self.origin))

    def polar(self, dy: np.ndarray, dx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance from the polar origin and the outline's radius in that direction, both px."""
        dy, dx = dy - self.origin[0], dx - self.origin[1]
        n = len(self.outline)
        turn = np.arctan2(dy, dx) * (n / (2 * np.pi)) % n
        low = turn.astype(int) % n
        part = turn - np.floor(turn)
        edge = self.outline[low] * (1 - part) + self.outline[(low + 1) % n] * part
        return np.hypot(dy, dx), edge

    def rim_share(self, dy: np.ndarray, dx: np.ndarray, distance: np.ndarray, edge: np.ndarray) -> np.ndarray:
        """How far out a place lies: 0 in the middle, 1 at the rim. `distance` and `edge` as in `polar`."""
        return distance / edge

    def coverage(self, dy: np.ndarray, dx: np.ndarray, pixel: float = 1.0) -> np.ndarray:
        """Share of a pixel of the given size that lies inside the outline, 0 to 1."""
        distance, edge = self.polar(dy, dx)
        return np.clip((edge - distance) / pixel + 0.5, 0, 1)

    def thickness(self, dy: np.ndarray, dx: np.ndarray, pixel: float = 1.0) -> np.ndarray:
        """Edge step (optical density) that the particle's thickness gives at each place."""
        distance, edge = self.polar(dy, dx)
        p, q = self.profile
        inside = np.clip((edge - distance) / pixel + 0.5, 0, 1)
        rho = np.clip(self.rim_share(dy, dx, distance, edge), 0, 1)
        texture = 1.0
        for ky, kx, phase, amplitude in self.waves:
            texture = texture + amplitude * np.sin(ky * dy + kx * dx + phase)
        return self.edge_step * inside * (1 - rho**p + 1e-3) ** q * texture

    def oxidised_fraction(self, dy: np.ndarray, dx: np.ndarray, progress: float) -> np.ndarray:
        """Oxidised fraction (0 to 1) at each place once the given share (0 to 1) of the charge has passed."""
        c = self.chemistry
        mean = c["start"] + c["rate"] * progress
        rho = np.hypot(dy, dx) / self.radius
        along = (dy * np.sin(c["direction"]) + dx * np.cos(c["direction"])) / self.radius
        fronts = progress * (1 - progress) * 4
        return np.clip(mean + fronts * (c["shell"] * (np.clip(rho, 0, 1.2) ** 2 - 0.5) + c["slope"] * along), 0, 1)


def place_particles(c: PhantomConfig, rng: np.random.Generator) -> list[Particle]:
    """Draw particles one by one so that isolated ones keep apart, touching ones touch, cut ones cross the border."""
    kinds = ["isolated"] * c.n_particles
    for i, kind in enumerate(["cut"] * c.cut + ["touching"] * c.touching + ["overlapping"] * c.overlapping):
        if i < c.n_particles - 1:
            kinds[c.n_particles - 1 - i] = kind
    margin = c.deformation * 1.2 + 3 * c.jitter + 8 + (0.03 * max(c.shape) if c.magnification else 0)
    placed: list[Particle] = []
    taken = np.empty((0, 3))                         # centre and reach of each
    without_place = dict.fromkeys(kinds, 0)
    for kind in kinds:
        if without_place[kind] == _WITHOUT_PLACE:
            continue
        for _ in range(_TRIES):
            radius = np.exp(rng.uniform(*np.log(c.radius)))
            particle = _draw_particle(c, rng, radius)
            centre = _propose(c, rng, kind, particle, placed, margin)
            if centre is None:
                continue
            gap = np.hypot(*(centre - taken[:, :2]).T) - taken[:, 2] - particle.reach
            mates = {"isolated": 0, "cut": 0, "touching": 1, "overlapping": 1}[kind] if placed else 0
            if (gap < margin).sum() <= mates:
                placed.append(replace(particle, centre=tuple(map(float, centre))))
                taken = np.vstack([taken, (*centre, particle.reach)])
                without_place[kind] = 0
                break
        else:
            without_place[kind] += 1                 # the phantom has one particle less
    return placed


def _propose(c, rng, kind, particle, placed, margin):
    """A place for the next particle, or None where the chosen neighbour leaves no room in the frame."""
    shape = np.array(c.shape, dtype=float)
    border = particle.reach + margin + 4
    if kind == "cut":
        centre = rng.uniform(0, shape)
        axis, side = rng.integers(2), rng.integers(2)
        inset = rng.uniform(-0.2, 0.6) * particle.radius
        centre[axis] = inset if side == 0 else shape[axis] - 1 - inset
        return centre
    if (2 * border >= shape).any():
        return None
    if kind == "isolated" or not placed:
        return rng.uniform(border, shape - border)
    mate = placed[rng.integers(len(placed))]
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    reach = extent(mate, direction) + extent(particle, -direction)
    overlap = rng.uniform(0.05, 0.2) * 2 * particle.radius if kind == "overlapping" else 0.0
    centre = np.array(mate.centre) + direction * (reach - overlap)
    return centre if (centre > border).all() and (centre < shape - border).all() else None


def extent(particle: Particle, direction: np.ndarray) -> float:
    """Distance (px) from the centre of mass to the outline in a direction."""
    steps = np.linspace(0, particle.reach * 1.05, 200)
    inside = particle.coverage(steps * direction[0], steps * direction[1]) > 0.5
    return float(steps[inside].max(initial=0.0))


def _draw_particle(c: PhantomConfig, rng: np.random.Generator, radius: float, n: int = 512) -> Particle:
    """A random outline about its own centre of mass, with profile, texture and chemistry."""
    theta = np.arange(n) * (2 * np.pi / n)
    if rng.random() < c.facets:
        normals = np.sort(rng.uniform(0, 2 * np.pi, 5)) + np.linspace(0, 0.3, 5)
        normals = np.concatenate([normals, np.arange(4) * np.pi / 2 + rng.uniform(0, 1)])
        heights = rng.uniform(0.8, 1.1, len(normals))
        cosine = np.maximum(np.cos(theta[:, None] - normals), 1e-3)
        outline = ((cosine / heights) ** 12).sum(1) ** (-1 / 12)
    else:
        outline = np.ones(n)
        for k in range(2, 9):
            a = c.irregularity * rng.standard_normal() / (k - 1)
            outline = outline + a * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    outline = np.maximum(outline, 0.45)
    if max(c.elongation) > 1:
        outline = drawn_out(outline, np.exp(rng.uniform(*np.log(c.elongation))), rng.uniform(0, 2 * np.pi))
    outline *= radius / np.sqrt((outline**2).mean())
    m = 8 if c.inner_texture else 0
    length = np.exp(rng.uniform(np.log(5.0), np.log(max(radius, 6.0)), m))
    turn = rng.uniform(0, 2 * np.pi, m)
    waves = np.stack([np.sin(turn) * 2 * np.pi / length, np.cos(turn) * 2 * np.pi / length,
                      rng.uniform(0, 2 * np.pi, m), np.full(m, c.inner_texture / 2)], axis=1)
    chemistry = {"start": rng.uniform(0.05, 0.25), "rate": rng.uniform(0.4, 0.7), "shell": rng.uniform(-0.3, 0.5),
                 "slope": rng.uniform(0, 0.25), "direction": rng.uniform(0, 2 * np.pi)}
    return Particle((0.0, 0.0), float(radius), outline, outline_origin(outline),
                    (rng.uniform(2, 6), rng.uniform(*c.profile)), float(rng.uniform(*c.edge_step)), waves, chemistry)


def drawn_out(outline: np.ndarray, aspect: float, turn: float) -> np.ndarray:
    """An outline in polar form (n,) whose length over width is raised by a factor, along a direction (rad)."""
    theta = np.arange(len(outline)) * (2 * np.pi / len(outline))
    y, x = outline * np.sin(theta - turn) / np.sqrt(aspect), outline * np.cos(theta - turn) * np.sqrt(aspect)
    return np.interp(theta, np.arctan2(y, x) + turn, np.hypot(y, x), period=2 * np.pi)


def outline_origin(outline: np.ndarray) -> tuple[float, float]:
    """Where an outline in polar form (n,) is centred, (dy, dx) from its own centre of mass, px."""
    theta = np.arange(len(outline)) * (2 * np.pi / len(outline))
    weight = (outline**2).sum() / 2
    centroid = [(outline**3 * f).sum() / 3 / weight for f in (np.sin(theta), np.cos(theta))]
    return -centroid[0], -centroid[1]
