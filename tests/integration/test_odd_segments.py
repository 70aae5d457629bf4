"""Segments that are few or strangely named are trained, scored and reported like any other."""

import pytest

from .conftest import END, SPLIT, ask, error, own_metric

NAMES = [
    "NA", "null", "NULL", "None", "nan", "true", "1.0", "2026-11-01", "it", "IT", " it ", 'it\'s "x"', "a/b\\c",
    "two\nlines", "tab\there", "ünï 日本 🎉", "\u00e9", "e\u0301", "<script>alert(1)</script>", "[bold]x[/bold]",
    "%s {x} ${y}", "'; drop table revenue; --", "=1+1", "x" * 3000,
]  # fmt: skip


def usual(i):
    """The value of the i-th day before END, ten times as high on one of the days that are scored."""
    return (50 + i * 7 % 13) * (10 if i == 5 else 1)


def run_all(folder, segwatch):
    """What is published after every command of the job, for the days from SPLIT to END."""
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--from", "rows.csv")
    segwatch(folder, "train", "--as-of", SPLIT)
    segwatch(folder, "infer", "--start", SPLIT, "--end", END)
    segwatch(folder, "report")
    return ask(
        folder,
        "select country, count(*), count(score), bool_or(is_anomaly) from predictions where level = 'country'"
        " group by country",
    )


@pytest.mark.parametrize("missing", ["zero", "gap"])
def test_one_segment_alone_is_enough(tmp_path, segwatch, missing):
    own_metric(tmp_path, missing, {"it": usual})
    assert run_all(tmp_path, segwatch) == [("it", 20, 20, True)]


@pytest.mark.parametrize("missing", ["zero", "gap"])
def test_a_metric_whose_every_dimension_is_null_is_one_segment(tmp_path, segwatch, missing):
    own_metric(tmp_path, missing, {"": usual})
    assert run_all(tmp_path, segwatch) == [("<null>", 20, 20, True)]
    assert ask(tmp_path, "select distinct country from revenue") == [(None,)]


def test_any_text_is_the_name_of_a_segment_and_no_text_is_null(tmp_path, segwatch):
    own_metric(tmp_path, "zero", dict.fromkeys(["", *NAMES], usual))
    with (tmp_path / "rows.csv").open("a") as file:
        # Quoted, an empty text is a text.
        file.writelines(f'{END[:-2]}{23 - i:02d},"",{usual(i)}\n' for i in range(23))
    published = run_all(tmp_path, segwatch)
    assert sorted(published) == sorted([("", 20, 0, False), *((name, 20, 20, True) for name in ["<null>", *NAMES])])
    page = (tmp_path / "segwatch-report.html").read_text()
    assert "\\u003cscript>alert(1)" in page and "<script>alert(1)" not in page
    segwatch(tmp_path, "infer", "--as-of", END, "--select", "country=a/b\\c", "--select", "country=two\nlines")
    rerun = "select country from predictions group by country having count(distinct run_id) = 2 order by country"
    assert ask(tmp_path, rerun) == [("a/b\\c",), ("two\nlines",)]


@pytest.mark.parametrize("value", [5, 0])
def test_a_constant_segment_is_scored_and_what_breaks_it_is_found(tmp_path, segwatch, value):
    own_metric(tmp_path, "zero", {"it": lambda i: value + 30 * (i == 5)})
    assert run_all(tmp_path, segwatch) == [("it", 20, 20, True)]
    assert ask(tmp_path, "select ts::date::varchar, value from predictions where is_anomaly") == [
        ("2026-11-18", value + 30.0)
    ]


def test_a_segment_that_is_too_young_alone_cannot_be_trained_and_is_named(tmp_path, segwatch):
    own_metric(tmp_path, "zero", {"it": usual}, days=60)
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    said = error(segwatch(tmp_path, "train", "--as-of", SPLIT, code=3))
    assert f"no segment of revenue can be trained in [2026-09-25, {SPLIT}); the first, it: 40 periods" in said
    assert "segwatch train" in error(segwatch(tmp_path, "infer", "--as-of", SPLIT, code=3))
    listed = segwatch(tmp_path, "models", "list")
    assert listed.stdout == "" and "has no version yet: run `segwatch train`" in listed.stderr
