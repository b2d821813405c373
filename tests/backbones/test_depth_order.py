from __future__ import annotations

from frostline.backbones.depth_order import check_order, filled

BLOCKS = {"a.w": "a", "a.v": "a", "b.w": "b", "b.v": "b", "c.w": "c", "c.v": "c"}
PLACES = {"a.w": 0, "a.v": 0, "b.w": 1, "b.v": 1, "c.w": 2, "c.v": 2}
RANKS = {"a.w": 1.0, "a.v": 2.0, "b.w": 4.0, "b.v": 5.0, "c.w": 7.0, "c.v": 8.0}


def test_an_order_that_is_that_of_first_use_stays() -> None:
    checked = check_order(PLACES, RANKS, BLOCKS)
    assert dict(checked.places) == PLACES
    assert checked.contradictions == ()


def test_a_tensor_without_a_block_goes_where_it_is_first_used() -> None:
    ranks = {"token": 4.5, "table": 0.0, "norm.w": 9.0, **RANKS}
    checked = check_order({"token": 0, "table": 2, "norm.w": 1, **PLACES}, ranks, BLOCKS)
    assert {name: checked.places[name] for name in ("token", "table", "norm.w")} == {
        "token": 1,
        "table": 0,
        "norm.w": 2,
    }
    assert checked.contradictions == ()


def test_between_two_places_a_layer_goes_with_the_first_and_a_tensor_of_the_model_with_the_second() -> None:
    checked = check_order(PLACES, {"norm.w": 2.5, "token": 3.0, **RANKS}, BLOCKS)
    assert (checked.places["norm.w"], checked.places["token"]) == (0, 1)


def test_a_tensor_that_was_placed_on_either_side_of_a_cut_stays_there() -> None:
    for place in (0, 1):
        checked = check_order({"token": place, **PLACES}, {"token": 3.0, **RANKS}, BLOCKS)
        assert checked.places["token"] == place


def test_blocks_in_another_order_than_they_are_used_in_are_named() -> None:
    turned = {name: 2 - place for name, place in PLACES.items()}
    assert check_order(turned, RANKS, BLOCKS).contradictions
    swapped = {**PLACES, "b.w": 2, "b.v": 2, "c.w": 1, "c.v": 1}
    assert set(check_order(swapped, RANKS, BLOCKS).contradictions) & {"b", "c"}


def test_a_place_that_holds_two_blocks_with_another_between_them_is_a_contradiction() -> None:
    checked = check_order({**PLACES, "c.w": 0, "c.v": 0}, RANKS, BLOCKS)
    assert set(checked.contradictions) & {"a", "c"}


def test_a_block_stays_whole_where_one_of_its_tensors_is_used_early() -> None:
    checked = check_order({**PLACES, "c.x": 2}, {**RANKS, "c.w": 0.0, "c.x": 9.0}, {**BLOCKS, "c.x": "c"})
    assert (checked.places["c.w"], checked.places["c.x"]) == (2, 2)
    assert checked.contradictions == ()


def test_a_block_that_has_no_place_goes_to_one_as_a_whole() -> None:
    places = {name: place for name, place in PLACES.items() if not name.startswith("b")}
    checked = check_order(places, RANKS, BLOCKS)
    assert checked.places["b.w"] == checked.places["b.v"]


def test_a_place_of_stray_tensors_that_is_out_of_order_is_given_up() -> None:
    checked = check_order({"token": 3, **PLACES}, {"token": 0.0, **RANKS}, BLOCKS)
    assert checked.places["token"] == 0
    assert set(checked.places.values()) == {0, 1, 2}


def test_what_is_never_used_counts_as_used_with_the_one_registered_before_it() -> None:
    names = ["mask", "a.w", "a.unused", "b.w", "b.unused"]
    assert filled({"a.w": 3, "b.w": 7}, names) == {"mask": 3, "a.w": 3, "a.unused": 3, "b.w": 7, "b.unused": 7}
