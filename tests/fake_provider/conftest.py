"""The fake provider at an address, and the real clients that ask it."""

from collections.abc import AsyncIterator

import aiohttp
import anthropic
import openai
import pytest

from llm_proxy.fake_provider import running


@pytest.fixture
async def base() -> AsyncIterator[str]:
    async with running() as url:
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


@pytest.fixture
async def oai(base: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="sk-any", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(base: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=base, api_key="sk-any", max_retries=0) as client:
        yield client
