"""What the engine says of a choice, as clients are told."""

import pytest

from codeparrot.completion import Event, TokenScore
from codeparrot.exported import Pretrained
from codeparrot.served_choice import ServedChoice
from codeparrot.vocabulary import Vocabulary


@pytest.mark.parametrize("drawn", [5, 9])
def test_of_two_tokens_with_the_same_text_the_likelier_is_told(tiny: Pretrained, drawn: int) -> None:
    choice = ServedChoice(0, Vocabulary(tiny.tokenizer), lambda token: "b" if token == 7 else "a", None, logprobs=3)
    score = TokenScore(drawn, -3.0, ((5, -1.0), (7, -2.0), (6, -3.0)))
    (scored,) = choice.take(Event(0, drawn, "a", "length", score)).tokens
    assert scored.top == {"a": -1.0, "b": -2.0}
