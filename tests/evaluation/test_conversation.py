"""Conversations: turns on one compressed cache, after golden answers or own ones, beside the unmodified model."""

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType

import pytest
import torch

from pvcbench.checks.reference import widen
from pvcbench.config import compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import TaskError, UserError
from pvcbench.models.random_weights import byte_tokenizer, random
from pvcbench.runs import runner
from pvcbench.tasks.base import Sample, Task, Turn
from pvcbench.tasks.prompts import Prompter

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETS = (  # writes thoughts into the newest turn alone, as Qwen3's template does
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><thoughts></thoughts>{% endif %}"
)
SMALL = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "budgets=[0.6,100]"]
QUESTIONS = [("Where is the mill?", "by the river"), ("And the barn?", "up the hill"), ("Who keeps both?", "Anna")]
NEW = 6


class Village(Task):
    """Conversations of three turns about two texts."""

    name, has_turns = "village", True
    wrong: Mapping = MappingProxyType({})

    def size(self, seed):
        return 2 * len(QUESTIONS)

    def sample(self, seed, index):
        which, turn = divmod(index, len(QUESTIONS))
        text = f"Village {which}. The mill is by the river. The barn is up the hill, and Anna keeps both of them. " * 4
        question, answer = QUESTIONS[turn]
        known = {
            "question": question,
            "context_id": str(which),
            "turns": tuple(Turn(*pair) for pair in QUESTIONS),
            "turn": turn + 1,
        }
        return Sample(f"{which}-{turn + 1}", text, answers=(answer,), max_new_tokens=NEW, **known | self.wrong)

    def score(self, sample, output):
        return {"accuracy": float(sample.answers[0] in output)}


def loaded(template=None):
    """The random model, its weights wide enough for answers to vary, with a chat template if one is given."""
    found = random("tiny", "cpu", "float64")
    torch.manual_seed(0)
    widen(found.model)
    found.tokenizer.chat_template = template
    return found


def rows(folder, *overrides, template=None, task=None):
    """All rows, in the order of sample, method and budget."""
    config = compose.composed([*SMALL, *overrides, f"results={folder}"])
    found = runner.run(config, model=loaded(template), task=task or Village(), figures=False).rows
    assert found["error"].isna().all(), found["error"].dropna().iloc[0]
    return found.sort_values(["sample", "method", "budget"]).reset_index(drop=True)


