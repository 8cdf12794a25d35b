"""Whose certificates a provider may show."""

import ssl

from llm_proxy.errors import SettingsError
from llm_proxy.settings import Settings


def trust(settings: Settings) -> ssl.SSLContext:
    """What every TLS connection to a provider begins with.

    Raises:
        SettingsError: SSL_CERT_FILE cannot be used.
    """
    context = ssl.create_default_context()
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif settings.ssl_cert_file:
        try:
            context.load_verify_locations(settings.ssl_cert_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"SSL_CERT_FILE={settings.ssl_cert_file}: no certificates could be read from it: {error}"
            ) from error
    return context
