"""The cost model: counts against independent counts, the fit, the sweep, and the tables of docs/results/scale.md."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import tiny
from methods.h2o import H2O
from pvcbench.costs import model as costs
from pvcbench.costs import sweep_cost
from pvcbench.costs.fitted import Measured, every_layer
from pvcbench.costs.model import ARCHITECTURES, Architecture, Profile
from pvcbench.costs.scale_page import fill, spell
from pvcbench.engine import observer, prefill
from pvcbench.errors import UserError
from pvcbench.policy import Method
from scripts import bench_costs, numbers_cost, scale
from scripts.scale import ASSUMED

ROOT = Path(__file__).parents[2]
PUBLISHED = {  # parameters, by the safetensors metadata of each model on the hub
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3-8B": 8_030_261_248,
    "Llama-2-13B": 13_015_864_320,
    "Llama-3-70B": 70_553_706_496,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_have_the_published_parameters(name):
    assert ARCHITECTURES[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("family", ["llama", "llama_deep", "mistral"])
def test_a_configuration_gives_the_models_own_weights(family):
    model = tiny.unmodified(family)
    counted = Architecture.of(model.config)
    assert counted.parameters == sum(weight.numel() for weight in model.parameters())
    assert counted.read_weights == sum(
        module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)
    )


@pytest.mark.parametrize(("tokens", "batch"), [(17, 1), (40, 3)])
def test_operations_are_those_of_a_forward_pass(tokens, batch):
    model = tiny.build("llama")
    model.set_attn_implementation("eager")
    counted = Architecture.of(model.config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tiny.prompt(tokens, batch), logits_to_keep=1)
    found = {str(operation): amount for operation, amount in counter.get_flop_counts()["Global"].items()}
    work = costs.prefill(counted, Profile.of(Method(), every_layer(tokens, counted.layers)), 8, batch)
    assert found["aten.mm"] == work["linear_flop"]
    square = (
        4 * counted.heads * counted.head_dim * tokens**2 * counted.layers * batch
    )  # eager: no masked pair is skipped
    assert found["aten.bmm"] - square in (0, counted.head_dim * tokens)  # rotary angles are a product in some versions
    assert work["pair_flop"] == square * (tokens + 1) / 2 / tokens and work["observed_flop"] == 0


@pytest.mark.parametrize(("tokens", "observed"), [(1, 0), (1, 1), (9, 0), (9, 4), (9, 9), (200, 41)])
def test_pairs_are_counted_row_by_row(tokens, observed):
    seen = [row + 1 for row in range(tokens)]  # keys that each row sees
    assert costs.pairs(tokens, observed) == (sum(seen[: tokens - observed]), sum(seen[tokens - observed :]))


def attended(monkeypatch, run):
    """Query-key pairs of all plain and all observed rows while `run` runs, from the tensors that were attended."""
    found = {"plain": 0, "observed": 0}

    def counting(name, real):
        def attend(query, key, *args, **kwargs):
            rows, keys = query.shape[2], key.shape[2]
            found[name] += sum(keys - rows + row + 1 for row in range(rows))
            return real(query, key, *args, **kwargs)

        return attend

    monkeypatch.setattr(prefill, "prompt_attention", counting("plain", prefill.prompt_attention))
    monkeypatch.setattr(observer, "observed_attention", counting("observed", observer.observed_attention))
    monkeypatch.setattr(observer.Observer, "_plain_cost", lambda *args: 0.0)  # which attends only to be timed
    run()
    return found


@pytest.mark.parametrize("name", tiny.METHODS)
@pytest.mark.sampled(12)
def test_work_is_that_of_a_real_prefill(monkeypatch, name):
    engine, tokens = tiny.engine("llama_deep"), 90
    model, shape = Architecture.of(engine.config), engine.shape(tokens)
    cell, found = tiny.cell_of(tiny.METHODS[name], shape), {}
    methods = [] if cell.everything or cell.pruner else [cell.method]

    def run():
        found["prefill"] = engine.prefill(tiny.prompt(tokens), methods, cell.pruner)

    run()  # the first prefill also finds how layers rotate, for methods that ask
    counted = attended(monkeypatch, run)
    profile = scale.profile_of(Method() if cell.everything else cell.method, shape)
    work, layers = costs.prefill(model, profile, 8), found["prefill"].layers
    assert list(profile.reaching) == [layer.keys.shape[2] for layer in layers]
    per_pair = 4 * model.heads * model.head_dim
    assert work["pair_flop"] == per_pair * counted["plain"]
    assert work["observed_flop"] == per_pair * counted["observed"]
    assert work["linear_flop"] == 2 * (
        model.layer_weights * sum(layer.keys.shape[2] for layer in layers) + model.hidden * model.vocabulary
    )
    memory = costs.memory(model, profile, 8)
    assert memory.cache == found["prefill"].nbytes
    assert memory.weights == sum(weight.nbytes for weight in engine.model.parameters())


def test_a_pruning_prefill_is_less_work():
    shape = every_layer(4096, 32)
    pruned = scale.profile_of(scale.settled(scale.PvC(), 0.5, shape), shape)
    plain, own = (costs.prefill(ARCHITECTURES["Llama-3-8B"], each, 2) for each in (Profile.of(Method(), shape), pruned))
    assert sum(pruned.reaching) == pytest.approx(0.5 * 32 * 4096, rel=0.02)
    assert own["linear_flop"] < 0.53 * plain["linear_flop"]
    assert own["pair_flop"] + own["observed_flop"] < 0.5 * plain["pair_flop"]


def test_forks_and_steps_move_the_bytes_that_are_there(inference):
    engine, tokens = tiny.engine("llama"), 64
    model, method = Architecture.of(engine.config), tiny.METHODS["random"]
    cells = [replace(tiny.cell_of(method, engine.shape(tokens)), label=str(number)) for number in range(3)]
    [group] = engine.fork(engine.prefill(tiny.prompt(tokens), [method]), cells, 1)
    kept = [layer.filled for layer in group.layers]
    stored = sum(group.measure(number, 0).kv_bytes for number in range(3))
    assert costs.fork(model, kept, [tokens] * 4, 8)["copied_byte"] * 3 == stored
    assert costs.step(model, 3 * sum(kept), 3, 8)["cache_byte"] == stored


def made_up(term):
    """Seconds per unit of no machine."""
    return 10 ** -(3.0 + 1.1 * list(costs.TERMS).index(term))


def test_the_fit_finds_made_up_constants():
    rates = {term: made_up(term) for term in costs.TERMS}
    shapes = {"smollm2": ARCHITECTURES["Llama-3.2-1B"], "wide": ARCHITECTURES["Llama-2-13B"]}
    points = []
    for point in bench_costs.plan(quick=False):
        if point.role == "fit":
            model = shapes[point.model]
            shape = every_layer(point.tokens, model.layers)
            if point.kind == "prefill":
                work = costs.prefill(model, scale.profile_of_point(vars(point), shape), 4)
            elif point.kind == "fork":
                kept = [int(point.budget * point.tokens)] * model.layers
                work = costs.fork(model, kept, [point.tokens] * model.layers, 4)
            else:
                work = costs.step(model, point.rows * point.tokens * model.layers, point.rows, 4)
            points.append((work, costs.seconds(work, rates)))
    assert costs.fit(points) == pytest.approx(rates, rel=1e-6)  # least squares of exact points, in float64
    with pytest.raises(ValueError, match="do not tell"):
        costs.fit(points[:2])


@pytest.mark.parametrize("quick", [False, True])
def test_points_are_checked_that_were_not_fitted(quick):
    points = bench_costs.plan(quick)
    fitted, others = ({replace(p, role="") for p in points if p.role == role} for role in ("fit", "check"))
    assert len(points) == len(fitted) + len(others) and not fitted & others
    assert {point.kind for point in others} == {"prefill", "step", "fork", "memory"}
    assert len({point for point in others if point.kind != "memory"}) >= 8
    assert {point.method for point in others} - {point.method for point in fitted} == {"pvc"}
    assert {point.kind for point in fitted} == {"prefill", "step", "fork"}


# ---------------------------------------------------------------------------------------------- the sweep


@pytest.fixture
def plans():
    """Cells of one prompt: the full cache, H2O, a window, and a pruner."""
    shape = every_layer(2000, 16)
    pruner = scale.settled(scale.PvC(), 0.6, shape)
    return [
        sweep_cost.CellCost.of("full", Method(), 1.0, shape),
        sweep_cost.CellCost.of("H2O", H2O(), 0.1, shape),
        sweep_cost.CellCost.of("window", bench_costs.Window(32), 0.5, shape),
        sweep_cost.CellCost.of("PvC", pruner, 0.6, shape, scale.profile_of(pruner, shape).reaching),
    ]


def test_shared_prefills_are_counted_once(plans):
    model = ARCHITECTURES["Llama-3.2-1B"]
    apart, together = sweep_cost.per_point(model, plans, 20, 2), sweep_cost.shared(model, plans, 20, 2)
    alone = [costs.prefill(model, plan.profile, 2) for plan in plans]
    assert apart["prefill"] == pytest.approx(costs.add(*alone))
    assert together["prefill"] == pytest.approx(costs.add(alone[1], alone[3]))  # H2O's rows hold the window's
    assert together["fork"] == apart["fork"]
    for term in ("linear_flop", "cache_byte"):  # the same arithmetic on the same caches, but the weights are read once
        assert together["decode"][term] == pytest.approx(apart["decode"][term])
    for term in ("weight_byte", "layer_call"):
        assert 4 * together["decode"][term] == pytest.approx(apart["decode"][term])


def test_a_single_cell_gains_nothing(plans):
    model = ARCHITECTURES["Llama-3.2-1B"]
    for plan in plans:
        assert sweep_cost.shared(model, [plan], 20, 2) == sweep_cost.per_point(model, [plan], 20, 2)


def test_decoding_counts_the_entries_it_adds(plans):
    model, full = ARCHITECTURES["Llama-3.2-1B"], plans[0]
    by_hand = [costs.step(model, 16 * (2000 + added), 1, 2) for added in range(1, 20)]
    assert sweep_cost.decoding(model, [full], 20, 2) == pytest.approx(costs.add(*by_hand))


def test_the_peak_is_where_stored_and_passing_are_largest_together():
    model = Architecture(hidden=8, intermediate=100, layers=3, heads=2, kv_heads=1, head_dim=4, vocabulary=10)
    found = costs.memory(model, Profile((50, 40, 1), (0, 0, 0)), 2, scored=False)
    passing = 2 * (2 * 8 + 3 * 100)  # bytes of the MLP's activations per position
    assert found.peak - found.weights == max(50 * 16 + 50 * passing, 90 * 16 + 40 * passing, 91 * 16 + passing)
    assert found.cache == 91 * 16 and found.scores == 0


def test_longbench_is_whole():
    rows = sweep_cost.longbench(7950)
    assert len(rows) == 21 and sum(items for _, items, _, _ in rows) == 4750
    assert max(tokens for _, _, tokens, _ in rows) == 7950
    cells = scale.cells_of(ARCHITECTURES["Llama-3-8B"], 7950)
    names = [cell.name for cell in cells]
    assert len(set(names)) == 9 and all(names.count(name) == 8 for name in scale.SWEPT if name != "PvC")
    assert 1 <= names.count("PvC") < 8  # its reach ends above the smallest budgets


# ---------------------------------------------------------------------------------------------- the document


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5e-6, "1.5 µs"), (0.0123, "12.3 ms"), (1.073, "1.07 s"), (100, "100 s"), (7200, "2 h"), (3e6, "34.7 d")],
)
def test_seconds_read_well(value, text):
    assert spell(value) == text


def test_a_document_with_other_markers_is_refused(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("<!-- one -->\nold\n<!-- end one -->\n")
    fill(path, {"one": "new"})
    assert path.read_text() == "<!-- one -->\nnew\n<!-- end one -->\n"
    with pytest.raises(UserError, match="markers"):
        fill(path, {"two": "new"})
    path.write_text("<!-- one -->\nold\n")
    with pytest.raises(UserError, match="end one"):
        fill(path, {"one": "new"})


def test_the_tables_of_the_document_come_from_its_measured_file(tmp_path):
    found = tmp_path / "scale.md"
    found.write_text((ROOT / "docs/results/scale.md").read_text(encoding="utf-8"), encoding="utf-8")
    fill(found, scale.tables(Measured(ROOT / "results/bench/costs.json", scale.profile_of_point), None))
    assert found.read_bytes() == (ROOT / "docs/results/scale.md").read_bytes()


@pytest.mark.slow
def test_measuring_and_fitting_run_end_to_end(tmp_path, monkeypatch):
    """Toy sizes: every kind of point is measured, and a document is written from it, twice the same."""
    measured = tmp_path / "costs.json"
    script = ["scripts/bench_costs.py", "--quick", "--rounds", "1", "--threads", "1", "--out", str(measured)]
    done = subprocess.run([sys.executable, *script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(measured.read_text())
    points = json.loads(measured.read_text())["points"]
    assert all(point.get("bytes", point.get("median")) > 0 for point in points)
    monkeypatch.setattr(scale, "LENGTHS", {"1k": 2**10})
    monkeypatch.setattr(sweep_cost, "LONGBENCH", {"qasper": (200, 3619)})
    written = []
    for number in range(2):
        document = tmp_path / f"{number}.md"
        names = ["constants", "check", "fit", "lengths", "embedded", "longbench", "longbench embedded"]
        document.write_text("".join(f"<!-- {name} -->\n<!-- end {name} -->\n" for name in names))
        arguments = ["--costs", str(measured), "--doc", str(document), "--figures", str(tmp_path / f"figures{number}")]
        monkeypatch.setattr(sys, "argv", ["scale.py", *arguments, "--constants", str(measured)])
        assert scale.main() == 0
        pictures = sorted((tmp_path / f"figures{number}").iterdir())
        written.append([document.read_bytes(), *(picture.read_bytes() for picture in pictures)])
    assert len(written[0]) == 6 and written[0] == written[1]  # the document, two pictures twice, and their hashes


def test_a_missing_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale.py", "--costs", str(tmp_path / "none.json")])
    assert scale.main() == 2 and "bench_costs.py" in capsys.readouterr().err


def test_a_second_reading_by_hand():
    """Each of 8 tokens sees 8 stored ones and those of its own pass: 8 * 8 + 8 * 9 / 2 pairs, all of them observed."""
    model = ARCHITECTURES["Llama-3.2-1B"]
    found = numbers_cost.read_again(model, 8, 2)
    assert found["observed_flop"] == 4 * model.heads * model.head_dim * model.layers * (8 * 8 + 8 * 9 / 2)
    assert found["linear_flop"] == 2 * model.layer_weights * model.layers * 8
    assert found["pair_flop"] == 0 and found["layer_call"] == model.layers


def test_a_method_of_the_evidence_costs_what_it_adds(tmp_path):
    """A third method makes a sample dearer on one core, and PvC's own prefill adds to the model's seconds."""
    assert numbers_cost.on_one_core(3, ROOT / "results") > numbers_cost.on_one_core(2, ROOT / "results") > 0
    methods = {"h2o": {"_target_": "methods.h2o.H2O"}, "pvc": {"_target_": "methods.pvc.PvC"}}
    rows = pd.DataFrame({"method": ["full", "h2o", "pvc"], "budget": ["1.0", "0.5", "0.5"], "error": None})
    rows = rows.assign(reference=[True, False, False], kept_fraction=[1.0, 0.5, 0.5], prompt_tokens=1000)
    spent = []
    for names in (["h2o"], ["h2o", "pvc"]):
        config = {"methods": {name: methods[name] for name in names}, "task": {"max_new_tokens": 8}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": config}))
        own = rows[rows["method"].isin(["full", *names])]
        spent.append(numbers_cost.sample_cost(tmp_path, own, ARCHITECTURES["Llama-3-8B"], ASSUMED))
    assert spent[1] > spent[0] > 0
