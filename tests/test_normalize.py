import dask
import numpy as np
import pytest
import xarray as xr

from xreg.normalize import check_raw, level_block, normalize_block, normalize_frames, survey
from xreg.readers import open_source
from xreg.schema import NORMALIZED, FrameStatus, validate
from xreg.synthetic import Phantom, PhantomConfig

PHANTOM = PhantomConfig(
    shape=(180, 200), n_scans=2, energies=(8300.0, 8330.0, 8345.0, 8380.0), n_particles=3, radius=(14.0, 24.0), seed=5
)


def raw_of(phantom, chunks=None):
    """Raw dataset of a phantom, in memory or chunked."""

    def stack(dim, read, n):
        return (dim, "y", "x"), np.stack([read(i) for i in range(n)])

    config, flats = phantom.config, len(phantom.flat_energy)
    raw = xr.Dataset(
        {
            "counts": stack("frame", phantom.counts, config.n_frames),
            "flats": stack("flat", phantom.flat, flats),
            "darks": stack("dark", phantom.dark, config.n_darks),
            "exposure": ("frame", np.full(config.n_frames, config.exposure)),
            "flat_exposure": ("flat", np.full(flats, config.flat_exposure)),
            "flat_energy": ("flat", phantom.flat_energy),
        },
        {"energy": ("frame", phantom.energy), "scan": ("frame", phantom.scan)},
        {"magnification": "constant", "sample": "kept"},
    )
    return raw if chunks is None else raw.assign({n: raw[n].chunk({d: c}) for n, d, c in chunks})


@pytest.fixture(scope="module")
def phantom():
    return Phantom(PHANTOM)


@pytest.fixture(scope="module")
def raw(phantom):
    return raw_of(phantom)


@pytest.fixture(scope="module")
def looked(raw):
    return survey(raw)


@pytest.fixture(scope="module")
def normalized(raw, looked):
    return normalize_frames(raw, looked).compute()


def whole(raw, looked, frames=slice(None)):
    """`normalize_block` of some frames of a dataset in memory."""
    flats, weights = looked.choice.needed(frames)
    return normalize_block(
        raw.counts.values[frames], raw.flats.values[flats], weights, looked,
        raw.exposure.values[frames], raw.flat_exposure.values[flats],
    )  # fmt: skip


def error_of(phantom, density, frame):
    """Normalised less true optical density, and whether the background is open there."""
    open_beam = phantom.particle_density(frame) < 1e-6
    true = -np.log(phantom.transmission(frame))
    return density - (true - np.median(true[open_beam])), open_beam


def test_optical_density_is_the_true_one(phantom, normalized):
    for frame in range(phantom.config.n_frames):
        error, open_beam = error_of(phantom, normalized.optical_density.values[frame], frame)
        ideal = phantom.noisy_optical_density(frame) + np.log(phantom.transmission(frame))
        assert np.isfinite(error).all()
        assert abs(np.median(error[~open_beam]) - np.median(error[open_beam])) < 0.004
        scatter, best = (1.4826 * np.median(np.abs(e - np.median(e))) for e in (error, ideal[np.isfinite(ideal)]))
        # Two flats per energy alone would make it 1.35 of the photon noise, and the shifted grain yet more.
        assert scatter < 1.12 * best


def test_hot_and_dead_pixels_are_found(phantom, raw, looked):
    truth = np.zeros(phantom.config.shape, bool)
    truth.ravel()[phantom._hot[0]] = True
    assert truth.any()
    np.testing.assert_array_equal(looked.bad, truth)


def test_everything_is_described(normalized, raw):
    validate(normalized, NORMALIZED, *NORMALIZED)
    assert normalized.attrs["sample"] == "kept"
    assert normalized.optical_density.dtype == np.float32
    assert normalized.frame_status.attrs["flag_meanings"].startswith("ok blank")
    np.testing.assert_array_equal(normalized.energy, raw.energy)
    assert (normalized.frame_status == FrameStatus.OK).all()


