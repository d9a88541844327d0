"""The house: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import async_saver

_ROOT = Path(async_saver.__file__).parent

# A module may import those of lower floors.
_FLOORS = [
    {"errors", "records", "pace", "runners", "serde", "stores.postgres_patience", "stores.processes"},
    {"guard", "retention", "stores.history", "stores.postgres_server", "stores.sqlite_file"},
    {"locks", "stores.base", "stores.bucket", "stores.chains"},
    {
        "bridge",
        "codec",
        "conflicts",
        "stores.commits",
        "stores.leases",
        "stores.limits",
        "stores.postgres_reads",
        "stores.sqlite_reads",
        "stores.swept",
        "testing",
    },
    {"session", "stores.memory", "stores.postgres_edits", "stores.sqlite_edits"},
    {"compat", "stores.postgres_leases", "stores.sqlite_writer"},
    {"stores.postgres_keeper", "stores.postgres_writer"},
    {"stores.postgres_limits"},
    {"stores.postgres", "stores.sqlite"},
    {"saver"},
    {"otel", "transfer"},
    {"__init__"},
]


def _modules() -> dict[str, set[str]]:
    """Every module's name, with the modules of this package that it imports."""
    found = {}
    for path in _ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        imported = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports relatively"
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported.update(one.name for one in node.names)
        assert "async_saver" not in imported, f"{name} imports from the top"
        found[name] = {one.removeprefix("async_saver.") for one in imported if one.startswith("async_saver.")}
    return {name: imports for name, imports in found.items() if name != "stores.__init__"}


def test_imports_run_downward() -> None:
    """Every module stands on a floor, and imports from lower floors only."""
    floor = {name: number for number, names in enumerate(_FLOORS) for name in names}
    modules = _modules()
    assert modules.keys() == floor.keys()
    wrong = {(name, one) for name, imports in modules.items() for one in imports if floor[one] >= floor[name]}
    assert not wrong


@pytest.mark.parametrize("module", ["trio", "uvloop", "langgraph.graph", "sqlite3", "psycopg", "opentelemetry"])
def test_the_core_needs_only_its_dependencies(module: str) -> None:
    """What only some users have is not imported with the package."""
    script = f"import async_saver, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
