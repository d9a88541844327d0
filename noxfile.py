"""What can be checked: `nox` runs all of it, `nox -s tests-3.12` one part; `.ci/run` has what a change must pass."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def _without(*names: str) -> list[str]:
    return [f"--ignore=tests/test_{name}.py" for name in names]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Types, as two checkers see them, and as users of the package see it."""
    session.install("-e", ".[dev]", "mypy", "pyright")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "async_saver", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on every Python."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def tests_without_trio(session: nox.Session) -> None:
    """The tests where trio is not installed: asyncio alone is enough for the package."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "trio")
    # Without those that take long, and look at what happens on a loop and not at which loops there are, or at none.
    loops = ("cancellation", "conflicts", "forks", "interrupts", "leases", "machine", "pace", "store_contract")
    slow = _without(*loops, "agent_server", "history", "serde", "sqlite_faults", "sqlite_files", "sqlite_oracle")
    slow += _without("retention", "retention_stress", "sessions_across", "sessions_mended", "transfer")
    slow += ["-k", "not postgres and not uvloop"]
    session.run("python", "-m", "pytest", *slow, *session.posargs)


@nox.session
def tests_postgres_15(session: nox.Session) -> None:
    """The tests over PostgreSQL, on the one that Debian 12 has, where that is."""
    programs = Path("/usr/lib/postgresql/15/bin")
    if not programs.exists():
        session.skip("PostgreSQL 15 is not here: install Debian 12's package postgresql")
    session.install("-e", ".[dev]")
    where = {"ASYNC_SAVER_POSTGRES_BIN": str(programs)}
    session.run("python", "-m", "pytest", "-k", "postgres", *session.posargs, env=where)


@nox.session
def tests_pgbouncer(session: nox.Session) -> None:
    """The tests over PostgreSQL, with all stores behind a PgBouncer in transaction mode."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "-k", "postgres", *session.posargs, env={"ASYNC_SAVER_THROUGH": "pgbouncer"})


@nox.session
def tests_unprepared(session: nox.Session) -> None:
    """The tests over PostgreSQL, with neither prepared statements nor LISTEN."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "-k", "postgres", *session.posargs, env={"ASYNC_SAVER_THROUGH": "unprepared"})


@nox.session
def examples(session: nox.Session) -> None:
    """Each example, with nothing installed but what its users are told to install."""
    session.install("-e", ".[examples]")
    for example in sorted(Path("examples").glob("*.py")):
        if example.name == "agent_server.py":  # it serves until it is stopped; what it imports is there
            session.run("python", "-c", "import examples.agent_server")
        else:
            session.run("python", str(example))


@nox.session(python="3.13")
def coverage(session: nox.Session) -> None:
    """The tests with branch coverage, all but those that do the same things at many moments."""
    session.install("-e", ".[dev]", "coverage[toml]")
    same = _without("agent_server", "cancellation", "interrupts", "leases", "locks", "machine", "sqlite_faults")
    same += _without("forks", "postgres_interop", "retention_stress", "serde", "sessions_across", "sqlite_oracle")
    same += _without("postgres_faults", "postgres_pgbouncer", "postgres_sessions")
    same += _without("conflicts", "examples", "langgraph", "langgraph_sync", "pace", "sessions_graphs")
    session.run("coverage", "run", "-m", "pytest", *same, "-k", "not uvloop", *session.posargs)
    session.run("coverage", "report")
