"""The phantom: raw detector counts of a deforming electrode whose every truth is known analytically.

A `Phantom` draws a handful of particles once, from a seed. Everything else is computed per frame on request: thickness
and chemistry are analytic functions of a particle's own coordinates, evaluated at the particle's exact sub-pixel place in
that frame, so nothing is ever resampled, and 6435 frames need no more memory than one.

The order of the optics: particles and background texture absorb (`optical_density`), the zone plate blurs the beam
behind them, the capillary's illumination with its crackle pattern is multiplied in, and the detector adds photon
noise, read noise, a dark level and hot pixels (`counts`). Open-beam references (`flat`) see another illumination than
the sample, as real ones do.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from scipy import fft, ndimage, sparse

from xreg.schema import AXES, COORDINATES, RAW, RESULT, FrameStatus, describe

#: Ni K-edge energy (eV) near which the phantom's spectra are drawn.
NI_K_EDGE = 8333.0
#: Distortions that `PhantomConfig.only` can switch on alone.
DISTORTIONS = (
    "jitter", "walk", "jumps", "deformation", "texture", "crackle", "illumination", "flat_drift", "noise",
    "hot_pixels", "blur", "fringe", "substrate", "magnification", "bad_frames",
)
_NOISE, _FLAT, _DARK = 1, 2, 3


def ni_energies(n: int = 143) -> np.ndarray:
    """`n` energies (eV) over the Ni K-edge: coarse before and after, 0.7 eV steps in the edge for n = 143."""
    edge = round(n * 0.59)
    pre = round(n * 0.17)
    post = n - edge - pre
    return np.concatenate([
        np.linspace(8200, 8322, pre, endpoint=False),
        np.linspace(8322, 8380, edge, endpoint=False),
        np.linspace(8380, 8700, post),
    ])


def edge_spectrum(energy: np.ndarray, oxidised: bool) -> np.ndarray:
    """Edge part of the absorption of one end member: 0 well before the edge, 1 (with wiggles) well after it.

    An arctangent step, a white line and a damped oscillation. From reduced to oxidised the half-step moves by about
    1.7 eV and the white line by about 2.8 eV, as in a charge of layered nickel oxides.
    """
    e0, line, height, width = (8343.6, 8352.0, 0.45, 3.0) if oxidised else (8341.6, 8349.2, 0.65, 2.6)
    de = np.asarray(energy, dtype=float) - e0
    step = 0.5 + np.arctan(de / 1.1) / np.pi
    white = height * np.exp(-0.5 * ((energy - line) / width) ** 2)
    above = np.clip(de - 12, 0, None)
    wiggle = 0.06 * np.sin(np.sqrt(above) * 1.25 + 0.6 * oxidised) * (above / 15) * np.exp(-above / 45)
    return step + white + wiggle


def pre_edge_absorption(energy: np.ndarray) -> np.ndarray:
    """Absorption of everything but the edge, in units of the edge step (Victoreen-like fall, 0.45 at the edge)."""
    return 0.45 * (NI_K_EDGE / np.asarray(energy, dtype=float)) ** 3


def _half_step_of(fraction: np.ndarray) -> np.ndarray:
    """Energy (eV) where a mixture with the given oxidised fraction crosses half of its edge step."""
    grid = np.linspace(8330, 8350, 4001)
    reduced, oxidised = edge_spectrum(grid, False), edge_spectrum(grid, True)
    nodes = np.linspace(0, 1, 201)
    crossing = [grid[np.argmax((1 - x) * reduced + x * oxidised > 0.5)] for x in nodes]
    return np.interp(fraction, nodes, crossing)


@dataclass(frozen=True)
class PhantomConfig:
    """All of the phantom's settings. Lengths in px at the reference energy, optical densities in nepers.

    An amplitude of zero switches its distortion off; `only` keeps a single one.
    """

    shape: tuple[int, int] = (460, 460)
    n_scans: int = 2
    energies: tuple[float, ...] = tuple(ni_energies())
    n_particles: int = 9
    radius: tuple[float, float] = (18.0, 42.0)
    edge_step: tuple[float, float] = (0.35, 0.8)     # optical density of the edge at a particle's thickest point
    irregularity: float = 0.10                       # relative roughness of outlines
    facets: float = 0.3                              # probability that a particle is faceted (single crystal)
    profile: tuple[float, float] = (0.35, 0.7)       # exponent of the thickness profile: 0 a plate, 0.5 a sphere
    inner_texture: float = 0.12                      # relative thickness variations inside a particle
    touching: int = 1                                # how many particles touch an earlier one
    overlapping: int = 0                             # how many overlap an earlier one by up to 20 % of their diameter
    cut: int = 0                                     # how many are cut by the field of view
    counts: float = 9000.0                           # mean open-beam counts per pixel and sample exposure
    exposure: float = 0.5                            # s
    flat_exposure: float = 0.3                       # s
    flats_per_energy: int = 2
    n_darks: int = 4
    jitter: float = 0.5                              # px, standard deviation of the stage's frame-to-frame shake
    walk: float = 0.12                               # px per sqrt(frame), the stage's random walk
    jumps: float = 1.0                               # stage jumps per scan, each of up to 12 px
    deformation: float = 4.0                         # px, amplitude of each particle's smooth own motion
    texture: float = 0.03                            # optical density, background fixed to the stage
    crackle: float = 0.05                            # relative depth of the illumination's crackle pattern
    crackle_shift: float = 0.4                       # px between a reference's and the sample's crackle
    illumination: float = 0.5                        # fall of the capillary's spot towards the corners
    flat_drift: float = 0.015                        # relative drift and tilt between reference and sample
    noise: bool = True                               # photon noise
    read_noise: float = 3.0                          # counts
    dark_level: float = 100.0                        # counts
    hot_pixels: float = 1e-4                         # fraction of pixels
    blur: float = 0.9                                # px, standard deviation of the zone plate's point spread
    fringe: float = 0.0                              # strength of the Fresnel fringe along edges
    substrate: float = 0.4                           # optical density of cell and substrate at the edge
    magnification: bool = False                      # whether pixel size grows with energy, as at SSRL 6-2C
    bad_frames: float = 0.0                          # fraction of frames that are blank, blurred or corrupt
    pixel_size_nm: float = 31.2
    reference_energy: float = NI_K_EDGE
    seed: int = 0

    @classmethod
    def only(cls, *names: str, **settings) -> "PhantomConfig":
        """A phantom without distortions but for the named ones (see `DISTORTIONS`).

        Raises
        ------
        ValueError
            If a name is not a distortion.
        """
        unknown = sorted(set(names) - set(DISTORTIONS))
        if unknown:
            msg = f"unknown distortions {unknown}; choose from {', '.join(DISTORTIONS)}."
            raise ValueError(msg)
        defaults = cls()
        off = {n: type(getattr(defaults, n))(0) for n in DISTORTIONS if n not in names}
        if "noise" not in names:
            off["read_noise"] = 0.0
        if "bad_frames" in names:
            off["bad_frames"] = 0.05
        if "fringe" in names:
            off["fringe"] = 0.3
        if "magnification" in names:
            off["magnification"] = True
        return replace(defaults, **{**off, **settings})

    @property
    def n_frames(self) -> int:
        """Number of frames, scans times energies."""
        return self.n_scans * len(self.energies)

    def to_dict(self) -> dict[str, object]:
        """Settings as plain values, for a store's attributes."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "energies"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


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

    def _polar(self, dy: np.ndarray, dx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance from the polar origin and the outline's radius in that direction, both px."""
        dy, dx = dy - self.origin[0], dx - self.origin[1]
        n = len(self.outline)
        turn = np.arctan2(dy, dx) * (n / (2 * np.pi)) % n
        low = turn.astype(int) % n
        part = turn - np.floor(turn)
        edge = self.outline[low] * (1 - part) + self.outline[(low + 1) % n] * part
        return np.hypot(dy, dx), edge

    def coverage(self, dy: np.ndarray, dx: np.ndarray, pixel: float = 1.0) -> np.ndarray:
        """Share of a pixel of the given size that lies inside the outline, 0 to 1."""
        distance, edge = self._polar(dy, dx)
        return np.clip((edge - distance) / pixel + 0.5, 0, 1)

    def thickness(self, dy: np.ndarray, dx: np.ndarray, pixel: float = 1.0) -> np.ndarray:
        """Edge step (optical density) that the particle's thickness gives at each place."""
        distance, edge = self._polar(dy, dx)
        p, q = self.profile
        inside = np.clip((edge - distance) / pixel + 0.5, 0, 1)
        rho = np.clip(distance / edge, 0, 1)
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


class Phantom:
    """A simulated measurement: frames on request, and the truth about them.

    Parameters
    ----------
    config : PhantomConfig
        Settings; two phantoms of equal settings give equal counts in any process and any order of frames.
    """

    def __init__(self, config: PhantomConfig | None = None, **settings):
        self.config = replace(config or PhantomConfig(), **settings)
        if not len(self.config.energies) or self.config.n_scans < 1:
            msg = (f"the phantom has {self.config.n_scans} scans of {len(self.config.energies)} energies; "
                   "need at least one of each.")
            raise ValueError(msg)
        rng = np.random.default_rng([self.config.seed, 0])
        self.particles = _place_particles(self.config, rng)
        self.rigid, self.own_motion = _draw_motion(self.config, len(self.particles), rng)
        self.frame_status = _draw_status(self.config, rng)
        n = self.config.n_frames // self.config.n_scans
        self.energy = np.tile(np.asarray(self.config.energies, dtype=float), self.config.n_scans)
        self.scan = np.repeat(np.arange(self.config.n_scans), n)
        self.time = np.arange(self.config.n_frames) * (600.0 / n) + self.scan * 300.0
        self._spot = rng.uniform(-0.2, 0.2, 2)
        self._drift = rng.standard_normal((3, 4))

    # -- geometry ---------------------------------------------------------------------------------------------------

    def scale(self, frame: int) -> float:
        """Reference px per raw px in this frame."""
        return self.energy[frame] / self.config.reference_energy if self.config.magnification else 1.0

    def position(self, frame: int) -> np.ndarray:
        """True centres of mass in the raw frame, (particle, axis), px."""
        start = np.array([p.centre for p in self.particles]).reshape(-1, 2)
        return self._to_raw(start + self.rigid[frame] + self.own_motion[:, frame], frame)

    def _to_raw(self, reference: np.ndarray, frame: int) -> np.ndarray:
        middle = (np.array(self.config.shape) - 1) / 2
        return middle + (reference - middle) / self.scale(frame)

    def progress(self, scan: int) -> float:
        """Share of the charge (0 to 1) that has passed at a scan; the first scan is already under way."""
        return (scan + 0.5) / self.config.n_scans

    # -- what the beam sees -------------------------------------------------------------------------------------------

    def optical_density(self, frame: int) -> np.ndarray:
        """Noise-free, unblurred optical density of particles, texture and substrate, (y, x) float64."""
        energy = self.energy[frame]
        density = self.particle_density(frame)
        fall = pre_edge_absorption(energy) / 0.45
        if self.config.texture:
            density = density + fall * self.config.texture * self._texture(frame)
        return density + fall * self.config.substrate

    def particle_density(self, frame: int) -> np.ndarray:
        """Optical density of the particles alone, (y, x) float64."""
        energy = self.energy[frame]
        base = pre_edge_absorption(energy)
        reduced, oxidised = (float(edge_spectrum(energy, o)) for o in (False, True))
        density = np.zeros(self.config.shape)
        for particle, (window, dy, dx) in zip(self.particles, self._windows(frame), strict=True):
            if dy.size:
                x = particle.oxidised_fraction(dy, dx, self.progress(self.scan[frame]))
                density[window] += particle.thickness(dy, dx, self.scale(frame)) * (
                    base + reduced + x * (oxidised - reduced))
        return density

    def coverage(self, frame: int) -> list[tuple[tuple[slice, slice], np.ndarray]]:
        """For each particle the window of the frame that it may cover, and the covered share of each pixel there."""
        return [(w, p.coverage(dy, dx, self.scale(frame)))
                for p, (w, dy, dx) in zip(self.particles, self._windows(frame), strict=True)]

    def _windows(self, frame: int):
        """Yield for each particle the slices of the frame around it and the offsets from its centre, (h, w) each."""
        scale = self.scale(frame)
        for particle, centre in zip(self.particles, self.position(frame), strict=True):
            reach = particle.reach / scale + 2
            low = np.maximum(np.floor(centre - reach), 0).astype(int)
            high = np.minimum(np.ceil(centre + reach) + 1, self.config.shape).astype(int)
            high = np.maximum(high, low)
            y, x = np.mgrid[low[0]:high[0], low[1]:high[1]]
            yield (slice(low[0], high[0]), slice(low[1], high[1])), (y - centre[0]) * scale, (x - centre[1]) * scale

    def transmission(self, frame: int) -> np.ndarray:
        """Blurred transmission of the sample, (y, x) float64."""
        density = self.optical_density(frame)
        beam = np.exp(-density)
        if self.config.fringe:
            beam = beam * (1 + self.config.fringe * ndimage.gaussian_laplace(density, 1.2))
        blur = np.hypot(self.config.blur, 6.0 if self.frame_status[frame] == FrameStatus.BLURRED else 0.0)
        return ndimage.gaussian_filter(beam, blur) if blur else beam

    # -- what the detector sees -----------------------------------------------------------------------------------------

    def counts(self, frame: int) -> np.ndarray:
        """Detector counts of one sample exposure, (y, x) uint16."""
        status = self.frame_status[frame]
        beam = np.zeros(self.config.shape)
        if status != FrameStatus.BLANK:
            beam = self.transmission(frame) * self._illumination(self.energy[frame], self.time[frame], sample=True)
        counts = self._detect(beam * self.config.counts, _NOISE, frame)
        if status == FrameStatus.CORRUPT:
            counts[self.config.shape[0] // 3:] = 0
        return counts

    def flat(self, index: int) -> np.ndarray:
        """Detector counts of one open-beam exposure, (y, x) uint16."""
        beam = self._illumination(self.flat_energy[index], self.flat_time[index], sample=False)
        share = self.config.flat_exposure / self.config.exposure
        return self._detect(beam * self.config.counts * share, _FLAT, index)

    def dark(self, index: int) -> np.ndarray:
        """Detector counts without beam, (y, x) uint16."""
        return self._detect(np.zeros(self.config.shape), _DARK, index)

    def noisy_optical_density(self, frame: int) -> np.ndarray:
        """-ln of this frame over one perfect reference of its own illumination, (y, x) float32.

        What a faultless normalisation would give: photon noise, blur and texture are there, errors of the reference
        are not. Training draws its frames with it. Pixels without counts are NaN.
        """
        beam = self._illumination(self.energy[frame], self.time[frame], sample=True) * self.config.counts
        seen = self._detect(self.transmission(frame) * beam, _NOISE, frame) - self.config.dark_level
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(seen > 0, -np.log(seen / beam), np.nan).astype(np.float32)

    def _detect(self, expected: np.ndarray, kind: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.config.seed, kind, index])
        counts = rng.poisson(expected).astype(float) if self.config.noise else expected
        counts = counts + self.config.dark_level
        if self.config.read_noise:
            counts = counts + self.config.read_noise * rng.standard_normal(counts.shape)
        if self.config.hot_pixels:
            hot, gain = self._hot
            counts.ravel()[hot] = counts.ravel()[hot] * gain + (gain > 0) * self.config.counts * 3
        return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)

    @cached_property
    def _hot(self) -> tuple[np.ndarray, np.ndarray]:
        """Flat indices of hot and dead pixels, and the gain of each (0: dead)."""
        rng = np.random.default_rng([self.config.seed, 4])
        n = round(self.config.hot_pixels * float(np.prod(self.config.shape)))
        where = rng.choice(int(np.prod(self.config.shape)), n, replace=False)
        return where, rng.integers(0, 2, n).astype(float)

    def _illumination(self, energy: float, time: float, sample: bool) -> np.ndarray:
        """Open beam at a moment, mean 1 over the frame at the reference: spot x crackle x drift."""
        c = self.config
        beam = self._spot_image
        if c.flat_drift and sample:
            wobble = np.sin(self._drift[0] + self._drift[1] * time / 500.0)
            y, x = (np.linspace(-0.5, 0.5, n) for n in c.shape)
            beam = beam * (1 + c.flat_drift * (wobble[0] + wobble[1] * y[:, None] + wobble[2] * x))
        if c.crackle:
            shift = c.crackle_shift * np.sin(self._drift[2][:2] + self._drift[1][:2] * time / 300.0) * sample
            beam = beam * (1 + c.crackle * _shifted(self._crackle, shift, 1.0, c.shape))
        return beam * (1 + 0.15 * (energy - NI_K_EDGE) / NI_K_EDGE)

    @cached_property
    def _spot_image(self) -> np.ndarray:
        ny, nx = self.config.shape
        if not self.config.illumination:
            return np.ones((ny, nx))
        y = np.linspace(-1, 1, ny)[:, None] - self._spot[0]
        x = np.linspace(-1, 1, nx) - self._spot[1]
        spot = np.maximum(np.exp(-self.config.illumination * (y**2 + x**2) ** 1.3), 0.03)
        return spot / spot.mean()

    @cached_property
    def _crackle(self) -> np.ndarray:
        """Ridges of a random field, dark cracks, standard deviation about 1; spline coefficients."""
        a = _random_field(self.config.shape, 9.0, [self.config.seed, 5])
        b = _random_field(self.config.shape, 3.0, [self.config.seed, 6])
        ridges = ndimage.gaussian_filter(np.exp(-np.abs(a) * 6), 0.8)
        pattern = b * 0.6 - 3 * ridges
        return ndimage.spline_filter((pattern - pattern.mean()) / pattern.std(), mode="grid-wrap")

    @cached_property
    def _texture_field(self) -> np.ndarray:
        """Smooth and finer mottle, standard deviation about 1; spline coefficients."""
        coarse = _random_field(self.config.shape, 14.0, [self.config.seed, 7])
        fine = _random_field(self.config.shape, 4.0, [self.config.seed, 8])
        return ndimage.spline_filter(0.8 * coarse + 0.6 * fine, mode="grid-wrap")

    def _texture(self, frame: int) -> np.ndarray:
        """Background texture at the stage's place in this frame, (y, x), standard deviation about 1."""
        return _shifted(self._texture_field, self.rigid[frame], self.scale(frame), self.config.shape)

    # -- the record -------------------------------------------------------------------------------------------------------

    @property
    def n_flats(self) -> int:
        """Number of open-beam exposures."""
        return self.config.n_frames * self.config.flats_per_energy

    @property
    def flat_energy(self) -> np.ndarray:
        """Energy (eV) of each open-beam exposure."""
        return np.repeat(self.energy, self.config.flats_per_energy)

    @property
    def flat_time(self) -> np.ndarray:
        """Time (s) of each open-beam exposure."""
        return np.repeat(self.time + 1.0, self.config.flats_per_energy)

    def raw_coordinates(self):
        """Everything of the raw store but the pictures, as an `xarray.Dataset` of the contract's names."""
        import xarray as xr

        c = self.config
        attrs = {
            "element": "Ni", "edge": "K", "pixel_size_nm": c.pixel_size_nm,
            "pixel_size_energy_ev": c.reference_energy,
            "magnification": "proportional-to-energy" if c.magnification else "constant",
            "simulation": c.to_dict(),
        }
        ds = xr.Dataset(
            {
                "exposure": ("frame", np.full(c.n_frames, c.exposure)),
                "flat_exposure": ("flat", np.full(self.n_flats, c.flat_exposure)),
                "dark_exposure": ("dark", np.full(c.n_darks, c.exposure)),
                "flat_energy": ("flat", self.flat_energy),
                "flat_time": ("flat", self.flat_time),
            },
            coords={"energy": ("frame", self.energy), "scan": ("frame", self.scan), "time": ("frame", self.time)},
            attrs=attrs,
        )
        return describe(ds, RAW)

    def truth(self):
        """The truth as an `xarray.Dataset` of the result store's names, so that result and truth subtract.

        `position` is NaN where the particle's centre lies outside the frame or the frame is bad. `edge_energy` is the
        half-step energy (eV) of each pixel's own mixture, NaN outside the outline.
        """
        import xarray as xr

        c = self.config
        position = np.stack([self.position(f) for f in range(c.n_frames)], axis=1)
        inside = ((position >= 0) & (position <= np.array(c.shape) - 1)).all(-1)
        seen = inside & (self.frame_status == FrameStatus.OK)
        half = int(np.ceil(max((p.reach for p in self.particles), default=0))) + 3
        offset = np.arange(-half, half + 1, dtype=float)
        dy, dx = np.meshgrid(offset, offset, indexing="ij")
        contour = np.array([p.coverage(dy, dx) > 0.5 for p in self.particles]).reshape(-1, *dy.shape)
        maps = np.array([[_half_step_of(p.oxidised_fraction(dy, dx, self.progress(s))) for s in range(c.n_scans)]
                         for p in self.particles]).reshape(-1, c.n_scans, *dy.shape)
        thickness = np.array([p.thickness(dy, dx) for p in self.particles]).reshape(-1, *dy.shape)
        nonrigid = self.own_motion - self.own_motion[:, :1]
        ds = xr.Dataset(
            {
                "position": (("particle", "frame", "axis"), np.where(seen[..., None], position, np.nan)),
                "displacement": (("particle", "frame", "axis"), nonrigid + self.rigid[None]),
                "rigid": (("frame", "axis"), self.rigid),
                "nonrigid": (("particle", "frame", "axis"), nonrigid),
                "contour": (("particle", "y", "x"), contour),
                "edge_energy": (("particle", "scan", "y", "x"), np.where(contour[:, None], maps, np.nan)),
                "edge_step": (("particle", "scan", "y", "x"),
                              np.where(contour[:, None], thickness[:, None], np.nan) + 0 * maps),
                "radius": ("particle", np.array([p.radius for p in self.particles])),
                "frame_status": ("frame", self.frame_status),
            },
            coords={"energy": ("frame", self.energy), "frame_scan": ("frame", self.scan),
                    "time": ("frame", self.time), "axis": list(AXES), "y": offset, "x": offset},
            attrs={"simulation": c.to_dict(), "definition": "half_step",
                   "comment": "truth of a simulated measurement"},
        )
        return describe(ds, {**RESULT, **COORDINATES})


