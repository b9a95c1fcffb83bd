"""Merges the settings of all sources: the last source that sets a value wins.

The order is: defaults of all commands, the upload profile, defaults of the service, the
INI file, ``conf.d/*.ini``, systemd's credentials, the environment, options.

The readers of files are imported only if there is a file, so that a command without a
file starts fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

from dlpool import usertext
from dlpool.config.crosscheck import find_conflicts, mutually_exclusive
from dlpool.config.declaration import parse_setting
from dlpool.config.sections import SECTIONS, Settings
from dlpool.config.sourced import (
    GROUP,
    HOST,
    ConfigProblem,
    SourcedValue,
    concerned,
    sort_problems,
)
from dlpool.config.uploads import PROFILES
from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError
from dlpool.redaction import without_password

_PREFIX = "DLPOOL_"


@dataclass(frozen=True)
class EffectiveSettings:
    """The settings in effect, and where they come from.

    ``values`` holds the values that sources have set, by (section, name). ``files``
    names the files that were read, in order. ``notes`` holds warnings for the user, one
    sentence each.
    """

    settings: Settings
    values: Mapping[tuple[str, str], SourcedValue]
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def sections(self) -> dict[str, Any]:
        """Return the settings of each section by name, and ``hosts`` (see ``load``)."""
        return {name: getattr(self.settings, name) for name in (*SECTIONS, "hosts")}


def load(path: str | None) -> dict[str, Any]:
    """Return the settings of each section by name, from a file and the other sources.

    ``path`` is the INI file, None for no file. The member ``hosts`` of the result holds
    the sections ``[host:NAME]`` by NAME, merged with ``[limits]``. Raises
    ConfigurationError with a line for each problem.
    """
    return load_effective(path).sections()


def load_effective(
    config: str | None,
    options: Sequence[SourcedValue] = (),
    environment: Mapping[str, str] = os.environ,
    *,
    for_service: bool = False,
) -> EffectiveSettings:
    """Return the settings in effect.

    ``config`` is the INI file, None for no file; ``options`` are already parsed. With
    ``for_service`` the defaults of the service apply. Raises ConfigurationError with a
    line for each problem.
    """
    found, problems = examine(config, options, environment, for_service=for_service)
    if problems:
        raise ConfigurationError("\n".join(problem.text for problem in problems))
    return found


def examine(
    config: str | None,
    options: Sequence[SourcedValue] = (),
    environment: Mapping[str, str] = os.environ,
    *,
    for_service: bool = False,
) -> tuple[EffectiveSettings, list[ConfigProblem]]:
    """Return the settings without the invalid values, and all problems.

    ``load_effective`` explains the parameters. The problems are in the order of files
    and lines.
    """
    notes: list[str] = []
    files, read, problems = (
        _read_files(config, notes) if config is not None else ((), [], [])
    )
    texts = [
        *read,
        credential_values(environment, problems),
        environment_values(environment),
    ]
    layers: list[Sequence[SourcedValue]] = [
        _checked(layer, problems) for layer in texts if layer
    ]
    defaults = _service_defaults() if for_service else []
    group = _merged([*layers, options]).get(("redis", "group"))
    found = _merged([defaults, *(_of_group(layer, group) for layer in layers), options])
    found = _profile_values(found) | found
    settings, wrong = _settings(found, files), concerned(problems)
    problems += [
        replace(
            one,
            origin=next(
                (found[each].origin for each in one.settings if each in found), ""
            ),
        )
        for one in find_conflicts(
            settings, lambda section, name: _describe(found, section, name)
        )
        if not one.concerns(wrong)
    ]
    return EffectiveSettings(settings, found, files, tuple(notes)), sort_problems(
        problems, files
    )


def written_text(
    given: Mapping[tuple[str, str], SourcedValue], section: str, name: str
) -> str:
    """Return a setting's text as written in its source; without one, its default."""
    found = given.get((section, name))
    return (
        (_declared(section, name).metadata["text"] or "")
        if found is None
        else found.text
    )


def environment_values(environment: Mapping[str, str]) -> list[SourcedValue]:
    """Return the values of variables ``DLPOOL_SECTION_KEY``.

    Variables of unknown sections, such as DLPOOL_PASSWORD, are ignored.
    """
    return [
        SourcedValue(
            section,
            name.removeprefix(prefix).lower(),
            environment[name],
            f"environment {name}",
        )
        for section in SECTIONS
        for prefix in [f"{_PREFIX}{section.upper()}_"]
        for name in sorted(environment)
        if name.startswith(prefix)
    ]


