"""The longest sequence of a model: stretched by YaRN, otherwise as its configuration or its owner says."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from pvcbench.errors import UserError
from pvcbench.models import hub, loaded, random_weights

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 300,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
CASES = {
    "as Qwen writes it": ({**YARN, "original_max_position_embeddings": 256}, 256, 1024),
    "as gpt-oss writes it": ({**YARN, "original_max_position_embeddings": 256}, 1024, 1024),
    "longer than stretched": ({**YARN, "original_max_position_embeddings": 256}, 2048, 2048),
    "llama3": ({**LLAMA3, "original_max_position_embeddings": 256}, 512, 512),
    "plain": ({"rope_type": "default", "rope_theta": 1e4}, 512, 512),
}


@pytest.mark.parametrize("case", CASES)
def test_yarn_counts_stretched(case):
    rope, positions, wanted = CASES[case]
    config = AutoConfig.for_model("llama", **SMALL, rope_parameters=rope, max_position_embeddings=positions)
    assert loaded.usable(config) == wanted


def test_the_owner_s_length_is_taken_and_told(tmp_path):
    """A setting lifts or lowers it; whatever is not the configuration's own is part of the run's identity."""
    rope = {**YARN, "original_max_position_embeddings": 256}
    config = AutoConfig.for_model("llama", **SMALL, rope_parameters=rope, max_position_embeddings=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    random_weights.byte_tokenizer().save_pretrained(tmp_path)
    plain, set_ = (hub.hf(str(tmp_path), "cpu", None, longest=longest) for longest in (None, 700))
    assert (plain.longest, plain.identity["longest"]) == (1024, 1024)
    assert (set_.longest, set_.identity["longest"]) == (700, 700)
    with pytest.raises(UserError, match=r"model.longest must be a whole number"):
        hub.hf(str(tmp_path), "cpu", None, longest="many")
