"""Data for the page in blocks that a browser unpacks when they are asked for: gzip in base64, no server needed."""

import base64
import gzip
import json


def data(value: object) -> str:
    """Any JSON value as a block."""
    return packed(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())


def packed(content: bytes) -> str:
    """Bytes as a block; the same bytes give the same block."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def unpacked(block: str) -> object:
    """The JSON value of a block, as the page reads it."""
    return json.loads(gzip.decompress(base64.b64decode(block)))
