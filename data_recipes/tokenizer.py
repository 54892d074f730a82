"""The tokenizer: SentencePiece BPE with M1's chat tokens, and its Hugging Face twin.

Not here: the chat format (chat.py). Text never turns into special tokens by itself: a document
that spells `<end_of_document>` is just characters, unless the caller says `allow_special`.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m1.infra.errors import BadInputError, InvalidSettingError

UNKNOWN = "<unk>"
BEGIN_OF_DOCUMENT = "<begin_of_document>"
END_OF_DOCUMENT = "<end_of_document>"
BEGINNING_OF_SENTENCE = "<beginning_of_sentence>"
END_OF_SENTENCE = "<end_of_sentence>"
THINK = "<think>"  # ours: M1 spells its thought tags as plain text
END_THINK = "</think>"
PAD = "<pad>"

SPECIAL: tuple[str, ...] = (
    UNKNOWN,
    BEGIN_OF_DOCUMENT,
    END_OF_DOCUMENT,
    BEGINNING_OF_SENTENCE,
    END_OF_SENTENCE,
    THINK,
    END_THINK,
    PAD,
)
"""Special tokens in id order (facts sheet 1.1: M1's chat template); <unk> has id 0."""

TASK_SYMBOLS: tuple[str, ...] = ("?", "=", ">", "<", "|", ";", *"0123456789")
"""Characters that are one token each wherever they stand, because the tasks are written in them."""

CHAT_PHRASES: tuple[str, ...] = (
    "user\u2581name=user",
    "ai\u2581name=assistant",
    "system\u2581ai_setting=assistant",
)
"""The words of the chat template, one token each: a small vocabulary would spend ten on them."""

MINIMUM_VOCABULARY = 512  # 8 special + 256 bytes + symbols + room for the corpus's characters
MAXIMUM_MODEL_BYTES = 64 * 2**20
CHUNK_CHARACTERS = 1024  # SentencePiece skips sentences above 4192 bytes: at most 4 bytes each
WHITESPACE_MARK = "\u2581"  # SentencePiece writes a space like this
_SPECIAL_PATTERN = re.compile("(" + "|".join(re.escape(text) for text in SPECIAL) + ")")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, model_bytes: bytes) -> None:
        import sentencepiece

        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise BadInputError(f"not a SentencePiece model: {error}") from error
        found = tuple(self._processor.id_to_piece(list(range(min(len(SPECIAL), len(self))))))
        if found != SPECIAL:
            raise BadInputError(f"the tokenizer's first pieces are {found}, expected {SPECIAL}")
        self._ids = {text: number for number, text in enumerate(SPECIAL)}
        self._mark_ids = [
            self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in WHITESPACE_MARK.encode()
        ]

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a model that `train_tokenizer` wrote.

        Raises:
            BadInputError: missing, too large, or not our tokenizer.
        """
        if not path.is_file():
            raise BadInputError(f"no tokenizer at {path}")
        if path.stat().st_size > MAXIMUM_MODEL_BYTES:
            raise BadInputError(f"{path} is larger than {MAXIMUM_MODEL_BYTES} bytes")
        return cls(path.read_bytes())

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return len(self)

    @property
    def end_of_document_id(self) -> int:
        """Ends every document in the shards."""
        return self._ids[END_OF_DOCUMENT]

    @property
    def end_of_sentence_id(self) -> int:
        """Ends every chat message; generation stops here."""
        return self._ids[END_OF_SENTENCE]

    @property
    def pad_id(self) -> int:
        """Fills the rest of a window; never a target."""
        return self._ids[PAD]

    def token_id(self, special: str) -> int:
        """Id of one of `SPECIAL`.

        Raises:
            InvalidSettingError: any other text.
        """
        if special not in self._ids:
            raise InvalidSettingError(field="special", value=special, accepted=", ".join(SPECIAL))
        return self._ids[special]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of `text`; special strings become special ids only when allowed."""
        if not allow_special:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for part in _SPECIAL_PATTERN.split(text):
            special = self._ids.get(part)
            ids.extend(self._encode_ordinary(part) if special is None else [special])
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        """Lone surrogates become U+FFFD; a literal U+2581 is spelled in bytes, else lost."""
        clean = _SURROGATES.sub("\ufffd", text)
        first, *others = clean.split(WHITESPACE_MARK)
        ids: list[int] = self._processor.encode(first)
        for part in others:
            ids.extend(self._mark_ids)
            ids.extend(self._processor.encode(part))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, one thread, same result."""
        return [self._encode_ordinary(text) for text in texts]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; ids outside the vocabulary show as U+FFFD."""
        parts: list[str] = []
        ordinary: list[int] = []
        for number in ids:
            if len(SPECIAL) <= number < len(self):
                ordinary.append(int(number))
                continue
            parts.append(self._processor.decode(ordinary))
            ordinary = []
            parts.append(self._special_text(int(number), skip_special=skip_special))
        return "".join([*parts, self._processor.decode(ordinary)])

    def _special_text(self, number: int, *, skip_special: bool) -> str:
        if not 0 <= number < len(SPECIAL):
            return "\ufffd"
        return "" if skip_special else SPECIAL[number]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        clean = _SURROGATES.sub("\ufffd", text).replace("\0", " ")
        for start in range(0, len(clean), CHUNK_CHARACTERS):
            yield clean[start : start + CHUNK_CHARACTERS]


