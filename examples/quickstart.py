"""Several agents at once on one AsyncSaver: memory, history, time travel, and a person's approval.

The agent is an ordinary LangGraph graph on asyncio. Its model is scripted, so that it needs no key and no network;
`model = ScriptedModel()` is the line to change for a real one.

    python examples/quickstart.py
"""

import asyncio
import re
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt

from async_saver import AsyncSaver

FORECAST = {"Paris": "sunny", "Oslo": "snow", "Lima": "fog", "Rome": "rain"}


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"{city}: {FORECAST[city]}"


@tool
def book_flight(city: str) -> str:
    """Book a flight to a city, if a person approves."""
    approved = interrupt(f"May I book a flight to {city}?")
    return f"Your flight to {city} is booked." if approved else f"No flight to {city} was booked."


class ScriptedModel(BaseChatModel):
    """Stands in for a chat model. What it knows of a conversation is only the messages it is given."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> "ScriptedModel":
        """Need no telling: the script knows its tools."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        asked = messages[-1].text
        if isinstance(messages[-1], ToolMessage):
            return AIMessage(asked)
        for name, wanted in {"get_weather": r"weather in (\w+)", "book_flight": r"[Bb]ook .* to (\w+)"}.items():
            if found := re.search(wanted, asked):
                call = {"name": name, "args": {"city": found[1]}, "id": f"call-{len(messages)}"}
                return AIMessage("", tool_calls=[call])
        said = " ".join(message.text for message in messages if message.type == "human")
        names = re.findall(r"I am (\w+)", said) or ["a stranger"]
        cities = re.findall(r"weather in (\w+)", said) or ["no city"]
        return AIMessage(f"You are {names[-1]}, and you asked about {' and '.join(cities)}.")


def build_agent(saver: AsyncSaver) -> CompiledStateGraph:
    tools = [get_weather, book_flight]
    model = ScriptedModel()  # or init_chat_model("...") of the langchain package
    model_with_tools = model.bind_tools(tools)

    async def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model_with_tools.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", call_model)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile(checkpointer=saver)


def conversation(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


async def ask(agent: CompiledStateGraph, config: RunnableConfig, question: str) -> str:
    result = await agent.ainvoke({"messages": [("user", question)]}, config)
    return result["messages"][-1].text


async def main() -> None:
    async with AsyncSaver() as saver:
        agent = build_agent(saver)
        people = {"Ana": "Paris", "Ben": "Oslo", "Cho": "Lima"}
        ana, ben, cho = map(conversation, people)

        print("1. Three conversations at once")
        questions = [f"I am {name}. What is the weather in {city}?" for name, city in people.items()]
        turns = [ask(agent, config, question) for config, question in zip((ana, ben, cho), questions, strict=True)]
        for question, answer in zip(questions, await asyncio.gather(*turns), strict=True):
            print(f"   {question}  ->  {answer}")

        print("\n2. A second turn: each remembers its own first one")
        second = "Who am I, and what did I ask about?"
        answers = await asyncio.gather(*[ask(agent, config, second) for config in (ana, ben, cho)])
        for name, answer in zip(people, answers, strict=True):
            print(f"   {name}: {second}  ->  {answer}")

        print("\n3. The history of Ana's conversation, newest first")
        history = [state async for state in agent.aget_state_history(ana)]
        for state in history:
            following = ", ".join(state.next) or "nothing, the turn is over"
            print(f"   step {state.metadata['step']:2}; messages: {len(state.values['messages'])}; next: {following}")

        print("\n4. Time travel: back to the end of Ana's first turn, and on from there by another way")
        fork = next(state for state in history if not state.next and len(state.values["messages"]) == 4)
        await ask(agent, fork.config, "And what is the weather in Rome?")
        print(f"   the new branch:  {await ask(agent, ana, second)}")
        first_branch = await agent.aget_state(history[0].config)
        print(f"   the first one, as it was:  {first_branch.values['messages'][-1].text}")

        print("\n5. Ben's and Cho's agents want to book a flight, and wait for a person")
        for name, config in {"Ben": ben, "Cho": cho}.items():
            await ask(agent, config, f"Book a flight to {people[name]}.")
            paused = await agent.aget_state(config)
            print(f"   {name}'s agent is paused in: {paused.next[0]}. It asks: {paused.interrupts[0].value}")
        bens, chos = await asyncio.gather(
            agent.ainvoke(Command(resume=True), ben), agent.ainvoke(Command(resume=False), cho)
        )
        print(f"   Ben says yes  ->  {bens['messages'][-1].text}")
        print(f"   Cho says no  ->  {chos['messages'][-1].text}")


if __name__ == "__main__":
    asyncio.run(main())