@pytest.mark.parametrize(("frames", "flats"), [(1, 1), (3, 4), (8, 100)])
def test_any_chunking_gives_the_same(phantom, raw, normalized, frames, flats):
    chunked = raw_of(phantom, [("counts", "frame", frames), ("flats", "flat", flats), ("darks", "dark", 1)])
    again = normalize_frames(chunked).compute(scheduler="sync")
    xr.testing.assert_identical(again, normalized)


def test_a_frame_alone_gives_the_same(raw, looked, normalized):
    for frame in (0, 5):
        density, noise, background, status = whole(raw, looked, slice(frame, frame + 1))
        np.testing.assert_array_equal(density[0], normalized.optical_density.values[frame])
        assert noise[0] == normalized.noise.values[frame]
        np.testing.assert_array_equal(background[0], normalized.background.values[frame])
        assert status[0] == FrameStatus.OK


def test_nothing_is_computed_while_the_graph_is_built(phantom, no_compute):
    chunked = raw_of(phantom, [("counts", "frame", 2), ("flats", "flat", 4), ("darks", "dark", 1)])
    lazy = normalize_frames(chunked)
    assert lazy.optical_density.chunks == ((2, 2, 2, 2), (180,), (200,))
    assert lazy.background.chunks == ((2, 2, 2, 2), (3,))


def test_all_outputs_share_one_pass(phantom, monkeypatch):
    import xreg.normalize.lazy as lazy

    seen = []
    plain = lazy.normalize_frame
    monkeypatch.setattr(lazy, "normalize_frame", lambda *a: (seen.append(1), plain(*a))[1])
    with dask.config.set(scheduler="sync"):
        normalize_frames(raw_of(phantom, [("counts", "frame", 4)])).compute()
    assert len(seen) == phantom.config.n_frames


def test_graph_of_many_blocks_is_small():
    """Frames that share one reference need nothing per block in the graph but the block itself."""
    import pickle

    import dask.array as da

    n = 20_000
    raw = xr.Dataset(
        {"counts": (("frame", "y", "x"), da.zeros((n, 32, 32), np.uint16, chunks=(1, 32, 32))),
         "flats": (("flat", "y", "x"), da.ones((2, 32, 32), np.uint16))},
        {"energy": ("frame", np.full(n, 8324.0)), "scan": ("frame", np.zeros(n, int))},
    )  # fmt: skip
    lazy = normalize_frames(raw)
    assert len(pickle.dumps(lazy.optical_density.data.dask)) < 1_000_000


def test_bad_frames_are_told_apart(phantom, raw, looked):
    counts = raw.counts.values.astype(np.float32)
    counts[0] = 0
    counts[1] = np.random.default_rng(0).normal(100, 3, counts[1].shape)
    counts[2, 60:] = 0
    counts[3] = 700
    counts[4] = np.nan
    spoilt = raw.assign(counts=(("frame", "y", "x"), counts), frame_status=("frame", np.array([0] * 5 + [3, 0, 0])))
    made = normalize_frames(spoilt, looked).compute()
    blank, corrupt = FrameStatus.BLANK, FrameStatus.CORRUPT
    expected = [blank, blank, corrupt, corrupt, corrupt, corrupt, FrameStatus.OK, FrameStatus.OK]
    assert made.frame_status.values.tolist() == expected
    assert np.isnan(made.optical_density.values[:6]).all()
    assert np.isnan(made.noise.values[:6]).all()
    assert np.isnan(made.background.values[:6]).all()
    assert np.isfinite(made.optical_density.values[6:]).all()


def test_what_is_no_number_condemns_no_frame(raw, looked, normalized):
    counts = raw.counts.values.astype(np.float32)
    counts[0, :, 120] = np.nan  # a column that is dead in one frame
    counts[1, 60:70, 60:70] = np.nan
    counts[2, 90, 90] = np.inf
    made = normalize_frames(raw.assign(counts=(raw.counts.dims, counts)), looked).compute()
    assert (made.frame_status == FrameStatus.OK).all()
    holes = np.isnan(made.optical_density.values)
    assert not holes[0].any()  # filled from its neighbours
    assert holes[1, 61:69, 61:69].all()
    assert holes[1].sum() <= 100
    assert not holes[2:].any()
    near = np.delete(made.optical_density.values[0] - normalized.optical_density.values[0], 120, axis=1)
    assert np.abs(near).max() < 0.01


