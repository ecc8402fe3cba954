"""Reading a stranger's file: every way in which it may be built to do harm is refused, and says why."""

import io
import json
import stat
import zipfile

import pytest
import yaml

from json_lines import joined
from pvcbench.board import archive, submission
from pvcbench.board.archive import Refused


def zipped(*entries):
    """A zip of (name, content) or of (ZipInfo, content)."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as whole:
        for name, content in entries:
            whole.writestr(name, content)
    return made.getvalue()


def link():
    entry = zipfile.ZipInfo("rows.jsonl")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped((entry, "/etc/passwd"))


def encrypted():
    raw = bytearray(zipped(("rows.jsonl", "{}")))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + offset] |= 1
    return bytes(raw)


def other_kind():
    entry = zipfile.ZipInfo("rows.jsonl")
    entry.compress_type = zipfile.ZIP_BZIP2
    return zipped((entry, "{}"))


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped(("rows.jsonl", "{}"), ("rows.jsonl", "{ }"))


def damaged():
    raw = bytearray(zipped(("rows.jsonl", "{}" * 100)))
    raw[raw.index(b"{}{}") + 5] ^= 0xFF
    return bytes(raw)


@pytest.mark.parametrize(("raw", "problem"), [
    (lambda: b"no zip", "no readable zip"),
    (lambda: zipped(("../../evil.py", "x")), "an entry '../../evil.py', which is none of a submission's"),
    (lambda: zipped(("/etc/cron.d/x", "x")), "which is none of a submission's"),
    (lambda: zipped(("rows.jsonl/", "")), "which is none of a submission's"),
    (lambda: zipped(("rows.jsonl\n", "x")), "which is none of a submission's"),
    (link, "is a link or another special file"),
    (encrypted, "is encrypted"),
    (other_kind, "compressed in another way"),
    (twice, "two entries of the name 'rows.jsonl'"),
    (damaged, "no readable zip"),
    (lambda: zipped(("config.yaml", "a" * (archive.MOST_SMALL + 1))), "would unpack to more than 4 MB"),
    (lambda: zipped(*((f"rows-1of{n}.jsonl", "") for n in range(1, 600))), "599 entries"),
    (lambda: zipped(("rows.jsonl", "{}")), "it has no manifest.json"),
], ids=lambda value: getattr(value, "__name__", None))  # fmt: skip
def test_a_hostile_zip_is_refused(raw, problem, tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(raw())
    with pytest.raises(Refused, match=r"x\.zip: ") as found:
        submission.read(path, tmp_path / "place")
    assert problem in str(found.value) and "\n" not in str(found.value)
    assert not (tmp_path / "place").exists()


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path, entry = tmp_path / "bomb.zip", zipfile.ZipInfo("rows.jsonl")
    entry.compress_type = zipfile.ZIP_DEFLATED
    path.write_bytes(zipped((entry, b"0" * 20_000_000)))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(archive, "MOST_BYTES", 10_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(Refused, match="would unpack to more than"):
        submission.read(path, tmp_path / "place")


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    raw = bytearray(zipped(("rows.jsonl", "0" * 1000)))
    place = raw.index(b"PK\x01\x02")
    raw[place + 24 : place + 28] = (5).to_bytes(4, "little")  # the size that the directory tells
    path = tmp_path / "x.zip"
    path.write_bytes(bytes(raw))
    with pytest.raises(Refused):
        submission.read(path, tmp_path / "place")


def test_a_huge_or_absent_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_PACKED", 10)
    (tmp_path / "x.zip").write_bytes(b"0" * 11)
    with pytest.raises(Refused, match="as no submission may"):
        submission.read(tmp_path / "x.zip", tmp_path)
    with pytest.raises(Refused, match="no such file"):
        submission.read(tmp_path / "y.zip", tmp_path)


@pytest.mark.parametrize(("said", "problem"), [
    ({"version": 7}, "has version '7', and this pvcbench reads version 1"),
    ({"kind": "other"}, "is not that of a pvcbench submission"),
    ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ({"by": ""}, "by: Value should have at least 1 item"),
    ({"by": "A\u202eda"}, "by: Value error, control characters in it"),
    ({"by": 5}, "by: Input should be a valid string"),
    ({"note": "x" * 5000}, "note: Value should have at most 2000 items"),
    ({"run": "0" * 12}, "its manifest is of run 000000000000"),
    ({"run": "../../../x"}, "run: String should match pattern"),
])  # fmt: skip
def test_a_manifest_that_is_none_is_refused(submit, said, problem, tmp_path):
    with pytest.raises(Refused) as found:
        submission.read(submit(**said), tmp_path / "place")
    assert problem in str(found.value)


def test_rows_changed_in_the_zip_alone_are_found_by_their_hash(submit, rows, tmp_path):
    rows[3]["score"] = 1.0 - rows[3]["score"]
    path = submit(files={"rows.jsonl": joined(rows)}, hashes=False)
    with pytest.raises(Refused, match=r"rows\.jsonl was changed after it was packed"):
        submission.read(path, tmp_path / "place")


def test_a_file_that_the_manifest_does_not_have_is_refused(submit, tmp_path):
    path = submit(files={"rows-1of2.jsonl": b""}, hashes=False)
    with pytest.raises(Refused, match=r"'rows-1of2\.jsonl' stands in the manifest or among the files, not in both"):
        submission.read(path, tmp_path / "place")


def known(original, tmp_path):
    return yaml.safe_load(archive.unpacked(original, tmp_path)["config.yaml"])


@pytest.mark.parametrize(("text", "problem"), [
    ("a: &x [1]\nb: *x\n", "it has aliases"),
    ("[" * 60 + "]" * 60, "nested too deeply"),
    ("run: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    ("run: 1\n", "identity"),
    ("- 1\n", "config.yaml cannot be read"),
    ("run: x\nidentity: {}\nconfig: {}\n", "config.yaml cannot be read"),
    ("\xff", "config.yaml"),
])  # fmt: skip
def test_a_configuration_that_is_none_is_refused(submit, text, problem, tmp_path):
    with pytest.raises(Refused) as found:
        submission.read(submit(files={"config.yaml": text.encode("latin-1")}), tmp_path / "place")
    assert problem in str(found.value) and "\n" not in str(found.value)


def test_an_identity_that_does_not_give_the_id_is_refused(submit, original, tmp_path):
    whole = known(original, tmp_path)
    whole["identity"]["seed"] = 5
    with pytest.raises(Refused, match=r"its identity gives the id .*: it was altered"):
        submission.read(submit(files={"config.yaml": yaml.safe_dump(whole).encode()}), tmp_path / "place")


@pytest.mark.parametrize(("change", "problem"), [
    (lambda row: row.update(method="<img>"), "a row of method '<img>', which the run does not have"),
    (lambda row: row.update(score=float("nan")), "is not JSON"),
    (lambda row: row.update(kept_fraction="all"), "kept_fraction"),
    (lambda row: row.update(prompt_sha256="0" * 64), "has rows or an excerpt of another prompt"),
])  # fmt: skip
def test_rows_that_are_not_the_runs_are_refused(submit, rows, change, problem, tmp_path):
    change(rows[2])
    with pytest.raises(Refused) as found:
        submission.read(submit(files={"rows.jsonl": joined(rows)}), tmp_path / "place")
    assert problem in str(found.value)


@pytest.mark.parametrize("line", ["[" * 100_000, "{}", "[]", "nonsense", '{"sample": 1e999}'])
def test_lines_that_are_no_rows_are_refused(submit, line, tmp_path):
    with pytest.raises(Refused, match=r"rows.jsonl, line 1"):
        submission.read(submit(files={"rows.jsonl": f"{line}\n".encode()}), tmp_path / "place")


def test_odd_sessions_and_excerpts_are_refused(submit, tmp_path):
    long = {"sample": "x", "question": "?", "excerpt": [{"from": 0, "to": 10**6, "text": "", "span": None}]}
    for name, line in {"sessions.jsonl": {"before": 0}, "samples.jsonl": long}.items():
        with pytest.raises(Refused, match=name):
            submission.read(submit(files={name: json.dumps(line).encode() + b"\n"}), tmp_path / name)
    with pytest.raises(Refused, match=r"environment\.json is not a JSON object"):
        submission.read(submit(files={"environment.json": b"[1]"}), tmp_path / "place")
