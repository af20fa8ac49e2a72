"""Imports run downwards along the flow, in no circle of any kind, and nothing heavy is imported before it is needed.

The docstring of `proxyprune` has the order, from the bottom up. Every import counts: at the top of a file, inside functions, under
TYPE_CHECKING, and in the stubs that list what a package exports.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import proxyprune

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "proxyprune"

ORDER = tuple(re.findall(r"^    (\w+) {2,}\S", str(proxyprune.__doc__), flags=re.MULTILINE))
"""Folders and files directly below the package, each of which may import only those before it."""

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
    "mcp",
)


def modules() -> dict[str, Path]:
    """Return module names below the package, with their files; "" is the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports anywhere in its file, or in its stub."""
    texts = [path.read_text(encoding="utf-8") for path in (MODULES[module], MODULES[module].with_suffix(".pyi")) if path.exists()]
    found: set[str] = set()
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(["proxyprune", module, str(node.module)] if node.level else [str(node.module)])
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("proxyprune.") for name in names}
    return (found & MODULES.keys()) - {module, ""}


IMPORTS = {module: imports(module) for module in MODULES if module}


def top(module: str) -> str:
    """Return the folder or file directly below the package that a module lies in."""
    return module.partition(".")[0]


def test_every_folder_has_one_place_in_the_order():
    """The docstring of the package lists each folder and each file at the top, once, and none that is gone."""
    assert sorted(ORDER) == sorted({top(module) for module in IMPORTS} - {"__main__"})


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_run_downwards(module):
    """A module imports from its own folder and from folders before it in the order."""
    allowed = ORDER[: ORDER.index(top(module)) + 1] if module != "__main__" else ORDER
    upwards = sorted(name for name in IMPORTS[module] if top(name) not in allowed)
    assert not upwards, f"proxyprune.{module} imports {upwards}, which stand above it"


def test_no_module_imports_itself_through_others():
    """Modules form no circle."""
    TopologicalSorter(IMPORTS).prepare()


@pytest.mark.parametrize("folder", sorted({module.rpartition(".")[0] for module in IMPORTS if module.count(".") > 1}))
def test_inner_folders_form_no_circle(folder):
    """The folders inside a folder import each other in one direction only."""
    outer = folder.rpartition(".")[0] + "."
    edges: dict[str, set[str]] = {}
    for module in IMPORTS:
        if module.startswith(outer):
            inner = [name[len(outer) :] for name in IMPORTS[module] if name.startswith(outer)]
            edges.setdefault(top(module[len(outer) :]), set()).update(map(top, inner))
    TopologicalSorter({name: below - {name} for name, below in edges.items()}).prepare()


def test_imports_in_functions_and_under_type_checking_count():
    """The reader of imports sees all three places of an import."""
    found = imports("plots.network")
    assert {"graph.model_graph", "plots.figure"} <= found, "an import under TYPE_CHECKING is missed"
    assert "proxy.service.openai_chat" in imports("proxy.scorer"), "an import in a function is missed"
    assert "plots.network" in imports("plots"), "an import in a stub is missed"


FACES = ("proxyprune", *(f"proxyprune.{module}" for module, path in MODULES.items() if path.with_suffix(".pyi").exists() and module))
NAMES_EXIST = "from importlib import import_module; m = import_module({!r}); assert all(hasattr(m, name) for name in m.__all__)"

BEFORE = (
    "proxyprune",
    "proxyprune.scoring",
    "proxyprune.scoring.contract",
    "proxyprune.api",
    "proxyprune.reporting.html",
    "proxyprune.cli",
    "proxyprune.searching",
    "proxyprune.comparing",
)
VERBS_STAY = (
    "import {}; import proxyprune as pp; found = len(pp.scorers()); from proxyprune.scoring.registry import BUILT_IN; "
    "assert found >= len(BUILT_IN); assert all(callable(getattr(pp, n)) for n in ('score', 'trace', 'prune', 'search', 'compare'))"
)

NO_LLM = """
import sys, torch, proxyprune as pp
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
pp.prune(model, torch.zeros(1, 4), target=0.6)
assert not {'openai', 'anthropic'} & sys.modules.keys()
"""

IN_TURN = """
import json, sys, traceback
found = {}
for code in json.load(sys.stdin):
    for name in [name for name in sys.modules if name.partition(".")[0] == "proxyprune"]:
        del sys.modules[name]
    try:
        exec(code, {})
    except Exception:  # the traceback is the result
        found[code] = traceback.format_exc()
json.dump(found, sys.stdout)
"""
"""Runs pieces of code, each as if nothing of the package had been imported before; other libraries stay, so they are imported once."""


def failures(codes: Iterable[str]) -> dict[str, str]:
    """Run pieces of code in one fresh process and return the traceback of each that fails."""
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN], input=json.dumps(list(codes)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    """Run the code of all cases below in one process; the first runs before any other import."""
    return failures((NO_LLM, *map(NAMES_EXIST.format, FACES), *map(VERBS_STAY.format, BEFORE)))


def test_each_piece_of_code_starts_without_the_package():
    """Imports of one piece are gone in the next, and a failure belongs to its own piece."""
    absent = "import sys; assert 'proxyprune.errors' not in sys.modules; import proxyprune.errors"
    assert list(failures([absent, "import proxyprune.nowhere", f"{absent} as again"])) == ["import proxyprune.nowhere"]


@pytest.mark.parametrize("package", FACES)
def test_public_faces_list_names_that_exist(failed, package):
    """Every name that a package exports can be imported."""
    assert NAMES_EXIST.format(package) not in failed, failed[NAMES_EXIST.format(package)]


@pytest.mark.parametrize(
    "statement",
    [
        "import proxyprune",
        "import proxyprune.cli",
        "import proxyprune.plots.network",
        "import proxyprune.modelfile",
        "import proxyprune.diffusion",
    ],
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


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("cli.actions.")])
def test_the_work_of_a_command_imports_at_the_top(module):
    """Only the file that declares a command imports inside a function: the file that does the work."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions
    assert not [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_no_llm_library_without_an_llm_scorer(failed):
    """Tracing, scoring and planning with local scorers never import the LLM libraries."""
    assert NO_LLM not in failed, failed[NO_LLM]


@pytest.mark.parametrize("before", BEFORE)
def test_public_names_whatever_was_imported_before(failed, before):
    """`pp.scorers()` lists the built-in scorers, and all verbs stay callable, when a module of the same name was imported first."""
    assert VERBS_STAY.format(before) not in failed, failed[VERBS_STAY.format(before)]
