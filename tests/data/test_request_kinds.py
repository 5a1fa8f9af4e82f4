"""What a message calls a value that a request sent."""

import pytest

from polyrec.data.request_reader import _kind


@pytest.mark.parametrize(
    ("value", "kind"), [("3", "text"), (3, "number"), (2.5, "number"), (True, "number"), ([3], "list"), ({}, "dict")]
)
def test_a_message_names_the_kind_of_a_value(value, kind):
    """Prevents a message that calls a number a list, or a list a number."""
    assert _kind(value) == kind
