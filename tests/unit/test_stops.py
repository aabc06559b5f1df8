"""Stop sequences: wherever the text is cut, the same is shown and the same ends it."""

from hypothesis import given
from hypothesis import strategies as st

from codeparrot.stops import StopSequences

LETTERS = st.text("ab\n", max_size=12)


@given(st.lists(LETTERS), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_before_the_first_stop_sequence(pieces: list[str], stop: list[str]) -> None:
    stops, shown, over = StopSequences(stop), "", False
    for count, piece in enumerate(pieces, 1):
        text, over = stops.push(piece)
        shown += text
        whole = "".join(pieces[:count])
        ends = min((place for each in stop if (place := whole.find(each)) >= 0), default=None)
        assert over == (ends is not None)
        if over:
            assert shown == whole[:ends]
            break
        assert whole.startswith(shown)
        assert len(whole) - len(shown) < max(map(len, stop), default=1)
    if not over:
        assert shown + stops.end() == "".join(pieces)


def test_text_that_cannot_become_a_stop_sequence_is_shown_at_once() -> None:
    stops = StopSequences(["\ndef"])
    assert stops.push("x\nd") == ("x", False)
    assert stops.push("og") == ("\ndog", False)
    assert stops.push("\nde") == ("", False)
    assert stops.push("f g") == ("", True)
