"""A checkpoint as the hub has models: weights, configuration, tokenizer, and a model card with its figures.

`AutoModelForCausalLM.from_pretrained`, or the class of its kind, loads the folder. The card says only what manifests in
the store say of this very model: its data if they are still what it was trained on, the evaluation of its run if it is
of these weights. What only a person can know stands in it as `<...>`.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codeparrot import __version__
from codeparrot.checkpoint import Checkpoint
from codeparrot.errors import CheckpointError, ManifestError
from codeparrot.manifest import Manifest, canonical, load_manifest
from codeparrot.model import ARCHITECTURES, ModelSettings, architecture_of, build_model, export_files, model_config
from codeparrot.pages import markdown
from codeparrot.run_record import METRICS
from codeparrot.runs import validation_losses
from codeparrot.settings import validate
from codeparrot.storage import Storage, sha256_hex
from codeparrot.tokenizer import Encoder

if TYPE_CHECKING:
    import transformers

CARD = "README.md"
CORE_INPUTS = ("packed", "tokenizer")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
COUNTED = ("raw", "curated", "tokenizer", "packed", "run", "evaluation", "humaneval")
"""Nouns whose counts the card shows."""
DATA_CARD = ("card.md", "card.html")


def hub_files(storage: Storage, run_prefix: str, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of the folder. Raises ManifestError if one of the checkpoint's is damaged, CheckpointError."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    outputs = _outputs(storage, run_prefix, checkpoint)
    tokenizer = _tokenizer(storage, checkpoint, outputs)
    model = restored_model(checkpoint, Encoder(tokenizer["tokenizer.json"].decode()).eos_token_id)
    files = {**export_files(model), **tokenizer, **_data_card(storage, outputs)}
    return {**files, CARD: render_card(storage, checkpoint, model, outputs).encode()}


def checkpoint_tokenizer(storage: Storage, run_prefix: str, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of the tokenizer that a checkpoint was trained with. Raises CheckpointError if it is gone."""
    return _tokenizer(storage, checkpoint, _outputs(storage, run_prefix, checkpoint))


def restored_model(checkpoint: Checkpoint, eos_token_id: int) -> "transformers.PreTrainedModel":
    """The model of a checkpoint. Raises CheckpointError if it does not hold all of its weights."""
    weights = dict(checkpoint.tensors("model"))
    settings = validate(ModelSettings, checkpoint.manifest.settings["model"], checkpoint.uri)
    embeddings = ARCHITECTURES[settings.architecture].embeddings
    lacks = sorted({embeddings} - set(weights))
    if not lacks:
        state = json.loads(checkpoint.read("train_state.json"))
        config = model_config(
            settings,
            vocab_size=len(weights[embeddings]),
            max_seq_len=state["tokens_seen"] // state["position"],
            eos_token_id=eos_token_id,
        )
        model = build_model(config, seed=0)
        for name, parameter in model.named_parameters():
            if name not in weights or weights[name].shape != parameter.shape:
                lacks.append(name)
            else:
                parameter.data = weights[name]
    if lacks:
        raise CheckpointError(f"{checkpoint.uri} lacks {', '.join(lacks[:3])}")
    return model.eval()


def _outputs(storage: Storage, run_prefix: str, checkpoint: Checkpoint) -> dict[str, Manifest]:
    """By noun, the outputs in the store that belong to this model; those made anew since are left out."""
    found: dict[str, Manifest] = {}

    def take(noun: str, prefix: str, digest: str | None) -> Mapping[str, str]:
        """Keep the output if it has this digest; returns the digests of its inputs."""
        with contextlib.suppress(ManifestError):
            manifest = load_manifest(storage, prefix)
            if manifest is not None and manifest.digest == digest:
                found[noun] = manifest
                return manifest.inputs
        return {}

    inputs = checkpoint.manifest.inputs
    take("tokenizer", "tokenizer", inputs.get("tokenizer"))
    packed = take("packed", "packed", inputs.get("packed"))
    curated = take("curated", "curated", packed.get("curated"))
    take("raw", "raw", curated.get("raw"))
    for prefix, digest in inputs.items():
        if prefix not in CORE_INPUTS:
            take(f"mixed {prefix}", prefix, digest)
    with contextlib.suppress(ManifestError):
        run = load_manifest(storage, run_prefix)
        if run is not None and _same_training(run, checkpoint.manifest):
            found["run"] = run
            for noun in ("evaluation", "completions", "humaneval"):
                made = load_manifest(storage, f"{run_prefix}/{noun}")
                if _exported_step(run) == checkpoint.step and made and made.inputs.get("run") == run.digest:
                    found[noun] = made
    return found