def _place_particles(c: PhantomConfig, rng: np.random.Generator) -> list[Particle]:
    """Draw particles one by one so that isolated ones keep apart, touching ones touch, cut ones cross the border."""
    kinds = ["isolated"] * c.n_particles
    for i, kind in enumerate(["cut"] * c.cut + ["touching"] * c.touching + ["overlapping"] * c.overlapping):
        if i < c.n_particles - 1:
            kinds[c.n_particles - 1 - i] = kind
    margin = c.deformation * 1.2 + 3 * c.jitter + 8 + (0.03 * max(c.shape) if c.magnification else 0)
    placed: list[Particle] = []
    for kind in kinds:
        for _ in range(400):
            radius = np.exp(rng.uniform(*np.log(c.radius)))
            particle = _draw_particle(c, rng, radius)
            centre = _propose(c, rng, kind, particle, placed, margin)
            if centre is None:
                continue
            gap = [np.hypot(*np.subtract(centre, p.centre)) - p.reach - particle.reach for p in placed]
            mates = {"isolated": 0, "cut": 0, "touching": 1, "overlapping": 1}[kind] if placed else 0
            if sum(g < margin for g in gap) <= mates:
                placed.append(replace(particle, centre=tuple(map(float, centre))))
                break
        else:
            continue  # the field is full: the phantom has one particle less
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
    reach = _extent(mate, direction) + _extent(particle, -direction)
    overlap = rng.uniform(0.05, 0.2) * 2 * particle.radius if kind == "overlapping" else 0.0
    centre = np.array(mate.centre) + direction * (reach - overlap)
    return centre if (centre > border).all() and (centre < shape - border).all() else None


