"""What the vault stores opens in its own place, with its own key, undamaged, or not at all."""

import base64
import hashlib
import hmac
import secrets

import pytest

from llm_proxy.secret import Secret
from llm_proxy.vault import NONCE_BYTES, PREFIX, Place, Undecipherable, Vault, key_id_of

PLACE = Place("providers", "p1", "api_key_ciphertext")
KEY_OF_PROVIDER = "sk-real-key-of-a-provider"


def new_key() -> Secret:
    return Secret(base64.b64encode(secrets.token_bytes(32)).decode())


@pytest.fixture
def vault() -> Vault:
    return Vault([new_key()])


@pytest.mark.parametrize("text", [KEY_OF_PROVIDER, "x", "grüße", "k" * 5000])
def test_sealed_secret_opens_again(vault: Vault, text: str) -> None:
    sealed = vault.seal(Secret(text), PLACE)
    assert sealed.startswith(PREFIX)
    assert text == "x" or text not in sealed
    assert vault.open(sealed, PLACE).reveal() == text


def test_every_sealing_has_a_nonce_of_its_own(vault: Vault) -> None:
    sealed = [base64.b64decode(vault.seal(Secret("same"), PLACE).rpartition(":")[2]) for _ in range(50)]
    assert len({raw[:NONCE_BYTES] for raw in sealed}) == len({raw[NONCE_BYTES:] for raw in sealed}) == 50


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param(PLACE._replace(row="p2"), id="another row"),
        pytest.param(PLACE._replace(column="name"), id="another column"),
        pytest.param(PLACE._replace(table="tokens"), id="another table"),
        pytest.param(Place("providers", "p", "1api_key_ciphertext"), id="another split"),
    ],
)
def test_ciphertext_cannot_be_moved(vault: Vault, elsewhere: Place) -> None:
    sealed = vault.seal(Secret(KEY_OF_PROVIDER), PLACE)
    with pytest.raises(Undecipherable, match="moved here"):
        vault.open(sealed, elsewhere)


def test_tampering_with_any_byte_is_noticed(vault: Vault) -> None:
    sealed = vault.seal(Secret(KEY_OF_PROVIDER), PLACE)
    head, _, text = sealed.rpartition(":")
    raw = base64.b64decode(text)
    for place in range(len(raw)):
        damaged = bytes([*raw[:place], raw[place] ^ 1, *raw[place + 1 :]])
        with pytest.raises(Undecipherable):
            vault.open(f"{head}:{base64.b64encode(damaged).decode()}", PLACE)


def test_damage_to_any_character_of_the_head_is_noticed(vault: Vault) -> None:
    sealed = vault.seal(Secret(KEY_OF_PROVIDER), PLACE)
    for place in range(sealed.rindex(":") + 1):
        for other in ("~", ""):
            with pytest.raises(Undecipherable):
                vault.open(sealed[:place] + other + sealed[place + 1 :], PLACE)


def test_torn_ciphertext_is_noticed(vault: Vault) -> None:
    sealed = vault.seal(Secret(KEY_OF_PROVIDER), PLACE)
    for length in range(len("enc:"), len(sealed)):
        with pytest.raises(Undecipherable):
            vault.open(sealed[:length], PLACE)


def test_another_version_is_no_plain_secret(vault: Vault) -> None:
    for keyed in (vault, Vault([])):
        with pytest.raises(Undecipherable, match="another version"):
            keyed.open("enc:v9:abcdefgh:AAAA", PLACE)


def test_sealed_key_id_cannot_be_exchanged_for_that_of_another_key() -> None:
    one, two = new_key(), new_key()
    sealed = Vault([one]).seal(Secret(KEY_OF_PROVIDER), PLACE)
    id_of_two = Vault([two]).seal(Secret("x"), PLACE).split(":")[2]
    renamed = ":".join([*sealed.split(":")[:2], id_of_two, sealed.split(":")[3]])
    with pytest.raises(Undecipherable):
        Vault([one, two]).open(renamed, PLACE)


def test_older_keys_open_until_they_are_taken_out() -> None:
    old, new = new_key(), new_key()
    before, during, after = Vault([old]), Vault([new, old]), Vault([new])
    sealed = before.seal(Secret(KEY_OF_PROVIDER), PLACE)
    assert not during.is_current(sealed)
    again = during.seal(during.open(sealed, PLACE), PLACE)
    assert during.is_current(again)
    assert after.open(again, PLACE).reveal() == KEY_OF_PROVIDER
    with pytest.raises(Undecipherable, match="ENCRYPTION_KEY does not hold"):
        after.open(sealed, PLACE)


def test_missing_key_is_named_by_its_id_only() -> None:
    key = new_key()
    sealed = Vault([key]).seal(Secret(KEY_OF_PROVIDER), PLACE)
    with pytest.raises(Undecipherable) as caught:
        Vault([]).open(sealed, PLACE)
    assert sealed.split(":")[2] in str(caught.value)
    assert key.reveal() not in str(caught.value)


def test_without_a_key_secrets_are_stored_plain() -> None:
    plain = Vault([])
    assert plain.seal(Secret(KEY_OF_PROVIDER), PLACE) == KEY_OF_PROVIDER
    assert plain.open(KEY_OF_PROVIDER, PLACE).reveal() == KEY_OF_PROVIDER
    assert plain.is_current(KEY_OF_PROVIDER)


def test_plain_secret_of_before_opens_under_a_key_but_is_not_current(vault: Vault) -> None:
    assert vault.open(KEY_OF_PROVIDER, PLACE).reveal() == KEY_OF_PROVIDER
    assert not vault.is_current(KEY_OF_PROVIDER)


def test_token_has_a_hash_for_each_key_then_the_plain_one() -> None:
    new, old = new_key(), new_key()
    hashes = Vault([new, old]).token_hashes("sk-lp-token")
    assert [form.partition(":")[0] for form in hashes] == ["hmac", "hmac", "sha256"]
    assert hashes[1:] == Vault([old]).token_hashes("sk-lp-token")
    assert hashes[2:] == Vault([]).token_hashes("sk-lp-token")
    assert hashes[2] == f"sha256:{hashlib.sha256(b'sk-lp-token').hexdigest()}"


def test_hash_of_a_token_needs_the_key() -> None:
    key = new_key()
    [keyed, _] = Vault([key]).token_hashes("sk-lp-token")
    raw = base64.b64decode(key.reveal())
    digest = keyed.rpartition(":")[2]
    # The encryption key itself is for encryption only: what hashes tokens is derived from it.
    assert digest != hmac.digest(raw, b"sk-lp-token", "sha256").hex()
    assert digest != hashlib.sha256(b"sk-lp-token").hexdigest()
    assert keyed != Vault([new_key()]).token_hashes("sk-lp-token")[0]
    assert keyed != Vault([key]).token_hashes("sk-lp-tokem")[0]


def test_what_is_stored_tells_its_key_and_nothing_else(vault: Vault) -> None:
    [id] = vault.key_ids
    assert key_id_of(vault.seal(Secret(KEY_OF_PROVIDER), PLACE)) == id
    keyed, plain = vault.token_hashes("sk-lp-x")
    assert (key_id_of(keyed), key_id_of(plain), key_id_of(KEY_OF_PROVIDER)) == (id, None, None)
    assert Vault([new_key(), new_key()]).key_ids != Vault([new_key(), new_key()]).key_ids
