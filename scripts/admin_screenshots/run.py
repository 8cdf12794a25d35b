"""Opens Chromium at a house with demo data, writes pictures of its pages."""

import argparse
import asyncio
import contextlib
import pathlib
import tempfile

from demo import Demo, furnished
from palette import reduced
from playwright.async_api import Browser, Page
from stage.chromium import Watched, open_chromium
from stage.house import open_house, settings_for

from llm_proxy import fake_provider
from llm_proxy.admin import PAGES

README = pathlib.Path(__file__).parents[2] / "deploy" / "screenshots"
# The pictures of the README by name: a page, with the names of demo things in its places.
# The last is that of a token that was just made, to which no path leads.
MADE = "token-made"
SHOWN = {"dashboard": "dashboard", "requests": "requests", MADE: "new-token"}
WIDE = {"width": 1440, "height": 900}
NARROW = {"width": 360, "height": 800}


def every_page(demo: Demo) -> dict[str, str]:
    """All pages of the site by the names of their pictures."""
    paths = [path for path, _ in PAGES if not path.startswith("audit-export")]
    return {path.replace("/", "-").replace("{", "").replace("}", ""): demo.filled(path) for path in paths} | {MADE: "new-token"}


async def make_token(page: Page) -> None:
    """Make a token with the form that is open."""
    for label, value in (
        ("Project", "Mobile app"),
        ("Name", "Android 8.2"),
        ("Quota of requests", "250000"),
    ):
        await page.get_by_label(label, exact=True).fill(value)
    await page.get_by_label("Good for").select_option("90 days")
    await page.get_by_role("button", name="Make the token").click()
    await page.get_by_text("Copy this token now").wait_for()


async def take(browser: Browser, site: str, pages: dict[str, str], folder: pathlib.Path, *, all_looks: bool) -> None:
    """Take the pictures; what a page complains of is an error."""
    for scheme in ("light", "dark") if all_looks else ("light",):
        options = {"color_scheme": scheme, "reduced_motion": "reduce", "locale": "en-GB", "timezone_id": "UTC"}
        tab = Watched(await browser.new_page(**options), site)
        await tab.log_in()
        for name, path in pages.items():
            await tab.open(path)
            if name == MADE:
                await make_token(tab.page)
            for size in (WIDE, NARROW) if all_looks else (WIDE,):
                await tab.page.set_viewport_size(size)
                picture = await tab.page.screenshot(full_page=all_looks)
                file = f"{name}-{size['width']}-{scheme}.png" if all_looks else f"{name}.png"
                (folder / file).write_bytes(picture if all_looks else reduced(picture))
        if tab.complaints:
            raise SystemExit("\n".join(tab.complaints))


async def main(folder: pathlib.Path | None) -> None:
    """A house, its demo data, its pictures."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        settings = settings_for(pathlib.Path(place), LOG_LEVEL="error", EVENT_SINKS="file")
        async with fake_provider.running() as fake, open_house(settings) as house, furnished(house, fake) as demo:
            assert house.sites.admin
            pages = every_page(demo) if folder else SHOWN
            async with open_chromium() as browser:
                await take(browser, house.sites.admin, pages, folder or README, all_looks=folder is not None)
    print(f"{len(pages)} pages in {folder or README}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", metavar="FOLDER", type=pathlib.Path, help="every page, narrow and wide, light and dark")
    given = parser.parse_args().all
    wanted = given.resolve() if given else None
    (wanted or README).mkdir(parents=True, exist_ok=True)
    asyncio.run(main(wanted))
