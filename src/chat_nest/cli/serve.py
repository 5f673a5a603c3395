"""The output of `chat-nest serve` at its start, and the demo model that its workers share."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Generator, Mapping

import click
from msgspec.structs import replace

from chat_nest.cli.strangers import open_to_everybody, warning
from chat_nest.providers.demo_process import DemoFailure, DemoServer, check_demo, start_demo_server
from chat_nest.server import logs
from chat_nest.server.config.caller_names import kept_secret
from chat_nest.server.config.provider import ProviderConfig, Secret
from chat_nest.server.config.schema import RunsSection
from chat_nest.server.config.settings import Config
from chat_nest.server.config.sources import ConfigError
from chat_nest.server.control import ControlSocket
from chat_nest.server.hangup import Hangup
from chat_nest.server.listen import url_of
from chat_nest.server.listeners import Listeners
from chat_nest.server.reload import ConfigSource, Load
from chat_nest.server.shared_metrics import shared_folder
from chat_nest.server.sole import Sole
from chat_nest.server.worker import WorkerSettings, run_server
from chat_nest.server.workers import serve_with_workers

WITH_A_KEY = "OPENAI_API_KEY=... (or OPENAI_BASE_URL=... for another server of the same API)"


def run(config: Config, listeners: Listeners, load: Load, *, workers: int, color: bool) -> int:
    """Serve until a signal ends the server; return the exit code. `load` reads the configuration again."""
    section = config.log
    logs.configure(section.level, color=color, access_log=section.requests, style=section.format)
    hangup = Hangup()
    problem = _problem(config, workers)
    if problem:
        click.echo(f"chat-nest: {problem}", err=True)
        return 2
    secret = Secret(kept_secret(config).decode())
    settings = WorkerSettings(
        config=config,
        caller_secret=secret,
        log_level=section.level,
        access_log=section.requests,
        log_format=section.format,
        color=color,
    )

    def started() -> None:
        click.echo(banner(config, url_of(listeners.public), listeners.operators_url, color=color), color=color)

    try:
        if workers == 1:
            source = ConfigSource(config, load, _usable)
            return run_server(settings, listeners, Sole(source, hangup, ControlSocket(config.file)), started)
        return _run_workers(settings, listeners, load, workers, started, hangup)
    except DemoFailure as error:
        click.echo(f"chat-nest: {error}", err=True)
        return 1
    finally:
        listeners.remove()


def _run_workers(
    settings: WorkerSettings,
    listeners: Listeners,
    load: Load,
    workers: int,
    started: Callable[[], None],
    hangup: Hangup,
) -> int:
    """Serve with several processes, which share one demo model, their runs and their metrics."""
    config = settings.config
    with (
        _shared_demo(config.providers) as demo,
        _shared_runs(config) as runs,
        _shared_metrics(config) as folder,
    ):

        def shared(config: Config) -> Config:
            return replace(config, providers=_with_demo(config.providers, demo), runs=runs)

        source = ConfigSource(config, load, shared)
        settings = replace(settings, config=shared(config), metrics_folder=folder)
        return serve_with_workers(settings, listeners, workers, started, source, hangup, ControlSocket(config.file))


def _usable(config: Config) -> Config:
    """Return the same configuration. Raises ConfigError if it needs a demo model that can't run here."""
    if problem := _problem(config, 1):
        raise ConfigError(problem.split("\n"))
    return config


def banner(config: Config, url: str, operators_url: str = "", *, color: bool) -> str:
    """Return what an operator wants to know at the start. The first line is also for programs."""

    def styled(text: str, **style: bool | str) -> str:
        return click.style(text, **style) if color else text  # type: ignore[arg-type]  # keyword by keyword they fit

    open_at = url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
    provider = config.providers[config.model.partition(":")[0]]
    rows = [("Open", f"{styled(f'{open_at}/', bold=True)} in a browser, or POST a chat to {open_at}/api/chat")]
    if config.is_demo:
        label = styled("DEMO", fg="yellow", bold=True)
        rows += [
            ("Model", f"{label} {config.model}: tiny, on this machine, fluent and often wrong"),
            ("", f"For a real one set {WITH_A_KEY} and start again"),
        ]
    else:
        rows.append(("Model", f"{config.model} at {provider.base_url}"))
    rows += [
        *([("Callers", f"are identified {config.identity.shown}")] if config.identity.takes_keys else []),
        *([("Admin", f"at {operators_url}, with a key of [admin]")] if operators_url else []),
        ("Budgets", f"in {config.store_shown}; a day begins at midnight, {config.server.time_zone}"),
        ("Config", config.file or "no file: the built-in profiles (--config FILE for your own)"),
        *(("Note", styled(note, fg="yellow")) for note in config.notes),
        *([("Open", styled(openness, fg="yellow"))] if (openness := open_to_everybody(config)) else []),
        *([("Limits", styled(unlimited, fg="yellow"))] if (unlimited := warning(config)) else []),
    ]
    lines = [f"  {styled(f'{name:<8}', dim=True)} {text}" for name, text in rows]
    return "\n".join((f"chat-nest: listening on {url}", *lines, f"  {'':<8} Ctrl+C stops it"))


def _problem(config: Config, workers: int) -> str:
    """Return which settings can't work together, and what to do; an empty string if all is well."""
    if workers > 1 and config.store == "memory://":
        return "with memory:// each worker would have separate budgets: choose a sqlite:// store, or one worker"
    if _runs_own_demo(config.providers):
        try:
            check_demo()
        except DemoFailure as failed:
            return f"{failed}\nor set {WITH_A_KEY}"
    return ""


def _runs_own_demo(providers: Mapping[str, ProviderConfig]) -> bool:
    return any(provider.kind == "demo" and not provider.base_url for provider in providers.values())


@contextlib.contextmanager
def _shared_runs(config: Config) -> Generator[RunsSection]:
    """Give each worker access to the runs of the others: a directory for their sockets, unless Redis keeps the runs."""
    if config.runs_url != "memory://" or not hasattr(socket, "AF_UNIX"):
        yield config.runs
        return
    # Ignores TMPDIR: the path of a socket has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="chat-nest-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield replace(config.runs, url=f"local://{folder}")


@contextlib.contextmanager
def _shared_metrics(config: Config) -> Generator[str]:
    """Give the workers a folder to count in together; an empty name if metrics are off."""
    if not config.metrics.enabled:
        yield ""
        return
    with shared_folder() as folder:
        yield folder


@contextlib.contextmanager
def _shared_demo(providers: Mapping[str, ProviderConfig]) -> Generator[DemoServer | None]:
    """Start one demo model for all workers, if they need it. Raises DemoFailure."""
    if not _runs_own_demo(providers):
        yield None
        return
    server = start_demo_server()
    try:
        yield server
    finally:
        server.close()


def _with_demo(providers: Mapping[str, ProviderConfig], server: DemoServer | None) -> Mapping[str, ProviderConfig]:
    """Return the providers, with the demo model that all workers share. Raises ConfigError if there is none."""
    own = [name for name, provider in providers.items() if provider.kind == "demo" and not provider.base_url]
    if own and server is None:
        raise ConfigError([f"providers.{own[0]}: several workers share a demo model, which only a restart can start"])
    shared = {} if server is None else {"base_url": server.url, "api_key": Secret(server.api_key)}
    return {name: replace(each, **shared) if name in own else each for name, each in providers.items()}
