"""Secrets are found whatever they are written into, and what only looks like one is left alone."""

import pytest

from polyrec.core.secrets import hide_secrets, named_secret, secret_in, secrets_in, without_secrets

HF = "hf_" + "aB3d" * 8 + "xY"
SECRETS = {
    f"hub_token: {HF}": "Hugging Face",
    "AKIAIOSFODNN7EXAMPLE": "AWS access",
    'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"': "AWS secret",
    "WANDB_API_KEY=" + "0a1b2c3d" * 5: "Weights & Biases",
    "postgresql://shop:s3cret@db.example.org/log": "URL",
    "https://user:" + "x" * 20 + "@example.org/a.csv": "URL",
    "ghp_" + "a1B2" * 9: "GitHub",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "private key",
}
INNOCENT = [
    "revision: " + "0a1b2c3d" * 5,  # a commit
    "sha256: " + "0a1b2c3d" * 8,
    "https://example.org:8080/a?b=c",
    "s3://bucket/events.parquet",
    "hf_transformers",
    "a task-based sketch",
    "12:30 @ home",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_found_and_hidden(text):
    """A token in a log line or a file would be published with the next push."""
    assert SECRETS[text] in secret_in(f"x {text} y")
    assert secret_in(hide_secrets(text)) is None
    assert secret_in(str(without_secrets({"a": [{"b": text}], text: 1}))) is None


@pytest.mark.parametrize("text", INNOCENT)
def test_digests_and_addresses_of_pages_are_no_secrets(text):
    """A card with the commit of its backbone could not be pushed."""
    assert secret_in(text) is None
    assert hide_secrets(text) == text


def test_entries_are_known_by_their_names():
    """A password that looks like a word stays where only its name tells."""
    given = {"training": {"hub_token": "word", "seed": 3, "hub_model_id": "a/b"}, "pad_token": "[PAD]", "token": None}
    assert without_secrets(given) == {
        "training": {"seed": 3, "hub_model_id": "a/b"},
        "pad_token": "[PAD]",
        "token": None,
    }
    assert not named_secret("hub_token", "<HUB_TOKEN>")  # as transformers writes it
    assert [name for name in ("cls_token", "max_new_tokens", "tokens", "password", "api_key") if named_secret(name, "x")] == [
        "password", "api_key"
    ]  # fmt: skip


def test_lines_are_counted_from_one():
    """A refusal that points at the wrong line is not mended."""
    assert list(secrets_in(f"a\n{HF}\nwrite to jo@example.org")) == [
        (2, "a Hugging Face token"),
        (3, "an e-mail address"),
    ]
