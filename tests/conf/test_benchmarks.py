"""Every benchmark composes and builds; files that are there have the specified rows, others say what to do."""

import csv
import json
from base64 import b64encode
from collections import Counter
from functools import cache
from itertools import cycle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from aepo_lightning.app.build import build
from aepo_lightning.app.command import CONFIG_MODULE
from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.benchmark import Benchmark
from tests.support.paths import CONF, DATA_DIR, ROOT

ROWS = {
    "gsm8k": 1319,
    "math500": 500,
    "aime24": 30,
    "aime25": 30,
    "hotpotqa": 200,
    "two_wiki": 200,
    "musique": 200,
    "bamboogle": 125,
    "webwalker": 200,
    "simpleqa": 500,
}
"""Of the files that come with the specification."""
ABSENT = {"math", "gaia", "hle", "xbench", "frames"}
FIRST = {
    "gsm8k": "18",
    "math500": r"\left( 3, \frac{\pi}{2} \right)",
    "aime24": "204",
    "aime25": "70",
    "bamboogle": "james madison",
}
NAMES = sorted(ROWS | dict.fromkeys(ABSENT))


@pytest.fixture(scope="module")
def configs():
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            chosen = [f"+benchmark@{name}={name}" for name in NAMES]
            return compose(overrides=chosen)
        finally:
            GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def make(configs):
    @cache
    def build_one(name, **source):
        return build(OmegaConf.merge(configs[name], {"source": source}))

    return build_one


def test_there_is_a_file_for_each():
    assert sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml") if path.stem[0] != "_") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_builds_with_its_protocol(name, make):
    benchmark = make(name)
    assert isinstance(benchmark, Benchmark)
    assert benchmark.name == name
    assert isinstance(benchmark.checker, AnswerChecker)
    is_wiki = name in ("hotpotqa", "two_wiki", "musique", "bamboogle")
    assert (benchmark.metric, benchmark.judge) == (("f1", "") if is_wiki else ("accuracy", "paper"))
    sampling = benchmark.protocol.sampling
    drawing = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty)
    assert drawing == (0.6, 0.95, 20, 1.1)
    assert (dict(sampling.max_calls), list(sampling.ask_once)) == ({"python": 5, "search": 10}, ["search"])
    assert (sampling.timeout_s, list(sampling.stop), sampling.on_call_limit) == (1500.0, ["</answer>"], "tell")
    assert (benchmark.protocol.num_samples, benchmark.protocol.tools) == (5, ("search", "python"))
    assert all(0 <= score.value <= 100 for score in benchmark.published)


def test_published_numbers_are_those_of_the_papers(make):
    def printed(name, *what):
        return [
            score.value
            for score in make(name).published
            if (score.method, score.model, score.metric, score.level) == what
        ]

    assert printed("gaia", "AEPO", "Qwen3-14B", "pass@1", "") == [47.6]
    assert printed("webwalker", "AEPO", "Qwen3-14B", "pass@5", "") == [70.0]
    assert printed("gaia", "ARPO", "Qwen3-14B", "pass@1", "2") == [40.4]
    assert printed("webwalker", "GRPO", "Qwen3-8B", "pass@1", "hard") == [26.8]
    assert printed("musique", "DAPO", "Llama3.1-8B", "f1", "") == [29.2]
    assert printed("aime24", "AEPO", "Qwen2.5-7B", "pass@1", "") == [33.3]
    assert printed("simpleqa", "AEPO", "Qwen2.5-7B", "pass@1", "") == [62.1]
    assert [score.method for score in make("frames").published] == []
    assert all("not measured by the authors" in s.note for s in make("math").published if s.source[:4] == "RAPO")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_file_of_the_specification_is_the_known_one_and_has_its_rows(name, make):
    benchmark = make(name, data_dir=str(DATA_DIR))
    if not (DATA_DIR / benchmark.source.files[0].path).is_file():
        pytest.skip(f"{benchmark.source.files[0].path} is not here (set AEPO_DATA_DIR)")
    found = benchmark.questions()
    assert found.is_known
    assert len(found.questions) == benchmark.source.files[0].num_rows == ROWS[name]
    assert all(question.answers and question.messages[-1].content.strip() for question in found.questions)
    if name in FIRST:
        assert found.questions[0].answers == (FIRST[name],)


def encrypted(text, key):
    return b64encode(bytes(a ^ b for a, b in zip(text.encode(), cycle(key.encode()), strict=False))).decode()


def row_of(name, number):
    """A row as the benchmark's publisher writes it; questions and answers are invented."""
    asked, gold = f"What is {number} plus {number}?", str(2 * number)
    return {
        "math": {"problem": asked, "answer": gold, "level": f"Level {number}"},
        "gaia": {"task_id": f"t{number}", "Question": asked, "Level": str(number), "Final answer": gold}
        | {"file_name": "table.xlsx" if number == 3 else ""},
        "hle": {"id": f"h{number}", "question": asked, "answer": gold, "category": "Math"}
        | {"image": "data:image/png;base64,AA==" if number == 3 else ""},
        "xbench": {"id": str(number), "prompt": encrypted(asked, "ab-c"), "answer": encrypted(gold, "ab-c")}
        | {"canary": "ab-c"},
        "frames": {"Prompt": asked, "Answer": gold, "wiki_link_1": "https://example.org"},
    }[name]


@pytest.mark.parametrize(
    "name, number, levels",
    [
        ("math", 3, ["Level 1", "Level 2", "Level 3"]),
        ("gaia", 2, ["1", "2"]),
        ("hle", 2, ["Math", "Math"]),
        ("xbench", 3, [""] * 3),
        ("frames", 3, [""] * 3),
    ],
)
def test_rows_as_publishers_write_them_are_read(name, number, levels, make, tmp_path):
    path = tmp_path / make(name).source.files[-1].path
    path.parent.mkdir()
    rows = [row_of(name, each) for each in (1, 2, 3)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    benchmark = make(name, data_dir=str(tmp_path), allow_other_version=True)
    found = benchmark.questions().questions
    assert [question.messages[0].content for question in found] == [
        f"What is {each} plus {each}?" for each in range(1, number + 1)
    ]
    assert [question.answers for question in found] == [(str(2 * each),) for each in range(1, number + 1)]
    assert [question.metadata["level"] for question in found] == levels
    assert set(levels) <= {*benchmark.levels, ""}


def test_what_the_hub_has_of_hle_is_known_to_be_other_questions_than_the_published(make):
    source = make("hle").source
    assert [each.is_other for each in (*source.files, source.hub)] == [False, True, True]


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_what_is_not_there_says_where_it_comes_from(name, make, tmp_path):
    benchmark = make(name, data_dir=str(tmp_path))
    with pytest.raises(DataError) as caught:
        benchmark.questions()
    told = str(caught.value)
    assert f"{tmp_path}/benchmarks/" in told
    assert all(known.url in told for known in benchmark.source.files)
    assert told.endswith(benchmark.source.note)
    assert ("`fetch=missing` streams" in told) == (name != "math")


def test_the_guide_has_a_row_for_each_with_its_licence_and_its_number_of_rows(make):
    lines = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    named = Counter(line.split("|")[1].strip(" `") for line in lines if line.startswith("| `"))
    for name in NAMES:
        source, (line,) = make(name).source, [each for each in lines if each.startswith(f"| `{name}` |")]
        assert named[name] == 1
        assert source.licence.split(";")[0] in line
        assert source.homepage in line
        assert str(source.files[0].num_rows or "not known") in line.replace(",", "")
