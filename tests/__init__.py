"""The tests; `python -m pytest` runs them."""

import os

if os.environ.get("ASYNC_SAVER_THROUGH") == "unprepared":
    import psycopg

    # What `connect` has if nothing is said. In place of asking each test that makes a store, also in another process.
    psycopg.Connection.connect.__func__.__kwdefaults__["prepare_threshold"] = None
