"""The engine that a Ray task decodes with, made once per process: loading a model takes longer than most tasks."""

from codeparrot.engine import Engine, EngineSettings
from codeparrot.manifest import Manifest
from codeparrot.pretrained import export_of
from codeparrot.storage import open_storage
from codeparrot.vocabulary import Vocabulary

_kept: dict[tuple[str, str, EngineSettings, str, str], Engine] = {}
"""One at most."""


def engine_of(
    uri: str,
    trained: Manifest,
    settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    *,
    device: str = "cpu",
    precision: str = "auto",
) -> Engine:
    """An idle engine with the export of a run."""
    key = (uri, trained.folder, settings, device, precision)
    if key not in _kept:
        _kept.clear()
        model, tokenizer, _ = export_of(open_storage(uri), trained, device=device, precision=precision)
        _kept[key] = Engine(model, Vocabulary(tokenizer), settings)
    engine = _kept.pop(key)
    if engine.idle:  # else a task before this one ended in the middle
        _kept[key] = engine
        return engine
    return engine_of(uri, trained, settings, device=device, precision=precision)
