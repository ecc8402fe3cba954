"""The board: what is verified, what differs, what is left out, and that no text of a stranger becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from json_lines import joined
from pvcbench.board import again, archive, cells, make, pack, submission, verifying
from pvcbench.board.private import GONE
from pvcbench.board.verifying import DIFFERS, UNVERIFIED, VERIFIED, Asked
from pvcbench.cli.main import main as command
from pvcbench.runs import identity
from pvcbench.stats import perplexity

RESULTS = Path(__file__).parents[2] / "results"
EVIL = '</script><script>window.owned=1</script><!-- "><img src=x onerror=owned=1> {{ 7 * 7 }} ${oc.env:HOME}'
QUIET = Asked(samples=0)


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def board(tmp_path, *paths, asked=QUIET, **options):
    """The board of some files, and all lines said about it."""
    lines = []
    return make.make(paths, tmp_path / "site", asked, **options, say=lines.append), lines


def tampered(rows):
    """Every answer of H2O replaced by the right one, with the score that it deserves."""
    for row in rows:
        if row["method"] == "h2o":
            row |= {"output": f"{row['answers'][0]}", "score": 1.0, "metrics": {"accuracy": 1.0}}
    return joined(rows)


def test_a_submission_is_measured_again(submit, tmp_path, capsys):
    code = command(["board", str(submit()), "--out", str(tmp_path / "site"), "--seed", "3"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "by Ada: verified: 5 of 5 rows identical" in said and "drawn with seed 3" in said
    page = (tmp_path / "site" / "index.html").read_text()
    assert "1 random sample of each submission was measured again" in " ".join(page.split()) and "seed 3" in page
    lines = json.loads((tmp_path / "site" / "board.json").read_text())
    assert len(lines) == 5 and all(line["marks"] == ["verified"] for line in lines)
    one = Page(next((tmp_path / "site" / "runs").glob("*.html")).read_text()).text
    assert "15 stored answers were scored again: all scores are as stored" in " ".join(one.split())


def test_answers_that_were_made_up_are_found_where_they_are_drawn(submit, rows, tmp_path):
    made, lines = board(tmp_path, submit(files={"rows.jsonl": tampered(rows)}), asked=Asked(seed=1))
    entry = made.entries[0]
    assert made.trouble and entry.state.state == DIFFERS and "2 of 5 rows came out otherwise" in lines[0]
    assert all(" h2o " in row for row, _ in entry.state.differing)
    text = Page(made.page.read_text()).text
    assert "Numbers that differ or conflict" in text and entry.state.differing[0][0] in text


def test_a_score_that_does_not_follow_from_its_answer_is_found_without_a_model(submit, rows, original, tmp_path):
    """The model is not at hand, and the sample would not have been drawn: every stored answer is scored again."""
    rows[3] |= {"score": 1.0 - rows[3]["score"], "metrics": {"accuracy": 1.0 - rows[3]["score"]}}
    whole = yaml.safe_load(archive.unpacked(original, tmp_path)["config.yaml"])
    whole["config"]["model"]["tokenizer"] = f"{GONE}/tokenizer"
    files = {"rows.jsonl": joined(rows), "config.yaml": yaml.safe_dump(whole, sort_keys=False).encode()}
    made, lines = board(tmp_path, submit(files=files), asked=Asked())
    assert made.entries[0].state.state == DIFFERS and "1 of 15 stored scores do not follow from the stored" in lines[0]


@pytest.fixture
def one(submit, tmp_path):
    return submission.read(submit(), tmp_path / "place")


def measured(one, tmp_path, cells=1):
    """What the process that measures again finds, measured in this one."""
    result = tmp_path / "result.json"
    again.main([str(one.folder), str(cells), "0", str(result)])
    return json.loads(result.read_text())


def test_another_method_of_that_name_is_a_reason_not_to_verify(one, tmp_path, monkeypatch):
    real = identity.of_method
    monkeypatch.setattr(identity, "of_method", lambda method: real(method) | {"source": "f" * 64})
    found = measured(one, tmp_path)
    state = verifying.judged(found, 3, 3)
    assert state.state == UNVERIFIED and "this version would measure another run (methods.full.source" in state.why
    assert "the method's code was changed" in state.why and "5 of 5 rows came out the same all the same" in state.why


def test_fewer_samples_than_the_task_has_are_told(one, tmp_path):
    found = measured(one, tmp_path, cells=0)
    assert found["total"] == 15 and found["scored"] == 15 and not found["rescored_differ"] and "compared" not in found
    assert "lacks" not in found | verifying.judged({**found, "problem": "x"}, 3, 3).found
    state = verifying.judged({**found, "problem": "x"}, 3, None)
    assert state.found["lacks"] == "3 of the task's 15 samples are measured"


@pytest.mark.parametrize(("found", "state", "why"), [
    ({"agree": True, "exact": True, "identical": 5}, VERIFIED, "5 of 5 rows identical"),
    ({"agree": True, "exact": False, "identical": 4, "other_outputs": 1}, VERIFIED,
     "4 of 5 rows within the tolerance (another machine), 1 with another output"),
    ({"agree": True, "exact": True, "identical": 5, "speeds": True}, VERIFIED,
     "5 of 5 rows identical but for the speeds"),
    ({"agree": False, "exact": False, "identical": 3}, DIFFERS, "2 of 5 rows came out otherwise"),
    ({"problem": "no such model"}, UNVERIFIED, "no such model"),
    ({"agree": True, "exact": True, "identical": 5, "changed": ["task.version: 1 then, 2 now"], "rescored_differ": 2},
     UNVERIFIED, "this version would measure another run (task.version"),
    ({"agree": True, "exact": True, "identical": 5, "rescored_differ": 2}, DIFFERS, "2 of 9 stored scores do not"),
])  # fmt: skip
def test_states_are_in_plain_words(found, state, why):
    known = {
        "compared": 5,
        "speeds": False,
        "other_outputs": 0,
        "changed": [],
        "scored": 9,
        "rescored_differ": 0,
        "total": None,
    }
    made = verifying.judged(known | found, 3, None)
    assert made.state == state and made.why.startswith(why)


def test_measuring_again_ends_in_time(one):
    state = verifying.verified(one, Asked(minutes=0.001))
    assert state.state == UNVERIFIED and "took longer than 0.001 minutes" in state.why


def test_what_is_not_trusted_is_not_started(submit, original, tmp_path, monkeypatch):
    whole = yaml.safe_load(archive.unpacked(original, tmp_path)["config.yaml"])
    whole["config"]["task"] = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "owned")}
    monkeypatch.setattr(verifying, "measured", lambda *_: pytest.fail("it was started"))
    path = submit(files={"config.yaml": yaml.safe_dump(whole, sort_keys=False).encode()})
    made, lines = board(tmp_path, path, asked=Asked())
    assert made.entries[0].state.state == UNVERIFIED and "pathlib.Path.touch is not known here" in lines[0]
    assert not (tmp_path / "owned").exists()


def test_draws_depend_on_seed_and_file(one):
    assert verifying.seed_for(one, 1) != verifying.seed_for(one, 2) and Asked().seed != Asked().seed
    assert verifying.cells_for(one, 1) == 1 and verifying.cells_for(one, 3) == 11


def test_scores_are_computed_from_rows(one, submit, tmp_path):
    table = perplexity.shown(one.rows).set_index(["method", "budget"])
    for cell in cells.summary(one)["cells"]:
        line = table.loc[cell["method"], cell["budget"]]
        assert cell["score"] == pytest.approx(100 * line["score"]) and cell["kept"] == pytest.approx(
            100 * line["kept_bytes"]
        )
        assert cell["n"] == line["samples"] == 3


def test_texts_of_a_submission_never_become_markup(submit, rows, tmp_path):
    for row in rows:
        if row["method"] == "h2o":
            row |= {"output": None, "score": None, "metrics": {}, "error": f"Odd: {EVIL}", "kept_entries": None}
            row |= {"kept_fraction": None, "kv_bytes": None, "reason": "failed"}
    path = submit(
        files={"rows.jsonl": joined(rows)},
        by=f"Eve {EVIL}"[:120],
        contact=EVIL,
        note=EVIL,
        missing=[EVIL],
        stripped=[EVIL],
    )
    made, _ = board(tmp_path, path, submit("two.zip"))
    for page in tmp_path.glob("site/**/*.html"):
        text = page.read_text()
        found = Page(text)
        assert sum(tag == "script" for tag, _ in found.tags) == 1 and not any(tag == "img" for tag, _ in found.tags)
        assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
        assert not any(re.match(r"\w+:|//", link) for link in found.links), found.links
        for link in found.links:
            assert link.startswith("#") or (page.parent / link).exists(), link
        policy = next(attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes)
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert made.entries[0].one.manifest.note == EVIL
    assert "Odd: </script>" in Page(made.page.read_text()).text  # why a cell has no result
    assert EVIL in Page((tmp_path / "site" / "runs" / f"{made.entries[0].one.stem}.html").read_text()).text


def test_an_incomplete_run_is_marked_whatever_it_says(submit, rows, tmp_path):
    made, lines = board(tmp_path, submit(files={"rows.jsonl": joined(rows[:9])}, complete=True, missing=[]))
    assert "incomplete" in made.entries[0].marks and "incomplete" in lines[0]
    text = Page(made.page.read_text()).text
    assert "Incomplete: " in text and "lack some of the cells" in text


def test_other_rows_of_the_same_run_are_a_conflict(submit, rows, tmp_path):
    one, two = submit("one.zip"), submit("two.zip", files={"rows.jsonl": tampered(rows)}, by="Mallory")
    made, lines = board(tmp_path, one, two)
    assert made.trouble and [entry.marks for entry in made.entries] == [["not verified", "conflict"]] * 2
    assert "conflict with the submission of Mallory" in lines[0] and "6 of 15 rows that both have differ (" in lines[0]
    assert "In conflict with the submission of Ada" in Page(
        (tmp_path / "site" / "runs" / f"{made.entries[1].one.stem}.html").read_text()).text  # fmt: skip


def test_like_rows_of_another_machine_agree(submit, original, rows, tmp_path):
    session = json.loads(archive.unpacked(original, tmp_path)["environment.json"]) | {"processor": "Another"}
    rows[1]["kept_entries"] *= 1 + 1e-6
    other = {"rows.jsonl": joined(rows), "environment.json": json.dumps(session).encode()}
    made, _ = board(tmp_path, submit("one.zip"), submit("two.zip", files=other, by="Bea"))
    assert not made.trouble and [found.differ for entry in made.entries for found in entry.comparisons] == [(), ()]
    assert "agrees with the submission of Bea" in made.page.read_text()


def test_the_same_rows_are_shown_once(submit, tmp_path):
    paths = submit("one.zip"), submit("two.zip"), submit("three.zip", by="Copycat")
    made, _ = board(tmp_path, *paths)
    assert len(made.entries) == 1 and not made.trouble
    assert dict(made.left_out) == {"two.zip": "the same file as one.zip",
                                   "three.zip": "the same rows as one.zip, submitted by Copycat"}  # fmt: skip
    assert "submitted by Copycat" in made.page.read_text()


def test_refused_files_are_told_and_the_others_shown(submit, tmp_path, capsys):
    bad, good = tmp_path / "<b>bad.zip", submit("good.zip")
    bad.write_bytes(b"nothing")
    arguments = ["board", str(bad), str(good), "--no-verify", "--out", str(tmp_path / "site")]
    assert command(arguments) == 1 and "left out: <b>bad.zip: it is no readable zip" in capsys.readouterr().out
    assert "&lt;b&gt;bad.zip" in (tmp_path / "site" / "index.html").read_text()
    assert command(["board", str(bad), "--no-verify", "--out", str(tmp_path / "site")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command(["board", str(tmp_path / "absent.zip")]) == 2


def test_rows_that_make_no_table_are_refused(submit, rows, tmp_path):
    for number, row in enumerate(rows):
        row["sample_info"] = {"group": {"unhashable": [number]}}
        row["cluster"], row["protocol"] = row["cluster"], {}
    with pytest.raises(archive.Refused, match="its rows make no table"):
        board(tmp_path, submit(files={"rows.jsonl": joined(rows)}))


def test_a_board_replaces_only_a_board(submit, tmp_path):
    made, _ = board(tmp_path, submit("one.zip"))
    old = tmp_path / "site" / "runs" / f"{made.entries[0].one.stem}.html"
    assert old.exists()
    board(tmp_path, submit("two.zip", by="Bea"))
    assert not old.exists() and len(list((tmp_path / "site" / "files").iterdir())) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(make.UserError, match="holds other files"):
        make.make([tmp_path / "one.zip"], tmp_path / "other", QUIET, say=lambda line: None)


def test_the_copied_file_is_the_one_that_was_submitted(submit, tmp_path):
    path = submit()
    made, _ = board(tmp_path, path)
    copy = tmp_path / "site" / "files" / f"{made.entries[0].one.stem}{archive.SUFFIX}"
    assert copy.read_bytes() == path.read_bytes()
    assert submission.read(copy, tmp_path / "again").manifest.by == "Ada"


@pytest.mark.parametrize(
    "run", ["quickstart/a9b99b9e9929", "analysis/3a4d5a2ca4cd", "pyramidinfer_throughput/c850763c70fe"]
)
def test_committed_runs_of_every_kind_stand_on_a_board(run, tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(pack.pack(RESULTS / run, "Ada").content)
    made, _ = board(tmp_path, path)
    page = Page((tmp_path / "site" / "runs" / f"{made.entries[0].one.stem}.html").read_text())
    assert made.entries[0].one.complete and f"run {run.rpartition('/')[2]}" in page.text
    assert ("no score" in made.page.read_text()) == (not run.startswith("quickstart"))


@pytest.mark.parametrize("arguments", [
    ["submit"], ["submit", "nowhere", "--by", "Ada"], ["board"], ["board", "x", "--verify", "0"],
    ["board", "x", "--minutes", "0"],
    ["board", "x", "--seed", "-1"], ["board", "x", "--places", "nowhere"], ["board", "x", "--config-dir", "nowhere"],
], ids=" ".join)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(arguments, capsys):
    assert command(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("pvcbench: ") and said.err.count("\n") == 1
