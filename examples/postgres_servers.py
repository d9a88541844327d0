"""Two servers, one conversation: sessions keep their turns apart, one server is killed, and the other goes on.

    DATABASE_URL=postgresql://user:password@host:5432/database python examples/postgres_servers.py

It needs `pip install 'async-saver[postgres]' 'psycopg[binary]'`. In the database it makes the tables that it needs,
unless they are there, and one conversation, which it deletes at its end. The servers stand for those of a web service
behind a load balancer: a conversation's messages come to any of them, several at once if its user is quick. They are
processes here, and would be on machines of their own.
"""

import asyncio
import multiprocessing
import operator
import os
import signal
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Annotated, Any, TypedDict
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from async_saver import AsyncSaver

FATAL = "Are you there?"


class Chat(TypedDict):
    """What was said, each message with its answer behind it."""

    said: Annotated[list[str], operator.add]


def power_cut() -> None:
    """End this process as a power cut does: nothing is closed, flushed or told."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has one name for it


def build(saver: AsyncSaver, server: str) -> CompiledStateGraph:
    async def think(state: Chat) -> dict[str, list[str]]:
        """Stand for a step that takes a model its time; it leaves half a turn behind, if it is the last one."""
        await asyncio.sleep(0.02)
        return {"said": []}

    async def answer(state: Chat) -> dict[str, list[str]]:
        if server == "A" and state["said"][-1] == FATAL:
            power_cut()
        return {"said": [f"Message {len(state['said']) // 2 + 1}, answered"]}

    builder = StateGraph(Chat)
    builder.add_sequence([think, answer])
    builder.add_edge(START, "think")
    return builder.compile(checkpointer=saver)


def config_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


async def turn(saver: AsyncSaver, server: str, thread_id: str, message: str, session_kwargs: dict[str, Any]) -> str:
    """Answer a message, after all turns that have come before, whichever server has them."""
    async with saver.session(thread_id, **session_kwargs) as session:
        chat = await build(saver, server).ainvoke({"said": [message]}, session.config, durability="sync")
    return str(chat["said"][-1])


async def serve(url: str, server: str, thread_id: str, line: Connection) -> None:
    """Answer several messages at once, as a web server does, until there are no more."""
    async with AsyncSaver.from_conn_string(url, pool_size=2) as saver:
        line.send("ready")
        while (messages := await asyncio.to_thread(line.recv)) is not None:
            turns = [turn(saver, server, thread_id, message, kwargs) for message, kwargs in messages]
            line.send(await asyncio.gather(*turns))


def run_server(*options: Any) -> None:
    asyncio.run(serve(*options))


class Server:
    """A server, as its clients see it."""

    def __init__(self, url: str, name: str, thread_id: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._line, theirs = spawn.Pipe()
        self._process = spawn.Process(target=run_server, args=(url, name, thread_id, theirs))
        self._process.start()
        theirs.close()
        self._line.recv()

    def send(self, *messages: str, **session_kwargs: Any) -> None:
        """Send it messages, all at once."""
        self._line.send([(message, session_kwargs) for message in messages])

    def answers(self) -> list[str] | None:
        """Wait for the answers; None if it has died."""
        try:
            return list(self._line.recv())
        except EOFError:
            return None

    def stop(self) -> None:
        """Have it end, and wait for that."""
        if self._process.is_alive():
            self._line.send(None)
        self._process.join()
        self._line.close()


def main() -> None:
    url, thread_id = os.environ.get("DATABASE_URL"), f"chat-{uuid4()}"
    if not url:
        print("run it with DATABASE_URL=postgresql://user:password@host:5432/database in the environment")
        return
    if not find_spec("psycopg") or not find_spec("psycopg_pool"):
        print("run it after: pip install 'async-saver[postgres]' 'psycopg[binary]'")
        return
    a, b = Server(url, "A", thread_id), Server(url, "B", thread_id)

    print("1. Ten messages at once, five to each server")
    a.send(*(f"From A: {number}" for number in range(5)))
    b.send(*(f"From B: {number}" for number in range(5)))
    answers = [*(a.answers() or []), *(b.answers() or [])]
    numbered = [f"Message {number}, answered" for number in range(1, 11)]
    print(f"   each has seen all turns before its own: {sorted(answers) == sorted(numbered)}")

    print("2. Server A is killed in the middle of a turn")
    a.send(FATAL)
    print(f"   server A: {a.answers()}")
    # Nobody would have the conversation for up to 30 seconds, until A's lease has run out. "rollback" asks A to end,
    # gives it a second for that, takes its place, and undoes what of the turn is stored.
    print("   the message is sent again, to server B")
    b.send(FATAL, multitask_strategy="rollback", timeout=1)
    print(f"   server B: {b.answers()}")

    print("3. Server B goes on")
    b.send("Good", "Goodbye")
    print(f"   server B: {b.answers()}")
    a.stop()
    b.stop()

    print("4. What is stored")
    with AsyncSaver.from_conn_string(url, pool_size=2) as saver:
        said = build(saver, "").get_state(config_of(thread_id)).values["said"]
        saver.delete_thread(thread_id)
    assert said[1::2] == [f"Message {number}, answered" for number in range(1, 14)]
    print(f"   messages: {len(said[::2])}, of which {said.count(FATAL)} is: {FATAL}")
    print(f"   from each server's users, in their order: {in_order(said, 'A') and in_order(said, 'B')}")


def in_order(said: list[str], server: str) -> bool:
    """Tell whether one server's messages are there in the order in which they came to it."""
    theirs = [message for message in said if message.startswith(f"From {server}")]
    return theirs == [f"From {server}: {number}" for number in range(5)]


if __name__ == "__main__":
    main()