def test_references_with_pixels_that_are_no_numbers(raw, normalized):
    flats, darks = (raw[name].values.astype(np.float32) for name in ("flats", "darks"))
    flats[0, 40, 40], flats[1, 41:44, 41:44], flats[:, 30, 30] = np.inf, np.nan, np.nan
    darks[0, 20:22, 20] = np.nan
    spoilt = raw.assign(flats=(raw.flats.dims, flats), darks=(raw.darks.dims, darks))
    made = normalize_frames(spoilt).compute()
    assert (made.frame_status == FrameStatus.OK).all()
    assert np.isfinite(made.optical_density).all()
    assert np.abs(made.optical_density - normalized.optical_density).mean() < 2e-3
    with pytest.raises(ValueError, match="flats hold no counts above the dark"):
        survey(raw.assign(flats=(raw.flats.dims, flats * np.nan)))


def test_saturated_pixels_are_no_measurement(raw, looked):
    counts, flats = raw.counts.values.copy(), raw.flats.values.copy()
    counts[0, 100:140] = 65535  # a fifth of the frame
    counts[1, 50, 60] = counts[1, 80:84, 80:84] = 65535
    made = normalize_frames(raw.assign(counts=(raw.counts.dims, counts)), looked).compute()
    assert made.frame_status.values.tolist() == [FrameStatus.CORRUPT] + [FrameStatus.OK] * 7
    density = made.optical_density.values[1]
    assert np.isfinite(density[50, 60])
    assert np.isnan(density[81:83, 81:83]).all()
    flats[raw.flat_energy.values == 8300.0] = 65535
    chosen, weights = looked.choice.needed(slice(0, 2))
    _, _, _, status = normalize_block(raw.counts.values[:2], flats[chosen], weights, looked)
    assert status.tolist() == [FrameStatus.NO_REFERENCE, FrameStatus.OK]


def test_frames_without_a_usable_flat(raw, looked):
    dead = raw.flats.values.copy()
    dead[raw.flat_energy.values == 8300.0] = 100
    flats, weights = looked.choice.needed(slice(0, 2))
    _, _, _, status = normalize_block(raw.counts.values[:2], dead[flats], weights, looked)
    assert status.tolist() == [FrameStatus.NO_REFERENCE, FrameStatus.OK]


def test_exposure_times_scale_the_counts(raw, looked, normalized):
    """Without them an offset of ln(0.5 / 0.3) remains, which the background takes up."""
    flats, weights = looked.choice.needed(slice(0, 1))
    _, _, background, _ = normalize_block(raw.counts.values[:1], raw.flats.values[flats], weights, looked)
    assert normalized.background.values[0, 0] - background[0, 0] == pytest.approx(np.log(0.5 / 0.3), abs=0.01)


def test_scarce_counts_leave_no_holes():
    phantom = Phantom(PHANTOM, counts=30.0, read_noise=0.0, edge_step=(1.2, 1.6))
    raw = raw_of(phantom)
    counts = raw.counts.values.astype(int) - 100
    assert (counts <= 0).any()
    density = normalize_frames(raw).optical_density.values
    assert np.isfinite(density).mean() > 0.999


def test_field_of_view_can_be_given(raw):
    field = (20, 150, 30, 190)
    made = normalize_frames(raw, field=field).optical_density.values
    assert np.isfinite(made[:, 20:150, 30:190]).all()
    assert np.isnan(np.delete(made, np.s_[20:150], axis=1)).all()
    assert survey(raw, field).lit.sum() == 130 * 160
    with pytest.raises(ValueError, match=r"field of view is \(0, 500, 0, 10\); need 0 <= y0"):
        survey(raw, (0, 500, 0, 10))


