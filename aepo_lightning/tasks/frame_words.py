"""The words of the paper's tags, which every task with a closed vocabulary of whole words needs."""

FRAME_WORDS = (
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<result>",
    "</result>",
    "<answer>",
    "</answer>",
    "\\boxed{",
    "}",
    "find",
)
