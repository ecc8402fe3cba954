"""Run ids: whatever changes a number changes the id, and nothing else does."""

import importlib
import json
import linecache
import shutil
import subprocess
import sys
import textwrap
import threading
import types
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM
from transformers.utils import chat_template_utils

import pvcbench
from pvcbench.config import building, compose
from pvcbench.errors import UserError
from pvcbench.models import hub, random_weights
from pvcbench.models.loaded import LoadedModel
from pvcbench.policy import Method
from pvcbench.report import command_again
from pvcbench.runs import code_hash, identity, stored
from pvcbench.runs.run_id import run_id
from pvcbench.runs.spec import RunSpec
from pvcbench.tasks.base import Task
from pvcbench.tasks.jsonl import Jsonl
from pvcbench.tasks.needle.task import Needle

ROOT = Path(__file__).parents[2]
MINE = """
from dataclasses import dataclass
from helping import strength
from based import Base

@dataclass(frozen=True)
class Mine(Base):
    # a comment
    "A docstring."
    power: int = 1

    def scores(self, seen):
        return strength(seen.positions.float()) ** self.power
"""
HELPING = "from deeper import FACTOR\n\ndef strength(x):\n    return FACTOR * x\n"
BASED = "from pvcbench.policy import Method\n\nclass Base(Method):\n    reads_more = 1\n"


def write(tmp_path, **texts):
    """Modules of a method in two folders, as somebody who keeps a base class elsewhere has them."""
    for name, text in texts.items():
        folder = tmp_path / ("elsewhere" if name in ("based", "deeper") else "here")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


NAMES = ("mine", "helping", "based", "deeper")


@pytest.fixture
def source_of(tmp_path, monkeypatch):
    """The hash of the method's code, its modules imported afresh as the next run has them."""
    for folder in ("here", "elsewhere"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def afresh():
        for name in NAMES:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return identity.of_method(importlib.import_module("mine").Mine())["source"]

    yield afresh
    for name in NAMES:
        sys.modules.pop(name, None)


def test_code_counts_wherever_it_stands_and_its_text_does_not(tmp_path, source_of):
    write(tmp_path, mine=MINE, helping=HELPING, based=BASED, deeper="FACTOR = 2\n")
    first = source_of()
    write(tmp_path, helping="# what it does\n" + HELPING.replace("return", "'''Why.'''\n\n    return"))
    write(tmp_path, mine=MINE.replace("# a comment\n", "\n\n").replace("A docstring.", "Another."))
    assert source_of() == first
    write(tmp_path, mine=MINE, helping=HELPING)
    for change in (
        {"helping": HELPING.replace("FACTOR * x", "FACTOR + x")},
        {"based": BASED.replace("= 1", "= 2")},
        {"deeper": "FACTOR = 3\n"},
        {"mine": MINE.replace("** self.power", "* self.power")},
    ):
        write(tmp_path, mine=MINE, helping=HELPING, based=BASED, deeper="FACTOR = 2\n")
        write(tmp_path, **change)
        assert source_of() != first, change


def pyramid_of(root, monkeypatch):
    """The hash of PyramidKV's code where the package `methods` lies in this folder."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "methods"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(root)
    importlib.invalidate_caches()
    module = importlib.import_module("methods.pyramidkv")
    assert Path(module.__file__).is_relative_to(root)
    return identity.of_method(module.PyramidKV())["source"]


def test_a_wheel_and_a_checkout_have_one_id(tmp_path, monkeypatch):
    """`methods` in site-packages is not another package's code: it counts, and counts the same."""
    installed = tmp_path / "site-packages"
    shutil.copytree(ROOT / "methods", installed / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = pyramid_of(ROOT, monkeypatch)
    assert pyramid_of(installed, monkeypatch) == first
    edited = installed / "methods" / "snapkv.py"  # the base of PyramidKV
    edited.write_text(edited.read_text().replace("return ", "return 0 or ", 1))
    assert pyramid_of(installed, monkeypatch) != first


CELL = """
from dataclasses import dataclass
from pvcbench.policy import Method

def weight(x):
    "Some text."
    return FACTOR * x

FACTOR = 2

@dataclass(frozen=True)
class Mine(Method):
    "A docstring."
    def scores(self, seen):
        return weight(seen.positions.float())
"""


def cell_class(text, registered):
    """A class of a notebook cell: no module has its text, only linecache where IPython put it there."""
    name = f"<ipython-input-{abs(hash(text))}>" if registered else "<stdin>"
    if registered:
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), space)
    return space["Mine"]