@pytest.mark.parametrize(("given", "sentence"), [
    ({"field": (0, 500, 0, 10)}, r"field of view is \(0, 500, 0, 10\); need 0 <= y0"),
    ({"field": (0, 50)}, r"field of view is \(0, 50\); need four whole numbers \(y0, y1, x0, x1\)"),
    ({"field": (0, 50.5, 0, 9)}, "need four whole numbers"),
    ({"field": 5}, "field of view is 5; need four whole numbers"),
    ({"illumination": "look"}, "illumination is a str; need what survey found"),
])
def test_fields_of_view_that_are_none_are_refused_at_once(raw, given, sentence, no_compute):
    with pytest.raises(ValueError, match=sentence):
        normalize_frames(raw, **given)


def test_what_was_found_for_other_frames_is_refused(raw, looked):
    with pytest.raises(ValueError, match=r"illumination is that of frames of .* px, and these have 100 x \d+; need"):
        normalize_frames(raw.isel(y=slice(100)), looked)
    with pytest.raises(ValueError, match=r"references are those of .* frames, and there are 2; need as many"):
        normalize_frames(raw.isel(frame=[0, 1]), looked, references=looked.choice)
    with pytest.raises(ValueError, match="illumination and field are both given"):
        normalize_frames(raw, looked, field=(20, 150, 30, 190))
    with pytest.raises(ValueError, match="got a str; need a Dataset with counts"):
        normalize_frames("raw.zarr")


