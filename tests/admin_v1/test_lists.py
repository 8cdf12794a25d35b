"""Lists are whole for scripts that know no pages, and bounded all the same."""

import pytest
from stage.management import Management


@pytest.mark.parametrize(("path", "name"), [("master-keys", "master_keys"), ("credentials", "credentials")])
async def test_a_list_can_be_read_in_pieces(each_api: Management, path: str, name: str) -> None:
    for number in (3, 1, 2, 0):
        await each_api.done("POST", f"/admin/v1/{path}", {"name": "k", "id": f"k{number}"})
    found, after = [], ""
    while True:
        page = await each_api.done("GET", f"/admin/v1/{path}?limit=3{after}")
        found += [one["id"] for one in page[name]]
        after = f"&after={page['next']}"
        if not page["has_more"]:
            break
    assert found == ["k0", "k1", "k2", "k3"]
    assert page["next"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=a/b", "after=", "status=active"])
async def test_a_wrong_parameter_is_refused(api: Management, query: str) -> None:
    for path in ("providers", "master-keys", "credentials"):
        status, code, param = await api.refused("GET", f"/admin/v1/{path}?{query}")
        assert (status, code, param) == (400, "invalid_field", query.partition("=")[0])
