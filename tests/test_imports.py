"""Imports run downwards along the flow, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxyprune"

# The flow of docs/design/index.md, from the bottom up: a module may import from its own stage and from the ones above it in this table.
# A new module needs a place here; "name.*" is a package with all that is in it.
STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("words", ("errors", "wording", "files", "extras", "versions", "nested", "graph", "ranking")),
    ("trace", ("program", "calling", "skeleton", "predispatch", "recorder", "capture")),
    ("couple", ("axes", "rules.*", "adapters", "groups", "couple")),
    ("cost and blocks", ("cost", "blocks", "analyse", "describe")),
    ("score", ("scoring.*",)),
    ("proxy", ("proxy.*",)),
    ("plan", ("budget", "plan", "limits", "importance", "widths", "depth", "solve")),
    ("apply", ("surgery", "predict", "bypass", "layers", "verify", "follow", "observe", "apply")),
    ("read", ("read",)),
    ("store", ("manifest", "destination", "storage", "carry")),
    ("prune", ("flow", "timing", "testing.*")),
    ("show", ("modelfile", "plots", "doctor")),
    ("measure", ("journal", "measure")),
    ("search", ("searching.*",)),
    ("compare", ("comparing.*",)),
    ("diffusion", ("diffusion.*",)),
    ("report", ("reporting.*",)),
    ("command line", ("cli.*", "__main__")),
)
HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "networkx",
    "matplotlib",
    "openai",
    "anthropic",
    "diffusers",
    "accelerate",
    "datasets",
    "transformers",
    "torch_pruning",
    "thop",
    "rich",
    "jinja2",
)


def modules() -> dict[str, Path]:
    """Module names below the package, with their files; "" is the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def stage_of(module: str) -> list[int]:
    """Places of a module in STAGES; exactly one when the table is right."""
    root = module.split(".")[0]
    return [place for place, (_, members) in enumerate(STAGES) if module in members or f"{root}.*" in members]


def imports_at_import_time(module: str) -> set[str]:
    """Modules of the package that are imported when `module` is; function bodies and TYPE_CHECKING blocks are not run then."""
    found: set[str] = set()
    for node in _executed(ast.parse(MODULES[module].read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        else:
            continue
        for name in names:
            inner = name.removeprefix("proxyprune").removeprefix(".")
            if name.startswith("proxyprune.") and inner in MODULES:
                found.add(inner)
    return found - {module}


def _executed(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        yield statement
        if isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            yield from _executed(statement.body + statement.orelse)
        elif isinstance(statement, ast.Try | ast.With):
            yield from _executed(statement.body)


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_every_module_has_one_place(module):
    """A module stands in exactly one stage of the flow."""
    assert len(stage_of(module)) == 1, f"give proxyprune.{module} a place in STAGES"


def test_no_place_is_empty():
    """A stage names no module that is gone."""
    for _, members in STAGES:
        for member in members:
            assert member.removesuffix(".*") in MODULES, f"proxyprune.{member} does not exist"


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_run_downwards(module):
    """What a module imports at import time lies in its own stage or in an earlier one."""
    (own,) = stage_of(module)
    for imported in imports_at_import_time(module):
        (other,) = stage_of(imported)
        assert other <= own, f"{module} ({STAGES[own][0]}) imports {imported} ({STAGES[other][0]})"


def test_no_cycles():
    """Within a stage too, imports form no cycle."""
    TopologicalSorter({module: imports_at_import_time(module) for module in MODULES if module}).prepare()


@pytest.mark.parametrize(
    "statement",
    ["import proxyprune", "import proxyprune.cli", "import proxyprune.plots", "import proxyprune.modelfile", "import proxyprune.diffusion"],
)
def test_import_is_light(statement):
    """The package, its command line and the modules that it starts with import nothing that costs time."""
    code = f"import sys; {statement}; print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert found == ""


def test_help_imports_nothing_heavy():
    """`proxyprune --help` and the help of every command run without the heavy libraries."""
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom proxyprune.cli import main\n"
        "for command in ([], *([name] for name in main.commands)):\n"
        "    assert CliRunner().invoke(main, [*command, '--help']).exit_code == 0\n"
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert found == ""


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_no_llm_library_without_an_llm_scorer(name):
    """Tracing, scoring and planning with local scorers never import the LLM libraries."""
    code = (
        "import sys, torch, proxyprune as pp\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "pp.prune(model, torch.zeros(1, 4), target=0.6)\n"
        f"assert {name!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "before",
    [
        "proxyprune",
        "proxyprune.scoring",
        "proxyprune.scoring.base",
        "proxyprune.flow",
        "proxyprune.cli",
        "proxyprune.searching",
        "proxyprune.comparing",
    ],
)
def test_public_names_whatever_was_imported_before(before):
    """`pp.scorers()` and the other verbs stay callable when a module of the same name was imported first."""
    code = (
        f"import {before}; import proxyprune as pp; pp.scorers(); "
        "assert all(callable(getattr(pp, n)) for n in ('score', 'trace', 'prune', 'search', 'compare'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
