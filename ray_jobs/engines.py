"""The model that a Ray task decodes with, loaded once per process: that takes longer than most tasks."""

from codeparrot.engine import Engine, EngineSettings
from codeparrot.exported import load_export
from codeparrot.manifest import Manifest
from codeparrot.storage import open_storage
from codeparrot.vocabulary import Vocabulary
from ray_jobs.evaluate_rows import once


def engine_of(
    uri: str,
    trained: Manifest,
    settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    *,
    device: str = "cpu",
) -> Engine:
    """A new engine with the model that a run has exported."""
    loaded = once(
        "model", (uri, trained.folder, device), lambda: load_export(open_storage(uri), trained, device=device)
    )
    return Engine(loaded.model, Vocabulary(loaded.tokenizer), settings)