@pytest.mark.parametrize("registered", [True, False])
def test_classes_of_notebooks_and_of_standard_input(registered):
    ids = {}
    for what, text in {
        "as it was": CELL,
        "another text": CELL.replace("A docstring.", "Another docstring.").replace("Some text.", "Other text."),
        "moved": "\n\n" + CELL,
        "its helper": CELL.replace("FACTOR * x", "FACTOR + x"),
        "its constant": CELL.replace("FACTOR = 2", "FACTOR = 3"),
        "itself": CELL.replace("seen.positions", "-seen.positions"),
        "its field": CELL.replace("    def scores", "    power: int = 2\n    def scores"),
    }.items():
        ids[what] = json.dumps(identity.of_method(cell_class(text, registered)()), sort_keys=True)
    first = ids["as it was"]
    assert ids["another text"] == first and ids["moved"] == first
    assert len(set(ids.values())) == 5


def made(factor):
    class Local(Method):
        def scores(self, seen):
            return factor * seen.positions

    return Local()


def defaulted(factor):
    class Local(Method):
        def scores(self, seen, factor=factor):
            return factor * seen.positions

    return Local()


def held(factor):
    class Local(Method):
        strength = factor

    return Local()


class Stateful(Method):
    def __init__(self, value):
        self._value = value


@pytest.mark.parametrize("make", [made, defaulted, held, Stateful])
@pytest.mark.parametrize(
    "pair",
    [(1, 2), (0.5, 0.25), (torch.zeros(2000), torch.zeros(2000).index_fill(0, torch.tensor(999), 1)), ((1,), (1, 1))],
    ids=["whole", "float", "tensor", "tuple"],
)
def test_what_a_factory_or_an_instance_holds_counts(make, pair):
    ids = [json.dumps(identity.of_method(make(value)), sort_keys=True) for value in (pair[0], pair[0], pair[1])]
    assert ids[0] == ids[1] != ids[2]


def test_functions_and_files_that_a_method_holds_count(tmp_path):
    file = tmp_path / "heads.json"
    file.write_text("[1]")
    one = json.dumps(identity.of_method(Stateful(file)))
    file.write_text("[2]")
    assert json.dumps(identity.of_method(Stateful(file))) != one
    first, second = (json.dumps(identity.of_method(Stateful(add))) for add in (lambda x: x + 1, lambda x: x + 2))
    assert first != second


def test_what_cannot_be_described_is_refused():
    with pytest.raises(UserError, match=r"Stateful._value holds a lock"):
        identity.of_method(Stateful(threading.Lock()))


def test_a_list_that_contains_itself_is_refused():
    around = []
    around.append({"again": around})
    with pytest.raises(UserError, match="contains itself"):
        identity.of_method(Stateful(around))
    twice = [1]
    one, other = (identity.of_method(Stateful(value)) for value in ([twice, twice], [[1], [1]]))
    assert one == other  # a list beside itself holds no other


