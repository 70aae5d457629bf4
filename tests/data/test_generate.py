import tracemalloc
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from quality import data, robust_z
from sklearn.metrics import average_precision_score

from segwatch.core.window import length
from segwatch.data.generate import KINDS, GeneratorSettings, generate, segment_names
from segwatch.errors import UsageError

END = np.datetime64("2026-11-24")


def rows(batch_segments=500, labels=False, **settings):
    batches = generate(GeneratorSettings(**{"end": END, "days": 300, **settings}), batch_segments)
    return pa.Table.from_batches([batch.labels if labels else batch.observations for batch in batches])


def keyed(table):
    return {tuple(row.values())[:4]: row["new_users"] for row in table.to_pylist()}


def test_a_value_depends_on_seed_segment_and_day_alone():
    small = rows()
    assert rows(batch_segments=4).equals(small)
    assert rows(segments=9).to_pylist() == [row for row in small.to_pylist() if row["country_code"] == "it"]
    assert keyed(rows(segments=200)).items() >= keyed(small).items()
    assert rows(seed=8).to_pylist() != small.to_pylist()
    assert keyed(rows(days=400)).items() >= keyed(small).items()


@pytest.mark.parametrize("days", [1, 3, 8, 65, 301])
def test_where_the_range_begins_changes_neither_values_nor_labels(days):
    for labels in (False, True):
        shorter = rows(labels=labels, days=days, segments=90).to_pylist()
        first = (END - length(days, "day")).item()
        longer = rows(labels=labels, days=500, segments=90).to_pylist()
        assert shorter == [row for row in longer if row["created_at"] >= first]


def test_a_later_end_changes_only_what_old_events_touched():
    earlier, later = keyed(rows(end=END - length(30, "day"))), keyed(rows(days=330))
    labelled = {tuple(row.values())[:4] for row in rows(end=END - length(30, "day"), labels=True).to_pylist()}
    assert {key for key in earlier if earlier[key] != later.get(key)} < labelled


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
    assert (days >= END - length(60, "day")).mean() > 0.6


@pytest.mark.parametrize("wrong", [{"segments": 0}, {"segments": 100_001}, {"days": 0}])
def test_sizes_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        GeneratorSettings(end=END, **wrong)


def average_precision_of_robust_z(segments, seed):
    panel, events = data(segments, seed, days=200)
    scores = robust_z(np.log1p(panel.values))
    seen = np.isfinite(scores)
    return average_precision_score(events[seen] >= 0, scores[seen])


def test_a_weekday_z_score_finds_it_neither_easy_nor_hopeless():
    for segments, seed in ((200, 1), (200, 2), (200, 3), (27, 7)):
        assert 0.70 <= average_precision_of_robust_z(segments, seed) <= 0.80, (segments, seed)
    assert 0.70 <= np.mean([average_precision_of_robust_z(27, seed) for seed in range(1, 13)]) <= 0.80


def test_a_drop_is_never_planted_where_zero_is_ordinary():
    labels = rows(labels=True, segments=400, days=60).to_pylist()
    values = keyed(rows(segments=400, days=360))
    for row in labels:
        key = tuple(row.values())[:4]
        if row["kind"] in ("drop", "zero_out"):
            before = [values.get((key[0] - timedelta(7 * k), *key[1:])) for k in range(3, 11)]
            assert np.median([v or 0 for v in before]) >= 4, row


def test_an_outage_leaves_a_few_rows_and_fewer_when_severe():
    labels = rows(labels=True, segments=400, days=60).to_pylist()
    values = keyed(rows(segments=400, days=360))
    left = {1: [], 2: [], 3: []}
    for row in labels:
        if row["kind"].endswith("outage"):
            key = tuple(row.values())[:4]
            before = np.median([values.get((key[0] - timedelta(7 * k), *key[1:]), 0) for k in range(3, 11)])
            assert values[key] >= 1
            if before > 1000:
                left[row["severity"]].append(values[key] / before)
    assert np.median(left[1]) > 2 * np.median(left[2]) > 4 * np.median(left[3]) > 0


def ordinary(segments=60, days=730):
    """Log values (n_segments, n_days) of large segments, and their days."""
    panel, _ = data(segments, 5, days)
    large = np.nanmedian(panel.values, axis=1) > 300
    y = np.log1p(panel.values[large])
    return y, panel.window.times


def noise(y):
    """What a moving mean of the same weekday leaves."""
    with np.errstate(all="ignore"):
        around = np.nanmedian([np.roll(y, 7 * k, axis=1) for k in (-3, -2, -1, 1, 2, 3)], axis=0)
    return (y - around)[:, 28:-90]


def test_counts_are_over_dispersed_and_autocorrelated():
    y, _ = ordinary()
    rest = noise(y)
    spread = 1.48 * np.nanmedian(np.abs(rest), axis=1)
    assert np.all(spread > 1.3 * np.exp(-np.nanmedian(y, axis=1) / 2))
    rest = np.clip(rest, -3 * spread[:, None], 3 * spread[:, None])
    lagged = np.nanmean(rest[:, 1:] * rest[:, :-1], axis=1) / np.nanvar(rest, axis=1)
    assert np.median(lagged) > 0.1


def test_weekdays_and_holidays_differ():
    y, times = ordinary()
    weekday = (times.astype(np.int64) + 3) % 7
    profile = np.array([np.nanmedian(y[:, weekday == d], axis=1) for d in range(7)])
    assert np.median(np.ptp(profile, axis=0)) > 0.1
    rest, inside = noise(y), times[28:-90]
    christmas = inside == np.datetime64("2025-12-25")
    spread = 1.48 * np.nanmedian(np.abs(rest), axis=1)
    assert np.nanmedian(np.abs(rest[:, christmas][:, 0]) / spread) > 1.5


def test_memory_does_not_grow_with_the_number_of_segments():
    def peak(segments):
        tracemalloc.start()
        for _ in generate(GeneratorSettings(end=END, days=20, segments=segments), batch_segments=250):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1000)
    assert peak(10_000) < 1.3 * peak(2_000)
