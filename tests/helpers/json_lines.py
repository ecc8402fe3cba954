"""Rows as the bytes of their file."""

import json


def joined(rows):
    """Objects as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
