"""Who may import whom, read from the source, imports inside functions included."""

import ast
import sys

import pytest

from source_imports import MODULES, PACKAGE, ROOT, imports, top

LADDER = [  # a package imports from those before it, and from itself
    "version errors places",
    "config method_files",
    "policy stats",
    "engine tasks",
    "models plots",
    "evaluation",
    "analyses",
    "runs",
    "sweeps costs architectures report checks board calibration conformance",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LADDER) for name in names.split()}
STANDARD = (
    """copy dataclasses collections contextvars inspect sys functools itertools typing math time os enum""".split()
)


def within(name, allowed):
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def package_of(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    own = package_of(name)
    for other in imports(MODULES[name]):
        if name != "pvcbench" and other.startswith("pvcbench") and package_of(other) != own:
            assert RANK[package_of(other)] < RANK[own], f"{name} imports {other}"


def test_no_modules_import_each_other():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in imports(MODULES[name]):
            if other in MODULES and other != "pvcbench":
                visit(other)
        done.add(path.pop())

    for name in MODULES:
        visit(name)


def test_few_modules_stand_flat():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(
        ["__init__", "__main__", "errors", "method_files", "places", "policy", "version"]
    )


@pytest.mark.parametrize("name", MODULES)
def test_pvcbench_never_imports_methods(name):
    assert not [other for other in imports(MODULES[name]) if within(other, {"methods"})]


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda path: path.name)
def test_methods_import_the_policy_only(path):
    allowed = {"torch", "jaxtyping", "pvcbench.policy", "methods", *STANDARD}
    assert not [name for name in imports(path) if not within(name, allowed)]


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*/*.py")), ids=lambda path: path.name)
def test_what_methods_share_in_a_folder_knows_no_more_of_pvcbench(path):
    allowed = {"torch", "jaxtyping", "pvcbench.policy", "methods", *sys.stdlib_module_names}
    assert not [name for name in imports(path) if not within(name, allowed)]


ENGINE = sorted((PACKAGE / "engine").rglob("*.py"))


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.name)
def test_engine_runs_on_a_bare_machine(path):
    ours = {"pvcbench.engine", "pvcbench.policy", "pvcbench.errors"}
    allowed = {"torch", "transformers", "jaxtyping", "flash_attn", "triton", "random", *STANDARD, *ours}
    assert not [name for name in imports(path) if not within(name, allowed)]


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.name)
def test_triton_and_flash_attn_are_imported_where_they_are_used(path):
    """Modules load without these; the programs alone cannot be written without Triton."""
    heavy = {"triton", "flash_attn", "pvcbench.engine.kernels.triton_programs"}
    assert path.name == "triton_programs.py" or not [name for name in top(path) if within(name, heavy)]


TASKS = [name for name in MODULES if within(name, {"pvcbench.tasks"}) or name.endswith(".task")]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_know_no_torch_and_no_engine_not_even_indirectly(name):
    """Apart from lm-eval's recorder, which is imported when the first request is recorded: lm-eval needs torch."""
    seen, waiting = set(), [name]
    while waiting:
        one = waiting.pop()
        heavy = {"torch", "transformers", "methods", "pvcbench.engine", "pvcbench.policy"}
        assert name.endswith("recorder") or not [other for other in top(MODULES[one]) if within(other, heavy)], one
        seen.add(one)
        waiting += [other for other in top(MODULES[one]) if other in MODULES and other not in seen]


def test_no_test_file_imports_another():
    """What they share stands in tests/helpers."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imports(path) if name.rpartition(".")[2].startswith("test_")], path


def test_every_method_is_named_nowhere_in_the_harness():
    names = {path.stem for path in (ROOT / "conf/method").glob("*.yaml")} - {"full", "random", "kvpress"}
    drawing = {"pvcbench.plots.style", "pvcbench"}  # fixed colours, and the defaults of `evaluate`
    for name, path in MODULES.items():
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert name in drawing or not names & {word for word in words if isinstance(word, str)}, name
