import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.panel import Panel, build_panel
from segwatch.core.schema import observations_schema
from segwatch.core.segment import label, segment_id
from segwatch.core.window import Window, length
from segwatch.errors import DataError, UsageError

WINDOW = Window(np.datetime64("2024-02-26"), np.datetime64("2024-03-03"))
DIMENSIONS = ("country", "channel")


def observations(rows):
    """rows: (day, country, channel, value[, n_rows])."""
    filled = [(np.datetime64(r[0], "us"), *r[1:4], r[4] if len(r) > 4 else 1) for r in rows]
    columns = list(zip(*filled, strict=True)) or [[]] * 5
    return pa.table([pa.array(c) for c in columns], names=["ts", *DIMENSIONS, "value", "n_rows"]).cast(
        observations_schema(DIMENSIONS)
    )


def of_ratio(rows):
    """rows: (day, country, channel, value, denominator[, n_rows])."""
    plain = observations([(*r[:4], *r[5:]) for r in rows])
    at = plain.column_names.index("n_rows")
    table = plain.add_column(at, "denominator", pa.array([r[4] for r in rows], pa.float64()))
    return table.cast(observations_schema(DIMENSIONS, ("value", "denominator")))


def values_of(panel, *names):
    return panel.values[panel.segments.values.index(names)].tolist()


def exposure_of(panel, *names):
    return panel.exposure[panel.segments.values.index(names)].tolist()


def test_a_lone_absent_row_of_a_count_is_a_zero_and_days_before_the_first_row_are_no_observation():
    rows = [(d, "it", "paid", 5.0) for d in WINDOW.times] + [("2024-02-27", "it", "free", 2.0)]
    panel = build_panel(observations(rows), DIMENSIONS, WINDOW, "zero")
    np.testing.assert_equal(values_of(panel, "it", "free"), [np.nan, 2, 0, 0, 0, 0])


def test_a_day_without_any_row_of_a_dimensions_value_is_a_gap():
    rows = [(d, c, k, 5.0) for d in WINDOW.times for c in ("it", "fr") for k in ("paid", "free")]
    kept = [r for r in rows if not (r[1] == "it" and r[0] == np.datetime64("2024-02-29"))]
    panel = build_panel(observations(kept), DIMENSIONS, WINDOW, "zero")
    np.testing.assert_equal(values_of(panel, "it", "paid"), [5, 5, 5, np.nan, 5, 5])
    np.testing.assert_equal(values_of(panel, "fr", "paid"), [5.0] * 6)


def test_every_absence_is_a_gap_where_the_metric_is_no_count():
    rows = [
        ("2024-02-26", "it", "paid", 5.0),
        ("2024-02-28", "it", "paid", -1.0),
        ("2024-02-27", "fr", "paid", 1.0),
    ]
    panel = build_panel(observations(rows), DIMENSIONS, WINDOW, "gap")
    np.testing.assert_equal(values_of(panel, "it", "paid"), [5, np.nan, -1, np.nan, np.nan, np.nan])


def test_several_rows_of_one_segment_and_day_are_refused_where_they_cannot_be_summed():
    rows = [("2024-02-29", "it", "paid", 5.0, 2)]
    with pytest.raises(DataError, match="it/paid has 2 rows at 2024-02-29"):
        build_panel(observations(rows), DIMENSIONS, WINDOW, "gap")
    assert build_panel(observations(rows), DIMENSIONS, WINDOW, "zero").values[0, 3] == 5


def test_segments_known_before_keep_their_place_and_their_zeros():
    before = build_panel(observations([("2024-02-26", "it", "paid", 1.0)]), DIMENSIONS, WINDOW, "zero")
    later = Window(np.datetime64("2024-03-03"), np.datetime64("2024-03-05"))
    rows = [("2024-03-03", "fr", "free", 2.0), ("2024-03-04", "fr", "free", 2.0)]
    panel = build_panel(observations(rows), DIMENSIONS, later, "zero", before.history)
    assert panel.segments.values == (("it", "paid"), ("fr", "free"))
    assert panel.values.tolist() == [[0, 0], [2, 2]]
    assert panel.ended(7)[0].tolist() == [False, True]


