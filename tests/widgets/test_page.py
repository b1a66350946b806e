"""The bundle and the one-file page."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from npeff_nb import NPEFF
from npeff_nb.widgets.bundle import Bundle
from npeff_nb.widgets.page import as_script_data, page, write_page

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def data_in(text):
    return json.loads(re.search(r'<script type="application/json" id="npeff-data">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.fixture
def on_array():
    rng = np.random.default_rng(0)
    return NPEFF(3, n_init=1, random_state=0).fit(rng.normal(size=(40, 2, 6)))


def test_shares_of_components_sum_to_one(npeff):
    assert sum(summary["share"] for summary in Bundle(npeff).overview(False)["components"]) == pytest.approx(1, abs=1e-3)


def test_bundle_is_json_with_and_without_a_profile(npeff):
    npeff.profile(0, progress=False)
    bundle = Bundle(npeff)
    for k in (0, 1):
        detail = json.loads(json.dumps(bundle.detail(k), allow_nan=False))
        assert [row["coefficient"] for row in detail["top"]] == sorted((row["coefficient"] for row in detail["top"]), reverse=True)
        assert (detail["unavailable"] is None) == (k == 0) == (detail["sweep"] is not None)
    with_tokens = bundle.detail(0)["top"][0]
    total = sum(t["share"] for t in with_tokens["tokens"]) + sum(a["share"] for a in with_tokens["aside"])
    assert total == pytest.approx(1, abs=1e-3)  # each share is rounded to five digits


def test_energy_map_and_the_rest_sum_to_one(npeff):
    npeff.profile(0, progress=False)
    cells, others = Bundle(npeff).energy(npeff.profiles[0])
    inside = sum(v for row in cells["values"] for v in row if v is not None)
    assert inside + sum(o["value"] for o in others) == pytest.approx(1, abs=1e-4)


def test_array_without_examples_can_be_shown(on_array):
    data = data_in(page(on_array))
    assert data["overview"]["n_examples"] == 40 and data["examples"]["3"]["text"] == "example 3"
    assert "attach" in data["details"][0]["unavailable"] or "profiled" in data["details"][0]["unavailable"]


def test_text_is_never_markup(npeff):
    npeff.examples = npeff.examples.assign(text=[EVIL] * len(npeff.examples))
    npeff.labels = {0: EVIL}
    text = page(npeff)
    assert "<img" not in text
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert data_in(text)["examples"]["0"]["text"] == EVIL and data_in(text)["labels"]["0"] == EVIL


def test_placeholders_in_data_stay_text(npeff):
    npeff.labels = {0: "/*EXPLORER_JS*/ <!--FALLBACK--> /*DATA*/"}
    assert data_in(page(npeff))["labels"]["0"] == "/*EXPLORER_JS*/ <!--FALLBACK--> /*DATA*/"


def test_page_asks_nothing_of_a_network(npeff):
    text = page(npeff)
    assert "default-src 'none'" in text
    code = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    # Names of SVG's and HTML's vocabularies are no addresses that anything is fetched from.
    assert set(re.findall(r"https?://[^\s\"'`)]+", code)) <= {"http://www.w3.org/2000/svg"}


def test_page_is_written_whole_or_not_at_all(npeff, tmp_path, monkeypatch):
    path = write_page(npeff, tmp_path / "new" / "report.html")
    before = path.read_text()
    monkeypatch.setattr("npeff_nb._files.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_page(npeff, path, component=1)
    assert path.read_text() == before and [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_script_data_round_trips():
    data = {"a": "</script>\u2028<b>", "n": [1.5, None]}
    assert "<" not in as_script_data(data) and json.loads(as_script_data(data)) == data


def test_figure_shows_the_same_map_as_the_explorer(npeff):
    from npeff_nb.widgets.figures import parameter_map

    with pytest.raises(ValueError, match=r"component 1 has no profile yet"):
        parameter_map(npeff, 1)
    npeff.profile(1, progress=False)
    figure = parameter_map(npeff, 1)
    cells, _ = Bundle(npeff).energy(npeff.profiles[1])
    shown = pd.DataFrame(figure.data[0].z, index=figure.data[0].y, columns=figure.data[0].x)
    expected = pd.DataFrame(cells["values"], index=cells["layers"], columns=cells["kinds"]) * 100
    pd.testing.assert_frame_equal(shown, expected, check_dtype=False, check_names=False)
