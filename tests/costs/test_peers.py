"""The peer columns of the benchmarks: their logic on a worker that is made up, and the real one where it is set up."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench_scoring
from peers import curve, presses, questions, scoring
from peers.client import WORKER, Peer, PeerDied, PeerFailed, check_methods, peak_of
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import points
from pvcbench.evaluation.generation import Generate
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.progress import Meter
from pvcbench.evaluation.row import Protocol
from pvcbench.evaluation.shared_prefill import run_batch
from pvcbench.models import random_weights
from pvcbench.tasks.base import Sample
from pvcbench.tasks.needle.task import Needle
from pvcbench.tasks.prompts import Prompter
from source_imports import imports
from tiny import dense, engine, prompt

REAL = Path(__file__).parents[2] / ".venv-peers/kvpress/bin/python"
FAKE = """
import json, sys
replies = json.load(open(sys.argv[1]))
if "--peak" in sys.argv:
    print(replies["peaks"][sys.argv[sys.argv.index("--peak") + 1]])
    sys.exit()
print(json.dumps({"ready": True, "packages": {"kvpress": "made up"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    reply = replies[str(request["press"])]
    if reply == "die":
        sys.exit("first line\\nout of memory")
    print(reply if isinstance(reply, str) else json.dumps(reply), flush=True)
"""
SAMPLE = Sample("0-0", "The special magic word is tulip. The sky is blue.", "Which word?", ("tulip",), 8)
ROW = {"sample": "0-0", "reference": False, "method": "random", "budget": "0.5", "kept_entries": 24.5}


@pytest.fixture
def worker(tmp_path):
    """Starts a worker that gives canned replies by press."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    started = []

    def start(**replies):
        (tmp_path / "replies.json").write_text(json.dumps(replies), encoding="utf-8")
        started.append(Peer(sys.executable, tmp_path / "replies.json", 1, worker=tmp_path / "fake.py"))
        return started[-1]

    yield start
    for peer in started:
        peer.close()


@pytest.fixture
def task():
    needle = Needle()
    needle.prepare(Prompter(random_weights.byte_tokenizer()))
    return needle


def reply(coded, answer="It is tulip.", seconds=1.0, kept=24):
    same = {"prompt_sha256": coded.sha256, "context_tokens": coded.context_tokens, "question_tokens": 12}
    return {"answer": answer, "seconds": seconds, "kept": [kept, kept], **same}


def test_a_curve_is_compared_point_by_point(worker, task):
    coded = task.prompter.encode(SAMPLE)
    replies = {"None": reply(coded, seconds=2.0), "ObservedAttention": reply(coded, seconds=30.0)}
    replies |= {"Random": reply(coded, "No idea.", seconds=4.0, kept=24)}
    wanted = list(curve.points(["h2o", "random"], [0.25, 0.5]))
    ours, theirs = curve.Side([4.0], [1.0]), curve.Side()
    said = {"output": "It is tulip.", "score": 1.0}
    rows = [ROW | said | {"method": "full", "reference": True, "budget": "1.0", "kept_entries": 24.0}]
    rows += [
        ROW | said | {"method": name, "budget": budget} for name in ("h2o", "random") for budget in ("0.25", "0.5")
    ]
    curve.note(ours, rows)
    curve.ask(worker(**replies), task, SAMPLE, coded, wanted, theirs)
    report = curve.report(ours, theirs, ["h2o", "random"], True, len)
    assert report["peer_over_ours"] == (2 + 2 * 30 + 2 * 4) / 4  # all five points against our curve
    assert report["peer_over_ours_without_observed"] == 2 + 2 * 4  # against our curve of the others
    assert report["peer_over_ours_target"] == {"at_least": 15.0, "met": True}
    assert report["peer_over_ours_without_observed_target"] == {"at_least": 10.0, "met": True}
    assert report["answers"]["full"] == {"ours": 1, "peer": 1, "same_text": 1, "of": 1}
    assert report["answers"]["random"] == {"ours": 2, "peer": 0, "same_text": 0, "of": 2}
    assert report["peer_point_s"] == {"full": 2.0, "h2o": 30.0, "random": 4.0}
    assert report["full_caches_agree"] and report["kept_entries_difference"] == 0.5
    assert report["answer_tokens"] == {"ours": 5 * len("It is tulip."), "peer": 3 * 12 + 2 * len("No idea.")}


def test_full_caches_that_say_different_things_are_told(task, worker):
    coded = task.prompter.encode(SAMPLE)
    ours, theirs = curve.Side([1.0], [1.0]), curve.Side()
    curve.note(ours, [ROW | {"method": "full", "reference": True, "output": "It is tulip.", "score": 1.0}])
    peer = worker(**{"None": reply(coded, "Blue.")})
    curve.ask(peer, task, SAMPLE, coded, list(curve.points(["random"], [])), theirs)
    report = curve.report(ours, theirs, ["random"], False, len)
    assert not report["full_caches_agree"] and report["peer_over_ours_target"]["met"] is None


def test_other_tokens_than_ours_are_refused(worker, task):
    coded = task.prompter.encode(SAMPLE)
    peer = worker(**{"None": reply(task.prompter.encode(replace(SAMPLE, question="Why?")))})
    with pytest.raises(PeerFailed, match="other tokens"):
        curve.ask(peer, task, SAMPLE, coded, list(curve.points([], [])), curve.Side())


def test_a_worker_that_fails_is_told_in_one_line(worker):
    peer = worker(Bad={"error": "ValueError: no"}, Good={"seconds": [1.0]}, Dies="die", Noise="hello")
    with pytest.raises(PeerFailed, match="prefill failed: ValueError: no"):
        peer.ask("prefill", press="Bad")
    assert peer.ask("prefill", press="Good") == {"seconds": [1.0]}  # it goes on
    with pytest.raises(PeerDied, match=r"^the peer's worker ended with code 1: out of memory$"):
        peer.ask("prefill", press="Dies")
    peer.start()
    peer.process.kill()
    with pytest.raises(PeerDied, match="killed by signal 9, out of memory perhaps"):
        peer.ask("prefill", press="Good")
    peer.start()
    with pytest.raises(PeerFailed, match="'hello', which is not JSON"):
        peer.ask("prefill", press="Noise")


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"setup\.sh"):
        Peer(tmp_path / "python", tmp_path, 1)
    with pytest.raises(UserError, match="no counterpart of 'pvc'"):
        check_methods(["h2o", "pvc"], curve.PRESSES, Path(sys.executable))
    with pytest.raises(PeerDied, match="code 3: no room"):
        peak_of([sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)"])


def test_the_scoring_column_is_a_ratio_to_its_own_plain_prefill(worker):
    peaks = {"none": 100.0, "ObservedAttention": 350.5}
    peer = worker(peaks=peaks, ObservedAttention={"seconds": [9.0]}, **{"None": {"seconds": [2.0]}})
    column = scoring.PeerColumn(peer, 60)
    for number, length in enumerate((512, 1024)):
        column.begin(length, 2)
        column.turn(length, False)
        column.turn(length, True)
        found = column.finish(length)
        assert (found["peer_ratio"], found["peer_added_mib"]) == ((4.5, 250.5) if number == 0 else (None, None))
    assert "88 s" in found["peer_note"]  # (2 + 9) s, twice the length, one repeat and the warm-up


def test_a_length_it_is_killed_at_is_recorded_and_longer_ones_are_spared(worker):
    peer = worker(ObservedAttention="die", **{"None": {"seconds": [2.0]}})
    column = scoring.PeerColumn(peer, 60)
    notes = []
    for length in (512, 1024):
        column.begin(length, 2)
        column.turn(length, True)
        notes.append(column.finish(length))
    assert "out of memory" in notes[0]["peer_note"] and notes[0]["peer_plain_s"] == 2.0
    assert notes[1]["peer_note"] == "not tried: killed at 512 tokens" and notes[1]["peer_ratio"] is None


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_window_method_sums_the_last_rows(tokens):
    ids, method, attention = prompt(tokens, batch=2), bench_scoring.Window(rows=8), {}
    found = engine("llama").prefill(ids, [method]).observer.scores[method]
    with torch.inference_mode():
        dense("llama")(ids, watch=attention.__setitem__)
    assert len(found) == len(attention)
    for layer, score in enumerate(found):
        naive = torch.zeros_like(score)
        for head in range(attention[layer].shape[1]):  # two query heads share a KV head
            for row in range(max(0, tokens - 8), tokens):
                naive[:, head // 2] += attention[layer][:, head, row]
        torch.testing.assert_close(score, naive, rtol=0, atol=1e-9)  # both in float64


@pytest.mark.skipif(not REAL.is_file(), reason="kvpress is not set up: scripts/peers/setup.sh")
def test_kvpress_says_what_we_say(tmp_path):
    loaded = random_weights.random("tiny", "cpu", "float32", seed=3)
    turn = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}[assistant]"
    loaded.tokenizer.chat_template = turn
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    task = Needle()
    task.prepare(Prompter(loaded.tokenizer))
    sample = replace(SAMPLE, context=" ".join([SAMPLE.context] * 4))
    coded, theirs, ours = task.prompter.encode(sample), curve.Side(), curve.Side([1.0], [1.0])
    with Peer(REAL, tmp_path, 1, loaded.ends) as peer:
        curve.ask(peer, task, sample, coded, list(curve.points(["streaming_llm", "h2o"], [0.5])), theirs)
        assert peer.ask("prefill", press=None, length=64, repeats=2)["seconds"][1] > 0
    overrides = ["method=[streaming_llm,h2o]", *curve.OVERRIDES]
    cells = tuple(points(building.build_methods(compose.composed(overrides).methods), [0.5], "grow"))
    batch, protocol = [WorkItem(sample, coded, cells)], Protocol(False, False, "grow", 0)
    curve.note(ours, run_batch(Generate, Engine(loaded.model), loaded, task, batch, protocol, Meter(1)))
    report = curve.report(ours, theirs, ["streaming_llm", "h2o"], False, len)
    assert report["answers"]["full"]["same_text"] == report["answers"]["streaming_llm"]["same_text"] == 1
    assert report["kept_entries_difference"] <= 1  # its share is that of the removed entries, rounded in floats


def test_the_worker_needs_nothing_of_ours():
    assert not [name for name in imports(WORKER) if name.split(".")[0] in ("pvcbench", "methods", "peers")]


def test_overlaps_count_ties_as_alike_only_where_scores_tie():
    """Which of equal scores stay is nobody's choice; a better entry that was dropped is a difference."""
    scores = [torch.tensor([[[1.0, 1.0, 1.0, 0.5, 2.0]]])]
    ours = presses.Kept([[{0, 4}]], scores)
    assert ours.overlaps([[[2, 4]]]) == [0.5] and ours.overlaps([[[2, 4]]], ties=True) == [1.0]
    assert ours.overlaps([[[3, 4]]], ties=True) == [0.5]
    assert presses.measures(ours, [[[1, 4]]], True) == {"mean": 0.5, "least": 0.5, "mean_but_for_ties": 1.0}


class Grouping:
    """A peer that answers questions in groups, as it is told."""

    def __init__(self, answers, hashes):
        self.answers, self.hashes, self.asked = answers, hashes, []

    def ask(self, do, **request):
        self.asked.append((do, request["press"], round(request["ratio"], 3), request["questions"]))
        return {"answers": self.answers, "prompts_sha256": self.hashes, "seconds": 2.0}


def test_questions_are_asked_in_one_group_for_each_cell():
    task = Needle(lengths=[300], needles=2, questions=2, max_new_tokens=4)
    task.prepare(Prompter(random_weights.byte_tokenizer()))
    methods = building.build_methods(compose.composed(["method=h2o"]).methods)
    cells = tuple(points(methods, [0.25], "grow"))
    batch = [WorkItem(sample, task.encode(sample), cells) for sample in (task.sample(0, 0), task.sample(0, 1))]
    rows = {
        (item.sample.id, point.name, point.label): {"output": " x", "score": 0.0} for item in batch for point in cells
    }
    peer, beside = Grouping(["x", "y"], [item.prompt.sha256 for item in batch]), questions.Grouped(task, cells, 1)
    for _ in range(2):  # the second context is not asked for
        beside.ask(peer, batch, 0.5, rows)
    asked = [f"\n\n{item.sample.question}" for item in batch]
    assert peer.asked == [("group", None, 0.0, asked), ("group", "ObservedAttention", 0.75, asked)]
    found = beside.report()
    assert (found["contexts"], found["peer_s"], found["peer_over_ours"]) == (1, 4.0, 8.0)
    assert (found["answers"], found["same_answers"]) == (4, 2)
    peer.hashes = peer.hashes[::-1]
    with pytest.raises(PeerFailed, match="other tokens"):
        questions.Grouped(task, cells, 1).ask(peer, batch, 0.5, rows)
