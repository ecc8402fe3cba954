"""lm-eval on one tiny model of each kind of today: at full budget equal to lm-eval's own model, below it not."""

import pytest

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

import families
from lm_eval_tasks import TASKS, evaluated, flat, folder, quiet, responses
from pvcbench.evaluation.lm_eval_model import CompressedLM
from pvcbench.models.random_weights import byte_tokenizer

__all__ = ["folder", "quiet"]  # fixtures: no report on the machine, and a folder of YAML tasks
FIRST = ["qwen3_next"]
OTHERS = ["gpt_oss", "deepseek_v3", "granitemoehybrid:rope", "lfm2", "jamba", "gemma2", "llama4_text", "gemma3_text"]
EVERY = [*FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


def built(name: str):
    """A family's tiny model with a token for every byte."""
    model = families.build(name)
    model.resize_token_embeddings(300)
    return model.eval()


@pytest.mark.parametrize("name", EVERY)
def test_full_budget_equals_stock_and_less_does_not(name, folder):
    """Likelihoods, generations and rolling likelihoods; a budget that holds while it reads, as rolling ones do."""
    reference = evaluated(HFLM(built(name), tokenizer=byte_tokenizer()), folder)
    answers = {}
    for budget in (1.0, 0.5):
        lm = CompressedLM(built(name), tokenizer=byte_tokenizer(), method="h2o", budget=budget, decode="hold")
        answers[budget] = evaluated(lm, folder)
        lm.release()
    for task in ("choice", "inputs"):
        mine, theirs, cut = (flat(responses(one, task)) for one in (answers[1.0], reference, answers[0.5]))
        assert [x for x, _ in mine] == pytest.approx([x for x, _ in theirs], abs=2e-3)
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
        assert max(abs(x - y) for (x, _), (y, _) in zip(mine, cut, strict=True)) > 1e-2
    assert responses(answers[1.0], "gen") == responses(reference, "gen")
    rolls = [flat(responses(one, "roll")) for one in (answers[1.0], reference, answers[0.5])]
    assert rolls[0] == pytest.approx(rolls[1], abs=1e-2)
    assert max(abs(x - y) for x, y in zip(rolls[0], rolls[2], strict=True)) > 5e-2
    assert set(TASKS) == {"choice", "inputs", "gen", "roll"}
