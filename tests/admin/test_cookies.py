"""Cookies of the site cannot be guessed; what they are sent with is tested with the login."""

from llm_proxy.admin import cookies


def test_each_value_is_another_with_256_bits() -> None:
    values = {cookies.fresh() for _ in range(100)}
    assert len(values) == 100
    assert min(map(len, values)) >= 43
