"""The compose file of the examples: its commands are those that the programs understand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from videogen_client.serve.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "examples" / "docker-compose.yml").read_text(encoding="utf-8"))


def words_after(service: str, module: str) -> list[str]:
    return shlex.split(COMPOSE["services"][service]["command"][-1].partition(f"-m {module}")[2])


def test_the_server_of_videos_understands_its_flags() -> None:
    chosen = build_parser().parse_args(words_after("videos", "videogen_client.serve"))
    assert (chosen.worker, chosen.public_url) == ("http://worker:8000", "http://videos:8080")
    both = [COMPOSE["services"][name]["environment"]["WEBHOOK_SECRET"] for name in ("worker", "videos")]
    assert both[0] == both[1]
    assert COMPOSE["services"]["worker"]["environment"]["PRIVATE_URL_ALLOWLIST"] == "videos"


def test_the_page_has_the_flags_that_it_is_given() -> None:
    source = (ROOT / "client" / "src" / "videogen_client" / "page" / "__main__.py").read_text(encoding="utf-8")
    flags = [word for word in words_after("page", "videogen_client.page") if word.startswith("--")]
    assert flags
    assert [flag for flag in flags if f'"{flag}"' not in source] == []


def test_services_share_the_folder_that_files_are_in() -> None:
    mounted = {name: service["volumes"] for name, service in COMPOSE["services"].items()}
    assert all(any(re.match(r"videogen:/workspace(:ro)?$", each) for each in volumes) for volumes in mounted.values())
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
