"""The life of a call, through the front door."""

import aiohttp
from stage.house import House


async def test_a_call_with_a_token_reaches_the_provider(house: House, fake: str) -> None:
    token = await house.token_for(fake)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
        async with client.post(f"{house.url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            assert "hello" in await reply.text()
    assert [event.outcome for event in house.events] == ["completed"]
