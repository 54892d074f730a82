"""Names from outside stay inside: run ids, keys, entries of manifests, links in a store."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from m1.infra.canonical_json import sha256_hex
from m1.infra.errors import InvalidSettingError, M1Error
from m1.infra.manifest import ObjectEntry
from m1.infra.store.local import LocalStore
from m1.infra.transfer import download_entries, upload_tree
from tests.faults.rows import count

EXAMPLES = count(300)
NASTY = [
    "..", "../x", "a/../../x", "%2e%2e/x", "%2e%2e%2fx", "..%2fx", "/etc/passwd", "~/x", "a\x00b",
    "a\u202eb", "CON", "aux.txt", "x.", "x ", "a" * 1025, "\\\\host\\share", "C:\\x", "a//b", "./a",
    "a/.", "\ud800", "-rf", "--help", "$(id)", "`id`", "a;b", "a|b", ".m1-private/lock",
]  # fmt: skip
LAX = settings(
    max_examples=EXAMPLES, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def outside(folder: Path) -> set[str]:
    """Everything beside the folder that a write could have reached."""
    return {str(path) for path in folder.parent.rglob("*") if not path.is_relative_to(folder)}


@pytest.mark.fault(39, ending="contained")
@LAX
@given(st.text(max_size=40) | st.text("./\\%2eEfF~a\x00 ", max_size=30) | st.sampled_from(NASTY))
@example("..")
def test_no_key_leaves_the_store(tmp_path: Path, key: str) -> None:
    root = tmp_path / "parent" / "store"
    before = outside(root) if root.exists() else set()
    store = LocalStore(root)
    try:
        store.put(key, b"inside")
    except M1Error:
        assert outside(root) - before <= {str(root.parent)}
        return
    assert store.get(key).body == b"inside"
    assert outside(root) == before or before == set()
    store.delete(key)


@pytest.mark.fault(39, ending="contained")
@LAX
@given(st.text(max_size=40) | st.sampled_from(NASTY))
def test_no_entry_of_a_manifest_is_written_outside_its_folder(tmp_path: Path, key: str) -> None:
    store, target = LocalStore(tmp_path / "store"), tmp_path / "deep" / "target"
    store.put("runs/r/object", b"body")
    entry = ObjectEntry(key=key, size_bytes=4, sha256=sha256_hex(b"body"))

    with pytest.raises((M1Error, OSError)):
        download_entries(store, "runs/r/", [entry], target)

    assert not [path for path in (tmp_path / "deep").rglob("*") if path.is_file()] or all(
        path.is_relative_to(target) for path in (tmp_path / "deep").rglob("*") if path.is_file()
    )


@pytest.mark.fault(39, ending="refused")
def test_a_link_in_the_store_is_not_followed_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    store = LocalStore(tmp_path / "store")
    store.put("here", b"inside")
    os.symlink(tmp_path / "secret", tmp_path / "store" / "link")
    os.symlink(tmp_path, tmp_path / "store" / "folder")

    for key in ("link", "folder/secret"):
        with pytest.raises(InvalidSettingError, match="inside the store"):
            store.get(key)
        with pytest.raises(InvalidSettingError, match="inside the store"):
            store.put(key, b"over")
    assert (tmp_path / "secret").read_text() == "outside"


@pytest.mark.fault(39, ending="refused")
def test_a_link_among_the_outputs_is_not_uploaded(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    os.symlink("/etc/passwd", outputs / "weights.bin")

    with pytest.raises(InvalidSettingError, match="regular file"):
        upload_tree(LocalStore(tmp_path / "store"), "runs/r/", outputs)


@pytest.mark.fault(39, ending="refused")
def test_a_link_that_waits_in_the_target_folder_is_not_written_through(tmp_path: Path) -> None:
    store, target = LocalStore(tmp_path / "store"), tmp_path / "target"
    store.put("runs/r/away/file", b"body")
    target.mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", target / "away")
    entry = ObjectEntry(key="away/file", size_bytes=4, sha256=sha256_hex(b"body"))

    with pytest.raises(InvalidSettingError, match="inside the folder"):
        download_entries(store, "runs/r/", [entry], target)
    assert list((tmp_path / "elsewhere").iterdir()) == []
