"""Keys of a file: none that could never match."""

from pathlib import Path

import pytest

from codeparrot.api_keys import ApiKeys
from codeparrot.errors import ConfigError

KEY = "0123456789abcdef"


def test_a_mark_at_the_beginning_of_a_file_belongs_to_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY, "utf-8-sig")
    assert ApiKeys(file).name_of(KEY)


def test_a_key_that_no_header_carries_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{KEY}\u00e4\n", "utf-8")
    with pytest.raises(ConfigError, match="ASCII characters only") as caught:
        ApiKeys(file)
    assert KEY not in str(caught.value)
