from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import made_up

from xreg.report import write_report


@pytest.fixture(scope="module")
def data():
    return made_up(energies=16)


class Page(HTMLParser):
    """Texts, pictures and open tags of a page."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.tags, self.words = [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def as_counts(raw):
    """The same frames as detector counts with one open-beam exposure."""
    density = raw["optical_density"]
    counts = (2000 * np.exp(-density)).astype(np.uint16).chunk(frame=8, y=-1, x=-1)
    flats = np.full((1, *density.shape[1:]), 2000, np.uint16)
    return raw.drop_vars("optical_density").assign(counts=counts, flats=(("flat", "y", "x"), flats),
                                                   flat_energy=("flat", [8333.0]))


def test_whole_page(data, tmp_path):
    raw, result, truth = data
    raw = as_counts(raw)
    page = Page(write_report(result, tmp_path / "new" / "report.html", raw=raw, truth=truth))
    assert page.open == []
    assert len(page.images) == 12
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert page.tags.isdisjoint({"script", "link", "iframe"})
    assert "4 particles in 32 frames, 2 scans, 8250.0 to 8690.0 eV, 200 x 220 pixels" in page.text
    assert "position error, RMS" in page.text
    assert "Positions have standard errors of 0.050 px in the median" in page.text
    assert "Not drawn" not in page.text
    assert "in 16 frames of 4 particles" in page.text
    assert "Mean structural similarity of each picture with its particle's mean picture" in page.text
    assert [place.name for place in (tmp_path / "new").iterdir()] == ["report.html"]


def test_settings_are_shown_and_escaped(data, tmp_path):
    _, result, _ = data
    result = result[["position"]].assign_attrs(
        element="<script>alert(1)</script>", settings='{"link": {"max_gap": 10}}', weights={"detect": "ab12 & cd"},
        notes="{not json", files="x" * 900,
    )
    path = write_report(result, tmp_path / "report.html")
    page = Page(path)
    assert "script" not in page.tags
    assert "settings.link.max_gap" in page.text
    assert "ab12 & cd" in page.text
    assert "{not json" in page.text
    assert f"{'x' * 400} ... (900 characters)" in page.text


def test_bad_frames_are_listed(data, tmp_path):
    _, result, _ = data
    result = result[["position", "frame_status"]].copy(deep=True)
    result["frame_status"][[3, 4, 5, 9]] = 2
    result["frame_status"][7] = 99
    result.attrs["failed_tasks"] = ["observe 3: <disk> full"]
    page = Page(write_report(result, tmp_path / "report.html"))
    assert "blurred" in page.text
    assert "3-5, 9" in page.text
    assert "status 99" in page.text
    assert "1 task failed:" in page.text
    assert "observe 3: <disk> full" in page.text


def test_missing_variables_and_frames_are_said(data, tmp_path):
    _, result, _ = data
    page = Page(write_report(result[["position", "displacement"]], tmp_path / "report.html"))
    assert len(page.images) == 2
    assert "Not drawn: the raw frames were not given." in page.text
    assert "Not drawn: the result has no edge_energy." in page.text
    assert "No standard errors of the positions are stored." in page.text
    assert "No truth is known" in page.text


def test_doubts_are_named(data, tmp_path):
    _, result, _ = data
    result = result.copy(deep=True)
    result["position"][2, 3:7] = np.nan
    result["similarity"][1, 5] = 0.2
    result["fit_status"] = result["fit_status"].where(result["fit_status"] == 1, 3)
    result.attrs["magnification"] = "proportional-to-energy"
    result["edge_jump"] = "particle", [0.7, 0.02, 0.65, 0.12]
    result["edge_jump_sigma"] = "particle", [0.01, 0.01, 0.01, 0.02]
    page = Page(write_report(result, tmp_path / "report.html"))
    assert "4 of 128 positions are missing; particle 2 is seen in only 87.5% of the frames." in page.text
    assert "1 sightings are less than 0.5 similar to the one before (particles 1)" in page.text
    assert "could be fitted: 100.0% no edge" in page.text
    assert "computed from the energies, not measured" in page.text
    assert "Hardly any Ni edge in 1 (edge_jump below a quarter of the median)" in page.text


def test_misalignment_shows_in_the_quality(data, tmp_path):
    _, result, _ = data

    def similarity(ds):
        return float(Page(write_report(ds, tmp_path / "report.html")).text.split("(SSIM), mean")[1].split("%")[0])

    few = result[["position", "aligned", "contour"]].isel(particle=[0, 1])
    moved = few.copy(deep=True)
    moved["aligned"][:, ::3] = np.roll(moved["aligned"][:, ::3].values, 2, axis=-1)
    assert similarity(moved) < similarity(few) - 3


def test_nothing_found(data, tmp_path):
    raw, result, truth = data
    page = Page(write_report(result.isel(particle=[]), tmp_path / "report.html", raw=raw, truth=truth))
    assert "0 particles in 32 frames" in page.text
    assert "No particle was seen, so there is nothing to draw." in page.text
    assert "0 of 4" in page.text


def test_a_picture_that_cannot_be_drawn_says_why(data, tmp_path):
    _, result, _ = data
    empty = result.assign(edge_energy=result["edge_energy"] * np.nan)
    page = Page(write_report(empty, tmp_path / "report.html"))
    assert "Not drawn: no pixel has an edge energy; need at least one." in page.text


def test_result_without_positions_is_refused(data, tmp_path):
    _, result, _ = data
    with pytest.raises(ValueError, match="result has no position; need position"):
        write_report(result.drop_vars("position"), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
