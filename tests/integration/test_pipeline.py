"""The whole flow through the real stack: Ray Data, Ray Train with four workers, checkpoints on a real S3 server."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from codeparrot import local_store
from codeparrot.manifest import load_manifest
from codeparrot.storage import sha256_hex
from ray_jobs.stage import MADE_BY, OPTIONAL
from tests.integration.conftest import LOOPBACK, Machine, listeners, micro_recipe, wait_until

SUCCESS, FAILED, INTERRUPTED = 0, 1, 3
STAGES = [name for noun, name in MADE_BY.items() if noun not in OPTIONAL]
"""Of a recipe without optional parts."""


def summary_of(machine: Machine) -> Any:
    return json.loads((machine.state / "runs" / "micro" / "summary.json").read_bytes())


def statuses(machine: Machine) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in summary_of(machine)["stages"]}


def weights_of(machine: Machine) -> str:
    return sha256_hex((Path(summary_of(machine)["export_path"]) / "model.safetensors").read_bytes())


def test_a_run_leaves_the_summary_that_it_promises(undisturbed: Machine) -> None:
    summary = summary_of(undisturbed)
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    assert summary["world_size"] == 4
    assert summary["num_parameters"] > 0
    assert summary["num_documents"] > 0
    ledger = summary["ledger"]
    assert ledger["tokens_in"] == ledger["tokens_in_rows"] + ledger["tokens_remainder"] > 0
    assert set(summary["validation"]) == {
        "loss",
        "perplexity",
        "bits_per_byte",
        "gzip_bits_per_byte",
        "xz_bits_per_byte",
    }
    assert all(value > 0 for value in summary["validation"].values())
    assert summary["checkpoint_uri"] == "s3://codeparrot/micro/runs/micro/checkpoints/step-00000072"
    assert [pair["prompt"] for pair in summary["completions"]] == micro_recipe()["generate"]["prompts"]


def test_a_run_leaves_a_report_and_an_export_that_plain_transformers_loads(undisturbed: Machine) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = summary_of(undisturbed)["export_path"]
    model = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert sum(parameter.numel() for parameter in model.parameters()) == summary_of(undisturbed)["num_parameters"]
    assert tokenizer.decode(tokenizer("def f(x):\n    return x")["input_ids"]) == "def f(x):\n    return x"
    report = (undisturbed.state / "runs" / "micro" / "report.html").read_text()
    assert report.count("<svg") >= 5
    folder = undisturbed.state / "runs" / "micro"
    assert (folder / "card.md").read_text().startswith("# Data card: micro\n")
    assert "How to reproduce it" in (folder / "card.html").read_text()


def test_the_figures_do_not_depend_on_workers_or_batches_and_any_model_is_measured(undisturbed: Machine) -> None:
    sets = ("evaluate.num_workers=2", "evaluate.batch_size=7", "evaluate.tasks=null")
    arguments = [word for each in sets for word in ("--set", each)]
    output = undisturbed.run("evaluate", "--checkpoint", "micro@72", "--json", *arguments).output
    found = json.loads(output[output.index("{") :])
    for key, value in summary_of(undisturbed)["validation"].items():
        if key in found:  # no compressors
            assert found[key] == pytest.approx(value, rel=1e-6), key
    assert found["num_rows"] == 64
    parts = found["breakdown"]
    for kind in ("by_repository", "by_license", "by_document_length", "by_position"):
        assert sum(row["num_tokens"] for row in parts[kind]) == found["num_tokens"], kind


def test_models_are_compared_on_one_page(undisturbed: Machine, tmp_path: Path) -> None:
    """The run at its end, and at an earlier checkpoint, on the documents that both have not seen."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("When they came back\ndef f(x):\\n\n")
    options = ("--num-samples", "2", "--max-new-tokens", "8", "--max-bytes", "20000", "--to", str(tmp_path / "page"))
    checkpoints = json.loads(undisturbed.run("runs", "show", "--json").output)["checkpoints"]
    earlier = f"micro@{min(checkpoint['step'] for checkpoint in checkpoints)}"
    output = undisturbed.run("compare", "micro", earlier, "--prompts", str(prompts), *options).output
    assert "bits per byte" in output
    found = json.loads((tmp_path / "page" / "comparison.json").read_bytes())
    assert [model["name"] for model in found["models"]] == ["micro", earlier]
    assert found["prompts"] == ["When they came back", "def f(x):\n"]
    assert [[len(texts) for texts in model["completions"]] for model in found["models"]] == [[2, 2], [2, 2]]
    (difference,) = found["differences"]
    assert difference["interval"]["low"] < difference["interval"]["high"]
    assert "When they came back" in (tmp_path / "page" / "comparison.html").read_text()


