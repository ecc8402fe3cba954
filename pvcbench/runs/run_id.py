"""The id of a run: a hash of its identity (`identity.py`), which is everything that changes its numbers."""

import hashlib
import json
from collections.abc import Mapping


def essence(identity: Mapping) -> Mapping:
    """An identity without the model's name: a path and another path to the same weights are one model.

    Identities of before `rules` were hashed whole.
    """
    if "rules" not in identity:
        return identity
    return {**identity, "model": {key: value for key, value in identity["model"].items() if key != "name"}}


def run_id(identity: Mapping) -> str:
    """A hash of everything that changes a number; equal ids mean that rows may stand in one file."""
    text = json.dumps(essence(identity), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