@pytest.mark.parametrize("missing", ["zero", "gap"])
def test_every_absence_of_a_ratio_and_every_denominator_of_zero_is_a_gap(missing):
    rows = [(d, "it", "paid", 5.0, 50.0) for d in WINDOW.times]
    rows += [("2024-02-27", "it", "free", 0.0, 8.0), ("2024-02-28", "it", "free", 2.0, 0.0)]
    rows += [("2024-03-01", "it", "free", 3.0, 4.0), ("2024-03-02", "it", "free", 0.0, 0.0)]
    panel = build_panel(of_ratio(rows), DIMENSIONS, WINDOW, missing)
    assert values_of(panel, "it", "paid") == [5.0] * 6
    assert exposure_of(panel, "it", "paid") == [50.0] * 6
    np.testing.assert_equal(values_of(panel, "it", "free"), [np.nan, 0, np.nan, np.nan, 3, np.nan])
    np.testing.assert_equal(exposure_of(panel, "it", "free"), [np.nan, 8, np.nan, np.nan, 4, np.nan])


def test_a_row_of_a_ratio_without_a_denominator_is_neither_birth_nor_sign_of_life():
    rows = [(d, "it", "paid", 1.0, float(d in WINDOW.times[2:4])) for d in WINDOW.times]
    rows += [("2024-02-26", "it", "free", 0.0, 0.0)]
    panel = build_panel(of_ratio(rows), DIMENSIONS, WINDOW, "zero")
    assert panel.segments.values == (("it", "paid"),)
    assert panel.history.first_seen == WINDOW.times[2] and panel.history.last_seen == WINDOW.times[3]


@pytest.mark.parametrize("missing", ["zero", "gap"])
def test_several_rows_of_a_ratio_are_summed_whatever_is_missing(missing):
    panel = build_panel(of_ratio([("2024-02-29", "it", "paid", 5.0, 9.0, 2)]), DIMENSIONS, WINDOW, missing)
    assert (panel.values[0, 3], panel.exposure[0, 3]) == (5, 9)


def test_a_ratio_never_tried_has_no_panel_unless_its_segments_are_known():
    before = build_panel(of_ratio([("2024-02-26", "it", "paid", 1.0, 2.0)]), DIMENSIONS, WINDOW, "zero")
    later = Window(np.datetime64("2024-03-03"), np.datetime64("2024-03-05"))
    never = of_ratio([("2024-03-03", "it", "paid", 0.0, 0.0)])
    with pytest.raises(DataError, match=r"every denominator in the Window \[2024-03-03, 2024-03-05\) is zero"):
        build_panel(never, DIMENSIONS, later, "zero")
    panel = build_panel(never, DIMENSIONS, later, "zero", before.history)
    assert panel.segments == before.segments
    np.testing.assert_equal(panel.values, np.full((1, 2), np.nan))
    np.testing.assert_equal(panel.exposure, panel.values)


def test_a_taken_panel_keeps_its_exposure():
    rows = [("2024-02-26", c, "paid", 1.0, n) for c, n in (("de", 2.0), ("fr", 3.0), ("it", 4.0))]
    panel = build_panel(of_ratio(rows), DIMENSIONS, WINDOW, "zero").take([2, 0])
    assert panel.segments.values == (("it", "paid"), ("de", "paid"))
    assert panel.exposure[:, 0].tolist() == [4, 2]


text = st.text(min_size=0, max_size=6)
cells = st.dictionaries(
    st.tuples(st.integers(0, 5), text, text), st.integers(0, 10**6).map(float), min_size=1, max_size=25
)


@given(cells, st.randoms())
def test_a_panel_holds_every_observation_whatever_the_order_of_rows(cells, random):
    rows = [(WINDOW.start + length(d, "day"), c, k, v) for (d, c, k), v in cells.items()]
    panel = build_panel(observations(rows), DIMENSIONS, WINDOW, "zero")
    for day, country, channel, value in rows:
        place = panel.segments.position[segment_id(DIMENSIONS, (country, channel))]
        assert panel.values[place, int((day - WINDOW.start).astype(int))] == value
    random.shuffle(rows)
    again = build_panel(observations(rows), DIMENSIONS, WINDOW, "zero")
    assert again.segments == panel.segments
    np.testing.assert_array_equal(again.values, panel.values)


