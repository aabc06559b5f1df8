"""The model that a Ray task decodes with, loaded once per process: that takes longer than most tasks."""

from codeparrot.engine import Engine, EngineSettings
from codeparrot.exported import Pretrained, load_export
from codeparrot.manifest import Manifest
from codeparrot.storage import open_storage
from codeparrot.vocabulary import Vocabulary

_kept: dict[tuple[str, str, str, str], Pretrained] = {}
"""One at most."""


def engine_of(
    uri: str,
    trained: Manifest,
    settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    *,
    device: str = "cpu",
    precision: str = "auto",
) -> Engine:
    """A new engine with the model that a run has exported."""
    key = (uri, trained.folder, device, precision)
    if key not in _kept:
        _kept.clear()
        _kept[key] = load_export(open_storage(uri), trained, device=device, precision=precision)
    return Engine(_kept[key].model, Vocabulary(_kept[key].tokenizer), settings)
