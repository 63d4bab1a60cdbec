"""The pages of the trainer: whole, self-contained, escaped, and true to the figures."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from training_runs import make_set, small

from fastmammo.errors import CheckpointError, ConfigError, ModelError, TableError, WeightsError
from fastmammo.report import charts
from fastmammo.report.cases import choose, load_cases
from fastmammo.report.compare import _page, compare_models
from fastmammo.report.evaluation import evaluate_scores
from fastmammo.report.explore import explore
from fastmammo.report.gallery import Case, _on_breast, gallery, single_gallery
from fastmammo.report.html import Markup, bars, element, number, page, table
from fastmammo.report.scores import text
from fastmammo.report.training import write_report
from fastmammo.training.members import open_run
from fastmammo.training.run import train
from fastmammo.training.table import TableOptions

if TYPE_CHECKING:
    from pathlib import Path

EVIL = '<script>alert("x")</script>'
ESCAPED = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;"
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Reads a page, and fails on what is unbalanced, runs, or is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values), attrs
        assert "href" not in values
        if "src" in values:
            assert (values["src"] or "").startswith("data:image/"), values["src"]
            assert values.get("alt"), "an image without words for those who do not see it"
            self.images.append(values["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def checked(path: Path) -> tuple[Checker, str]:
    """Return what is on a page that needs nothing else, and its source."""
    source = path.read_text(encoding="utf-8")
    found = Checker()
    found.feed(source)
    found.close()
    assert found.open == []
    assert "url(" not in source
    assert "@import" not in source
    assert "nan" not in " ".join(found.words).lower().split()
    return found, source


def words_of(path: Path) -> str:
    return " ".join(" ".join(checked(path)[0].words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_set(tmp_path_factory.mktemp("set") / "a & b")
    rows = pd.read_csv(made / "table.csv", dtype=str)
    rows["machine_id"] = rows["machine_id"].where(rows["machine_id"] != "20", EVIL)
    rows.to_csv(made / "table.csv", index=False)
    return made


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run <1>"
    train(folder / "table.csv", folder / "images", path, small(epochs=2))
    return path


def test_a_report_holds_everything_and_needs_nothing(run: Path) -> None:
    said: list[str] = []
    path = write_report(run, note=said.append)
    assert path == run / "report.html"
    assert said == []
    found, source = checked(path)
    assert ESCAPED in source
    assert EVIL not in source
    shown = " ".join(found.words)
    metrics = json.loads((run / "metrics.json").read_text())
    for title in (
        *("How it learnt", "How well it tells cancer", "In figures, at the chosen threshold"),
        *("Can a score be read as a probability?", "Sites and machines", "Folds"),
        *("Images to look at", "Time, and waiting for data", "All settings"),
    ):
        assert title in shown, title
    assert f"{metrics['breast']['auc']:.3f}" in shown
    low, high = metrics["intervals"]["auc"]
    assert f"95 %: {low:.3f} to {high:.3f}" in shown
    (tn, fp), (fn, tp) = metrics["confusion"]
    for count, kind in ((tn, "good"), (fp, "bad"), (fn, "bad"), (tp, "good")):
        assert f'<td class="{kind}">{count}</td>' in source
    assert "small_cnn" in shown
    assert "pretrained" not in shown  # small_cnn has no such weights
    # each breast that counts as wrong or right stands under its title, once
    titles = {"False alarms": fp, "Misses": fn, "Found cancers": tp}
    assert (fn == 0) == ("Lowest-scored cancers" in shown)
    assert all((title in shown) == (count > 0) for title, count in titles.items())
    oof = pd.read_csv(run / "oof.csv", dtype={"patient_id": str, "image_id": str})
    chosen = choose(oof, 6, metrics["threshold"], metrics["reduce"])
    count = sum(map(len, chosen.values()))
    # seven charts; the chosen breasts, each with its heat map
    assert len([each for each in found.images if each.startswith("data:image/svg")]) == 7
    assert len([each for each in found.images if each.startswith("data:image/png")]) == 2 * count
    for each in found.images:
        data = base64.b64decode(each.partition(",")[2])
        if each.startswith("data:image/png"):
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "PNG"
        else:
            assert b"<script" not in data
            assert not re.search(rb"href=\"(?!#)", data)


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_report_without_the_images_says_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["source"]["path"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    words = words_of(write_report(copy, note=said.append))
    assert "Images are not shown: " in words
    assert "Images to look at" not in words
    assert any("gone is no folder" in line for line in said)
    (copy / "fold1" / "last.pt").write_bytes(b"damaged")
    config["source"] = json.loads((run / "config.json").read_text())["source"]
    (copy / "config.json").write_text(json.dumps(config))
    assert "No heat maps of fold 1" in words_of(write_report(copy))
    (copy / "oof.csv").unlink()
    with pytest.raises(CheckpointError, match=r"not there yet .* Has the run ended\?"):
        write_report(copy)


def test_a_report_of_one_fold_of_breasts_with_boxes(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    manifest = pd.read_csv(images / "manifest.csv", dtype=str)
    for name, edge in (("row0", 2), ("column0", 0), ("row1", 30), ("column1", 12)):
        manifest[f"placed_{name}"] = edge
    manifest.to_csv(images / "manifest.csv", index=False)
    boxes = pd.DataFrame({"output": "images.npy", "output_row": manifest["row"]})
    for name, edge in (("row0", 8), ("column0", 4), ("row1", 16), ("column1", 10)):
        boxes[f"{name}_output"] = edge
    boxes.to_csv(images / "boxes.csv", index=False)
    path = tmp_path / "run"
    train(folder / "table.csv", images, path, small(multiview="attention", epochs=1), fold=0)
    words = words_of(write_report(path, cases=1))
    assert "1 of 2 folds" in words
    assert "the crop around the breast (ROI)" in words
    opened = open_run(path)
    oof = pd.read_csv(path / "oof.csv", dtype={"patient_id": str, "image_id": str})
    table_ = pd.read_csv(path / "table.csv", dtype={"patient_id": str, "image_id": str})
    notes: list[str] = []
    cases = load_cases(opened, table_, choose(oof, 1), notes)
    case = cases["highest positives"][0]
    assert notes == []
    assert case.roi == (2, 0, 30, 12)
    assert case.lesions == [(8, 4, 16, 10)]
    assert case.heat is not None
    assert case.heat.shape == case.image.shape == (32, 16)
    boxes.rename(columns={"row0_output": "x"}).to_csv(images / "boxes.csv", index=False)
    load_cases(opened, table_, choose(oof, 1), notes)
    assert "no columns of mapped boxes" in notes[0]


def test_a_report_of_the_two_stage_model(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(folder / "table.csv", folder / "images", path, small(head="metadata"))
    words = words_of(write_report(path))
    assert "What image and metadata tell alone" in words
    assert "Metadata betrays the site" in words
    assert "No heat maps: the scores are a logistic regression's" in words
    assert "Images to look at" in words


def scored(**columns: Any) -> pd.DataFrame:
    frame = {
        "image_id": ["a", "b", "c", "d", "e", "f"],
        "patient_id": ["1", "1", "2", "2", "3", "3"],
        "prediction_id": ["1_L", "1_L", "2_L", "2_R", "3_L", "3_R"],
        "cancer": [1, 1, 0, 0, 1, 0],
        "score": [0.2, 0.6, 0.9, 0.1, 0.3, 0.95],
    }
    return pd.DataFrame({**frame, **columns})


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # breasts: cancers 1_L 0.4, 3_L 0.3; negatives 3_R 0.95, 2_L 0.9, 2_R 0.1
        (0.35, {"false alarms": "fc", "misses": "e", "hits": "b"}),
        (0.92, {"false alarms": "f", "misses": "eb"}),
        (0.3, {"false alarms": "fc", "lowest positives": "e", "hits": "b"}),
        (0.96, {"highest negatives": "fcd", "misses": "eb"}),
        (None, {"highest negatives": "fcd", "lowest positives": "e", "highest positives": "b"}),
    ],
)
def test_what_is_chosen_to_look_at(threshold: float | None, expected: dict[str, str]) -> None:
    """By the breast's score, on the threshold's side; of each breast its better view, once."""
    chosen = choose(scored(), 3, threshold)
    assert {name: "".join(rows["image_id"]) for name, rows in chosen.items()} == expected
    rows = pd.concat(chosen.values()).set_index("image_id")
    assert rows.index.is_unique
    assert rows["breast_score"]["b"] == pytest.approx(0.4)
    assert rows["score"]["b"] == 0.6
    called = [None if threshold is None else bool(v >= threshold) for v in rows["breast_score"]]
    assert list(rows["called"]) == called


def test_a_caption_tells_breast_and_image() -> None:
    row = {
        **{"image_id": "b", "patient_id": "1", "cancer": 1, "score": 0.6, "breast_score": 0.4},
        **{"called": False, "laterality": "L", "view": "CC", "machine_id": "49"},
    }
    image = np.zeros((8, 8), np.uint8)
    drawn = gallery([Case(row, image)])
    assert "<b>breast 0.400</b> · called negative · cancer · 1 L CC" in drawn
    assert "image b · its own score 0.600 · machine 49" in drawn
    assert "<span>no cancer · machine 49</span>" in single_gallery(
        [Case({**row, "cancer": 0}, image)]
    )


def test_no_heat_in_the_air() -> None:
    """A heat map that is highest in the background shows the breast alone, holes and all."""
    image = np.full((64, 48), 20, np.uint8)  # air need not be 0
    image[10:50, 5:30] = 90
    image[20:24, 12:16] = 20  # a dark spot of the breast is no air
    heat = np.ones((64, 48), np.float32)
    heat[10:50, 5:30] = 0.25
    shown = _on_breast(Case({}, image, heat))
    assert (shown[image == 90] == 1).all()
    assert (shown[20:24, 12:16] == 1).all()
    outside = np.ones_like(shown, bool)
    outside[10:50, 5:30] = False
    assert not shown[outside].any()
    cropped = _on_breast(Case({}, image, heat, roi=(0, 0, 30, 48)))
    assert not cropped[30:].any()
    assert cropped[10:30, 5:30].all()


# ---------------------------------------------------------------- evaluate


def test_scores_are_measured(tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scored(site_id=EVIL, machine_id="7").to_csv(scores, index=False)
    metrics, files = evaluate_scores(scores, bootstrap=20)
    assert [each.name for each in files] == ["scores-metrics.json", "scores-report.html"]
    assert json.loads(files[0].read_text()) == metrics
    assert metrics["counts"]["breasts"] == 5
    assert EVIL not in checked(files[1])[1]
    words = words_of(files[1])
    assert "ROC AUC by breast, on these scores" in words
    assert "was sought on these very scores" in words
    _, files = evaluate_scores(scores, out=tmp_path / "out", threshold=0.5, bootstrap=0)
    assert [str(each.relative_to(tmp_path)) for each in files] == [
        "out/metrics.json",
        "out/report.html",
    ]
    assert "The threshold was chosen on other data." in words_of(files[1])
    assert "no interval" in words_of(files[1])
    printed = text(metrics)
    assert "2 of 5 breasts positive, 3 patients, 6 images" in printed
    assert f"{'ROC AUC':34}{metrics['breast']['auc']:>9.3f}" in printed


def test_one_class_is_undefined_and_said_so(tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scored(cancer=0).to_csv(scores, index=False)
    metrics, files = evaluate_scores(scores, bootstrap=20)
    words = words_of(files[1])
    assert "all 5 breasts are negative" in words
    assert "No curve: it needs breasts with cancer and without." in words
    assert "No threshold: no breast is positive." in words
    assert "ROC AUC                                   –" in text(metrics)


def test_labels_come_from_the_table(tmp_path: Path) -> None:
    scores, labels = tmp_path / "scores.csv", tmp_path / "table.csv"
    frame = scored(laterality=["L", "L", "L", "R", "L", "R"])
    frame.drop(columns="score").to_csv(labels, index=False)
    frame.drop(columns="cancer").to_csv(scores, index=False)
    options = TableOptions(exclude="none")
    with pytest.raises(TableError, match="has no labels: name the table that has them"):
        evaluate_scores(scores)
    by_image, _ = evaluate_scores(scores, table=labels, options=options, bootstrap=20)
    assert by_image["breast"]["auc"] == pytest.approx(2 / 6)
    # a submission: by breast, the score is called cancer
    breasts = frame.groupby("prediction_id")["score"].mean().rename("cancer").reset_index()
    breasts.to_csv(tmp_path / "submission.csv", index=False)
    by_breast, files = evaluate_scores(
        tmp_path / "submission.csv", table=labels, options=options, bootstrap=20
    )
    assert by_breast["breast"] == by_image["breast"]
    assert "the scores are of breasts" in words_of(files[1])
    for change, message in (
        (frame.iloc[:4], r"2 rows of .*table.csv have no score in .*: 3/e, 3/f"),
        (pd.concat([frame, frame.assign(patient_id="9")]), r"6 scores of .* have no row in .*9/a"),
        (pd.concat([frame, frame]), r"6 rows repeat their patient_id and image_id \(1/a, 1/b"),
        (frame[["patient_id", "score"]], "neither image_id nor prediction_id"),
    ):
        change.to_csv(scores, index=False)
        with pytest.raises(TableError, match=message):
            evaluate_scores(scores, table=labels, options=options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", r"no column score; wanted scores.csv .* It has a, b"),
        ("", "is no CSV: No columns"),
        ("score,cancer\nhigh,1\n", "column score holds text; wanted numbers"),
        ("score,cancer\n", "no row, wanted a score a row"),
    ],
)
def test_files_that_are_no_scores(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(TableError, match=message):
        evaluate_scores(path)


# ---------------------------------------------------------------- compare


def test_models_are_compared(folder: Path, tmp_path: Path) -> None:
    settings = {"small <b>": small(epochs=1), "smaller": small(epochs=1, lr=1e-5)}
    found = compare_models(folder / "table.csv", folder / "images", tmp_path / "c", settings)
    saved = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert saved == found.to_dict()
    assert set(found.differences) == {"smaller"}
    one, two = (found.models[name]["metrics"]["breast"]["auc"] for name in settings)
    assert found.differences["smaller"]["auc"]["difference"] == pytest.approx(two - one)
    assert found.models["smaller"]["parameters"] > 1000
    assert found.models["smaller"]["seconds"] > 0
    assert f"smaller - small <b>: ROC AUC {two - one:+.3f}" in found.text()
    _, source = checked(found.page)
    assert "small &lt;b&gt;" in source
    assert {each.name for each in (tmp_path / "c").iterdir()} == {
        *("small__b_", "smaller", "compare.html", "compare.json"),
    }
    assert "6 positive patients: too few to tell models apart" in found.text()
    assert "too few to tell models apart" in words_of(found.page)
    pairs = {"smaller": {"auc": {"difference": -0.1, "interval": [-0.2, -0.05]}}}
    for count, marked in ((19, False), (20, True)):
        few = replace(found, differences=pairs, positive_patients=count)
        assert (few.caveat == "") == marked == ("differs</td>" in _page(few, settings))
    wrong = {"small": small(epochs=1), "other": small(model="small_cn")}
    for other in (small(model="small_cn"), small(model="efficientnet_small", weights="gone.pth")):
        wrong["other"] = other
        with pytest.raises((ModelError, WeightsError), match=r"small_cn|gone\.pth"):
            compare_models(folder / "table.csv", folder / "images", tmp_path / "w", wrong)
        assert not (tmp_path / "w").exists()
    for names in (["a"], ["a/b", "a_b"]):
        with pytest.raises(ConfigError, match="wanted two or more, with names that differ"):
            compare_models("", "", tmp_path, dict.fromkeys(names, small()))


# ---------------------------------------------------------------- explore


def test_a_table_is_explored(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "explore.html"
    options = TableOptions(exclude="none")
    found = explore(folder / "table.csv", folder / "images", out, options=options, examples=2)
    assert found.counts == {
        **{"images": 48, "breasts": 24, "patients": 12},
        **{"positive_images": 12, "positive_breasts": 6, "positive_patients": 6},
    }
    assert found.values["view"] == {
        "CC": {"images": 24, "positive": 6},
        "MLO": {"images": 24, "positive": 6},
    }
    assert found.values["machine_id"][EVIL] == {"images": 24, "positive": 6}
    assert found.values["age"] == {"50–59": {"images": 48, "positive": 12}}
    assert found.missing["biopsy"] == 48
    assert found.missing["density"] == 0
    page_, source = checked(out)
    assert ESCAPED in source
    assert EVIL not in source
    # cancer, view, density, machine, implant: 2 + 2 + 4 + 2 + 1 groups of two
    assert len(page_.images) == 2 * 11
    assert json.loads(json.dumps(found.to_dict()))["values"]["density"]["A"]["images"] == 12
    assert "positive: 12 images (25.00%), 6 breasts, 6 patients" in found.text()
    assert "unknown: BIRADS 48, biopsy 48" in found.text()


def test_a_table_without_labels_or_images_is_explored(folder: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(folder / "table.csv", dtype=str)[["patient_id", "image_id"]]
    path = tmp_path / "test.csv"
    rows.to_csv(path, index=False)
    found = explore(path, None, tmp_path / "a.html")
    assert found.values["cancer"] == {"": {"images": 48, "positive": 0}}
    assert "of these" not in words_of(tmp_path / "a.html")
    found = explore(path, tmp_path / "gone", tmp_path / "b.html")
    assert any("No examples: " in line for line in found.notes) or found.counts["images"] == 48
    found = explore(folder / "table.csv", tmp_path / "gone", tmp_path / "c.html")
    other = rows.assign(image_id="other" + rows["image_id"])
    other.to_csv(path, index=False)
    found = explore(path, folder / "images", tmp_path / "d.html", examples=1)
    assert found.notes[-1].startswith("No examples: none of the table's 48 rows has an image in ")
    assert found.notes[-1].endswith("this table does not belong to that folder")
    pd.concat((rows, other[:3])).to_csv(path, index=False)
    found = explore(path, folder / "images", tmp_path / "d.html", examples=1)
    assert "3 of the table's 51 rows have no image in" in found.notes[-1]
    found = explore(folder / "table.csv", tmp_path / "gone", tmp_path / "c.html")
    assert "No examples: images: " in found.notes[-1]
    assert "gone is no folder" in words_of(tmp_path / "c.html")


# ---------------------------------------------------------------- pieces


def test_html_escapes_everything_but_markup() -> None:
    assert element("p", "<b>", Markup("<i>x</i>"), title='"') == (
        '<p title="&quot;">&lt;b&gt;<i>x</i></p>'
    )
    assert EVIL not in table((EVIL,), [(EVIL,), (1.5,)], caption=EVIL)
    assert EVIL not in bars({EVIL: 3, "": 1}, parts={EVIL: 1})
    assert EVIL not in page(EVIL, EVIL, EVIL)
    assert number(None) == number(float("nan")) == number(np.float64("nan"))
    assert [number(each) for each in (1234, 0.12345, True)] == ["1,234", "0.123", "yes"]


def test_charts_take_names_that_are_no_formulas() -> None:
    drawn = charts.models(["$a_{b", "<c>"], [0.6, 0.7], [(0.5, 0.7), (0.6, 0.8)], "AUC")
    assert drawn.count("<svg") == 1
    assert drawn == charts.models(["$a_{b", "<c>"], [0.6, 0.7], [(0.5, 0.7), (0.6, 0.8)], "AUC")
