"""The playground: a chat through the proxy itself."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing

import aiohttp_jinja2
import orjson
from aiohttp import web

from llm_proxy.acts import tokens as token_acts
from llm_proxy.acts.checks import takes_deployments
from llm_proxy.admin.asking import Outcome, Question, ask
from llm_proxy.admin.choosers import by_name, choices, chosen
from llm_proxy.admin.lists import filters_of
from llm_proxy.admin.live import NOTHING, stream
from llm_proxy.admin.playground import TOKEN_MINUTES, TOKEN_REQUESTS, Playground, Talk
from llm_proxy.admin.snippets import OPENAI_MODEL, model_for
from llm_proxy.admin.visits import PROXY, Visit, problems_of
from llm_proxy.chats import ANTHROPIC, AZURE, DIALECTS, OPENAI, Dialect, Messages
from llm_proxy.context import Context
from llm_proxy.errors import ApiError, InvalidField
from llm_proxy.providers import routing
from llm_proxy.providers.mapping import without_suffix
from llm_proxy.providers.profiles import Profile
from llm_proxy.secret import Secret

PLAYGROUND = web.AppKey("playground", Playground)
FIELDS = ("project_id", "token", "dialect", "model", "system", "question")
CHOICES = [("", "As the provider has it"), *((dialect.id, dialect.title) for dialect in DIALECTS.values())]
MOST_MODELS = 500
NONE: Mapping[str, str] = {}
LONGEST_MODEL, LONGEST_TOKEN = 200, 500
# What to do about an answer that did not come, by its code: what to say, what the link says, where it leads.
_ANOTHER_TOKEN = ("Choose a project instead, or paste another token.", "Tokens", "tokens")
_PROVIDERS = ("See whether the provider answers, and what went wrong there.", "Health of the providers", "health")
_LATER = ("Wait for a moment, then send it again.", "Limits of the project", "projects")
ADVICE: Mapping[str, tuple[str, str, str]] = {
    "invalid_token": _ANOTHER_TOKEN,
    "token_expired": _ANOTHER_TOKEN,
    "token_inactive": _ANOTHER_TOKEN,
    "request_limit_exhausted": _ANOTHER_TOKEN,
    "too_many_failures": _ANOTHER_TOKEN,
    "project_inactive": ("Activate the project, or choose another.", "Projects", "projects"),
    "model_not_allowed": ("Choose a model that the token allows.", "Tokens", "tokens"),
    "model_not_found": ("Choose another model, or give the project a provider that serves this one.", "Projects", "projects"),
    "endpoint_not_found": ("No provider of the project takes this dialect: choose another one.", "Profiles", "profiles"),
    "rate_limit_exceeded": _LATER,
    "overloaded": _LATER,
    "upstream_unavailable": _PROVIDERS,
    "upstream_tls_error": _PROVIDERS,
    "upstream_timeout": _PROVIDERS,
    "upstream_invalid_response": _PROVIDERS,
}
REFUSED = frozenset({"token_expired", "token_inactive", "invalid_token", "request_limit_exhausted"})


async def show(visit: Visit) -> web.Response:
    """The form; after a question without scripts, with its answer."""
    id = visit.request.query.get("answer", "")
    talk = visit.request.app[PLAYGROUND].find(visit.session.id_hash, id) if id else None
    if talk:
        return await _show(visit, {**talk.form, "talk": id}, talk=talk)
    return await _show(visit, filters_of(visit.request, ("project_id", "model")), is_gone=bool(id))


async def _show(
    visit: Visit,
    form: Mapping[str, str],
    problems: Mapping[str, str] = NONE,
    talk: Talk | None = None,
    is_gone: bool = False,
) -> web.Response:
    database = visit.context.database
    offered = await choices(database, is_active=True)
    form = await by_name(database, {"dialect": "", "project_id": offered.newest, **form})
    models = await models_of(visit.context, await _project_id(visit.context, form["project_id"])) or [OPENAI_MODEL]
    facts = {
        "form": {"model": models[0], **form},
        "problems": problems,
        "projects": offered,
        "dialects": CHOICES,
        "models": models,
        "messages": talk.messages if talk else messages_in(form.get("conversation", "")),
        "question": talk.question if talk else None,
        "outcome": talk.outcome if talk else None,
        "advice": _advice(talk.outcome) if talk else None,
        "is_gone": is_gone,
        "proxy_url": visit.request.app[PROXY].url,
        "minutes": TOKEN_MINUTES,
        "requests": TOKEN_REQUESTS,
    }
    return visit.show("chat.html", facts, 400 if problems else 200)


async def _project_id(context: Context, given: str) -> str:
    """The id of the project that is meant; empty where that is not clear, which only a question has to say."""
    try:
        return (await chosen(context.database, given)).id
    except InvalidField:
        return ""


async def models_of(context: Context, project_id: str) -> list[str]:
    """Models that a project may be asked for, as far as they are known without asking its providers."""
    found: dict[str, None] = {}
    providers = await context.providers.of_project(project_id) if project_id else []
    for provider in providers:
        listed = context.listed_models.of(provider.id) or ()
        names = provider.mapping.names or [model.id for model in listed] or [model_for((), provider.provider_type)]
        found.update(dict.fromkeys(names))
    return list(found)[:MOST_MODELS]


def messages_in(text: str) -> Messages:
    """The conversation that a form carries.

    Raises:
        InvalidField: it is none.
    """
    try:
        given = orjson.loads(text or "[]")
        found = [{"role": one["role"], "content": one["content"]} for one in given]
    except (ValueError, LookupError, TypeError):
        raise InvalidField("conversation", "this is no conversation. Begin a new one.") from None
    if not all(one["role"] in ("user", "assistant") and isinstance(one["content"], str) for one in found):
        raise InvalidField("conversation", "this is no conversation. Begin a new one.")
    return found


async def send(visit: Visit) -> web.StreamResponse:
    """Ask; the answer streams to the page's script, or is kept for the page that follows."""
    to_script = "text/event-stream" in visit.request.headers.get("Accept", "")
    try:
        question = await _question(visit)
    except ApiError as error:
        if to_script:
            raise
        form = {name: value for name, value in visit.form.items() if name not in ("token", "conversation")}
        known = "" if error.param == "conversation" else visit.form.get("conversation", "")
        return await _show(visit, {**form, "conversation": known}, problems_of(error, dict.fromkeys(FIELDS)))
    outcome = Outcome()
    if to_script:
        return await stream(visit, _messages(visit, question, outcome))
    async with aclosing(ask(visit.context, question, outcome)) as pieces:
        async for _ in pieces:
            pass
    return visit.go(f"/admin/chat?answer={_keep(visit, question, outcome)}#answer")


