"""A page for people, JSON for programs; problems stand beside their fields."""

import pytest
from stage.visitor import Visitor

from llm_proxy.admin.visits import problems_of
from llm_proxy.errors import AlreadyExists, ApiError, DatabaseUnavailable, InvalidField, NotFound

NAMES = {"name": None, "allowed_models": None, "model_mapping": None}


@pytest.mark.parametrize(
    ("error", "problems"),
    [
        (InvalidField("name", "give text."), {"name": "Give text."}),
        (InvalidField("allowed_models[2]", "give text."), {"allowed_models": "allowed_models[2]: give text."}),
        (InvalidField("model_mapping.gpt-4*", "no."), {"model_mapping": "model_mapping.gpt-4*: no."}),
        (InvalidField("unknown", "no."), {"": "unknown: no."}),
        (AlreadyExists("There is one.", "name"), {"name": "There is one."}),
        (AlreadyExists("There is one."), {"": "There is one."}),
        (ApiError("masked_secret", "name: it is masked.", param="name"), {"name": "It is masked."}),
    ],
)
def test_a_problem_stands_beside_its_field(error: ApiError, problems: dict[str, str]) -> None:
    found = problems_of(error, NAMES)
    assert {name: text.lower() for name, text in found.items()} == {name: text.lower() for name, text in problems.items()}
    assert all(text[0].isupper() for name, text in found.items() if name == "name")


@pytest.mark.parametrize("error", [NotFound("project"), DatabaseUnavailable()], ids=lambda error: error.code)
def test_what_is_about_no_field_is_a_page_of_its_own(error: ApiError) -> None:
    with pytest.raises(ApiError) as caught:
        problems_of(error, NAMES)
    assert caught.value is error


async def test_errors_are_pages_for_people_and_json_for_programs(visitor: Visitor) -> None:
    for path in (
        "/admin/projects/none",
        "/admin/nothing",
        "/admin/tokens?after=x",
        "/admin/audit-export/pdf",
        "/admin/audit/none",
    ):
        page = await visitor.get(path)
        assert page.status in (400, 404), path
        assert page.headers["Content-Type"].startswith("text/html")
        assert page.headers["X-Request-ID"] in page.text
        assert (await visitor.get(path, Accept="*/*")).headers["Content-Type"] == "application/json"
    for path in ("/admin/v1/providers", "/admin/static/nothing", "/health/detailed"):
        assert (await visitor.get(path)).headers["Content-Type"] == "application/json"


async def test_a_page_of_an_error_has_the_headers_of_the_error(visitor: Visitor) -> None:
    page = await visitor.get("/admin/logout")
    assert (page.status, page.headers["Allow"]) == (405, "POST")
    assert page.headers["Content-Type"].startswith("text/html") and page.headers["Cache-Control"] == "no-store"


async def test_a_field_that_comes_twice_and_a_form_of_another_kind_are_refused(visitor: Visitor) -> None:
    form = (await visitor.get("/admin/new-project")).form("/admin/projects")
    twice = f"seal={form.fields['seal']}&name=a&name=b"
    headers = {"Origin": visitor.url, "Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
    async with visitor.session.post(visitor.url + "/admin/projects", data=twice, headers=headers) as reply:
        assert reply.status == 400
        assert "came twice" in await reply.text()
    async with visitor.session.post(visitor.url + "/admin/projects", json=form.fields, headers={"Origin": visitor.url}) as reply:
        assert reply.status == 403
