import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_up import made_up
from matplotlib.text import Text

from xreg import plot


@pytest.fixture(scope="module")
def data():
    raw, result, _ = made_up()
    return raw["optical_density"].values, result


@pytest.fixture(scope="module")
def figures(data):
    """Every figure, by name."""
    stack, result = data
    first, last = plot.first_last_frames(result)
    return {
        "frame": plot.plot_frame(result, first, optical_density=stack[first], counts=np.exp(-stack[first])),
        "tracks": plot.plot_tracks(result, last, stack[last]),
        "nonrigid": plot.plot_nonrigid(result, last, stack[last]),
        "differences": plot.plot_differences(result, (first, last), (stack[first], stack[last])),
        "displacement": plot.plot_trajectories(result),
        "motion": plot.plot_motion(result),
        "vibration": plot.plot_vibration(result),
        "strain": plot.plot_strain(result, last),
        "maps": plot.plot_edge_maps(result),
        "histograms": plot.plot_edge_histograms(result),
        "spectra": plot.plot_spectra(result),
    }


def texts(figure):
    """Every text that is drawn, with its box in pixels."""
    figure.draw_without_rendering()
    unseen = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                unseen |= {tick.label1, tick.label2}
    found = []
    for text in figure.findobj(Text):
        if text not in unseen and text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            if box.width:
                found.append((text.get_text(), box))
    return found


def axes_text(figure):
    labels = [a.get_title() + a.get_xlabel() + a.get_ylabel() for a in figure.axes]
    return " ".join(labels + [text for text, _ in texts(figure)])


def test_text_is_inside_the_figure_and_apart(figures):
    for name, figure in figures.items():
        width, height = figure.get_size_inches() * figure.dpi
        boxes = [(t, b) for t, b in texts(figure) if b.x1 > 0 and b.y1 > 0]
        for text, box in boxes:
            inside = box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2
            assert inside, f"{name}: {text!r} leaves the figure"
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{name}: {one!r} lies on {other!r}"


def test_nothing_is_registered_globally(figures):
    assert len(figures) == 11
    assert plt.get_fignums() == []


def test_differences_share_one_symmetric_range_and_shrink(figures):
    figure = figures["differences"]
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len({image.get_clim() for image in images}) == 1
    low, high = images[0].get_clim()
    assert low == -high
    assert images[0].get_cmap().name == "RdBu_r"
    before, after = ([i for i in images if i.axes.get_subplotspec().rowspan.start == row] for row in (0, 1))
    for one, other in zip(before, after, strict=True):
        assert np.nanstd(other.get_array()) < np.nanstd(one.get_array())


def test_vibrations_above_the_noise_are_marked(data):
    _, result = data
    shaken = result.copy(deep=True)
    shaken["rigid"][:, 1] += 3 * np.sin(2 * np.pi * 0.21 * np.arange(result.sizes["frame"]))
    shaken = shaken.assign_coords(scan=("frame", np.zeros(result.sizes["frame"], int)))
    y, x = plot.plot_vibration(shaken).axes
    points = [next(line.get_xdata() for line in ax.lines if line.get_marker() == "o") for ax in (y, x)]
    assert len(points[0]) == 0
    assert np.median(points[1]) == pytest.approx(0.21, abs=0.01)
    assert x.get_xlabel() == "frequency (cycles per frame)"


def test_strain_colours_are_the_change_of_area(data):
    _, result = data
    grown = result.copy(deep=True)
    grown["position"][:, 1:] = grown["position"][:, :1] * 1.02
    discs = plot.plot_strain(grown, 4).axes[0].collections[-1]
    np.testing.assert_allclose(discs.get_array(), 1.02**2 - 1, atol=1e-9)


def test_maps_share_one_range_in_ev_and_are_empty_outside(figures):
    figure = figures["maps"]
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 8
    assert len({image.get_clim() for image in images}) == 1
    assert images[0].get_cmap().name == "plasma"
    assert np.ma.getmaskarray(images[0].get_array())[0, 0]
    words = axes_text(figure)
    assert "E(µ = 0.5) (eV)" in words
    assert "µm" in words


