"""What stands between a boto3 client and its server, and answers in the server's place."""

import io
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session


class Answers:
    """Answers requests of one operation itself, and counts them."""

    def __init__(
        self,
        client: Any,
        operation: str,
        status: int,
        code: str,
        times: int = 99,
        body: bytes | None = None,
    ) -> None:
        self.count = 0
        self._status, self._times = status, times
        error = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self._body = error if body is None else body
        client.meta.events.register(f"before-send.s3.{operation}", self)

    def __call__(self, request: Any, **_: object) -> AWSResponse | None:
        self.count += 1
        if self.count > self._times:
            return None
        raw = io.BytesIO(self._body)
        raw.stream = lambda *_, **__: iter([self._body])  # type: ignore[attr-defined]
        return AWSResponse(request.url, self._status, {}, raw)


def lose_one_answer(client: Any) -> None:
    """The next PutObject reaches the server, its answer does not reach us."""
    lost: list[int] = []

    def deliver_then_fail(request: Any, **_: object) -> None:
        if not lost:
            session = URLLib3Session()
            lost.append(session.send(request).status_code)
            session.close()
            raise ConnectionClosedError(endpoint_url=request.url)

    client.meta.events.register("before-send.s3.PutObject", deliver_then_fail)
