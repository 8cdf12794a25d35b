"""How many tokens a project has, on both databases."""

from stage.house import TESTER, House

from llm_proxy import token_counts
from llm_proxy.acts import tokens


async def test_all_are_counted_and_those_that_are_good(each_house: House) -> None:
    database = each_house.context.database
    one, other = await each_house.project("http://127.0.0.1:1"), await each_house.project("http://127.0.0.1:1")
    assert await token_counts.count(database, one) == (0, 0)
    for _ in range(3):
        await each_house.token(one)
    await each_house.token(one, expires_at=None)
    await each_house.token(other)
    made, _ = await tokens.create(each_house.context, TESTER, {"project_id": one})
    await tokens.revoke(each_house.context, TESTER, made.id)
    late, _ = await tokens.create(each_house.context, TESTER, {"project_id": one})
    await database.execute("UPDATE tokens SET expires_at = 1 WHERE id = :id", {"id": late.id})
    assert await token_counts.count(database, one) == (6, 4)