async def _messages(visit: Visit, question: Question, outcome: Outcome) -> AsyncGenerator[Mapping[str, object], None]:
    """What the script gets: pieces of text, at the end what came of it, rendered."""
    async with aclosing(ask(visit.context, question, outcome)) as pieces:
        async for piece in pieces:
            yield {"text": piece} if piece else NOTHING
    _forget_refused(visit, question, outcome)
    facts = {"outcome": outcome, "question": question, "advice": _advice(outcome)}
    yield {"outcome": aiohttp_jinja2.render_string("chat_outcome.html", visit.request, facts), "ok": outcome.problem is None}


def _keep(visit: Visit, question: Question, outcome: Outcome) -> str:
    """Keep the answer for the next page; one that failed is no part of the conversation, and its question stands in the form."""
    _forget_refused(visit, question, outcome)
    failed = outcome.problem is not None
    said = question.messages[:-1] if failed else [*question.messages, {"role": "assistant", "content": outcome.text}]
    form = {name: visit.form.get(name, "") for name in FIELDS if name != "token"}
    form |= {"conversation": orjson.dumps(said).decode(), "question": visit.form.get("question", "") if failed else ""}
    return visit.request.app[PLAYGROUND].keep(visit.session.id_hash, Talk(form, said, question, outcome))


def _forget_refused(visit: Visit, question: Question, outcome: Outcome) -> None:
    if outcome.problem and outcome.problem.code in REFUSED:
        visit.request.app[PLAYGROUND].forget(question.token)