counts = st.integers(0, 10**6).map(float)
tried = st.dictionaries(
    st.tuples(st.integers(0, 5), text, text), st.tuples(counts, counts.map(lambda n: n + 1)), min_size=1, max_size=25
)


@given(tried, st.dictionaries(st.tuples(st.integers(0, 5), text, text), counts, max_size=5), st.randoms())
def test_a_ratios_panel_is_that_of_its_positive_denominators_whatever_the_order_of_rows(tried, never, random):
    rows = [(WINDOW.start + length(d, "day"), c, k, v, n) for (d, c, k), (v, n) in tried.items()]
    panel = build_panel(of_ratio(rows), DIMENSIONS, WINDOW, "zero")
    for day, country, channel, value, denominator in rows:
        place = panel.segments.position[segment_id(DIMENSIONS, (country, channel))]
        column = int((day - WINDOW.start).astype(int))
        assert (panel.values[place, column], panel.exposure[place, column]) == (value, denominator)
    assert np.isfinite(panel.values).sum() == np.isfinite(panel.exposure).sum() == len(rows)
    rows += [(WINDOW.start + length(k[0], "day"), *k[1:], v, 0.0) for k, v in never.items() if k not in tried]
    random.shuffle(rows)
    again = build_panel(of_ratio(rows), DIMENSIONS, WINDOW, "gap")
    assert again.segments == panel.segments
    np.testing.assert_array_equal(again.values, panel.values)
    np.testing.assert_array_equal(again.exposure, panel.exposure)


def test_a_saved_panel_of_a_ratio_loads_as_it_was(tmp_path):
    rows = [("2024-02-26", "it", "paid", 1.0, 2.0), ("2024-02-28", "fr", "paid", 3.0, 4.0)]
    panel = build_panel(of_ratio(rows), DIMENSIONS, WINDOW, "zero")
    panel.save(tmp_path / "it")
    loaded = Panel.load(tmp_path / "it")
    np.testing.assert_array_equal(loaded.values, panel.values)
    np.testing.assert_array_equal(loaded.exposure, panel.exposure)


@given(cells)
def test_a_saved_panel_loads_as_it_was(tmp_path_factory, cells):
    rows = [(WINDOW.start + length(d, "day"), c, k, v) for (d, c, k), v in cells.items()]
    panel = build_panel(observations(rows), DIMENSIONS, WINDOW, "zero")
    directory = tmp_path_factory.mktemp("panel") / "it"
    panel.save(directory)
    loaded = Panel.load(directory)
    assert loaded.segments == panel.segments
    assert loaded.exposure is None
    np.testing.assert_array_equal(loaded.values, panel.values)
    np.testing.assert_array_equal(loaded.history.last_seen, panel.history.last_seen)


def test_ids_tell_apart_what_labels_do_not():
    assert label(("a/b", "c")) == label(("a", "b/c"))
    assert segment_id(DIMENSIONS, ("a/b", "c")) != segment_id(DIMENSIONS, ("a", "b/c"))


def test_an_empty_window_is_refused():
    with pytest.raises(UsageError, match="is empty"):
        Window(np.datetime64("2024-03-01"), np.datetime64("2024-03-01"))


def test_a_panel_in_files_is_as_one_in_memory(tmp_path):
    rows = [(d, c, k, i + 5.0, i + 9.0) for i, d in enumerate(WINDOW.times[1:]) for c in ("it", "fr") for k in "xy"][1:]
    for table, kind in ((observations([r[:4] for r in rows]), "zero"), (of_ratio(rows), "gap")):
        plain = build_panel(table, DIMENSIONS, WINDOW, kind)
        in_file = build_panel(table, DIMENSIONS, WINDOW, kind, room=tmp_path)
        for ours, theirs in ((in_file.values, plain.values), (in_file.exposure, plain.exposure)):
            np.testing.assert_array_equal(ours, theirs)
        assert in_file.history.segments == plain.history.segments
        np.testing.assert_array_equal(in_file.last(2).values, plain.values[:, -2:])
        assert in_file.last(2).window.start == WINDOW.times[-2]
