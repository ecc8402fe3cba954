"""The W&B mirror: the curve is read back out of the offline file, and a broken W&B costs one line."""

import json
import struct
import time
import zlib
from contextlib import suppress
from types import SimpleNamespace

import pytest
from rows import needle_rows, table

from pvcbench import figures, stats, tracking
from pvcbench.errors import UserError

HEADER, BLOCK, CHUNK = 7, 32768, 7
FULL, LAST = 1, 4


@pytest.fixture(scope="module")
def rows():
    return table(needle_rows(repeats=2, methods=("full", "pvc", "h2o", "random")))


@pytest.fixture(scope="module")
def summary(rows):
    return stats.summarize(rows)


def settings(mode="offline"):
    return SimpleNamespace(mode=mode, project="pvcbench", entity=None)


def track(summary, folder, mode="offline", pictures=()):
    config = {"seed": 3, "task": {"name": "needle"}}
    return tracking.track(settings(mode), "0123456789ab", "test", config, summary, pictures, folder, task="needle")


def records(path):
    """The records of an offline file: LevelDB's log format with W&B's header."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw = path.read_bytes()
    assert raw[:4] == b":W&B"
    place, parts = HEADER, []
    while place < len(raw):
        left = BLOCK - place % BLOCK
        if left < CHUNK:
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", raw[place : place + CHUNK])
        data = raw[place + CHUNK : place + CHUNK + length]
        assert checksum == zlib.crc32(data, zlib.crc32(bytes([kind])))
        parts.append(data)
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []
        place += CHUNK + length
    assert not parts


def finished(path):
    """All records of a run's file, once it has its last one: wandb writes the file a moment after the run ends."""
    for _ in range(400):
        with suppress(AssertionError, struct.error):  # half written
            found = list(records(path))
            if found and found[-1].HasField("exit"):
                return found
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def items(message):
    """The keys and values of a history, config or summary message."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in message}


def test_every_point_of_every_curve_is_in_the_offline_file(rows, summary, tmp_path, capfd):
    pictures = figures.draw(rows, tmp_path / "figures")
    place = track(summary.sample(frac=1, random_state=0), tmp_path, pictures=pictures)
    assert capfd.readouterr() == ("", "")
    (path,) = tmp_path.glob("wandb/offline-run-*-0123456789ab/*.wandb")
    assert place == str(path.parent)
    found = finished(path)
    histories = [items(record.history.item) for record in found if record.HasField("history")]
    scored = summary[summary["score"].notna()]
    assert set(scored["method"]) == {"full", "pvc", "h2o", "random"}
    for method, cells in scored.groupby("method"):
        key = f"needle/{method}"
        mine = [row for row in histories if key in row]
        expected = cells.sort_values("kept_fraction")
        columns = {"cache/fraction": "kept_fraction", key: "score", f"{key}/low": "low", f"{key}/high": "high"}
        for name, column in columns.items():
            assert [row[name] for row in mine] == pytest.approx(list(expected[column]), abs=1e-12), (method, name)
    defined = [record.metric for record in found if record.HasField("metric")]
    metrics = {metric.name or metric.glob_name: metric for metric in defined}
    assert metrics["needle/*"].step_metric == "cache/fraction"
    logged = {key: value for row in histories for key, value in row.items()}
    assert logged["table/nrows"] == len(summary)
    for picture in ("curve", "needle_grid"):
        stored = path.parent / "files" / logged[f"figures/{picture}/path"]
        assert stored.read_bytes() == (tmp_path / "figures" / f"{picture}.png").read_bytes()


def test_config_and_numbers_are_mirrored(summary, tmp_path):
    place = track(summary, tmp_path)
    found = finished(next(tmp_path.glob("wandb/*/*.wandb")))
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.run_id, run.display_name, run.project) == ("0123456789ab", "test", "pvcbench")
    assert items(run.config.update)["seed"] == 3
    known = {}
    for record in found:
        if record.HasField("summary"):
            known |= items(record.summary.update)
    cell = summary[(summary["method"] == "h2o") & (summary["budget"] == "0.25")].iloc[0]
    assert known["cells/h2o/0.25/score"] == pytest.approx(cell["score"])
    assert known["cells/h2o/0.25/difference"] == pytest.approx(cell["difference"])
    assert not [key for key in known if key.startswith("cells/pvc/0.05")]
    assert place is not None and not (tmp_path / "wandb" / "latest-run").exists()


def test_a_broken_wandb_is_one_line_and_no_failure(summary, tmp_path, monkeypatch, capfd):
    import wandb

    def broken(**_):
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr(wandb, "init", broken)
    assert track(summary, tmp_path) is None
    out, err = capfd.readouterr()
    assert out == ""
    reason = "RuntimeError: the disk is full"
    expected = f"pvcbench: wandb failed ({reason}); the results are safe in {tmp_path / 'rows.jsonl'}\n"
    assert err == expected


def test_online_without_a_key_asks_nothing_and_warns(summary, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert track(summary, tmp_path, mode="online") is None
    assert capfd.readouterr().err.count("wandb failed") == 1


def test_disabled_writes_nothing(summary, tmp_path):
    assert track(summary, tmp_path, mode="disabled") is None
    assert list(tmp_path.iterdir()) == []


def test_unknown_mode_is_a_users_error():
    for mode in tracking.MODES:
        tracking.check_mode(mode)
    with pytest.raises(UserError, match="offline, online, disabled, not 'of'"):
        tracking.check_mode("of")