def greedy(model, ids):
    """The unmodified model's answer, every token from all tokens before it."""
    said = []
    for _ in range(NEW):
        said.append(int(model.model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
        if said[-1] in model.ends:
            return said[:-1]
    return said


def conversation(model, which, answers, template):
    """The tokens of a conversation up to the question after so many answers (text or tokens), written by hand."""
    text, bare = Village().sample(0, which * len(QUESTIONS)).context, model.prompter().bare
    if template is None:
        ids, joint, end = bare(f"{text}\n\n{QUESTIONS[0][0]}\n"), "\n\n", "\n"
    else:
        ids, joint, end = (
            bare(f"<|user|>{text}\n\n{QUESTIONS[0][0]}<end>\n<|assistant|>"),
            "<end>\n<|user|>",
            "<end>\n<|assistant|>",
        )
    for number, answer in enumerate(answers, start=1):
        ids = ids + (bare(answer) if isinstance(answer, str) else answer) + bare(f"{joint}{QUESTIONS[number][0]}{end}")
    return ids


@pytest.mark.parametrize("template", [None, CHATML], ids=["plain", "chat"])
@pytest.mark.parametrize("history", ["golden", "model"])
@pytest.mark.parametrize("aware", ["true", "false"])
def test_the_full_cache_answers_as_the_unmodified_model(tmp_path, history, template, aware):
    found = rows(tmp_path, "method=snapkv", f"history={history}", f"query_aware={aware}", template=template)
    full, model = found[found["reference"]].set_index("sample"), loaded(template)
    for which in range(2):
        said = []
        for turn in range(len(QUESTIONS)):
            before = [answer for _, answer in QUESTIONS[:turn]] if history == "golden" else said
            ids = conversation(model, which, before, template)
            said = [*said, greedy(model, ids)]
            row = full.loc[f"{which}-{turn + 1}"]
            assert row["output"] == model.prompter().decode(said[-1])
            assert (row["prompt_tokens"], row["sample_info"]["turn"]) == (len(ids), turn + 1)
            assert row["protocol"]["history"] == history and row["cluster"] == str(which)


@pytest.mark.parametrize("history", ["golden", "model"])
def test_a_conversation_is_prefilled_and_compressed_once(tmp_path, monkeypatch, history):
    lengths, real = [], Engine.prefill

    def prefill(self, ids, *args, **options):
        lengths.append(ids.shape[1])
        return real(self, ids, *args, **options)

    monkeypatch.setattr(Engine, "prefill", prefill)
    found = rows(tmp_path, "method=[h2o,snapkv]", f"history={history}")
    first = found[found["sample"].str.endswith("-1")]["prompt_tokens"].unique().tolist()
    assert sorted(length for length in lengths if length > 200) == sorted(2 * first)[: len(lengths)]
    of_cell = found.groupby(["cluster", "method", "budget"])
    assert (of_cell["kept_entries"].nunique() == 1).all(), "a later turn changed what is kept"
    assert (of_cell["prompt_sha256"].nunique() == 3).all()
    assert (found.groupby("sample")["prompt_sha256"].nunique() == 1).all(), "rows of a turn are paired by it"


@pytest.mark.parametrize("history", ["golden", "model"])
def test_a_turn_alone_is_the_turn_in_its_conversation(tmp_path, history):
    """Rows that were lost are measured again by themselves: other turns and other cells beside them change nothing."""
    config = ["method=[h2o,snapkv]", f"history={history}"]
    known = rows(tmp_path, *config)
    path = next(tmp_path.rglob("rows.jsonl"))
    whole = path.read_text()
    kept = [line for line in whole.splitlines(True) if '"sample": "1-3"' not in line or '"h2o"' not in line]
    assert len(kept) == len(whole.splitlines()) - 2
    path.write_text("".join(kept))
    again = rows(tmp_path, *config)
    for name in ("sample", "method", "budget", "output", "prompt_tokens", "kept_entries", "prompt_sha256"):
        assert known[name].tolist() == again[name].tolist(), name


def test_own_history_is_a_cells_own(tmp_path):
    """A cell that answers otherwise has other prompts afterwards: its later turns equal none of the golden ones."""
    own, golden = (rows(tmp_path / history, "method=snapkv", f"history={history}") for history in ("model", "golden"))
    first, later = own["sample"].str.endswith("-1"), ~own["sample"].str.endswith("-1")
    assert own[first]["output"].tolist() == golden[first]["output"].tolist()
    assert (own[later]["output"] != golden[later]["output"]).any()


@pytest.mark.parametrize("aware", ["true", "false"])
def test_recompressed_turns_are_prompts_by_themselves_at_the_first_turns_budget(tmp_path, aware):
    found = rows(tmp_path, "method=snapkv", "recompress=true", f"query_aware={aware}")
    assert found["protocol"].map(lambda one: one["recompress"]).all()
    cell = found[found["budget"] == "0.6"].set_index("sample")
    model = loaded()
    for which in range(2):
        ids = conversation(model, which, [], None)
        asked = 0 if aware == "true" else len(model.prompter().bare(f"\n\n{QUESTIONS[0][0]}\n"))
        budget = int(0.6 * (len(ids) - asked))
        assert (cell.loc[[f"{which}-{turn}" for turn in (1, 2, 3)], "budget_entries"] == budget).all()
    plain = rows(tmp_path / "once", "method=snapkv", f"query_aware={aware}")
    first = found["sample"].str.endswith("-1")
    assert found[first]["output"].tolist() == plain[first]["output"].tolist()
    later = found[~first & (found["budget"] == "0.6")]
    assert (later["kept_fraction"] < 0.6).all(), "the budget did not stay that of the first turn"
    full = found["reference"]
    assert found[full]["output"].tolist() == plain[full]["output"].tolist()


@pytest.mark.parametrize(
    "more, told",
    [
        (["decode=hold"], "leave decode=grow"),
        (["history=model", "recompress=true"], "leave history=golden"),
        (["history=model", "method=oracle_answer"], "oracle_answer reads what follows"),
        (["task=needle", "history=model"], "task=needle has none"),
        (["task=needle", "recompress=true"], "task=needle has none"),
        (["task=needle", "task.turns=true"], "task.questions"),
    ],
)
def test_what_is_not_defined_is_refused_before_a_model_is_loaded(tmp_path, more, told):
    village = [] if "task=needle" in more else [Village()]
    config = compose.composed([*SMALL, "method=h2o", *more, "model=hf", f"results={tmp_path}"])
    with pytest.raises(UserError, match=told):
        runner.run(config, task=village[0] if village else None, figures=False)


def test_an_oracle_reads_on_for_each_turn(tmp_path):
    found = rows(tmp_path, "method=oracle_answer")
    assert len(found) == 6 * 3


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"writes earlier turns .* set model\.chat=false"):
        rows(tmp_path, "method=h2o", template=FORGETS)


def test_a_template_that_changes_an_answer_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    prompter, sample = Prompter(tokenizer), Village().sample(0, 1)
    assert prompter.encode(sample).exchanges
    spaced = Sample(**{**vars(sample), "turns": (Turn(QUESTIONS[0][0], " by the river"), *sample.turns[1:])})
    with pytest.raises(UserError, match="changes a question or an answer"):
        prompter.encode(spaced)


def test_tokens_are_those_of_the_whole_conversation():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    prompter = Prompter(tokenizer)
    sample = Village().sample(0, 2)
    turns = [{"role": "user", "content": f"{sample.context}\n\n{QUESTIONS[0][0]}"}]
    for (_, answer), (question, _) in pairwise(QUESTIONS):
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = prompter.encode(sample)
    assert list(prompt.ids) == prompter.bare(whole) and len(prompt.exchanges) == 2
    assert list(prompt.at(2).ids) == list(prompter.encode(Village().sample(0, 1)).ids)
    assert list(prompt.at(1).ids) == list(prompt.ids[: prompt.first_tokens])
    own = prompt.having([[7], []])
    assert own.sha256 == prompt.sha256 and len(own.ids) < len(prompt.ids)


@pytest.mark.parametrize("wrong", [{"turn": 4}, {"context_id": ""}, {"turns": (), "turn": 0}, {"question": "Who?"}])
def test_a_turn_that_is_none_is_the_tasks_mistake(tmp_path, wrong):
    task = Village()
    task.wrong = wrong
    with pytest.raises(TaskError, match="gives sample"):
        rows(tmp_path, "method=h2o", task=task)
