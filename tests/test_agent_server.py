"""The example server keeps what it says: over HTTP, with a real server on a real port and real clients."""

import asyncio
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from anyio import wait_all_tasks_blocked
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from pydantic import PrivateAttr
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import Self

from examples import agent_server
from examples.agent_server import EchoModel, create_app, thread_id_for

Event = tuple[str, dict[str, Any]]

HELD = 2  # tokens that come before the gate
FLOOD = "flood"  # what is answered with more than the network holds


class Gate:
    """Where the model waits in the middle of an answer."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()


class Model(EchoModel):
    """Waits at a gate in its answers to those messages that have one; fails at "fail"; counts what it answers."""

    pause: float = 0
    _gates: dict[str, Gate] = PrivateAttr(default_factory=dict)
    _answering: int = PrivateAttr(default=0)
    _most_answering: int = PrivateAttr(default=0)

    def gate(self, text: str) -> Gate:
        """Make a gate."""
        return self._gates.setdefault(text, Gate())

    @property
    def answering(self) -> int:
        """How many answers are under way."""
        return self._answering

    @property
    def most_answering(self) -> int:
        """How many were at once, at most."""
        return self._most_answering

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        text, count = messages[-1].text, 0
        self._answering += 1
        self._most_answering = max(self._most_answering, self._answering)
        try:
            if text == FLOOD:
                for _ in range(100):
                    yield ChatGenerationChunk(message=AIMessageChunk("x" * 200_000))
                await self.gate(FLOOD).opened.wait()
            async for chunk in super()._astream(messages, *args, **kwargs):
                if count == HELD and text == "fail":
                    raise RuntimeError("the secret of the server")
                if count == HELD and text in self._gates:
                    self._gates[text].reached.set()
                    await self._gates[text].opened.wait()
                count += 1
                yield chunk
        finally:
            self._answering -= 1


class User:
    """Who talks to the server."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Send a request and read the answer."""
        return await self.http.request(method, path, **kwargs)

    async def post(
        self, name: str, text: str, way: str = "messages", *, body: Any = None, **params: str
    ) -> httpx.Response:
        """Say something and read the whole answer, whatever it is."""
        json = {"message": text, **(body or {})}
        return await self.request("POST", f"/conversations/{name}/{way}", json=json, params=params)

    async def say(self, name: str, text: str, way: str = "messages", *, body: Any = None, **params: str) -> list[Event]:
        """Say something and return all events of the answer."""
        response = await self.post(name, text, way, body=body, **params)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream"
        return [_event(part) for part in response.text.split("\n\n") if part]

    @asynccontextmanager
    async def stream(self, name: str, text: str, **params: str) -> AsyncIterator[AsyncIterator[Event]]:
        """Say something and hand over the events as they come; at the end the client goes away."""
        path, body = f"/conversations/{name}/messages", {"message": text}
        async with self.http.stream("POST", path, json=body, params=params) as response:
            assert response.status_code == 200
            async with aclosing(_events(response)) as events:
                yield events

    async def history(self, name: str) -> Any:
        """Return what the server tells of a conversation."""
        response = await self.request("GET", f"/conversations/{name}/history")
        assert response.status_code == 200
        return response.json()

    async def messages(self, name: str) -> list[str]:
        """Return the texts of a conversation's messages."""
        return _texts((await self.history(name))["checkpoints"][0])


