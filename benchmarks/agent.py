"""The agent that is measured: LangGraph's ReAct agent with a model that answers at once, and what is said to it."""

import random
import warnings
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from typing_extensions import Self

PER_TURN = 4  # messages: a question, a tool call, its result, an answer


def _prose(characters: int) -> str:
    """Return made-up words, the same in every process."""
    chance = random.Random(1)
    syllables = ["ba", "be", "ka", "lo", "mi", "na", "or", "pe", "ra", "si", "ta", "un", "ve", "we", "xi", "yo"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 5))) for _ in range(2000)]
    return " ".join(chance.choices(words, k=characters // 5))[:characters]


_PROSE = _prose(3_000_000)  # nothing that is measured comes to its end, where it would begin again


class Talk:
    """Makes messages of 150 to 400 characters, each different, and the same ones in every talk of a number."""

    def __init__(self, number: int = 0) -> None:
        self._said = number * 250  # what 50 turns take
        self._chance = random.Random(2 + number)

    def text(self, least: int = 150, most: int = 400) -> str:
        """Return what is said next: a string of its own, as what comes over a network is."""
        self._said += 1
        begin = self._said * 400 % (len(_PROSE) - 400)
        return _PROSE[begin : begin + self._chance.randint(least, most)]

    def name(self) -> str:
        """Return an id of the usual length."""
        return f"{UUID(int=self._chance.getrandbits(128))}"

    def question(self) -> HumanMessage:
        """Return what a person says; its id is given by LangGraph."""
        return HumanMessage(self.text())

    def reply(self, last: BaseMessage) -> AIMessage:
        """Return what a model says: it calls the tool for a person, and answers after the tool."""
        asked = isinstance(last, HumanMessage)
        call = {"name": "look_up", "args": {"query": self.text(20, 60)}, "id": f"call_{self.name()}"}
        read, written = self._chance.randint(500, 5000), self._chance.randint(20, 200)
        return AIMessage(
            self.text() if asked else self.text(190, 210),
            id=f"chatcmpl-{self.name()}",
            tool_calls=[call] if asked else [],
            usage_metadata={"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
            response_metadata={
                "model_name": "model-1",
                "finish_reason": "tool_calls" if asked else "stop",
                "system_fingerprint": f"fp_{self.name()[:10]}",
            },
        )

    def result(self, call: AIMessage) -> ToolMessage:
        """Return what the tool says, as LangGraph's tool node would."""
        return ToolMessage(self.text(), name="look_up", id=self.name(), tool_call_id=call.tool_calls[0]["id"])

    def messages(self, count: int) -> list[BaseMessage]:
        """Return so many messages of a conversation, as an agent's state has them."""
        said: list[BaseMessage] = []
        while len(said) < count:
            question = self.question()
            question.id = self.name()
            call = self.reply(question)
            result = self.result(call)
            said += [question, call, result, self.reply(result)]
        return said[:count]


class Model(BaseChatModel):
    """A chat model that costs as little as one can."""

    talk: Any

    @property
    def _llm_type(self) -> str:
        return "benchmark"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Self:
        """Return itself: it knows its tool."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.talk.reply(messages[-1]))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)


class Agent:
    """Runs turns of conversations, each turn one `ainvoke` of four messages and five checkpoints."""

    def __init__(self, saver: Any, talk_number: int = 0) -> None:
        self._talk = talk = Talk(talk_number)

        @tool
        async def look_up(query: str) -> str:
            """Look something up."""
            return talk.text()

        with warnings.catch_warnings():
            # LangGraph 1 says that it moves to the langchain package, which is not needed for anything else here.
            warnings.simplefilter("ignore")
            from langgraph.prebuilt import create_react_agent

            self.graph = create_react_agent(Model(talk=talk), [look_up], checkpointer=saver)

    async def turn(self, number: int) -> None:
        """Let a conversation go on by one turn."""
        await self.graph.ainvoke({"messages": [self._talk.question()]}, named(number))

    async def said(self, number: int) -> list[tuple[str, str]]:
        """Return the types and texts of a conversation's messages, as they are stored."""
        state = await self.graph.aget_state(named(number))
        assert not state.next, "the last turn has not come to its end"
        return [(message.type, message.content) for message in state.values["messages"]]


def named(number: int | str) -> Any:
    """Return the config of a conversation."""
    return {"configurable": {"thread_id": f"{number}", "checkpoint_ns": ""}}