def _same_training(run: Manifest, checkpoint: Manifest) -> bool:
    own = {key: run.settings.get(key) for key in checkpoint.settings} == checkpoint.settings
    mixed = {key: digest for key, digest in checkpoint.inputs.items() if key not in CORE_INPUTS}
    same_mixture = not mixed or run.inputs.get("plan") == sha256_hex(canonical(mixed))  # of the stage `train`
    return own and same_mixture and all(run.inputs.get(key) == checkpoint.inputs.get(key) for key in CORE_INPUTS)


def _exported_step(run: Manifest) -> int | None:
    """The step whose weights the run has exported."""
    best: int | None = run.counts.get("best_step")
    return run.counts.get("num_steps", run.settings["train"]["max_steps"]) if best is None else best


def _tokenizer(storage: Storage, checkpoint: Checkpoint, outputs: Mapping[str, Manifest]) -> dict[str, bytes]:
    """From the stage that made it or, if it was made anew since, from the run's own export."""
    for noun, folder in (("tokenizer", ""), ("run", "export/")):
        if noun in outputs:
            with contextlib.suppress(ManifestError):
                return {name: outputs[noun].read(storage, f"{folder}{name}") for name in TOKENIZER_FILES}
    raise CheckpointError(
        f"{checkpoint.uri}: the tokenizer it was trained with is not in {storage.uri} any more, or damaged; make it "
        "again with the recipe of the run: `python -m ray_jobs.train_tokenizer`"
    )


def _data_card(storage: Storage, outputs: Mapping[str, Manifest]) -> dict[str, bytes]:
    """The data card of the corpus, where it has one and is still what the model was trained on."""
    files = {}
    for name in DATA_CARD if "curated" in outputs else ():
        with contextlib.suppress(ManifestError):
            files[f"data-{name}"] = outputs["curated"].read(storage, name)
    return files


def render_card(
    storage: Storage, checkpoint: Checkpoint, model: "transformers.PreTrainedModel", outputs: Mapping[str, Manifest]
) -> str:
    """The model card, in Markdown."""
    settings = checkpoint.manifest.settings
    train = settings["train"]
    config = model.config
    losses = validation_losses(checkpoint.read(METRICS)) if METRICS in checkpoint.manifest.names() else {}
    return markdown(
        "hub.md.j2",
        version=__version__,
        name=checkpoint.manifest.prefix.split("/")[1],
        step=checkpoint.step,
        created=checkpoint.manifest.created,
        code=checkpoint.manifest.code,
        uri=checkpoint.uri,
        seed=settings["seed"],
        train=train,
        config=config,
        loader=architecture_of(config).loader,
        pipeline=architecture_of(config).pipeline,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens_seen=checkpoint.step * train["global_batch_size"] * config.max_position_embeddings,
        losses=sorted(losses.items()),
        mixture=[
            (prefix, weight, _counts(outputs, "packed" if prefix == "packed" else f"mixed {prefix}"))
            for prefix, weight in (train.get("mixture") or {}).items()
        ],
        completions=_completions(storage, outputs),
        data_card="curated" in outputs and DATA_CARD[0] in outputs["curated"].names(),
        run_seconds=outputs["run"].seconds if "run" in outputs else None,
        **{noun: _counts(outputs, noun) for noun in COUNTED},
    )


def _counts(outputs: Mapping[str, Manifest], noun: str) -> Mapping[str, Any] | None:
    return outputs[noun].counts if noun in outputs else None


def _completions(storage: Storage, outputs: Mapping[str, Manifest]) -> list[dict[str, str]]:
    with contextlib.suppress(ManifestError, KeyError):
        pairs: list[dict[str, str]] = json.loads(outputs["completions"].read(storage, "completions.json"))
        return pairs
    return []
