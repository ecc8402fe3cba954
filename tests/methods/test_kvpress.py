"""method=kvpress: presses run unchanged, of a small kvpress of the tests' own and of the real one where it is there."""

import importlib.util
import re
import sys

import pytest
import torch
from transformers import DynamicCache

import small_kvpress
import tiny
from methods.kvpress import KVPress, facts, installed, ratio_of
from pvcbench.cli import listing
from pvcbench.config import building, compose
from pvcbench.engine.evict import Cell
from pvcbench.errors import OutOfReach, UserError
from pvcbench.evaluation.preflight import try_method
from pvcbench.policy import Shape
from pvcbench.runs.identity import of_method

TOKENS, BUDGET = 60, 21
OWN = """
from dataclasses import dataclass

import torch
from kvpress import ScorerPress


@dataclass
class NewestPress(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return torch.arange(keys.shape[2]).expand(keys.shape[:3]).float()
"""


def forget(*names):
    """Python and the method forget what they have imported of a kvpress."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("kvpress", *names)]:
        del sys.modules[name]
    for cached in (facts.of, facts.tried, installed._defining):
        cached.cache_clear()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The folder of a small kvpress."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield small_kvpress.write(tmp_path / "installed")
    forget("my_presses")


def kept(method, engine=None, ids=None, budget=BUDGET, draws=None):
    """The kept positions as [layer][sample][head]."""
    engine = tiny.engine("llama") if engine is None else engine
    ids = tiny.prompt(TOKENS) if ids is None else ids
    budget = None if method.own_budget else budget
    method = method.resolve(budget, engine.shape(ids.shape[1]))
    prefill = engine.prefill(ids, [method], draws=draws)
    [group] = engine.fork(prefill, [Cell("x", method, budget)], 0)
    return [[[set(head) - {-1} for head in row] for row in layer.positions.tolist()] for layer in group.layers]


def naive(press, ids):
    """What a scoring press keeps, by hooks on the unmodified model as kvpress sets them: [layer][sample][head]."""
    model, found, cache = tiny.unmodified("llama"), [], DynamicCache()

    def hook(module, args, kwargs, output):
        module.rotary_emb = model.model.rotary_emb
        layer = cache.layers[module.layer_idx]
        scores = press.score(module, kwargs["hidden_states"], layer.keys, layer.values, None, kwargs)
        found.append([[set(head.topk(BUDGET).indices.tolist()) for head in row] for row in scores])
        del module.rotary_emb

    hooks = [layer.self_attn.register_forward_hook(hook, with_kwargs=True) for layer in model.model.layers]
    with torch.inference_mode():
        model.model(input_ids=ids, past_key_values=cache)
    for one in hooks:
        one.remove()
    return found


def test_a_press_is_imported_without_the_start_of_its_package(small):
    method = KVPress("QueryPress", path=small)
    assert method.version == "unknown" and len(method.code) == 64 and method.own == ()
    assert sys.modules["kvpress"].QueryPress is installed.load("QueryPress")
    with pytest.raises(ImportError, match="Nothing"):
        from kvpress import Nothing  # noqa: F401


def test_a_scoring_press_keeps_what_it_keeps_in_the_model_itself(small):
    method = KVPress("QueryPress", {"sinks": 3}, small)
    press = installed.load("QueryPress")(sinks=3)
    assert kept(method) == naive(press, tiny.prompt(TOKENS))
    assert all(head >= {0, 1, 2} for layer in kept(method) for head in layer[0])
    assert kept(method) != kept(KVPress("QueryPress"))


def test_batches_and_chunks_change_nothing(small):
    ids, draws = tiny.prompt(TOKENS, 2), torch.tensor([5, 11])
    for name in ("QueryPress", "DrawPress"):
        method = KVPress(name, path=small)
        both = kept(method, ids=ids, draws=draws)
        chunked = kept(method, tiny.engine("llama", 17), ids, draws=draws)
        alone = [kept(method, ids=ids[row : row + 1], draws=draws[row : row + 1]) for row in range(2)]
        assert both == chunked == [[one[0] for one in layers] for layers in zip(*alone, strict=True)]
        try_method(tiny.engine("llama"), method)
    layers = kept(KVPress("DrawPress"), draws=draws[:1])
    assert layers[0] != layers[1] and layers != kept(KVPress("DrawPress"), draws=draws[1:])


def test_nothing_is_left_on_the_model_or_in_the_generator(small):
    engine = tiny.engine("llama")
    before, state = [dict(vars(one[0])) for one in engine.attentions], torch.get_rng_state()
    kept(KVPress("DrawPress", path=small))
    kept(KVPress("MaskPress", {"press": "QueryPress"}))
    assert [dict(vars(one[0])) for one in engine.attentions] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_press_masks_is_evicted(small):
    method = KVPress("MaskPress", {"press": {"press": "QueryPress", "options": {"sinks": 2}}}, small)
    assert not method.facts.by_scores and method.ragged_batch and method.own_budget is None
    layers = kept(method)
    for [heads] in layers:
        assert sum(map(len, heads)) == BUDGET * len(heads) and all(head >= {0, 1} for head in heads)
    assert len({len(head) for [heads] in layers for head in heads}) > 1
    try_method(tiny.engine("llama"), method)


def test_options_may_fix_the_size(small):
    method = KVPress("OddPress", path=small)
    assert method.own_budget == "own size"
    assert kept(method) == [[[set(range(1, TOKENS, 2))] * 2]] * 4


def test_attention_weights_are_formed_for_a_press_that_fails_without(small):
    method = KVPress("SeenPress", path=small)
    assert method.facts.attends and not KVPress("QueryPress").facts.attends
    model = tiny.build("llama")
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        seen = model(tiny.prompt(TOKENS), output_attentions=True).attentions
    wanted = [layer.sum(2).unflatten(1, (2, -1)).mean(2)[0] for layer in seen]
    assert kept(method) == [[[set(head.topk(BUDGET).indices.tolist()) for head in layer]] for layer in wanted]


def test_a_press_that_reads_the_model_is_set_up_once(small):
    method = KVPress("LoadPress", path=small)
    assert method.facts.prepares and kept(method) == kept(method)


REFUSED = {
    "changes keys": ("TurnPress", {}, "TurnPress changes keys or values"),
    "changes keys in place": ("WritePress", {}, "WritePress changes keys or values"),
    "runs the model": ("LoopPress", {}, "LoopPress runs the model itself"),
    "inside another": ("MaskPress", {"press": "LoopPress"}, "LoopPress runs the model itself"),
    "is none": ("QuerryPress", {}, r"no press 'QuerryPress': choose from BasePress, DrawPress"),
    "is not named": ("???", {}, r"methods\.kvpress\.press=NAME, one of BasePress"),
    "an unknown option": ("QueryPress", {"sink": 1}, "cannot be made of options sink=1"),
    "one missing": ("MaskPress", {}, "cannot be made of options none.*press"),
    "a ratio": ("QueryPress", {"compression_ratio": 0.5}, "leave compression_ratio out"),
    "a ratio inside": ("MaskPress", {"press": {"press": "QueryPress", "options": {"compression_ratio": 0.5}}}, "leave"),
    "no score": ("ScorerPress", {}, "fails on a prompt of 4,096 tokens: NotImplementedError"),
    "no module": ("nowhere.MyPress", {}, "no module nowhere"),
    "no class": ("kvpress.presses.all_press.MyPress", {}, "has no class 'MyPress'"),
    "no press at all": ("collections.OrderedDict", {}, "is no press"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name_and_reason(case, small):
    name, options, said = REFUSED[case]
    with pytest.raises(UserError, match=said):
        KVPress(name, options, small)


def test_a_kvpress_that_is_not_there(small, tmp_path):
    with pytest.raises(UserError, match=r"there is no kvpress in .*pip install --no-deps kvpress"):
        KVPress("QueryPress", path=str(tmp_path))
    KVPress("QueryPress", path=small)
    with pytest.raises(UserError, match=r"imported from .* already"):
        KVPress("QueryPress", path=str(tmp_path))


def test_a_prompt_that_is_too_short_is_out_of_reach(small):
    shape, method = Shape(40, 4, (0, 1, 2, 3)), KVPress("QueryPress", {"sinks": 50}, small)
    with pytest.raises(OutOfReach, match="cannot compress 40 tokens: AssertionError: the prompt is no longer"):
        method.resolve(10, shape)
    assert method.resolve(10, Shape(60, 4, (0, 1, 2, 3))).ratio == pytest.approx(5 / 6)


@pytest.mark.parametrize("tokens", [7, 96, 1000, 4093])
def test_a_ratio_leaves_the_budget_by_the_presses_own_rounding(tokens):
    assert all(int(tokens * (1 - ratio_of(budget, tokens))) == budget for budget in range(1, tokens + 1))


def test_the_command_line_gives_options_through(small):
    words = ["method=kvpress", f"methods.kvpress.path={small}", "methods.kvpress.press=MaskPress"]
    words += ["methods.kvpress.options.press.press=QueryPress", "methods.kvpress.options.press.options.sinks=3"]
    node = compose.composed(words).methods.kvpress
    assert node.options == {"press": {"press": "QueryPress", "options": {"sinks": 3}}}
    method = building.build_methods(compose.composed(words).methods)["kvpress"]
    assert dict(dict(method.options)["press"])["options"] == (("sinks", 3),)
    with pytest.raises(UserError, match=r"methods\.kvpress\.press=NAME"):
        building.build_methods(compose.composed(["method=kvpress", f"methods.kvpress.path={small}"]).methods)
    with pytest.raises(UserError, match=r"did you mean 'methods\.kvpress\.options'"):
        compose.composed(["method=kvpress", "methods.kvpress.option.sinks=3"])


def test_the_id_changes_with_the_code_and_the_options(small, tmp_path):
    def identity(folder, name="QueryPress", **options):
        found = of_method(KVPress(name, options, folder))
        forget()
        return found

    known = identity(small)
    place = iter(range(9))

    def edited(old, new, name="QueryPress"):
        return identity(small_kvpress.write(tmp_path / f"edited{next(place)}", old, new), name)

    assert edited("", "") == edited("Norms of queries", "Lengths of queries") == known
    assert edited("(module.layer_idx + 1)", "(module.layer_idx + 2)") != known != identity(small, sinks=1)
    other = identity(small, "MaskPress", press="QueryPress")
    assert edited("* later.abs().sum()", "", "QueryPress") != known
    assert other != identity(small, "MaskPress", press="DrawPress")


def test_a_press_of_ones_own(small, tmp_path, monkeypatch):
    (tmp_path / "my_presses.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = KVPress("my_presses.NewestPress", path=small)
    assert kept(method) == [[[set(range(TOKENS - BUDGET, TOKENS))] * 2]] * 4
    known = of_method(method)
    forget("my_presses")
    (tmp_path / "my_presses.py").write_text(OWN.replace(".float()", ".float() * 2"))
    assert of_method(KVPress("my_presses.NewestPress", path=small)) != known


# ---------------------------------------------------------------------------------------------- the real kvpress

REAL = pytest.mark.skipif(importlib.util.find_spec("kvpress") is None, reason="kvpress is not installed")
RUN = ["SnapKVPress", "ExpectedAttentionPress", "TOVAPress", "KnormPress", "ObservedAttentionPress", "CompactorPress"]
WRAP = ["CriticalKVPress", "AdaKVPress", "ChunkKVPress"]
NEEDED = {"ThinKPress": {"key_channel_compression_ratio": 0.5}}


@REAL
@pytest.mark.parametrize("name", RUN + WRAP)
def test_real_presses_keep_their_contract(name):
    forget()
    inner = {"press": "ExpectedAttentionPress"} if name in WRAP else {}
    options = {"window_size": 20} if name == "SnapKVPress" else inner
    try_method(tiny.engine("llama"), KVPress(name, options))


@REAL
def test_what_the_list_says_is_not_supported_is_refused():
    forget()
    installed.package()
    line = listing.limits(compose.choices("method")["kvpress"])
    named = [f"{name.replace(' ', '')}Press" for name in re.findall(r"[A-Z][\w ]*?(?=[,)])", line)]
    assert len(named) >= 9 and set(named) <= set(installed.presses()), named
    inner = [{}, {"press": "KnormPress"}, {"base_press": "KnormPress"}]
    for name in named:
        said = [refusal(name, options) for options in ([NEEDED[name]] if name in NEEDED else inner)]
        assert any(re.search(rf"{name} (runs the model itself|changes keys or values)", one) for one in said), said


def refusal(name, options):
    """Why a press is refused; empty where it is not."""
    try:
        KVPress(name, options)
    except UserError as error:
        return str(error)
    return ""
