"""Blurred frames are told from sharp ones of little contrast, few counts or other matter."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage
from test_normalize import raw_of, whole

from xreg import measure_sharpness, reject_blurred
from xreg.kernels.sharpness import BANDS, FEWEST_PEERS, TILE, band_powers, blurred_frames
from xreg.normalize import survey
from xreg.schema import FrameStatus
from xreg.synthetic import Phantom, PhantomConfig, ni_energies

BLURS = {
    "defocus": lambda beam: ndimage.gaussian_filter(beam, 3),
    "motion": lambda beam: ndimage.uniform_filter1d(beam, 8, axis=1),
    "oblique": lambda beam: ndimage.convolve(beam, np.eye(8) / 8),
    "slight": lambda beam: ndimage.gaussian_filter(beam, 1.25),
}


class Blurring(Phantom):
    """A phantom whose transmission is blurred in ways that the simulator itself does not know."""

    blur = None

    def transmission(self, frame):
        beam = super().transmission(frame)
        return BLURS[self.blur](beam) if self.blur else beam


def powers_of(phantom, blur=None):
    """Sharpness of all frames, blurred in one way, without errors of the references."""
    phantom.blur = blur
    return np.array([band_powers(phantom.noisy_optical_density(k)) for k in range(phantom.config.n_frames)])


def verdicts(sharp, blurred, energy, share=0.1, times=10):
    """Share of blurred frames that are found when some frames are blurred, and number of sharp ones condemned."""
    rng = np.random.default_rng(0)
    found = there = wrong = 0
    for _ in range(times):
        bad = rng.uniform(size=len(energy)) < share
        judged = blurred_frames(np.where(bad[:, None], blurred, sharp), energy)
        found, there, wrong = found + (judged & bad).sum(), there + bad.sum(), wrong + (judged & ~bad).sum()
    return found / there, wrong


CONFIG = PhantomConfig(shape=(256, 256), energies=tuple(ni_energies(12)), n_scans=2, n_particles=4, seed=2)


@pytest.mark.parametrize(("counts", "least"), [(9000.0, 0.95), (300.0, 0.25)])
def test_blurred_frames_are_found_and_sharp_ones_kept(counts, least):
    phantom = Blurring(CONFIG, counts=counts)
    sharp = powers_of(phantom)
    assert not blurred_frames(sharp, phantom.energy).any()
    for blur in ("defocus", "motion", "oblique"):
        found, wrong = verdicts(sharp, powers_of(phantom, blur), phantom.energy)
        assert found >= least, blur
        assert wrong == 0, blur
    assert verdicts(sharp, powers_of(phantom, "slight"), phantom.energy) == (0.0, 0)


def test_frames_without_structure_are_not_blurred():
    rng = np.random.default_rng(0)
    powers = np.array([band_powers(rng.normal(0, 0.05, (192, 192))) for _ in range(40)])
    assert not blurred_frames(powers, np.linspace(8200, 8500, 40)).any()


def test_weak_contrast_alone_is_no_blur():
    """Frames of a tenth of the contrast, and one alone between strong ones, with the noise of all."""
    rng = np.random.default_rng(1)
    picture = ndimage.gaussian_filter(rng.normal(0, 1, (192, 192)), 2) * 4
    contrast = np.r_[np.full(12, 0.1), np.full(12, 1.0)] * rng.uniform(0.9, 1.1, 24)
    contrast[18] = 0.1
    powers = np.array([band_powers(c * picture + rng.normal(0, 0.05, picture.shape)) for c in contrast])
    assert not blurred_frames(powers, np.linspace(8300, 8400, 24)).any()


def test_of_few_frames_none_is_condemned():
    powers = np.full((FEWEST_PEERS, BANDS), 1.0)
    powers[0, 1:] = 1e-6
    assert not blurred_frames(powers, np.full(FEWEST_PEERS, 8400.0)).any()
    powers = np.concatenate([powers, powers[1:2]])
    assert blurred_frames(powers, np.full(len(powers), 8400.0)).tolist() == [True] + [False] * FEWEST_PEERS
    powers[3] = np.nan
    assert not blurred_frames(powers, np.full(len(powers), 8400.0)).any()


def test_powers_are_those_of_the_planted_waves():
    """Mean density over a band is the wave's variance over the band's area; noise is taken off."""
    y, x = np.mgrid[:256, :256]
    waves = {1: 0.125 * y, 2: 0.0884 * (y + x), 3: 0.125 * x, 4: 0.0884 * (y - x)}
    noise = np.random.default_rng(0).normal(0, 0.1, y.shape)
    for place, phase in waves.items():
        powers = band_powers(0.3 * np.sin(2 * np.pi * phase) + noise)
        assert powers[1:5].argmax() == place - 1
        others = np.delete(powers[1:5], place - 1)
        assert np.abs(others).max() < 5 * powers[5]
        # A quarter of the ring from 0.08 to 0.2 cycles per px, and the wave's two halves in opposite quarters.
        area = np.pi * (0.2**2 - 0.08**2) / 4
        assert powers[place] == pytest.approx(0.3**2 / 2 / area, rel=0.1)
    assert np.abs(band_powers(noise)[:5]).max() < 5 * band_powers(noise)[5] * 3


def test_frames_without_a_whole_tile_have_no_sharpness():
    assert np.isnan(band_powers(np.zeros((TILE - 1, 500)))).all()
    density = np.random.default_rng(0).normal(0, 1, (130, 130))
    density[:, 60:70] = np.nan
    assert np.isnan(band_powers(density)).all()
    density[:, 64:] = 0
    assert np.isfinite(band_powers(density)).all()


# -- the lazy face -----------------------------------------------------------------------------------------------------


def lazily(frames, chunk):
    """A normalised dataset of 12 frames, the fifth blurred, and its regions."""
    energy = np.full(len(frames), 8400.0)
    return xr.Dataset({"optical_density": (("frame", "y", "x"), da.from_array(frames, chunks=(chunk, -1, -1))),
                       "frame_status": ("frame", np.r_[np.zeros(len(frames) - 1, int), 3]),
                       "roi_position": (("frame", "roi", "axis"), np.ones((len(frames), 2, 2)))},
                      {"energy": ("frame", energy)})


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(3)
    made = ndimage.gaussian_filter(rng.normal(0, 1, (160, 160)), 2) + rng.normal(0, 0.02, (12, 160, 160))
    made[4] = ndimage.gaussian_filter(made[4], 3) + rng.normal(0, 0.02, (160, 160))
    return made.astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_blurred_frames_of_a_lazy_dataset_whatever_its_chunks(frames, chunk):
    normalized = lazily(frames, chunk)
    judged = reject_blurred(normalized.assign(sharpness=measure_sharpness(normalized)).compute())
    assert judged["frame_status"].values.tolist() == [0] * 4 + [FrameStatus.BLURRED] + [0] * 6 + [3]
    assert np.isnan(judged["roi_position"][4]).all()
    assert np.isfinite(judged["roi_position"]).sum() == 11 * 4
    assert "blurred" in judged["frame_status"].attrs["flag_meanings"]
    np.testing.assert_array_equal(judged["sharpness"], [band_powers(frame) for frame in frames])


def test_building_computes_nothing(frames, no_compute):
    assert measure_sharpness(lazily(frames, 5)).chunks == ((5, 5, 2), (BANDS,))


def test_bad_input_is_refused(frames):
    normalized = lazily(frames, 5)
    with pytest.raises(ValueError, match="sharpness is missing; need it for every frame"):
        reject_blurred(normalized)
    with pytest.raises(ValueError, match="frame_status is missing"):
        reject_blurred(normalized.drop_vars("frame_status"))
    with pytest.raises(ValueError, match="sharpness has dims"):
        reject_blurred(normalized.assign(sharpness=("frame", np.zeros(12))))


# -- through the normalisation -----------------------------------------------------------------------------------------


def test_measured_frames_are_not_condemned(shared_data):
    from xreg.readers import open_source

    source = open_source(shared_data / "ssrl62c")
    flats = np.arange(16)
    raw = source.table.isel(flat=flats).assign(
        counts=(("frame", "y", "x"), np.stack([source.read_counts(i) for i in range(6)])),
        flats=(("flat", "y", "x"), np.stack([source.read_flat(i) for i in flats])))
    density, *_ = whole(raw, survey(raw))
    powers = np.array([band_powers(frame) for frame in density])
    assert not blurred_frames(powers, raw["energy"].values).any()
    assert (powers[:, 1:5] > 20 * powers[:, 5:]).all()


CASES = {
    **{f"{counts:g} counts, texture {texture}": {"counts": counts, "texture": texture}
       for counts in (9000.0, 1500.0, 300.0, 100.0) for texture in (0.03, 0.0)},
    "small particles": {"radius": (8.0, 14.0), "counts": 1500.0},
    "large particles": {"radius": (45.0, 60.0), "n_particles": 2, "counts": 1500.0},
    "magnification and fringe": {"magnification": True, "fringe": 0.3},
    "texture alone": {"n_particles": 0, "touching": 0},
    "nothing at all": {"n_particles": 0, "touching": 0, "texture": 0.0},
    "jumps and cut particles": {"cut": 2, "jumps": 3.0, "jitter": 2.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_through_the_normalisation(name, capsys):
    """Print how many blurred frames are found in 32, of which a tenth are blurred; no sharp one may be condemned."""
    phantom = Blurring(CONFIG, energies=tuple(ni_energies(16)), **CASES[name])
    raw = raw_of(phantom)
    looked = survey(raw)
    n, rates, powers = phantom.config.n_frames, [], {}
    for blur in (None, "defocus", "motion", "oblique"):
        phantom.blur = blur
        spoilt = raw if blur is None else raw.assign(
            counts=(raw.counts.dims, np.stack([phantom.counts(k) for k in range(n)])))
        parts = [whole(spoilt, looked, slice(k, k + 8))[0] for k in range(0, n, 8)]
        powers[blur] = np.array([band_powers(frame) for part in parts for frame in part])
    assert not blurred_frames(powers[None], phantom.energy).any()
    for blur in ("defocus", "motion", "oblique"):
        found, wrong = verdicts(powers[None], powers[blur], phantom.energy)
        rates.append(f"{blur} {found:.2f}")
        assert wrong == 0
    with capsys.disabled():
        print(f"\n{name}: {', '.join(rates)}")
