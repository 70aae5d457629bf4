"""A user's own calendar, as the README makes it and the doctor sees it."""

import re
from pathlib import Path

import pytest

from .conftest import change, edit_settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"```sql\n(CREATE TABLE days.*?)```", README, re.DOTALL)


@pytest.fixture
def project(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    edit_settings(tmp_path, '# calendar = "days" ', 'calendar = "days" ')
    segwatch(tmp_path, "create")
    return tmp_path


def test_doctor_reads_the_calendar_of_the_readme(project, segwatch):
    change(project, EXAMPLE)
    said = segwatch(project, "doctor", code=4).stdout
    assert "ok    calendar of new_users: days, 2 rows, 2026-06-03 to 2026-11-30\n" in said
    change(project, "delete from days where effect = 'mask'")
    assert "days, 1 row, 2026-11-27 to 2026-11-30\n" in segwatch(project, "doctor", code=4).stdout
    change(project, "truncate days")
    assert "ok    calendar of new_users: days, no rows yet\n" in segwatch(project, "doctor", code=4).stdout


def test_doctor_names_a_calendar_that_is_not_there_or_wrong(project, segwatch):
    said = segwatch(project, "doctor", code=4).stdout
    assert re.search(r"FAIL  calendar of new_users: .* no table 'days'; .*: make the calendar, or take it out", said)
    change(project, EXAMPLE)
    change(project, "update days set effect = 'ignore' where country_code = 'it'")
    assert (
        "FAIL  calendar of new_users: table 'days' (the calendar): 1 row has an effect that is not mask or expect, the"
        " first is first_day 2026-06-03, last_day 2026-06-03, event 'tracking outage', effect 'ignore', country_code"
        " 'it'; write mask"
    ) in segwatch(project, "doctor", code=4).stdout


def test_doctor_says_nothing_of_a_calendar_that_is_not_set(project, segwatch):
    edit_settings(project, 'calendar = "days" ', '# calendar = "days" ')
    assert "calendar" not in segwatch(project, "doctor", code=4).stdout
