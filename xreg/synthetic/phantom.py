"""The phantom itself: frames, references and truth on request."""

from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from xreg.schema import AXES, COORDINATES, RAW, RESULT, FrameStatus, describe
from xreg.synthetic.config import FULL_WELL, PhantomConfig
from xreg.synthetic.fields import random_field, shifted
from xreg.synthetic.motion import draw_motion, draw_status
from xreg.synthetic.particles import place_particles
from xreg.synthetic.spectra import NI_K_EDGE, edge_spectrum, half_step_energy, pre_edge_absorption

_NOISE, _FLAT, _DARK = 1, 2, 3


class Phantom:
    """A simulated measurement: frames on request, and the truth about them.

    Parameters
    ----------
    config : PhantomConfig
        Settings; two phantoms of equal settings give equal counts in any process and any order of frames.
    """

    def __init__(self, config: PhantomConfig | None = None, **settings):
        if not isinstance(config, PhantomConfig | None):
            msg = f"config is {config!r}; need a PhantomConfig, or settings by name such as Phantom(seed=1)."
            raise ValueError(msg)
        self.config = replace(config or PhantomConfig(), **settings)
        rng = np.random.default_rng([self.config.seed, 0])
        self.particles = place_particles(self.config, rng)
        self.rigid, self.own_motion = draw_motion(self.config, len(self.particles), rng)
        self.frame_status = draw_status(self.config, rng)
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
            # To first order in the fringe, which beside a steep enough grain would ask for less than no light.
            beam = beam * np.maximum(1 + self.config.fringe * ndimage.gaussian_laplace(density, 1.2), 0)
        blur = np.hypot(self.config.blur, 6.0 if self.frame_status[frame] == FrameStatus.BLURRED else 0.0)
        return ndimage.gaussian_filter(beam, blur) if blur else beam

    # -- what the detector sees --------------------------------------------------------------------------------------

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
        return np.clip(np.rint(counts), 0, FULL_WELL).astype(np.uint16)

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
            beam = beam * (1 + c.crackle * shifted(self._crackle, shift, 1.0, c.shape))
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
        a = random_field(self.config.shape, 9.0, [self.config.seed, 5])
        b = random_field(self.config.shape, 3.0, [self.config.seed, 6])
        ridges = ndimage.gaussian_filter(np.exp(-np.abs(a) * 6), 0.8)
        pattern = b * 0.6 - 3 * ridges
        return ndimage.spline_filter((pattern - pattern.mean()) / pattern.std(), mode="grid-wrap")

    @cached_property
    def _texture_field(self) -> np.ndarray:
        """Smooth and finer mottle, standard deviation about 1; spline coefficients."""
        coarse = random_field(self.config.shape, 14.0, [self.config.seed, 7])
        fine = random_field(self.config.shape, 4.0, [self.config.seed, 8])
        return ndimage.spline_filter(0.8 * coarse + 0.6 * fine, mode="grid-wrap")

    def _texture(self, frame: int) -> np.ndarray:
        """Background texture at the stage's place in this frame, (y, x), standard deviation about 1."""
        return shifted(self._texture_field, self.rigid[frame], self.scale(frame), self.config.shape)

    # -- the record ----------------------------------------------------------------------------------------------------

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
        if len(self.particles) < c.n_particles:
            attrs["notices"] = [f"only {len(self.particles)} of {c.n_particles} particles found a place; a larger "
                                "field of view or smaller particles give room for more"]
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
        maps = np.array([[half_step_energy(p.oxidised_fraction(dy, dx, self.progress(s))) for s in range(c.n_scans)]
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
            coords={"energy": ("frame", self.energy), "scan": ("frame", self.scan),
                    "time": ("frame", self.time), "axis": list(AXES), "y": offset, "x": offset},
            attrs={"simulation": c.to_dict(), "definition": "half_step",
                   "comment": "truth of a simulated measurement"},
        )
        return describe(ds, {**RESULT, **COORDINATES})
