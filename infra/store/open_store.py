"""From a URL to a store. The only place that knows which schemes exist."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from m1.infra.errors import InvalidSettingError
from m1.infra.settings import Environment, load_environment
from m1.infra.store.local import LocalStore
from m1.infra.store.protocol import Store


def open_store(url: str, environment: Environment | None = None) -> Store:
    """Open `file:///folder`, a plain folder, or `s3://bucket/prefix`; touches nothing yet."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc:
        from m1.infra.store.s3 import S3Store, make_client

        settings = environment or load_environment(os.environ)
        client = make_client(settings.s3_endpoint)
        return S3Store(parts.netloc, prefix=parts.path.strip("/"), client=client)
    if url and "://" not in url:
        return LocalStore(Path(url).expanduser())
    shown = url.rpartition("@")[2]
    raise InvalidSettingError(
        field="store", value=shown, accepted="file:///folder, a folder, or s3://bucket/prefix"
    )
