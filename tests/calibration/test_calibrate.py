"""`pvcbench calibrate`: recipes recomputed naively in float64, the corpus cut by hand, the file's header, refusals."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from methods.expected_attention_stats import ExpectedAttentionStats as Stats
from methods.qfilters import QFilters as Filters
from pvcbench.calibration import making
from pvcbench.calibration.corpus import Corpus
from pvcbench.calibration.recipes import ExpectedAttention, QFilters
from pvcbench.cli.main import main
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.preflight import try_method
from pvcbench.models import random_weights

TEXTS = ["Many words are here, and one more. ", "Another text of another kind! ", "Short. "]
HEADS, KV_HEADS, DIM = 4, 2, 16  # of the tiny shape


@pytest.fixture(scope="module")
def loaded():
    return random_weights.random("tiny", "cpu", "float64", seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of three documents: of 350, 300 and 14 letters, each a token."""
    made = tmp_path_factory.mktemp("corpus")
    for number, (text, times) in enumerate(zip(TEXTS, (10, 10, 2), strict=True)):
        (made / f"{number}.txt").write_text(text * times)
    return made


@torch.inference_mode()
def naive_queries(model, texts):
    """Of each layer [texts][heads, tokens, dim] before rotary embedding and after it, by transformers' own modules."""
    plain, turned, hooks = [], [], []
    for layer in model.model.layers:
        hooks.append(layer.self_attn.q_proj.register_forward_hook(lambda _, __, out: plain[-1].append(out[0])))
    try:
        for ids in texts:
            plain.append([])
            model(torch.tensor([ids]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    plain = [[out.unflatten(-1, (HEADS, DIM)).transpose(0, 1) for out in text] for text in plain]
    for text in plain:
        angles = torch.arange(text[0].shape[1])[:, None].double() * model.model.rotary_emb.inv_freq.double()
        cos, sin = angles.cos(), angles.sin()
        halves = [own.chunk(2, -1) for own in text]
        turned.append([torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in halves])
    return list(zip(*plain, strict=True)), list(zip(*turned, strict=True))


def naive_filters(rows):
    """The authors' recipe on all rows of one layer, [heads, rows, dim]: by the SVD itself, head by head."""
    found = []
    for head in rows:
        u, _, vh = torch.linalg.svd(head, full_matrices=False)
        found.append(-vh[0] if (u[:, 0] > 0).double().mean() > 0.5 else vh[0])
    return torch.stack([sum(found[g : g + HEADS // KV_HEADS]) / 2 for g in range(0, HEADS, HEADS // KV_HEADS)])


@pytest.mark.parametrize("rows", [179, 51], ids=["most", "some"])
def test_filters_are_those_of_the_recipe(loaded, folder, rows):
    """The first singular vector of the rows, not centred, its sign by most rows, mean over a group, negated."""
    recipe = QFilters(texts=3, tokens=60, rows=rows, seed=5)
    texts = recipe.coded(Corpus.of(str(folder)), loaded.tokenizer)
    found = recipe.computed(loaded, texts, lambda: None)["q_filters"]
    assert found.shape == (4, KV_HEADS, DIM) and found.dtype == torch.float32
    for layer, parts in enumerate(naive_queries(loaded.model, texts)[1]):
        drawn = torch.randperm(180, generator=torch.Generator().manual_seed(5 * 1_000_003 + layer))[:rows]
        expected = naive_filters(torch.cat(parts, 1)[:, drawn])
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-4, atol=1e-5)
    assert (found.norm(dim=-1) <= 1 + 1e-6).all()


def test_statistics_are_those_of_the_recipe(loaded, folder):
    """Mean and covariance (n - 1) over all pieces together, the first tokens of each left out, before rotation."""
    recipe = ExpectedAttention(texts=4, characters=90, first=4)
    texts = recipe.coded(Corpus.of(str(folder)), loaded.tokenizer)
    found = recipe.computed(loaded, texts, lambda: None)
    for layer, parts in enumerate(naive_queries(loaded.model, texts)[0]):
        rows = torch.cat([part[:, 4:] for part in parts], 1)
        for head in range(HEADS):
            torch.testing.assert_close(
                found["query_mean"][layer, head].double(), rows[head].mean(0), rtol=1e-5, atol=1e-6
            )
            expected = torch.cov(rows[head].T)
            torch.testing.assert_close(found["query_cov"][layer, head].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_corpus_is_cut_round_by_round(loaded, folder):
    """The first part of every document, then every second one; windows are whole, pieces may be what is left."""
    corpus, documents = Corpus.of(str(folder)), [text * times for text, times in zip(TEXTS, (10, 10, 2), strict=True)]
    decode = loaded.tokenizer.decode
    windows = [decode(ids) for ids in corpus.windows(loaded.tokenizer, 100, 6)]
    first, second, _ = documents
    assert windows == [first[:100], second[:100], first[100:200], second[100:200], first[200:300], second[200:]]
    pieces = [decode(ids) for ids in corpus.pieces(loaded.tokenizer, 120, 5, 7)]
    last = [first[120:240], second[120:240], first[240:], second[240:]]
    assert pieces == [*(document[:120] for document in documents), *last]
    assert decode(corpus.pieces(loaded.tokenizer, 120, 20, 3)[2]) == first[120:240]  # the short document has too few
    with pytest.raises(UserError, match="has 6 windows of 100 tokens, and 7 are asked for: lower --texts or --tokens"):
        corpus.windows(loaded.tokenizer, 100, 7)
    assert corpus.sha256 != Corpus.of(str(folder / "0.txt")).sha256
    with pytest.raises(UserError, match=r"^--corpus: 'nowhere' is neither"):
        Corpus.of("nowhere")


def test_a_bos_token_stands_before_every_window(folder):
    """As the authors' code has it of the first, whose tokens are the tokenizer's own."""

    class Begins:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, text, add_special_tokens=True):
            coded = self.inner(text, add_special_tokens=False)
            coded["input_ids"] = [0] * add_special_tokens + coded["input_ids"]
            return coded

    tokenizer = Begins(random_weights.byte_tokenizer())
    windows = Corpus.of(str(folder)).windows(tokenizer, 50, 3)
    assert [ids[0] for ids in windows] == [0] * 3 and windows[0] == tokenizer(TEXTS[0] * 10).input_ids[:50]
    assert windows[2] == [0, *tokenizer(TEXTS[0] * 10).input_ids[50:99]]


# ---------------------------------------------------------------------------------------------- the command

TINY = ["--model", "random", "model.shape=tiny", "dtype=float32", "device=cpu", "threads=1"]
KINDS = {
    "q-filters": (["--tokens", "40", "--rows", "70"], Filters),
    "expected-attention": (["--characters", "60"], lambda path: Stats(path, horizon=8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_command_writes_is_what_the_method_reads(kind, folder, tmp_path, capsys):
    """The header says the model, the corpus, the recipe and the version; the method runs with the file."""
    options, method = KINDS[kind]
    out = tmp_path / "made.safetensors"
    assert main(["calibrate", kind, *TINY, *options, "--texts", "2", "--corpus", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "made.safetensors" in said.out and "2 of 2 texts" in said.err
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert (told["kind"], told["model"], told["corpus"]) == (kind, "random-tiny", str(folder))
    assert told["corpus_sha256"] == Corpus.of(str(folder)).sha256 and json.loads(told["recipe"])["texts"] == 2
    assert {"pvcbench", "weights", "tokenizer", "dtype", "engine", "format"} <= told.keys()
    engine = Engine(random_weights.random("tiny", "cpu", "float32").model)
    try:
        try_method(engine, method(out))
    finally:
        engine.release()
    again = tmp_path / "again.safetensors"
    assert main(["calibrate", kind, *TINY, *options, "--texts", "2", "--corpus", str(folder), "--out", str(again)]) == 0
    assert all(torch.equal(tensor, load_file(out)[name]) for name, tensor in load_file(again).items())


def test_a_model_is_named_by_its_folder_too(folder, tmp_path, capsys):
    """As `model=hf model.name=FOLDER` would."""
    place, out = tmp_path / "tiny", tmp_path / "made.safetensors"
    made = random_weights.random("tiny", "cpu", None)
    made.model.save_pretrained(place)
    made.tokenizer.save_pretrained(place)
    asked = ["--model", str(place), "--texts", "1", "--tokens", "30", "--rows", "20", "--corpus", str(folder)]
    assert main(["calibrate", "q-filters", *asked, "device=cpu", "threads=1", "--out", str(out)]) == 0
    assert load_file(out)["q_filters"].shape == (4, KV_HEADS, DIM) and "1 text of" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "told"), [
    (["--out", "x.pt"], "--out must name a .safetensors file"),
    (["--out", "nowhere/x.safetensors"], "there is no folder"),
    (["--out", "there.safetensors"], "is there already"),
    (["--out", "x.safetensors", "--texts", "0"], "--texts must be 1 or more"),
    (["--out", "x.safetensors", "--tokens", "40", "--rows", "999"], "--rows 999 are more than the 80"),
    (["--out", "x.safetensors", "--tokens", "900"], "has 0 windows of 900 tokens"),
    (["--out", "x.safetensors", "task=needle"], "what is 'task=needle'"),
    (["--out", "x.safetensors", "--corpus", "nowhere"], "--corpus: 'nowhere' is neither"),
    (["--out", "x.safetensors", "model.shap=tiny"], "model.shap"),
    (["--out", "x.safetensors", "--model", "randon"], "did you mean 'random'?"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_a_mistake_is_one_line(arguments, told, folder, tmp_path, monkeypatch, capsys):
    """Before anything is computed, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").touch()
    monkeypatch.setattr(making, "write", lambda *_: pytest.fail("something was computed"))
    asked = {"--texts": "2", "--corpus": str(folder), "--rows": "10"}
    more = [word for name, value in asked.items() if name not in arguments for word in (name, value)]
    assert main(["calibrate", "q-filters", *TINY, *more, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pvcbench: ") and said.count("\n") == 1 and told in said
