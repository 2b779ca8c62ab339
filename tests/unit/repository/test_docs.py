"""The docs name everything that the code has, come fresh from it, and lead nowhere that does not exist."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest

from builder import docs
from builder.docs import __main__ as command
from builder.docs import errors, markdown, readme, request
from worker.base.errors import InvalidRequest, WorkerError
from worker.base.settings import Settings, variables_of
from worker.request import Mode
from worker.request import parse as request_module
from worker.request.payload import CameraMotion, JobInput, LoraInput, QualityPreset, VideoInput
from worker.request.prompt_words import CAMERA_MOTIONS
from worker.request.settle import PRESETS
from worker.request.training_payload import TrainInput

ROOT = Path(__file__).resolve().parents[3]
WRITTEN = sorted([ROOT / "llms.txt", *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
REQUEST = (ROOT / "docs" / "request.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What README may name beside the settings: RunPod's own variables, and names of the examples.
FOREIGN_VARIABLES = {"RUNPOD_INIT_TIMEOUT", "ENDPOINT_ID", "PYTHON", "TIMED_OUT", "THIRD_PARTY_NOTICES"}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|tmp|var|opt|mnt)/[\w./-]*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    return re.split(r"^#+ ", page.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def row_of(page: str, name: str) -> list[str]:
    """The cells of the first row of a table whose first cell is `name`."""
    line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def written(default: object) -> set[str]:
    """How the docs may write the default of a setting."""
    if default is None or default == ():
        return {"unset" if default is None else "empty"}
    if isinstance(default, tuple):
        return {f"`{','.join(default)}`"}
    return {
        f"`{default}`",
        f"`{str(default).lower()}`",
        f"`{default:g}`" if isinstance(default, float) else f"`./{default}`",
    }


def test_every_variable_is_documented_with_its_second_names_default_and_meaning() -> None:
    for field, info in Settings.model_fields.items():
        first, *others = variables_of(field)
        _, default, values, meaning = row_of(CONFIGURATION, first)
        assert default in written(info.default), first
        assert values, first
        assert [other for other in others if f"`{other}`" not in meaning] == []
        assert info.description in meaning.replace("\\|", "|")


def test_every_field_of_a_request_is_documented_with_a_meaning() -> None:
    job, video, lora = (section(REQUEST, name) for name in ("The job", "The video request", "A LoRA"))
    for page, fields in ((job, [*JobInput.model_fields, "job_request_params"]), (video, VideoInput.model_fields)):
        assert [name for name in fields if not all(row_of(page, name))] == []
    assert [name for name in LoraInput.model_fields if not all(row_of(lora, name))] == []


def test_every_field_of_a_training_is_documented_with_a_meaning() -> None:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert [name for name in TrainInput.model_fields if not all(row_of(page, name))] == []


def test_types_and_bounds_are_those_of_the_contract() -> None:
    shown = {
        "prompt": "string, 1 to 4000 characters",
        "height": "integer, 256 to 1920",
        "num_frames": "integer, 5 to 161",
        "strength": "number, more than 0, at most 1",
        "seed": "integer, -1 to 2^63 - 1",
        "job_request_params": "list of object, 1 to 16",
    }
    assert {name: row_of(REQUEST, name)[1] for name in shown} == shown


def test_every_error_code_is_documented_with_what_to_do() -> None:
    for kind in WorkerError.__subclasses__():
        _, http_code, retryable, when, remedy = row_of(ERRORS, kind.code)
        assert (http_code, retryable) == (str(kind.http_code), "yes" if kind.retryable else "no"), kind.code
        assert when
        assert remedy


def test_the_error_example_is_what_a_bad_payload_is_told() -> None:
    (example,) = re.findall(r"```json error\n(.*?)```", ERRORS, re.DOTALL)
    with pytest.raises(InvalidRequest) as caught:
        request_module.parse({"job_request_params": [{"prompt": "a", "fps": 61}]}, default_job_id="a")
    assert json.loads(example) == caught.value.as_dict()


def test_every_preset_and_camera_motion_is_documented() -> None:
    for preset in get_args(QualityPreset):
        steps, guidance = PRESETS[preset]
        _, *values, use = row_of(section(REQUEST, "Quality presets"), preset)
        assert values == [str(steps), f"{guidance:.1f}"]
        assert use
    for motion in get_args(CameraMotion):
        assert row_of(section(REQUEST, "Camera motions"), motion)[1] == CAMERA_MOTIONS[motion]


def test_every_mode_is_documented() -> None:
    assert set(readme.SENT) == set(get_args(Mode))
    for mode in get_args(Mode):
        assert f"| {readme.SENT[mode]} | `{mode}` |" in section(REQUEST, "Which mode a request is")
        assert row_of(section(README, "Supported modes"), mode)[1] == readme.SENT[mode]


def test_every_room_of_the_worker_has_its_line() -> None:
    for path in ROOT.glob("worker/*.py"):
        if path.name != "__init__.py":
            assert row_of(README, f"worker/{path.name}")[1]
    for path in ROOT.glob("worker/*/__init__.py"):
        assert row_of(README, f"worker/{path.parent.name}")[1]


def test_readme_is_short() -> None:
    assert len(README.encode()) <= 12 * 1024


def test_readme_names_no_variable_that_does_not_exist() -> None:
    known = {variable for field in Settings.model_fields for variable in variables_of(field)} | FOREIGN_VARIABLES
    named = set(re.findall(r"[`$ ]([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b(?!\*)", README))
    assert named
    assert named <= known


def test_a_setting_that_nothing_reads_is_marked_as_such() -> None:
    unused = readme.not_carried_out()
    assert not unused & {"webhook_secret", "preload", "storage_bucket", "job_timeout_s", "output_dir"}
    for field in Settings.model_fields:
        marked = "not carried out yet" in row_of(CONFIGURATION, variables_of(field)[0])[3]
        assert marked == (field in unused)


@pytest.mark.slow  # `make check` runs the generators
def test_the_generated_docs_are_fresh() -> None:
    assert docs.stale(docs.expected()) == [], "run make docs"


def test_check_names_what_is_stale_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = {"docs/errors.md": errors.render(), "docs/request.md": request.render()}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "request.md").write_text(fresh["docs/request.md"], encoding="utf-8")
    (tmp_path / "docs" / "errors.md").write_text("old", encoding="utf-8")
    for module in (docs, command):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(command, "expected", lambda: fresh)
    assert command.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/errors.md is out of date: run make docs\n"
    assert (tmp_path / "docs" / "errors.md").read_text(encoding="utf-8") == "old"
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0


@pytest.mark.slow
def test_a_part_whose_markers_are_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="'rooms'"):
        docs.with_parts(README.replace("<!-- end of rooms -->", ""))


def test_a_bar_in_a_cell_does_not_split_it() -> None:
    assert markdown.table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def links() -> Iterator[tuple[Path, str]]:
    for path in WRITTEN:
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                yield path, target


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def leads_somewhere(page: Path, target: str) -> bool:
    name, _, anchor = unquote(target).partition("#")
    file = (page.parent / name).resolve() if name else page
    return file.is_relative_to(ROOT) and file.exists() and (not anchor or anchor in anchors_of(file))


def test_relative_links_resolve() -> None:
    found = list(links())
    assert len(found) > 100
    assert [(str(page), target) for page, target in found if not leads_somewhere(page, target)] == []


def test_files_of_the_repository_that_a_page_names_exist() -> None:
    for page in WRITTEN:
        if page.parent.name == "decisions" or page.name == "CHANGELOG.md":
            continue  # they name files that have gone since
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:worker|builder|benchmarks|training|tests|examples)/[a-z_0-9./-]*)`", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], page


def test_no_page_holds_a_path_of_a_machine() -> None:
    for page in WRITTEN:
        assert MACHINE_PATH.findall(page.read_text(encoding="utf-8")) == [], page


def shown_methods(name: str) -> set[str]:
    """The methods of the class that a page shows as the one to write."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return set(re.findall(r"^ +def (\w+)\(", page, re.MULTILINE))


def methods(file: str, *names: str) -> set[str]:
    """Those of the classes `names`, read from the source: importing some of them would load torch."""
    classes = [
        node for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    functions = [node for kind in classes if kind.name in names for node in kind.body]
    return {node.name for node in functions if isinstance(node, ast.FunctionDef) and not node.name.startswith("__")}


def test_the_pages_on_adding_something_show_the_methods_that_there_are() -> None:
    storage = methods("worker/delivery/storage/base.py", "Storage", "StorageKind")
    assert shown_methods("adding-a-storage.md") == {*storage, "_put"}
    assert shown_methods("adding-a-mode.md") == methods("worker/engine/modes/base.py", "VideoMode")
    assert shown_methods("adding-an-acceleration.md") == methods("worker/engine/techniques/base.py", "Technique")
