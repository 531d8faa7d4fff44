"""Ask about a picture: mllm-lit ask "What is this?" --image cat.png [--run logs/scienceqa_lora/version_0].

The answer comes word by word. With --chat, further questions are read from the input, a line each, until it ends.

    mllm-lit ask --batch questions.jsonl --out answers.jsonl [--run RUN]

answers a file: rows with "question" and, where there is one, "image" (a path from the file's folder, or a list).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mllm_lit.commands import Arguments
from mllm_lit.inference.ask import Conversation
from mllm_lit.inference.batch import answer_questions, questions_left
from mllm_lit.inference.run import load_tuned


def main(args: Sequence[str] | None = None) -> None:
    """Load, ask, and go on asking in a chat."""
    parser = Arguments("ask", __doc__)
    parser.add_argument("question", nargs="?", help="without it, --chat is understood")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture; may be given several times")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--backbone", default="embedded", help="a file or name in configs/backbones, hub id or folder")
    which.add_argument("--run", type=Path, help="directory of a finished run: its backbone with its adapter")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the run may name")
    parser.add_argument("--start_from", type=Path, help="where the run that --run started from is, if it was moved")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: the backbone's")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--chat", action="store_true", help="ask several questions")
    parser.add_argument("--batch", type=Path, help="a file of questions (JSON lines, JSON or parquet)")
    parser.add_argument(
        "--out", type=Path, help="where their answers go, as JSON lines; goes on with a file that is there"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="questions at a time")
    options = parser.parse_args(args)
    if (options.batch is None) != (options.out is None):
        parser.error("--batch and --out go together: questions in, answers out")
    if options.batch is not None and (options.question or options.chat or options.image):
        parser.error("--batch reads its questions and pictures from the file: leave out those of the command line")
    questions, done = questions_left(options.batch, options.out) if options.batch is not None else ([], 0)
    tuned = load_tuned(options.backbone, options.run, options.trust, options.start_from, dtype=options.dtype)
    import torch
    from transformers import TextStreamer

    if torch.cuda.is_available():
        tuned.module.to("cuda")
    if options.batch is not None:
        answer_questions(tuned, questions, done, options.out, options.batch_size, options.max_new_tokens)
        print(f"{len(questions) - done} answers written: {options.out}")
        return
    conversation = Conversation(tuned, options.image)
    streamer = TextStreamer(tuned.loaded.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    prompt = "> " if sys.stdin.isatty() else ""
    question = options.question
    try:
        while True:
            asked = input(prompt) if question is None else question
            if asked.strip() or question is not None:
                conversation.ask(asked, options.max_new_tokens, streamer)
            if question is not None and not options.chat:
                break
            question = None
    except EOFError:
        return
