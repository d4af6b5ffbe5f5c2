"""Numbers that a run has logged, read from where its logger wrote them."""

from collections.abc import Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_scalars(folder: Path, names: tuple[str, ...]) -> dict[str, Mapping[int, float]]:
    """Return numbers of a run by name and step, as far as TensorBoard's files in its folder have them.

    Args:
        folder: Of the run.
        names: Which.

    Returns:
        Of a step that was logged twice, because a run was continued, the newest. Nothing without such files.
    """
    place = folder / "tensorboard"
    if not any(place.glob("events.*")):
        return {}
    events = EventAccumulator(str(place), size_guidance={"scalars": 0})
    events.Reload()
    known = events.Tags()["scalars"]
    return {name: {each.step: each.value for each in events.Scalars(name)} for name in names if name in known}
