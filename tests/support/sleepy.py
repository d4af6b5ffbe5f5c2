"""An engine slow enough to be killed in the middle of a rollout."""

import asyncio

from aepo_lightning.engines import TransformersEngine


class SleepyEngine(TransformersEngine):
    """Waits a little before each generation."""

    async def generate(self, prompt_ids, params, on_probe=None):
        await asyncio.sleep(0.02)
        return await super().generate(prompt_ids, params, on_probe)