def _extent(particle: Particle, direction: np.ndarray) -> float:
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
    outline *= radius / np.sqrt((outline**2).mean())
    weight = (outline**2).sum() / 2
    centroid = [(outline**3 * f).sum() / 3 / weight for f in (np.sin(theta), np.cos(theta))]
    m = 8 if c.inner_texture else 0
    length = np.exp(rng.uniform(np.log(5.0), np.log(max(radius, 6.0)), m))
    turn = rng.uniform(0, 2 * np.pi, m)
    waves = np.stack([np.sin(turn) * 2 * np.pi / length, np.cos(turn) * 2 * np.pi / length,
                      rng.uniform(0, 2 * np.pi, m), np.full(m, c.inner_texture / 2)], axis=1)
    chemistry = {"start": rng.uniform(0.05, 0.25), "rate": rng.uniform(0.4, 0.7), "shell": rng.uniform(-0.3, 0.5),
                 "slope": rng.uniform(0, 0.25), "direction": rng.uniform(0, 2 * np.pi)}
    return Particle((0.0, 0.0), float(radius), outline, (-centroid[0], -centroid[1]),
                    (rng.uniform(2, 6), rng.uniform(*c.profile)), float(rng.uniform(*c.edge_step)), waves, chemistry)


def _draw_motion(c: PhantomConfig, n_particles: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rigid motion (frame, axis) and each particle's own motion (particle, frame, axis), px, zero in frame 0.

    The first particle has no motion of its own, as the black curves of the paper's Fig. 3.
    """
    n = c.n_frames
    steps = c.walk * rng.standard_normal((n, 2))
    rigid = np.cumsum(steps, axis=0) + c.jitter * rng.standard_normal((n, 2))
    for _ in range(rng.poisson(c.jumps * c.n_scans) if n > 1 else 0):
        rigid[rng.integers(1, n):] += rng.uniform(-12, 12, 2)
    # A stage is brought back before the sample leaves the field of view.
    room = 0.06 * min(c.shape)
    rigid = room * np.tanh((rigid - rigid[0]) / room)
    time = np.arange(n) / max(len(c.energies), 1)
    own = np.zeros((n_particles, n, 2))
    for wave in range(4):
        rate = rng.uniform(0.3, 1 + wave, (n_particles, 1, 2)) / 2
        phase = rng.uniform(0, 2 * np.pi, (n_particles, 1, 2))
        size = rng.normal(0, 1 / (1 + wave), (n_particles, 1, 2))
        own += size * (np.sin(2 * np.pi * rate * time[:, None] + phase) - np.sin(phase))
    own *= c.deformation / 2
    if c.deformation:
        own = 2.5 * c.deformation * np.tanh(own / (2.5 * c.deformation))
    own[:1] = 0
    return rigid, own


def _draw_status(c: PhantomConfig, rng: np.random.Generator) -> np.ndarray:
    """Status of every frame: a share of `bad_frames`, never the first, is blank, blurred or corrupt."""
    kinds = [FrameStatus.BLANK, FrameStatus.BLURRED, FrameStatus.CORRUPT]
    bad = rng.random(c.n_frames) < c.bad_frames
    bad[:1] = False
    return np.where(bad, rng.choice(kinds, c.n_frames), FrameStatus.OK).astype(np.int8)


def _random_field(shape: tuple[int, int], length: float, seed: list[int]) -> np.ndarray:
    """Periodic Gaussian random field with the given correlation length (px), mean 0, deviation 1, a margin wider."""
    size = [fft.next_fast_len(n + 64, real=True) for n in shape]
    noise = np.random.default_rng(seed).standard_normal(size)
    ky, kx = fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])
    smooth = fft.irfft2(fft.rfft2(noise) * np.exp(-2 * (np.pi * length / 2) ** 2 * (ky**2 + kx**2)), s=size)
    return (smooth - smooth.mean()) / smooth.std()


def _shifted(canvas: np.ndarray, shift: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """The periodic field moved by `shift` (reference px) and seen at `scale` reference px per px, (y, x).

    `canvas` holds the field's cubic spline coefficients. The field has no wavelength near two pixels, so that the
    interpolation error is far below noise.
    """
    rows, columns = (_spline_weights(n, size, (n - 1) / 2 * (1 - scale) - move, scale)
                     for n, size, move in zip(shape, canvas.shape, shift, strict=True))
    return (columns @ (rows @ canvas).T).T


def _spline_weights(n: int, size: int, first: float, step: float) -> sparse.csr_array:
    """Cubic spline weights that sample a periodic axis of `size` coefficients at first + step * (0...n - 1)."""
    place = first + step * np.arange(n)
    base = np.floor(place).astype(int)
    t = place - base
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]) / 6
    columns = (base + np.arange(-1, 3)[:, None]) % size
    return sparse.csr_array((weights.T.ravel(), columns.T.ravel(), np.arange(0, 4 * n + 1, 4)), shape=(n, size))
