"""`llm-proxy manage master-key`, on a running server and on its database."""

from stage.secrets import used

from ..conftest import Manage

SECRET = "a-master-key-of-my-own"


async def test_a_master_key_lives(manage: Manage) -> None:
    done = await manage(
        "master-key", "create", "--name", "my own", "--id", "mine", "--key", "-", "--model", "gpt-4*", input=SECRET
    )
    assert (done.code, used(SECRET) in done.out, done.err) == (0, False, ""), "who brought the secret has it"
    assert (done.fields["key_preview"], done.fields["allowed_models"]) == ("a-m…-own", "gpt-4*")
    assert (await manage("master-key", "get", "mine")).fields["name"] == "my own"
    assert [row[:4] for row in (await manage("master-key", "list")).rows] == [["mine", "my own", "a-m…-own", "yes"]]
    done = await manage("master-key", "update", "mine", "--rate-limit", "5", "--all-models", "--json")
    assert (done.json["rate_limit"], done.json["allowed_models"]) == (5, [])
    assert (await manage("master-key", "update", "mine", "--rate-limit", "default")).fields["rate_limit"] == "default"
    assert (await manage("master-key", "disable", "mine", "--yes")).fields["is_enabled"] == "no"
    assert (await manage("master-key", "enable", "mine")).fields["is_enabled"] == "yes"
    assert (await manage("master-key", "delete", "mine", "--yes")).out == "Removed mine.\n"
    assert (await manage("master-key", "list")).out == "Nothing found.\n"


async def test_a_secret_that_was_made_is_shown_once_at_creation_and_rotation(manage: Manage) -> None:
    done = await manage("master-key", "create", "--name", "one")
    assert done.err == "This is shown once, and kept nowhere.\n"
    first = used(done.out.splitlines()[-1])
    assert first.startswith("sk-lp-") and done.out.count(first) == 1
    done = await manage("master-key", "rotate", done.fields["id"], "--grace", "60", "--json")
    assert used(str(done.json["key"])) != first
    assert done.json["previous_key_expires_at"]
    assert first not in (await manage("master-key", "list", "--json")).out


async def test_what_cannot_be_is_refused(manage: Manage) -> None:
    assert (await manage("master-key", "update", "mine")).code == 2
    assert (await manage("master-key", "update", "mine", "--model", "a", "--all-models")).code == 2
    assert "(not_found)" in (await manage("master-key", "rotate", "nobody")).err
