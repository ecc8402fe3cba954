"""The export in the schema of Every Eval Ever: valid by it, with the board's numbers, and nothing where none fits."""

import json
import uuid
from pathlib import Path

import pytest

from json_lines import joined
from pvcbench.board import every_eval_ever, make, pack
from pvcbench.board.verifying import Asked

SCHEMA = json.loads((Path(__file__).parent / "every_eval_ever" / "eval.schema.json").read_text(encoding="utf-8"))
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def exported(tmp_path):
    """The documents of a board of some files, the board, and what was said."""

    def made(*paths):
        lines = []
        board = make.make(paths, tmp_path / "site", Asked(samples=0), tmp_path / "out", say=lines.append)
        return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in board.exported], board, lines

    return made


def valid(document):
    """Raises where a document is not valid by the schema; and what its project checks beside it."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(document)


def test_the_schema_is_the_version_that_is_written():
    assert SCHEMA["version"] == every_eval_ever.SCHEMA


def test_a_run_is_exported_with_the_boards_numbers(submit, exported, tmp_path):
    [(path, found)], board, _ = exported(submit())
    assert set(SCHEMA["required"]) <= found.keys() <= SCHEMA["properties"].keys()
    parts = path.relative_to(tmp_path / "out").parts
    assert parts[:4] == ("data", "pvcbench", "unknown", "random-tiny") and uuid.UUID(path.stem).version == 4
    cells = board.entries[0].about["cells"]
    assert len(found["evaluation_results"]) == len(cells) == 5
    for one, cell in zip(found["evaluation_results"], cells, strict=True):
        assert one["score_details"]["score"] == pytest.approx(cell["score"] / 100)
        assert one["score_details"]["uncertainty"]["num_samples"] == 3
        low, high = one["metric_config"]["min_score"], one["metric_config"]["max_score"]
        assert low <= one["score_details"]["score"] <= high
        assert one["generation_config"]["additional_details"]["method"] == cell["method"]
    assert found["source_metadata"]["additional_details"]["state"] == "not verified"


def test_what_is_exported_is_valid(submit, rows, exported, tmp_path):
    for row in rows:
        if row["method"] == "h2o" and row["budget"] == "0.3":
            sizes = dict.fromkeys(("kept_entries", "kept_fraction", "kv_bytes"))
            row |= {
                "output": None,
                "score": None,
                "metrics": {},
                "error": "Odd: no memory",
                "reason": "failed",
                **sizes,
            }
    paths = [submit(files={"rows.jsonl": joined(rows)}, note="x", by="<Ada>")]
    for run in ("quickstart/a9b99b9e9929", "perplexity_beyond/cc09dfae6096", "longbench_table/00266e4b38d4"):
        paths.append(tmp_path / f"{run.rpartition('/')[2]}.zip")
        paths[-1].write_bytes(pack.pack(RESULTS / run, "Ada", partial=True).content)
    documents, _, _ = exported(*paths)
    assert len(documents) == 4
    silent = documents[0][1]["source_metadata"]["additional_details"]
    assert silent["cells_without_result"] == "h2o at 30%" and len(documents[0][1]["evaluation_results"]) == 4
    assert documents[2][1]["evaluation_results"][0]["metric_config"]["lower_is_better"] is True
    for _, document in documents:
        json.dumps(document, allow_nan=False)
        valid(document)


def test_what_has_no_score_is_told_and_not_exported(exported, tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(pack.pack(RESULTS / "analysis/3a4d5a2ca4cd", "Ada").content)
    documents, _, lines = exported(path)
    assert not documents and any("not exported" in line and "have no score" in line for line in lines)
