"""The environment, read once and typed. Not the run's configuration: that is YAML, elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What this process takes from its environment. Credentials stay with boto3."""

    store_url: str
    home: Path
    s3_endpoint: str | None = None

    def __repr__(self) -> str:
        endpoint = "***" if self.s3_endpoint else None
        return f"Environment(store_url='***', home={str(self.home)!r}, s3_endpoint={endpoint!r})"


def load_environment(environ: Mapping[str, str]) -> Environment:
    """Read M1_STORE, M1_HOME and the S3 endpoint, with defaults under the user's data folder."""
    user_home = Path(environ.get("HOME") or Path.home())
    data = Path(environ.get("XDG_DATA_HOME") or user_home / ".local" / "share")
    home = Path(environ.get("M1_HOME") or data / "m1").absolute()
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "M1_S3_ENDPOINT")
    endpoint = next((environ[name] for name in names if environ.get(name)), None)
    store_url = environ.get("M1_STORE") or f"file://{home}/store"
    return Environment(store_url=store_url, home=home, s3_endpoint=endpoint)
