"""A full disk: the write is refused by name, what was there stays whole, nothing is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, resource, signal, sys
from pathlib import Path
from m1.infra.errors import StoreError
from m1.infra.store.local import LocalStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
root = Path(sys.argv[1])
store = LocalStore(root / "store")
refused = []
for write in (
    lambda: store.put("object", b"x" * 10_000),
    lambda: store.put_if_absent("other", b"x" * 10_000),
    lambda: store.put_if_match("object", b"x" * 10_000, etag=store.get("object").etag),
    lambda: store.upload_file(root / "large", "object"),
    lambda: store.upload_file(root / "large", "other"),
):
    try:
        write()
    except StoreError as error:
        refused.append(f"{type(error).__name__}: {error}")
print(json.dumps(refused))
"""


@pytest.mark.fault(8, ending="refused")
def test_a_write_that_does_not_fit_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 10_000)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "object").write_bytes(b"first")

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, check=True
    )

    refused = json.loads(done.stdout)
    assert len(refused) == 5
    assert all(line.startswith("StoreUnavailableError: put ") for line in refused)
    left = {p.relative_to(tmp_path / "store").as_posix() for p in (tmp_path / "store").rglob("*")}
    assert left == {"object", ".m1-private", ".m1-private/lock"}
    assert (tmp_path / "store" / "object").read_bytes() == b"first"
