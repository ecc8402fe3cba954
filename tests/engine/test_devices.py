"""Models whose layers lie on several devices: the engine's hooks work where accelerate places and moves things.

Two placements without a GPU: accelerate's own hooks on a CPU, with layers whose weights live on the meta device and
come from a folder when they run; and two pretended devices that refuse to mix (`tests/helpers/two_devices.py`).
"""

import json

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

import tiny
from pairs import pairs
from pvcbench.architectures import families
from pvcbench.engine import passes
from pvcbench.engine.attention import slot_attention, visible_slots
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.models import random_weights
from two_devices import DevicesMeet, Places, place

# float64; products round differently where a weight lies at another alignment in memory
CLOSE = {"rtol": 0.0, "atol": 1e-9}
PARTS = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]


def offloaded(family, folder, disk):
    """A model of which the named layers, and with them its embedding, wait on disk (meta weights until they run)."""
    model = tiny.build(family)
    layers = {f"model.layers.{number}": number in disk for number in range(model.config.num_hidden_layers)}
    places = {name: "disk" if waits else "cpu" for name, waits in layers.items()}
    places |= {name: "disk" if name == "model.embed_tokens" and 0 in disk else "cpu" for name in PARTS}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.fixture(params=[(1, 2), (0, 3)], ids=["middle on disk", "ends on disk"])
def placed(request, tmp_path):
    """An engine on a model with some layers offloaded."""
    model = offloaded("llama", tmp_path, request.param)
    waiting = [number for number, layer in enumerate(model.model.layers) if layer.mlp.up_proj.weight.is_meta]
    assert waiting == list(request.param)
    engine = Engine(model, writer=tiny.WRITER)
    yield engine
    engine.release()


def answers(engine, method, hold):
    """Logits of eight steps after a compressed prompt, and what was kept."""
    ids, draws = tiny.prompt(60, batch=2), torch.tensor([3, 4])
    cell = tiny.cell_of(method, engine.shape(60), hold)
    groups = tiny.fork(engine, ids, [cell], 8, draws)
    trace = tiny.teach(engine, groups, tiny.prompt(8, batch=2, seed=1), [3, *[1] * 5])
    return trace.logits, tiny.positions(groups[0])


