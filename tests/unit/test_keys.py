"""The grammar of key names: what is written into a name comes back out of it, and what would break one is refused."""

import pytest

from muon_core.store.keys import check_name, next_id, parse_checkpoint, parse_sweeps


def test_next_id_follows_the_greatest_number() -> None:
    assert next_id([]).startswith("00001.")
    assert next_id(["00002.bb", "00010.aa"]).startswith("00011.")


def test_next_id_differs_between_two_that_pick_the_same_number() -> None:
    assert next_id(["00001.aa"]) != next_id(["00001.aa"])


def test_parse_sweeps_takes_the_newest_record() -> None:
    keys = ["sweeps/demo/00001.ff.json", "sweeps/demo/00002.aa.json", "sweeps/other/00001.bb.json"]
    assert parse_sweeps(keys) == {"demo": keys[1], "other": keys[2]}


def test_parse_checkpoint_tells_what_it_goes_on_from() -> None:
    key = "checkpoints/r/latest/000000030.00002.bb.000000000010.0123456789abcdef.pt"
    assert parse_checkpoint(key) == ("r", "latest", 30, "00002.bb", 10, "0123456789abcdef")
    assert parse_checkpoint("checkpoints/r/config.json") is None


@pytest.mark.parametrize("name", ["a=b", "a b", "a/b", "", "ä", "a[1]", "a*", ".", "..", ".hidden", "-x", "_x"])
def test_check_name_refuses_what_breaks_a_key(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        check_name(name)