def test_random_numbers_count_by_their_state():
    ids = [json.dumps(identity.of_method(Stateful(np.random.default_rng(seed)))) for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_a_module_edited_after_its_import_is_refused(tmp_path, monkeypatch):
    """Numbers of the old code must not stand under the id of the new one."""
    write(tmp_path, mine=MINE.replace("Mine", "Edited"), helping=HELPING, based=BASED, deeper="FACTOR = 2\n")
    for folder in ("here", "elsewhere"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    module = importlib.import_module("mine")
    before = identity.of_method(module.Edited())
    write(tmp_path, helping=HELPING + "# a comment\n")
    assert identity.of_method(module.Edited()) == before
    write(tmp_path, deeper="FACTOR = 3\n")
    with pytest.raises(UserError, match=r"deeper\.py was edited after"):
        identity.of_method(module.Edited())
    for name in ("deeper", "helping", "based", "mine"):
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    assert identity.of_method(importlib.import_module("mine").Edited()) != before
    for name in ("deeper", "helping", "based", "mine"):
        sys.modules.pop(name)


def test_a_module_made_of_text_counts():
    """A module that no file has, as tools make them, is told by its compiled functions."""
    found = []
    for factor in (1, 1, 2):
        module = types.ModuleType("made_of_text")
        sys.modules["made_of_text"] = module
        exec(f"from pvcbench.policy import Method\nclass A(Method):\n def f(self):\n  return {factor}", vars(module))
        found.append(identity.of_method(module.A())["source"])
    del sys.modules["made_of_text"]
    assert found[0] == found[1] != found[2]


# ---------------------------------------------------------------------------------------------- models

TEMPLATE = (
    "{{ 'Today is ' + strftime_now('%d %b %Y') + '.' }}{% for m in messages %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with random weights and a chat template, as save_pretrained writes it."""
    made = tmp_path_factory.mktemp("models") / "small"
    loaded = random_weights.random("tiny", "cpu", None)
    loaded.model.generation_config.eos_token_id = [0]
    loaded.model.save_pretrained(made)
    loaded.tokenizer.chat_template = TEMPLATE
    loaded.tokenizer.save_pretrained(made)
    return made


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def id_of(name, **options):
    """The id of a small needle run with a model of this folder."""
    chosen = compose.composed(
        ["model=hf", f"model.name={compose.written(str(name))}", "task=needle", "method=h2o", "budgets=[0.5]"]
    )
    task, methods = building.build(chosen.task, "the task"), building.build_methods(chosen.methods)
    spec = RunSpec.of(chosen, task, methods)
    return run_id(spec.identity(hub.hf(str(name), "cpu", None, **options)))


def test_a_path_and_another_path_are_one_model(folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    other = copied(folder, tmp_path)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    ids = {id_of(name) for name in (folder, f"{folder}/", "small", "./small", "~/small", tmp_path / "link", other)}
    assert len(ids) == 1
    assert hub.hf("~/small", "cpu", None).identity["name"] == "small"


def altered(folder, tmp_path, file, change):
    """The id before and after a JSON file of the model is changed."""
    made = copied(folder, tmp_path)
    before = id_of(made)
    content = json.loads((made / file).read_text())
    change(content)
    (made / file).write_text(json.dumps(content))
    return before, id_of(made)


SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
CHANGES = {
    "end tokens": ("generation_config.json", lambda one: one.update(eos_token_id=[0, 70])),
    "the tokenizer's end": ("tokenizer_config.json", lambda one: one.update(eos_token="a")),
    "decoder": ("tokenizer.json", lambda one: one.update(decoder=None)),
    "vocabulary": ("tokenizer.json", lambda one: one["model"]["vocab"].update({"a": 66, "b": 65})),
    "post-processor": (
        "tokenizer.json",
        lambda one: one.update(post_processor=SPACED),
    ),
    "rotary base": ("config.json", lambda one: one["rope_parameters"].update(rope_theta=500.0)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_files_beside_the_weights_count(folder, tmp_path, what):
    before, after = altered(folder, tmp_path, *CHANGES[what])
    assert before != after


def test_a_sampling_setting_that_greedy_decoding_never_reads_does_not_count(folder, tmp_path):
    before, after = altered(folder, tmp_path, "generation_config.json", lambda one: one.update(top_p=0.9))
    assert before == after


def test_prompts_of_two_days_are_equal(folder, monkeypatch):
    found = []
    for day in (1, 2):

        class Day(datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return datetime(2026, 9, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        loaded = hub.hf(str(folder), "cpu", None)
        written = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        assert f"0{day} Sep 2026" in written  # what the template writes by itself
        found.append((loaded.prompter().before, id_of(folder)))
    assert found[0] == found[1] and found[0][0] == "Today is 01 Jan 2026.<user>"
    assert id_of(folder, date="2026-01-02") != found[0][1]
    with pytest.raises(UserError, match=r"model\.date must be a day such as 2026-01-01, not '1\.1\.2026'"):
        id_of(folder, date="1.1.2026")


def test_weights_changed_in_memory_are_another_model(folder):
    loaded = hub.hf(str(folder), "cpu", None)
    before = identity.of_model(loaded)
    assert identity.of_model(loaded) == before and "in_memory" not in before
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.01
    assert identity.of_model(loaded)["in_memory"]
    unnamed = LoadedModel(loaded.model, loaded.tokenizer, {}, ends=(0,))
    assert identity.of_model(unnamed)["in_memory"] == identity.of_model(loaded)["in_memory"]


class Negated(LlamaForCausalLM):
    def forward(self, *arguments, **options):
        found = super().forward(*arguments, **options)
        found.logits = -found.logits
        return found


def doubled(module, given, found):
    return found * 2


def negated_forward(self, x):
    return -type(self).forward(self, x)


def hooked(model):
    model.lm_head.register_forward_hook(doubled)


def pre_hooked(model):
    model.lm_head.register_forward_pre_hook(lambda module, given: (-given[0],))


def replaced(model):
    model.lm_head.forward = types.MethodType(negated_forward, model.lm_head)


def of_another_class(model):
    model.__class__ = Negated


@pytest.mark.parametrize("change", [hooked, pre_hooked, replaced, of_another_class])
def test_code_of_ones_own_in_a_model_makes_another_model(change):
    loaded = random_weights.random("tiny", "cpu", None)
    before = identity.of_model(loaded)
    change(loaded.model)
    after = identity.of_model(loaded)
    assert "code" not in before and {**after, "code": None} == {**before, "code": None}
    assert after["code"] == identity.of_model(loaded)["code"]


def test_code_beside_the_weights_counts(folder, tmp_path):
    text = "from transformers import LlamaForCausalLM\n\nclass Own(LlamaForCausalLM):\n    factor = {}\n"
    found = []
    for factor in (1, 2):
        place = tmp_path / f"model{factor}"
        shutil.copytree(folder, place)
        config = json.loads((place / "config.json").read_text())
        config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
        (place / "config.json").write_text(json.dumps(config))
        (place / "own.py").write_text(text.format(factor))
        loaded = hub.hf(str(place), "cpu", None, trust_remote_code=True)
        assert type(loaded.model).__name__ == "Own"
        found.append({key: value for key, value in identity.of_model(loaded).items() if key != "name"})
    assert found[0].pop("code") != found[1].pop("code")
    assert found[0] == found[1]


def test_a_limit_set_on_a_model_in_memory_counts():
    loaded = random_weights.random("tiny", "cpu", None)
    before = identity.of_model(loaded)
    loaded.limit = 700
    assert identity.of_model(loaded) == before | {"longest": 700}


def test_earlier_ids_stand():
    """An identity of before was hashed whole, the model's name included, and still is."""
    path = ROOT / "results/perplexity_continuation/d018c4478b50/config.yaml"
    old = yaml.safe_load(path.read_text(encoding="utf-8"))["identity"]
    assert run_id(old) == "d018c4478b50"
    assert run_id(old | {"model": old["model"] | {"name": "x"}}) != "d018c4478b50"


# ---------------------------------------------------------------------------------------------- tasks and objects


class Lazy(Task):
    """A task that loads its data late, in every way that tasks do."""

    name = "lazy"

    def __init__(self, path, limits=None, count=2):
        self.path, self.limits, self.doubled = path, limits, 2 * count
        self.rows, self.index = None, {}

    def size(self, seed):
        self.rows, self.index, self.more = ["data"] * 5000, {"a": 1}, "data"
        return len(self.rows)


def test_settings_are_no_data():
    task = Lazy("x")
    before = task.settings()
    task.size(0)
    assert task.settings() == before == {"path": "x", "limits": None, "doubled": 4}
    task.doubled = 6
    assert task.settings() == before | {"doubled": 6}
    task.primary = "other"  # what the class says, said otherwise
    assert task.settings()["primary"] == "other"


def test_long_settings_are_hashed():
    one, two = (identity.of_task(Lazy("x", limits=["text"] * 999 + [end])) for end in "ab")
    assert one["limits"] != two["limits"] and len(json.dumps(one)) < 1000
    assert one["code"] == two["code"] and "code" not in identity.of_task(Needle())


def test_the_same_objects_measure_once(tmp_path, capsys):
    data = tmp_path / "mine.jsonl"
    line = {"context": "The door is red. " * 40, "question": "Which colour?", "answers": ["red"]}
    data.write_text("".join(json.dumps(line | {"id": str(n)}) + "\n" for n in range(3)), encoding="utf-8")
    loaded, task = random_weights.random("tiny", "cpu", None), Jsonl(data, max_new_tokens=2)
    where = {"results": tmp_path, "wandb": {"mode": "disabled"}, "threads": 1}
    first = pvcbench.evaluate(loaded, task, ["h2o"], budgets=[0.5], limit=2, **where)
    assert first.attrs["measured"] == 4 and "nothing was measured" not in capsys.readouterr().err
    second = pvcbench.evaluate(loaded, task, ["h2o"], budgets=[0.5], limit=2, **where)
    said = capsys.readouterr().err
    assert second.attrs == {"measured": 0, "folder": first.attrs["folder"]}
    assert said.count("nothing was measured again") == 1 and first.attrs["folder"] in said
    text = (Path(first.attrs["folder"]) / "config.yaml").read_text()
    assert "The door" not in text
    kept = yaml.safe_load(text)
    assert kept["config"]["task"]["from_python"]["max_new_tokens"] == 2
    command, problem = command_again.command(kept)
    assert command is None and "pvcbench.tasks.jsonl.Jsonl(path='mine.jsonl'" in problem.replace(
        "['mine.jsonl'", "'mine.jsonl'"
    )
    assert "LoadedModel(name='random-tiny'" in problem
    with pytest.raises(UserError, match="objects given from Python, which cannot be built again: model: "):
        stored.stored_config(first.attrs["folder"])


def test_a_method_object_is_told_as_what_it_is(tmp_path):
    building.load_methods_package()
    from methods.h2o import H2O

    chosen = compose.composed(["model=random", "task=needle"])
    kept = identity.told(chosen, None, None, {"mine": H2O(normalize=True), **building.build_methods(chosen.methods)})
    assert list(stored.objects(kept)) == ["method mine"]  # the others are what their configurations describe
    assert stored.objects(kept)["method mine"] == "methods.h2o.H2O(normalize=True)"


@pytest.mark.parametrize("node", [{"class": "Other"}, {"settings": {"normalize": True}}])
def test_older_runs_of_objects_offer_no_command(node):
    """Before, config.yaml named the default configuration in the place of what was given."""
    folder = ROOT / "results/perplexity_continuation/d018c4478b50"
    old = stored.stored(folder)
    assert command_again.command(old)[0] is not None
    old["identity"]["methods"]["h2o"] |= node
    command, problem = command_again.command(old)
    assert command is None and "a method 'h2o' of its own" in problem
    old = stored.stored(folder)
    old["identity"]["model"]["name"] = "cases/models/llama"
    assert command_again.command(old) == (None, "measured from Python with a model of its own, 'cases/models/llama'")


def test_bytecode_without_docstrings_and_lines():
    texts = ["def f(x):\n    '''One.'''\n    return x", "\n\n\ndef f(x):\n    '''Two.'''\n    return x"]
    functions = []
    for text in [*texts, "def f(x):\n    return -x"]:
        space = {}
        exec(textwrap.dedent(text), space)
        functions.append(code_hash.compiled(space["f"].__code__))
    assert functions[0] == functions[1] != functions[2]


def test_what_else_was_imported_changes_no_method():
    """A package holds its modules once they are imported: whoever ran before must not change a method's id."""
    load = "from pvcbench.config import building; from pvcbench.runs import identity; building.load_methods_package()"
    show = "from methods.full import Full; print(identity.of_method(Full())['source'])"
    texts = (f"{load}; {show}", f"{load}; import methods.h2o, methods.pvc; {show}")
    found = [
        subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for text in texts
    ]
    assert found[0] == found[1] and len(found[0].strip()) == 64
