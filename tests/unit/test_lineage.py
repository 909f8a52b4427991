"""Which objects of a store a reader may see: the answers are worked by hand from the rules of the lineage."""

from itertools import product

import pytest

from muon_core.store.keys import ROOT, Attempt, ObjectSlice, Pack, PackedRun, final_key, live_key
from muon_core.store.lineage import BrokenLineage, _visible_of_run, lineage, visible_slices

A = Attempt("00001.aa", ROOT, 0, "r")
B = Attempt("00002.bb", "00001.aa", 10, "r")
ZOMBIE = Attempt("00003.cc", "00001.aa", 10, "r")


def shown(attempts: list[Attempt], data: list[str], table: str = "val") -> list[tuple[str, int | None]]:
    return [(item.key, item.bound) for item in visible_slices([a.key for a in attempts], data, table)]


def test_lineage_bounds_a_parent_by_its_childs_resume_point() -> None:
    assert lineage({a.id: a for a in (A, B)}) == [(B, None), (A, 10)]


def test_lineage_leaves_out_an_attempt_that_is_no_ancestor_of_the_head() -> None:
    head = Attempt("00004.dd", "00002.bb", 15, "r")
    assert lineage({a.id: a for a in (A, B, ZOMBIE, head)}) == [(head, None), (B, 15), (A, 10)]


def test_lineage_keeps_the_tightest_bound_when_a_later_attempt_rolls_back_further() -> None:
    rolled_back = Attempt("00003.cc", "00002.bb", 5, "r")
    assert lineage({a.id: a for a in (A, B, rolled_back)}) == [(rolled_back, None), (B, 5), (A, 5)]


def test_lineage_refuses_a_missing_parent_instead_of_losing_its_rows() -> None:
    with pytest.raises(BrokenLineage, match=r"attempt 00002\.bb continues 00001\.aa, whose start record is missing"):
        lineage({B.id: B})


def test_visible_takes_the_longest_version_of_a_segment() -> None:
    data = [live_key("val", "r", A.id, 0, 5), live_key("val", "r", A.id, 0, 9), live_key("val", "r", A.id, 9, 12)]
    assert shown([A], data) == [(data[1], None), (data[2], None)]


def test_visible_cuts_a_parent_at_the_resume_point_and_hides_what_lies_beyond() -> None:
    parent = [live_key("val", "r", A.id, 0, 8), live_key("val", "r", A.id, 8, 14), live_key("val", "r", A.id, 14, 20)]
    child = [live_key("val", "r", B.id, 10, 12)]
    assert shown([A, B], parent + child) == [(child[0], None), (parent[0], None), (parent[1], 10)]


def test_visible_hides_a_zombie_that_writes_after_its_successor_started() -> None:
    child = live_key("val", "r", B.id, 10, 12)
    data = [live_key("val", "r", A.id, 0, 10), live_key("val", "r", A.id, 10, 90), child]
    assert shown([A, B], data) == [(child, None), (data[0], None)]


def test_visible_lets_a_final_stand_for_its_attempt_and_all_before() -> None:
    final = final_key("val", "r", B.id, 12, "0123456789abcdef")
    data = [live_key("val", "r", A.id, 0, 10), live_key("val", "r", B.id, 10, 12), final]
    assert shown([A, B], data) == [(final, None)]


def test_visible_uses_a_final_up_to_the_point_a_later_attempt_continues_from() -> None:
    extended = Attempt("00003.cc", B.id, 11, "r")
    data = [final_key("val", "r", B.id, 12, "0123456789abcdef"), live_key("val", "r", extended.id, 11, 20)]
    assert shown([A, B, extended], data) == [(data[1], None), (data[0], 11)]


def test_visible_takes_a_final_up_to_its_hi_and_live_rows_from_there() -> None:
    final = final_key("val", "r", A.id, 10, "0123456789abcdef")
    early, late = live_key("val", "r", A.id, 0, 14), live_key("val", "r", A.id, 14, 20)
    found = visible_slices([A.key], [live_key("val", "r", A.id, 0, 9), early, late, final], "val")
    assert [(item.key, item.start, item.end) for item in found] == [(early, 10, 14), (late, 0, 20), (final, 0, 10)]


def test_visible_reads_an_ancestors_rows_from_the_final_of_a_branch_that_shares_them() -> None:
    final = final_key("val", "r", B.id, 30, "0123456789abcdef")
    head = Attempt("00003.cc", A.id, 7, "r")
    tail = live_key("val", "r", head.id, 7, 9)
    assert shown([A, B, head], [final, tail]) == [(tail, None), (final, 7)]


def test_visible_takes_one_of_two_finals_that_hold_the_same_and_the_larger_pack_before_both() -> None:
    finals = [final_key("val", "r", A.id, 10, digit * 16) for digit in "ab"]
    assert shown([A], finals) == [(finals[1], None)]
    small = Pack("packs/table=val/ff.parquet", (PackedRun("r", A.id, 10),))
    large = Pack("packs/table=val/00.parquet", (PackedRun("q", A.id, 10), PackedRun("r", A.id, 10)))
    (item,) = visible_slices([A.key], finals, "val", [large, small])
    assert (item.key, item.bound, item.num_runs) == (large.key, None, 2)


def test_visible_passes_over_a_pack_of_an_earlier_end_of_the_run() -> None:
    old = Pack("packs/table=val/ff.parquet", (PackedRun("q", A.id, 10), PackedRun("r", A.id, 10)))
    final = final_key("val", "r", A.id, 12, "0123456789abcdef")
    assert [item.key for item in visible_slices([A.key], [final], "val", [old])] == [final]


def test_visible_shows_nothing_of_a_run_without_start_record_or_of_another_table() -> None:
    assert shown([], [live_key("val", "r", A.id, 0, 5)]) == []
    assert shown([A], [live_key("val", "r", A.id, 0, 5)], table="train") == []


def test_visible_ignores_names_outside_the_grammar() -> None:
    good = live_key("val", "r", A.id, 0, 5)
    assert shown([A], [good, f"{good}.tmp", "live/table=val/run=r/notes.txt"]) == [(good, None)]


def test_visible_takes_a_row_from_one_of_two_segments_that_overlap() -> None:
    tail, whole = live_key("val", "r", A.id, 4, 10), live_key("val", "r", A.id, 0, 8)
    found = visible_slices([A.key], [tail, whole], "val")
    assert [(item.key, item.start, item.end) for item in found] == [(whole, 0, 8), (tail, 8, 10)]


def test_visible_records_a_broken_run_and_shows_the_others() -> None:
    other = Attempt("00001.aa", ROOT, 0, "q")
    data = [live_key("val", run, id_, 0, 5) for run, id_ in (("q", other.id), ("r", B.id))]
    problems: dict[str, str] = {}
    assert [item.run for item in visible_slices([other.key, B.key], data, "val", problems=problems)] == ["q"]
    assert list(problems) == ["r"]
    with pytest.raises(BrokenLineage, match="run r: attempt"):
        visible_slices([other.key, B.key], data, "val")


def test_a_run_of_one_attempt_is_read_as_the_rules_for_any_say() -> None:
    """Its finals in every order, of it and of an attempt without start record, some of equal length."""
    finals = [
        ObjectSlice(f"{attempt}.{hi}.{twin}", "r", attempt, final=True, hi=hi)
        for attempt, hi, twin in product((A.id, B.id), (0, 3, 7), "xy")
    ]
    for some in product(finals, repeat=3):
        by_any_rule = _visible_of_run({A.id: A}, {"no attempt's": []}, list(some))
        assert _visible_of_run({A.id: A}, {}, list(some)) == by_any_rule
