"""Completions of many prompts at once are those of each by itself."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from codeparrot.completion import Completion, Event, Request, Row, completion
from codeparrot.engine import Engine, EngineSettings, require_decoder
from codeparrot.errors import GenerationError
from codeparrot.exported import Pretrained
from codeparrot.model import ModelSettings, build_model, model_config
from codeparrot.vocabulary import Vocabulary

PROMPTS = ["def ", "import numpy as np\n", "class A:\n    def __init__(self", "x = ", "", "\u20ac \u00e9" * 3, "def "]
CONTEXT = 128


@pytest.fixture(scope="module")
def vocabulary(tiny: Pretrained) -> Vocabulary:
    return Vocabulary(tiny.tokenizer)


@pytest.fixture(scope="module")
def requests(vocabulary: Vocabulary) -> list[Request]:
    """Of every kind: greedy and drawn, with and without stop sequences and penalties, short and long."""
    kinds = itertools.cycle([(0.0, 1.0), (0.8, 0.95), (1.0, 1.0), (1.3, 0.5)])
    return [
        Request(
            vocabulary.encode(prompt),
            max_new_tokens=4 + number % 23,
            temperature=temperature,
            top_p=top_p,
            seed=number,
            stop=("on", "e f") if number % 2 else (),
            repetition_penalty=1.2 if number % 3 == 0 else 1.0,
        )
        for number, (prompt, (temperature, top_p)) in enumerate(zip(PROMPTS * 6, kinds, strict=False))
    ]


def engine_of(tiny: Pretrained, **room: int) -> Engine:
    return Engine(tiny.model, Vocabulary(tiny.tokenizer), EngineSettings(**room))


def alone(tiny: Pretrained, request: Request) -> Completion:
    return engine_of(tiny).complete([request])[0]


def has_ended(events: list[Event]) -> bool:
    return bool(events) and events[-1].finish_reason is not None


@pytest.mark.parametrize("room", [{"max_batch_size": 3}, {"max_batch_size": 16}, {"max_prompt_tokens": 10}])
def test_completions_do_not_depend_on_the_batch(
    tiny: Pretrained, requests: list[Request], room: dict[str, int]
) -> None:
    assert engine_of(tiny, **room).complete(requests) == engine_of(tiny, max_batch_size=1).complete(requests)


def test_of_rows_that_rounding_could_decide_one_way_decides(
    tiny: Pretrained, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are taken to be such: the cache then decides nothing, and the completions are the same."""
    expected = engine_of(tiny).complete(requests)
    monkeypatch.setattr("codeparrot.engine.MARGIN", 1e9)
    assert engine_of(tiny).complete(requests) == expected


@pytest.mark.parametrize("prompt", PROMPTS[:6])
def test_the_likeliest_tokens_are_those_of_transformers(tiny: Pretrained, vocabulary: Vocabulary, prompt: str) -> None:
    ids = vocabulary.encode(prompt)
    made = alone(tiny, Request(ids, 30, temperature=0))
    inputs: Any = torch.tensor([ids])
    model: Any = tiny.model
    whole = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    assert list(made.token_ids) == whole[0, len(ids) :].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_who_joins_leaves_or_is_cancelled_changes_nothing_for_the_others(
    tiny: Pretrained, requests: list[Request], seed: int
) -> None:
    random = Random(seed)
    engine = engine_of(tiny, max_batch_size=random.randint(2, 5))
    waiting = random.sample(requests, 12)
    events: dict[int, list[Event]] = {}
    asked: dict[int, Request] = {}
    cancelled: set[int] = set()
    while waiting or not engine.idle:
        if waiting and random.random() < 0.5:
            request = waiting.pop()
            number = engine.add(request)
            asked[number], events[number] = request, []
        alive = [number for number in asked if number not in cancelled and not has_ended(events[number])]
        if alive and random.random() < 0.1:
            victim = random.choice(alive)
            assert engine.cancel(victim)
            assert not engine.cancel(victim)
            cancelled.add(victim)
        for event in engine.step():
            assert event.request_id not in cancelled
            events[event.request_id].append(event)
    for number, request in asked.items():
        if number not in cancelled:
            assert completion(events[number]) == alone(tiny, request)
    assert 0 < len(cancelled) < len(asked)


def test_a_stop_sequence_ends_a_completion_across_the_borders_of_tokens(
    tiny: Pretrained, vocabulary: Vocabulary
) -> None:
    request = Request(vocabulary.encode("def "), 40, seed=3)
    text = alone(tiny, request).text
    for length in (1, 3, 7):
        stop = text[10 : 10 + length]
        made = alone(tiny, replace(request, stop=(stop, "never said")))
        assert made.finish_reason == "stop"
        assert made.text == text[: text.index(stop)]
        assert len(made.token_ids) < 40


def test_a_completion_ends_with_its_document_or_at_its_limit(tiny: Pretrained, vocabulary: Vocabulary) -> None:
    request = Request(vocabulary.encode("x = "), 40, seed=1)
    whole = alone(tiny, request)
    assert (whole.finish_reason, len(whole.token_ids)) == ("length", 40)
    ending = Vocabulary(tiny.tokenizer)
    ending.eos_ids = frozenset([whole.token_ids[9]])
    early = Engine(tiny.model, ending).complete([request])[0]
    first = whole.token_ids.index(whole.token_ids[9])
    assert (early.finish_reason, early.token_ids) == ("stop", whole.token_ids[: first + 1])
    assert early.text == vocabulary.decode(whole.token_ids[:first])


