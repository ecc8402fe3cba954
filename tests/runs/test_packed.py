"""Row files packed by gzip: every reader reads them, whoever writes unpacks them first, a broken one is named."""

import gzip
import zipfile

import pandas as pd
import pytest

from pvcbench.cli.main import main as command
from pvcbench.errors import UserError
from pvcbench.runs.rows import load_table, read_rows, row_files

RUN = ["model=random", "method=[h2o,streaming_llm]", "task.lengths=[500]", "budgets=[0.5]", "threads=1"]
RUN += ["wandb.mode=disabled", "experiment=packed"]


def measured(results, limit):
    assert command([*RUN, f"results={results}", f"limit={limit}"]) == 0
    [folder] = (results / "packed").iterdir()
    return folder


def pack(folder):
    """What `gzip rows.jsonl` leaves."""
    path = folder / "rows.jsonl"
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return folder / "rows.jsonl.gz"


def test_packed_rows_are_read_as_they_were(tmp_path, capsys):
    folder = measured(tmp_path, 2)
    before, table = read_rows(folder), load_table(tmp_path)
    path = pack(folder)
    assert row_files(folder) == [path] and read_rows(folder) == before
    pd.testing.assert_frame_equal(load_table(tmp_path), table)
    assert command(["verify", str(folder)]) == 0
    assert "identical" in capsys.readouterr().out
    assert path.exists(), "verify only reads"


def test_a_finished_run_stays_packed_and_a_longer_one_goes_on(tmp_path):
    folder = measured(tmp_path, 1)
    first = read_rows(folder)
    path = pack(folder)
    measured(tmp_path, 1)
    assert path.exists() and not (folder / "rows.jsonl").exists()
    measured(tmp_path, 3)
    assert not path.exists()
    rows = read_rows(folder)
    assert rows[: len(first)] == first and len(rows) == 3 * len(first)


def test_a_submission_holds_the_rows_unpacked(tmp_path):
    folder = measured(tmp_path, 1)
    content = (folder / "rows.jsonl").read_bytes()
    pack(folder)
    out = tmp_path / "one.pvcbench.zip"
    assert command(["submit", str(folder), "--by", "Somebody", "--out", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        [name] = [one for one in archive.namelist() if "rows" in one]
        assert name.endswith("rows.jsonl") and archive.read(name) == content


def test_a_broken_file_is_named(tmp_path):
    folder = measured(tmp_path, 1)
    path = pack(folder)
    whole = path.read_bytes()
    for broken in (whole[:-20], b"no gzip", whole[:30] + whole[40:], b""):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="not a whole gzip file"):
            read_rows(folder)


def test_a_line_that_a_kill_tore_is_measured_again_though_it_was_packed(tmp_path):
    folder = measured(tmp_path, 2)
    whole, plain_file = read_rows(folder), folder / "rows.jsonl"
    plain_file.write_bytes(plain_file.read_bytes()[:-100])
    pack(folder)
    measured(tmp_path, 3)
    rows = read_rows(folder)
    assert len(rows) == len(whole) // 2 * 3 and len({(row["sample"], row["method"]) for row in rows}) == len(rows)


def test_two_files_of_the_same_rows_are_refused_by_every_reader(tmp_path, capsys):
    folder = measured(tmp_path, 1)
    content = (folder / "rows.jsonl").read_bytes()
    pack(folder)
    (folder / "rows.jsonl").write_bytes(content)
    out = ["--out", str(tmp_path / "out")]
    readers = (["verify", str(folder)], ["rescore", str(folder)], ["report", str(tmp_path), *out])
    for asked in (*readers, ["submit", str(folder), "--by", "Somebody", *out]):
        capsys.readouterr()
        assert command(asked) == 2, asked
        assert "both have a row of sample" in capsys.readouterr().err, asked


def test_a_folder_in_the_place_of_rows_is_named(tmp_path):
    folder = measured(tmp_path, 1)
    pack(folder).unlink()
    (folder / "rows.jsonl.gz").mkdir()
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz cannot be read"):
        read_rows(folder)
