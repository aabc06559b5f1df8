"""bf16 only where it pays."""

import logging

import pytest

from codeparrot import precision
from codeparrot.precision import choose_precision


def test_bf16_is_replaced_by_fp32_with_a_message_on_a_cpu_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert choose_precision("bf16", "cpu") == "fp32"
    assert "this CPU has no bf16 arithmetic" in caplog.text
    caplog.clear()
    assert choose_precision("auto", "cpu") == "fp32"
    assert caplog.text == ""


def test_bf16_is_used_on_a_cpu_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    assert choose_precision("bf16", "cpu") == "bf16"
    assert choose_precision("fp32", "cpu") == "fp32"
