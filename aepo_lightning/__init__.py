"""Composable PyTorch Lightning parts for agentic reinforcement learning, with AEPO at their heart.

`from aepo_lightning import X` gives whatever a user writes; a name is imported when it is first used, so importing the
package itself costs nothing. Deeper paths are for those who extend it.

`callbacks/` and `conf/` stand beside this folder in a checkout, where the people who run experiments look for
them; their import names are `aepo_lightning.callbacks` and `aepo_lightning.conf` there and in an installed wheel.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING

from aepo_lightning.lazy_names import homes as _homes
from aepo_lightning.lazy_names import importer as _importer

if TYPE_CHECKING:
    from aepo_lightning.advantages import (
        AnchorState,
        ClipCov,
        EntropyModulation,
        EntropyShaping,
        FirstBranch,
        GroupZScore,
        KLCov,
        LeaveOneOut,
        NoBaseline,
        NodeValue,
        OverlongPenalty,
        RootBaseline,
        TopEntropyMask,
        TurnReturn,
    )
    from aepo_lightning.branching import EntropyBalanced, NeverBranch, OfficialEntropyBalanced, RandomBranching
    from aepo_lightning.budgets import PreMonitoring, RootShare
    from aepo_lightning.chat_formats import HermesFormat, TagFormat
    from aepo_lightning.contracts.question import Message, Question
    from aepo_lightning.contracts.reward import RewardInput, RewardLimits, RewardOutput
    from aepo_lightning.contracts.reward_term import TermOutput
    from aepo_lightning.contracts.tool import ToolContext, ToolLimits, ToolSpec
    from aepo_lightning.contracts.tree import RolloutTree
    from aepo_lightning.engines.transformers.engine import TransformersEngine
    from aepo_lightning.engines.vllm.engine import VLLMEngine
    from aepo_lightning.engines.vllm_server.engine import VLLMServerEngine
    from aepo_lightning.evaluation.benchmark import Benchmark
    from aepo_lightning.evaluation.evaluate import evaluate
    from aepo_lightning.evaluation.evaluator import EvaluationChoices
    from aepo_lightning.evaluation.in_training import BenchmarkScores
    from aepo_lightning.evaluation.protocol import EvaluationProtocol
    from aepo_lightning.evaluation.task_questions import TaskQuestions
    from aepo_lightning.objectives import Cispo, ClippedSurrogate, ImportanceCorrection, KLPenalty, LossAggregation
    from aepo_lightning.ops.tree_packing import pack_rows
    from aepo_lightning.policy.lora import LoRA
    from aepo_lightning.policy.network import PolicyNetwork
    from aepo_lightning.policy.publishing.check import PublicationCheck
    from aepo_lightning.policy.source import PretrainedPolicy, ScratchPolicy
    from aepo_lightning.policy.tokenizers import build_byte_tokenizer, build_word_tokenizer
    from aepo_lightning.rewards import (
        AnswerTerm,
        FormatTerm,
        LengthTerm,
        OverlongTerm,
        PaperReward,
        RewardSum,
        ToolTerm,
        reward,
    )
    from aepo_lightning.rollout import (
        RolloutJournal,
        RolloutParts,
        RolloutSampler,
        RolloutSettings,
        SamplingSettings,
        ScoringSettings,
    )
    from aepo_lightning.tasks import (
        ArithmeticTask,
        JsonlQuestions,
        ListedQuestions,
        OfficialParquet,
        ParquetQuestions,
        TrailTask,
    )
    from aepo_lightning.tools import DocumentSearch, IndexSearch, PythonTool, ToolRuntime, WebSearch, tool
    from aepo_lightning.training.algorithm import Algorithm
    from aepo_lightning.training.coldstart import ColdStartModule
    from aepo_lightning.training.datamodule import RolloutDataModule
    from aepo_lightning.training.demonstrations import DemonstrationDataModule
    from aepo_lightning.training.dynamic_sampling import DynamicSampling
    from aepo_lightning.training.experience import ExperienceBuilder, ExperienceSettings
    from aepo_lightning.training.module import AEPOModule
    from aepo_lightning.training.presets import (
        AEPO,
        ARPO,
        AT2PO,
        CEGPPO,
        CISPO,
        DAPO,
        EMPG,
        GPPO,
        GRPO,
        GSPO,
        RLOO,
        AEPOOfficial,
        AEPORandomBranching,
        AEPOReleased,
        AEPOUnbiased,
        DrGRPO,
        GiGPO,
        ReinforcePP,
        ReinforcePPBaseline,
    )

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "callbacks").is_dir():
    __path__.append(str(_checkout))

__version__ = "0.1.0"

_PLACES = {
    "advantages": "AnchorState ClipCov EntropyModulation EntropyShaping FirstBranch GroupZScore KLCov LeaveOneOut "
    "NoBaseline NodeValue OverlongPenalty RootBaseline TopEntropyMask TurnReturn",
    "branching": "EntropyBalanced NeverBranch OfficialEntropyBalanced RandomBranching",
    "budgets": "PreMonitoring RootShare",
    "chat_formats": "HermesFormat TagFormat",
    "contracts.question": "Message Question",
    "contracts.reward": "RewardInput RewardLimits RewardOutput",
    "contracts.reward_term": "TermOutput",
    "contracts.tool": "ToolContext ToolLimits ToolSpec",
    "contracts.tree": "RolloutTree",
    "engines.transformers.engine": "TransformersEngine",
    "engines.vllm.engine": "VLLMEngine",
    "engines.vllm_server.engine": "VLLMServerEngine",
    "evaluation.benchmark": "Benchmark",
    "evaluation.evaluate": "evaluate",
    "evaluation.evaluator": "EvaluationChoices",
    "evaluation.in_training": "BenchmarkScores",
    "evaluation.protocol": "EvaluationProtocol",
    "evaluation.task_questions": "TaskQuestions",
    "objectives": "Cispo ClippedSurrogate ImportanceCorrection KLPenalty LossAggregation",
    "ops.tree_packing": "pack_rows",
    "policy.lora": "LoRA",
    "policy.network": "PolicyNetwork",
    "policy.publishing.check": "PublicationCheck",
    "policy.source": "PretrainedPolicy ScratchPolicy",
    "policy.tokenizers": "build_byte_tokenizer build_word_tokenizer",
    "rewards": "AnswerTerm FormatTerm LengthTerm OverlongTerm PaperReward RewardSum ToolTerm reward",
    "rollout": "RolloutJournal RolloutParts RolloutSampler RolloutSettings SamplingSettings ScoringSettings",
    "tasks": "ArithmeticTask JsonlQuestions ListedQuestions OfficialParquet ParquetQuestions TrailTask",
    "tools": "DocumentSearch IndexSearch PythonTool ToolRuntime WebSearch tool",
    "training.algorithm": "Algorithm",
    "training.coldstart": "ColdStartModule",
    "training.datamodule": "RolloutDataModule",
    "training.demonstrations": "DemonstrationDataModule",
    "training.dynamic_sampling": "DynamicSampling",
    "training.experience": "ExperienceBuilder ExperienceSettings",
    "training.module": "AEPOModule",
    "training.presets": "AEPO AEPOOfficial AEPORandomBranching AEPOReleased AEPOUnbiased ARPO AT2PO CEGPPO CISPO DAPO "
    "DrGRPO EMPG GPPO GRPO GSPO GiGPO RLOO ReinforcePP ReinforcePPBaseline",
}
_MODULE_OF = _homes(_PLACES)
__getattr__ = _importer(__name__, __name__, _MODULE_OF, globals())


def __dir__() -> list[str]:
    """Return the public names."""
    return [*_MODULE_OF, "__version__"]


__all__ = list(_MODULE_OF)
