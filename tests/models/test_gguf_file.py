"""A GGUF file: its weights and tokens come out as they were written, and what cannot be converted is told early."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.models import gguf_file
from pvcbench.runs import runner

HEADS, KV_HEADS, DIM = 4, 2, 8
SIZES = {"hidden_size": HEADS * DIM, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": HEADS}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def model_of(vocabulary):
    torch.manual_seed(5)
    config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=KV_HEADS, max_position_embeddings=4096, **SIZES)
    return LlamaForCausalLM(config).eval()


def turned(weight, heads):
    """Rows as the format has them: the two halves that RoPE pairs, of each head, one by one in turn."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def written(path, model, kind=gguf.GGMLQuantizationType.F32, tokens=None):
    """A GGUF file of a model, with a tokenizer of bytes; large weights are of the kind named."""
    letters = gguf_letters()
    spelled = [*(letters[number] for number in range(256)), "th", "<s>", "</s>"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(DIM)
    writer.add_vocab_size(len(spelled))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(spelled if tokens is None else tokens)
    writer.add_token_types([1] * 257 + [3, 3])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_unk_token_id(257)
    writer.add_pad_token_id(258)
    for name, tensor in model.state_dict().items():
        place, weight = name.removesuffix(".weight"), tensor.numpy()
        layer = ""
        if place.startswith("model.layers."):
            _, _, number, place = place.split(".", 3)
            layer = f"blk.{number}."
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(place)
        weight = weight if heads is None else turned(weight, heads)
        as_kind = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(weight), as_kind)
        writer.add_tensor(f"{layer}{NAMES[place]}.weight", data, raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_letters():
    """The character that stands for each byte in GPT-2's tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = {number: chr(number) for number in plain}
    letters |= {number: chr(next(others)) for number in range(256) if number not in letters}
    assert sorted(letters.values()) == sorted(ByteLevel.alphabet())
    return letters


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PVCBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("kind", "error"), [("F32", 0.0), ("Q8_0", 0.02)])
def test_weights_and_tokens_come_out_as_they_were_written(cache, tmp_path, kind, error):
    model = model_of(259)
    path = written(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType[kind])
    loaded = gguf_file.gguf(str(path), "cpu", None)
    for name, weight in model.state_dict().items():
        found = loaded.model.state_dict()[name]
        assert float((found - weight).abs().max()) <= error * float(weight.abs().max()), name
    text = "A mill, a barn:\n 12 keys."
    ids = loaded.tokenizer(text, add_special_tokens=False).input_ids
    assert ids == list(text.encode()) and loaded.tokenizer.decode(ids) == text
    assert loaded.identity["gguf_sha256"] == gguf_file.sha256_of(path) and 258 in loaded.ends
    [folder] = cache.iterdir()
    path.rename(tmp_path / "moved.gguf")  # another name, the same file: converted already
    gguf_file.gguf(str(tmp_path / "moved.gguf"), "cpu", None)
    assert list(cache.iterdir()) == [folder]


def test_it_runs_from_the_command_line(cache, tmp_path):
    path = written(tmp_path / "tiny.gguf", model_of(259))
    asked = ["model=gguf", f"model.path={path}", "method=h2o", "budgets=[0.5]", "task.lengths=[300]", "limit=1"]
    asked += ["task.max_new_tokens=2", "wandb.mode=disabled", "threads=1", f"results={tmp_path / 'results'}"]
    rows = runner.run(compose.composed(asked), figures=False).rows
    assert set(rows["model"]) == {"tiny"} and rows["error"].isna().all()


def test_what_cannot_be_converted_is_told_before_it_is(cache, tmp_path, monkeypatch):
    def refused(path, told):
        with pytest.raises(UserError, match=told):
            gguf_file.gguf(str(path), "cpu", None)
        assert not list(cache.glob("*/model.safetensors"))

    refused("", "set model.path=FILE.gguf")
    refused(tmp_path / "none.gguf", "there is no file")
    (tmp_path / "text.gguf").write_text("hello")
    refused(tmp_path / "text.gguf", "is no GGUF file")
    whole = written(tmp_path / "tiny.gguf", model_of(259))
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:300])
    refused(tmp_path / "cut.gguf", "is damaged")
    monkeypatch.setattr(gguf_file, "dequantises", lambda kind: False)
    refused(whole, "holds weights as F32, which the gguf package does not dequantise")
    monkeypatch.undo()
    monkeypatch.setenv("PVCBENCH_CACHE", str(cache))
    monkeypatch.setattr(gguf_file.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    refused(whole, "make room, or set PVCBENCH_CACHE")


def test_kinds_of_weights_are_known_without_a_list():
    kinds = gguf.GGMLQuantizationType
    assert all(gguf_file.dequantises(kind) for kind in (kinds.F32, kinds.F16, kinds.Q4_K, kinds.Q8_0))
    assert not gguf_file.dequantises(kinds.I8)


def test_a_tokenizer_with_other_numbers_is_refused(cache, tmp_path, monkeypatch):
    """The conversion is held to the file's own list of tokens, whatever the libraries make of it."""
    path, real = written(tmp_path / "tiny.gguf", model_of(259)), gguf_file.PreTrainedTokenizerFast

    def renumbered(tokenizer_object, **options):
        told = json.loads(tokenizer_object.to_str())
        numbers = told["model"]["vocab"]
        numbers["A"], numbers["B"] = numbers["B"], numbers["A"]
        return real(tokenizer_object=Tokenizer.from_str(json.dumps(told)), **options)

    monkeypatch.setattr(gguf_file, "PreTrainedTokenizerFast", renumbered)
    with pytest.raises(UserError, match=r"token 65 of .* is 'A', and transformers makes it 66"):
        gguf_file.gguf(str(path), "cpu", None)
    assert not list(cache.glob("*/model.safetensors"))
