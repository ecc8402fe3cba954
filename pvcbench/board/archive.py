"""The file of a submission: a zip of a few files with fixed names, equal bytes for equal content, read with distrust.

What a stranger's file may cost is limited before anything of it is unpacked: its size, the number and the names of its
entries, and how much they hold. Nothing of it is ever written under a name that it chose.
"""

import io
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from pvcbench.errors import UserError

NAMES = re.compile(
    r"manifest\.json|config\.yaml|environment\.json|sessions\.jsonl|(rows|samples)(-\d{1,4}of\d{1,4})?\.jsonl"
)
MANIFEST, SUFFIX = "manifest.json", ".pvcbench.zip"
MEGABYTE = 2**20
MOST_PACKED, MOST_BYTES, MOST_SMALL, MOST_ENTRIES = 128 * MEGABYTE, 512 * MEGABYTE, 4 * MEGABYTE, 512
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold, so that packing again gives the same bytes
KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what Python 3.11 reads everywhere and what bombs hide in least
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)


class Refused(UserError):
    """A file that is no submission, or one that cannot be trusted; the message says why."""


def packed(files: Mapping[str, bytes]) -> bytes:
    """Some files as one zip; equal files give equal bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, FIXED_TIME)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED, 9)
    return made.getvalue()


def content(path: Path) -> bytes:
    """The bytes of a submission's file; raises Refused where it cannot be one."""
    try:
        if not path.is_file():
            raise Refused(f"{path}: there is no such file: name one that `pvcbench submit` wrote")
        if path.stat().st_size > MOST_PACKED:
            raise Refused(f"{path}: it has more than {MOST_PACKED // MEGABYTE} MB, as no submission may")
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: it cannot be read: {error.strerror}") from error


def unpacked(raw: bytes, path: Path) -> dict[str, bytes]:
    """The files of a submission by name; raises Refused where the zip is damaged or built to do harm."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            problem = wrong(entries)
            if problem:
                raise Refused(f"{path}: {problem}")
            return {entry.filename: archive.read(entry) for entry in entries}
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(f"{path}: it is no readable zip ({reason}): pack the run again with `pvcbench submit`") from error


def wrong(entries: list[zipfile.ZipInfo]) -> str | None:
    """What is wrong with the entries of a zip before any is unpacked; None where nothing is."""
    if len(entries) > MOST_ENTRIES:
        return f"it has {len(entries)} entries, and a submission has {MOST_ENTRIES} at most"
    names = [entry.filename for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return f"it has two entries of the name {twice!r}"
    problem = next(filter(None, map(odd, entries)), None)
    if problem is None and sum(entry.file_size for entry in entries) > MOST_BYTES:
        return f"it would unpack to more than {MOST_BYTES // MEGABYTE} MB"
    return problem


def odd(entry: zipfile.ZipInfo) -> str | None:
    """What is wrong with one entry of a zip."""
    if not NAMES.fullmatch(entry.filename):
        return f"it has an entry {entry.filename[:80]!r}, which is none of a submission's"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return f"its entry {entry.filename} is a link or another special file"
    if entry.flag_bits & 0x1 or entry.compress_type not in KINDS:
        return f"its entry {entry.filename} is encrypted, or compressed in another way than by deflate"
    large = entry.filename.startswith(("rows", "samples", "sessions"))
    if not large and entry.file_size > MOST_SMALL:
        return f"its entry {entry.filename} would unpack to more than {MOST_SMALL // MEGABYTE} MB"
    return None
