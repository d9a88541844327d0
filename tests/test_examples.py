"""The examples run, complain of nothing, and show what they say they show."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.postgres import needed, new_database

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
EXAMPLES = [path for path in EXAMPLES if path.name != "agent_server.py"]  # it serves: see test_agent_server.py
WANT_A_DATABASE = ["postgres_resume.py", "postgres_servers.py"]

# asyncio's debug mode, which -X dev turns on, tells of any step over 0.1 s: on a busy machine a full garbage collection
# is one, and it can fall into any code.
SLOW_STEP = re.compile(r"^Executing <.*> took [\d.]+ seconds\n", re.MULTILINE)

# What an example must print, each a run of whole lines (indentation aside): what a broken saver would get wrong.
FACTS = {
    "bounded_memory.py": [
        """
        held: 90 conversations, 180 checkpoints; at most 800 KiB: True
        evicted: {'ttl': 0, 'max_threads': 30, 'max_bytes': 0}
        on_evict was told: {'max_threads': 30}
        """,
        """
        user-119: ['hello', 'You said 5 characters.', 'and again', 'You said 9 characters.']
        user-0: ['and again', 'You said 9 characters.']
        """,
        """
        user-32: there
        user-31: gone
        user-119: there
        staff-1: there
        """,
        """
        user-32: gone
        user-119: gone
        staff-1: there
        held: 1 conversations, 2 checkpoints; at most 800 KiB: True
        """,
    ],
    "many_loops.py": [
        "conversations: 18",
        "asyncio-1: good morning + how are you; good morning + how are you; good morning + how are you",
        "trio-2: good morning + how are you; good morning + how are you; good morning + how are you",
        "plain-2: good morning + how are you; good morning + how are you; good morning + how are you",
        """
        asyncio-1/0: good morning + how are you + see you (7 words)
        asyncio-2/0: good morning + how are you + see you (7 words)
        trio-1/0: good morning + how are you + see you (7 words)
        trio-2/0: good morning + how are you + see you (7 words)
        plain-1/0: good morning + how are you + see you (7 words)
        plain-2/0: good morning + how are you + see you (7 words)
        """,
        """
        conversations: 10
        archive/asyncio-1: words, newest first: [7, 5, 5, 5, 2, 2, 2, None, None]
        archive/asyncio-2: words, newest first: [7, 5, 5, 5, 2, 2, 2, None, None]
        archive/plain-1: words, newest first: [7, 5, 5, 5, 2, 2, 2, None, None]
        archive/plain-2: words, newest first: [7, 5, 5, 5, 2, 2, 2, None, None]
        """,
    ],
    "metrics.py": [
        """
        1. Five conversations
        async_saver.conversations [saver=notes] 5 {conversation}
        async_saver.checkpoints [saver=notes] 10 {checkpoint}
        """,
        """
        async_saver.sessions.open [saver=notes] 1 {session}
        async_saver.sessions.waiting [saver=notes] 0 {session}
        async_saver.evictions [saver=notes reason=ttl] 0 {conversation}
        async_saver.evictions [saver=notes reason=max_threads] 3 {conversation}
        async_saver.evictions [saver=notes reason=max_bytes] 0 {conversation}
        async_saver.pruned [saver=notes] 8 {checkpoint}
        """,
        """
        3. The session is over; the last figures come as the process ends
        async_saver.conversations [saver=notes] 5 {conversation}
        """,
        "async_saver.bridge_calls [] 3 {call}",
    ],
    "move_saver.py": [
        """
        1. The copy is killed in its midst
        cancelled: True
        """,
        """
        2. It is called again
        8 of 8 conversations
        every checkpoint is there: True
        some were there before: True
        """,
        """
        3. The conversations go on
        order-0: 1 teas; taken: 1 teas; asks: May I charge your card?
        order-1: 2 teas; taken: 2 teas; paid: yes
        order-2: 3 teas; taken: 3 teas; and a cake
        order-0: 1 teas; taken: 1 teas; paid: yes
        in the source, as it was: 1 teas; taken: 1 teas; asks: May I charge your card?
        """,
    ],
    "postgres_resume.py": [
        """
        1. The worker is killed in the middle of the third step
        process 1: collect
        process 1: outline
        process 1: draft
        came to its end: False
        """,
        """
        2. It is started again
        process 2 goes on with: draft
        process 2: draft
        process 2: review
        process 2: publish
        came to its end: True
        """,
        """
        3. What is stored
        collect by process 1
        outline by process 1
        draft by process 2
        review by process 2
        publish by process 2
        ran: collect, outline, draft, draft, review, publish
        """,
    ],
    "postgres_servers.py": [
        """
        1. Ten messages at once, five to each server
        each has seen all turns before its own: True
        """,
        """
        2. Server A is killed in the middle of a turn
        server A: None
        the message is sent again, to server B
        server B: ['Message 11, answered']
        3. Server B goes on
        server B: ['Message 12, answered', 'Message 13, answered']
        4. What is stored
        messages: 13, of which 1 is: Are you there?
        from each server's users, in their order: True
        """,
    ],
    "quickstart.py": [
        """
        Ana: Who am I, and what did I ask about?  ->  You are Ana, and you asked about Paris.
        Ben: Who am I, and what did I ask about?  ->  You are Ben, and you asked about Oslo.
        Cho: Who am I, and what did I ask about?  ->  You are Cho, and you asked about Lima.
        """,
        """
        step  6; messages: 6; next: nothing, the turn is over
        step  5; messages: 5; next: model
        step  4; messages: 4; next: __start__
        step  3; messages: 4; next: nothing, the turn is over
        step  2; messages: 3; next: model
        step  1; messages: 2; next: tools
        step  0; messages: 1; next: model
        step -1; messages: 0; next: __start__
        """,
        """
        the new branch:  You are Ana, and you asked about Paris and Rome.
        the first one, as it was:  You are Ana, and you asked about Paris.
        """,
        """
        Ben's agent is paused in: tools. It asks: May I book a flight to Oslo?
        Cho's agent is paused in: tools. It asks: May I book a flight to Lima?
        Ben says yes  ->  Your flight to Oslo is booked.
        Cho says no  ->  No flight to Lima was booked.
        """,
    ],
    "sqlite_resume.py": [
        """
        1. The worker is killed in the middle of the third step
        process 1: collect
        process 1: outline
        process 1: draft
        came to its end: False
        """,
        """
        2. It is started again
        process 2 goes on with: draft
        process 2: draft
        process 2: review
        process 2: publish
        came to its end: True
        """,
        """
        3. What is stored
        collect by process 1
        outline by process 1
        draft by process 2
        review by process 2
        publish by process 2
        ran: collect, outline, draft, draft, review, publish
        """,
    ],
    "sync_graph.py": [
        """
        invoke: {'items': ['tea'], 'total': 4}
        stream: {'price': {'total': 10}}
        """,
        """
        now: {'items': ['tea', 'cake'], 'total': 10}
        step  4: {'items': ['tea', 'cake'], 'total': 10}
        step  3: {'items': ['tea', 'cake'], 'total': 4}
        step  2: {'items': ['tea'], 'total': 4}
        step  1: {'items': ['tea'], 'total': 4}
        step  0: {'items': ['tea']}
        step -1: {'items': []}
        """,
        """
        customer-0: tea, jam, cake; total 15
        customer-1: tea, jam, jam; total 14
        """,
        "customer-7: tea, jam, jam; total 14",
    ],
    "custom_store.py": [
        "contract: kept on asyncio",
        """
        chat: Hello, answer 1
        chat: Hello, answer 1, Here I am again, answer 2
        """,
    ],
    "trio_app.py": [
        """
        job-0: latest page 2; newest first: [2, 1, 0]
        job-1: latest page 2; newest first: [2, 1, 0]
        job-2: latest page 2; newest first: [2, 1, 0]
        """,
        """
        Ana: I am Ana; and here I am again (8 words)
        Ben: I am Ben; and here I am again (8 words)
        Cho: I am Cho; and here I am again (8 words)
        """,
    ],
}


def _stripped(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join(["", *lines, ""])


def _printed_by(path: Path, directory: Path, **environment: str) -> str:
    """Run an example, which is to exit cleanly and to warn of nothing; return what it prints."""
    # A developer's own tracing would want the network, and a database of theirs is not for the tests.
    others = ("LANGSMITH_", "LANGCHAIN_", "DATABASE_URL")
    env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=directory,
        env={**env, **environment},
    )
    assert (ran.returncode, SLOW_STEP.sub("", ran.stderr)) == (0, "")
    return ran.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    """An example exits cleanly, warns of nothing, and prints what a working saver makes it print."""
    if "import trio" in path.read_text("utf-8"):
        pytest.importorskip("trio")
    with ExitStack() as stack:
        more = {}
        if path.name in WANT_A_DATABASE:
            more["DATABASE_URL"] = stack.enter_context(new_database(needed()))
        said = _printed_by(path, tmp_path, **more)
    assert said
    printed = _stripped(said)
    assert [fact for fact in FACTS.get(path.name, []) if _stripped(fact) not in printed] == [], said


@pytest.mark.parametrize("name", WANT_A_DATABASE)
def test_an_example_says_what_it_needs(name: str, tmp_path: Path) -> None:
    """Where no database is named for the example that wants one, it says in a line how to name it, and that is all."""
    path = next(path for path in EXAMPLES if path.name == name)
    said = _printed_by(path, tmp_path).splitlines()
    assert len(said) == 1
    assert "DATABASE_URL=postgresql://" in said[0]


def test_facts_have_their_examples() -> None:
    """Every example has facts to show, and no facts are listed for an example that is gone."""
    assert {path.name for path in EXAMPLES} == FACTS.keys()