def _advice(outcome: Outcome) -> tuple[str, str, str] | None:
    return ADVICE.get(outcome.problem.code) if outcome.problem else None


async def _question(visit: Visit) -> Question:
    """What is asked.

    Raises:
        ApiError: a field of the form cannot be used.
    """
    form, context, site = visit.form, visit.context, visit.request.app[PROXY]
    messages, asked, model = messages_in(form.get("conversation", "")), form.get("question", ""), form.get("model", "").strip()
    if not asked.strip():
        raise InvalidField("question", "say something.")
    if not model or len(model) > LONGEST_MODEL or not model.isprintable():
        raise InvalidField("model", "name a model, such as gpt-4o-mini.")
    spoken = form.get("dialect", "")
    if spoken and spoken not in DIALECTS:
        raise InvalidField("dialect", "choose one of these.")
    token, project_id = await _token(visit)
    return Question(
        url=site.url,
        # The name by which this site was reached is one that the proxy answers too.
        host=visit.request.host if context.settings.allowed_hosts else "",
        token=token,
        dialect=DIALECTS[spoken] if spoken else await _dialect(context, project_id, model),
        model=model,
        system=form.get("system", "").strip(),
        messages=[*messages, {"role": "user", "content": asked}],
    )


async def _token(visit: Visit) -> tuple[Secret, str]:
    """The token to ask with, and its project, empty where that is not known: what was pasted, or one that is made here.

    Raises:
        ApiError: there is none.
    """
    pasted, given = visit.form.get("token", "").strip(), visit.form.get("project_id", "").strip()
    playground, session = visit.request.app[PLAYGROUND], visit.session.id_hash
    before = playground.find(session, visit.form.get("talk", ""))
    if pasted:
        if len(pasted) > LONGEST_TOKEN or not pasted.isascii() or not pasted.isprintable() or " " in pasted:
            raise InvalidField("token", "this is no token: it begins with sk-lp-.")
        return Secret(pasted), await _project_of(visit.context, pasted)
    if not given:
        if before and not before.form.get("project_id"):
            return before.question.token, await _project_of(visit.context, before.question.token.reveal())
        raise InvalidField("project_id", "choose a project, or paste a token.")
    project_id = (await chosen(visit.context.database, given)).id
    token = playground.token_of(session, project_id)
    if token is None:
        token = await _make_token(visit, project_id)
        playground.lend(session, project_id, token)
    return token, project_id


async def _make_token(visit: Visit, project_id: str) -> Secret:
    fields = {"name": "playground", "duration_minutes": TOKEN_MINUTES, "max_requests": TOKEN_REQUESTS}
    try:
        _, secret = await token_acts.create(visit.context, visit.who, {"project_id": project_id, **fields})
    except ApiError as error:
        if error.code == "not_found":
            raise InvalidField("project_id", "choose a project; this one is gone.") from None
        raise
    return secret


async def _project_of(context: Context, token: str) -> str:
    """The project of a pasted token, only to know its providers' dialect; whether it may call is for the proxy to say."""
    try:
        return (await context.tokens.authenticate(token)).project_id
    except ApiError:
        return ""


async def _dialect(context: Context, project_id: str, model: str) -> Dialect:
    """The dialect of the providers that serve a model."""
    providers = await context.providers.of_project(project_id) if project_id else []
    serving = routing.serving(providers, without_suffix(model, context.settings.provider_suffix))
    types = context.profiles.apis
    return dialect_among((types[one.provider_type], one.api_base) for one, _ in serving if one.provider_type in types)


def dialect_among(serving: Iterable[tuple[Profile, str]]) -> Dialect:
    """The dialect that most of those who serve a model may understand: profiles, each with its provider's own base URL."""
    spoken = [_dialect_of(profile, base or profile.base_url) for profile, base in serving]
    return next((dialect for dialect in DIALECTS.values() if dialect in spoken), OPENAI)


def _dialect_of(profile: Profile, base: str) -> Dialect:
    if takes_deployments(profile, base):
        return AZURE
    if profile.name == "anthropic" or not profile.admits(OPENAI.path("")):
        return ANTHROPIC
    return OPENAI
