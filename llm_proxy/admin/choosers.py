"""Choosing a project on a page: by its name, a part of that, or its id."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_proxy import projects
from llm_proxy.db import Connection
from llm_proxy.db.sql import Page
from llm_proxy.errors import InvalidField
from llm_proxy.projects import Project

MOST = 200
LONGEST = 40


@dataclass(frozen=True)
class Choices:
    """Projects to choose from."""

    projects: tuple[Project, ...]

    @property
    def only(self) -> str:
        """The name of the only one, where there is no other but that of the master keys."""
        names = [one.name for one in self.projects if one.id != projects.DEFAULT_ID]
        return names[0] if len(names) == 1 else ""

    @property
    def newest(self) -> str:
        """The name of the one that was made last, where there is one besides that of the master keys."""
        return next((one.name for one in self.projects if one.id != projects.DEFAULT_ID), "")


async def choices(connection: Connection, *, is_active: bool | None = None) -> Choices:
    """The newest projects, to be offered while somebody writes."""
    found = await projects.find(connection, Page(MOST), is_active=is_active)
    return Choices(tuple(found[:MOST]))


async def chosen(connection: Connection, given: str, field: str = "project_id") -> Project:
    """The project that was meant.

    Raises:
        InvalidField: none is, or several may be.
    """
    if not given.strip():
        raise InvalidField(field, "choose a project.")
    found = await projects.meant(connection, given.strip())
    shown = f"“{_short(given.strip())}”"
    if not found:
        raise InvalidField(field, f"there is no project {shown}. Give its name, a part of that, or its id.")
    if len(found) > 1:
        names = ", ".join(_short(one.name) for one in found[:3])
        raise InvalidField(
            field, f"{shown} may be {names}{' and more' if len(found) > 3 else ''}. Give the whole name, or the id."
        )
    return found[0]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


async def by_name(connection: Connection, form: Mapping[str, str], field: str = "project_id") -> dict[str, str]:
    """The form with the project's name where a link gave its id; what cannot be found stays as it is."""
    found = await projects.get(connection, form[field]) if form.get(field) else None
    return {**form, field: found.name} if found else dict(form)
