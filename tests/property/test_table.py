"""A table finds its rows as a dict would, whatever the keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.estimators.table import Table

ANY_KEY = st.integers(0, 2**64 - 1)
COLLIDING = st.integers(0, 40).map(lambda number: (number * 0xF1DE83E19937733D) % 2**64)  # neighbours in the slots
KEYS = st.lists(st.lists(st.one_of(st.integers(0, 50), COLLIDING, ANY_KEY), max_size=60), max_size=8)


@given(calls=KEYS)
def test_rows_are_those_of_a_dict_in_order_of_first_appearance(calls: list[list[int]]) -> None:
    table, plain = Table(count=np.int64), {}
    for call in calls:
        keys = np.array(call, dtype=np.uint64)
        assert table.find(keys).tolist() == [plain.get(key, -1) for key in call]
        assert table.rows(keys).tolist() == [plain.setdefault(key, len(plain)) for key in call]
        assert len(table) == len(plain)
    assert table.state_dict()["keys"].tolist() == list(plain)


@given(calls=KEYS)
def test_values_stay_with_their_keys_while_the_table_grows_and_when_it_is_restored(calls: list[list[int]]) -> None:
    table, plain = Table(count=np.int64), {}
    for call in calls:
        keys = np.array(call, dtype=np.uint64)
        rows = table.rows(keys)
        np.add.at(table["count"], rows, 1)
        for key in call:
            plain[key] = plain.get(key, 0) + 1
    known = np.array(list(plain), dtype=np.uint64)
    for found in (table, table.restored(table.state_dict())):
        assert found.read("count", found.find(known)).tolist() == [plain[key] for key in known.tolist()]
