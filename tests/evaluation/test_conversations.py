"""Conversations: later turns go through what the first one left in the cache, after golden answers or own ones."""

import json

import pytest
import torch

from pvcbench.config import building, compose
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.row import Protocol
from pvcbench.runs import runner
from pvcbench.runs.spec import RunSpec

SMALL = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "budgets=[0.4]"]
TURNS = ["task.lengths=[420]", "task.depths=[40]", "task.repeats=1", "task.needles=3", "task.questions=3"]
TURNS += ["task.turns=true", "task.max_new_tokens=6"]
NAMES = ["h2o", "random", "pvc_kv", "pvc", "ada_snapkv", "snapkv", "keydiff", "streaming_llm", "kvzip", "tova"]


def config(folder, *overrides):
    return compose.composed([*SMALL, *TURNS, *overrides, f"results={folder}"])


def rows(folder, *overrides):
    """All rows without times, by sample and method."""
    known = runner.run(config(folder, *overrides), figures=False).rows.drop(columns=["prefill_s", "decode_s", "folder"])
    return {(one["sample"], one["method"]): one for one in known.to_dict("records")}


class Asked:
    """The prompts of a run, and the unmodified model beside them."""

    def __init__(self, *overrides):
        self.spec = RunSpec.of(config("unused", *overrides))
        self.loaded = self.spec.load()
        self.prompter = self.loaded.prompter()
        self.spec.task.prepare(self.prompter)
        samples = [self.spec.task.sample(0, index) for index in range(3)]
        self.turns = [(sample, self.spec.task.encode(sample)) for sample in samples]

    @torch.inference_mode()
    def greedy(self, ids, count=6):
        """Tokens that the unmodified model says after these, one whole forward pass for each."""
        ids, said = torch.tensor([list(ids)]), []
        while len(said) < count:
            token = int(self.loaded.model(ids, use_cache=False).logits[0, -1].argmax())
            if token in self.loaded.ends:
                break
            said.append(token)
            ids = torch.cat((ids, torch.tensor([[token]])), 1)
        return said


def test_the_prompt_of_a_turn_is_all_before_it_and_what_it_asks():
    asked = Asked("method=h2o")
    for (sample, prompt), (_, before) in zip(asked.turns[1:], asked.turns, strict=False):
        start = len(before.ids)
        assert list(prompt.ids[:start]) == list(before.ids) and prompt.first_tokens == len(asked.turns[0][1].ids)
        added = asked.prompter.decode(list(prompt.ids[start:]))
        assert added.index(sample.turns[sample.turn - 2].answer) < added.index(sample.question)


