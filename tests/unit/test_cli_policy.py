"""`landbridge policy`, `requests`, `approve`, `deny`, and what `migrate` and `show` say of policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.cli import connection
from landbridge.errors import ApprovalNeeded, PolicyRefused
from landbridge.v1 import types_pb2 as types
from landbridge.v1.authorization_pb2 import ApprovalRequest, PolicyStatus, RequestState
from landbridge.v1.decision_pb2 import Approval, Decision, DecisionStep, Grounds, Labels, Verdict
from landbridge.v1.gateway_pb2 import ExplainPolicyResponse
from tests.unit.fake_gateway import FakeGateway, Run, completed
from tests.unit.policies import HEAD, PERMIT

KIM = "spiffe://example.org/site/fra/operator/kim"
CAROL = "spiffe://example.org/site/fra/operator/carol"
SHA = "5f3c" * 16


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        monkeypatch.setattr(connection, "connect", lambda _: fake.client())
        yield fake


def step(check: str, sentence: str, *, passed: bool = True, rule: str = "") -> DecisionStep:
    return DecisionStep(check=check, rule=rule, passed=passed, sentence=sentence)


def allowed(site: str = "fra", **fields: object) -> Decision:
    steps = [step("role", "kim is an operator here"), step("permit", 'the rule "web" permits it', rule="web")]
    made = Decision(site=site, verdict=Verdict.VERDICT_ALLOWED, rule='permit "web"', steps=steps, policy_sha256=SHA)
    made.MergeFrom(Decision(**fields))  # type: ignore[arg-type]  # the caller's keywords
    return made


def waits(site: str = "fra") -> Decision:
    steps = [step("four-eyes", '"two" takes 2 approvals, and has 0', passed=False, rule="two")]
    return Decision(site=site, verdict=Verdict.VERDICT_APPROVAL, rule='four-eyes "two"', steps=steps, request="r-1")


def refused(site: str = "ams") -> Decision:
    steps = [step("freeze", 'the freeze "year end" lasts until 2027-01-04 06:00 CET', passed=False, rule="year end")]
    return Decision(site=site, verdict=Verdict.VERDICT_REFUSED, rule='freeze "year end"', steps=steps)


def asked() -> types.Migration:
    return types.Migration(
        vm="web-01",
        vm_uuid="6c1e5f0a",
        source_site="fra",
        source_host="host-a",
        destination_site="ams",
        destination_host="host-b",
        requested_by=KIM,
        labels=Labels(owner="shop", classification="internal", tags=["prod"]),
        domain_sha256="d" * 64,
    )


def request(id_: str = "aaaa1111", **fields: object) -> ApprovalRequest:
    made = ApprovalRequest(
        id=id_,
        state=RequestState.REQUEST_STATE_WAITING,
        migration=asked(),
        sha256=SHA,
        created_at=Timestamp(seconds=1_763_870_000),
        expires_at=Timestamp(seconds=4_000_000_000),
        waits_for='"two" takes 2 approvals, and has 0',
    )
    made.MergeFrom(ApprovalRequest(**fields))  # type: ignore[arg-type]  # the caller's keywords
    return made


# policy status


def test_status_says_who_you_are_and_what_is_in_force(fake: FakeGateway, run: Run) -> None:
    fake.policy = PolicyStatus(
        file="/etc/landbridge/policy.toml",
        sha256=SHA,
        loaded_at=Timestamp(seconds=1_763_870_000),
        rules=3,
        caller=KIM,
        roles=["approver", "operator"],
    )
    assert run("policy", "status") == (
        0,
        (
            f"you are         {KIM}\n"
            "roles           approver, operator\n"
            "file            /etc/landbridge/policy.toml\n"
            f"sha256          {SHA}\n"
            "in force since  2025-11-23T03:53:20Z\n"
            "rules           3\n"
        ),
        "",
    )


def test_status_says_loudly_what_is_not_in_force(fake: FakeGateway, run: Run) -> None:
    fake.policy = PolicyStatus(file="p", sha256=SHA, rules=3, caller=KIM, problem="the policy p is not TOML")
    out = run("policy", "status")[1]
    assert out.endswith("\nPROBLEM: the policy p is not TOML.\nWhat was right before is still in force.\n")
    assert "roles    none\n" in out
    fake.policy = PolicyStatus(caller=KIM, problem="this gateway has no policy")
    assert run("policy", "status")[1].endswith("\nPROBLEM: this gateway has no policy.\n")


# policy explain


def test_explain_says_what_each_site_looked_at(fake: FakeGateway, run: Run) -> None:
    fake.explanation = ExplainPolicyResponse(migration=asked(), decisions=[allowed(), refused()])
    assert run("policy", "explain", "web-01", "--to", "ams") == (
        0,
        (
            "web-01 may not move from fra/host-a to ams/host-b.\n"
            f"asked by  {KIM}\n"
            "VM        web-01, internal, owner shop, tag prod\n"
            'fra: allowed by permit "web" (policy 5f3c5f3c5f3c)\n'
            "  yes  role        kim is an operator here\n"
            '  yes  permit      the rule "web" permits it\n'
            'ams: refused by freeze "year end"\n'
            '  no   freeze      the freeze "year end" lasts until 2027-01-04 06:00 CET\n'
        ),
        "",
    )
    assert fake.asked == ["explain web-01 ams/"]


@pytest.mark.parametrize(
    ("decisions", "unreachable", "said"),
    [
        ([allowed(), allowed("ams")], "", "web-01 may move from fra/host-a to ams/host-b."),
        ([waits(), allowed("ams")], "", "web-01 may move from fra/host-a to ams/host-b once others have approved it."),
        ([refused("fra")], "", "web-01 may not move from fra/host-a to ams/host-b."),
        (
            [allowed()],
            "site ams cannot be reached: it is away",
            "web-01 may move from fra/host-a to ams/host-b, as far as this site says.",
        ),
    ],
)
def test_explain_begins_with_the_answer(
    fake: FakeGateway, run: Run, decisions: list[Decision], unreachable: str, said: str
) -> None:
    fake.explanation = ExplainPolicyResponse(migration=asked(), decisions=decisions, unreachable=unreachable)
    code, out, _ = run("policy", "explain", "web-01", "--to", "ams/host-b", "--as", "kim")
    assert (code, out.splitlines()[0]) == (0, said)
    assert fake.asked == ["explain web-01 ams/host-b as kim"]
    assert (unreachable in out) is True


def test_explain_as_json_has_both_decisions(fake: FakeGateway, run: Run) -> None:
    fake.explanation = ExplainPolicyResponse(migration=asked(), decisions=[allowed(), refused()])
    found = json.loads(run("policy", "explain", "web-01", "--to", "ams", "--json")[1])
    assert found["type"] == "explanation"
    assert [(d["site"], d["verdict"]) for d in found["decisions"]] == [("fra", "allowed"), ("ams", "refused")]


# policy test

CASES = """\
[[tests]]
name = "web goes to ams"
who = "alice"
vm = "web-1"
from = "fra"
to = "ams"
expect = "allowed"
[[tests]]
name = "databases stay"
who = "alice"
vm = "db-1"
from = "fra"
to = "ams"
expect = "refused"
"""


def test_a_file_is_tested_without_any_gateway(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(HEAD + PERMIT + CASES)
    assert run("policy", "test", str(file)) == (
        0,
        (
            'holds  web goes to ams: allowed by permit "web"\n'
            "holds  databases stay: refused by default deny\n"
            f"{file} is right; all 2 tests hold.\n"
        ),
        "",
    )


def test_a_test_that_does_not_hold_is_said_with_what_decided(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(HEAD + PERMIT + CASES.replace('"refused"', '"allowed"'))
    code, out, err = run("policy", "test", str(file))
    assert code == 2
    assert out.splitlines()[1].startswith(
        "fails  databases stay: expected allowed, and it is refused by default deny: no rule permits"
    )
    assert err == f"landbridge: 1 of 2 tests of {file} do not hold: mend the policy, or the tests.\n"


def test_tests_as_json(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(HEAD + PERMIT + CASES)
    found = [json.loads(line) for line in run("policy", "test", str(file), "--json")[1].splitlines()]
    assert found[0] == {
        "type": "policy_test",
        "name": "web goes to ams",
        "holds": True,
        "expected": "allowed",
        "verdict": "allowed",
        "rule": 'permit "web"',
        "wrong": "",
    }
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory."),
        (b"\xff", "is not UTF-8 text"),
        (b"[", "is not TOML"),
        (HEAD.encode() + b"colour = 1", "is wrong at line 17, sites.nyc.colour is no key that is known here."),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(run: Run, tmp_path: Path, text: bytes | None, said: str) -> None:
    file = tmp_path / "policy.toml"
    if text is not None:
        file.write_bytes(text)
    code, out, err = run("policy", "test", str(file))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_file_without_tests_says_so(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(HEAD)
    assert run("policy", "test", str(file))[1] == f"{file} is right; it has no [[tests]].\n"


# requests, approve, deny


def test_requests_that_are_open_are_listed_with_what_they_wait_for(fake: FakeGateway, run: Run) -> None:
    fake.requests = [
        request(),
        request("bbbb2222", state=RequestState.REQUEST_STATE_DENIED, denied_by=CAROL, denied_because="not today"),
        request("cccc3333", state=RequestState.REQUEST_STATE_USED, used_by="3f2a91c4"),
    ]
    code, out, _ = run("requests")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["ID", "aaaa1111"]
    assert out.splitlines()[1].endswith('"two" takes 2 approvals, and has 0')
    everything = run("requests", "--all")[1].splitlines()
    assert everything[2].endswith(f"denied by {CAROL}: not today")
    assert everything[3].endswith("migration 3f2a91c4")
    found = [json.loads(line) for line in run("requests", "--json")[1].splitlines()]
    assert [(each["type"], each["id"], each["state"]) for each in found] == [("request", "aaaa1111", "waiting")]


def test_approving_says_what_was_approved_and_is_bound_to_its_hash(fake: FakeGateway, run: Run) -> None:
    fake.requests = [request(claimed_by="lon", approvals=[Approval(approver=CAROL)])]
    code, out, err = run("approve", "aaaa")
    assert (code, err) == (0, "")
    assert fake.asked == ["requests", f"approve aaaa1111 {SHA}"]
    for line in (
        "VM           web-01 (6c1e5f0a)",
        "labels       internal, owner shop, tag prod",
        "destination  ams/host-b",
        f"asked by     {KIM} (as site lon claims)",
        f"bound to     sha256 {SHA}",
        f"approved by  {CAROL}",
    ):
        assert f"{line}\n" in out
    assert out.endswith(
        "You have approved it, and it waits for nobody else here: web-01 can move once it is asked for again.\n"
    )
    assert json.loads(run("approve", "aaaa1111", "--json")[1])["state"] == "approved"


@pytest.mark.parametrize("known", [[], [request("aaaa1111"), request("aaaa2222")]])
def test_approving_what_is_not_one_request_is_one_sentence(
    fake: FakeGateway, run: Run, known: list[ApprovalRequest]
) -> None:
    fake.requests = known
    code, _, err = run("approve", "aaaa")
    assert code == 3
    assert err == (
        "landbridge: There is no request aaaa, or more than one that begins so: see `landbridge requests --all`.\n"
    )


def test_denying_takes_a_reason(fake: FakeGateway, run: Run) -> None:
    fake.requests = [request()]
    code, _, err = run("deny", "aaaa")
    assert code == 2
    assert "--reason" in err
    for reason in (" ", "x" * 501, "a\nb"):
        assert "Say why, in one line" in run("deny", "aaaa", "--reason", reason)[2]
    assert run("deny", "aaaa", "--reason", "not today") == (0, f"Request aaaa1111 of {KIM} is denied.\n", "")
    assert fake.asked == ["deny aaaa not today"]
    assert json.loads(run("deny", "aaaa", "--reason", "no", "--json")[1])["denied_because"] == "no"


def test_a_wrong_id_of_a_request_says_where_ids_are_shown(run: Run) -> None:
    assert (
        "is no request's id: give its first four characters or more, as `landbridge requests` shows"
        in run("approve", "x")[2]
    )


# migrate and show


def test_a_dry_run_says_what_the_policies_say(fake: FakeGateway, run: Run) -> None:
    fake.decisions = [waits(), allowed("ams")]
    code, out, _ = run("migrate", "web-01", "--to", "ams", "--dry-run")
    assert code == 0
    assert 'policy of fra  waits for approval by four-eyes "two"; request r-1\n' in out
    assert 'policy of ams  allowed by permit "web" (policy 5f3c5f3c5f3c)\n' in out
    assert out.endswith(
        "web-01 can move from host-a to ams/host-b once others have approved it; nothing has been changed.\n"
    )


def test_what_others_must_approve_first_has_an_exit_code_of_its_own(fake: FakeGateway, run: Run) -> None:
    fake.requests = [request("bbbb2222"), request()]
    fake.refuse_migrate = ApprovalNeeded("site fra waits for approvals", details={"request": "aaaa1111"})
    assert run("migrate", "web-01", "--to", "ams") == (12, "", "landbridge: site fra waits for approvals.\n")
    code, out, _ = run("migrate", "web-01", "--to", "ams", "--json")
    assert code == 12
    assert [(each["type"], each["id"]) for each in map(json.loads, out.splitlines())] == [("request", "aaaa1111")]


def test_what_a_policy_refuses_shows_all_that_was_found(fake: FakeGateway, run: Run) -> None:
    fake.decisions = [allowed(), refused()]
    fake.refuse_migrate = PolicyRefused("the policy of site ams refuses it")
    code, out, err = run("migrate", "web-01", "--to", "ams")
    assert (code, err) == (6, "landbridge: the policy of site ams refuses it.\n")
    assert 'policy of ams  refused by freeze "year end"\n' in out


def test_the_glass_and_the_request_go_to_the_gateway(fake: FakeGateway, run: Run) -> None:
    fake.play(completed())
    assert run("migrate", "web-01", "--to", "ams", "--break-glass", "the roof leaks", "--request", "aaaa1111")[0] == 0
    assert fake.wanted.break_glass == "the roof leaks"
    assert fake.wanted.request == "aaaa1111"


def test_a_purpose_goes_to_the_gateway_and_is_one_line(fake: FakeGateway, run: Run) -> None:
    fake.play(completed())
    assert run("migrate", "web-01", "--to", "ams", "--purpose", "the cooling has failed")[0] == 0
    assert fake.wanted.purpose == "the cooling has failed"
    code, _, err = run("migrate", "web-01", "--to", "ams", "--purpose", "a\nb")
    assert (code, "in one line of at most 500 characters" in err) == (2, True)


def test_show_says_why_and_by_what_right_and_who_says_so(fake: FakeGateway, run: Run) -> None:
    grounds = Grounds(purpose="running the shop", legal_basis="contract", transfer_mechanism="scc-eu")
    fake.know([completed(purpose="the cooling has failed", grounds=grounds)])
    out = run("show", "3f2a")[1]
    assert "purpose         the cooling has failed (as who asks says)\n" in out
    assert "purpose         running the shop (by the policy of site fra)\n" in out
    assert "legal basis     contract (by the policy of site fra)\n" in out
    assert "transferred by  scc-eu (by the policy of site fra)\n" in out


def test_show_has_the_decisions_of_both_sites(fake: FakeGateway, run: Run) -> None:
    fake.know(
        [
            completed(
                decisions=[
                    allowed(break_glass="the roof leaks"),
                    allowed("ams", request="r-2"),
                    Decision(site="fra", action="cancel", requester=KIM, verdict=Verdict.VERDICT_ALLOWED, rule="r"),
                ],
                labels=Labels(tags=["prod"]),
                approvals=[Approval(approver=CAROL)],
                break_glass="the roof leaks",
            )
        ]
    )
    out = run("show", "3f2a")[1]
    assert f"approved by   {CAROL}\n" in out
    assert "glass broken  the roof leaks\n" in out
    assert "labels        tag prod\n" in out
    assert out.endswith(
        "\nThe policies decided:\n"
        'fra: allowed by permit "web"; the glass was broken: the roof leaks (policy 5f3c5f3c5f3c)\n'
        "  yes  role        kim is an operator here\n"
        '  yes  permit      the rule "web" permits it\n'
        'ams: allowed by permit "web"; request r-2 (policy 5f3c5f3c5f3c)\n'
        "  yes  role        kim is an operator here\n"
        '  yes  permit      the rule "web" permits it\n'
        f"fra, cancel by {KIM}: allowed by r\n"
    )
