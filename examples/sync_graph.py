"""A plain sync program on AsyncSaver: invoke, stream, state and history, from one worker thread or from many.

There is no event loop to start and nothing to set up: the sync methods of the saver find their own.

    python examples/sync_graph.py
"""

import operator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph

from async_saver import AsyncSaver


class Cart(TypedDict):
    """What a customer has put into the cart, and its price."""

    items: Annotated[list[str], operator.add]
    total: int


def price(cart: Cart) -> dict[str, int]:
    return {"total": sum({"tea": 4, "cake": 6, "jam": 5}[item] for item in cart["items"])}


def conversation(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def main() -> None:
    builder = StateGraph(Cart)
    builder.add_node("price", price)
    builder.add_edge(START, "price")
    builder.add_edge("price", END)

    with AsyncSaver() as saver:
        graph = builder.compile(checkpointer=saver)
        ana = conversation("ana")

        print("1. invoke, then stream: the second run goes on from the first")
        print(f"   invoke: {graph.invoke({'items': ['tea']}, ana)}")
        for update in graph.stream({"items": ["cake"]}, ana, stream_mode="updates"):
            print(f"   stream: {update}")

        print("\n2. get_state and get_state_history")
        print(f"   now: {graph.get_state(ana).values}")
        for state in graph.get_state_history(ana):
            print(f"   step {state.metadata['step']:2}: {state.values}")

        print("\n3. Eight customers, three items each, from eight worker threads")

        def shop(number: int) -> Cart:
            for item in ("tea", "jam", "jam" if number % 2 else "cake"):
                graph.invoke({"items": [item]}, conversation(f"customer-{number}"))
            return graph.get_state(conversation(f"customer-{number}")).values

        with ThreadPoolExecutor(max_workers=8) as pool:
            for number, cart in enumerate(pool.map(shop, range(8))):
                print(f"   customer-{number}: {', '.join(cart['items'])}; total {cart['total']}")


if __name__ == "__main__":
    main()