def _trainer_settings(vocabulary_size: int) -> dict[str, Any]:
    return {
        "model_type": "bpe",
        "vocab_size": vocabulary_size,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,  # 2.72 instead of 2.09 characters per token on code
        "character_coverage": 0.9995,  # ours: rarer characters are spelled in bytes
        "control_symbols": list(SPECIAL[1:]),
        "user_defined_symbols": [*CHAT_PHRASES, *TASK_SYMBOLS],
        "unk_id": 0,
        "unk_piece": UNKNOWN,
        "unk_surface": "\ufffd",
        "bos_id": -1,
        "eos_id": -1,
        "pad_id": -1,
        "num_threads": 1,  # merges do not depend on thread timing
        "shuffle_input_sentence": False,
        "minloglevel": 2,
    }


def train_tokenizer(texts: Iterable[str], path: Path, *, vocabulary_size: int, seed: int) -> None:
    """Train on `texts` and write the model to `path`; the same input gives the same bytes.

    A corpus too small for `vocabulary_size` merges yields fewer pieces.

    Raises:
        InvalidSettingError: the vocabulary cannot hold the fixed pieces and the characters.
    """
    import sentencepiece

    accepted = f"{MINIMUM_VOCABULARY} to 1000000, and more than the corpus has characters"
    if not MINIMUM_VOCABULARY <= vocabulary_size <= 1_000_000:
        raise InvalidSettingError(field="vocabulary_size", value=vocabulary_size, accepted=accepted)
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed % 2**32)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts),
            model_writer=model,
            **_trainer_settings(vocabulary_size),
        )
    except RuntimeError as error:
        if "small" not in str(error):
            raise BadInputError(f"tokenizer training failed: {error}") from error
        raise InvalidSettingError(
            field="vocabulary_size", value=vocabulary_size, accepted=accepted
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Every split of every learned piece, in the order SentencePiece prefers the pieces."""
    known = set(pieces)
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges.extend(pair for pair in splits if pair[0] in known and pair[1] in known)
    return merges


def _hugging_face_twin(tokenizer: Tokenizer) -> Any:  # untyped library
    """The `tokenizers` object that repeats SentencePiece's merges."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    processor = tokenizer._processor  # the same module owns both classes
    pieces = [processor.id_to_piece(number) for number in range(len(tokenizer))]
    learned = [
        piece
        for number, piece in enumerate(pieces)
        if number >= len(SPECIAL) and not processor.is_byte(number) and piece not in CHAT_PHRASES
    ]
    twin = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=_merges(learned),
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    twin.normalizer = normalizers.Replace(" ", WHITESPACE_MARK)
    twin.decoder = decoders.Sequence(
        [decoders.Replace(WHITESPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    twin.add_special_tokens(
        [tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    )
    # found in normalised text, where a space is already the mark
    twin.add_tokens([tokenizers.AddedToken(text, normalized=True) for text in CHAT_PHRASES])
    return twin


def write_hugging_face_tokenizer(
    tokenizer_path: Path, directory: Path, *, chat_template: str
) -> None:
    """Write what `AutoTokenizer.from_pretrained(directory)` needs.

    Gives the ids of `Tokenizer.encode(text, allow_special=True)`. One difference: a literal
    U+2581 reads as a space there, as in every SentencePiece model on the hub.

    Raises:
        BadInputError: `tokenizer_path` is not our tokenizer.
    """
    tokenizer = Tokenizer.load(tokenizer_path)
    directory.mkdir(parents=True, exist_ok=True)
    _hugging_face_twin(tokenizer).save(str(directory / "tokenizer.json"))
    special_map = {
        "eos_token": END_OF_SENTENCE,
        "unk_token": UNKNOWN,
        "pad_token": PAD,
        "additional_special_tokens": [
            text for text in SPECIAL if text not in (END_OF_SENTENCE, UNKNOWN, PAD)
        ],
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10_240_000,  # facts sheet 1.1: max_position_embeddings
        "chat_template": chat_template,
        **special_map,
    }
    for name, content in (
        ("special_tokens_map.json", special_map),
        ("tokenizer_config.json", config),
    ):
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
