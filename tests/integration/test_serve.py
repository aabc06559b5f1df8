"""The command: a model behind Ray Serve, with a real Ray, until it is told to end."""

import secrets
import signal
from pathlib import Path

import openai
import pytest

from codeparrot.completion import Request
from codeparrot.engine import Engine
from codeparrot.ports import free_ports
from tests.integration.conftest import LOOPBACK, Process, listeners, micro_recipe, processes_with, wait_until
from tests.served import NAME, tiny

PROMPT = "def add(self, name):\n    "


def test_a_model_served_by_two_replicas_answers_and_ends_in_order(tmp_path: Path) -> None:
    import yaml

    served = tiny(tmp_path / NAME)
    (port,) = free_ports(1)
    keys, recipe, state = tmp_path / "keys", tmp_path / "recipe.yaml", tmp_path / "state"
    key = secrets.token_hex(16)
    keys.write_text(key)
    recipe.write_text(yaml.safe_dump({**micro_recipe(), "storage": {"uri": str(tmp_path / "storage")}}))
    command = ["-m", "ray_jobs.serve", "--config", str(recipe), "--set", "serve.max_batch_size=1"]
    command += ["--set", "serve.num_replicas=2", "--set", "serve.resources_per_replica={CPU: 0.5}"]
    command += ["--checkpoint", str(tmp_path / NAME), "--port", str(port), "--api-keys", str(keys)]
    server = Process.of_python(command, {"CODEPARROT_STATE": str(state)})
    server.wait_for("ready: http://127.0.0.1:")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120)
    try:
        (expected,) = Engine(served.model, served.vocabulary).complete(
            [Request(served.vocabulary.encode(PROMPT), 20, temperature=0)]
        )
        answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=20, temperature=0)
        assert answer.choices[0].text == expected.text
        sampled = [
            client.completions.create(model=NAME, prompt=PROMPT, max_tokens=9, seed=3).choices[0].text for _ in range(6)
        ]
        assert len(set(sampled)) == 1, "whichever replica answers"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=NAME, prompt=PROMPT, temperature=9)
        assert listeners(processes_with(f"CODEPARROT_STATE={state}")) <= LOOPBACK

        parts = iter(client.completions.create(model=NAME, prompt=PROMPT, n=16, max_tokens=100, seed=1, stream=True))
        next(parts)
        server.popen.send_signal(signal.SIGTERM)
        reasons = [choice.finish_reason for part in parts for choice in part.choices]
        assert len([reason for reason in reasons if reason]) == 16
        assert server.wait() == 0, server.output
    finally:
        server.popen.kill()
    assert server.wait_for("ending: what was accepted is answered first")
    logs = "".join(path.read_text() for path in (state / "serve").rglob("*.log"))
    assert "16 choices" in logs
    assert PROMPT.strip() not in logs
    assert key not in logs + server.output
    wait_until(lambda: not processes_with(f"CODEPARROT_STATE={state}"), "the end of its processes")
