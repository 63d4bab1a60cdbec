"""Tables: what is read as what, what is refused with which words, what is left out and said so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from fastmammo.errors import ConfigError, LeakError, TableError  # noqa: E402
from fastmammo.training.columns import COLUMNS  # noqa: E402
from fastmammo.training.table import TableOptions, read_table, split_table  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

RSNA = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,"
    "machine_id,difficult_negative_case\n"
    "2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False\n"
    "2,10006,1459541791,L,MLO,61.0,0,0,0,,0,,29,False\n"
    "1,10011,541722628,R,CC,,1,1,1,0.0,1,C,49,True\n"
)


def write(folder: Path, text: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def simple(*rows: str, header: str = "patient_id,image_id,laterality,cancer") -> str:
    return "\n".join((header, *rows)) + "\n"


# ---------------------------------------------------------------- what is read


def test_rsna_train_csv(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, RSNA))
    assert tuple(table.columns) == COLUMNS
    assert list(table.index) == [0, 1, 2]
    floats = {"cancer", "age", "implant", "biopsy", "invasive", "BIRADS"}
    floats.add("difficult_negative_case")
    for name in COLUMNS:
        kind = "float64" if name in floats else "int64" if name == "fold" else "text"
        if kind == "text":
            assert all(isinstance(value, str) for value in table[name]), name
        else:
            assert table[name].dtype == kind, name
    last = table.iloc[2]
    assert last["prediction_id"] == "10011_R"
    assert (last["site_id"], last["machine_id"], last["density"]) == ("1", "49", "C")
    assert (last["cancer"], last["BIRADS"], last["difficult_negative_case"]) == (1, 0, 1)
    assert np.isnan(last["age"])
    assert np.isnan(table["BIRADS"][0])
    assert (table["fold"] == -1).all()
    assert (table["path"] == "").all()


def test_rsna_test_csv_has_no_labels(tmp_path: Path) -> None:
    text = (
        "site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id\n"
        "2,10008,736471439,L,MLO,81,0,21,10008_L\n"
    )
    path = write(tmp_path, text)
    table = read_table(path, labelled=False)
    assert np.isnan(table["cancer"][0])
    assert table["prediction_id"][0] == "10008_L"
    assert table.attrs["notes"] == []
    with pytest.raises(TableError, match=r"test|table.*no column 'cancer'.*columns='cancer=...'"):
        read_table(path)


def test_ids_keep_their_zeros_and_labels_may_be_words(tmp_path: Path) -> None:
    header = "Study_ID,image_id,laterality,malignant,breast_birads,breast_density,view_position"
    text = simple(
        "007,0001.0,Left,Positive,BI-RADS 4,DENSITY C,cc",
        "007,0002,LEFT,True,4b,3,mlo",
        "08, 0001 ,right,1,BI-RADS 0,d,MLO",
        "9,3,,negative,,,",
        "10,4,r,no,NA,nan,CC",
        header=header,
    )
    mapping = "patient_id=study_id, cancer=malignant,BIRADS=breast_birads,"
    mapping += "density=breast_density,view=view_position"
    table = read_table(write(tmp_path, text), TableOptions(columns=mapping))
    assert list(table["patient_id"]) == ["007", "007", "08", "9", "10"]
    assert list(table["image_id"]) == ["0001.0", "0002", "0001", "3", "4"]
    assert list(table["laterality"]) == ["L", "L", "R", "", "R"]
    assert list(table["cancer"]) == [1, 1, 1, 0, 0]
    assert table["BIRADS"][:3].tolist() == [4, 4, 0]
    assert table["BIRADS"][3:].isna().all()
    assert list(table["density"]) == ["C", "C", "D", "", ""]
    assert list(table["view"]) == ["CC", "MLO", "MLO", "", "CC"]
    assert any("1 rows: their scores are by patient" in line for line in table.attrs["notes"])


def test_other_encodings_of_a_csv(tmp_path: Path) -> None:
    rows = RSNA.splitlines()
    plain = read_table(write(tmp_path, RSNA))
    spreadsheet = "\ufeff" + "\r\n".join(rows).replace(",", ";") + "\r\n" + ";" * 13 + "\r\n"
    pandas_index = "," + rows[0] + "\n" + "\n".join(f"{n},{row}" for n, row in enumerate(rows[1:]))
    for name, text in (("a", spreadsheet), ("b", RSNA.replace(",", "\t")), ("c", pandas_index)):
        pd.testing.assert_frame_equal(read_table(write(tmp_path, text, name)), plain)


def test_numbers_that_pandas_made_floats_are_ids_again(tmp_path: Path) -> None:
    text = simple("1.0,5.0,L,0", "2.0,6.0,L,1")
    said: list[str] = []
    table = read_table(write(tmp_path, text), note=said.append)
    assert list(table["patient_id"]) == ["1", "2"]
    assert list(table["image_id"]) == ["5", "6"]
    assert said == [
        "patient_id: numbers as 1.0 are read as 1",
        "image_id: numbers as 5.0 are read as 5",
    ]


def test_further_columns_are_kept_as_text_behind(tmp_path: Path) -> None:
    text = simple("1,5,L,0,007,x", header="patient_id,image_id,laterality,cancer,height,scanner")
    table = read_table(write(tmp_path, text), TableOptions(columns="machine_id=scanner"))
    assert tuple(table.columns) == (*COLUMNS, "height")
    assert table["height"][0] == "007"
    assert table["machine_id"][0] == "x"


def test_a_path_may_stand_for_an_image_id(tmp_path: Path) -> None:
    header = "patient_id,Filename,laterality,cancer"
    text = simple("1,a/L_CC.dcm,L,0", "1,a/L_MLO.dcm,L,0", "2,b/L_CC.dcm,L,1", header=header)
    table = read_table(write(tmp_path, text))
    assert list(table["image_id"]) == ["L_CC", "L_MLO", "L_CC"]
    assert list(table["path"]) == ["a/L_CC.dcm", "a/L_MLO.dcm", "b/L_CC.dcm"]
    # two studies of a patient with the same file names
    text = simple("1,a/1.dcm,L,0", "1,b/1.dcm,L,0", header=header)
    assert list(read_table(write(tmp_path, text))["image_id"]) == ["a/1.dcm", "b/1.dcm"]


def test_labels_of_other_words_are_named(tmp_path: Path) -> None:
    text = simple(
        "1,1,L,MALIGNANT", "2,2,L,BENIGN", "3,3,L,BENIGN_WITHOUT_CALLBACK", "4,4,L,Malignant"
    )
    path = write(tmp_path, text)
    with pytest.raises(TableError, match=r"1 row has.*'BENIGN_WITHOUT_CALLBACK' \(line 4\)"):
        read_table(path)
    table = read_table(path, TableOptions(positive_labels="malignant"))
    assert list(table["cancer"]) == [1, 0, 0, 1]
    assert table.attrs["notes"][0] == (
        "cancer: positive are MALIGNANT (1), Malignant (1); negative are BENIGN (1), "
        "BENIGN_WITHOUT_CALLBACK (1)"
    )
    with pytest.raises(TableError, match=r"none of 'cancerous' is in the cancer column.*BENIGN"):
        read_table(path, TableOptions(positive_labels="cancerous"))


def test_a_given_fold_column_is_read(tmp_path: Path) -> None:
    header = "patient_id,image_id,laterality,cancer,Fold"
    table = read_table(
        write(tmp_path, simple("1,1,L,0,0", "2,2,L,0,3.0", "3,3,L,0,", header=header))
    )
    assert list(table["fold"]) == [0, 3, -1]


def test_a_table_that_is_written_reads_the_same(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, RSNA.replace("10006", "007")))
    table["fold"] = [1, 1, 0]
    table.to_csv(tmp_path / "again.csv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "again.csv"), table)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no rows"),
        ("patient_id,image_id,cancer\n", r"no rows, wanted a header and a row an image"),
        (
            simple("1,1,0", header="patient,image_id,cancer"),
            r"no column 'patient_id' \(nearest: pa",
        ),
        (simple("1,0", header="patient_id,cancer"), r"no column 'image_id'"),
        (simple("1,1,L,0", header="patient_id,image_id,cancer,cancer"), r"stand twice: cancer"),
        (
            simple("1,1,L,0", "1,2,L"),
            r"header has 4 columns, 1 rows have another number: line 3 \(3\)",
        ),
        (
            simple("1,1,L,0", "1,2,L,2", "1,3,L,x"),
            r"cancer: 2 rows .*'2' \(line 3\), 'x' \(line 4\)",
        ),
        (simple("1,1,L,0", "1,2,L,", "1,3,L,NaN"), r"cancer: 2 rows have no label: lines 3, 4"),
        (simple("1,1,B,0"), r"laterality: .*'B' \(line 2\). Wanted L or R"),
        (simple("1,1,L,0", ",2,L,0"), r"patient_id: 1 row has none: lines 3"),
        (simple("1,,L,0"), r"image_id: 1 row has none: lines 2"),
        (
            simple("1,1.4595E+09,L,0"),
            r"image_id: 1 ids are rounded numbers.*1.4595E\+09 \(line 2\)",
        ),
        (
            simple("1,1,L,0", "1,2,L,0", "1,1,L,0"),
            r"1 images have more than one row: 1 1 \(lines 2, 4\).*lesions",
        ),
        (
            simple(
                "1,1,L,0,a.dcm",
                "2,1,L,0,a.dcm",
                header="patient_id,image_id,laterality,cancer,path",
            ),
            r"1 files have more than one row: a.dcm \(lines 2, 3\)",
        ),
        (
            simple("1,1,0,-3", "2,2,0,57Y", header="patient_id,image_id,cancer,age"),
            r"age: .*'-3' \(line 2\). Wanted years.*columns='age=' leaves the column out",
        ),
        (
            simple("1,1,0,1.5", header="patient_id,image_id,cancer,fold"),
            r"fold: .*'1.5' \(line 2\). Wanted a whole number",
        ),
        (
            simple("1,1,L,0", "1,2,L,1", "2,3,L,1"),
            r"images of 1 breasts \(patient_laterality\) differ: 1_L. mixed_breasts='any'",
        ),
        ('patient_id,image_id,cancer\n1,"' + "x" * 200_000 + '",0\n', r"not a CSV.*field limit"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TableError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_a_table_in_utf_16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="not a CSV in UTF-8"):
        read_table(write(tmp_path, RSNA, encoding="utf-16"))


def test_a_given_split_that_leaks_is_refused(tmp_path: Path) -> None:
    header = "patient_id,image_id,laterality,cancer,fold"
    path = write(tmp_path, simple("7,1,L,0,0", "7,2,L,0,1", "8,3,L,1,1", header=header))
    with pytest.raises(LeakError, match=r"1 patients .* patient 7 \(folds 0, 1\).*fastmammo split"):
        read_table(path)
    assert (read_table(path, TableOptions(columns="fold="))["fold"] == -1).all()


def test_breasts_with_both_labels_can_be_positive(tmp_path: Path) -> None:
    path = write(tmp_path, simple("1,1,L,0", "1,2,L,1", "1,3,R,0", "2,4,L,0"))
    table = read_table(path, TableOptions(mixed_breasts="any"))
    assert list(table["cancer"]) == [1, 1, 0, 0]
    assert "cancer: 1 breasts with both labels are positive: 1_L" in table.attrs["notes"]


def test_an_unlabelled_image_stays_so_beside_a_labelled_one(tmp_path: Path) -> None:
    path = write(tmp_path, simple("1,1,L,1", "1,2,L,", "1,3,L,0"))
    table = read_table(path, TableOptions(mixed_breasts="any"), labelled=False)
    assert table["cancer"].tolist()[::2] == [1, 1]
    assert np.isnan(table["cancer"][1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": "cancer"}, r"columns: got 'cancer', wanted OURS=THEIRS"),
        ({"columns": "pateint_id=a"}, r"did you mean patient_id\?"),
        ({"columns": "age=a,age=b"}, r"age is named twice"),
        ({"folds": 1}, r"folds: got 1"),
        ({"hold_out": 1.0}, r"hold_out: got 1.0"),
        ({"split_seed": -1}, r"split_seed: got -1"),
        ({"mixed_breasts": "max"}, r"mixed_breasts: got 'max'"),
        ({"exclude": ""}, r"exclude: got nothing"),
        ({"views": ["CC"]}, r"views: got \['CC'\], wanted text"),
    ],
)
def test_bad_options_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableOptions(**given)  # type: ignore[arg-type]


def test_a_column_that_is_asked_for_and_absent(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no column 'Machine' \(nearest: machine_id\)"):
        read_table(write(tmp_path, RSNA), TableOptions(columns="machine_id=Machine"))


# ---------------------------------------------------------------- what is left out


def known_bad() -> str:
    header = "patient_id,image_id,laterality,cancer,site_id,machine_id"
    return simple(
        "27770,1,L,0,1,49",
        "27770,2,R,0,1,49",
        "822,1942326353,L,0,1,210",
        "822,5,L,0,1,210",
        "9,802890376,L,1,2,29",
        header=header,
    )


def test_known_bad_images_of_rsna_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, known_bad())
    table = read_table(path)
    assert list(table["image_id"]) == ["5", "802890376"]
    assert list(table.index) == [0, 1]
    assert table.attrs["notes"] == [
        "exclude: patient 27770 left out (2 images): pixels exceed BitsStored",
        "exclude: image 1942326353 left out (1 images): all pixels are 0",
    ]
    assert list(read_table(path, TableOptions(exclude="rsna+crops"))["image_id"]) == ["5"]
    assert len(read_table(path, TableOptions(exclude="none"))) == 5


def test_another_sets_patient_of_that_number_stays(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, simple("27770,1,L,0", "822,2,L,0")))
    assert len(table) == 2


def test_a_list_of_images_to_leave_out(tmp_path: Path) -> None:
    path = write(tmp_path, known_bad())
    bad = write(tmp_path, "# blurred\n5  # by hand\n\n99\n", "bad.txt")
    table = read_table(path, TableOptions(exclude=str(bad)))
    assert "5" not in list(table["image_id"])
    assert len(table) == 4
    assert table.attrs["notes"] == [
        f"exclude: 1 images left out, as listed in {bad}",
        f"exclude: 1 of 2 ids of {bad} are no image_id",
    ]
    with pytest.raises(TableError, match=r"exclude: 'rnsa' is no list.*rsna\+crops, or a text"):
        read_table(path, TableOptions(exclude="rnsa"))
    everything = write(tmp_path, "1\n2\n1942326353\n5\n802890376\n", "all.txt")
    with pytest.raises(TableError, match="no row is left"):
        read_table(path, TableOptions(exclude=str(everything)))


def test_views_to_keep(tmp_path: Path) -> None:
    path = write(tmp_path, RSNA)
    table = read_table(path, TableOptions(views="cc"))
    assert list(table["view"]) == ["CC", "CC"]
    assert "views: 1 images of other views left out" in table.attrs["notes"]
    with pytest.raises(TableError, match=r"views: no row has ML; there are CC, MLO"):
        read_table(path, TableOptions(views="CC,ML"))


# ---------------------------------------------------------------- split


def patients(count: int) -> str:
    header = "patient_id,image_id,laterality,cancer,site_id,Note"
    rows = [
        f'{n:03},{n}{side}{view},{side},{int(n % 4 == 0 and side == "L")},{1 + n % 2},"a, b"'
        for n in range(count)
        for side in "LR"
        for view in range(2)
    ]
    return simple(*rows, header=header)


def test_split_writes_the_table_with_folds(tmp_path: Path) -> None:
    text = patients(32).replace('000,0L0,L,1,1,"a, b"', "000,0L0,L,1,1,")
    path = write(tmp_path, text.replace(",L,", ",Left,"))
    out = tmp_path / "new" / "split.csv"
    options = TableOptions(columns="laterality=laterality")
    counts = split_table(path, out, options)
    assert list(counts["fold"]) == [0, 1, 2, 3]
    assert list(counts["positive_patients"]) == [2, 2, 2, 2]
    assert counts["images"].sum() == 128
    before, after = path.read_text().splitlines(), out.read_text().splitlines()
    assert [line.rpartition(",")[0] for line in after] == before
    assert after[0].endswith(",fold")
    assert set(read_table(out)["fold"]) == {0, 1, 2, 3}
    assert [each.name for each in out.parent.iterdir()] == ["split.csv"]
    # once more, from its own output: the same patients, the same folds
    said: list[str] = []
    split_table(out, tmp_path / "again.csv", options, note=said.append)
    assert (tmp_path / "again.csv").read_bytes() == out.read_bytes()
    assert said == ["fold: the column of the table is replaced"]


def test_split_mends_a_leak_and_holds_out(tmp_path: Path) -> None:
    lines = patients(40).splitlines()
    leaking = [lines[0] + ",fold", *(f"{row},{n % 3}" for n, row in enumerate(lines[1:]))]
    path = write(tmp_path, "\n".join(leaking))
    with pytest.raises(LeakError, match="40 patients"):
        read_table(path)
    counts = split_table(path, tmp_path / "out.csv", TableOptions(hold_out=0.25))
    assert list(counts["fold"]) == [-1, 0]
    assert list(counts["patients"]) == [30, 10]
    assert read_table(tmp_path / "out.csv")["fold"].isin((0, -1)).all()


def test_split_does_not_overwrite_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, RSNA)
    with pytest.raises(ConfigError, match="is the table itself"):
        split_table(path, tmp_path / "." / "table.csv")
    assert path.read_text() == RSNA


def test_a_large_table_takes_seconds(tmp_path: Path) -> None:
    import time

    header = "patient_id,image_id,laterality,view,cancer,site_id,age"
    rows = (
        f"{n // 4},{n},{'LR'[n % 4 // 2]},{('CC', 'MLO')[n % 2]},{int(n // 2 % 50 == 0)},{n % 3},50"
        for n in range(20_000)
    )
    path = write(tmp_path, simple(*rows, header=header))
    began = time.process_time()
    assert len(read_table(path)) == 20_000
    assert time.process_time() - began < 5
