"""What `chat-nest serve` says when it starts, and the demo model that its workers share."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Generator, Mapping

import click
from msgspec.structs import replace

from chat_nest.providers.demo import DemoFailure, check_demo, start_demo_server
from chat_nest.server import logs
from chat_nest.server.config import Config
from chat_nest.server.listen import url_of
from chat_nest.server.providers import ProviderConfig, Secret
from chat_nest.server.schema import RunsSection
from chat_nest.server.worker import Settings, serve, serve_with_workers

WITH_A_KEY = "OPENAI_API_KEY=... (or OPENAI_BASE_URL=... for another server of the same API)"


def run(config: Config, listener: socket.socket, *, workers: int, log_level: str, access_log: bool, color: bool) -> int:
    """Serve until a signal ends it; return the exit code."""
    logs.configure(log_level, color=color, access_log=access_log)
    problem = _problem(config, workers)
    if problem:
        click.echo(f"chat-nest: {problem}", err=True)
        return 2
    settings = Settings(config=config, log_level=log_level, access_log=access_log, color=color)

    def started() -> None:
        click.echo(banner(config, url_of(listener), color=color), color=color)

    try:
        if workers == 1:
            return serve(settings, listener, started)
        with _shared_demo(config.providers) as providers, _shared_runs(config) as runs:
            shared = replace(settings, config=replace(config, providers=providers, runs=runs))
            return serve_with_workers(shared, listener, workers, started)
    except DemoFailure as error:
        click.echo(f"chat-nest: {error}", err=True)
        return 1


def banner(config: Config, url: str, *, color: bool) -> str:
    """What an operator wants to know at the start. The first line is also for programs."""

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
        *([("Callers", f"are told {config.identity.shown}")] if config.identity.shown else []),
        ("Budgets", f"in {config.store_shown}; a day begins at midnight, {config.server.time_zone}"),
        ("Config", config.file or "no file: the built-in profiles (--config FILE for your own)"),
        *(("Note", styled(note, fg="yellow")) for note in config.notes),
    ]
    lines = [f"  {styled(f'{name:<8}', dim=True)} {text}" for name, text in rows]
    return "\n".join((f"chat-nest: listening on {url}", *lines, f"  {'':<8} Ctrl+C stops it"))


def _problem(config: Config, workers: int) -> str:
    """What can't work together, and what to do; nothing where all is well."""
    if workers > 1 and config.store == "memory://":
        return "with memory:// each worker would have budgets of its own: choose a sqlite:// store, or one worker"
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
    """What lets each worker follow the runs of the others: a directory for their sockets, unless Redis keeps them."""
    if config.runs_url != "memory://" or not hasattr(socket, "AF_UNIX"):
        yield config.runs
        return
    # Whatever TMPDIR says: the path of a socket has room for a hundred characters.
    with tempfile.TemporaryDirectory(prefix="chat-nest-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield replace(config.runs, url=f"local://{folder}")


@contextlib.contextmanager
def _shared_demo(providers: Mapping[str, ProviderConfig]) -> Generator[Mapping[str, ProviderConfig]]:
    """One demo model for all workers. Raises DemoFailure."""
    if not _runs_own_demo(providers):
        yield providers
        return
    server = start_demo_server()
    try:
        yield {
            name: replace(provider, base_url=server.url, api_key=Secret(server.api_key))
            if provider.kind == "demo" and not provider.base_url
            else provider
            for name, provider in providers.items()
        }
    finally:
        server.close()
