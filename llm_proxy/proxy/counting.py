"""Counting the tokens of a call whose provider does not state them."""

from collections.abc import Mapping

from llm_proxy.proxy.call import Call
from llm_proxy.proxy.tee import Tee
from llm_proxy.usage.counter import Counter

# How long the end of a reply is held back for the last piece.
PATIENCE = 0.05

# Beneath any prefix: Azure's deployments have one of their own.
_COUNTED = ("/chat/completions", "/completions")


def asks_for_usage(parameters: Mapping[str, object]) -> bool:
    """Whether a request asks for a stream's usage, in OpenAI's way."""
    options = parameters.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def begin_counting(call: Call, tee: Tee) -> None:
    """Count a stream as it passes where its provider will not state the usage.

    Where it will, as it did for the last call like this, the stream costs nothing but a look at what was kept of it, should
    the provider have changed its mind.
    """
    if tee.is_event_stream and _is_counted(call) and not _expects_usage(call):
        call.counter = _counter(call)
        tee.on_data = call.counter.feed
        call.counter.start()


async def settle_usage(call: Call) -> None:
    """Hold the end of the reply back until its tokens are counted, for a moment at most."""
    tee = call.tee
    if tee is None or not _is_counted(call):
        return
    stated = tee.usage().source != "none"
    if tee.is_event_stream and tee.finished:
        call.context.counting.learn(call.event.provider or "", call.wants_usage, stated)
    if stated:
        return
    if call.counter:
        await call.counter.settle(PATIENCE)
    elif b'"choices"' in tee.kept:
        call.counter = _counter(call)
        await call.counter.settle(PATIENCE, tee.payloads())


def _is_counted(call: Call) -> bool:
    """Whether the answer is that of a chat which is at hand as a whole."""
    whole = call.body.rest is None and bool(call.body.held)
    return whole and 200 <= call.reply.status < 300 and call.target.path.endswith(_COUNTED)


def _expects_usage(call: Call) -> bool:
    return call.context.counting.expects_usage(call.event.provider or "", call.wants_usage)


def _counter(call: Call) -> Counter:
    return call.context.counting.counter(call.event.model_used or call.event.model or "", call.body.held)
