"""The format reward: whether a text is one thought, then one answer, and nothing else.

For rollouts that come as text, from a server. Rollouts that come as tokens are judged by
`chat.parse_response`, which a text cannot deceive.
"""

from m1.data_recipes.chat import Response
from m1.data_recipes.tokenizer import END_THINK, THINK

ANSWER, END_ANSWER = "<answer>", "</answer>"
_TAGS = (THINK, END_THINK, ANSWER, END_ANSWER)


def parse_text_response(text: str, *, with_answer_tags: bool = False) -> Response:
    """Split `<think>thought</think>answer`; linear in the length of the text, never raises.

    Args:
        text: what the model wrote, without the end-of-sentence token.
        with_answer_tags: the answer must stand in `<answer>...</answer>` after the thought.

    A response that is not well formed keeps what could be found: text after the last `</think>`
    is the answer, everything before it the thought.
    """
    before, closing, after = text.strip().rpartition(END_THINK)
    thought, rest = (before, after.strip()) if closing else (after, "")
    begins = thought.startswith(THINK)
    thought = thought.removeprefix(THINK)
    is_tagged = rest.startswith(ANSWER) and rest.endswith(END_ANSWER)
    answer = rest.removeprefix(ANSWER).removesuffix(END_ANSWER).strip() if is_tagged else rest
    is_whole = bool(closing) and begins and bool(answer) and is_tagged == with_answer_tags
    has_stray_tag = any(tag in part for tag in _TAGS for part in (thought, answer))
    return Response(thought=thought, answer=answer, well_formed=is_whole and not has_stray_tag)


def format_reward(text: str, *, with_answer_tags: bool = False) -> float:
    """1.0 for a well-formed text, else 0.0."""
    return float(parse_text_response(text, with_answer_tags=with_answer_tags).well_formed)