def test_maps_name_another_definition(data):
    _, result = data
    result = result.copy()
    result["edge_energy"] = result["edge_energy"].assign_attrs(definition="e0")
    assert "E(e0) (eV)" in axes_text(plot.plot_edge_maps(result))


def test_no_scale_bar_without_a_pixel_size(data):
    stack, result = data
    result = result.copy()
    result.attrs = {}
    assert "µm" not in axes_text(plot.plot_frame(result, 0, optical_density=stack[0]))


def test_mean_spectrum_is_the_mean_inside_the_contour(data):
    _, result = data
    energy, mean = plot.mean_spectrum(result.chunk(frame=5), 1, 1)
    inside = result["contour"].values[1]
    np.testing.assert_allclose(mean, result["aligned"].values[1, 24:][:, inside].mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(energy, np.sort(result["energy"].values[24:]))


def test_unseen_frames_leave_gaps_in_the_spectrum(data):
    _, result = data
    result = result.copy(deep=True)
    result["aligned"][1, 3] = np.nan
    _, mean = plot.mean_spectrum(result, 1, 0)
    assert np.isnan(mean).sum() == 1


def test_frames_and_particles_that_are_drawn(data):
    _, result = data
    result = result.copy(deep=True)
    result["frame_status"][0] = 2
    result["position"][2, -3:] = np.nan
    assert plot.first_last_frames(result) == (1, 44)
    assert plot.drawn_particles(result, most=2) == [0, 1]
    assert plot.drawn_scans(result.isel(scan=[0] * 45), most=3) == [0, 22, 44]


@pytest.mark.parametrize("count", [0, 1, 10, 11, 300])
def test_every_particle_has_a_colour(count):
    colours = plot.particle_colours(count)
    assert colours.shape == (count, 4)
    assert len(np.unique(colours, axis=0)) == min(count, len(np.unique(colours, axis=0)))


def test_many_particles_and_missing_positions(data):
    stack, result = data
    many = result.isel(particle=np.arange(24) % 4)
    many["position"] = many["position"].where(many["position"]["frame"] != 3)
    assert len(plot.plot_trajectories(many, "nonrigid").legends) == 0
    plot.plot_frame(many, 3, optical_density=stack[3]).draw_without_rendering()


def test_magnified_frames_have_larger_outlines(data):
    stack, result = data
    result = result.assign_attrs(magnification="proportional-to-energy", pixel_size_energy_ev=2 * 8250.0)
    plain = plot.plot_frame(data[1], 0, optical_density=stack[0]).axes[0]
    large = plot.plot_frame(result, 0, optical_density=stack[0]).axes[0]
    width = [ax.collections[0].get_paths()[0].get_extents().width for ax in (plain, large)]
    assert width[1] == pytest.approx(2 * width[0], rel=0.01)


def test_errors_say_what_to_do(data):
    stack, result = data
    with pytest.raises(ValueError, match=r"no picture was given; need optical_density or counts, shape \(y, x\)"):
        plot.plot_frame(result, 0)
    with pytest.raises(ValueError, match="quantity is 'speed'; need one of 'displacement', 'nonrigid'"):
        plot.plot_trajectories(result, "speed")
    none = result.isel(particle=[])
    with pytest.raises(ValueError, match="no particle is seen in any usable frame; need at least one"):
        plot.first_last_frames(none)
    with pytest.raises(ValueError, match="result holds no edge-energy map; need at least one"):
        plot.plot_edge_maps(none)
    with pytest.raises(ValueError, match="no particle was seen; need at least one"):
        plot.plot_spectra(none)
    with pytest.raises(ValueError, match="no particle has enough neighbours that are seen in both frames; need"):
        plot.plot_strain(result.isel(particle=[0, 1]), 5)
    with pytest.raises(ValueError, match="no scan has enough frames for a spectrum; need at least one"):
        plot.plot_vibration(result.isel(frame=[0, 1]))
    empty = result.assign(edge_energy=result["edge_energy"] * np.nan)
    with pytest.raises(ValueError, match="no pixel has an edge energy; need at least one"):
        plot.plot_edge_histograms(empty)
    with pytest.raises(ValueError, match="no particle is seen in both frame 0 and frame 1; need at least one"):
        plot.plot_differences(result.assign(aligned=result["aligned"] * np.nan), (0, 1), (stack[0], stack[1]))
