"""Iterations of TRL's `GRPOTrainer` on the trail task, for `benchmarks.step --trl PYTHON`, which starts this file.

It runs in an environment of its own that has TRL. The folder in `sys.argv[1]` holds a policy and `questions.json`.
Every line on standard input asks for one iteration: the rollouts of one generation batch and its optimiser steps. The
search tool is a method of TRL's environments, one for each rollout. A response template lets TRL's parser read the
protocol of the policy, and `</search>` is an end-of-sequence token of the generation, as it is a stop string of ours.
"""

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from stopwatch import Stopwatch

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ ' <result> ' + m.content + ' </result>' }}"
    "{% else %}{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ ' <' + c.function.name + '>' }}"
    "{% for key, value in c.function.arguments.items() %}{{ ' ' + key + ' ' + value }}{% endfor %}"
    "{{ ' </' + c.function.name + '>' }}{% endfor %}{% endif %}{% endif %}{% endfor %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"find e\d+ c\d+|</result>",
    "fields": {
        "tool_calls": {
            "open": "<search>",
            "close": "</search>",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "search", "arguments": {"query": "{content}"}}},
        },
        "content": {"close": "<eos>", "content": "text"},
    },
}


class TrailEnvironment:
    """The world of one question."""

    def reset(self, documents: str, **_: Any) -> None:
        """Take the documents of the question."""
        self._documents: dict[str, str] = json.loads(documents)

    def search(self, query: str) -> str:
        """Look a place up.

        Args:
            query: The place.

        Returns:
            The exits of the place.
        """
        return self._documents.get(query.strip(), "")


def is_right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Reward a boxed answer that is the right one."""
    found = [re.search(r"\\boxed\{ (\S+) \}", completion[-1]["content"] or "") for completion in completions]
    return [float(match is not None and match[1] == truth) for match, truth in zip(found, answer, strict=True)]


def make_trainer(folder: Path, settings: dict[str, Any]) -> Any:
    """Return the trainer, set up like `python train.py algorithm=grpo`."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</search>")]
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=settings["questions_per_step"] * settings["samples"],
        steps_per_generation=settings["steps"],
        gradient_accumulation_steps=1,
        num_generations=settings["samples"],
        max_steps=settings["steps"] * settings["iterations"],
        max_completion_length=settings["max_tokens"],
        max_tool_calling_iterations=settings["max_tool_calls"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        loss_type="dapo",
        epsilon=0.2,
        beta=0.0,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=0.3,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        use_transformers_continuous_batching=settings["continuous_batching"],
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=is_right,
        args=arguments,
        train_dataset=Dataset.from_list(json.loads((folder / "questions.json").read_text())),
        processing_class=tokenizer,
        environment_factory=TrailEnvironment,
    )


def make_gate(trainer: Any, stopwatch: Stopwatch, num_steps: int) -> Any:
    """Return a callback that waits for a line before each iteration and answers after it."""
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, control
            if state.global_step % num_steps == 0:
                line = sys.stdin.readline()
                if not line:
                    raise SystemExit
                torch.set_num_threads(json.loads(line)["threads"])
                stopwatch.restart()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, control
            if state.global_step % num_steps == 0:
                print(json.dumps(stopwatch.figures() | trainer.rollout_figures), flush=True)

    return Gate()


def watch(trainer: Any, stopwatch: Stopwatch) -> None:
    """Name the parts of an iteration, and keep figures of the rollouts."""
    stopwatch.wrap(trainer, "_generate_single_turn", "generation")
    stopwatch.wrap(trainer, "_get_per_token_logps_and_entropies", "old log-probs", unless="update")
    stopwatch.wrap(trainer, "_generate", "parsing, tools")
    stopwatch.wrap(trainer, "_generate_and_score_completions", "rewards, batching")
    stopwatch.wrap(trainer, "_compute_loss", "update")
    generate = trainer._generate

    def counted(prompts: list[Any]) -> Any:
        found = generate(prompts)
        calls = sum(message["role"] == "tool" for completion in found[3] for message in completion)
        sampled, tokens = sum(map(sum, found[2])), sum(map(len, found[0])) + sum(map(len, found[1]))
        right = is_right(found[3], [row["answer"] for row in trainer.rows_in_flight])
        trainer.rollout_figures = {
            "trajectories": len(found[1]),
            "sampled_tokens": sampled,
            "tokens": tokens,
            "tool_calls": calls,
            "correct": sum(right) / len(right),
        }
        return found

    trainer._generate = counted
    score = trainer._generate_and_score_completions

    def scored(inputs: list[Any]) -> Any:
        trainer.rows_in_flight = inputs
        return score(inputs)

    trainer._generate_and_score_completions = scored


def main() -> None:
    """Train until the input ends."""
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    settings = json.loads(sys.argv[2])
    trainer = make_trainer(folder, settings)
    stopwatch = Stopwatch("update")
    watch(trainer, stopwatch)
    trainer.add_callback(make_gate(trainer, stopwatch, settings["steps"]))
    print("ready", flush=True)
    trainer.train()


if __name__ == "__main__":
    main()
