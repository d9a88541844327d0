"""A chat server: conversations over HTTP, one run at a time on each, tokens streamed as server-sent events.

    python examples/agent_server.py

    curl -N localhost:8000/conversations/trip/messages -H 'Authorization: Bearer anas-token' -d '{"message": "Hello"}'
    curl localhost:8000/conversations/trip/history -H 'Authorization: Bearer anas-token'
    curl -N localhost:8000/conversations/trip/fork -H 'Authorization: Bearer anas-token' \
        -d '{"checkpoint_id": "an id of the history", "message": "Goodbye"}'
    curl -X DELETE localhost:8000/conversations/trip -H 'Authorization: Bearer anas-token'

`?strategy=` says what a request does while another one runs on its conversation: enqueue (the default: wait for it),
reject (be answered 409), interrupt (end it, and go on from what it has stored) or rollback (end it and undo what it has
stored). A stream ends with the event `done`, `interrupted` (another request has ended it) or `error`.

One worker process: the conversations, and who runs on which, are in this process's memory. Several workers need a store
that all of them share, which comes in a later release.

The model repeats what it is told, so that this runs with no key; `main` has the line to change.
"""

import asyncio
import gc
import json
import logging
import re
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, get_args

import uvicorn
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from async_saver import (
    AsyncSaver,
    MultitaskStrategy,
    Session,
    SessionInterruptedError,
    SessionLostError,
    ThreadBusyError,
)

log = logging.getLogger("agent_server")


class EchoModel(BaseChatModel):
    """Stands in for a chat model: counts the messages it is given and repeats the last one, word by word."""

    pause: float = 0.1

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self._words(messages))))])

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for word in self._words(messages):
            await asyncio.sleep(self.pause)
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))

    def _words(self, messages: list[BaseMessage]) -> list[str]:
        return re.findall(r"\S+\s*", f"{len(messages)} so far, and you say: {messages[-1].text}")