class Served:
    """A server that runs.

    Attributes:
        model: Its model.
        app: The application.
        url: Where it listens.
        ana: One user.
        ben: And another one.
        heard: How many requests the application has heard to their end.
        watch: Called with each message that is to be sent.
    """

    def __init__(self, patience: float) -> None:
        self.model = Model()
        self.app = create_app(self.model, {"ana-token": "ana", "ben-token": "ben"}, patience)
        self.heard = 0
        self.watch: Callable[[Message], object] = bool
        self.url = httpx.URL()
        self.ana: User
        self.ben: User
        self._clients = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.ana, self.ben = await self.user("ana"), await self.user("ben")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._clients.aclose()

    async def client(self, **headers: str) -> httpx.AsyncClient:
        """Return a client of its own connections, which sends these headers."""
        client = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, verify=False, timeout=60)
        return await self._clients.enter_async_context(client)

    async def user(self, name: str) -> User:
        """Return a user who has logged in."""
        return User(await self.client(Authorization=f"Bearer {name}-token"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stand before the application, and see what goes in and out."""

        async def counting() -> Message:
            message = await receive()
            self.heard += message["type"] == "http.request" and not message.get("more_body", False)
            return message

        async def watched(message: Message) -> None:
            self.watch(message)
            await send(message)

        self.heard += scope.get("method") == "DELETE"  # nobody reads its body
        await self.app(scope, counting, watched)

    async def in_turn(self, *requests: Any) -> list["asyncio.Task[Any]"]:
        """Start requests one after the other, each when the one before has come as far as it can."""
        tasks = []
        for request in requests:
            heard = self.heard
            tasks.append(asyncio.create_task(request))
            await _until(lambda heard=heard: self.heard > heard)
            await wait_all_tasks_blocked()
        return tasks

    def is_busy(self, user: str, name: str) -> bool:
        """Tell whether a session is on a conversation."""
        return self.app.state.saver.is_busy(thread_id_for(user, name))


@asynccontextmanager
async def serve(patience: float = 30) -> AsyncIterator[Served]:
    """Run a server on a free port of this machine."""
    served = Served(patience)
    config = uvicorn.Config(served, "127.0.0.1", 0, ws="none", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await _until(lambda: server.started or serving.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    served.url = httpx.URL(f"http://127.0.0.1:{port}")
    async with served:
        yield served
    server.should_exit = True
    await serving


@pytest_asyncio.fixture
async def served(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Served]:
    """A server that runs, and has nothing to complain of."""
    async with serve() as served:
        yield served
    complaints = [*caplog.get_records("call"), *caplog.records]
    assert [record.getMessage() for record in complaints if record.levelno >= logging.WARNING] == []


async def _until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the timeout of the tests is the end of it."""
    while not condition():  # noqa: ASYNC110 - sockets and uvicorn tell nobody
        await asyncio.sleep(0.002)


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    lines: list[str] = []
    async for line in response.aiter_lines():
        if line:
            lines.append(line)
        else:
            yield _event("\n".join(lines))
            lines.clear()


def _event(text: str) -> Event:
    name, data = text.split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def _texts(checkpoint: Any) -> list[str]:
    return [message["text"] for message in checkpoint["messages"]]


def _answer(events: list[Event]) -> str:
    """Return the text of an answer that came to its end."""
    assert [name for name, _ in events] == ["token"] * (len(events) - 1) + ["done"]
    return "".join(data["text"] for _, data in events[:-1])


def _said(count: int, text: str) -> str:
    return f"{count} so far, and you say: {text}"


# A turn.


@pytest.mark.asyncio
async def test_tokens_come_while_the_run_goes_on(served: Served) -> None:
    """One event a token, each when the model has made it: the first ones are read before the model goes on."""
    gate = served.model.gate("hello")
    async with served.ana.stream("trip", "hello") as events:
        first = [await anext(events) for _ in range(HELD)]
        assert first == [("token", {"text": "1 "}), ("token", {"text": "so "})]
        assert served.model.answering == 1
        assert (await served.ana.history("trip"))["busy"]
        gate.opened.set()
        rest = [event async for event in events]
    assert _answer(first + rest) == _said(1, "hello")
    assert len(rest) > 2


@pytest.mark.asyncio
async def test_a_turn_goes_on_from_the_one_before(served: Served) -> None:
    """The model is given what was said before, and the history shows it."""
    assert _answer(await served.ana.say("trip", "one")) == _said(1, "one")
    assert _answer(await served.ana.say("trip", "two")) == _said(3, "two")
    assert await served.ana.messages("trip") == ["one", _said(1, "one"), "two", _said(3, "two")]


@pytest.mark.asyncio
async def test_a_failed_run_says_nothing_of_the_server(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Its stream ends with `error`, the reason is in the log, and the conversation is free."""
    events = await served.ana.say("trip", "fail")
    assert [name for name, _ in events] == ["token"] * HELD + ["error"]
    assert events[-1] == ("error", {})
    assert "the secret of the server" in caplog.text
    caplog.clear()
    assert _answer(await served.ana.say("trip", "again", strategy="reject")) == _said(2, "again")


# A second request while one runs.


@pytest.mark.asyncio
async def test_enqueued_requests_run_in_the_order_they_came(served: Served) -> None:
    """Each when the one before has ended; enqueue is what happens where nothing is said."""
    gate = served.model.gate("0")
    ways = [{}, {"strategy": "enqueue"}, {}, {}]
    tasks = await served.in_turn(*(served.ana.say("trip", f"{i}", **way) for i, way in enumerate(ways)))
    assert served.model.answering == 1
    gate.opened.set()
    answers = [_answer(events) for events in await asyncio.gather(*tasks)]
    assert answers == [_said(2 * i + 1, f"{i}") for i in range(4)]


@pytest.mark.asyncio
async def test_a_request_that_waited_too_long_may_come_again() -> None:
    """It is answered 503, with the time after which to do so, and leaves nothing behind."""
    async with serve(patience=0.05) as served:
        gate = served.model.gate("one")
        [first] = await served.in_turn(served.ana.say("trip", "one"))
        response = await served.ana.post("trip", "two")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        gate.opened.set()
        _answer(await first)
        assert await served.ana.messages("trip") == ["one", _said(1, "one")]


@pytest.mark.asyncio
async def test_a_rejected_request_is_answered_409(served: Served) -> None:
    """With words that name nobody, while the run goes on to its end."""
    gate = served.model.gate("one")
    [first] = await served.in_turn(served.ana.say("trip", "one"))
    response = await served.ana.post("trip", "two", strategy="reject")
    assert (response.status_code, response.json()) == (409, {"error": "another request runs on this conversation"})
    gate.opened.set()
    assert _answer(await first) == _said(1, "one")
    assert await served.ana.messages("trip") == ["one", _said(1, "one")]


@pytest.mark.asyncio
async def test_who_has_read_the_end_finds_the_conversation_free(served: Served) -> None:
    """When `done` is sent the session is over: the next request need not wait."""
    busy = []
    served.watch = lambda message: busy.append((message["type"], served.is_busy("ana", "trip")))
    _answer(await served.ana.say("trip", "hello", strategy="reject"))
    assert busy[0] == ("http.response.start", True)
    assert [body for _, body in busy[1:]] == [True] * (len(busy) - 2) + [False]
    _answer(await served.ana.say("trip", "again", strategy="reject"))


@pytest.mark.asyncio
async def test_an_interrupted_stream_says_so(served: Served) -> None:
    """It ends with `interrupted`; what its run had stored stays, and the other one goes on from there."""
    served.model.gate("one")
    async with served.ana.stream("trip", "one") as events:
        await anext(events)
        assert _answer(await served.ana.say("trip", "two", strategy="interrupt")) == _said(2, "two")
        rest = [event async for event in events]
    assert [name for name, _ in rest] == ["token"] * (HELD - 1) + ["interrupted"]
    assert await served.ana.messages("trip") == ["one", "two", _said(2, "two")]


@pytest.mark.asyncio
async def test_a_rolled_back_run_leaves_nothing(served: Served) -> None:
    """Its stream ends with `interrupted`; the other one goes on from what was there before."""
    await served.ana.say("trip", "zero")
    served.model.gate("one")
    async with served.ana.stream("trip", "one") as events:
        await anext(events)
        assert _answer(await served.ana.say("trip", "two", strategy="rollback")) == _said(3, "two")
        assert [name async for name, _ in events][-1] == "interrupted"
    assert await served.ana.messages("trip") == ["zero", _said(1, "zero"), "two", _said(3, "two")]


@pytest.mark.asyncio
async def test_who_does_not_read_can_be_interrupted(served: Served) -> None:
    """A client that leaves its answer in the network keeps nobody away; its run ends before its session does."""
    answering = []
    served.watch = lambda message: answering.append(
        (b"interrupted" in message.get("body", b""), served.model.answering)
    )
    async with served.ana.stream("trip", FLOOD) as events:
        await anext(events)
        await wait_all_tasks_blocked()
        assert served.model.answering == 1
        assert _answer(await served.ana.say("trip", "two", strategy="interrupt")) == _said(2, "two")
    assert [count for is_interrupted, count in answering if is_interrupted] == [0]
    assert served.model.most_answering == 1


# A client that goes away.


@pytest.mark.asyncio
async def test_a_client_that_goes_away_frees_the_conversation(served: Served) -> None:
    """Its run is cancelled; what that had stored stays."""
    served.model.gate("one")
    async with served.ana.stream("trip", "one") as events:
        await anext(events)
    await _until(lambda: not served.is_busy("ana", "trip"))
    assert served.model.answering == 0
    assert await served.ana.messages("trip") == ["one"]
    assert _answer(await served.ana.say("trip", "two", strategy="reject")) == _said(2, "two")


@pytest.mark.asyncio
async def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(served: Served) -> None:
    """Its message is never said, and who came after it has its turn."""
    gate = served.model.gate("one")
    first, second, third = await served.in_turn(*(served.ana.say("trip", text) for text in ("one", "two", "three")))
    second.cancel()
    gate.opened.set()
    _answer(await first)
    assert _answer(await third) == _said(3, "three")
    assert await served.ana.messages("trip") == ["one", _said(1, "one"), "three", _said(3, "three")]


# History, forks, deletion.


@pytest.mark.asyncio
async def test_the_history_has_the_newest_first(served: Served) -> None:
    """With ids, times, what comes next and the messages; a conversation that does not exist has none."""
    assert await served.ana.history("trip") == {"busy": False, "checkpoints": []}
    await served.ana.say("trip", "one")
    history = await served.ana.history("trip")
    checkpoints = history["checkpoints"]
    assert not history["busy"]
    assert [checkpoint["next"] for checkpoint in checkpoints] == [[], ["model"], ["__start__"]]
    assert [_texts(checkpoint) for checkpoint in checkpoints] == [["one", _said(1, "one")], ["one"], []]
    assert [message["type"] for message in checkpoints[0]["messages"]] == ["human", "ai"]
    for key in ("id", "created"):
        values = [checkpoint[key] for checkpoint in checkpoints]
        assert values == sorted(set(values), reverse=True)


@pytest.mark.asyncio
async def test_a_fork_goes_on_from_an_old_checkpoint(served: Served) -> None:
    """The second message is said otherwise: what came before it stays, and the old branch is still to be read."""
    for text in ("one", "two", "three"):
        await served.ana.say("trip", text)
    before = (await served.ana.history("trip"))["checkpoints"]
    after_one = next(item for item in before if not item["next"] and len(item["messages"]) == 2)
    body = {"checkpoint_id": after_one["id"]}
    assert _answer(await served.ana.say("trip", "other", "fork", body=body)) == _said(3, "other")
    assert await served.ana.messages("trip") == ["one", _said(1, "one"), "other", _said(3, "other")]
    after = (await served.ana.history("trip"))["checkpoints"]
    assert [item for item in after if item in before] == before
    assert _answer(await served.ana.say("trip", "four")) == _said(5, "four")


@pytest.mark.asyncio
async def test_a_fork_can_go_back_to_the_beginning(served: Served) -> None:
    """The first message too can be said otherwise."""
    await served.ana.say("trip", "one")
    first = (await served.ana.history("trip"))["checkpoints"][-1]
    assert _answer(await served.ana.say("trip", "other", "fork", body={"checkpoint_id": first["id"]})) == _said(
        1, "other"
    )
    assert await served.ana.messages("trip") == ["other", _said(1, "other")]


@pytest.mark.asyncio
async def test_a_fork_waits_for_its_turn_too(served: Served) -> None:
    """It is a run on the conversation as any other is."""
    await served.ana.say("trip", "zero")
    body = {"checkpoint_id": (await served.ana.history("trip"))["checkpoints"][0]["id"]}
    gate = served.model.gate("one")
    [first] = await served.in_turn(served.ana.say("trip", "one"))
    assert (await served.ana.post("trip", "x", "fork", body=body, strategy="reject")).status_code == 409
    [fork] = await served.in_turn(served.ana.say("trip", "fork", "fork", body=body))
    assert served.model.answering == 1
    gate.opened.set()
    assert [_answer(await first), _answer(await fork)] == [_said(3, "one"), _said(3, "fork")]


@pytest.mark.asyncio
async def test_a_fork_of_nothing_is_answered_404(served: Served) -> None:
    """A checkpoint that is not there begins no conversation, and the answer leaves it free."""
    body = {"checkpoint_id": "1f000000-0000-6000-8000-000000000000"}
    assert (await served.ana.post("trip", "x", "fork", body=body)).status_code == 404
    assert (await served.ana.history("trip")) == {"busy": False, "checkpoints": []}


@pytest.mark.asyncio
async def test_a_deletion_waits_for_its_turn_too(served: Served) -> None:
    """Otherwise the run would bring the conversation back."""
    gate = served.model.gate("one")
    [first] = await served.in_turn(served.ana.say("trip", "one"))
    refused = await served.ana.request("DELETE", "/conversations/trip", params={"strategy": "reject"})
    [deletion] = await served.in_turn(served.ana.request("DELETE", "/conversations/trip"))
    gate.opened.set()
    _answer(await first)
    assert (refused.status_code, (await deletion).status_code) == (409, 200)
    assert await served.ana.history("trip") == {"busy": False, "checkpoints": []}


# Who may do what.


@pytest.mark.asyncio
async def test_another_user_has_other_conversations(served: Served) -> None:
    """Of the same name: who names it reads, forks, interrupts, rolls back and deletes nobody else's."""
    await served.ana.say("trip", "zero")
    body = {"checkpoint_id": (await served.ana.history("trip"))["checkpoints"][0]["id"]}
    gate = served.model.gate("one")
    async with served.ana.stream("trip", "one") as events:
        first = [await anext(events)]
        assert await served.ben.history("trip") == {"busy": False, "checkpoints": []}
        assert (await served.ben.post("trip", "x", "fork", body=body)).status_code == 404
        for strategy in ("enqueue", "reject", "interrupt", "rollback"):
            assert _answer(await served.ben.say("trip", strategy, strategy=strategy))
        assert len(await served.ben.messages("trip")) == 8
        deletion = await served.ben.request("DELETE", "/conversations/trip", params={"strategy": "interrupt"})
        assert deletion.status_code == 200
        gate.opened.set()
        assert _answer(first + [event async for event in events]) == _said(3, "one")
    assert await served.ana.messages("trip") == ["zero", _said(1, "zero"), "one", _said(3, "one")]


HOSTILE = [
    *(
        "",
        ".",
        "..",
        "%2e%2e",
        "/trip",
        "*",
        "%25",
        "%252F",
        "%FF",
        "a" * 65,
        "a" * 5000,
        "%20trip",
        "trip%20",
        "trip;x",
    ),
    *("%2E%2E%2Ftrip", "..%2f..%2fconversations%2ftrip", "x%2Ftrip", "trip%2Fhistory", "ana%2Ftrip", "ana:trip"),
    *("ana%7Ctrip", "ana%00trip", "trip%00", "trip%0A", "%22,%20%22trip", "%5B%22ana%22,%20%22trip%22%5D"),
]


@pytest.mark.asyncio
async def test_a_hostile_name_is_refused(served: Served) -> None:
    """Whatever one does with it."""
    await served.ana.say("trip", "one")
    answers = {}
    for name in HOSTILE:
        path = f"/conversations/{name}"
        answers[name] = [
            await _raw(served, "POST", f"{path}/messages?strategy=rollback", {"message": "x"}),
            await _raw(served, "POST", f"{path}/fork", {"message": "x", "checkpoint_id": "x"}),
            await _raw(served, "GET", f"{path}/history"),
            await _raw(served, "DELETE", path),
        ]
    assert {name: got for name, got in answers.items() if not set(got) <= {400, 404, 405}} == {}
    assert await served.app.state.saver.acount() == 1
    assert await served.ana.messages("trip") == ["one", _said(1, "one")]


async def _raw(served: Served, method: str, target: str, body: Any = None) -> int:
    """Send a request whose target no client has put in order; return the status."""
    reader, writer = await asyncio.open_connection(served.url.host, served.url.port)
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ben-token\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1])


def test_no_two_conversations_share_a_thread_id() -> None:
    """Also where users and names are made of what could be taken for the place between them."""
    texts = ["".join(some) for length in range(4) for some in itertools.product('a|/:",\\ []', repeat=length)]
    made = {thread_id_for(user, name) for user in texts[:200] for name in texts[:400]}
    assert len(made) == 200 * 400


@pytest.mark.asyncio
async def test_who_has_no_token_is_answered_401(served: Served) -> None:
    """On every path, and nothing is stored."""
    paths = [("POST", "/messages"), ("POST", "/fork"), ("GET", "/history"), ("DELETE", "")]
    tokens = [
        "",
        "ana-token",
        "Bearer",
        "Bearer x",
        "Bearer ana-toke",
        "Bearer ana-token1",
        "Basic ana-token",
        "Bearer \xff",
    ]
    stranger = await served.client()
    for headers in [{}, *({"Authorization": token.encode("latin-1")} for token in tokens)]:
        for method, path in paths:
            response = await stranger.request(method, f"/conversations/trip{path}", headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), headers
    assert await served.app.state.saver.acount() == 0


@pytest.mark.asyncio
async def test_a_body_of_another_kind_is_answered_400(served: Served) -> None:
    """And nothing is stored."""
    contents = [
        *(b"", b"{", b"\xff", b"null", b"[]", b'"message"', b"{}", b'{"message": ""}', b'{"message": null}'),
        *(b'{"message": ["x"]}', b'{"message": "x", "user": "ana"}', b'{"message": "\\ud800"}', b"[" * 100_000),
        json.dumps({"message": "x" * 10_001}).encode(),
    ]
    for content in contents:
        for way in ("messages", "fork"):
            response = await served.ana.request("POST", f"/conversations/trip/{way}", content=content)
            assert response.status_code == 400, content[:40]
            assert "JSON" in response.json()["error"]
    assert await served.app.state.saver.acount() == 0


@pytest.mark.asyncio
async def test_an_unknown_strategy_is_answered_400(served: Served) -> None:
    """With those there are."""
    response = await served.ana.post("trip", "x", strategy="replace")
    assert response.status_code == 400
    assert "enqueue, reject, interrupt, rollback" in response.json()["error"]
    assert await served.app.state.saver.acount() == 0


# Many at once.


@pytest.mark.asyncio
async def test_two_hundred_conversations_at_once(served: Served) -> None:
    """All of them answer at the same time, and each has all of its turns, in order."""
    gate, turns = served.model.gate("begin"), ("begin", "go on", "end")
    # httpx takes long to choose among many connections, so ten clients of each user have ten conversations each.
    users = [await served.user(name) for name in ("ana", "ben") for _ in range(10)]
    everyone = [(user, f"c-{number}") for number, user in enumerate(users * 10)]

    async def talk(user: User, name: str) -> None:
        for turn in turns:
            _answer(await user.say(name, turn))

    tasks = [asyncio.create_task(talk(user, name)) for user, name in everyone]
    await _until(lambda: served.model.answering == 200)
    gate.opened.set()
    await asyncio.gather(*tasks)
    expected = [text for i, turn in enumerate(turns) for text in (turn, _said(2 * i + 1, turn))]
    for user, name in everyone:
        assert await user.messages(name) == expected
    assert await served.app.state.saver.acount() == 200


@pytest.mark.asyncio
async def test_twenty_messages_at_once_on_one_conversation(served: Served) -> None:
    """All of them are in it at the end, each answered after the one before, in one chain of checkpoints."""
    texts = [f"m{number}" for number in range(20)]
    answers = [_answer(events) for events in await asyncio.gather(*(served.ana.say("trip", text) for text in texts))]
    messages = await served.ana.messages("trip")
    assert sorted(messages[::2]) == sorted(texts)
    assert sorted(messages[1::2]) == sorted(answers)
    assert messages[1::2] == [_said(2 * i + 1, text) for i, text in enumerate(messages[::2])]
    config = {"configurable": {"thread_id": thread_id_for("ana", "trip")}}
    chain = [item async for item in served.app.state.saver.alist(config)]
    ids = [item.config["configurable"]["checkpoint_id"] for item in chain]
    parents = [item.parent_config and item.parent_config["configurable"]["checkpoint_id"] for item in chain]
    assert parents == [*ids[1:], None]
    assert len(ids) == 60


# As a script.


@pytest.mark.skipif(sys.platform == "win32", reason="needs a SIGINT for one process")
def test_the_script_serves_until_it_is_interrupted() -> None:
    """It says where it listens, answers, and ends at Ctrl-C with nothing odd to say."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH_", "LANGCHAIN_"))}
    path = Path(agent_server.__file__)
    command = [sys.executable, "-W", "error", "-X", "dev", str(path), "0"]
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"running on (http://\S+)", line):
                    break
            assert found, "".join(said)
            url = f"{found[1]}/conversations/trip/messages"
            headers = {"Authorization": "Bearer anas-token"}
            response = httpx.post(url, json={"message": "hello"}, headers=headers, trust_env=False, timeout=60)
            process.send_signal(signal.SIGINT)
            said.extend(process.stderr)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert response.text.endswith("event: done\ndata: {}\n\n")
    assert [line for line in said if not line.startswith("INFO: ")] == []
