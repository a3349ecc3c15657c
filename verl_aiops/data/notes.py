"""What is done to rows that their writer may not expect: counted by kind, and said once for all rows of a kind."""

import logging
from collections.abc import Mapping

from verl_aiops.data.template import CLOCK

# by kind, what a warning says after "N of M pairs: "; kinds "left_out: ..." and "unread: ..." carry their own words
NOTES = {
    "messages_as_text": "messages given as JSON text are read as messages",
    "nulls": "null values in calls' arguments or tool descriptions are left out, as parquet pads with them (and "
    "puts fields into the order of the column); where a null or the order is meant, give these as JSON text",
    "prompt_repeated": "both answers repeat the prompt; it is taken off them",
    "prompt_repeated_by_all": "the answers repeat the prompt; it is taken off them",
    "prompt_in_one": "one of the two answers, or both where the prompt is only a few letters, begin with the whole "
    "prompt; they are left as they are",
    "system_column": "the text of the column for the system message is put before the prompt as a system message",
    "continued": "the prompt ends with a started assistant message, with which the answers go on: one turn",
    "control_tokens": "special tokens spelled in the text of messages or tools are broken up with a space, so that "
    "only the chat template opens and closes turns",
    "end_of_turn": "an end-of-turn token at the end of an assistant's text is taken off; the chat template writes it",
    "clock": f"the chat template shows the date of the day; {CLOCK:%d %B %Y} is put there on every day, so that the "
    "tokens stay the same (if the template has a variable for it, set that in data.apply_chat_template_kwargs, for "
    "Llama 3 date_string)",
    "empty_reasoning": "the chat template puts an empty reasoning block of its own before an answer; it is left out, "
    "so that answers follow the generation prompt as they do when the model generates",
    "duplicate": "prompt and answers are those of a pair before, so that they count as often as they stand there",
    "contradicting": "another pair of the same prompt prefers the answer that this one rejects",
    "same_id": "the id is that of a row before",
    "repeated_answer": "an answer of the group is the same as another of the same rank; it is taken once",
    "margin_unread": "the margin is not a finite number of 0 or more, so it counts as unknown",
    "one_prompt": "all single answers are to one prompt, so no answer of another prompt can estimate the KL (KTO)",
    "no_weight": "the weight is 0, so nothing is learned from them",
    "text": "plain texts are trained as they are, without the chat template that the tokenizer has, while train-rm "
    "puts the same texts into it; to have it set data.text_pairs=chat (plain to keep this), or give messages, "
    '[{"role": "user", "content": ...}] and [{"role": "assistant", "content": ...}]',
    "text_plain": "plain texts are trained as they are, without the chat template that the tokenizer has "
    "(text_pairs=plain)",
    "text_in_chat": "plain texts are put into the chat template as one user's and one assistant's message",
    "text_in_template": "plain texts are put into the chat template as one user's and one assistant's message, while "
    "DPO trains the same texts without a template; to have both alike give messages, or set data.text_pairs=chat there",
}


# by the name of a layout of another tool, how it is read
LAYOUTS_READ = {
    "Orca": "read in Orca's layout: system and question are the prompt's messages",
    "LLaMA-Factory": "read in LLaMA-Factory's layout: history, instruction and input are the prompt's messages",
    "Argilla": "read in Argilla's layout: instruction, or system and input, are the prompt's messages; "
    "chosen_response and rejected_response, or chosen and rejected, the answers",
    "ShareGPT": "read in ShareGPT's layout: the conversation is the prompt's messages",
    "from/value": "messages of from and value (ShareGPT) are read as role and content",
    "hh-rlhf": "read in hh-rlhf's layout: the turns of a dialogue in one text are messages, and the prompt is what "
    "both answers begin with",
}
# counted over examples, the others over rows
OF_EXAMPLES = ("duplicate", "contradicting", "one_prompt")


def say(counts: Mapping[str, int], rows: int, logger: logging.Logger, what: str = "pairs") -> None:
    """One warning for each kind.

    Args:
        what: what was counted.
    """
    for kind, count in counts.items():
        logger.warning("%d of %d %s: %s", count, rows, what, _sentence(kind))


def _sentence(kind):
    if kind.startswith("layout: "):
        return LAYOUTS_READ[kind.removeprefix("layout: ")]
    if kind.startswith("unread: "):
        return f"these fields of completions are not read: {kind.removeprefix('unread: ')}"
    if kind.startswith("left_out: "):
        return f"the chat template does not show the {kind.removeprefix('left_out: ')}"
    return NOTES[kind]
