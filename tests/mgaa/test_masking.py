"""No secret is left in a masked text, and everything else is."""

import pytest

from mgaa.errors import ResourceError
from mgaa.masking import mask_values, masked

SECRET = "s3cr3t-marker"


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://team:{}@host/db",
        "postgresql+psycopg2://team:{}@host:5432/db?sslmode=require",
        "postgresql://team:a/{}@host/db",
        "postgresql://team:a@{}@host/db",
        "postgresql://team:a?{}@host/db",
        "postgresql://team:a#{}@host/db",
        "postgresql://host/db?user=team&password={}",
        "postgresql://host/db?sslmode=require&sslpassword={}",
        "mysql://host/db?unknown={}",
        "https://{}@host/path",
        "https://user:{}@host",
        "https://host/?token={}#more",
        "https://host/#access_token={}",
        "s3://key:{}@bucket/folder",
        "sftp://user:{}@host:22/folder",
        "HTTPS://user:{}@host",
        'invalid dsn: "host=a password={} port=3"',
        "{{'password': '{}'}}",
        "aws_secret_access_key={}",
        "(https://user:{}@host)",
        "['https://user:{}@host', 'b']",
    ],
)
def test_a_secret_is_masked_in_every_form(form: str) -> None:
    text = form.format(SECRET)
    assert SECRET not in masked(text)
    assert "***" in masked(text)
    assert masked(masked(text)) == masked(text)
    assert SECRET not in str(ResourceError(f"cannot reach {text}: no answer"))


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "PREFECT_API_KEY", "MGAA_WEBHOOK"]
)
def test_the_value_of_a_secret_variable_is_masked_plain_and_quoted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "se/cr et!")
    assert (
        masked("plain se/cr et! or https://host/se%2Fcr%20et%21 or se%2Fcr+et%21")
        == "plain *** or https://host/*** or ***"
    )


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "sqlite:////home/a@b/mlflow.db?timeout=60",
        "s3://bucket/folder",
        "http://127.0.0.1:5000",
        "postgresql://host/db?sslmode=require",
        "models/compressed",
        "ratios.compression: 0.2",
        '{"tokens": 4, "prompt": 8}',
        "a user@host wrote it",
        "file:///mnt/share/store",
        "no token: 3 of 4 tokens are unknown",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_switches_in_the_environment_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-alarm")
    assert masked("1 false-alarm") == "1 false-alarm"


def test_nested_values_are_masked_whatever_holds_them() -> None:
    given = {"a": [f"https://u:{SECRET}@h", 3, None], "b": {"c": (f"https://u:{SECRET}@h",)}}
    assert mask_values(given) == {"a": ["https://***@h", 3, None], "b": {"c": ["https://***@h"]}}
