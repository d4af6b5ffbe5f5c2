"""The command `aepo-explain`: what an optimiser step made of one token, in numbers that add up to the logged loss.

    aepo-explain RUN --question ID --leaf r/3 --token 12
    aepo-explain RUN --question ID --leaf r/3              a line for each trained token
    aepo-explain RUN --node 'q=ID&leaf=r/3&token=12'       named as in the address of a page of `aepo-view`

The step is made again from what the run has kept: trees, weights and, where other steps of the iteration went before,
the checkpoint that it began with.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.explained_token import ExplainedToken, ExplainedTrajectory, explain_trajectory
from aepo_lightning.app.first_difference import chain_name
from aepo_lightning.app.node import NodeName, find_leaf, find_node
from aepo_lightning.app.printed import print_text
from aepo_lightning.app.relived_step import RelivedStep, relive
from aepo_lightning.app.targets import add_allow
from aepo_lightning.errors import ConfigError


def find_token(found: ExplainedTrajectory, place: int) -> ExplainedToken:
    """Return a trained token by its place in the response.

    Raises:
        ConfigError: If there is none, or it is of a tool result.
    """
    token = next((each for each in found.tokens if each.place == place), None)
    if token is not None:
        return token
    length, places = found.num_response_tokens, [each.place for each in found.tokens]
    if not 0 <= place < length:
        raise ConfigError(f"`--token` must be a place in the response, from 0 to {length - 1}, but got {place}.")
    nearest = sorted(sorted(places, key=lambda each: abs(each - place))[:2])
    raise ConfigError(
        f"`--token` must be the place of a token that the policy sampled, but that at {place} is of a tool result, "
        f"which is not trained. The nearest that are: {', '.join(map(str, nearest)) or 'none'}."
    )


def told(relived: RelivedStep, found: ExplainedTrajectory, token: ExplainedToken) -> Iterator[str]:
    """Yield what there is to say about a token, line by line."""
    rewards = found.group_rewards
    mean = sum(rewards) / len(rewards)
    sign = "-" if token.entropy_bonus >= 0 else "+"
    factor = "-" if token.gradient_factor is None else f"{token.gradient_factor:.6g}"
    yield f"token {token.place} of the response, {token.text!r}, in step {relived.step} (iteration {relived.iteration})"
    yield f"entropy              {token.sampler_entropy:.6f} nats when it was sampled, {token.entropy:.6f} now"
    yield (
        f"log-prob             {token.sampler_logprob:.6f} by the engine, {token.old_logprob:.6f} before the update, "
        f"{token.logprob:.6f} now"
    )
    yield f"ratio                {token.importance_ratio:.6f}, {token.clip_state}; factor of the gradient {factor}"
    yield (
        f"advantage            reward {found.reward:g} in a group of {len(rewards)} with mean {mean:.4g}: "
        f"{token.advantage_before_shaping:.6f}, after shaping {token.advantage:.6f}"
    )
    yield f"importance weight    {token.importance_weight:.6f} (correction between engine and trainer)"
    yield (
        f"loss                 {token.objective:.8f} (objective) {sign} {abs(token.entropy_bonus):.8f} (entropy bonus) "
        f"+ {token.kl_penalty:.8f} (KL) + {token.distance_penalty:.8f} (KL-Cov)"
    )
    yield f"                     times {token.trajectory_weight:g} (weight of the trajectory) = {token.loss:.8f}"
    yield from _sums(relived, found, token)


def _sums(relived: RelivedStep, found: ExplainedTrajectory, token: ExplainedToken) -> Iterator[str]:
    yield f"adds                 {token.share:+.10f} to the loss of the step"
    yield f"  its trajectory     {found.share:+.10f}, with {len(found.tokens)} trained tokens"
    yield f"  the step           {found.step_loss:+.10f}, with {found.num_step_tokens:g} trained tokens"
    if relived.logged_loss is None:
        yield "  logged             not in this folder"
        return
    gap = abs(found.step_loss - relived.logged_loss)
    same = math.isclose(found.step_loss, relived.logged_loss, rel_tol=1e-4, abs_tol=1e-7)
    verdict = "the same up to rounding" if same else f"another number, by {gap:.3g}: made on another machine or version"
    yield f"  logged             {relived.logged_loss:+.10f}, {verdict}"


def listed(found: ExplainedTrajectory) -> Iterator[str]:
    """Yield a line for each trained token of a trajectory."""
    yield f"{'token':>6}  {'text':<16}{'entropy':>10}{'ratio':>10}{'advantage':>11}{'loss':>12}{'adds':>15}  clip state"
    for each in found.tokens:
        numbers = f"{each.entropy:>10.4f}{each.importance_ratio:>10.4f}{each.advantage:>11.4f}{each.loss:>12.6f}"
        yield f"{each.place:>6}  {each.text[:14]!r:<16}{numbers}{each.share:>+15.8f}  {each.clip_state}"
    yield f"{'sum':>6}{'':>61}{found.share:>+15.8f}"


def asked(args: argparse.Namespace) -> tuple[str, str, int | None, int | None]:
    """Return the question, trajectory, token and iteration that the words of the command name, in parts or as a node.

    Raises:
        ConfigError: If they name no trajectory, or there is no such node.
    """
    if args.node is not None:
        name = NodeName.parse(args.node)
        node = find_node(args.folder, name, args.iteration)
        token = name.token if args.token is None else args.token
        return node.tree.question.question_id, chain_name(node.leaf), token, node.iteration
    if args.question is None or args.leaf is None:
        raise ConfigError("A trajectory must be named, but got none. Give `--question` and `--leaf`, or `--node`.")
    return args.question, args.leaf, args.token, args.iteration


def main() -> None:
    """Run the command line."""
    args = _parser().parse_args()
    find_modules_here()
    quieten_libraries()
    with guarded_command("The run is as it was."):
        question, leaf, place, iteration = asked(args)
        relived = relive(args.folder, question, iteration, args.allow)
        tree = next(each for each in relived.trees if each.question.question_id == question)
        found = explain_trajectory(relived, tree, find_leaf(tree, leaf))
        token = None if place is None else find_token(found, place)
    if args.json:
        plain = {"step": relived.step, "iteration": relived.iteration, "logged_loss": relived.logged_loss}
        print_text(json.dumps(plain | asdict(found) | ({} if token is None else {"tokens": [asdict(token)]})))
        return
    for line in listed(found) if token is None else told(relived, found, token):
        print_text(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aepo-explain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--node", metavar="ID", help="question, trajectory and token in one, in quotes")
    parser.add_argument("--question", help="id of a saved tree")
    parser.add_argument("--leaf", help="a trajectory by its branch path (r/3) or its number")
    parser.add_argument("--token", type=int, help="place in the response, from 0; default: all, a line each")
    parser.add_argument("--iteration", type=int, help="in which the question was asked; default: the first")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_allow(parser)
    speak_utf8()
    return parser


if __name__ == "__main__":
    main()
