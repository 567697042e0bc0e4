"""Networks: the published structure, weights that are what they claim to be, inference that is blind to grouping."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from xreg.models.cyclegan import Discriminator, Generator, GeneratorConfig
from xreg.models.dual_unet import DualUNet, UNet, UNetConfig
from xreg.models.infer import BINNING, _in_memory, bin_frame, choose_device, particle_map, soft_contours
from xreg.models.weights import Weights, card, load, read, save, shipped


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(4, (1, 2))).eval()
    return save(network, tmp_path_factory.mktemp("w") / "g.safetensors", {"made": "here"})


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    torch.manual_seed(0)
    return save(DualUNet(UNetConfig(width=4)).eval(), tmp_path_factory.mktemp("w") / "d.safetensors", {})


def count(network, kind, size):
    return sum(isinstance(m, kind) and getattr(m, "kernel_size", None) == (size, size) for m in network.modules())


def test_the_unet_is_the_published_one():
    network = UNet(UNetConfig())
    assert count(network, torch.nn.Conv2d, 3) == 18
    assert count(network, torch.nn.Conv2d, 1) == 1
    assert sum(isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2) for m in network.modules()) == 4
    doubled = []
    network.enlarge.register_forward_hook(lambda *_: doubled.append(1))
    assert network.eval()(torch.zeros(2, 3, 96, 96)).shape == (2, 1, 96, 96)
    assert len(doubled) == 4


def test_fusion_is_the_mean_of_both_networks():
    both = DualUNet(UNetConfig(width=4)).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = (torch.sigmoid(both.low(x)) + torch.sigmoid(both.high(x))) / 2
        torch.testing.assert_close(both(x), expected)


def test_one_unet_alone_refines_too(dual, tmp_path):
    both = read(dual)
    alone = [save(network, tmp_path / f"{name}.safetensors", {}) for name, network in
             (("low", both.low), ("high", both.high))]
    regions = np.random.default_rng(0).random((2, 3, 96, 96), dtype=np.float32)
    said = [soft_contours(regions, Weights.of(w.path, "refiner"), "cpu") for w in alone]
    np.testing.assert_allclose(np.mean(said, axis=0), soft_contours(regions, dual, "cpu"), atol=1e-5)


def test_the_generator_keeps_the_size_and_sees_a_whole_particle():
    network = Generator(GeneratorConfig()).eval()
    x = torch.rand(1, 1, 156, 156, requires_grad=True)
    y = network(x)
    assert y.shape == x.shape
    y[0, 0, 78, 78].backward()
    seen = torch.nonzero(x.grad[0, 0].abs() > 0)
    # Half of the width that it sees, in raw px, is more than a radius of 160 px.
    assert (seen.max() - seen.min()) / 2 * BINNING > 160
    assert Discriminator()(torch.zeros(1, 1, 144, 144)).shape[1] == 1


@pytest.mark.parametrize("shape", [(97, 110), (64, 64), (101, 131)])
def test_the_map_has_the_frames_size_at_the_frames_place(generator, shape):
    frame = np.zeros(shape, np.float32)
    frame[:20] = np.nan
    found = particle_map(frame, generator, "cpu")
    assert found.shape == shape
    assert np.isfinite(found).all()


def test_binning_takes_the_mean_of_valid_pixels():
    frame = torch.arange(36.0).reshape(1, 1, 6, 6)
    frame[0, 0, 0, 0] = torch.nan
    frame[0, 0, 3:, 3:] = torch.nan
    binned = bin_frame(frame)
    assert binned.shape == (1, 1, 2, 2)
    block = torch.arange(36.0).reshape(6, 6)[:3, :3].flatten()[1:]
    assert binned[0, 0, 0, 0] == pytest.approx(float(block.mean()))
    assert binned[0, 0, 1, 1] == 0


def test_contours_of_a_region_do_not_depend_on_its_neighbours_in_the_batch(dual):
    regions = np.random.default_rng(0).random((5, 3, 96, 96), dtype=np.float32)
    together = soft_contours(regions, dual, "cpu")
    alone = np.concatenate([soft_contours(regions[k:k + 1], dual, "cpu") for k in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_too_small_a_memory_halves_the_batch():
    sizes = []

    class Tight(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            if len(x) > 2:
                raise torch.cuda.OutOfMemoryError
            return x

    x = torch.arange(7.0)[:, None]
    torch.testing.assert_close(_in_memory(Tight(), x, "cpu"), x)
    assert sizes[0] == 7
    assert max(sizes[-4:]) <= 2


def test_folding_the_normalisation_changes_nothing(tmp_path):
    torch.manual_seed(1)
    network = Generator(GeneratorConfig(4, (1, 2)))
    for _ in range(3):
        network(torch.rand(2, 1, 24, 24))
    weights = save(network.eval(), tmp_path / "g.safetensors", {})
    folded = load(weights, "cpu")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    x = torch.rand(1, 1, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(read(weights).eval()(x), network(x))


def test_weights_carry_their_card_and_load_once(generator):
    assert card(generator) == {"made": "here"}
    assert load(generator, "cpu") is load(generator, "cpu")
    assert not load(generator, "cpu").training


def test_cards_are_printed(tmp_path):
    made = {"command": "here", "settings": {"steps": 4, "more": {"seed": 0}}}
    weights = save(Generator(GeneratorConfig(4, (1,))), tmp_path / "g.safetensors", made)
    done = subprocess.run([sys.executable, "-m", "xreg.models.weights", weights.path], check=True, capture_output=True)
    assert done.stdout.decode() == (
        f"g.safetensors  sha256 {weights.sha256}\n  command: here\n  settings:\n      steps: 4\n      more:\n"
        "          seed: 0\n")


@pytest.mark.parametrize("name", ["detector", "refiner"])
def test_shipped_weights_load_and_say_how_they_were_made(name):
    weights = shipped(name)
    assert len(weights.sha256) == 64
    assert card(weights)["command"].startswith("xreg train")
    load(weights, "cpu")


def test_changed_missing_and_foreign_weights_are_refused(tmp_path, generator):
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(b"not what it was")
    with pytest.raises(ValueError, match=r"have sha256 .* need .* changed since the run was set up"):
        load(Weights(str(changed), generator.sha256), "cpu")
    with pytest.raises(ValueError, match=r"cannot be read .* give a file that `xreg train` wrote"):
        load(Weights.of(changed), "cpu")
    with pytest.raises(ValueError, match="there are no weights at"):
        Weights.of(tmp_path / "none.safetensors")
    pickled = tmp_path / "weights.pt"
    pickled.write_bytes(b"")
    with pytest.raises(ValueError, match="not safetensors; other formats can run code and are refused"):
        Weights.of(pickled)
    with pytest.raises(ValueError, match=r"were not written by `xreg train`; need those of a refiner"):
        Weights.of(changed, "refiner")


def test_weights_are_found_from_another_folder_and_where_xreg_lies_elsewhere(tmp_path, generator, monkeypatch):
    monkeypatch.chdir(Path(generator.path).parent)
    assert Weights.of(Path(generator.path).name) == generator
    elsewhere = Weights("/somewhere/else/detector.safetensors", shipped("detector").sha256)
    assert read(elsewhere).config == read(shipped("detector")).config
    with pytest.raises(ValueError, match="there are no weights at /somewhere/else"):
        read(Weights(elsewhere.path, "1" * 64))


def test_devices():
    assert choose_device("cpu") == "cpu"
    assert choose_device() in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device is 'tpu'; need one of auto, cpu, cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            choose_device("cuda")


@pytest.mark.gpu
def test_gpu_and_cpu_agree(generator, dual):
    rng = np.random.default_rng(0)
    frame = rng.standard_normal((200, 220)).astype(np.float32)
    regions = rng.random((5, 3, 96, 96), dtype=np.float32)
    np.testing.assert_allclose(particle_map(frame, generator, "cuda"), particle_map(frame, generator, "cpu"), atol=1e-3)
    np.testing.assert_allclose(soft_contours(regions, dual, "cuda"), soft_contours(regions, dual, "cpu"), atol=1e-3)


def test_importing_xreg_loads_neither_torch_nor_dask():
    code = "import sys, xreg; assert 'torch' not in sys.modules and 'dask' not in sys.modules; print(xreg.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
