"""A stage's product serves again only if it was made of the same."""

import pytest

from aepo_lightning.app import made_of
from aepo_lightning.app.made_of import cold_start_made_of, evaluation_made_of, misfits
from tests.support.composed import composed


@pytest.fixture(scope="module")
def plain():
    return composed()


@pytest.fixture(scope="module")
def made_of_plain(plain):
    return cold_start_made_of(plain), evaluation_made_of(plain)


def changed(cfg, key, value):
    cfg = cfg.copy()
    node, _, name = key.rpartition(".")
    parent = cfg
    for part in node.split(".") if node else ():
        parent = parent[part]
    parent[name] = value
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "cold_start", "evaluation"),
    [
        ("seed", 1, ["configuration"], ["configuration"]),
        ("coldstart.num_steps", 3, ["configuration"], ["configuration"]),
        ("model.architecture.hidden_size", 32, ["configuration"], ["configuration"]),
        ("data.task.num_places", 4, ["configuration"], ["configuration"]),
        ("tools.search", None, ["configuration"], ["configuration"]),
        ("rollout.chat_format._target_", "x.Y", ["configuration"], ["configuration"]),
        ("evaluation.num_samples", 3, [], ["configuration"]),
        ("rollout.sampling.temperature", 0.5, [], ["configuration"]),
        ("rollout.scoring.on_error", 0.5, [], ["configuration"]),
        ("module.adapter", {"rank": 4}, [], ["configuration"]),
        ("trainer.precision", "bf16-mixed", ["configuration"], ["configuration"]),
        ("module.mixed_precision", True, [], []),
        ("trainer.max_epochs", 3, [], []),
        ("module.optimizer.lr", 3.0, [], []),
        ("output_root", "elsewhere", [], []),
    ],
)
def test_a_change_of_what_it_is_made_of_is_seen(plain, made_of_plain, key, value, cold_start, evaluation):
    other = changed(plain, key, value)
    assert misfits(made_of_plain[0], cold_start_made_of(other)) == cold_start
    assert misfits(made_of_plain[1], evaluation_made_of(other)) == evaluation


def test_the_content_of_files_counts_and_not_their_place(plain, tmp_path, monkeypatch):
    def with_rows(path, data_dir=None):
        return changed(
            changed(plain, "data.task", {"_target_": "x", "path": str(path), "data_dir": data_dir}), "model", {}
        )

    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(text)
    first = cold_start_made_of(with_rows(tmp_path / "a" / "rows.jsonl"))
    assert cold_start_made_of(with_rows(tmp_path / "b" / "*.jsonl")) == first
    assert misfits(first, cold_start_made_of(with_rows("rows.jsonl", str(tmp_path / "b")))) == []
    monkeypatch.setenv("AEPO_DATA_DIR", str(tmp_path / "b"))
    assert cold_start_made_of(with_rows("rows.jsonl")) == first
    assert misfits(first, cold_start_made_of(with_rows(tmp_path / "c" / "rows.jsonl"))) == ["files"]


@pytest.mark.parametrize("is_named", [True, False], ids=["data_dir", "beside the checkout"])
def test_the_files_that_count_are_those_that_the_task_reads(plain, tmp_path, monkeypatch, is_named):
    here, data = tmp_path / "here", tmp_path / "shared" / "data"
    for folder in (here, data):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.delenv("AEPO_DATA_DIR", raising=False)
    monkeypatch.setattr("aepo_lightning.tasks.paths._CHECKOUT", tmp_path / "checkout")
    (data / "rows.jsonl").write_text("1")
    if is_named:
        (here / "rows.jsonl").write_text("other rows, which come second")
    task = {"path": "rows.jsonl", "data_dir": str(data) if is_named else None}
    first = cold_start_made_of(changed(plain, "data.task", task))
    (data / "rows.jsonl").write_text("2")
    assert misfits(first, cold_start_made_of(changed(plain, "data.task", task))) == ["files"]


def test_very_large_files_count_by_size_and_edges(tmp_path, monkeypatch):
    monkeypatch.setattr(made_of, "_WHOLE_BYTES", 8)
    monkeypatch.setattr(made_of, "_EDGE_BYTES", 2)
    path, seen = tmp_path / "x.jsonl", set()
    for text in ("0123456789", "0x23456789", "01234567x9", "01234567890", "0123456789" * 2, "01234x6789"):
        path.write_text(text)
        seen.add(made_of._content(path))
    assert len(seen) == 5, "what lies between the edges is not read"


def test_code_counts_that_of_ones_own_parts_too(plain, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_of_mine_for_digests.py").write_text("a = 1\n")
    cfg = changed(plain, "reward", {"_target_": "rewards_of_mine_for_digests.a"})
    first = evaluation_made_of(cfg)
    assert misfits(evaluation_made_of(plain), first) == ["configuration", "code"]
    (tmp_path / "rewards_of_mine_for_digests.py").write_text("a = 2\n")
    assert misfits(first, evaluation_made_of(cfg)) == ["code"]
    assert misfits(cold_start_made_of(cfg), cold_start_made_of(plain)) == []


@pytest.mark.parametrize("first_file", ["__init__.py", "other.py"], ids=["package", "namespace"])
def test_of_a_package_of_ones_own_every_module_counts(plain, tmp_path, monkeypatch, first_file):
    name = f"parts_of_mine_{first_file.strip('_.py')}"
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / first_file).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = changed(plain, "reward", {"_target_": f"{name}.deep.rewards.f"})
    found = []
    for text in ("a = 1", "a = 2", "a = 2"):
        (tmp_path / name / "deep" / "rewards.py").write_text(text)
        found.append(evaluation_made_of(cfg))
    assert misfits(found[0], found[1]) == ["code"]
    assert misfits(found[1], found[2]) == []


def test_the_code_of_the_library_counts(plain, monkeypatch):
    first = cold_start_made_of(plain)
    with monkeypatch.context() as patch:
        patch.setattr("aepo_lightning.__version__", "999")
        assert misfits(first, cold_start_made_of(plain)) == ["code"]
    monkeypatch.setattr(made_of, "_library_sources", lambda: b"other")
    assert misfits(first, cold_start_made_of(plain)) == ["code"]


def test_a_seed_counts_where_nothing_refers_to_it(plain):
    fixed = changed(changed(changed(plain, "model.seed", 0), "data.task.seed", 0), "data.seed", 0)
    assert misfits(cold_start_made_of(fixed), cold_start_made_of(changed(fixed, "seed", 1))) == ["configuration"]


def test_of_the_folder_of_a_model_every_file_of_data_counts(plain, tmp_path):
    def of(name):
        model = {"_target_": "x", "name_or_path": str(tmp_path / name)}
        return cold_start_made_of(changed(changed(plain, "data.task", {}), "model", model))

    for name, weights, note in (("a", "1", "n"), ("b", "1", "m"), ("c", "2", "n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(weights)
        (tmp_path / name / "README.md").write_text(note)
    assert misfits(of("a"), of("b")) == []
    assert misfits(of("a"), of("c")) == ["files"]


def test_what_has_no_digest_fits():
    assert misfits(None, {"code": "a"}) == []
