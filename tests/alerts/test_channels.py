import logging

import pytest

from segwatch.alerts.channels import Channel
from segwatch.alerts.plan import Message
from segwatch.errors import BackendError, SettingsError
from segwatch.settings import Settings


def channel(url):
    return Channel(
        Settings(
            targets={"dev": {"warehouse": "duckdb:///x", "registry": "sqlite:///y"}},
            metrics={"m": {"table": "t", "time": "d", "value": "v", "dimensions": ["c"]}},
            channels={"team": {"url": url}},
        ),
        "team",
    )


@pytest.mark.parametrize("url", ["https://hook.invalid/hunter22", "discord://hunter22"])
def test_an_address_that_is_none_is_in_no_error_and_no_log(url, caplog):
    # As a container of a pipeline has it.
    with caplog.at_level(logging.DEBUG), pytest.raises(SettingsError) as error:
        channel(url)
    assert "hunter22" not in str(error.value) and "hunter22" not in caplog.text


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("json://hunter22:1/", "A Connection error occurred sending JSON notification to ***."),
        ("json://127.0.0.1:1/hunter22", "A Connection error occurred sending JSON notification to 127.0.0.1."),
    ],
)
def test_the_parts_of_an_address_are_in_no_error_and_no_log_but_its_host(url, said, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(BackendError) as error:
        channel(url).send(Message("big", "team", "title", "body", ()))
    assert str(error.value) == f"the channel team did not take it: {said}" and "hunter22" not in caplog.text
