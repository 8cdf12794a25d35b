"""A body that came with its head behaves as a stream that has ended."""

import asyncio

from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.inbound import WholeBody


@given(data=st.binary(min_size=1, max_size=50), ways=st.lists(st.booleans(), max_size=4))
async def test_a_whole_body_reads_like_aiohttps_stream(data: bytes, ways: list[bool]) -> None:
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    stream.feed_data(data)
    stream.feed_eof()
    whole = WholeBody(data)
    for at_once in ways:
        assert (whole.is_eof(), whole.at_eof(), whole.exception()) == (stream.is_eof(), stream.at_eof(), stream.exception())
        assert whole.total_bytes == stream.total_bytes
        if at_once:
            assert whole.read_nowait() == stream.read_nowait()
        else:
            assert await whole.readany() == await stream.readany()