def build_graph(model: BaseChatModel, saver: AsyncSaver) -> CompiledStateGraph:
    async def call_model(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        # The config carries the stream's callbacks; before Python 3.11 nothing else does.
        return {"messages": [await model.ainvoke(state["messages"], config)]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", call_model)
    builder.add_edge(START, "model")
    return builder.compile(checkpointer=saver)


# Who asks, and for which conversation.


def user_of(request: Request) -> str:
    """Return whose token the request bears. A real server asks its identity provider."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    found = None
    for known, user in request.app.state.users.items():
        if secrets.compare_digest(token.encode(), known.encode()):
            found = user
    if found is None or scheme.lower() != "bearer":
        raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
    return found


def thread_id_for(user: str, name: str) -> str:
    """Return the thread_id of a user's conversation: no two pairs have the same, whatever is in them."""
    return json.dumps([user, name])


def thread_id_of(request: Request) -> str:
    """Return the thread_id that a request is about. The user is never taken from what the request says itself."""
    user, name = user_of(request), request.path_params["name"]
    if not re.fullmatch(r"[\w-]{1,64}", name):
        raise HTTPException(400, "a conversation's name is 1 to 64 letters, digits, - and _")
    return thread_id_for(user, name)


def session_of(request: Request) -> Session:
    """Return the session that a request wants, not entered yet."""
    thread_id, strategy = thread_id_of(request), request.query_params.get("strategy", "enqueue")
    if strategy not in get_args(MultitaskStrategy):
        raise HTTPException(400, f"strategy is one of {', '.join(get_args(MultitaskStrategy))}")
    state = request.app.state
    return state.saver.session(thread_id, multitask_strategy=strategy, timeout=state.patience)


async def texts_of(request: Request, *keys: str) -> list[str]:
    """Return the texts in the body, a JSON object with exactly these keys."""
    try:
        body = json.loads(await request.body())
        texts = [body.pop(key) for key in keys]
        if not body and all(0 < len(text.encode()) <= 10_000 for text in texts):
            return texts
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ClientDisconnect):
        pass
    raise HTTPException(400, f"the body is a JSON object of {' and '.join(keys)}: texts of 1 to 10000 bytes")


# What they ask for.


class Turn:
    """The response that runs the graph: an ASGI application, so that one task can do all of it.

    A session is entered and left by the task that runs the graph. A generator in a StreamingResponse would be run by
    one task and, after a disconnect, closed by another or by nobody.
    """

    def __init__(self, graph: CompiledStateGraph, session: Session, message: str, **place: str):
        self.graph = graph
        self.session = session
        self.inputs = {"messages": [("user", message)]}
        self.place = place  # an old checkpoint_id, or nothing
        self.config: RunnableConfig = {"configurable": {"thread_id": session.thread_id, **place}}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run in a task of its own; cancel that, also while it waits for its turn, when the client goes away."""
        run = asyncio.create_task(self.run(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            run.cancel()
            gone.cancel()
            await asyncio.gather(run, gone, return_exceptions=True)
        if not run.cancelled():
            run.result()

    async def run(self, send: Send) -> None:
        started = False
        try:
            async with self.session:
                if self.place and (await self.graph.aget_state(self.config)).created_at is None:
                    raise HTTPException(404, "no such checkpoint")  # LangGraph would begin from nothing
                # Only now is it known that this is no 404, 409 or 503.
                headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                started = True
                # With aclosing the run has ended where the session ends, also if it is cancelled in send().
                async with aclosing(self.graph.astream(self.inputs, self.config, stream_mode="messages")) as stream:
                    async for chunk, _ in stream:
                        if isinstance(chunk, AIMessage) and chunk.text:
                            await send(event("token", more=True, text=chunk.text))
            last = "done"
        except (SessionInterruptedError, SessionLostError):
            if not started:
                raise
            last = "interrupted"
        except Exception:
            if not started:
                raise
            log.exception("a run has failed")  # the log may tell what; the client is not told
            last = "error"
        # The session is over: who reads this finds the conversation free.
        await send(event(last, more=False))


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(name: str, *, more: bool, **data: Any) -> dict[str, Any]:
    """Return what sends a server-sent event."""
    body = f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": more}


async def post_message(request: Request) -> Turn:
    """Say something, and stream the answer."""
    session = session_of(request)
    [message] = await texts_of(request, "message")
    return Turn(request.app.state.graph, session, message)


async def post_fork(request: Request) -> Turn:
    """Go back to an old checkpoint, say something else there, and stream the answer. The old branch stays."""
    session = session_of(request)
    checkpoint_id, message = await texts_of(request, "checkpoint_id", "message")
    return Turn(request.app.state.graph, session, message, checkpoint_id=checkpoint_id)


async def get_history(request: Request) -> JSONResponse:
    """Show the latest checkpoints, the newest first. Where `next` is empty a turn has ended: fork from one of these."""
    thread_id = thread_id_of(request)
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    checkpoints = [
        {
            "id": state.config["configurable"]["checkpoint_id"],
            "created": state.created_at,
            "next": state.next,
            "messages": [{"type": message.type, "text": message.text} for message in state.values.get("messages", [])],
        }
        async for state in request.app.state.graph.aget_state_history(config, limit=100)
    ]
    busy = await request.app.state.saver.ais_busy(thread_id)
    return JSONResponse({"busy": busy, "checkpoints": checkpoints})


async def delete_conversation(request: Request) -> JSONResponse:
    """Delete a conversation, in a session: a run that went on would bring it back."""
    async with session_of(request) as session:
        await request.app.state.saver.adelete_thread(session.thread_id)
    return JSONResponse({})


async def on_http_error(request: Request, exc: HTTPException) -> JSONResponse:
    return JSONResponse({"error": exc.detail}, exc.status_code, exc.headers)


async def on_conflict(request: Request, exc: Exception) -> JSONResponse:
    """Answer who could not begin. What the error itself says names users and tasks: it is for the log."""
    if isinstance(exc, ThreadBusyError) and request.query_params.get("strategy") != "reject":
        return JSONResponse({"error": "waited too long for other requests"}, 503, {"Retry-After": "1"})
    return JSONResponse({"error": "another request runs on this conversation"}, 409)


def create_app(model: BaseChatModel, users: Mapping[str, str], patience: float = 30) -> Starlette:
    """Return the server.

    Args:
        model: Who answers.
        users: Whose token it is, by token.
        patience: How many seconds a request waits for its turn, or lets the run that it ends unwind.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncSaver() as saver:
            app.state.saver = saver
            app.state.graph = build_graph(model, saver)
            yield

    app = Starlette(
        routes=[
            Route("/conversations/{name}/messages", post_message, methods=["POST"]),
            Route("/conversations/{name}/fork", post_fork, methods=["POST"]),
            Route("/conversations/{name}/history", get_history),
            Route("/conversations/{name}", delete_conversation, methods=["DELETE"]),
        ],
        exception_handlers={
            HTTPException: on_http_error,
            ThreadBusyError: on_conflict,
            SessionInterruptedError: on_conflict,
        },
        lifespan=lifespan,
    )
    app.state.users = users
    app.state.patience = patience
    return app


def main() -> None:
    model = EchoModel()  # or init_chat_model("...") of the langchain package
    app = create_app(model, {"anas-token": "ana", "bens-token": "ben"})
    gc.collect()
    gc.freeze()  # what is loaded by now is not looked at again
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # At shutdown, runs have so many seconds to end by themselves.
    uvicorn.run(app, port=port, ws="none", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
