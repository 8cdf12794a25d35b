"""One of several processes that race for the quotas of all tokens in a database.

Started with the settings of the database as JSON and the file to which every granted request is written as a line with its
token's id. It says `ready`, waits for a line, takes until every token refuses, returns what it did not use, then prints how many
requests it asked for.
"""

import asyncio
import json
import os
import random
import sys

from llm_proxy import tokens
from llm_proxy.db import open_database
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, DatabaseUnavailable
from llm_proxy.limits.quota import Quota
from llm_proxy.settings import load
from llm_proxy.tokens import Token

AT_ONCE = 8


async def exhaust(quota: Quota, token: Token, granted: int) -> int:
    """Take until refused; returns how often it asked."""
    asked = 0
    while True:
        asked += 1
        try:
            await quota.take(token)
        except DatabaseUnavailable:
            continue
        except ApiError as error:
            assert error.code == "request_limit_exhausted", error.code
            return asked
        # Whole lines reach the file even if the process is killed right after.
        os.write(granted, f"{token.id}\n".encode())


async def race(settings: str, path: str) -> None:
    """Take part in the race."""
    granted = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with open_database(load(overrides=json.loads(settings))) as database:
        quota = Quota(database)
        left = await tokens.find(database, Page(limit=1000))
        random.shuffle(left)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def work() -> int:
            asked = 0
            while left:
                asked += await exhaust(quota, left.pop(), granted)
            return asked

        asked = sum(await asyncio.gather(*(work() for _ in range(AT_ONCE))))
        await quota.settle()
        print(asked, flush=True)


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
