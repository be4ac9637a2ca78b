"""`landbridge policy`: what the gateway goes by, what it says to a migration, and the tests of a policy file.

`test` works on a file and asks no gateway: it is for whoever writes the file, and for those who review it.
"""

import json
from pathlib import Path

import click

from gateway.authorization import cases, rules
from gateway.cli import arguments, connection, decisions, json_lines, output, words
from gateway.cli.arguments import Destination
from landbridge.errors import ConfigError
from landbridge.v1.decision_pb2 import VERDICT_ALLOWED, VERDICT_APPROVAL
from landbridge.v1.gateway_pb2 import ExplainPolicyResponse

_DEFAULT = Path("/etc/landbridge/policy.toml")


@click.group()
def policy() -> None:
    """Who may do what: the policy in force, what it says to a migration, and tests of a file."""


@policy.command()
@arguments.as_json
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """Show the policy in force, and what you are by it."""
    with connection.connect(ctx) as gateway:
        found = gateway.policy()
    if as_json:
        json_lines.write("policy", found)
        return
    pairs = [
        ("you are", words.safe(found.caller)),
        ("roles", ", ".join(map(words.safe, found.roles)) or "none"),
        ("file", words.safe(found.file)),
        ("sha256", words.safe(found.sha256)),
        ("in force since", words.moment(found.loaded_at) or ""),
        ("rules", str(found.rules)),
    ]
    output.facts([(name, value) for name, value in pairs if value])
    if found.problem:
        output.say(click.style(f"PROBLEM: {words.sentence(found.problem)}", fg="red"))
        if found.sha256:
            output.say("What was right before is still in force.")


@policy.command()
@arguments.vm
@click.option("--to", "destination", type=arguments.DESTINATION, required=True, help="Where it would move.")
@click.option("--as", "requester", type=arguments.WHO, help="Who would ask: NAME, SITE/NAME or a SPIFFE ID; else you.")
@click.option("--purpose", type=arguments.REASON, help="As if this purpose were given.")
@click.option("--break-glass", type=arguments.REASON, help="As if the glass were broken with this reason.")
@arguments.as_json
@click.pass_context
def explain(
    ctx: click.Context,
    vm: str,
    destination: Destination,
    *,
    requester: str | None,
    purpose: str | None,
    break_glass: str | None,
    as_json: bool,
) -> None:
    """Explain what both sites' policies say, rule by rule.

    Nothing is touched, and no request is made. The exit code is 0 whatever they say.
    """
    with connection.connect(ctx) as gateway:
        site, host = destination.site, destination.host
        who, glass, why = requester or "", break_glass or "", purpose or ""
        found = gateway.explain(vm, site, host, requester=who, break_glass=glass, purpose=why)
    if as_json:
        json_lines.write("explanation", found)
        return
    asked = found.migration
    output.say(_answer(found))
    output.facts(
        [
            ("asked by", words.safe(asked.requested_by)),
            ("VM", ", ".join(filter(None, (words.safe(asked.vm), decisions.labels(asked.labels))))),
            *decisions.grounds(asked),
        ]
    )
    decisions.show(found.decisions)
    if found.unreachable:
        output.say(words.sentence(found.unreachable))


def _answer(found: ExplainPolicyResponse) -> str:
    asked = found.migration
    source = words.place(asked.source_site, asked.source_host)
    way = f"{words.safe(asked.vm)} {{}} move from {source} to {words.place(asked.destination_site, asked.destination_host)}"
    verdicts = {decision.verdict for decision in found.decisions}
    if not verdicts <= {VERDICT_ALLOWED, VERDICT_APPROVAL}:
        return f"{way.format('may not')}."
    if VERDICT_APPROVAL in verdicts:
        return f"{way.format('may')} once others have approved it."
    return f"{way.format('may')}{', as far as this site says' if found.unreachable else ''}."


@policy.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=_DEFAULT)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line (docs/cli-json.md).")
def test(file: Path, *, as_json: bool) -> None:
    """Run the tests that a policy file carries.

    Says what is wrong with it, and asks no gateway. FILE is /etc/landbridge/policy.toml unless given. The
    exit code is 2 if the file is wrong, or a test does not hold: then no gateway takes it either.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"the policy {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the policy {file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    outcomes = cases.run(rules.parse(text, str(file)))
    failed = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in outcomes:
        if as_json:
            facts = {
                "name": outcome.case.name,
                "holds": not outcome.wrong,
                "expected": outcome.case.expect,
                "verdict": outcome.decision.verdict,
                "rule": outcome.decision.rule,
                "wrong": outcome.wrong,
            }
            click.echo(json.dumps({"type": "policy_test", **facts}))
        else:
            mark = click.style("fails", fg="red") if outcome.wrong else "holds"
            said = outcome.wrong or f"{outcome.decision.verdict} by {outcome.decision.rule}"
            click.echo(f"{mark}  {words.safe(outcome.case.name)}: {words.safe(said)}")
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(outcomes)} tests of {file} do not hold: mend the policy, or the tests."
        )
    if not as_json:
        output.say(f"{file} is right; {_held(len(outcomes))}.")


def _held(count: int) -> str:
    if count < 2:
        return "its test holds" if count else "it has no [[tests]]"
    return f"all {count} tests hold"
