"""A browser without scripts: it opens pages of the admin site, fills in their forms, follows where they lead."""

import html.parser
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from multidict import CIMultiDictProxy

from stage.house import MANAGEMENT_TOKEN, House


@dataclass
class Form:
    """A form with the fields that a browser would send."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


class _Reader(html.parser.HTMLParser):
    """Reads a page as a browser does, as far as these tests look."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.values: dict[str, str] = {}
        self._form: Form | None = None
        self._area: tuple[str, str] | None = None
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "form":
            self._form = Form(given.get("action", ""), given.get("method", "get"))
            self.forms.append(self._form)
        if tag == "a":
            self.links.append(given.get("href", ""))
        if tag == "textarea":
            self._area = (given.get("name", ""), given.get("id", ""))
            self.values[given.get("id", "")] = ""
        if tag == "select":
            self._select = given.get("name", "")
        if tag == "input":
            self.values[given.get("id", "")] = given.get("value", "")
        name = given.get("name", "")
        if not self._form or not (name or tag == "option"):
            return
        if tag == "input" and given.get("type") == "checkbox":
            self._form.fields |= {name: "on"} if "checked" in given else {}
        elif tag == "input":
            self._form.fields[name] = given.get("value", "")
        elif tag == "textarea":
            self._form.fields[name] = ""
        elif tag == "option" and ("selected" in given or self._select not in self._form.fields):
            self._form.fields[self._select] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        if tag == "textarea":
            self._area = None

    def handle_data(self, data: str) -> None:
        if self._area:
            name, id = self._area
            # A browser leaves out the first line break.
            self.values[id] += data.removeprefix("\n")
            if self._form and name:
                self._form.fields[name] += data.removeprefix("\n")
        else:
            self.texts.append(data)


@dataclass
class Page:
    """What a browser got."""

    path: str
    status: int
    headers: CIMultiDictProxy[str]
    source: str

    def __post_init__(self) -> None:
        reader = _Reader()
        reader.feed(self.source)
        self.forms, self.links, self.tags, self.values = reader.forms, reader.links, reader.tags, reader.values
        self.text = " ".join(" ".join(reader.texts).split())

    def form(self, action: str) -> Form:
        """The form that is sent to a path."""
        [found, *_] = [form for form in self.forms if form.action == action]
        return found

    @property
    def title(self) -> str:
        """The page's heading."""
        return self.source.partition("<h1>")[2].partition("</h1>")[0].partition("<")[0].strip()

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong, by the field beside which it stands."""
        found = {}
        for tag, given in self.tags:
            if tag == "p" and "problem" in given.get("class", "").split():
                name = given["id"].removesuffix("-problem")
                found[name] = self.source.partition(f'id="{given["id"]}"')[2].partition(">")[2].partition("<")[0]
        return found


class Visitor:
    """One browser; `url` is the admin site's."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str, *, follow: bool = True, **headers: str) -> Page:
        """Open a page."""
        sent = {"Accept": "text/html", **headers}
        async with self.session.get(self.url + path, headers=sent, allow_redirects=follow) as reply:
            return Page(urlsplit(str(reply.url)).path, reply.status, reply.headers, await reply.text())

    async def post(
        self, path: str, fields: Mapping[str, str], *, follow: bool = True, origin: str | None = None, **headers: str
    ) -> Page:
        """Send a form as it is given."""
        origin = self.url if origin is None else origin
        sent = {"Accept": "text/html", **({"Origin": origin} if origin else {}), **headers}
        async with self.session.post(self.url + path, data=fields, headers=sent, allow_redirects=follow) as reply:
            return Page(urlsplit(str(reply.url)).path, reply.status, reply.headers, await reply.text())

    async def send(self, page: Page, action: str, *, leave_out: tuple[str, ...] = (), **fields: str) -> Page:
        """Fill in a form of a page and send it; what it leads to, once the redirect was followed."""
        form = page.form(action)
        filled = {name: value for name, value in {**form.fields, **fields}.items() if name not in leave_out}
        assert form.method == "post"
        return await self.post(urljoin(page.path, action), filled)

    async def log_in(self, token: str = MANAGEMENT_TOKEN, **fields: str) -> Page:
        """Log in with the form."""
        return await self.send(await self.get("/admin/login"), "/admin/login", token=token, **fields)

    def cookie(self, name: str = "llm_proxy_session") -> Any:
        """A cookie of this browser; None when it has none."""
        return next((cookie for cookie in self.session.cookie_jar if cookie.key == name), None)


@asynccontextmanager
async def visiting(house: House, *, logged_in: bool = True) -> AsyncIterator[Visitor]:
    """A browser at the admin site of a house."""
    assert house.sites.admin
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=20)) as session:
        visitor = Visitor(session, house.sites.admin)
        if logged_in:
            assert (await visitor.log_in()).status == 200
        yield visitor
