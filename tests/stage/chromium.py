"""Debian's Chromium, where it is installed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.async_api import Browser, Page, Request, async_playwright

from stage.house import MANAGEMENT_TOKEN

PATH = Path("/usr/bin/chromium")
MISSING = f"SKIPPED: {PATH} is missing, so no page was tried in a browser. Install it: apt-get install chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Watched:
    """A tab, with everything that it complained of or asked another host for."""

    page: Page
    site: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.complaints.append(f"{self.page.url}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))
        self.page.on("request", self._look_at)

    def _look_at(self, request: Request) -> None:
        if not request.url.startswith(f"{self.site}/"):
            self.complaints.append(f"asked for {request.url}")

    async def open(self, path: str) -> None:
        """Go to a page of the site."""
        reply = await self.page.goto(f"{self.site}/admin/{path}")
        assert reply and reply.status == 200, path

    async def log_in(self) -> None:
        """Log in with the form."""
        await self.open("login")
        await self.page.fill("#token", MANAGEMENT_TOKEN)
        await self.page.click("button")
        await self.page.wait_for_url("**/admin/dashboard")


@asynccontextmanager
async def open_chromium() -> AsyncIterator[Browser]:
    """A browser without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=PATH, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
