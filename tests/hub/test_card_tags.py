"""Tags of a card that somebody has written."""

import yaml

from polyrec.hub.card import tagged


def test_tags_join_those_of_a_card_and_its_text_stays():
    """Prevents a push from losing what a card says, its own tags, or from writing a line of dashes into its text."""
    card = tagged("---\nlicense: mit\ntags:\n- own\n---\n# My model\n\nWords.\n", ["shop"])
    _, head, text = card.split("---\n")
    found = yaml.safe_load(head)
    assert found["license"] == "mit"
    assert {"own", "shop"} <= set(found["tags"])
    assert text.strip() == "# My model\n\nWords."