@pytest.mark.parametrize("placed", [(0, 3)], indirect=True, ids=["ends on disk"])
@pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
@pytest.mark.parametrize("name", tiny.METHODS)
@pytest.mark.sampled(12)
def test_offloaded_layers_answer_as_the_whole_model(placed, inference, name, hold):
    method = tiny.METHODS[name]
    if hold and "hold" not in method.decodes:
        pytest.skip("grows only")
    logits, kept = answers(placed, method, hold)
    expected, whole = answers(tiny.engine("llama"), method, hold)
    for one, other in zip(kept, whole, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", ["streaming_llm", "h2o"])
def test_offloaded_layers_stream_and_score(placed, inference, name):
    ids = tiny.prompt(70)
    found = []
    for engine in (placed, tiny.engine("llama")):
        cell = Cell("20", tiny.METHODS[name].resolve(20, engine.shape(70)), 20)
        scored, _ = engine.stream(ids, cell)
        groups = tiny.fork(engine, ids, [cell], 10)
        found.append((scored.logprobs, engine.score(groups, ids[:, :9], ids[:, 1:10]).logprobs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_ids_go_where_an_offloaded_embedding_runs(tmp_path):
    engine = Engine(offloaded("llama", tmp_path, (0,)))
    assert engine.model.get_input_embeddings().weight.is_meta and engine.device == torch.device("cpu")


class Notes(AlignDevicesHook):
    """accelerate's hook of a layer, which also notes what reaches the layer's own forward."""

    def __init__(self):
        super().__init__(execution_device="cpu")
        self.seen = []

    def pre_forward(self, module, *args, **kwargs):
        args, kwargs = super().pre_forward(module, *args, **kwargs)
        self.seen.append((args[0].shape[1], kwargs["position_embeddings"][0].shape[1]))
        return args, kwargs


@pytest.mark.parametrize("engine_first", [True, False])
def test_positions_are_dropped_before_accelerate_moves_them(inference, engine_first):
    model, notes = tiny.build("llama"), [Notes() for _ in range(4)]
    engine = Engine(model) if engine_first else None
    for layer, note in zip(model.model.layers, notes, strict=True):
        add_hook_to_module(layer, note)
    engine = engine or Engine(model)
    method = tiny.METHODS["pvc"]
    prefill = engine.prefill(tiny.prompt(60), pruner=tiny.cell_of(method, engine.shape(60)).method)
    sizes = [layer.keys.shape[2] for layer in prefill.layers]
    assert sizes[-1] < 60
    assert [note.seen for note in notes] == [[(size, size)] for size in sizes]


def test_a_device_map_runs_from_the_command_line(tmp_path, capsys):
    from pvcbench.cli import main

    model = tiny.build("llama", torch.float32, exact=False)
    model.config.vocab_size = 300
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "model")
    random_weights.byte_tokenizer().save_pretrained(tmp_path / "model")
    items = [{"context": "The word is lantern. " * 4, "question": "Which word?", "answers": ["lantern"]}] * 2
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    scores = {}
    for devices in ("auto", "null"):
        options = ["model=hf", f"model.name={tmp_path / 'model'}", f"model.device_map={devices}", "task=jsonl"]
        options += [f"task.path={tmp_path / 'items.jsonl'}", "method=h2o", "budgets=[0.5]", "wandb.mode=disabled"]
        options += [f"results={tmp_path / devices}", "threads=1", "device=cpu"]
        assert main.main(options) == 0, capsys.readouterr()
        rows = [line for path in (tmp_path / devices).rglob("rows.jsonl") for line in path.read_text().splitlines()]
        scores[devices] = [json.loads(row)["output"] for row in rows]
    assert len(scores["auto"]) == 4 and scores["auto"] == scores["null"]


# ---------------------------------------------------------------------------------------------- two pretended devices


def parted(model, layers):
    """The model with these layers, norm and output on another (pretended) device than all else."""
    first, second = "maia:0", "maia:1"
    for name, module in model.named_modules():
        behind = name.startswith((*(f"model.layers.{number}" for number in layers), "model.norm", "lm_head"))
        for kind in (module._parameters, module._buffers):
            for own, tensor in ((own, tensor) for own, tensor in kind.items() if tensor is not None):
                kind[own] = place(tensor.detach(), second if behind else first)
        hooked = name in ("model.norm", "lm_head") or (name.startswith("model.layers.") and name.count(".") == 2)
        if hooked or not name:
            skipped = ["past_key_values"]
            hook = AlignDevicesHook(second if behind else first, io_same_device=not name, skip_keys=skipped)
            add_hook_to_module(module, hook)
    return model


def masked(query, keys, values, rule, kernel):
    """Causal attention by a mask of its own: pretended devices do not know torch's."""
    rows, count = query.shape[2], keys.shape[2]
    slots = torch.arange(count, device=query.device).expand(len(query), keys.shape[1], -1)
    newest = torch.arange(count - rows, count, device=query.device).expand(len(query), -1)
    return slot_attention(query, keys, values, rule, visible_slots(slots, newest, None))


@pytest.fixture
def apart(monkeypatch):
    """An engine on a model whose second half, norm and output lie on another (pretended) device than the first."""
    engine = Engine(parted(tiny.build("llama"), (2, 3)), writer=tiny.WRITER)
    monkeypatch.setattr(passes, "prompt_attention", masked)
    with Places():
        yield engine
    engine.release()


def test_pretended_devices_refuse_to_meet():
    one, other = (place(torch.arange(3.0), device) for device in ("maia:0", "maia:1"))
    with pytest.raises(DevicesMeet):
        one + other
    moved = other.to("maia:0")
    assert (one + moved).device == torch.device("maia:0") and (one + moved).held.tolist() == [0, 2, 4]
    with Places():
        assert torch.arange(3, device=one.device).device == one.device
    assert one.sum().item() == 3


@pytest.mark.parametrize("name, hold", pairs(tiny.METHODS, [False, True]))
@pytest.mark.sampled(10)
def test_two_devices_answer_as_one(apart, inference, name, hold):
    method = tiny.METHODS[name]
    if hold and "hold" not in method.decodes:
        pytest.skip("grows only")
    with pytest.MonkeyPatch.context() as patched:
        real_prompt = tiny.prompt
        patched.setattr(tiny, "prompt", lambda *args, **options: place(real_prompt(*args, **options), "maia:0"))
        logits, kept = answers(apart, method, hold)
    expected, whole = answers(tiny.engine("llama"), method, hold)
    assert [part.device.index for part in kept] == [0, 0, 1, 1] and logits[0].device.index == 0
    for one, other in zip([*kept, *logits], [*whole, *expected], strict=True):
        torch.testing.assert_close(one.held, other, **CLOSE)


@pytest.mark.parametrize("name", ["streaming_llm", "h2o", "random"])
def test_two_devices_stream_as_one(apart, inference, name):
    ids, found = tiny.prompt(60), []
    for engine, fed in ((apart, place(ids, "maia:0")), (tiny.engine("llama"), ids)):
        cell = Cell("20", tiny.METHODS[name].resolve(20, engine.shape(60)), 20)
        found.append(engine.stream(fed, cell)[0].logprobs)
    torch.testing.assert_close(found[0].held, found[1], **CLOSE)


@pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
def test_a_layer_reads_entries_of_another_device(inference, hold):
    """Of Gemma 4's six layers the last two read the third's and the fourth's; here the third's lie elsewhere."""
    ids, fed = families.prompt(40, 2), families.prompt(6, 2, seed=1)
    whole, split = (families.build("gemma4_text", torch.float64) for _ in range(2))
    cell = Cell("16", tiny.METHODS["h2o"], 16, hold)

    def logits(
        engine, *given
    ):  # of all tokens: torch's mask for the last ones cannot be made where devices are pretended
        groups = engine.fork(engine.prefill(given[0], [cell.method], watch=lambda shown: None), [cell], 6)
        return torch.stack(tiny.teach(engine, groups, given[1], [1, 3, 1, 1]).logits, 1)

    expected = logits(Engine(whole), ids, fed)
    engine = Engine(parted(split, (3, 4, 5)))
    with Places():
        found = logits(engine, place(ids, "maia:0"), place(fed, "maia:0"))
    torch.testing.assert_close(found.held, expected, **CLOSE)