def credential_values(
    environment: Mapping[str, str], problems: list[ConfigProblem]
) -> list[SourcedValue]:
    """Return the secrets in the folder ``$CREDENTIALS_DIRECTORY``; see systemd.exec(5).

    Each secret is in a file ``SECTION_KEY``. Appends a problem for each unreadable file
    to ``problems``.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return []
    found = []
    for section, kind in SECTIONS.items():
        for declared in fields(kind):
            path = Path(folder) / f"{section}_{declared.name}"
            if not declared.metadata["is_secret"]:
                continue
            try:
                text = usertext.read_text(path).strip()
                found.append(
                    SourcedValue(
                        section, declared.name, text, f"credential {path.name}"
                    )
                )
            except FileNotFoundError:
                continue
            except (OSError, usertext.NotText) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8"
                origin = f"credential {path.name}"
                problems.append(
                    ConfigProblem(
                        f"{origin}: cannot read {path}: {reason}",
                        origin,
                        ((section, declared.name),),
                    )
                )
    return found


def _describe(
    given: Mapping[tuple[str, str], SourcedValue], section: str, name: str
) -> str:
    """Return a setting with its value and source, for a message.

    The value of a secret is left out.
    """
    declared = _declared(section, name)
    origin = given[section, name].origin if (section, name) in given else "default"
    is_secret = declared.metadata["is_secret"]
    text = "" if is_secret else f" = {written_text(given, section, name)}"
    return f"{name}{text} ({origin})"


def _declared(section: str, name: str) -> Field[Any]:
    return next(one for one in fields(SECTIONS[section]) if one.name == name)


def _read_files(
    config: str, notes: list[str]
) -> tuple[tuple[str, ...], list[list[SourcedValue]], list[ConfigProblem]]:
    """Return the names of the INI files, their values, and their problems.

    The files are ``config`` and ``*.ini`` in the folder ``conf.d`` beside ``config``.
    """
    from dlpool.config.ini import read_settings_file

    folder = Path(config).parent / "conf.d"
    problems: list[ConfigProblem] = []
    names = [config]
    try:
        found = sorted(os.listdir(folder)) if folder.exists() else []
        names += [
            str(folder / name)
            for name in found
            if name.endswith(".ini") and not name.startswith(".")
        ]
    except OSError as error:
        problems.append(ConfigProblem(f"cannot read {folder}: {error.strerror}"))
    layers = []
    for name in names:
        try:
            layers.append(read_settings_file(name, problems, notes))
        except ConfigurationError as error:
            problems.append(ConfigProblem(str(error), name))
    return tuple(names), layers, problems


def _checked(
    layer: Sequence[SourcedValue], problems: list[ConfigProblem]
) -> list[SourcedValue]:
    """Return the valid values of a source, parsed.

    Appends a problem to ``problems`` for each invalid value.
    """
    from dlpool.config.ini import checked

    return checked(layer, problems)


def _merged(
    layers: Iterable[Sequence[SourcedValue]],
) -> dict[tuple[str, str], SourcedValue]:
    """Return the last value of each setting.

    A later value removes earlier values that exclude it: for example, a password file
    removes an earlier password, and the password in the URL of Redis.
    """
    found: dict[tuple[str, str], SourcedValue] = {}
    for layer in layers:
        for given in layer:
            if given.value is not None:
                _remove_exclusive(found, given)
        found |= {(given.section, given.name): given for given in layer}
    return found


def _service_defaults() -> list[SourcedValue]:
    """Return the defaults that only the service has."""
    return [
        SourcedValue(
            section, one.name, text, "default of the service", parse_setting(one, text)
        )
        for section, kind in SECTIONS.items()
        for one in fields(kind)
        if (text := one.metadata["service"]) is not None
    ]


def _of_group(
    layer: Sequence[SourcedValue], group: SourcedValue | None
) -> Sequence[SourcedValue]:
    """Return the values of a source, with the selected group applied.

    The values of ``[group:NAME]`` are added a second time, as values of ``[transfer]``.
    ``group`` is the setting with NAME; None means that no group is selected.
    """
    section = GROUP if group is None else GROUP + str(group.value)
    return [
        *layer,
        *(replace(one, section="transfer") for one in layer if one.section == section),
    ]


def _profile_values(
    given: Mapping[tuple[str, str], SourcedValue],
) -> dict[tuple[str, str], SourcedValue]:
    """Return the values that the upload profile sets."""
    profile = given.get(("upload", "profile"))
    if profile is None:
        return {}
    values = {
        name: parse_setting(_declared("upload", name), text)
        for name, text in PROFILES[profile.value].items()
    }
    return {
        ("upload", name): SourcedValue(
            "upload",
            name,
            PROFILES[profile.value][name],
            f"profile {profile.text}",
            value,
        )
        for name, value in values.items()
    }


def _remove_exclusive(
    found: dict[tuple[str, str], SourcedValue], given: SourcedValue
) -> None:
    for other in mutually_exclusive(given.section, given.name):
        found.pop((given.section, other), None)
    url = found.get(("redis", "url"))
    if (
        url is not None
        and given.section == "redis"
        and given.name in ("password", "password_file")
    ):
        plain = without_password(url.value)
        found["redis", "url"] = replace(url, text=plain, value=plain)


def _settings(
    found: Mapping[tuple[str, str], SourcedValue], files: tuple[str, ...]
) -> Settings:
    values: dict[str, dict[str, Any]] = {}
    for (section, name), given in found.items():
        values.setdefault(section, {})[name] = given.value
    sections = {name: kind(**values.get(name, {})) for name, kind in SECTIONS.items()}
    hosts = {
        section.removeprefix(HOST): replace(sections["limits"], **own)
        for section, own in values.items()
        if section.startswith(HOST)
    }
    return Settings(**sections, hosts=hosts, files=files)