@pytest.mark.parametrize("history", ["golden", "model"])
@pytest.mark.parametrize("aware", ["true", "false"])
def test_the_full_cache_answers_as_the_unmodified_model_does(tmp_path, history, aware):
    found = rows(tmp_path, "method=h2o", f"history={history}", f"query_aware={aware}")
    asked, said = Asked("method=h2o"), []
    for sample, prompt in asked.turns:
        ids = prompt.ids if history == "golden" else prompt.having(said).ids
        said.append(asked.greedy(ids))
        row = found[sample.id, "full"]
        assert row["error"] is None and row["output"] == asked.prompter.decode(said[-1]), sample.turn
        assert row["sample_info"]["turn"] == sample.turn and row["cluster"] == found["0-0-0", "full"]["cluster"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("history", ["golden", "model"])
@pytest.mark.sampled(5)
def test_a_cell_answers_from_what_the_first_turn_left(tmp_path, name, history):
    """Beside its own rule: the first turn is compressed once, and everything after it goes through and stays."""
    own = [f"method={name}", *(["budgets=[0.9]"] if name == "pvc" else [])]  # it cannot keep less of so few layers
    found, asked, said = rows(tmp_path, *own, f"history={history}"), Asked(*own), []
    engine = asked.spec.engine(asked.loaded)
    [point] = [point for point in asked.spec.points if point.name == name]
    first = asked.turns[0][1]
    shape = engine.shape(len(first.ids), first.frame_tokens, len(first.ids) - first.context_tokens)
    draws = torch.tensor([_draw(asked)])
    try:
        with torch.inference_mode():
            for sample, prompt in asked.turns:
                whole = prompt.ids if history == "golden" else prompt.having(said).ids
                cell = asked.spec.protocol.cell(point, shape)
                pruner = cell.pruner
                ids = torch.tensor([list(first.ids)])
                prefill = engine.prefill(
                    ids, [] if pruner else [cell.method], pruner, draws, shape=shape, reach=len(whole)
                )
                rest = torch.tensor([list(whole[len(first.ids) :])])
                groups = engine.fork(prefill, [cell], rest.shape[1] + 6, fed=max(1, rest.shape[1]))
                decoder = Decoder(engine.call, groups)
                [[tokens]] = decoder.greedy(rest if rest.shape[1] else None, 6, asked.loaded.ends)
                said.append(tokens)
                assert found[sample.id, name]["output"] == asked.prompter.decode(tokens), sample.turn
    finally:
        engine.release()


def _draw(asked):
    from pvcbench.evaluation.shared_prefill import draw_of

    return draw_of(0, asked.turns[0][0].context_id)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled(3)
def test_turns_together_are_turns_alone(tmp_path, monkeypatch, name):
    """So an answer leaves no trace in the turns after it: alone, no earlier turn is answered at all."""
    together = rows(tmp_path / "together", f"method={name}")
    monkeypatch.setattr(Protocol, "shares", lambda self, item: None)
    alone = rows(tmp_path / "alone", f"method={name}")
    assert together.keys() == alone.keys() and len(together) == 6
    for key, row in together.items():
        assert json.dumps(row, default=str) == json.dumps(alone[key], default=str), key


def test_a_conversation_is_prefilled_once(tmp_path, monkeypatch):
    found, real = [], Engine.prefill

    def prefill(self, ids, *args, **options):
        found.extend([ids.shape[1]] if ids.shape[1] > 200 else [])
        return real(self, ids, *args, **options)

    monkeypatch.setattr(Engine, "prefill", prefill)
    rows(tmp_path / "golden", "method=h2o")
    assert len(found) == 1
    rows(tmp_path / "model", "method=h2o", "history=model")
    assert len(found) == 2
    rows(tmp_path / "anew", "method=h2o", "recompress=true")
    assert len(found) == 5 and sorted(found[2:]) == found[2:] and found[2] < found[3] < found[4]


def test_recompressed_turns_are_questions_on_the_whole_conversation(tmp_path):
    """Each turn's whole prompt is compressed to the size that the first turn got."""
    found = rows(tmp_path, "method=h2o", "recompress=true")
    asked = Asked("method=h2o")
    first = len(asked.turns[0][1].ids)
    for sample, prompt in asked.turns:
        row = found[sample.id, "h2o"]
        assert row["budget_entries"] == int(0.4 * first) == row["kept_entries"]
        assert row["kept_fraction"] == pytest.approx(int(0.4 * first) / len(prompt.ids))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["decode=hold"], "decode=grow"),
        (["history=model", "method=oracle_answer"], "history=golden"),
        (["history=model", "recompress=true"], "history=golden"),
        (["sampling.temperature=1.0"], "sampling.temperature=null"),
        (["task.turns=false", "history=model"], "has none"),
        (["task.questions=1"], "task.questions"),
    ],
)
def test_what_is_not_defined_is_refused_before_a_model_is_loaded(overrides, said):
    with pytest.raises(UserError, match=said):
        RunSpec.of(config("unused", "method=h2o", *overrides))


def test_a_template_that_rewrites_history_is_refused():
    asked = Asked("method=h2o")
    rewriting = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ m.content[:3] }}"
        "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}<assistant>"
    )
    from pvcbench.tasks.conversation import Joint

    class Chat:
        def render(self, messages):
            import jinja2

            return jinja2.Template(rewriting).render(messages=messages)

        def frame(self):
            from pvcbench.tasks.chat import MARKER

            before, after = self.render([{"role": "user", "content": MARKER}]).split(MARKER)
            return before, after

    with pytest.raises(UserError, match="chat template writes earlier turns"):
        Joint.of(Chat())
    assert asked.turns[1][1].exchanges


def test_ids_of_other_runs_do_not_change():
    """Neither setting is in the identity of a run that has no turns, nor in one with the usual history."""
    spec = RunSpec.of(config("unused", "method=h2o", "task.turns=false", "task.questions=1", "task.needles=1"))
    loaded = building.build(spec.model, "the model", device="cpu", dtype="float64")
    identity = spec.identity(loaded)
    assert "history" not in identity and "recompress" not in identity and "turns" not in json.dumps(identity["task"])
    turned = RunSpec.of(config("unused", "method=h2o", "history=model")).identity(loaded)
    assert turned["history"] == "model" and "turns" in json.dumps(turned["task"])
