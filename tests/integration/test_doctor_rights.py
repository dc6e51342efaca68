"""What the doctor says where this user may not, on a real broker with Kafka's own authorizer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from penstock.doctor import Deployment, Finding, rights
from penstock.local.broker import EmbeddedBroker
from penstock.local.kafka_server import PROPERTIES
from penstock.settings import Settings
from penstock.topics import admin_client, create_topics, topic_specs
from tests.integration.pipeline_world import until
from tests.onnx_models import plan as any_plan

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

AUTHORIZER = """\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
"""
REST = (ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY)
"""Of a filter that takes every rule of a resource."""
TOPIC, GROUP, TRANSACTION = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.local.broker.PROPERTIES", PROPERTIES + AUTHORIZER)
        with EmbeddedBroker(tmp_path_factory.mktemp("authorizer")) as broker:
            settings = Settings(bootstrap_servers=broker.bootstrap)
            create_topics(admin_client(settings), topic_specs(any_plan()))
            yield broker.bootstrap


@contextmanager
def denied(bootstrap: str, kind: ResourceType, name: str, operation: AclOperation) -> Iterator[None]:
    """This user may do everything with the resource but ``operation``."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})

    def binding(what: AclOperation, permission: AclPermissionType) -> AclBinding:
        return AclBinding(kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", what, permission)

    rules = [binding(AclOperation.ALL, AclPermissionType.ALLOW), binding(operation, AclPermissionType.DENY)]
    for made in admin.create_acls(rules).values():
        made.result(30)
    yield
    for gone in admin.delete_acls([AclBindingFilter(kind, name, *REST)]).values():
        gone.result(30)


def look(bootstrap: str) -> tuple[list[Finding], rights.AbortedWrite]:
    settings = Settings(bootstrap_servers=bootstrap)
    deployment = Deployment(any_plan(), settings, Path(), admin_client(settings), time.monotonic() + 60)
    write = rights.AbortedWrite()
    return list(rights.check_rights(deployment, [], write)), write


def test_a_user_who_may_do_everything_is_one_line_a_right(bootstrap: str) -> None:
    found, write = look(bootstrap)
    assert [(each.check, each.verdict) for each in found] == [
        (check, "ok") for check in (rights.WRITE, rights.READ, rights.GROUPS)
    ]
    assert write.sent is not None
    assert write.appended is not None
    assert write.heard is not None
    assert write.sent - 1 <= write.appended <= write.heard + 1, "one machine has one clock"


@pytest.mark.parametrize(
    ("kind", "name", "operation", "check", "mend"),
    [
        (TOPIC, "shop.predictions", AclOperation.WRITE, rights.WRITE, "--operation Write --topic shop.predictions"),
        (TOPIC, "shop.dropped", AclOperation.WRITE, rights.WRITE, "--topic shop.dropped"),
        (TOPIC, "shop.features", AclOperation.READ, rights.READ, "--operation Read --topic shop.features"),
        (TOPIC, "shop.control", AclOperation.READ, rights.READ, "--operation Read --topic shop.control"),
        (GROUP, "shop.inference", AclOperation.READ, rights.GROUPS, "--operation Read --group shop.inference"),
        (TRANSACTION, "shop.doctor", AclOperation.WRITE, rights.WRITE, "--transactional-id shop. --resource-pattern"),
    ],
)
def test_a_missing_right_is_named_with_the_command_that_gives_it(
    bootstrap: str, kind: ResourceType, name: str, operation: AclOperation, check: str, mend: str
) -> None:
    with denied(bootstrap, kind, name, operation):
        # what was made a moment ago is in force within one

        def refused() -> list[Finding]:
            return [each for each in look(bootstrap)[0] if each.verdict == "fail"]

        found = until("a refusal", refused, seconds=30)
    assert {each.check for each in found} == {check}
    assert any(mend in each.mend for each in found), found
    assert all(each.mend.startswith(f"kafka-acls.sh --bootstrap-server {bootstrap} --add") for each in found)