def test_other_seeds_give_other_samples_and_those_of_one_prompt_are_computed_once(
    tiny: Pretrained, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = Engine._compute

    def counted(self: Engine, rows: Sequence[Row]) -> None:
        computed.append(len(rows))
        compute(self, rows)

    monkeypatch.setattr(Engine, "_compute", counted)
    prompt = vocabulary.encode("import ")
    samples = engine_of(tiny, max_batch_size=4).complete(Request(prompt, 5 + seed, seed=seed) for seed in range(9))
    assert computed == [1]
    assert len({sample.token_ids[:5] for sample in samples}) == 9


def test_log_probabilities_are_those_of_the_model(tiny: Pretrained, vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("def add(a")
    engine = engine_of(tiny)
    other = engine.add(Request(vocabulary.encode("x"), 6))
    number = engine.add(Request(ids, 4, temperature=0.5, top_logprobs=3, prompt_logprobs=True))
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    own = [event for event in events if event.request_id == number]
    assert all(event.score is None for event in events if event.request_id == other)
    tokens = [*ids, *(event.token_id or 0 for event in own)]
    expected = torch.log_softmax(tiny.model(torch.tensor([tokens])).logits[0], 1).detach()
    scores = [*(own[0].prompt_scores or ()), *(event.score for event in own)]
    assert [score.token_id for score in scores if score] == tokens[1:]
    for place, score in enumerate(scores):
        assert score is not None
        assert score.logprob == pytest.approx(expected[place, score.token_id].item(), abs=1e-4)
        likeliest = torch.topk(expected[place], 3)
        assert [token for token, _ in score.top] == likeliest.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)


def test_a_prompt_can_be_scored_without_any_completion(tiny: Pretrained, vocabulary: Vocabulary) -> None:
    engine = engine_of(tiny)
    engine.add(Request(vocabulary.encode("def add(a"), 0, prompt_logprobs=True))
    (event,) = engine.step()
    assert (event.token_id, event.text, event.finish_reason) == (None, "", "length")
    assert event.prompt_scores
    assert engine.idle


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_ids": []}, "prompt: it is empty"),
        ({"prompt_ids": [600]}, "prompt: 600 is no token of this model, which has 600"),
        ({"max_new_tokens": -1}, "max_new_tokens: must be >= 0, got -1"),
        ({"temperature": float("nan")}, "temperature: must be >= 0, got nan"),
        ({"top_p": 0}, "top_p: must be > 0 and <= 1, got 0"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be > 0, got 0"),
        ({"top_logprobs": 601}, "top_logprobs: must be >= 0 and <= 600, got 601"),
        ({"max_new_tokens": 120}, "context has 128 tokens: 9 of the prompt and 120 of max_new_tokens do not fit"),
        ({"max_new_tokens": 128, "cut_prompt": True}, "do not fit"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(tiny: Pretrained, changed: dict[str, Any], message: str) -> None:
    engine = engine_of(tiny)
    with pytest.raises(GenerationError, match=message):
        engine.add(replace(Request(list(range(1, 10)), 10), **changed))
    assert engine.idle


def test_a_long_prompt_loses_its_beginning_where_that_is_asked_for(
    tiny: Pretrained, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [1 + number % 599 for number in range(300)]
    cut = alone(tiny, Request(ids, 100, cut_prompt=True, seed=5))
    assert "lose their beginning" in caplog.text
    assert cut == alone(tiny, Request(ids[-28:], 100, seed=5))


def test_eager_attention_gives_the_same(tiny: Pretrained, requests: list[Request]) -> None:
    expected = engine_of(tiny).complete(requests[:8])
    tiny.model.set_attn_implementation("eager")
    try:
        assert engine_of(tiny, max_batch_size=5).complete(requests[:8]) == expected
    finally:
        tiny.model.set_attn_implementation("sdpa")


def assert_completes_as_generate_does(
    model: Any, tiny: Pretrained, *, shortest: int = 7, num_tokens: int = 20, which: int = 0
) -> None:
    """The request `which` of five, greedily, as `generate` does; and all of them whatever the batch."""
    asked = [
        Request(range(1, shortest + 1 + 5 * number), num_tokens, temperature=number % 2, seed=number)
        for number in range(5)
    ]
    made = Engine(model, Vocabulary(tiny.tokenizer)).complete(asked)
    ids = torch.tensor([list(asked[which].prompt_ids)])
    seen = torch.ones_like(ids)
    whole = model.generate(ids, attention_mask=seen, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    assert list(made[which].token_ids) == whole[0, ids.shape[1] :].tolist()
    assert made == Engine(model, Vocabulary(tiny.tokenizer), EngineSettings(max_batch_size=1)).complete(asked)


def test_rotary_positions_and_grouped_heads_are_decoded_too(tiny: Pretrained) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
    )
    model: Any = LlamaForCausalLM(config).eval()
    assert_completes_as_generate_does(model, tiny)


def test_nanochat_is_decoded_too(tiny: Pretrained) -> None:
    sizes = ModelSettings(architecture="nanochat", n_layer=2, n_head=4, n_embd=32)
    model: Any = build_model(model_config(sizes, vocab_size=600, max_seq_len=CONTEXT, eos_token_id=0), seed=0).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    assert_completes_as_generate_does(model, tiny)


def test_models_that_forget_are_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
    )
    with pytest.raises(GenerationError, match="not a decoder that the engine can run: its layers keep DynamicSliding"):
        require_decoder(MistralForCausalLM(config))
