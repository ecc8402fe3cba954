"""Who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = {
    "dataclasses",
    "collections",
    "contextvars",
    "inspect",
    "sys",
    "functools",
    "itertools",
    "typing",
    "math",
    "time",
    "os",
    "enum",
}


def imports(path):
    """The names of all modules a file imports, at any depth of it."""
    return names(ast.parse(path.read_text(encoding="utf-8")))


def names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def within(name, allowed):
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize("path", sorted((ROOT / "pvcbench").rglob("*.py")), ids=lambda path: path.name)
def test_pvcbench_never_imports_methods(path):
    assert not [name for name in imports(path) if within(name, {"methods"})]


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda path: path.name)
def test_methods_import_the_policy_only(path):
    allowed = {"torch", "jaxtyping", "pvcbench.policy", "methods", *STANDARD}
    assert not [name for name in imports(path) if not within(name, allowed)]


@pytest.mark.parametrize("path", sorted((ROOT / "pvcbench/engine").glob("*.py")), ids=lambda path: path.name)
def test_engine_runs_on_a_bare_machine(path):
    ours = {"pvcbench.engine", "pvcbench.policy", "pvcbench.errors"}
    allowed = {"torch", "transformers", "jaxtyping", "flash_attn", "triton", *STANDARD, *ours}
    assert not [name for name in imports(path) if not within(name, allowed)]


@pytest.mark.parametrize("path", sorted((ROOT / "pvcbench/engine").glob("*.py")), ids=lambda path: path.name)
def test_triton_and_flash_attn_are_imported_where_they_are_used(path):
    """Modules load without these; the programs alone cannot be written without Triton."""
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    heavy = {"triton", "flash_attn", "pvcbench.engine.kernels.triton_programs"}
    assert path.name == "triton_kernels.py" or not [name for name in names(ast.Module(top, [])) if within(name, heavy)]


@pytest.mark.parametrize("path", sorted((ROOT / "pvcbench/tasks").glob("*.py")), ids=lambda path: path.name)
def test_tasks_know_no_torch_and_no_method(path):
    assert not [name for name in imports(path) if within(name, {"torch", "transformers", "methods", "pvcbench.engine"})]


def test_every_method_is_named_nowhere_in_the_harness():
    names = {path.stem for path in (ROOT / "conf/method").glob("*.yaml")} - {"full", "random"}
    drawing = {"figures.py", "looks.py", "__init__.py", "cli.py"}  # fixed colours, and examples in docstrings
    drawing |= {"ranking.py"}  # what committed rows, written before rows said what their method reads, do not say
    for path in (ROOT / "pvcbench").rglob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert path.name in drawing or not names & {word for word in words if isinstance(word, str)}, path
