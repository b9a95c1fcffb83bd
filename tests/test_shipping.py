"""Test the configuration of log shippers: each file can be parsed, and names only events and fields of the log.

Filebeat, Logstash, Elasticsearch and Kibana do not run here; rsyslog does, in test_rsyslog.py.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from dlpool.cli.setup import files
from dlpool.kinds import LOGGERS
from dlpool.observe.log import LOG_NAME
from dlpool.observe.processors import MAX_LINE
from dlpool.observe.rotation import rotated_name
from dlpool.web.wiring import LOG_FOLDER
from tests.log_docs import EVENTS, FIELDS
from tests.processes import ROOT
from tests.test_log_files import make_log

ETC = ROOT / "etc"
INDEX = "logs-dlpool-default"
BUILT_IN_PRIORITY = 100  # of Elasticsearch's template "logs"
ADDED = {"event.kind", "event.module", "event.ingested", "tags"}  # by the pipeline; all in ECS
LOG_DIR = Path("/var/log/dlpool")
LIVE = {"the service": LOG_DIR / LOG_NAME, "dlpool-web": LOG_DIR / LOG_FOLDER / LOG_NAME}
NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)


def read_json(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ETC / name).read_text())
    return value


# --- Filebeat and rsyslog: which files, from when on ---


def filestream() -> dict[str, Any]:
    (one,) = yaml.safe_load((ETC / "filebeat" / "filebeat.yml").read_text())["filebeat.inputs"]
    return dict(one)


def patterns(shipper: str) -> list[str]:
    if shipper == "filebeat":
        return list(filestream()["paths"])
    return re.findall(r'File="([^"]+)"', (ETC / "rsyslog" / "dlpool.conf").read_text())


def is_shipped(name: str, shipper: str) -> bool:
    """Return whether exactly one pattern matches; ``*`` does not match a slash in these programs."""
    return [PurePosixPath(name).match(one) for one in patterns(shipper) if one.count("/") == name.count("/")].count(
        True
    ) == 1


@pytest.mark.parametrize("of", LIVE)
@pytest.mark.parametrize("shipper", ["filebeat", "rsyslog"])
def test_shippers_read_live_and_rotated_logs_and_nothing_else(shipper: str, of: str) -> None:
    live, old = LIVE[of], rotated_name(LIVE[of], NOW)
    wanted = {
        live: True,
        old: True,
        f"{old}.gz": False,
        f"{old}.gz.tmp": False,
        f"{live}.archived": False,
        f"{live}.archived.tmp": False,
    }
    for name, is_read in wanted.items():
        assert is_shipped(str(name), shipper) is is_read, name


def test_the_paths_are_those_of_the_installed_settings() -> None:
    """The paths follow log_dir of the INI file that ``dlpool setup`` writes."""
    ini = files("/usr/bin/dlpool-supervisor", None)["etc/dlpool/dlpool.ini"]
    assert f"\nlog_dir = {LOG_DIR}\n" in ini


def test_logrotate_takes_both_logs() -> None:
    text = (ETC / "logrotate" / "dlpool").read_text()
    named = [line.strip() for line in text.partition("{")[0].splitlines() if not line.startswith("#")]
    assert named == [str(path) for path in LIVE.values()]


def test_filebeat_knows_each_file_from_its_first_line_on(tmp_path: Path) -> None:
    """The shortest line is longer than the fingerprint, and its start is unique."""
    begins = set()
    length = filestream()["prospector.scanner.fingerprint"]["length"]
    assert length == 64
    for number in range(3):
        moment = NOW + timedelta(milliseconds=number)
        log = make_log(tmp_path / str(number), clock=lambda moment=moment: moment)
        log.logger("a").info("x")
        line = log.path.read_bytes()
        assert len(line) >= length
        begins.add(line[:length])
    assert len(begins) == 3


def test_the_first_lines_of_both_logs_differ_within_one_millisecond(tmp_path: Path) -> None:
    """At midnight both are rotated at once, and Filebeat would take files with equal fingerprints for one."""
    length = filestream()["prospector.scanner.fingerprint"]["length"]
    begins = []
    for name in sorted(set(LOGGERS) - {"log"}):
        log = make_log(tmp_path / name, clock=lambda: NOW)
        log.logger(name).info("x", text="y" * MAX_LINE if name == "web" else "")
        begins.append(log.path.read_bytes()[:length])
    assert len(set(begins)) == len(begins) > 5


def test_filebeat_names_the_file_by_its_fingerprint() -> None:
    assert filestream()["file_identity.fingerprint"] is None


def test_filebeat_reads_lines_as_json_and_writes_to_the_data_stream() -> None:
    settings = yaml.safe_load((ETC / "filebeat" / "filebeat.yml").read_text())
    (parser,) = filestream()["parsers"]
    assert parser["ndjson"] == {"target": "", "overwrite_keys": True, "expand_keys": True, "add_error_key": True}
    assert filestream()["close.on_state_change.removed"] is False
    assert settings["output.elasticsearch"]["index"] == INDEX
    assert settings["setup.template.enabled"] is False


# --- Logstash ---


def test_logstash_names_plugins_fields_and_the_data_stream() -> None:
    text = re.sub(r"^\s*#.*", "", (ETC / "logstash" / "dlpool.conf").read_text(), flags=re.MULTILINE)
    bare = re.sub(r'"[^"]*"|/[^\n]*/ ', "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"^(\w+) \{", text, re.MULTILINE) == ["input", "filter", "output"]
    assert set(re.findall(r"^ +(\w+) \{$", text, re.MULTILINE)) == {"beats", "json", "elasticsearch"}
    fields = re.findall(r"\[(\w+)\] =~", text) + re.findall(r'source => "(\w+)"', text)
    assert fields
    assert set(fields) <= set(FIELDS)
    parts = [re.search(rf'data_stream_{name} => "(\w+)"', text) for name in ("type", "dataset", "namespace")]
    assert "-".join(part[1] for part in parts if part) == INDEX


# --- Elasticsearch ---


def flat(properties: dict[str, Any], prefix: str) -> dict[str, str]:
    """Return the types of a mapping by their dotted names."""
    found: dict[str, str] = {}
    for name, value in properties.items():
        if "properties" in value:
            found |= flat(value["properties"], f"{prefix}{name}.")
        else:
            found[prefix + name] = value["type"]
    return found


def test_the_template_maps_our_fields_and_leaves_the_others_to_ecs() -> None:
    template = read_json("elasticsearch/template.json")
    own = {name: kind for name, kind in FIELDS.items() if name.startswith("dlpool.")}
    assert flat(template["template"]["mappings"]["properties"], "") == own
    assert "ecs@mappings" in template["composed_of"]
    assert set(template["ignore_missing_component_templates"]) < set(template["composed_of"])
    assert template["data_stream"] == {}


def test_the_template_is_for_what_shippers_write_and_above_the_built_in_one() -> None:
    template = read_json("elasticsearch/template.json")
    assert any(fnmatch(INDEX, pattern) for pattern in template["index_patterns"])
    assert template["priority"] > BUILT_IN_PRIORITY
    assert f'searchIndex="{INDEX}"' in (ETC / "rsyslog" / "dlpool.conf").read_text()
    named = re.search(r"PUT _ingest/pipeline/(\S+)", (ROOT / "docs" / "logging.md").read_text())
    assert named is not None
    assert template["template"]["settings"]["index.default_pipeline"] == named[1]


def test_the_pipeline_touches_fields_that_are_there_or_in_ecs() -> None:
    pipeline = read_json("elasticsearch/pipeline.json")
    steps = [next(iter(step.items())) for step in pipeline["processors"] + pipeline["on_failure"]]
    assert [kind for kind, _ in steps] == ["json", "dot_expander", "set", "set", "set", "append"]
    assert {step["field"] for _, step in steps} - {"*"} <= set(FIELDS) | ADDED


# --- Kibana ---


def saved_objects() -> dict[tuple[str, str], dict[str, Any]]:
    lines = (ETC / "kibana" / "dashboard.ndjson").read_text().splitlines()
    return {(one["type"], one["id"]): one for one in map(json.loads, lines)}


def fields_of(saved: dict[str, Any]) -> set[str]:
    """Return the fields that a saved object uses."""
    attributes = saved["attributes"]
    state = json.loads(attributes.get("visState", "{}"))
    found = {one["params"]["field"] for one in state.get("aggs", []) if "field" in one["params"]}
    source = json.loads(attributes.get("kibanaSavedObjectMeta", {}).get("searchSourceJSON", "{}"))
    found |= set(re.findall(r"([\w.@]+) :", source.get("query", {}).get("query", "")))
    return found | set(attributes.get("columns", [])) | {name for name, _ in attributes.get("sort", [])}


def test_the_parts_of_the_dashboard_are_there() -> None:
    objects = saved_objects()
    for saved in objects.values():
        for reference in saved["references"]:
            assert (reference["type"], reference["id"]) in objects
    dashboard = objects["dashboard", "dlpool"]
    panels = json.loads(dashboard["attributes"]["panelsJSON"])
    assert [panel["panelRefName"] for panel in panels] == [one["name"] for one in dashboard["references"]]
    assert len(objects) == len(panels) + 2
    assert fnmatch(INDEX, objects["index-pattern", "logs-dlpool"]["attributes"]["title"])


def test_the_dashboard_asks_for_fields_and_events_that_the_log_has() -> None:
    objects = saved_objects()
    used = set().union(*map(fields_of, objects.values()))
    assert len(used) > 8
    assert used <= set(FIELDS)
    asked = re.findall(r"event\.action : (?:\(([^)]*)\)|(\w+))", str(objects))
    assert asked
    assert {event for found in asked for event in "".join(found).split(" or ")} <= set(EVENTS)
