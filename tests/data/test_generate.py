import numpy as np
import pyarrow as pa
import pytest

from segwatch.data.generate import KINDS, GeneratorSettings, generate, segment_names
from segwatch.errors import UsageError

END = np.datetime64("2026-11-24")


def rows(batch_segments=500, labels=False, **settings):
    batches = generate(GeneratorSettings(**{"end": END, "days": 300, **settings}), batch_segments)
    return pa.Table.from_batches([batch.labels if labels else batch.observations for batch in batches])


def test_a_value_depends_on_seed_segment_and_day_alone():
    small = rows().to_pylist()
    assert rows(batch_segments=4).to_pylist() == small
    assert rows(segments=9).to_pylist() == [row for row in small if row["country_code"] == "it"]
    assert rows(seed=8).to_pylist() != small
    labelled = {tuple(row.values())[:4] for n in (300, 400) for row in rows(labels=True, days=n).to_pylist()}
    recent = {tuple(row.values()) for row in small if tuple(row.values())[:4] not in labelled}
    longer = {tuple(row.values()) for row in rows(days=400).to_pylist()}
    assert len(recent - longer) < 0.01 * len(recent)


def test_names_are_distinct_and_hold_the_awkward_countries():
    names = list(segment_names(100_000))
    assert len(set(names)) == 100_000
    assert {"no", "na"} <= {country for country, _, _ in names}


def test_about_one_country_day_in_twenty_is_missing():
    table = rows(segments=200, days=400)
    seen = len(set(zip(table["created_at"].to_pylist(), table["country_code"].to_pylist(), strict=True)))
    countries = len(set(table["country_code"].to_pylist()))
    assert 0.03 < 1 - seen / (400 * countries) < 0.07


def test_every_kind_and_severity_is_planted_and_most_lie_in_the_last_60_days():
    labels = rows(labels=True, segments=200, days=1000)
    assert set(labels["kind"].to_pylist()) == set(KINDS)
    assert set(labels["severity"].to_pylist()) == {1, 2, 3}
    days = labels["created_at"].to_numpy()
    assert (days >= END - 60).mean() > 0.6


@pytest.mark.parametrize("wrong", [{"segments": 0}, {"segments": 100_001}, {"days": 0}])
def test_sizes_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        GeneratorSettings(end=END, **wrong)
