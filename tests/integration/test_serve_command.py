"""`m1 serve` on a committed run, as a person starts it and OpenAI's client uses it."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

from tests.integration.tiny import Place, command, corpus, settings

pytestmark = pytest.mark.slow


@contextmanager
def served(place: Place, *words: str, key: str | None = None) -> Iterator[tuple[str, str]]:
    """Address and last printed line of a server that runs while the block does."""
    environment = place.environment() | ({"M1_SERVE_KEY": key} if key else {})
    with subprocess.Popen(
        command("serve", "small", "--port", "0", *words),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("serving small/"), process.communicate()[1]
            yield first.split(" at ")[1].strip(), process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("serve")
    where = Place(home=folder)
    words = settings(corpus(folder / "corpus"), **{"run.order": "curate,pretrain"})
    where.m1("run", "--run", "small", *words)
    return where


def test_the_printed_key_opens_the_server_and_answers_equal_generate(place: Place) -> None:
    with served(place) as (url, line):
        key = line.removeprefix("key: ")
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            [model] = client.models.list().data
            answer = client.chat.completions.create(
                model=model.id, temperature=0, max_tokens=8,
                messages=[{"role": "user", "content": "1+1"}],
            )  # fmt: skip
    generated = place.m1("generate", "small", "1+1", "--max-new-tokens", "8").stdout

    assert model.id == "small/pretrain"
    text = answer.choices[0].message.content
    assert generated.strip().removesuffix("<end_of_sentence>") == text.strip()


def test_a_given_key_is_used_and_never_printed(place: Place) -> None:
    key = "given-key-0123456789"
    with served(place, key=key) as (url, line):
        assert key not in line
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert client.models.list().data
        with (
            openai.OpenAI(base_url=url, api_key="another-key-9876", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", "70000"), "--port = 70000"),
        (("--max-batch", "0"), "--max-batch = 0"),
        (("--stage", "sft"), "--stage"),
    ],
)
def test_impossible_requests_are_refused_by_name(
    place: Place, words: tuple[str, ...], message: str
) -> None:
    done = subprocess.run(
        command("serve", "small", *words),
        env=place.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert message in done.stderr
