import os
from collections.abc import Generator
from typing import Any

import pytest

_CAPABILITIES = "-dac_override,-dac_read_search"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skip", action="store_true", help="A test that would be skipped fails.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    return _without_skip(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    return _without_skip(collector.config, (yield))


def _without_skip(config: pytest.Config, report: Any) -> Any:
    if report.skipped and config.getoption("--no-skip"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason}, and --no-skip allows no skip"
    return report


@pytest.fixture(scope="session")
def no_override() -> list[str]:
    """What to put before a command so that file permissions bind it, as they do everyone but root."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return ["setpriv", f"--bounding-set={_CAPABILITIES}", "--"] if is_root else []
