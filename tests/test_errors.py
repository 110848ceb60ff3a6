"""Validation of user input."""

import numpy as np
import pytest

from litchar.errors import UserError, check_integer, first_line


@pytest.mark.parametrize("value", [1, 3, np.int64(2)])
def test_a_whole_number_in_the_range_passes(value):
    check_integer("key", value, 1, 3)


@pytest.mark.parametrize("value", [0, 4, 1.0, "1", None, True, float("nan")])
def test_anything_else_is_refused_with_the_range(value):
    with pytest.raises(UserError, match=f"^key={value}: must be a whole number from 1 to 3$"):
        check_integer("key", value, 1, 3)


def test_a_range_may_have_no_end():
    check_integer("key", 10**30, 0)
    with pytest.raises(UserError, match=r"^key=-1: must be a whole number of at least 0$"):
        check_integer("key", -1, 0)


def test_an_error_without_a_message_is_named_by_its_type():
    assert first_line(OSError("\n one\ntwo")) == "one"
    assert first_line(MemoryError()) == "MemoryError"