def test_frames_that_came_as_optical_density(phantom):
    rng = np.random.default_rng(1)
    noise = 0.02 * rng.standard_normal((4, *PHANTOM.shape))
    density = noise + 0.7 + np.stack([phantom.particle_density(i) for i in range(4)])
    density[:, :10] = np.nan
    density[3] = np.nan
    raw = xr.Dataset(
        {"optical_density": (("frame", "y", "x"), density.astype(np.float32))},
        {"energy": ("frame", phantom.energy[:4]), "scan": ("frame", np.zeros(4, int))},
    )
    made = normalize_frames(raw).compute()
    assert made.frame_status.values.tolist() == [0, 0, 0, FrameStatus.CORRUPT]
    np.testing.assert_allclose(made.background.values[:3], [[0.7, 0, 0]] * 3, atol=0.005)
    np.testing.assert_allclose(made.noise.values[:3], 0.02, rtol=0.06)
    assert np.isnan(made.optical_density.values[:, :10]).all()
    again, *_ = level_block(raw.optical_density.values, survey(raw))
    np.testing.assert_array_equal(again, made.optical_density.values)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda r: r.drop_vars("counts"), r"counts is missing; need counts \(or optical_density\)"),
        (lambda r: r.drop_vars("energy"), "energy is missing"),
        (lambda r: r.drop_vars("scan"), "scan is missing"),
        (lambda r: r.isel(frame=slice(0, 0)), "counts is empty"),
        (lambda r: r.assign_coords(energy=r.energy / 1000), "looks like keV; need eV: multiply by 1000"),
        (lambda r: r.assign_coords(energy=r.energy * np.nan), "energy holds values that are missing"),
        (lambda r: r.assign_coords(energy=("other", np.ones(3))), r"energy has dims \('other',\)"),
        (lambda r: r.assign_coords(scan=r.scan - 1), "scan holds -1; need scans numbered from 0"),
        (lambda r: r.drop_dims("flat"), "flats is missing; counts need open-beam references"),
        (lambda r: r.isel(flat=slice(0, 0)), "flats is empty"),
        (lambda r: r.assign(flats=r.flats.rename(y="v")), r"flats has dims \('flat', 'v', 'x'\)"),
        (lambda r: r.drop_vars("flat_energy"), "flat_energy is missing, but there are 4 energies"),
        (lambda r: r.assign(flat_energy=r.flat_energy / 1000), "flat_energy runs from .* looks like keV"),
        (lambda r: r.assign(exposure=r.exposure * 0), "exposure holds values that are not positive"),
        (lambda r: r.assign_attrs(magnification="wild"), "magnification is 'wild'; need one of"),
        (lambda r: r.assign_attrs(magnification=["constant"]), r"magnification is \['constant'\]; need one of"),
        (lambda r: r.assign_attrs(pixel_size_nm="31 nm"), "pixel_size_nm is '31 nm'; need a positive number in nm"),
        (lambda r: r.assign_attrs(pixel_size_nm=[31.2]), r"pixel_size_nm is \[31.2\]; need a positive number in nm"),
        (lambda r: r.assign_attrs(pixel_size_nm=np.nan), "pixel_size_nm is nan; need a positive number in nm"),
        (lambda r: r.assign_attrs(pixel_size_energy_ev=0), "pixel_size_energy_ev is 0; need a positive number in eV"),
        (lambda r: r.assign_attrs(pixel_size_energy_ev=8.333), "pixel_size_energy_ev is 8.333, which looks like keV"),
        (lambda r: r.assign(frame_status=("frame", np.full(8, 99))), r"frame_status holds 99; need one of 0 \(ok\), 1"),
        (lambda r: r.isel(y=[50]), "counts has frames of 1 x 200 px; need at least 16 x 16"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(raw, spoil, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_raw(spoil(raw))


@pytest.mark.parametrize("frames", [slice(4), slice(4, 8), slice(None, None, -1)])
def test_some_frames_with_the_survey_of_all(raw, looked, normalized, frames):
    part = normalize_frames(raw.isel(frame=frames), looked)
    np.testing.assert_array_equal(part.optical_density, normalized.optical_density[frames])
    np.testing.assert_array_equal(part.frame_status, normalized.frame_status[frames])


def test_normalised_frames_are_stored_in_any_chunks(raw, looked, tmp_path):
    raw.to_zarr(tmp_path / "raw.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "raw.zarr", consolidated=False, mask_and_scale=False)
    opened = opened.assign({n: opened[n].load() for n in ("exposure", "flat_exposure", "flat_energy")})
    opened = opened.assign_coords({n: opened[n].load() for n in ("energy", "scan")})
    again = normalize_frames(opened, looked).chunk(frame=3)
    again.to_zarr(tmp_path / "density.zarr", consolidated=False)
    assert xr.open_zarr(tmp_path / "density.zarr", consolidated=False).sizes["frame"] == 8


def test_frames_must_be_whole(phantom):
    split = raw_of(phantom).chunk(y=90)
    with pytest.raises(ValueError, match=r"need 1 each: \.chunk\(y=-1, x=-1\)"):
        normalize_frames(split)


def test_flats_without_counts(raw):
    with pytest.raises(ValueError, match="flats hold no counts above the dark"):
        survey(raw.assign(flats=raw.flats * 0))


def test_one_energy_needs_no_flat_energy(raw):
    one = raw.isel(frame=[0, 4], flat=raw.flat_energy.values == 8300.0).drop_vars("flat_energy")
    assert (normalize_frames(one).frame_status.values == FrameStatus.OK).all()


def test_measured_frames(shared_data):
    """The numbers that were measured on these files independently, where the tilt of the background allows it."""
    source = open_source(shared_data / "ssrl62c")
    frames, flats = [0, 3], np.arange(16)
    raw = source.table.isel(frame=frames, flat=flats).assign(
        counts=(("frame", "y", "x"), np.stack([source.read_counts(i) for i in frames])),
        flats=(("flat", "y", "x"), np.stack([source.read_flat(i) for i in flats])),
    )
    looked = survey(raw)
    assert not looked.lit[1016:].any()
    assert looked.lit.mean() > 0.9
    density, noise, _, status = whole(raw, looked)
    assert (status == FrameStatus.OK).all()
    np.testing.assert_allclose(noise, 0.024, atol=0.005)
    particles = [np.s_[330:400, 600:660], np.s_[640:720, 380:450]]
    pre, post = ([float(np.median(frame[p])) for p in particles] for frame in density)
    np.testing.assert_allclose(pre, 0.24, atol=0.05)
    np.testing.assert_allclose(post, 0.92, atol=0.08)
    for frame in density:
        for region in (np.s_[300:420, 300:380], np.s_[100:180, 600:800], np.s_[900:980, 550:700]):
            assert abs(np.median(frame[region])) < 0.02
