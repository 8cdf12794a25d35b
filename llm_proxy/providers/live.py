"""The profiles in force, which a good file replaces whole."""

import asyncio
from collections.abc import Callable

from llm_proxy.providers.profiles import Profiles


class LiveProfiles:
    """Holds one snapshot; who took it keeps it, whatever comes after.

    Args:
        read: reads the file, all of it or not at all.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, read: Callable[[], Profiles]) -> None:
        self._read = read
        self._turn = asyncio.Lock()
        self.current = read()

    async def read(self) -> Profiles:
        """What the file says now, in a thread, for it may be long.

        Raises:
            SettingsError: it cannot be used.
        """
        return await asyncio.to_thread(self._read)

    async def reload(self) -> None:
        """Put what the file says now in force; a bad file changes nothing.

        Raises:
            SettingsError: it cannot be used.
        """
        # One at a time, or an older reading could end last.
        async with self._turn:
            self.current = await self.read()
