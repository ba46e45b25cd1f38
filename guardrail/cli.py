"""The commands. Heavy rooms are imported by the command that uses them."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import guardrail
from guardrail.config import Settings, read_settings
from guardrail.errors import ConfigError, GuardrailError, PolicyError


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (ConfigError, PolicyError) as error:
        print(f"guardrail: {error.message}", file=sys.stderr)
        return 2
    except GuardrailError as error:
        print(f"guardrail: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe went away: not a failure. Standard output is replaced so that exit does not flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="guardrail", description=guardrail.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the proxy", description="Run the proxy.")
    _common(serve)
    serve.add_argument("--upstream", help="URL, litellm:NAME, or embedded (default: embedded)")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8080)")
    serve.set_defaults(run=_serve)

    score = commands.add_parser("score", help="score prompt and response pairs, JSON lines in and out")
    _common(score)
    score.add_argument("file", nargs="?", default="-", help='JSON lines of {"prompt", "response"}; - is standard input')
    score.add_argument("--batch", type=int, default=32, metavar="N", help="lines scored together (default: 32)")
    score.set_defaults(run=_score)

    demo = commands.add_parser("demo", help="six prompts through the whole path, with a small real model")
    _common(demo)
    demo.add_argument("--json", action="store_true", help="print the results as JSON lines")
    demo.set_defaults(run=_demo)

    version = commands.add_parser("version", help="version of the code, hashes of weights and policy")
    _common(version)
    version.set_defaults(run=_version)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="a YAML file of settings (docs/configuration.md)")
    parser.add_argument("--policy", help="name of a policy that ships, or path of a Markdown file (default: default)")


def _settings(arguments: argparse.Namespace) -> Settings:
    names = ("upstream", "host", "port", "policy")
    path = arguments.config or (Path(os.environ["GUARDRAIL_CONFIG"]) if "GUARDRAIL_CONFIG" in os.environ else None)
    return read_settings(path, os.environ, {name: getattr(arguments, name, None) for name in names})


def _serve(arguments: argparse.Namespace) -> int:
    from guardrail.serve import serve

    return serve(_settings(arguments))


def _score(arguments: argparse.Namespace) -> int:
    from guardrail.batch import score_lines

    return asyncio.run(score_lines(_settings(arguments), arguments.file, arguments.batch))


def _demo(arguments: argparse.Namespace) -> int:
    from guardrail.demo import run_demo

    return asyncio.run(run_demo(_settings(arguments), as_json=bool(arguments.json)))


def _version(arguments: argparse.Namespace) -> int:
    from guardrail.build import load_policy, weights_hash

    settings = _settings(arguments)
    policy = load_policy(settings.policy)
    print(f"guardrail {guardrail.__version__}")
    print(f"weights   {weights_hash(settings)}")
    print(f"policy    {policy.id} {policy.version} {policy.hash}")
    return 0