def test_runs_in_the_object_store_are_listed_verified_and_exported(undisturbed: Machine, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    [run] = json.loads(undisturbed.run("runs", "list", "--json").output)["runs"]
    assert (run["name"], run["state"]) == ("micro", "complete")
    assert "damaged" not in undisturbed.run("runs", "verify").output
    undisturbed.run("runs", "export", "--to", str(tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == summary_of(undisturbed)["num_parameters"]
    undisturbed.run("runs", "export", "--to", "s3://codeparrot/exported")
    with local_store.running(undisturbed.state / "store", "codeparrot") as store:
        exported = store.client().get_object(Bucket="codeparrot", Key="exported/model.safetensors")["Body"].read()
    assert sha256_hex(exported) == sha256_hex((tmp_path / "model" / "model.safetensors").read_bytes())
    assert undisturbed.start("runs", "delete").wait() == 2  # it only says what would go
    assert json.loads(undisturbed.run("runs", "list", "--json").output)["runs"] == [run]


def test_problems_are_completed_by_ray_and_scored_in_the_sandbox(undisturbed: Machine, tmp_path: Path) -> None:
    problem = {
        "entry_point": "f",
        "canonical_solution": "    return 1\n",
        "test": "def check(f):\n    assert f(1) == 1\n",
    }
    problems = [{"task_id": f"Own/{name}", "prompt": f"def f({name}):\n", **problem} for name in "abc"]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    settings = {"problems": str(tmp_path / "problems.jsonl"), "num_samples": 2, "max_new_tokens": 8, "num_workers": 1}
    process = undisturbed.run("humaneval", "--set", f"humaneval={json.dumps(settings)}")
    assert re.search(r"3 problems, 2 samples of each -> pass@1 \d", process.output)
    with undisturbed.storage() as storage:
        manifest = load_manifest(storage, "runs/micro/humaneval")
        assert manifest is not None
        results = [json.loads(line) for line in manifest.read(storage, "results.jsonl").splitlines()]
    assert [(result["task_id"], result["sample"]) for result in results] == [
        (problem["task_id"], sample) for problem in problems for sample in (0, 1)
    ]


@pytest.mark.faults
@pytest.mark.xdist_group("pipeline")  # one undisturbed run serves both
def test_a_killed_run_continues_to_the_same_weights_wherever_it_was_killed(
    machine: Machine, undisturbed: Machine
) -> None:
    """One run, disturbed in every stage in turn, by every kind of signal."""

    def pipeline_pid() -> int:
        return next(pid for pid, line in machine.left_behind().items() if "-m ray_jobs.pipeline" in line)

    process = machine.start()
    process.wait_for("collect", "starting")
    os.kill(pipeline_pid(), signal.SIGKILL)
    assert process.wait() == FAILED
    assert "run the same command to continue" in process.output
    wait_until(lambda: not machine.left_behind(), "all processes to end after a SIGKILL of the driver")

    process = machine.start()
    process.wait_for("curate", "starting")
    os.killpg(process.popen.pid, signal.SIGINT)
    assert process.wait() == INTERRUPTED
    assert re.search(r"interrupted: .*SIGINT.* continues", process.lines[-1])
    assert "Traceback" not in process.output
    assert not machine.left_behind()

    process = machine.start()
    process.wait_for("train_tokenizer", "starting")
    os.kill(process.popen.pid, signal.SIGTERM)
    assert process.wait() == INTERRUPTED
    assert not machine.left_behind()

    process = machine.start()
    process.wait_for("pack", "starting")
    process.popen.kill()
    process.wait()
    wait_until(lambda: not machine.left_behind(), "all processes to end after a SIGKILL of the launcher")

    process = machine.start()
    process.wait_for("train", "checkpoint in")
    os.kill(pipeline_pid(), signal.SIGKILL)
    process.wait()
    wait_until(lambda: not machine.left_behind(), "all processes to end after a SIGKILL in training")

    process = machine.start()
    process.wait_for("train", "resumed at step")
    process.wait_for("evaluate", "starting")
    os.killpg(process.popen.pid, signal.SIGKILL)
    process.wait()

    process = machine.start()
    process.wait_for("generate", "starting")
    os.kill(pipeline_pid(), signal.SIGKILL)
    process.wait()

    machine.run()
    assert weights_of(machine) == weights_of(undisturbed)
    ours, theirs = summary_of(machine), summary_of(undisturbed)
    for key in ("ledger_by_split", "num_documents", "validation", "completions"):
        assert ours[key] == theirs[key], key


@pytest.mark.faults
@pytest.mark.xdist_group("pipeline")  # one undisturbed run serves both
def test_a_killed_worker_costs_a_restart_and_not_the_result_and_all_listeners_are_on_loopback(
    machine: Machine, undisturbed: Machine
) -> None:
    process = machine.start()
    process.wait_for("train", "checkpoint in")
    processes = machine.left_behind()
    workers = [pid for pid, line in processes.items() if "RayTrainWorker" in line]
    assert len(workers) == 4
    # Of the workers, rank 0 also holds torch's rendezvous, which always listens on all interfaces.
    assert listeners(processes.keys() - set(workers)) <= LOOPBACK
    os.kill(workers[2], signal.SIGKILL)
    assert process.wait() == SUCCESS, process.output
    assert "the worker group was restarted" in process.output
    assert "resumed at step" in process.output
    assert weights_of(machine) == weights_of(undisturbed)


def test_a_store_that_dies_in_the_middle_gives_one_clear_error_and_loses_nothing(machine: Machine) -> None:
    folder = machine.folder / "store"
    with local_store.running(folder, "codeparrot") as store:
        process = machine.start("collect", **store.environment())
        process.wait_for("collect", "starting")
        os.kill(json.loads((folder / "server.json").read_bytes())["pid"], signal.SIGKILL)
        assert process.wait() == FAILED
        errors = [line for line in process.lines if line.startswith("error:")]
        assert len(errors) == 1
        assert "does not answer" in errors[0]
        assert store.endpoint in errors[0]
        assert "Traceback" not in process.output
    with local_store.running(folder, "codeparrot") as store:
        machine.run("collect", **store.environment())
        assert "up to date" in machine.run("collect", **store.environment()).output


def test_a_directory_serves_as_storage_by_the_same_interface(machine: Machine) -> None:
    machine.values["storage"] = {"uri": str(machine.folder / "data")}
    machine.run("collect")
    assert (machine.folder / "data" / "raw" / "manifest.json").exists()
    assert "up to date" in machine.run("collect").output


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(machine: Machine) -> None:
    first = machine.start("collect")
    first.wait_for("collect", "starting")
    second = machine.start("collect")
    assert second.wait() == FAILED
    assert f"another run (process {first.popen.pid}) uses {machine.state}" in second.output
    os.kill(first.popen.pid, signal.SIGTERM)
    assert first.wait() == INTERRUPTED


def test_a_second_run_has_nothing_to_do_and_one_changed_key_runs_only_what_depends_on_it(undisturbed: Machine) -> None:
    """The last test here: it leaves the undisturbed run with other completions."""
    process = undisturbed.run()
    assert set(statuses(undisturbed).values()) == {"up to date"}
    assert process.output.count("up to date") >= len(STAGES)

    process = undisturbed.run("pipeline", "--set", "generate.temperature=0.5")
    ran = {name for name, status in statuses(undisturbed).items() if status == "done"}
    assert ran == {"generate", "report"}
    assert "generate.temperature: 0.6 -> 0.5" in process.output
